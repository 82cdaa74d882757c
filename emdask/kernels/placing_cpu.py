"""Places of particles in a micrograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import compiled

__all__ = ["TRIES", "place_particles"]

Array = npt.NDArray[Any]

# Places that are tried for each particle. Discs that cover 0.45 of the plane find room by a third
# of them; at random, discs cannot cover more than 0.547.
TRIES = 30
# A particle that crowds another is up to this much further away than it must be.
CROWD_REACH = 0.3


@compiled
def place_particles(
    draws: Array,
    n_most: int,
    height: int,
    width: int,
    distance_px: float,
    crowding: float,
    hole: Array,
) -> Array:
    """Put particles down one after another, each where there is room for it.

    Parameters
    ----------
    draws : float64 array, shape (t, 4)
        Numbers in [0, 1); a row is one try.
    n_most
        Particles wanted.
    height, width
        Of the micrograph in pixels.
    distance_px
        Least distance between the centres of two particles.
    crowding
        Share of the tries that are next to a particle that is there already.
    hole : float64 array, shape (3,)
        (x, y, radius) of the disc that the particles stay in, in pixels.

    Returns
    -------
    float64 array, shape (n, 2)
        Centres (x, y) in pixels, the first pixel's being 0; fewer than ``n_most`` if the tries do
        not find more room.

    Examples
    --------
    >>> draws = np.random.default_rng(0).random((100, 4))
    >>> everywhere = np.array([0.0, 0.0, 1e9])
    >>> place_particles(draws, 5, 64, 64, 10.0, 0.0, everywhere).shape
    (5, 2)
    """
    places = np.empty((n_most, 2))
    n = 0
    for t in range(len(draws)):
        if n == n_most:
            break
        if n > 0 and draws[t, 0] < crowding:
            beside = places[int(draws[t, 1] * n)]
            reach_px = distance_px * (1 + CROWD_REACH * draws[t, 2])
            angle = 2 * np.pi * draws[t, 3]
            x, y = beside[0] + reach_px * np.cos(angle), beside[1] + reach_px * np.sin(angle)
        else:
            x, y = draws[t, 1] * (width - 1), draws[t, 2] * (height - 1)
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            continue
        if (x - hole[0]) ** 2 + (y - hole[1]) ** 2 > hole[2] ** 2:
            continue
        free = True
        for i in range(n):
            if (x - places[i, 0]) ** 2 + (y - places[i, 1]) ** 2 < distance_px**2:
                free = False
                break
        if free:
            places[n] = x, y
            n += 1
    return places[:n]
