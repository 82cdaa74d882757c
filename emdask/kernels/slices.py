"""Central slices: projections of a volume in any direction, and their adjoint.

The Fourier transform of a projection is a plane through that of the volume. `prepare_volume` makes
the latter once, on the grid of `slice_grid`; `slice_volume` reads planes from it and
`insert_slices` adds planes up, which is the larger part of a reconstruction. Loops over points are
those of a twin, `slices_cpu` or `slices_cuda`, with functions of equal names and parameters.

A slice is the `rfft2` of an image whose centre is at pixel ``n // 2``. It is 0 from Nyquist on:
the disc ``|k| < n / 2`` alone is used.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, fourier_namespace
from emdask.checks import require
from emdask.kernels.slice_grid import ACCURACIES, GridPlan
from emdask.kernels.transforms import to_images

__all__ = [
    "ACCURACIES",
    "GridPlan",
    "SliceSums",
    "VolumeSpectrum",
    "add_sums",
    "data_to_volume",
    "empty_sums",
    "fold_sums",
    "insert_slices",
    "prepare_volume",
    "project_volume",
    "slice_volume",
]

Array = Any
Views = npt.ArrayLike

# Of a grid that are transformed together.
ROWS_AT_ONCE = 8
# Rows of a matrix may be this far from orthonormal.
LARGEST_DEFECT = 1e-5


@dataclass(frozen=True)
class VolumeSpectrum:
    """Fourier transform of a volume, ready for slices.

    Parameters
    ----------
    cells
        Complex64 array of the plan's shape, NumPy or CuPy: half of the grid, and its margins.
    plan
        Sizes and kernel.
    """

    cells: Array
    plan: GridPlan


@dataclass(frozen=True)
class SliceSums:
    """What slices add up to on the grid; the sums of two parts of a stack add.

    Parameters
    ----------
    cells
        Float32 array of the plan's shape and 3: real part, imaginary part and weight.
    plan
        Sizes and kernel.
    """

    cells: Array
    plan: GridPlan


def prepare_volume(volume: Array, accuracy: str = "normal") -> VolumeSpectrum:
    """Transform a volume for `slice_volume`.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Mass in each voxel (z, y, x), centre at voxel ``n // 2``; NumPy or CuPy.
    accuracy
        Relative error of projections: "rough" 5e-3, "normal" 3e-4, "high" 3e-5 at most.

    Returns
    -------
    VolumeSpectrum
        Of the volume's array library.
    """
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    shape, plan = volume.shape, GridPlan(box_px=len(volume), accuracy=accuracy)
    require(shape == (plan.box_px,) * 3, "slices", "the volume must be a cube", shape)
    values = xp.asarray(volume, np.float32)
    for axis in (2, 1, 0):
        values = values * _along(xp.asarray(plan.correction, np.float32), axis)
        values = _place(values, plan, axis)
        transform = fft.rfft if axis == 2 else fft.fft
        values = transform(values, axis=axis, overwrite_x=True)
        cells = _stored_cells(plan, axis)
        taken = xp.take(values, xp.asarray(abs(cells)), axis=axis)
        # The volume is real: along x, cells below 0 and beyond the middle are conjugate to mates.
        values = xp.where(xp.asarray(cells < 0), taken.conj(), taken) if axis == 2 else taken
    return VolumeSpectrum(xp.ascontiguousarray(values), plan)


def slice_volume(
    spectrum: VolumeSpectrum, matrices: Views, shifts_px: Views | None = None
) -> Array:
    """Cut the Fourier transforms of projections out of a volume's.

    Parameters
    ----------
    spectrum
        Of `prepare_volume`.
    matrices : array_like, shape (v, 3, 3)
        Rotations from the particle to each view, as of `projections.rotation_matrices`.
    shifts_px : array_like, shape (v, 2), optional
        Translations (x, y) that would centre the particle, as RELION's origins: it stands at minus
        them.

    Returns
    -------
    complex64 array, shape (v, n, n // 2 + 1)
        `rfft2` of the projections; 0 where ``|k| >= n / 2``.
    """
    matrices, shifts = _check_views(matrices, shifts_px)
    return _twin(spectrum.cells).slice_views(spectrum.cells, spectrum.plan, matrices, shifts)


def project_volume(
    spectrum: VolumeSpectrum, matrices: Views, shifts_px: Views | None = None
) -> Array:
    """Project a volume: the sum along z after it was turned into each view.

    Parameters
    ----------
    spectrum, matrices, shifts_px
        As of `slice_volume`.

    Returns
    -------
    float32 array, shape (v, n, n)
        Images, centre at pixel ``n // 2``.

    Examples
    --------
    >>> volume = np.zeros((16, 16, 16), np.float32)
    >>> volume[8, 8, 7:10] = 1, 2, 1
    >>> image = project_volume(prepare_volume(volume), np.eye(3)[None])[0]
    >>> round(float(image.sum()), 2), int(image[8].argmax())
    (4.0, 8)
    """
    slices = slice_volume(spectrum, matrices, shifts_px)
    return to_images(slices, (spectrum.plan.box_px,) * 2)


def empty_sums(box_px: int, accuracy: str = "normal", xp: ModuleType = np) -> SliceSums:
    """Make sums of no slices.

    Parameters
    ----------
    box_px
        Edge n of the images.
    accuracy
        As of `prepare_volume`.
    xp
        Library of the sums: ``numpy`` or ``cupy``.

    Returns
    -------
    SliceSums
    """
    plan = GridPlan(box_px=box_px, accuracy=accuracy)
    return SliceSums(xp.zeros((*plan.shape, 3), np.float32), plan)


def insert_slices(
    sums: SliceSums,
    slices: Array,
    weights: Array,
    matrices: Views,
    shifts_px: Views | None = None,
) -> None:
    """Add slices to sums, in place.

    Of the whole plane each point within the disc ``|k| < n / 2`` counts once, so those at
    ``kx = 0``, which `rfft2` holds with their mates, count half: `fold_sums` completes all.

    Parameters
    ----------
    sums
        What is added to.
    slices : complex64 array, shape (v, n, n // 2 + 1)
        `rfft2` of images with their centre at pixel ``n // 2``, times whatever weighs them.
    weights : float32 array, shape (v, n, n // 2 + 1)
        Added to the weights of the sums.
    matrices, shifts_px
        As of `slice_volume`.
    """
    matrices, shifts = _check_views(matrices, shifts_px)
    n = sums.plan.box_px
    shape = (len(shifts), n, n // 2 + 1)
    require(slices.shape == shape, "slices", f"slices must be {shape}", slices.shape)
    require(weights.shape == shape, "slices", f"weights must be {shape}", weights.shape)
    _twin(sums.cells).insert_views(sums.cells, sums.plan, slices, weights, matrices, shifts)


def add_sums(first: SliceSums, second: SliceSums) -> SliceSums:
    """Add the sums of two sets of slices; neither is changed."""
    rule = "sums must be of one box and accuracy to be added"
    require(first.plan == second.plan, "slices", rule, (first.plan, second.plan))
    return SliceSums(first.cells + second.cells, first.plan)


def fold_sums(sums: SliceSums) -> tuple[Array, Array]:
    """Add what lies in the margins, and Friedel mates, to the cells that they stand for.

    Parameters
    ----------
    sums
        Of `insert_slices`.

    Returns
    -------
    data : complex64 array, shape (m, m, m // 2 + 1)
        On the grid of `rfftn`: the sums of the slices and of their mates.
    weights : float32 array, shape (m, m, m // 2 + 1)
        The same of the weights.
    """
    xp, plan = array_namespace(sums.cells), sums.plan
    m, margin = plan.grid_px, plan.margin_px
    cells = _fold_axis(_fold_axis(sums.cells, plan, 0), plan, 1)
    middle = margin + m // 2
    half = cells[:, :, margin : middle + 1].copy()
    half[:, :, : margin + 1] += _mates(cells[:, :, : margin + 1])
    half[:, :, m // 2 - margin :] += _mates(cells[:, :, middle : middle + margin + 1])
    del cells
    data = half[..., :2].copy().view(np.complex64)[..., 0]
    return data, xp.ascontiguousarray(half[..., 2])


def data_to_volume(
    grid: Array, plan: GridPlan, factor: Array = None, overwrite: bool = False
) -> Array:
    """Turn the grid back into a volume: the other half of the adjoint of `slice_volume`.

    Parameters
    ----------
    grid : complex array, shape (m, m, m // 2 + 1)
        Hermitian, on the grid of `rfftn`.
    plan
        That of the sums.
    factor : float32 array, shape (m, m, m // 2 + 1), optional
        That the grid is multiplied by.
    overwrite
        Whether the grid may be used as working memory.

    Returns
    -------
    float32 array, shape (n, n, n)
        Sum over the whole grid of its waves, at the voxels of the volume (z, y, x), divided by the
        kernel's transform. With ``grid`` the data of `fold_sums` and divided by ``n ** 2``, this is
        the adjoint of `project_volume`.
    """
    xp, fft = array_namespace(grid), fourier_namespace(grid)
    n, m = plan.box_px, plan.grid_px
    voxels = xp.asarray((np.arange(n) - n // 2) % m)
    correction = xp.asarray(plan.correction, np.float32)
    # Some rows and then planes at a time: the grid is many times as large as the volume.
    columns = grid[:n] if overwrite else xp.empty((n, m, m // 2 + 1), np.complex64)
    for start in range(0, m, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = grid[:, rows] if factor is None else grid[:, rows] * factor[:, rows]
        part = fft.ifft(xp.asarray(part, np.complex64), axis=0, norm="forward")
        columns[:, rows] = part[voxels] * _along(correction, 0)
    volume = xp.empty((n, n, n), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        planes = slice(start, start + ROWS_AT_ONCE)
        part = fft.ifft(columns[planes], axis=1, norm="forward")[:, voxels]
        part = fft.irfft(part, m, axis=2, norm="forward")[:, :, voxels]
        volume[planes] = part * _along(correction, 1) * correction
    return volume


def _twin(array: Array) -> ModuleType:
    name = "slices_cpu" if array_namespace(array) is np else "slices_cuda"
    return importlib.import_module(f"emdask.kernels.{name}")


def _check_views(matrices: Views, shifts_px: Views | None) -> tuple[Any, Any]:
    # Copied: loops would be compiled once more for arrays that cannot be written to.
    matrices = np.array(matrices, np.float64, order="C")
    require(matrices.shape[1:] == (3, 3), "slices", "matrices must be (v, 3, 3)", matrices.shape)
    defect = abs(matrices @ matrices.swapaxes(1, 2) - np.eye(3)).max(initial=0.0)
    require(defect <= LARGEST_DEFECT, "slices", "matrices must be rotations", float(defect))
    if shifts_px is None:
        return matrices, np.zeros((len(matrices), 2))
    shifts = np.array(shifts_px, np.float64)
    rule = f"shifts_px must be ({len(matrices)}, 2)"
    require(shifts.shape == (len(matrices), 2), "slices", rule, shifts.shape)
    return matrices, shifts


def _along(values: Array, axis: int) -> Array:
    return values.reshape([-1 if other == axis else 1 for other in range(3)])


def _place(values: Array, plan: GridPlan, axis: int) -> Array:
    """Pad one axis to the grid's size, the centre at index 0."""
    xp, centre = array_namespace(values), plan.box_px // 2
    shape = list(values.shape)
    shape[axis] = plan.grid_px
    padded = xp.moveaxis(xp.zeros(shape, values.dtype), axis, 0)
    source = xp.moveaxis(values, axis, 0)
    padded[: plan.box_px - centre] = source[centre:]
    padded[plan.grid_px - centre :] = source[:centre]
    return xp.moveaxis(padded, 0, axis)


def _stored_cells(plan: GridPlan, axis: int) -> npt.NDArray[np.int64]:
    """Index in the transform along an axis of each stored cell; along x, below 0: of its mate."""
    if axis == 2:
        cells = np.arange(plan.shape[2]) - plan.margin_px
        return np.where(cells > plan.grid_px // 2, cells - plan.grid_px, cells)
    return (np.arange(plan.shape[axis]) - plan.centre) % plan.grid_px


def _fold_axis(cells: Array, plan: GridPlan, axis: int) -> Array:
    """Fold z or y to the grid's size, frequency 0 first."""
    xp, m, centre = array_namespace(cells), plan.grid_px, plan.centre
    cells = xp.moveaxis(cells, axis, 0)
    folded = xp.zeros((m, *cells.shape[1:]), cells.dtype)
    half = m // 2
    folded[:half] = cells[centre : centre + half]
    folded[half:] = cells[centre - half : centre]
    beyond = plan.margin_px + 1
    folded[half : half + beyond] += cells[centre + half :]
    folded[half - plan.margin_px : half] += cells[: plan.margin_px]
    return xp.moveaxis(folded, 0, axis)


def _mates(cells: Array) -> Array:
    """Friedel mates of some x of the folded grid: at minus z and y, x reversed, conjugate."""
    xp = array_namespace(cells)
    mates = xp.roll(cells[::-1, ::-1, ::-1], (1, 1), axis=(0, 1))
    return mates * xp.asarray([1, -1, 1], np.float32)
