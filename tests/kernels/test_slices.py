"""Central slices and their adjoint, against closed forms and sums written out."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emdask.errors import ParameterError
from emdask.kernels.fourier import half_plane_weights
from emdask.kernels.projections import project_blobs, rotation_matrices, sample_blobs
from emdask.kernels.slices import (
    ACCURACIES,
    GridPlan,
    SliceSums,
    add_sums,
    data_to_volume,
    empty_sums,
    fold_sums,
    insert_slices,
    prepare_volume,
    project_volume,
    slice_volume,
)

Array = npt.NDArray[Any]
# What the accuracies promise: relative error of images.
PROMISED = {"rough": 5e-3, "normal": 3e-4, "high": 3e-5}


def draw_views(n_views: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Euler angles, the first along axes of the grid, and shifts."""
    rotation_deg = rng.uniform(-180, 180, (n_views, 3))
    along_axes = [[0, 0, 0], [0, 90, 0], [90, 180, 0]][:n_views]
    rotation_deg[: len(along_axes)] = along_axes
    return rotation_deg, rng.uniform(-4, 4, (n_views, 2))


def draw_blobs(box_px: int, rng: np.random.Generator) -> Array:
    """Centres in a ball that, with the blobs' width, just fits the box."""
    centres = rng.normal(size=(60, 3))
    radii = (0.44 * box_px - 9) * rng.uniform(size=(60, 1)) ** (1 / 3)
    return np.asarray(radii * centres / np.linalg.norm(centres, axis=1, keepdims=True))


def draw_slices(n_views: int, box_px: int, rng: np.random.Generator) -> Array:
    images = rng.normal(size=(n_views, box_px, box_px))
    return np.fft.rfft2(images).astype(np.complex64)


def error(found: Array, truth: Array) -> float:
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


