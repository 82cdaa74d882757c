"""The CUDA twin of the pursuit beside the CPU's: on the host everywhere, on a card where one is."""

from __future__ import annotations

import inspect
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import emdask.kernels
from emdask.errors import DeviceError
from emdask.kernels import pursuit_cpu
from emdask.kernels.launch_cuda import OPTIONS
from tests.kernels.test_cuda_sources import ask_nvrtc

Floats = npt.NDArray[np.float32]
# Rounding of float32 sums. A near tie between atoms that rounding turns is not in these images.
ROUNDING = 2e-5


@pytest.fixture
def twin(card: str) -> Any:
    """The module, with CuPy or its stand-in."""
    from emdask.kernels import pursuit_cuda

    return pursuit_cuda


def scenes(n: int, h: int, w: int) -> Floats:
    """Waves, an edge and unit noise; most patches on one side are noise alone."""
    y, x = np.mgrid[:h, :w]
    clean = 5 * np.sin(x / 3) * np.cos(y / 4) * (x > w / 2) + 4.0 * (2 * y > h)
    noise = [np.random.default_rng(seed).normal(size=(h, w)) for seed in range(n)]
    return (clean + np.array(noise)).astype(np.float32)


def random_atoms(n_atoms: int, patch_px: int) -> Floats:
    atoms = np.random.default_rng(n_atoms).normal(size=(n_atoms, patch_px**2))
    atoms -= atoms.mean(axis=1, keepdims=True)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms.astype(np.float32)


def code(twin: Any, patches: Floats, atoms: Floats, tolerance: float, max_atoms: int) -> Any:
    import cupy

    found = twin.code_patches(
        cupy.asarray(patches), atoms, tolerance=tolerance, max_atoms=max_atoms
    )
    return tuple(cupy.asnumpy(part) for part in found)


def denoise(twin: Any, images: Floats, atoms: Floats, **settings: Any) -> Floats:
    import cupy

    settings = {"gain": 1.15, "blend": 0.2, "max_atoms": 12, **settings}
    return cupy.asnumpy(twin.denoise_images(cupy.asarray(images), atoms, **settings))  # type: ignore[no-any-return]


def pursue_slowly(patch: Floats, atoms: Floats, tolerance: float, max_atoms: int) -> Any:
    """Orthogonal matching pursuit by least squares in float64: atoms and coefficients."""
    chosen: list[int] = []
    values = np.zeros(0)
    rest = patch.astype(np.float64)
    while rest @ rest > tolerance and len(chosen) < max_atoms:
        chosen.append(int(np.abs(atoms @ rest).argmax()))
        basis = atoms[chosen].T.astype(np.float64)
        values = np.linalg.lstsq(basis, patch, rcond=None)[0]
        rest = patch - basis @ values
    return chosen, values


def test_the_twins_share_names_and_parameters(cuda_on_host: Any) -> None:
    from emdask.kernels import pursuit_cuda

    for name in pursuit_cuda.__all__:
        ours, theirs = (getattr(module, name) for module in (pursuit_cuda, pursuit_cpu))
        assert [(p.name, p.kind) for p in inspect.signature(ours).parameters.values()] == [
            (p.name, p.kind) for p in inspect.signature(theirs).parameters.values()
        ], name


@pytest.mark.parametrize(
    ("n_atoms", "patch_px", "max_atoms"),
    [(256, 8, 10), (9, 3, 4), (128, 4, 1), (130, 5, 25), (512, 8, 32), (256, 12, 31)],
)
def test_codes_are_those_of_least_squares(
    twin: Any, n_atoms: int, patch_px: int, max_atoms: int
) -> None:
    rng = np.random.default_rng(3)
    atoms = random_atoms(n_atoms, patch_px)
    patches = rng.normal(size=(45, patch_px**2)).astype(np.float32)
    patches[::3] *= 0.1
    tolerance = 0.2 * patch_px**2
    indices, values, counts = code(twin, patches, atoms, tolerance, max_atoms)
    assert (indices.dtype, values.dtype, counts.dtype) == (np.int16, np.float32, np.int32)
    for i, patch in enumerate(patches):
        chosen, expected = pursue_slowly(patch, atoms, tolerance, max_atoms)
        assert indices[i, : counts[i]].tolist() == chosen
        np.testing.assert_allclose(values[i, : counts[i]], expected, atol=ROUNDING)
        assert not indices[i, counts[i] :].any()
        assert not values[i, counts[i] :].any()


