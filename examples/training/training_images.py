"""Images without noise to train denoisers on: particles, and fields of many, each of its own seed.

Structures are random (`structures.py`); image i follows from the seed and i alone. A projection is
that of a structure's points, blurred, multiplied by a CTF in the Fourier domain or not, in pixels
that are a share of the particle's diameter: particles fill a third to nearly all of their box, and
in fields they are 24 to 220 px wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
from structures import Structure, draw_structure

from emdask.kernels.ctf import ctf_2d
from emdask.kernels.fourier import frequency_grid

Array = npt.NDArray[Any]
Rng = np.random.Generator

# Of a particle in a box, as a share of the box, and in a field, in px.
FILLED = (0.3, 0.9)
DIAMETERS_PX = (24.0, 220.0)
# Deviation of the Gaussian that a point is: in px, and as a share of the distance between points,
# which fill a part of the particle's sphere: else they would show one by one.
WIDTHS_PX = (0.7, 2.2)
WIDTHS = (0.4, 0.9)
FILLED_OF_SPHERE = 0.3
# Of the box.
MOST_OFF_CENTRE = 0.06
DEFOCUS_A = (5e3, 3e4)
WITHOUT_CTF = 0.5
# Fields: share that particles cover, share of the fields with ice of uneven thickness.
COVER = (0.02, 0.6)
UNEVEN = 0.4


def draw_particles(seed: int, index: int, n: int, box_px: int) -> Array:
    """Draw views of one structure; (n, box, box) float32, each of mean 0 and variance 1.

    Examples
    --------
    >>> draw_particles(0, 3, 2, 32).shape
    (2, 32, 32)
    """
    rng = np.random.default_rng([seed, index, box_px])
    structure = draw_structure(int(rng.integers(2**31)))
    diameter_px = box_px * _log_uniform(rng, *FILLED)
    shape = (box_px, box_px)
    images = np.empty((n, *shape), np.float32)
    for i in range(n):
        middle = box_px // 2 + box_px * MOST_OFF_CENTRE * rng.uniform(-1, 1, 2)
        image = project(structure, diameter_px, middle[None], shape, rng)
        images[i] = finish(image, structure, diameter_px, rng)
    return standardise_signal(images)


def draw_field(seed: int, index: int, size_px: int) -> Array:
    """Draw a piece of a micrograph with many views of a structure; (size, size) float32.

    Examples
    --------
    >>> draw_field(0, 3, 64).shape
    (64, 64)
    """
    rng = np.random.default_rng([seed, index])
    structure = draw_structure(int(rng.integers(2**31)))
    diameter_px = _log_uniform(rng, *DIAMETERS_PX)
    # What lies just outside matters too: it reaches in.
    side = size_px + 2 * round(diameter_px / 2)
    of_one = np.pi / 4 * (diameter_px / side) ** 2
    n = int(rng.poisson(_log_uniform(rng, *COVER) / of_one)) + 1
    middles = _spread(rng, n, side, diameter_px * rng.uniform(0.6, 1.1))
    image = project(structure, diameter_px, middles, (side, side), rng)
    if rng.random() < UNEVEN:
        image += image.std() * rng.uniform(0.1, 1.0) * _ice(rng, side)
    image = finish(image, structure, diameter_px, rng)
    start = (side - size_px) // 2
    return standardise_signal(image[start : start + size_px, start : start + size_px])


def project(
    structure: Structure, diameter_px: float, middles: Array, shape: tuple[int, int], rng: Rng
) -> Array:
    """Add up views of a structure at places (y, x), each turned anyhow; bilinear weights."""
    reach_A = np.linalg.norm(structure.points_A, axis=1).max()
    points = structure.points_A * (diameter_px / 2 / reach_A)
    image = np.zeros(shape[0] * shape[1])
    for middle in middles:
        turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        place = points @ turned[:, :2] + middle
        corner = np.floor(place).astype(np.int64)
        rest = place - corner
        for down in (0, 1):
            for right in (0, 1):
                row, column = corner[:, 0] + down, corner[:, 1] + right
                inside = (row >= 0) & (row < shape[0]) & (column >= 0) & (column < shape[1])
                weight = np.abs(1 - down - rest[:, 0]) * np.abs(1 - right - rest[:, 1])
                weight *= structure.masses
                cell = row[inside] * shape[1] + column[inside]
                image += np.bincount(cell, weight[inside], len(image))
    return image.reshape(shape)


def finish(image: Array, structure: Structure, diameter_px: float, rng: Rng) -> Array:
    """Blur the points and apply a CTF, or none."""
    terms = scipy.fft.rfft2(image)
    frequency = frequency_grid(image.shape)
    volume_px3 = FILLED_OF_SPHERE * np.pi / 6 * diameter_px**3
    spacing_px = np.cbrt(volume_px3 / len(structure.points_A))
    width_px = max(_log_uniform(rng, *WIDTHS_PX), spacing_px * rng.uniform(*WIDTHS))
    terms *= np.exp(-2 * (np.pi * width_px * frequency) ** 2)
    if rng.random() >= WITHOUT_CTF:
        reach_A = np.linalg.norm(structure.points_A, axis=1).max()
        pixel_A = float(np.clip(2 * reach_A / diameter_px, 0.8, 6.0))
        terms *= _draw_ctf(image.shape, pixel_A, rng)
    return np.asarray(scipy.fft.irfft2(terms, s=image.shape), np.float32)


def standardise_signal(images: Array) -> Array:
    """Bring each image to mean 0 and variance 1."""
    means = images.mean(axis=(-2, -1), keepdims=True)
    deviations = images.std(axis=(-2, -1), keepdims=True)
    return np.asarray((images - means) / deviations, np.float32)


def _draw_ctf(shape: tuple[int, ...], pixel_A: float, rng: Rng) -> Array:
    defocus_A, spread_A = rng.uniform(*DEFOCUS_A), rng.uniform(0, 300)
    return np.asarray(
        ctf_2d(
            (shape[0], shape[1]),
            pixel_size_A=pixel_A,
            defocus_u_A=defocus_A + spread_A,
            defocus_v_A=defocus_A - spread_A,
            astigmatism_deg=rng.uniform(0, 180),
            voltage_kV=rng.choice([200.0, 300.0]),
            amplitude_contrast=rng.uniform(0.07, 0.12),
            b_factor_A2=rng.uniform(0, 60),
        )
    )


def _spread(rng: Rng, n: int, side: int, distance_px: float) -> Array:
    """Draw places (n, 2) that keep a distance, as far as there is room."""
    places = rng.uniform(0, side, (1, 2))
    for place in rng.uniform(0, side, (3 * n, 2)):
        if len(places) == n:
            break
        if np.hypot(*(places - place).T).min() > distance_px:
            places = np.concatenate([places, place[None]])
    return places


def _ice(rng: Rng, side: int) -> Array:
    """Thickness that changes over hundreds of pixels; mean 0 and variance 1."""
    terms = scipy.fft.rfft2(rng.standard_normal((side, side)))
    frequency = frequency_grid((side, side))
    terms *= np.exp(-2 * (np.pi * rng.uniform(0.15, 0.5) * side * frequency) ** 2)
    field = scipy.fft.irfft2(terms, s=(side, side))
    return np.asarray((field - field.mean()) / field.std())


def _log_uniform(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
