"""What lies around the particles of a micrograph: ice, carbon film, crystals; any array library.

Thicknesses alone: how dark they are and what the microscope makes of them is for the caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.backend import array_namespace

__all__ = ["add_crystal", "carbon_film", "ice_slope"]

# Of the wave across the slope, as a share of it, and its length in frames.
WAVE = 0.15
WAVES = 0.8


def ice_slope(shape: tuple[int, int], angle_deg: float, phase_deg: float, xp: Any = np) -> Any:
    """Return the thickness of ice that grows towards one side, with a slow wave across.

    Parameters
    ----------
    shape
        (h, w).
    angle_deg
        Direction in which it grows thicker, from x towards y.
    phase_deg
        Of the wave.
    xp
        Array library of the result.

    Returns
    -------
    float32 array, shape (h, w)
        Mean about 0; 1 more at the thickest side than at the thinnest, and ±0.15 for the wave.

    Examples
    --------
    >>> ice = ice_slope((32, 32), 0.0, 0.0)
    >>> round(float(ice[:, -1].mean() - ice[:, 0].mean()), 3)
    1.0
    """
    y, x = (xp.linspace(-0.5, 0.5, n, dtype=np.float32) for n in shape)
    c, s = (np.float32(f(np.deg2rad(angle_deg))) for f in (np.cos, np.sin))
    extent = abs(c) + abs(s)
    turns = np.float32(2 * np.pi * WAVES)
    phase = np.float32(np.deg2rad(phase_deg))
    ice = (turns * c * y + phase)[:, None] - (turns * s * x)[None, :]
    xp.cos(ice, out=ice)
    ice *= np.float32(WAVE)
    ice += (c * x / extent)[None, :]
    ice += (s * y / extent)[:, None]
    return ice


def carbon_film(shape: tuple[int, int], hole: Any, edge_px: float, xp: Any = np) -> Any:
    """Return where a film with a round hole is.

    Parameters
    ----------
    shape
        (h, w).
    hole
        (x, y, radius) in pixels.
    edge_px
        Over how many pixels the film grows to its full thickness.
    xp
        Array library of the result.

    Returns
    -------
    float32 array, shape (h, w)
        0 in the hole, 1 where the film is.

    Examples
    --------
    >>> film = carbon_film((8, 64), (0.0, 4.0, 32.0), 2.0)
    >>> film[4, ::16]
    array([0. , 0. , 0.5, 1. ], dtype=float32)
    """
    y, x = (xp.arange(n, dtype=np.float32) for n in shape)
    film = xp.hypot((x - np.float32(hole[0]))[None, :], (y - np.float32(hole[1]))[:, None])
    film -= np.float32(hole[2])
    film *= np.float32(1 / edge_px)
    film += np.float32(0.5)
    return xp.clip(film, 0, 1, out=film)


def add_crystal(field: Any, x: float, y: float, radius_px: float, height: float, lobe: int) -> None:
    """Add the thickness of a rounded lump to a field, in place.

    Parameters
    ----------
    field : float32 array, shape (h, w)
        What it is added to.
    x, y
        Its centre in pixels.
    radius_px
        Mean radius.
    height
        Thickness in the middle.
    lobe
        Bulges at its rim, 2 to 6; as a hexagonal crystal has six.

    Examples
    --------
    >>> field = np.zeros((32, 32), np.float32)
    >>> add_crystal(field, 10.0, 20.0, 5.0, 2.0, 6)
    >>> field[20, 10], field[0, 0]
    (np.float32(2.0), np.float32(0.0))
    """
    reach = int(np.ceil(1.2 * radius_px)) + 1
    rows = slice(max(int(y) - reach, 0), max(int(y) + reach + 1, 0))
    columns = slice(max(int(x) - reach, 0), max(int(x) + reach + 1, 0))
    part = field[rows, columns]
    dy = np.arange(rows.start, rows.start + part.shape[0])[:, None] - y
    dx = np.arange(columns.start, columns.start + part.shape[1])[None, :] - x
    rim = radius_px * (1 + 0.07 * np.cos(lobe * np.arctan2(dy, dx)))
    lump = height * np.sqrt(np.maximum(1 - (dx**2 + dy**2) / rim**2, 0))
    part += array_namespace(part).asarray(lump.astype(np.float32))
