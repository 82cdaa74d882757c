"""Images without noise to train denoisers on: particles, and fields of many, each of its own seed.

Structures are random: those of `structures.py`, complexes of many domains, and either packed as
densely as protein is. Image i follows from the seed and i alone. A projection is that of a
structure's points, blurred, multiplied by a CTF in the Fourier domain or not, in pixels that are a
share of the particle's diameter: particles fill a third to nearly all of their box, and in fields
they are 24 to 220 px wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import binary_closing
from scipy.spatial import cKDTree
from structures import Structure, draw_structure, fill_ellipsoid

from emdask.kernels.ctf import ctf_2d
from emdask.kernels.fourier import frequency_grid

Array = npt.NDArray[Any]
Rng = np.random.Generator

# Of a particle in a box, as a share of the box, and in a field, in px.
FILLED = (0.35, 0.95)
DIAMETERS_PX = (24.0, 220.0)
# Deviation of the Gaussian that a point is: in px, and as a share of the distance between points,
# which fill a part of the particle's sphere: else they would show one by one.
WIDTHS_PX = (0.5, 2.2)
WIDTHS = (0.35, 0.9)
FILLED_OF_SPHERE = 0.3
# Of the box.
MOST_OFF_CENTRE = 0.06
DEFOCUS_A = (5e3, 3e4)
WITHOUT_CTF = 0.5
# Share of the structures that are complexes, and of all that are packed; most points of these, and
# the least distance of two, in Å.
COMPLEX, PACKED = 0.4, 0.75
MOST_PACKED, LEAST_SPACING_A = 12_000, 3.5
# How far from rods gaps between them are filled, in Å: from 12 on hardly any is left.
CLOSED_A = (8.0, 18.0)
# Share of the packed ones with helices that stick out, and how long these are, in Å.
WITH_TAILS, TAILS_A = 0.4, (20.0, 70.0)
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
    structure = draw_shape(rng)
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
    structure = draw_shape(rng)
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


def draw_shape(rng: Rng) -> Structure:
    """Draw a structure, packed or not."""
    if rng.random() < COMPLEX:
        structure = draw_complex(rng)
    else:
        structure = draw_structure(int(rng.integers(2**31)))
    return pack(structure, rng) if rng.random() < PACKED else structure


def draw_complex(rng: Rng) -> Structure:
    """Draw domains that touch one another, as those of polymerases do."""
    size_A = rng.uniform(12, 30)
    centres = [np.zeros(3)]
    for _ in range(int(rng.integers(3, 16))):
        direction = rng.normal(size=3)
        direction *= size_A * rng.uniform(0.9, 1.7) / np.linalg.norm(direction)
        centres.append(centres[int(rng.integers(len(centres)))] + direction)
    sizes_A = size_A * rng.uniform(0.5, 1.3, (len(centres), 3))
    domains = zip(centres, sizes_A, strict=True)
    joined = np.concatenate([fill_ellipsoid(rng, centre, sizes) for centre, sizes in domains])
    joined -= joined.mean(axis=0)
    return Structure(kind="complex", points_A=joined, masses=np.ones(len(joined)))


def pack(structure: Structure, rng: Rng) -> Structure:
    """Fill the shape of a structure evenly, denser along its rods, and let helices stick out.

    Points at random within cells of a lattice have no power at low frequency but that of the shape,
    as protein hardly has, of which a part weighs what another does.
    """
    points = structure.points_A
    if rng.random() < WITH_TAILS:
        points = np.concatenate([points, *_tails(points, rng)])
    spread_A3 = np.prod(np.ptp(points, axis=0) + 10) / 3
    spacing_A = max(LEAST_SPACING_A, float(np.cbrt(spread_A3 / MOST_PACKED)))
    n_closed = max(1, round(rng.uniform(*CLOSED_A) / spacing_A))
    corner = points.min(axis=0) - (n_closed + 1) * spacing_A
    places = ((points - corner) / spacing_A).astype(int)
    filled = np.zeros(places.max(axis=0) + n_closed + 2, bool)
    filled[tuple(places.T)] = True
    filled = binary_closing(filled, iterations=n_closed)
    cells = np.argwhere(filled)
    packed = corner + (cells + rng.random(cells.shape)) * spacing_A
    distance_A, _ = cKDTree(points).query(packed)
    denser = rng.uniform(0, 1.5) * np.exp(-((distance_A / (0.5 * spacing_A)) ** 2))
    return Structure(kind=structure.kind, points_A=packed - packed.mean(axis=0), masses=1 + denser)


def _tails(points: Array, rng: Rng) -> list[Array]:
    """Draw helices, or two beside one another, that leave a structure at points far out."""
    radii = np.linalg.norm(points, axis=1)
    outer = points[radii > np.quantile(radii, 0.7)]
    tails = []
    for _ in range(int(rng.integers(1, 6))):
        start = outer[int(rng.integers(len(outer)))]
        direction = start / (np.linalg.norm(start) + 1e-6) + rng.normal(0, 0.5, 3)
        direction /= np.linalg.norm(direction)
        along = np.arange(0, rng.uniform(*TAILS_A), 2.0)[:, None] * direction
        tails.append(start + along)
        if rng.random() < 0.5:
            beside = np.cross(direction, rng.normal(size=3))
            tails.append(start + 9 * beside / np.linalg.norm(beside) + along)
    return tails


def project(
    structure: Structure, diameter_px: float, middles: Array, shape: tuple[int, int], rng: Rng
) -> Array:
    """Add up views of a structure at places (y, x), each turned anyhow; bilinear weights."""
    reach_A = find_reach(structure)
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


def find_reach(structure: Structure) -> float:
    """Return the radius within which nearly all points are, Å."""
    return float(np.quantile(np.linalg.norm(structure.points_A, axis=1), 0.98))


def finish(image: Array, structure: Structure, diameter_px: float, rng: Rng) -> Array:
    """Blur the points and apply a CTF, or none."""
    terms = scipy.fft.rfft2(image)
    frequency = frequency_grid(image.shape)
    volume_px3 = FILLED_OF_SPHERE * np.pi / 6 * diameter_px**3
    spacing_px = np.cbrt(volume_px3 / len(structure.points_A))
    width_px = max(_log_uniform(rng, *WIDTHS_PX), spacing_px * rng.uniform(*WIDTHS))
    terms *= np.exp(-2 * (np.pi * width_px * frequency) ** 2)
    if rng.random() >= WITHOUT_CTF:
        reach_A = find_reach(structure)
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
