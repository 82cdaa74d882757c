"""Structures that never were: points of protein-like particles of many shapes, drawn by a seed.

Sizes are in Å. Each kind is a function of a generator and a radius; domains are filled with rods,
as proteins are with helices, and copied by a symmetry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.kernels.projections import sample_blobs
from emdask.kernels.symmetry import symmetry_matrices
from emdask.phantoms import phantom
from emdask.simulators.specimen import measure_diameter
from emdask.volumes import build_volume

Array = npt.NDArray[Any]
Rng = np.random.Generator

DIAMETERS_A = (80.0, 400.0)
STEP_A = 4.0
ROD_LENGTH_A = (12.0, 40.0)
# Of a point of a rod, as protein fills its volume.
VOLUME_OF_A_STEP_A3 = 300.0
MOST_POINTS = 4000
# A lipid scatters less above the water than protein does.
LIPID_MASS = 0.45
# In voxels: a Gaussian this wide is sampled well enough for an image with noise.
LEAST_WIDTH_PX = 0.9
# Shells of this outer diameter are left out, so that ferritin stays unseen.
LEFT_OUT_SHELLS_A = (95.0, 150.0)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Points with masses, in Å about the centre."""

    kind: str
    points_A: Array
    masses: Array

    def volume(self, diameter_px: float) -> tuple[xr.DataArray, float]:
        """Sample at the scale at which the diameter is so many voxels; also the diameter, Å."""
        reach_A = float(np.linalg.norm(self.points_A, axis=1).max())
        pixel_A = 2 * reach_A / diameter_px
        for _ in range(3):
            box_px = 2 * int(np.ceil(reach_A / pixel_A + 4))
            width_A = max(LEAST_WIDTH_PX * pixel_A, 3.5)
            sampled = sample_blobs(
                self.points_A, width_A, self.masses, box_px=box_px, pixel_size_A=pixel_A
            )
            measured_px = measure_diameter(sampled)
            if abs(measured_px / diameter_px - 1) < 0.04:
                break
            pixel_A *= measured_px / diameter_px
        return build_volume(sampled, pixel_A), measured_px * pixel_A


def draw_structure(seed: int, kind: str | None = None) -> Structure:
    """Draw a structure: the same for the same seed.

    Examples
    --------
    >>> structure = draw_structure(3)
    >>> structure.kind in KINDS, structure.points_A.shape[1]
    (True, 3)
    """
    rng = np.random.default_rng([seed, 1])
    shares = np.array([2.0 if name in OFTEN else 1.0 for name in KINDS])
    kind = str(rng.choice(list(KINDS), p=shares / shares.sum())) if kind is None else kind
    low_A, high_A = DIAMETERS_A
    radius_A = low_A * (high_A / low_A) ** rng.random() / 2
    if kind == "shell" and LEFT_OUT_SHELLS_A[0] < 2 * radius_A < LEFT_OUT_SHELLS_A[1]:
        radius_A *= LEFT_OUT_SHELLS_A[1] / LEFT_OUT_SHELLS_A[0]
    points_A, masses = KINDS[kind](rng, radius_A)
    points_A = points_A - np.average(points_A, axis=0, weights=masses)
    points_A *= radius_A / np.quantile(np.linalg.norm(points_A, axis=1), 0.995)
    return Structure(kind=kind, points_A=points_A, masses=masses)


def fill_ellipsoid(rng: Rng, centre: Array, half_axes: Array) -> Array:
    """Fill an ellipsoid, turned anyhow, with rods; (m, 3)."""
    n_steps = 4 / 3 * np.pi * np.prod(half_axes) / VOLUME_OF_A_STEP_A3
    n_steps = float(np.clip(n_steps, 8, MOST_POINTS))
    length_A = min(rng.uniform(*ROD_LENGTH_A), 1.5 * float(np.min(half_axes)) + STEP_A)
    along = np.arange(0, length_A, STEP_A)
    n_rods = max(3, int(n_steps / len(along)))
    directions = _directions(rng, n_rods)
    middles = _directions(rng, n_rods) * np.cbrt(rng.random((n_rods, 1))) * half_axes
    rods = middles[:, None] + (along - along.mean())[:, None] * directions[:, None]
    points = rods.reshape(-1, 3)
    inside = np.linalg.norm(points / half_axes, axis=1) < 1.1
    return np.asarray(points[inside] @ _rotation(rng).T + centre)


