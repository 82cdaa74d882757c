"""Volumes shell by shell of their Fourier transforms: plain arrays, NumPy or CuPy.

Shell s, from 1 to n // 2, holds the frequencies nearest to s / n cycles a voxel, up to Nyquist.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from emdask.backend import array_namespace, fourier_namespace

__all__ = [
    "corrected_correlation",
    "randomise_phases",
    "shell_correlation",
    "shell_frequencies",
    "shell_numbers",
    "shell_sums",
]

# Phases are replaced from the shell on where volumes without a mask agree less than this (Chen et
# al. 2013), and the correction holds from this many shells beyond, as in RELION.
LEAST_AGREEMENT = 0.8
SHELLS_BEYOND = 2


@functools.lru_cache(maxsize=4)
def shell_numbers(box_px: int, grid_px: int | None = None) -> Any:
    """Return the shell of each point of `numpy.fft.rfftn`, as a NumPy array.

    Parameters
    ----------
    box_px
        Edge n of the volume, which sets the width of shells: 1 / n cycles a voxel.
    grid_px
        Edge m of the grid, finer than that of the volume; by default n.

    Returns
    -------
    int16 array, shape (m, m, m // 2 + 1)
        ``n // 2 + 1`` from Nyquist on, that is for all frequencies above ``n // 2 / n``.

    Examples
    --------
    >>> shell_numbers(4)[0].tolist()
    [[0, 1, 2], [1, 1, 3], [2, 3, 3], [1, 1, 3]]
    """
    m = box_px if grid_px is None else grid_px
    across = np.square(np.fft.fftfreq(m, 1 / m).astype(np.float32) * np.float32(box_px / m))
    along = np.square(np.arange(m // 2 + 1, dtype=np.float32) * np.float32(box_px / m))
    shells = np.empty((m, m, m // 2 + 1), np.int16)
    for plane, height in zip(shells, across, strict=True):
        radius = np.sqrt(height + across[:, None] + along)
        plane[...] = np.where(radius > box_px // 2, box_px // 2 + 1, np.rint(radius))
    shells.flags.writeable = False
    return shells


def shell_sums(terms: Any, box_px: int) -> Any:
    """Add up real terms on a grid of `numpy.fft.rfftn`, and those that it leaves out, by shells.

    Parameters
    ----------
    terms : array, shape (m, m, m // 2 + 1)
        Of the volume's own grid, or a finer one.
    box_px
        Edge n of the volume.

    Returns
    -------
    float64 array, shape (n // 2 + 1,)
        Shells 0 to n // 2.

    Examples
    --------
    >>> shell_sums(np.ones((4, 4, 3)), 4)
    array([ 1., 18., 11.])
    """
    xp, m = array_namespace(terms), len(terms)
    shells = xp.asarray(shell_numbers(box_px, m))
    n_shells = box_px // 2 + 2
    sums = xp.zeros(n_shells)
    # `bincount` makes integers and numbers of 8 bytes of what it is given.
    for plane, values in zip(shells, terms, strict=True):
        sums += 2 * xp.bincount(plane.ravel(), values.ravel(), n_shells)
    # The first x, and the last of an even grid, hold the mates of their points; others do not.
    for x in (0, -1)[: 2 - m % 2]:
        sums -= xp.bincount(shells[..., x].ravel(), terms[..., x].ravel(), n_shells)
    return sums[:-1]


@functools.lru_cache(maxsize=4)
def shell_frequencies(box_px: int) -> Any:
    """Return the mean frequency of each shell from 1 on.

    Parameters
    ----------
    box_px
        Edge n of the volume.

    Returns
    -------
    float64 array, shape (n // 2,)
        In cycles a voxel, up to Nyquist, 0.5.

    Examples
    --------
    >>> shell_frequencies(32).shape, bool(abs(shell_frequencies(32)[3] - 4 / 32) < 2e-3)
    ((16,), True)
    """
    axis = np.fft.fftfreq(box_px)
    square = axis[:, None, None] ** 2 + axis[:, None] ** 2 + np.fft.rfftfreq(box_px) ** 2
    count = shell_sums(np.ones(square.shape), box_px)[1:]
    frequency = shell_sums(np.sqrt(square), box_px)[1:] / count
    frequency.flags.writeable = False
    return frequency


def shell_correlation(volume: Any, other: Any, mask: Any = None) -> Any:
    """Correlate the Fourier terms of two volumes, shell by shell (Fourier shell correlation).

    Parameters
    ----------
    volume, other : array, shape (n, n, n)
        Real volumes.
    mask : array, shape (n, n, n)
        That both are multiplied by; None for none.

    Returns
    -------
    float64 array, shape (n // 2,)
        In [-1, 1] for each shell of `shell_frequencies`; 0 where one of the volumes is empty.

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    >>> shell_correlation(volume, -2 * volume).round(5)
    array([-1., -1., -1., -1.])
    """
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    n = len(volume)
    pair = [xp.asarray(a, np.float32) for a in (volume, other)]
    if mask is not None:
        pair = [a * xp.asarray(mask, np.float32) for a in pair]
    first, second = (fft.rfftn(a) for a in pair)
    cross = shell_sums((first * second.conj()).real, n)[1:]
    powers = [shell_sums(xp.square(xp.abs(terms)), n)[1:] for terms in (first, second)]
    product = powers[0] * powers[1]
    return cross / xp.sqrt(xp.where(product > 0, product, 1.0)) * (product > 0)


def randomise_phases(volume: Any, first_shell: int, seed: int) -> Any:
    """Replace the phases of all Fourier terms from a shell on by random ones.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Real volume.
    first_shell
        The first of the shells that lose their phases.
    seed
        Of the random phases: those of white noise.

    Returns
    -------
    float32 array, shape (n, n, n)

    Examples
    --------
    >>> volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    >>> shell_correlation(volume, randomise_phases(volume, 3, 1)).round(1)[:2]
    array([1., 1.])
    """
    xp, fft = array_namespace(volume), fourier_namespace(volume)
    n = len(volume)
    noise = np.random.default_rng(seed).standard_normal((n, n, n), np.float32)
    terms, random = (fft.rfftn(xp.asarray(a, np.float32)) for a in (volume, noise))
    random *= xp.abs(terms) / xp.maximum(xp.abs(random), np.float32(1e-30))
    lost = xp.asarray(shell_numbers(n)) >= first_shell
    return fft.irfftn(xp.where(lost, random, terms), s=(n, n, n))


def corrected_correlation(volume: Any, other: Any, mask: Any) -> Any:
    """Correlate two volumes within a mask, less what the mask itself lends them.

    Parameters
    ----------
    volume, other : array, shape (n, n, n)
        Volumes reconstructed of two halves of the images.
    mask : array, shape (n, n, n)
        From 0 to 1.

    Returns
    -------
    float64 array, shape (n // 2,)
        As of `shell_correlation`. (FSC - FSC_random) / (1 - FSC_random) where the phases of both
        were replaced by random ones before the mask, which is two shells beyond the first at which
        the volumes without mask agree by less than 0.8.

    Notes
    -----
    Chen et al., "High-resolution noise substitution to measure overfitting and validate resolution
    in 3D structure determination by single particle electron cryomicroscopy", Ultramicroscopy 135
    (2013) 24-35, equation 4.

    Examples
    --------
    >>> halves = np.random.default_rng(0).normal(size=(2, 16, 16, 16))
    >>> mask = np.zeros((16, 16, 16))
    >>> mask[6:10, 6:10, 6:10] = 1
    >>> corrected_correlation(*halves, mask).shape
    (8,)
    """
    xp = array_namespace(volume)
    masked = shell_correlation(volume, other, mask)
    below = shell_correlation(volume, other) < LEAST_AGREEMENT
    if not bool(below.any()):
        return masked
    first_shell = int(below.argmax()) + 1
    random = [randomise_phases(v, first_shell, seed) for seed, v in enumerate((volume, other))]
    lent = shell_correlation(random[0], random[1], mask)
    shells = xp.arange(1, len(masked) + 1)
    corrected = (masked - lent) / xp.maximum(1 - lent, 1e-6)
    return xp.where(shells >= first_shell + SHELLS_BEYOND, corrected, masked)