def in_disc(box_px: int) -> Array:
    """Points of `rfft2` below Nyquist."""
    ky, kx = np.fft.fftfreq(box_px, 1 / box_px), np.arange(box_px // 2 + 1)
    return np.asarray(np.hypot(ky[:, None], kx) < box_px / 2)


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("box_px", [64, 75])
def test_projections_keep_the_promised_accuracy(
    accuracy: str, box_px: int, rng: np.random.Generator
) -> None:
    blobs = draw_blobs(box_px, rng)
    rotation_deg, shifts_px = draw_views(10, rng)
    sizes: Any = {"box_px": box_px, "pixel_size_A": 1.0}
    truth = project_blobs(blobs, 1.8, rotation_deg=rotation_deg, shift_A=shifts_px, **sizes)
    spectrum = prepare_volume(sample_blobs(blobs, 1.8, **sizes), accuracy)
    images = project_volume(spectrum, rotation_matrices(rotation_deg), shifts_px)
    assert images.dtype == np.float32
    assert error(images, truth) < PROMISED[accuracy]


@pytest.mark.parametrize("box_px", [16, 21])
def test_slices_are_sums_over_voxels(box_px: int, rng: np.random.Generator) -> None:
    volume = rng.normal(size=(box_px,) * 3).astype(np.float32)
    grid = np.arange(box_px) - box_px // 2
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    volume[x * x + y * y + z * z > (0.45 * box_px) ** 2] = 0
    rotation_deg, shifts_px = draw_views(4, rng)
    matrices = rotation_matrices(rotation_deg)
    slices = slice_volume(prepare_volume(volume, "high"), matrices, shifts_px)
    for view, (matrix, shift) in enumerate(zip(matrices, shifts_px, strict=True)):
        seen_x, seen_y = (matrix @ np.stack([x.ravel(), y.ravel(), z.ravel()]))[:2]
        pixel_x, pixel_y = seen_x - shift[0] + box_px // 2, seen_y - shift[1] + box_px // 2
        for ky, kx in ((0, 0), (2, 3), (-5, 1), (-3, 0)):
            waves = np.exp(-2j * np.pi * (kx * pixel_x + ky * pixel_y) / box_px)
            truth = waves @ volume.ravel()
            assert abs(slices[view, ky, kx] - truth) < 1e-4 * abs(slices[view]).max()


def test_a_projection_along_z_is_the_sum_along_z(rng: np.random.Generator) -> None:
    volume = rng.normal(size=(32, 32, 32)).astype(np.float32)
    terms = np.fft.rfft2(volume.sum(axis=0)) * in_disc(32)
    found = slice_volume(prepare_volume(volume, "high"), np.eye(3)[None])[0]
    # Noise up to the box's corners is the worst that can be asked for.
    assert error(found, terms) < 1e-3


def test_slices_are_zero_from_nyquist_on(rng: np.random.Generator) -> None:
    for box_px in (16, 17):
        volume = rng.normal(size=(box_px,) * 3)
        slices = slice_volume(prepare_volume(volume), rotation_matrices(draw_views(3, rng)[0]))
        assert slices.dtype == np.complex64
        assert ((slices != 0) == in_disc(box_px)).all()


def test_images_do_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    spectrum = prepare_volume(rng.normal(size=(30, 30, 30)))
    rotation_deg, shifts_px = draw_views(7, rng)
    matrices = rotation_matrices(rotation_deg)
    together = project_volume(spectrum, matrices, shifts_px)
    parts = (slice(0, 2), slice(2, 7), slice(7, 7))
    apart = [project_volume(spectrum, matrices[part], shifts_px[part]) for part in parts]
    assert (np.concatenate(apart) == together).all()


def test_a_pickled_spectrum_gives_the_same_images(rng: np.random.Generator) -> None:
    spectrum = prepare_volume(rng.normal(size=(16, 16, 16)))
    matrices = rotation_matrices(draw_views(3, rng)[0])
    copy = pickle.loads(pickle.dumps(spectrum))
    assert (project_volume(copy, matrices) == project_volume(spectrum, matrices)).all()


# --- Adding up ------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", ACCURACIES)
@pytest.mark.parametrize("box_px", [8, 20, 27])
def test_inserting_is_the_adjoint_of_slicing(
    accuracy: str, box_px: int, rng: np.random.Generator
) -> None:
    volume = rng.normal(size=(box_px,) * 3).astype(np.float32)
    images = rng.normal(size=(6, box_px, box_px)).astype(np.float32)
    rotation_deg, shifts_px = draw_views(6, rng)
    matrices = rotation_matrices(rotation_deg)
    spectrum, sums = prepare_volume(volume, accuracy), empty_sums(box_px, accuracy)
    terms = np.fft.rfft2(images).astype(np.complex64)
    insert_slices(sums, terms, np.zeros(terms.shape), matrices, shifts_px)
    inserted = data_to_volume(fold_sums(sums)[0], sums.plan)
    scale = float(np.linalg.norm(inserted) * np.linalg.norm(volume))
    # Of the whole plane, which `rfft2` holds half of.
    slices = slice_volume(spectrum, matrices, shifts_px)
    products = (slices.conj() * terms).real * half_plane_weights((box_px, box_px))
    there, back = products.sum(), np.vdot(volume, inserted)
    assert inserted.shape == volume.shape
    assert abs(there - back) < 1e-6 * scale
    projected = np.vdot(project_volume(spectrum, matrices, shifts_px), images) * box_px**2
    assert abs(projected - back) < 1e-6 * scale


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_weights_are_added_as_data_are(accuracy: str, rng: np.random.Generator) -> None:
    """A particle that is one voxel at the centre has slices of ones, but for the phase."""
    rotation_deg, shifts_px = draw_views(5, rng)
    sums = empty_sums(20, accuracy)
    across, down = sums.plan.phases(shifts_px)
    weights = rng.uniform(size=(5, 20, 11)).astype(np.float32)
    # Mates weigh the same.
    weights[:, 11:, 0] = weights[:, 9:0:-1, 0]
    slices = weights * across[:, None, :] * down[:, :, None]
    insert_slices(sums, slices, weights, rotation_matrices(rotation_deg), shifts_px)
    data, folded = fold_sums(sums)
    assert data.shape == folded.shape == (30, 30, 16)
    np.testing.assert_allclose(data, folded, atol=1e-5 * folded.max())


def test_folded_sums_are_those_of_all_points_and_mates(rng: np.random.Generator) -> None:
    """Slices of the whole plane put on the whole grid, point by point and cell by cell."""
    sums = empty_sums(8)
    plan, m = sums.plan, sums.plan.grid_px
    terms = draw_slices(1, 8, rng)
    matrices = rotation_matrices([[25.0, 70.0, -100.0]])
    insert_slices(sums, terms, terms.real, matrices)
    whole = np.zeros((m, m, m), complex)
    images = np.fft.ifftshift(np.fft.irfft2(terms[0], s=(8, 8)))
    plane = np.fft.fft2(images)
    for ky in range(-3, 4):
        for kx in range(-3, 4):
            if kx * kx + ky * ky < 16:
                point = plan.scale * (matrices[0].T @ [kx, ky, 0])
                add_slowly(whole, plan, point[::-1], plane[ky, kx])
    data = fold_sums(sums)[0]
    np.testing.assert_allclose(data, whole[:, :, : m // 2 + 1], atol=1e-5 * abs(whole).max())


def add_slowly(whole: Array, plan: GridPlan, point: Array, value: complex) -> None:
    """Add one point to the cells that reach it; (z, y, x) throughout."""
    first = np.ceil(point - plan.width / 2).astype(int)
    offsets = 2 * (first - point + plan.width / 2) - 1
    weights = [np.polynomial.polynomial.polyval(offset, plan.coefficients) for offset in offsets]
    cells = [(start + np.arange(plan.width)) % len(whole) for start in first]
    whole[np.ix_(*cells)] += value * np.einsum("k,j,i->kji", *weights)


def test_sums_of_parts_add_up(rng: np.random.Generator) -> None:
    matrices = rotation_matrices(draw_views(5, rng)[0])
    terms = draw_slices(5, 16, rng)
    whole, first, second = empty_sums(16), empty_sums(16), empty_sums(16)
    for sums, part in ((whole, slice(0, 5)), (first, slice(0, 2)), (second, slice(2, 5))):
        insert_slices(sums, terms[part], abs(terms[part]), matrices[part])
    both = add_sums(first, second)
    assert isinstance(both, SliceSums)
    np.testing.assert_allclose(both.cells, whole.cells, atol=1e-5 * abs(whole.cells).max())


# --- The kernel -----------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy", ACCURACIES)
def test_the_correction_undoes_the_kernel(accuracy: str) -> None:
    """Waves read between cells, after the correction, are those waves."""
    plan = GridPlan(box_px=40, accuracy=accuracy)
    voxels = np.arange(40) - 20
    offsets = np.linspace(-1, 1, 9)
    weights = np.polynomial.polynomial.polyval(offsets, plan.coefficients).T
    cells = np.arange(plan.width) - plan.width / 2 + (offsets[:, None] + 1) / 2
    waves = np.exp(2j * np.pi / plan.grid_px * voxels[:, None, None] * cells)
    read = (waves * weights).sum(axis=-1) * plan.correction[:, None]
    inner = abs(voxels) < 0.4 * 40
    assert abs(read[inner] - 1).max() < 2 * PROMISED[accuracy]


# --- What is refused ------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(rng: np.random.Generator) -> None:
    spectrum, sums = prepare_volume(np.zeros((16, 16, 16))), empty_sums(16)
    terms = draw_slices(2, 16, rng)
    views = rotation_matrices(draw_views(2, rng)[0])
    with pytest.raises(ParameterError, match=r"accuracy must be one of rough, normal, high"):
        prepare_volume(np.zeros((16, 16, 16)), "perfect")
    with pytest.raises(ParameterError, match=r"box_px must be an integer of at least 8; got 4"):
        empty_sums(4)
    with pytest.raises(ParameterError, match=r"volume must be a cube; got \(16, 16, 8\)"):
        prepare_volume(np.zeros((16, 16, 8)))
    with pytest.raises(ParameterError, match="matrices must be rotations"):
        slice_volume(spectrum, 2 * views)
    with pytest.raises(ParameterError, match=r"matrices must be \(v, 3, 3\)"):
        slice_volume(spectrum, views[0])
    with pytest.raises(ParameterError, match=r"shifts_px must be \(2, 2\); got \(2,\)"):
        slice_volume(spectrum, views, [0.0, 1.0])
    with pytest.raises(ParameterError, match=r"slices must be \(2, 16, 9\); got \(1, 16, 9\)"):
        insert_slices(sums, terms[:1], abs(terms), views)
    with pytest.raises(ParameterError, match=r"weights must be \(2, 16, 9\); got \(2, 16\)"):
        insert_slices(sums, terms, abs(terms[..., 0]), views)
    with pytest.raises(ParameterError, match="of one box and accuracy"):
        add_sums(sums, empty_sums(16, "high"))