@pytest.mark.parametrize("max_atoms", [1, 2, 7, 32])
@pytest.mark.parametrize("n", [1, 7, 8, 33, 300])
def test_codes_are_those_of_the_cpu(twin: Any, n: int, max_atoms: int) -> None:
    """Sparse and dense codes beside each other, in turns that are full and not."""
    atoms = random_atoms(200, 8)
    patches = np.random.default_rng(n).normal(size=(n, 64)).astype(np.float32)
    patches *= np.linspace(1.5, 0.5, n, dtype=np.float32)[:, None]
    found = code(twin, patches, atoms, 64.0, max_atoms)
    expected = pursuit_cpu.code_patches(patches, atoms, tolerance=64.0, max_atoms=max_atoms)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], atol=ROUNDING)
    np.testing.assert_array_equal(found[2], expected[2])


def test_where_atoms_are_equal_or_lacking(twin: Any) -> None:
    """The first of equals, nothing where nothing fits, no atom that those in use make up."""
    eye = np.eye(16, dtype=np.float32)
    atoms = np.concatenate([eye[:8], eye[:8], -eye[:8], eye[:4]])
    patches = np.zeros((7, 16), np.float32)
    patches[1, 12] = 9  # no atom has this pixel
    patches[2, [5, 6]] = 2  # two atoms fit alike
    patches[3, [1, 12]] = -3
    patches[4, :8] = np.arange(8)
    patches[5, 2] = 1e-30
    patches[6] = 5
    found = code(twin, patches, atoms, 0.0, 6)
    for ours, theirs in zip(
        found, pursuit_cpu.code_patches(patches, atoms, tolerance=0.0, max_atoms=6), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    indices, values, counts = found
    assert counts.tolist() == [0, 0, 2, 1, 6, 0, 6]
    assert indices[2, :2].tolist() == [5, 6]
    assert indices[4].tolist() == [7, 6, 5, 4, 3, 2]
    assert values[3, 0] == -3
    assert indices[6].tolist() == [0, 1, 2, 3, 4, 5]


def test_no_patches_are_no_codes(twin: Any) -> None:
    indices, values, counts = code(twin, np.zeros((0, 64), np.float32), random_atoms(9, 8), 1.0, 3)
    assert indices.shape == values.shape == (0, 3)
    assert counts.shape == (0,)


@pytest.mark.parametrize("gain", [0.5, 1.15])
@pytest.mark.parametrize(
    ("shape", "n_atoms", "patch_px"),
    [
        ((30, 41), 256, 8),
        ((8, 8), 256, 8),
        ((9, 70), 64, 8),
        ((33, 8), 256, 8),
        ((13, 20), 49, 4),
        ((17, 19), 100, 5),
        ((26, 23), 300, 16),
    ],
)
def test_images_are_those_of_the_cpu(
    twin: Any, shape: tuple[int, int], n_atoms: int, patch_px: int, gain: float
) -> None:
    images, atoms = scenes(2, *shape), random_atoms(n_atoms, patch_px)
    settings = {"gain": gain, "blend": 0.3, "max_atoms": 12}
    expected = pursuit_cpu.denoise_images(images, atoms, **settings)
    result = denoise(twin, images, atoms, **settings)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=ROUNDING)


def test_averages_by_hand(twin: Any) -> None:
    """A patch that is done at once says its mean; the noisy image has the weight that is given."""
    image = np.arange(30, dtype=np.float32).reshape(1, 5, 6)
    sums, counts = np.zeros((5, 6)), np.zeros((5, 6))
    for y in range(3):
        for x in range(4):
            sums[y : y + 3, x : x + 3] += image[0, y : y + 3, x : x + 3].mean()
            counts[y : y + 3, x : x + 3] += 1
    result = denoise(twin, image, random_atoms(9, 3), gain=1e3, blend=2.0)
    np.testing.assert_allclose(result[0], (sums + 2 * image[0]) / (counts + 2), rtol=1e-6)


