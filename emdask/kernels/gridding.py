"""From sums of slices to the volume: the second half of a reconstruction.

What is looked for is the volume whose slices fit the images best, each weighed by its noise. Its
normal equations are a convolution: the data are the volume convolved with the transform T of the
weights. Data divided by weights, cell by cell, solve them to a few per cent, because weights are
nearly constant within the reach of the interpolation kernel. What that leaves unexplained is
solved for in the same way and added, which takes a few Fourier transforms and no image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, filter_namespace, fourier_namespace
from emdask.kernels.shells import shell_numbers, shell_sums
from emdask.kernels.slice_grid import GridPlan
from emdask.kernels.slices import data_to_volume
from emdask.kernels.symmetry import factor_group

__all__ = ["shell_weights", "solve_volume", "symmetrise"]

Array = Any
# Off by 0.2 % up to 0.4 of the box from its centre; degree 5 halves that and takes three times as
# long.
SPLINE_ORDER = 3
# Cells with less than this share of their shell's mean weight are not refined: where few images
# reach them, T on the grid is not accurate enough.
LEAST_REFINED = 0.2


def shell_weights(weights: Array, plan: GridPlan) -> Array:
    """Return the mean weight of the cells of each shell.

    Parameters
    ----------
    weights : float32 array, shape (m, m, m // 2 + 1)
        Of `slices.fold_sums`.
    plan
        That of the sums.

    Returns
    -------
    float64 array, shape (n // 2 + 1,)
        Shells 0 to n // 2.
    """
    count = shell_sums(array_namespace(weights).ones_like(weights), plan.box_px)
    return shell_sums(weights, plan.box_px) / count


def solve_volume(
    data: Array,
    weights: Array,
    prior: Array,
    mask: Array,
    plan: GridPlan,
    n_refinements: int = 1,
) -> Array:
    """Return the volume that explains the data best.

    Parameters
    ----------
    data, weights : arrays, shape (m, m, m // 2 + 1)
        Of `slices.fold_sums`.
    prior : array, shape (n // 2 + 1,)
        Of each shell, above 0, added to the weights: variance of an image's Fourier terms by noise,
        over that of the volume's. What the data leave open becomes small.
    mask : float32 array, shape (n, n, n)
        The volume is 0 where this is.
    plan
        That of the sums.
    n_refinements
        How often what is unexplained is solved for.

    Returns
    -------
    float32 array, shape (n, n, n)

    Notes
    -----
    T follows from the weights on the grid as the volume does from the data (Wajer and Pruessmann,
    "Major speedup of reconstruction for sensitivity encoding with arbitrary trajectories", ISMRM
    2001), but for the periodic copies at the largest distances, where the particle is not.
    """
    xp = array_namespace(data)
    shells = xp.asarray(shell_numbers(plan.box_px, plan.grid_px))
    within = shells <= plan.box_px // 2
    by_shell = _by_shell(xp.maximum(prior, np.finfo(np.float32).tiny), shells)
    inverse = within / (weights + by_shell)
    volume = mask * _divide(data, inverse, plan)
    if n_refinements == 0:
        return volume
    target = data_to_volume(data, plan)
    response = _convolution(weights, plan) + by_shell * np.float32(_unit(plan))
    least = _by_shell(LEAST_REFINED * shell_weights(weights, plan), shells)
    inverse *= xp.square(weights) / (xp.square(weights) + xp.square(least) + ~within)
    for _ in range(n_refinements):
        rest = target - _convolve(volume, response, plan)
        step = mask * _divide(_to_grid(rest, plan), inverse, plan)
        volume += _length(rest, step, _convolve(step, response, plan)) * step
    return volume


def _by_shell(values: Array, shells: Array) -> Array:
    """Spread one value a shell over the grid; beyond Nyquist the last."""
    xp = array_namespace(shells)
    return xp.asarray(values, np.float32)[xp.minimum(shells, len(values) - 1)]


def _length(rest: Array, step: Array, change: Array) -> Any:
    """Share of the step that fits best; not beyond 1, which noise would ask for."""
    fit = float((rest * step).sum(dtype=np.float64))
    energy = float((change * step).sum(dtype=np.float64))
    return np.float32(min(max(fit / energy, 0.0), 1.0) if energy > 0 else 0.0)


def _divide(data: Array, inverse: Array, plan: GridPlan) -> Array:
    """Volume of which the data are a weighted mean, cell by cell."""
    return data_to_volume(data * inverse, plan) / np.float32(_unit(plan))


def _unit(plan: GridPlan) -> float:
    """What a cell of weight 1 is multiplied by on the way through T."""
    return float(plan.grid_px * plan.correction[plan.box_px // 2]) ** 3


def _to_grid(volume: Array, plan: GridPlan) -> Array:
    """Data of which `data_to_volume` makes this volume."""
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    n, m = plan.box_px, plan.grid_px
    inverse = xp.asarray(1 / (m * plan.correction), np.float32)
    padded = xp.zeros((m, m, m), np.float32)
    padded[:n, :n, :n] = volume * inverse[:, None, None] * inverse[:, None] * inverse
    return fft.rfftn(xp.roll(padded, (-(n // 2),) * 3, (0, 1, 2)), overwrite_x=True)


def _convolution(weights: Array, plan: GridPlan) -> Array:
    """Fourier transform of T on the grid."""
    xp, fft = array_namespace(weights), fourier_namespace(weights)
    m = plan.grid_px
    transform = fft.irfftn(weights, s=(m, m, m), norm="forward")
    correction = xp.asarray(plan.grid_correction, np.float32)
    transform *= correction[:, None, None]
    transform *= correction[:, None]
    transform *= correction
    return fft.rfftn(transform, overwrite_x=True).real


def _convolve(volume: Array, response: Array, plan: GridPlan) -> Array:
    fft = fourier_namespace(volume)
    n, m = plan.box_px, plan.grid_px
    terms = fft.rfftn(volume, s=(m, m, m))
    terms *= response
    return fft.irfftn(terms, s=(m, m, m), overwrite_x=True)[:n, :n, :n]


def symmetrise(grid: Array, matrices: npt.NDArray[np.float64]) -> Array:
    """Add up what a grid of Fourier terms becomes by each rotation of a group.

    Parameters
    ----------
    grid : array, shape (m, m, m // 2 + 1)
        Data or weights of `slices.fold_sums`, m even.
    matrices : float64 array, shape (g, 3, 3)
        All rotations (x, y, z) of the group, as of `symmetry.symmetry_matrices`.

    Returns
    -------
    array, shape (m, m, m // 2 + 1)
        Of the same dtype. Between cells the grid is interpolated by cubic splines; rotations
        are products of a few, so that an icosahedron takes 8 of them and not 59.
    """
    for factor in factor_group(matrices):
        splines = _splines(grid)
        grid = sum((_rotate(splines, matrix, grid.dtype) for matrix in factor), start=grid)
    return grid


def _splines(grid: Array) -> list[Array]:
    """Coefficients of the real part of the whole grid, centred, and of the imaginary one."""
    xp, m = array_namespace(grid), len(grid)
    negative = -np.arange(m) % m
    mates = grid[negative][:, negative][..., m // 2 - 1 : 0 : -1].conj()
    whole = xp.fft.fftshift(xp.concatenate([grid, mates], axis=2))
    parts = [whole.real, whole.imag] if np.iscomplexobj(whole) else [whole]
    prefilter = filter_namespace(grid).spline_filter
    options = {"order": SPLINE_ORDER, "output": np.float32, "mode": "grid-wrap"}
    return [prefilter(part, **options) for part in parts]


def _rotate(splines: list[Array], matrix: npt.NDArray[np.float64], dtype: Any) -> Array:
    """Value at ``matrix @ k`` for each cell k of the half that `rfftn` keeps."""
    xp, m = array_namespace(splines[0]), len(splines[0])
    turn = matrix[::-1, ::-1]  # of (z, y, x)
    parts = [
        filter_namespace(part).affine_transform(
            part,
            xp.asarray(turn),
            offset=m // 2 - turn @ [m // 2, m // 2, 0],
            output_shape=(m, m, m // 2 + 1),
            order=SPLINE_ORDER,
            mode="grid-wrap",
            prefilter=False,
        )
        for part in splines
    ]
    value = parts[0] if len(parts) == 1 else parts[0] + np.complex64(1j) * parts[1]
    return xp.fft.ifftshift(value, axes=(0, 1)).astype(dtype, copy=False)