def _directions(rng: Rng, n: int) -> Array:
    vectors = rng.normal(size=(n, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _rotation(rng: Rng) -> Array:
    turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.asarray(turned)


def _thin(rng: Rng, points: Array) -> tuple[Array, Array]:
    """Keep so many points that sampling stays quick; masses stand for those left out."""
    if len(points) > MOST_POINTS:
        points = points[rng.permutation(len(points))[:MOST_POINTS]]
    return points, np.ones(len(points))


def _copies(rng: Rng, subunit: Array, group: str) -> tuple[Array, Array]:
    turns = symmetry_matrices(group)
    most = max(MOST_POINTS // len(turns), 8)
    subunit = subunit[rng.permutation(len(subunit))[:most]]
    return _thin(rng, np.concatenate([subunit @ turn.T for turn in turns]))


def _subunit(rng: Rng, middle: Array, size_A: float) -> Array:
    """One to three domains about a place."""
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        offset = _directions(rng, 1)[0] * size_A * rng.uniform(0, 0.7)
        parts.append(fill_ellipsoid(rng, middle + offset, size_A * rng.uniform(0.4, 1.0, 3)))
    return np.concatenate(parts)


def _globule(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """One compact body of a few domains."""
    centre = np.zeros(3)
    parts = [fill_ellipsoid(rng, centre, radius_A * rng.uniform(0.5, 1.0, 3))]
    for _ in range(int(rng.integers(0, 4))):
        place = _directions(rng, 1)[0] * radius_A * rng.uniform(0.3, 0.8)
        parts.append(fill_ellipsoid(rng, place, radius_A * rng.uniform(0.2, 0.6, 3)))
    return _thin(rng, np.concatenate(parts))


def _loose(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """Small domains in a chain that turns about."""
    place, parts = np.zeros(3), []
    size_A = radius_A * rng.uniform(0.2, 0.4)
    for _ in range(int(rng.integers(3, 8))):
        parts.append(fill_ellipsoid(rng, place, size_A * rng.uniform(0.7, 1.3, 3)))
        place = place + _directions(rng, 1)[0] * size_A * rng.uniform(1.2, 1.9)
    return _thin(rng, np.concatenate(parts))


def _cyclic(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    n = int(rng.integers(2, 9))
    middle = np.array([rng.uniform(0.35, 0.7), 0, rng.uniform(-0.3, 0.3)]) * radius_A
    return _copies(rng, _subunit(rng, middle, radius_A * rng.uniform(0.25, 0.6)), f"C{n}")


def _dihedral(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    n = int(rng.integers(2, 8))
    middle = np.array([rng.uniform(0.2, 0.6), 0.1, rng.uniform(0.15, 0.7)]) * radius_A
    return _copies(rng, _subunit(rng, middle, radius_A * rng.uniform(0.2, 0.5)), f"D{n}")


def _cubic(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    group = str(rng.choice(["T", "I1"]))
    middle = _directions(rng, 1)[0] * radius_A * rng.uniform(0.4, 0.75)
    return _copies(rng, _subunit(rng, middle, radius_A * rng.uniform(0.2, 0.45)), group)


def _shell(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """A hollow ball, lumpy or smooth, whole or with an opening."""
    inner = rng.uniform(0.5, 0.85)
    directions = _directions(rng, MOST_POINTS)
    lumps = _directions(rng, int(rng.integers(4, 30)))
    lumpiness = rng.uniform(0, 1.0)
    near = np.exp(-((1 - directions @ lumps.T) / 0.08)).max(axis=1)
    kept = rng.random(MOST_POINTS) > lumpiness * (1 - near)
    if rng.random() < 0.3:
        kept &= directions[:, 2] < rng.uniform(0.3, 0.9)
    radii = radius_A * np.cbrt(rng.uniform(inner**3, 1, MOST_POINTS))
    points = directions * radii[:, None]
    return points[kept], np.ones(int(kept.sum()))


def _ring(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """Rings of subunits, one to four on one another, as chaperonins and proteasomes are."""
    n, n_rings = int(rng.integers(5, 15)), int(rng.integers(1, 5))
    height_A = radius_A * rng.uniform(0.3, 1.2) / n_rings
    size = radius_A * np.array([rng.uniform(0.2, 0.4), np.pi / n * 0.8, 0.0])
    size[2] = height_A * 0.7
    middle = np.array([radius_A * rng.uniform(0.5, 0.8), 0.0, 0.0])
    subunit = fill_ellipsoid(rng, middle, size)
    heights = (np.arange(n_rings) - (n_rings - 1) / 2) * 1.4 * height_A
    column = np.concatenate([subunit + np.array([0, 0, height]) for height in heights])
    return _copies(rng, column, f"C{n}")


def _rod(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    aspect = rng.uniform(1.8, 4.0)
    half_axes = radius_A * np.array([1 / aspect, rng.uniform(0.7, 1.0) / aspect, 1.0])
    points = fill_ellipsoid(rng, np.zeros(3), half_axes)
    if rng.random() < 0.4:
        return _copies(rng, points + np.array([0.3 * radius_A / aspect, 0, 0]), "D2")
    return _thin(rng, points)


def _membrane(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """Protein through a belt of lipid or detergent."""
    belt = rng.uniform(-1, 1, (3 * MOST_POINTS, 3)) * [radius_A, radius_A, 20.0]
    belt = belt[np.hypot(belt[:, 0], belt[:, 1]) < radius_A * rng.uniform(0.5, 0.9)]
    belt = belt[: MOST_POINTS // 2]
    group = f"C{int(rng.integers(1, 6))}"
    middle = np.array([rng.uniform(0.1, 0.4), 0, rng.uniform(0.1, 0.6)]) * radius_A
    protein, masses = _copies(rng, _subunit(rng, middle, radius_A * rng.uniform(0.3, 0.6)), group)
    share = rng.uniform(0.4, 1.5) * LIPID_MASS * len(protein) / len(belt)
    return np.concatenate([protein, belt]), np.concatenate([masses, np.full(len(belt), share)])


def _arms(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    """Arms from one middle, as of antibodies and complexes of several."""
    parts = []
    for direction in _directions(rng, int(rng.integers(2, 6))):
        for reach in np.linspace(0.1, 0.8, int(rng.integers(2, 5))):
            place = direction * radius_A * reach
            parts.append(fill_ellipsoid(rng, place, radius_A * rng.uniform(0.12, 0.32, 3)))
    return _thin(rng, np.concatenate(parts))


def _blobs(rng: Rng, radius_A: float) -> tuple[Array, Array]:
    n_blobs = int(rng.integers(15, 150))
    made = phantom(n_blobs, radius_A=radius_A, seed=int(rng.integers(2**31)))
    return made.positions_A, made.masses


# Most proteins are compact; these, and shells, are drawn twice as often as others.
OFTEN = ("globule", "dihedral", "cyclic", "shell")
KINDS: dict[str, Callable[[Rng, float], tuple[Array, Array]]] = {
    "globule": _globule,
    "loose": _loose,
    "cyclic": _cyclic,
    "dihedral": _dihedral,
    "cubic": _cubic,
    "shell": _shell,
    "ring": _ring,
    "rod": _rod,
    "membrane": _membrane,
    "arms": _arms,
    "blobs": _blobs,
}
