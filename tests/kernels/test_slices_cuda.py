"""Central slices on a card beside the CPU's: on the host everywhere, on a card where one is."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import emdask.kernels
from emdask.kernels import slices, slices_cpu
from emdask.kernels.launch_cuda import OPTIONS
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slice_grid import ACCURACIES, SETTINGS
from tests.kernels.test_cuda_sources import ask_nvrtc

Array = npt.NDArray[Any]
# Of the largest: rounding of float32 sums.
ROUNDING = 2e-6
# Views along the axes have points midway between cells, where the kernel ends: which of its two
# ends counts is a matter of rounding, and its height there is at most this.
END_OF_KERNEL = 2e-3
ALONG_AXES = [[0, 0, 0], [90, 0, 0], [0, 90, 0], [0, 180, 0], [90, 90, 0], [180, 180, 90]]


@pytest.fixture
def twin(card: str) -> Any:
    """The module, with CuPy or its stand-in."""
    from emdask.kernels import slices_cuda

    return slices_cuda


def random_views(n: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rotation_matrices(rng.uniform(0, 360, (n, 3))), rng.uniform(-3, 3, (n, 2))


def random_volume(box_px: int) -> Array:
    shape = (box_px, box_px, box_px)
    return np.random.default_rng(box_px).normal(size=shape).astype(np.float32)


def random_slices(n: int, box_px: int) -> tuple[Array, Array]:
    """Any complex numbers, mates of each other or not, but at frequency 0; and weights."""
    rng = np.random.default_rng(n + box_px)
    shape = (n, box_px, box_px // 2 + 1)
    values = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    values[:, 0, 0] = values[:, 0, 0].real
    return values.astype(np.complex64), rng.uniform(size=shape).astype(np.float32)


def assert_near(ours: Array, theirs: Array, error: float = ROUNDING) -> None:
    """Compare, by the largest of theirs."""
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=error * abs(theirs).max())


def insert_on_card(sums: slices.SliceSums, *given: Any) -> slices.SliceSums:
    """`slices.insert_slices` of the host's arrays on the card; its sums on the host."""
    import cupy

    there = slices.SliceSums(cupy.asarray(sums.cells), sums.plan)
    values, weights, *views = given
    slices.insert_slices(there, cupy.asarray(values), cupy.asarray(weights), *views)
    return slices.SliceSums(cupy.asnumpy(there.cells), sums.plan)


def test_the_twins_share_names_and_parameters(cuda_on_host: Any) -> None:
    from emdask.kernels import slices_cuda

    assert slices_cuda.__all__ == slices_cpu.__all__
    for name in slices_cuda.__all__:
        ours, theirs = (getattr(module, name) for module in (slices_cuda, slices_cpu))
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        )


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("box_px", [8, 17, 24])
def test_slices_are_those_of_the_cpu(twin: Any, box_px: int, accuracy: str) -> None:
    import cupy

    spectrum = slices.prepare_volume(random_volume(box_px), accuracy)
    there = slices.VolumeSpectrum(cupy.asarray(spectrum.cells), spectrum.plan)
    views = random_views(5)
    result = slices.slice_volume(there, *views)
    assert isinstance(result, cupy.ndarray)
    assert_near(cupy.asnumpy(result), slices.slice_volume(spectrum, *views))
    without = slices.slice_volume(there, views[0])
    assert_near(cupy.asnumpy(without), slices.slice_volume(spectrum, views[0]))


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("box_px", [8, 17, 24])
def test_sums_are_those_of_the_cpu(twin: Any, box_px: int, accuracy: str) -> None:
    given = (*random_slices(5, box_px), *random_views(5))
    before = slices.empty_sums(box_px, accuracy)
    before.cells[:] = np.random.default_rng(1).normal(size=before.cells.shape)
    expected = slices.SliceSums(before.cells.copy(), before.plan)
    slices.insert_slices(expected, *given)
    result = insert_on_card(before, *given)
    for ours, theirs in zip(slices.fold_sums(result), slices.fold_sums(expected), strict=True):
        assert_near(ours, theirs)
    alone = insert_on_card(slices.empty_sums(box_px, accuracy), *given[:3])
    slices.insert_slices(cleared := slices.empty_sums(box_px, accuracy), *given[:3])
    assert_near(alone.cells[..., 2], cleared.cells[..., 2])


