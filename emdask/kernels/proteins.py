"""A protein of our own making: chains that avoid themselves, folded into domains."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Array = npt.NDArray[Any]

# Centre and half axes of each domain of a subunit, in Å; the symmetry axis is z. They are laid out
# to give views as different as a tripod, a cross and a bar.
DOMAINS = (
    ((32.0, 0.0, -34.0), (29.0, 24.0, 31.0)),
    ((26.0, 16.0, 4.0), (21.0, 18.0, 20.0)),
    ((46.0, 22.0, 28.0), (27.0, 21.0, 21.0)),
    ((68.0, 2.0, 49.0), (18.0, 17.0, 19.0)),
)
N_COPIES = 3
STEP_A = 3.0
ROD_LENGTH_A = (12.0, 32.0)
ROD_SPACING_A = 9.0
VOLUME_OF_A_STEP_A3 = 200.0
CANDIDATES = 100
N_NEAR = 3


def grow_protein(seed: int = 0) -> Array:
    """Return the points of a protein-like chain; blobs of about 4 Å at them make a density.

    Each domain is filled by straight rods of 10 to 30 Å, as helices are, joined end to end. Of a
    number of random next rods the one that keeps best clear of those before it, inside the domain,
    is taken. The subunit is then turned into three copies about z.

    Parameters
    ----------
    seed
        Of the random numbers.

    Returns
    -------
    float64 array, shape (m, 3)
        (x, y, z) in Å about the centre of mass; about 100 Å in radius.

    Examples
    --------
    >>> points = grow_protein(1)
    >>> points.shape[1], bool(np.abs(points.mean(axis=0)).max() < 1e-6)
    (3, True)
    """
    rng = np.random.default_rng(seed)
    chain = np.empty((0, 3))
    for centre, half_axes in DOMAINS:
        chain = _fill_domain(rng, chain, np.array(centre), np.array(half_axes))
    angles = 2 * np.pi * np.arange(N_COPIES) / N_COPIES
    turned = [_turn_about_z(chain, angle) for angle in angles]
    points = np.concatenate(turned)
    return np.asarray(points - points.mean(axis=0))


def _turn_about_z(points: Array, angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]))


def _fill_domain(rng: np.random.Generator, chain: Array, centre: Array, half_axes: Array) -> Array:
    volume_A3 = 4 / 3 * np.pi * half_axes.prod()
    goal = len(chain) + int(volume_A3 / VOLUME_OF_A_STEP_A3)
    end = chain[-1] if len(chain) else centre
    while len(chain) < goal:
        rods = _candidates(rng, end)
        best = int(np.argmax(_scores(rods, chain, centre, half_axes)))
        chain = np.concatenate([chain, rods[best]])
        end = chain[-1]
    return chain


def _candidates(rng: np.random.Generator, start: Array) -> list[Array]:
    """Straight rods from ``start`` on, in random directions and of random lengths."""
    directions = rng.normal(size=(CANDIDATES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    lengths_A = rng.uniform(*ROD_LENGTH_A, CANDIDATES)
    return [
        start + np.arange(STEP_A, length_A, STEP_A)[:, None] * direction
        for length_A, direction in zip(lengths_A, directions, strict=True)
    ]


def _scores(rods: list[Array], chain: Array, centre: Array, half_axes: Array) -> Array:
    """Long rods that stay inside and keep their distance score high."""
    points = np.concatenate(rods)
    counts = np.array([len(rod) for rod in rods])
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    outside = np.maximum(np.linalg.norm((points - centre) / half_axes, axis=1) - 1, 0)
    # The rod begins where the last one ends, whose points are near and do not count.
    others = chain[:-N_NEAR]
    gaps_A = cKDTree(others).query(points)[0] if len(others) else np.full(len(points), np.inf)
    penalty = 10 * outside + np.maximum(ROD_SPACING_A - gaps_A, 0)
    return np.asarray(0.07 * STEP_A * counts - np.add.reduceat(penalty, first) / counts)
