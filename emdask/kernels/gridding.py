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

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels.shells import shell_numbers, shell_sums
from emdask.kernels.slice_grid import GridPlan
from emdask.kernels.slices import data_to_volume
from emdask.kernels.symmetry import factor_group

__all__ = ["shell_weights", "solve_volume", "symmetrise"]

Array = Any
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
    xp = array_namespace(weights)
    ones = xp.broadcast_to(xp.ones((), np.float32), weights.shape)
    return shell_sums(weights, plan.box_px) / shell_sums(ones, plan.box_px)


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
    prior = xp.maximum(xp.asarray(prior, np.float32), np.finfo(np.float32).tiny)
    inverse = _invert(weights, prior, plan)
    volume = _divide(data, inverse, plan)
    volume *= mask
    if n_refinements == 0:
        return volume
    rest = data_to_volume(data, plan)
    response = _convolution(weights, prior, plan)
    _refine_less(inverse, weights, plan)
    rest -= _convolve(volume, response, plan)
    for _ in range(n_refinements):
        step = _divide(_to_grid(rest, plan), inverse, plan, overwrite=True)
        step *= mask
        change = _convolve(step, response, plan)
        length = _length(rest, step, change)
        change *= length
        rest -= change
        step *= length
        volume += step
    return volume


def _invert(weights: Array, prior: Array, plan: GridPlan) -> Array:
    """What data are multiplied by for weights; 0 beyond Nyquist."""
    inverse = weights.copy()
    for plane, shells in zip(inverse, _shells_of(weights, plan), strict=True):
        plane += _by_shell(prior, shells)
        plane[...] = (shells < len(prior)) / plane
    return inverse


def _refine_less(inverse: Array, weights: Array, plan: GridPlan) -> None:
    """Take back the inverse where weights are small beside those of their shell."""
    least = LEAST_REFINED * shell_weights(weights, plan)
    for plane, near, shells in zip(inverse, weights, _shells_of(weights, plan), strict=True):
        square = near * near
        limit = _by_shell(least, shells)
        plane *= square / (square + limit * limit + (shells >= len(least)))


def _shells_of(grid: Array, plan: GridPlan) -> Array:
    return array_namespace(grid).asarray(shell_numbers(plan.box_px, plan.grid_px))


def _by_shell(values: Array, shells: Array) -> Array:
    """Spread one value a shell over a plane of the grid; beyond Nyquist the last."""
    xp = array_namespace(shells)
    return xp.asarray(values, np.float32)[xp.minimum(shells, len(values) - 1)]


def _length(rest: Array, step: Array, change: Array) -> Any:
    """Share of the step that fits best; not beyond 1, which noise would ask for."""
    fit, energy = (_dot(array, step) for array in (rest, change))
    return np.float32(min(max(fit / energy, 0.0), 1.0) if energy > 0 else 0.0)


def _dot(array: Array, other: Array) -> float:
    pairs = zip(array, other, strict=True)
    return sum(float((a * b).sum(dtype=np.float64)) for a, b in pairs)


def _divide(data: Array, inverse: Array, plan: GridPlan, overwrite: bool = False) -> Array:
    """Volume of which the data are a weighted mean, cell by cell."""
    volume = data_to_volume(data, plan, inverse, overwrite)
    volume /= np.float32(_unit(plan))
    return volume


def _unit(plan: GridPlan) -> float:
    """What a cell of weight 1 is multiplied by on the way through T."""
    return float(plan.grid_px * plan.correction[plan.box_px // 2]) ** 3


def _to_grid(volume: Array, plan: GridPlan) -> Array:
    """Data of which `data_to_volume` makes this volume."""
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    n, m = plan.box_px, plan.grid_px
    inverse = xp.asarray(1 / (m * plan.correction), np.float32)
    place = (np.arange(n) - n // 2) % m
    within = xp.ix_(xp.asarray(place), xp.asarray(place))
    padded = xp.zeros((m, m), np.float32)
    terms = xp.zeros((m, m, m // 2 + 1), np.complex64)
    for z, plane in enumerate(volume):
        padded[within] = plane * inverse[:, None] * inverse * inverse[z]
        terms[place[z]] = fft.rfft2(padded)
    return fft.fft(terms, axis=0, overwrite_x=True)


def _convolution(weights: Array, prior: Array, plan: GridPlan) -> Array:
    """Fourier transform of T on the grid, and the prior in its unit."""
    xp, fft = array_namespace(weights), fourier_namespace(weights)
    m = plan.grid_px
    correction = xp.asarray(plan.grid_correction, np.float32)
    across = correction[:, None] * correction
    terms = fft.ifft(weights.astype(np.complex64), axis=0, norm="forward", overwrite_x=True)
    for z, plane in enumerate(terms):
        transform = fft.irfft2(plane, s=(m, m), norm="forward")
        plane[...] = fft.rfft2(transform * across * correction[z])
    response = fft.fft(terms, axis=0, overwrite_x=True).real.copy()
    prior = prior * np.float32(_unit(plan))
    for plane, shells in zip(response, _shells_of(weights, plan), strict=True):
        plane += _by_shell(prior, shells)
    return response


def _convolve(volume: Array, response: Array, plan: GridPlan) -> Array:
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    n, m = plan.box_px, plan.grid_px
    terms = xp.zeros((m, m, m // 2 + 1), np.complex64)
    for z, plane in enumerate(volume):
        terms[z] = fft.rfft2(plane, s=(m, m))
    terms = fft.fft(terms, axis=0, overwrite_x=True)
    terms *= response
    terms = fft.ifft(terms, axis=0, overwrite_x=True)
    found = xp.empty_like(volume)
    for z, plane in enumerate(found):
        plane[...] = fft.irfft2(terms[z], s=(m, m))[:n, :n]
    return found


def symmetrise(grid: Array, matrices: npt.NDArray[np.float64], plan: GridPlan) -> Array:
    """Add up what a grid of Fourier terms becomes by each rotation of a group.

    Parameters
    ----------
    grid : NumPy array, shape (m, m, m // 2 + 1)
        Data or weights of `slices.fold_sums`.
    matrices : float64 array, shape (g, 3, 3)
        All rotations (x, y, z) of the group, as of `symmetry.symmetry_matrices`.
    plan
        That of the sums.

    Returns
    -------
    array, shape (m, m, m // 2 + 1)
        Of the same dtype. Between cells the grid is interpolated as slices are; rotations are
        products of a few, so that an icosahedron takes 8 of them and not 59.
    """
    from emdask.kernels.rotations_cpu import rotate_grid

    coefficients = plan.coefficients.astype(np.float32)
    for factor in factor_group(matrices):
        cells = _divide_out(grid, plan)
        total = grid.astype(np.complex64)
        for matrix in factor:
            rotate_grid(cells, coefficients, np.ascontiguousarray(matrix), total)
        grid = total if np.iscomplexobj(grid) else np.ascontiguousarray(total.real)
    return grid


def _divide_out(grid: Array, plan: GridPlan) -> Array:
    """Cells of the whole grid that the kernel interpolates to the grid."""
    fft, m = fourier_namespace(grid), plan.grid_px
    volume = fft.irfftn(grid, s=(m, m, m))
    # Beyond the box, where copies of what is far away come in, it is left to fade.
    most = plan.correction[0]
    correction = np.minimum(plan.grid_correction, most).astype(np.float32)
    volume *= correction[:, None, None] * correction[:, None] * correction
    return fft.fftn(volume)