def test_views_along_axes(twin: Any) -> None:
    """Where cells are reached by one end of the kernel or the other, the error is the kernel's."""
    import cupy

    matrices = rotation_matrices(ALONG_AXES)
    spectrum = slices.prepare_volume(random_volume(16))
    there = slices.VolumeSpectrum(cupy.asarray(spectrum.cells), spectrum.plan)
    expected = slices.slice_volume(spectrum, matrices)
    assert_near(cupy.asnumpy(slices.slice_volume(there, matrices)), expected, END_OF_KERNEL)
    given = (*random_slices(len(matrices), 16), matrices)
    slices.insert_slices(sums := slices.empty_sums(16), *given)
    folded = slices.fold_sums(insert_on_card(slices.empty_sums(16), *given))
    for ours, theirs in zip(folded, slices.fold_sums(sums), strict=True):
        assert_near(ours, theirs, END_OF_KERNEL)


def test_slices_are_fourier_sums(twin: Any) -> None:
    """Term by term of the definition, in float64."""
    import cupy

    n = 12
    volume, (matrices, shifts) = random_volume(n), random_views(3)
    prepared = slices.prepare_volume(cupy.asarray(volume), "high")
    result = cupy.asnumpy(slices.slice_volume(prepared, matrices, shifts))
    place = np.arange(n) - n // 2
    for matrix, shift, values in zip(matrices, shifts, result, strict=True):
        for row, kx in [(0, 0), (1, 2), (9, 3), (11, 0), (4, 1)]:
            k = np.array([kx, np.fft.fftfreq(n, 1 / n)[row], 0])
            x, y, z = (np.exp(-2j * np.pi * part / n * place) for part in matrix.T @ k)
            turns = k[:2] @ (shift - n // 2) / n
            expected = np.einsum("zyx,z,y,x", volume, z, y, x) * np.exp(2j * np.pi * turns)
            assert abs(values[row, kx] - expected) < 1e-4 * abs(result).max()


def test_summing_is_the_adjoint_of_slicing(twin: Any) -> None:
    import cupy

    n, views = 14, random_views(4)
    volume = random_volume(n)
    images = np.random.default_rng(3).normal(size=(4, n, n)).astype(np.float32)
    projections = slices.project_volume(slices.prepare_volume(cupy.asarray(volume)), *views)
    sums = slices.empty_sums(n, xp=cupy)
    spectra = cupy.asarray(np.fft.rfft2(images).astype(np.complex64))
    slices.insert_slices(sums, spectra, cupy.ones(spectra.shape, np.float32), *views)
    back = slices.data_to_volume(slices.fold_sums(sums)[0], sums.plan)
    forward = np.vdot(cupy.asnumpy(projections).astype(np.float64), images)
    assert forward == pytest.approx(np.vdot(volume, cupy.asnumpy(back) / n**2), rel=1e-5)


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_everything_about_slices_is_on_the_card(twin: Any, accuracy: str) -> None:
    """Volumes to grids, slices to images, and sums to volumes: as on the CPU."""
    import cupy

    volume, views = random_volume(15), random_views(2)
    spectrum = slices.prepare_volume(volume, accuracy)
    there = slices.prepare_volume(cupy.asarray(volume), accuracy)
    assert_near(cupy.asnumpy(there.cells), spectrum.cells)
    images = slices.project_volume(there, *views)
    assert_near(cupy.asnumpy(images), slices.project_volume(spectrum, *views))
    sums = slices.empty_sums(15, accuracy)
    slices.insert_slices(sums, *random_slices(2, 15), *views)
    moved = slices.SliceSums(cupy.asarray(sums.cells), sums.plan)
    folded, expected = slices.fold_sums(moved), slices.fold_sums(sums)
    for ours, theirs in zip(folded, expected, strict=True):
        assert_near(cupy.asnumpy(ours), theirs)
    volume = slices.data_to_volume(expected[0], sums.plan)
    assert_near(cupy.asnumpy(slices.data_to_volume(folded[0], sums.plan)), volume)


def test_batches_do_not_show(twin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, in batches and together: the same bits, of slices and of sums."""
    import cupy

    n, views = 13, random_views(7)
    spectrum = slices.prepare_volume(cupy.asarray(random_volume(n)))
    given = random_slices(7, n)
    together = cupy.asnumpy(slices.slice_volume(spectrum, *views))
    whole = insert_on_card(slices.empty_sums(n), *given, *views).cells
    for name, value in (("POINTS_BYTES", 1), ("MOST_IMAGES", 3)):
        monkeypatch.setattr(twin, name, value)
        again = cupy.asnumpy(slices.slice_volume(spectrum, *views))
        np.testing.assert_array_equal(again, together)
        sums = insert_on_card(slices.empty_sums(n), *given, *views)
        np.testing.assert_array_equal(sums.cells, whole)
        monkeypatch.undo()
    sums = slices.empty_sums(n)
    for i in range(7):
        one = slice(i, i + 1)
        alone = slices.slice_volume(spectrum, *(part[one] for part in views))
        np.testing.assert_array_equal(cupy.asnumpy(alone), together[one])
        sums = insert_on_card(sums, *(part[one] for part in (*given, *views)))
    np.testing.assert_array_equal(sums.cells, whole)


def test_more_views_than_threads_look_through(twin: Any) -> None:
    """A thread block lists the images that reach it, 256 at a time."""
    n = 8
    given = (*random_slices(300, n), *random_views(300))
    slices.insert_slices(expected := slices.empty_sums(n, "rough"), *given)
    result = insert_on_card(slices.empty_sums(n, "rough"), *given)
    for ours, theirs in zip(slices.fold_sums(result), slices.fold_sums(expected), strict=True):
        assert_near(ours, theirs)


def test_no_views_are_no_slices(twin: Any) -> None:
    import cupy

    spectrum = slices.prepare_volume(cupy.asarray(random_volume(8)))
    views = np.zeros((0, 3, 3)), np.zeros((0, 2))
    assert slices.slice_volume(spectrum, *views).shape == (0, 8, 5)
    sums = insert_on_card(slices.empty_sums(8), *random_slices(0, 8), *views)
    assert not sums.cells.any()


def test_threads_may_run_in_any_order(cuda_on_host: Any) -> None:
    """Shuffled lanes, warps and blocks, and memory between guards: the same bits."""
    spectrum = slices.prepare_volume(random_volume(9))
    given, views = random_slices(3, 9), random_views(3)
    from emdask.kernels import slices_cuda

    results = []
    for order in (0, 1, 2):
        cuda_on_host.order, cuda_on_host.guarded = order, order > 0
        values = slices_cuda.slice_views(spectrum.cells, spectrum.plan, *views)
        sums = slices.empty_sums(9)
        slices_cuda.insert_views(sums.cells, sums.plan, *given, *views)
        results.append((values, sums.cells))
    for other in results[1:]:
        for ours, first in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(ours, first)


def test_points_on_their_way_are_bounded(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    from emdask.kernels import slices_cuda

    view_bytes = 16 * 16 * 9
    monkeypatch.setattr(slices_cuda, "POINTS_BYTES", 3 * view_bytes)
    values, weights = (cupy.asarray(part) for part in random_slices(20, 16))
    sums = slices.empty_sums(16, xp=cupy)
    before = cuda_on_host.used_bytes
    cuda_on_host.peak_bytes = 0
    slices_cuda.insert_views(sums.cells, sums.plan, values, weights, *random_views(20))
    # Two batches overlap while the second takes the place of the first.
    assert cuda_on_host.peak_bytes - before < 2 * 3 * view_bytes + 20 * 17 * 4 + 1000
    assert cuda_on_host.launches["insert_points"] == 7


@pytest.mark.parametrize("only", ["0", *(str(s.width) for s in SETTINGS.values())])
@pytest.mark.parametrize("architecture", ["75", "90"])
def test_compiles_as_cupy_compiles_it(architecture: str, only: str) -> None:
    source = Path(emdask.kernels.__path__[0], "slices.cu").read_text()
    assert not ask_nvrtc(source, f"-arch=sm_{architecture}", *OPTIONS, f"-DONLY={only}")
