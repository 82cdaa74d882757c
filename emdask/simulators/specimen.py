"""What is where in a simulated micrograph: particles, the hole in the carbon film, crystals.

All of it is drawn from the seed and the number of the micrograph alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.draws import uniform_draws
from emdask.kernels.placing_cpu import TRIES, place_particles
from emdask.simulators.truth import Draws, Views, draw_classes

Array = npt.NDArray[Any]

# Streams of random numbers; those below 16 are `emdask.simulators.truth`'s.
PLACES, COUNT, ICE, FILM, CRYSTALS, TEXTURE = range(16, 22)
# A particle's number is that of its micrograph times this, and its own.
MOST_PARTICLES = 2**22
# Crystals, in diameters of the particle, and how dark they are, in deviations of the noise.
CRYSTAL_SIZE = (0.5, 2.5)
CRYSTAL_HEIGHT = (0.7, 2.5)
# Of the edge of the film: how far from the middle of the frame it may lie, in half frames.
FILM_OFFSET = (0.1, 0.8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Specimen:
    """How particles and what is around them lie in micrographs.

    Parameters
    ----------
    shape
        (h, w) of a micrograph.
    n_particles
        Fewest and most particles.
    diameter_px
        Of a particle.
    distance_px
        Least distance between the centres of two.
    crowding
        Share of the particles that is put next to others.
    carbon
        Share of the micrographs that show the edge of the film.
    hole_px
        Diameter of the hole in it.
    n_crystals
        Fewest and most.
    views, proportions, n_volumes
        How poses and classes are drawn, see `emdask.simulators.truth`.
    seed
        Of the random numbers.
    """

    shape: tuple[int, int]
    n_particles: tuple[int, int]
    diameter_px: float
    distance_px: float
    crowding: float
    carbon: float
    hole_px: float
    n_crystals: tuple[int, int]
    views: Views
    proportions: Sequence[float] | None
    n_volumes: int
    seed: int

    def hole(self, image_id: int) -> Array | None:
        """Return (x, y, radius) of the hole in px, within which there is no film; None without one.

        The film covers a part of the frame, between a tenth and nine tenths along a line through
        its middle.
        """
        shown, around, offset = self._draw(image_id, 3, FILM)
        if shown >= self.carbon:
            return None
        angle = 2 * np.pi * around
        c, s = np.cos(angle), np.sin(angle)
        h, w = self.shape
        low, high = FILM_OFFSET
        edge_px = (low + (high - low) * offset) * (abs(c) * w + abs(s) * h) / 2
        radius_px = self.hole_px / 2
        inwards = edge_px - radius_px
        return np.array([w / 2 + c * inwards, h / 2 + s * inwards, radius_px])

    def places(self, image_id: int) -> Array:
        """Return the centres (x, y) of the particles in px; float64 (n, 2).

        None is on the film. As many are placed for each part of the free area as would be for all
        of it.
        """
        low, high = self.n_particles
        wanted = low + int(self._draw(image_id, 1, COUNT)[0] * (high - low + 1))
        hole = self.hole(image_id)
        free = np.array([0.0, 0.0, np.inf])
        if hole is not None:
            free = hole - np.array([0.0, 0.0, self.diameter_px / 2])
            wanted = round(wanted * _share_within(free, self.shape))
        rng = np.random.default_rng([self.seed, image_id, PLACES])
        draws = rng.random((TRIES * wanted, 4))
        return np.asarray(
            place_particles(draws, wanted, *self.shape, self.distance_px, self.crowding, free)
        )

    def crystals(self, image_id: int) -> Array:
        """Return x, y, radius in px, height in deviations of the noise, and lobes; (n, 5)."""
        low, high = self.n_crystals
        rng = np.random.default_rng([self.seed, image_id, CRYSTALS])
        n = int(rng.integers(low, high + 1))
        h, w = self.shape
        smallest, largest = CRYSTAL_SIZE
        sizes = smallest * (largest / smallest) ** rng.random(n) * self.diameter_px
        columns = [
            *(rng.uniform(0, w, n), rng.uniform(0, h, n)),
            *(sizes / 2, rng.uniform(*CRYSTAL_HEIGHT, n), rng.integers(2, 7, n)),
        ]
        return np.stack(columns, axis=1)

    def ice_angles_deg(self, image_id: int) -> Array:
        """Return the direction in which the ice grows thicker and the phase of its wave."""
        return 360 * self._draw(image_id, 2, ICE)

    def particles(self, image_ids: Sequence[int]) -> Particles:
        """Draw all that is true of the particles of these micrographs."""
        places = [self.places(int(image_id)) for image_id in image_ids]
        counts = [len(place) for place in places]
        owners = np.repeat(np.asarray(image_ids, np.int64), counts)
        within = np.concatenate([np.arange(count) for count in counts] or [np.arange(0)])
        draws = Draws(image_ids=owners * MOST_PARTICLES + within, seed=self.seed)
        return Particles(
            image_id=owners,
            place_px=np.concatenate([*places, np.empty((0, 2))]),
            rotation_deg=self.views.draw(draws),
            class_index=draw_classes(self.proportions, self.n_volumes, draws),
        )

    def _draw(self, image_id: int, n_draws: int, stream: int) -> Array:
        return np.asarray(uniform_draws(self.seed, [image_id], n_draws, stream=stream)[0])


@dataclass(frozen=True, kw_only=True)
class Particles:
    """What is true of some particles.

    Parameters
    ----------
    image_id : int64 array, shape (n,)
        Number of the micrograph.
    place_px : float64 array, shape (n, 2)
        Centre (x, y) in pixels; that of the first pixel is 0.
    rotation_deg : float64 array, shape (n, 3)
        RELION's Euler angles.
    class_index : int64 array, shape (n,)
        Number of the volume, from 0.
    """

    image_id: Array
    place_px: Array
    rotation_deg: Array
    class_index: Array


def _share_within(disc: Array, shape: tuple[int, int], n: int = 64) -> float:
    """Share of a frame that lies in a disc."""
    y, x = ((np.arange(n) + 0.5) / n * size for size in shape)
    within = np.hypot(x[None, :] - disc[0], y[:, None] - disc[1]) < disc[2]
    return float(within.mean())


def measure_diameter(volume: Array) -> float:
    """Return the diameter of the ball about the centre that holds 99 % of a volume's squares.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Centre at voxel ``n // 2``.

    Returns
    -------
    float
        In voxels.

    Examples
    --------
    >>> volume = np.zeros((16, 16, 16))
    >>> volume[8, 8, 5:12] = 1
    >>> measure_diameter(volume)
    7.0
    """
    axis2 = (np.arange(len(volume)) - len(volume) // 2) ** 2
    radii2 = axis2[:, None, None] + axis2[:, None] + axis2
    power = np.bincount(radii2.ravel(), volume.ravel().astype(np.float64) ** 2)
    radius2 = np.searchsorted(np.cumsum(power), 0.99 * power.sum())
    return float(2 * np.sqrt(radius2) + 1)