def test_neither_batches_nor_bands_nor_parts_show(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, atoms = scenes(3, 23, 29), random_atoms(256, 8)
    whole = denoise(twin, images, atoms)
    alone = [denoise(twin, image[None], atoms)[0] for image in images]
    np.testing.assert_array_equal(whole, alone)
    row_bytes = 4 * 22 * 64
    for name, value in (
        ("BAND_BYTES", 1),
        ("BAND_BYTES", 5 * row_bytes),
        ("BAND_BYTES", 2 * 16 * row_bytes),
        ("_patches_a_warp", lambda n_patches: 37),
        ("_patches_a_warp", lambda n_patches: 500),
    ):
        monkeypatch.setattr(twin, name, value)
        np.testing.assert_array_equal(denoise(twin, images, atoms), whole)
        monkeypatch.undo()


def test_threads_may_run_in_any_order(cuda_on_host: Any) -> None:
    """Shuffled lanes, warps and blocks, and memory between guards: the same bits."""
    from emdask.kernels import pursuit_cuda

    images = scenes(2, 19, 26)
    patches = np.random.default_rng(0).normal(size=(50, 25)).astype(np.float32)
    results = []
    for order in (0, 1, 2):
        cuda_on_host.order, cuda_on_host.guarded = order, order > 0
        for n_atoms in (100, 256, 400):
            results.append(denoise(pursuit_cuda, images, random_atoms(n_atoms, 8), gain=0.6))
            results += code(pursuit_cuda, patches, random_atoms(n_atoms, 5), 9.0, 20)
    n = len(results) // 3
    for first, second, third in zip(results[:n], results[n : 2 * n], results[2 * n :], strict=True):
        np.testing.assert_array_equal(second, first)
        np.testing.assert_array_equal(third, first)


def test_many_images_are_few_launches(cuda_on_host: Any) -> None:
    from emdask.kernels import pursuit_cuda

    for n in (1, 40):
        cuda_on_host.launches.clear()
        denoise(pursuit_cuda, scenes(n, 12, 12), random_atoms(64, 8))
        assert cuda_on_host.launches == {"estimate_patches_4": 1, "average_patches": 1}


def test_memory_is_as_stated(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates in bounded memory, the result, and the atoms."""
    from emdask.kernels import pursuit_cuda

    monkeypatch.setattr(pursuit_cuda, "BAND_BYTES", 1 << 20)
    cuda_on_host.strict = False
    images, atoms = scenes(1, 200, 150), random_atoms(128, 8)
    denoise(pursuit_cuda, images[:, :16, :16], atoms)  # code that stays
    tracemalloc.start()
    denoise(pursuit_cuda, images, atoms, gain=5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 20) + 3 * images.nbytes + 8 * 128 * (128 + 64)


def test_cards_with_less_shared_memory(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer warps in a thread block, the same result."""
    from emdask.kernels import pursuit_cuda

    images, atoms = scenes(1, 24, 20), random_atoms(256, 16)
    expected = denoise(pursuit_cuda, images, atoms, max_atoms=32)
    monkeypatch.setattr(pursuit_cuda, "most_shared_bytes", lambda: 30_000)
    np.testing.assert_array_equal(denoise(pursuit_cuda, images, atoms, max_atoms=32), expected)


@pytest.mark.parametrize(
    ("n_atoms", "patch_px", "max_atoms", "told"),
    [
        (513, 8, 8, "512 atoms; got 513"),
        (64, 8, 33, "max_atoms must lie in 1 to 32 on a card; got 33"),
        (64, 90, 8, "patches of 90 px need"),
    ],
)
def test_what_a_card_cannot_take_is_told(
    cuda_on_host: Any, n_atoms: int, patch_px: int, max_atoms: int, told: str
) -> None:
    from emdask.kernels import pursuit_cuda

    with pytest.raises(DeviceError, match=told):
        denoise(
            pursuit_cuda, scenes(1, 95, 95), random_atoms(n_atoms, patch_px), max_atoms=max_atoms
        )


@pytest.mark.parametrize(
    ("architecture", "only"), [("90", "0"), ("90", "4"), ("90", "8"), ("75", "16")]
)
def test_compiles_as_cupy_compiles_it(architecture: str, only: str) -> None:
    source = Path(emdask.kernels.__path__[0], "pursuit.cu").read_text()
    assert not ask_nvrtc(source, f"-arch=sm_{architecture}", *OPTIONS, f"-DONLY={only}")
