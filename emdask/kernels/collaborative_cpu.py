"""Collaborative filtering on one CPU core: the loops behind `bm3d_cpu.filter_hard` and `_wiener`.

The blocks of a group are transformed as a stack, shrunk, transformed back and added to the sums.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from emdask.kernels.bm3d_plan import BLOCK, cosine_matrix, wavelet_matrix
from emdask.kernels.lanes_cpu import (
    N_LANES,
    add_weighted_block,
    block_transform,
    broadcast,
    compiled,
    keep_above,
    load,
    ones_above,
    store,
    total,
)

__all__ = ["PIXELS", "shrink_hard", "shrink_wiener"]

Floats = npt.NDArray[np.float32]

PIXELS = BLOCK * BLOCK
HALF = np.float32(math.sqrt(0.5))

forward_wavelet = block_transform(wavelet_matrix())
add_inverse_wavelet = add_weighted_block(np.linalg.inv(wavelet_matrix()))
forward_cosine = block_transform(cosine_matrix())
add_inverse_cosine = add_weighted_block(cosine_matrix().T)


@compiled
def shrink_hard(
    noisy: Floats,
    width: int,
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    threshold: np.float32,
    blend: Floats,
    spectrum: Floats,
    sums: Floats,
    weights: Floats,
) -> None:
    """Filter the groups of a band by hard thresholding and add them to the sums.

    Parameters
    ----------
    noisy
        Flat padded image, in units of the noise.
    width
        Of the padded image.
    groups, sizes
        From `match_band`.
    threshold
        Coefficients up to this size are set to zero.
    blend
        Window of a block, flat.
    spectrum
        Working memory, (group_size * PIXELS,).
    sums
        Weighted sum of block estimates, added to; flat, as `noisy`.
    weights
        Weight of each block at its top left corner, added to; flat, as `noisy`.
    """
    limit = broadcast(np.float32(threshold))
    scaled = np.empty_like(blend)
    for block in range(len(sizes)):
        end = sizes[block] * PIXELS
        for k in range(sizes[block]):
            forward_wavelet(noisy, groups[block, k], width, spectrum, k * PIXELS)
        haar(spectrum, end)
        n_kept = broadcast(np.float32(0))
        for at in range(0, end, N_LANES):
            value = load(spectrum, at)
            n_kept = n_kept + ones_above(value, limit)
            store(spectrum, at, keep_above(value, limit))
        inverse_haar(spectrum, end)
        weight = np.float32(1) / max(total(n_kept), np.float32(1))
        scale(blend, weight, scaled)
        for k in range(sizes[block]):
            add_inverse_wavelet(spectrum, k * PIXELS, scaled, sums, groups[block, k], width)
            weights[groups[block, k]] += weight


@compiled
def shrink_wiener(
    noisy: Floats,
    basic: Floats,
    width: int,
    groups: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    blend: Floats,
    spectra: Floats,
    sums: Floats,
    weights: Floats,
) -> None:
    """Filter the groups of a band by the Wiener gain of the basic estimate and add them.

    Parameters
    ----------
    noisy, basic
        Flat padded image and its basic estimate, in units of the noise.
    spectra
        Working memory, (2, group_size * PIXELS).
    width, groups, sizes, blend, sums, weights
        As in `shrink_hard`.
    """
    one = broadcast(np.float32(1))
    spectrum = spectra[0]
    pilot = spectra[1]
    scaled = np.empty_like(blend)
    for block in range(len(sizes)):
        end = sizes[block] * PIXELS
        for k in range(sizes[block]):
            forward_cosine(noisy, groups[block, k], width, spectrum, k * PIXELS)
            forward_cosine(basic, groups[block, k], width, pilot, k * PIXELS)
        haar(spectrum, end)
        haar(pilot, end)
        energy = broadcast(np.float32(0))
        for at in range(0, end, N_LANES):
            value = load(pilot, at)
            power = value * value
            gain = power / (power + one)
            energy = energy + gain * gain
            store(spectrum, at, load(spectrum, at) * gain)
        inverse_haar(spectrum, end)
        weight = np.float32(1) / max(total(energy), np.float32(1e-3))
        scale(blend, weight, scaled)
        for k in range(sizes[block]):
            add_inverse_cosine(spectrum, k * PIXELS, scaled, sums, groups[block, k], width)
            weights[groups[block, k]] += weight


@compiled
def haar(group: Floats, end: int) -> None:
    """Orthonormal Haar transform across the blocks of a group, in place."""
    half = broadcast(HALF)
    gap = PIXELS
    while gap < end:
        for low in range(0, end, 2 * gap):
            for at in range(low, low + PIXELS, N_LANES):
                left = load(group, at)
                right = load(group, at + gap)
                store(group, at, (left + right) * half)
                store(group, at + gap, (left - right) * half)
        gap *= 2


@compiled
def inverse_haar(group: Floats, end: int) -> None:
    """Undo `haar`: the same steps in reverse order."""
    half = broadcast(HALF)
    gap = end // 2
    while gap >= PIXELS:
        for low in range(0, end, 2 * gap):
            for at in range(low, low + PIXELS, N_LANES):
                left = load(group, at)
                right = load(group, at + gap)
                store(group, at, (left + right) * half)
                store(group, at + gap, (left - right) * half)
        gap //= 2


@compiled
def scale(window: Floats, factor: float, scaled: Floats) -> None:
    """Multiply a window by a number."""
    factors = broadcast(np.float32(factor))
    for at in range(0, PIXELS, N_LANES):
        store(scaled, at, load(window, at) * factors)
