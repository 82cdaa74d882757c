"""Phantoms: densities whose volume and projections are known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_integer, check_number, require
from emdask.kernels.projections import project_blobs, sample_blobs
from emdask.volumes import build_volume

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Phantom:
    """A sum of three-dimensional Gaussians.

    Parameters
    ----------
    positions_A : float64 array, shape (m, 3)
        Centres (x, y, z) in Å about the centre of the particle.
    widths_A : float64 array, shape (m,)
        Standard deviation of each in Å.
    masses : float64 array, shape (m,)
        Mass of each.
    """

    positions_A: Array
    widths_A: Array
    masses: Array

    def volume(self, box_px: int, pixel_size_A: float) -> xr.DataArray:
        """Sample the density.

        Parameters
        ----------
        box_px
            Edge of the volume; the centre of the particle is at voxel ``box_px // 2``.
        pixel_size_A
            Edge of a voxel in Å.

        Returns
        -------
        xarray.DataArray, dims (z, y, x), float32
            Mass in each voxel.

        Examples
        --------
        >>> phantom(5, radius_A=20).volume(32, 3.0).shape
        (32, 32, 32)
        """
        _check_grid(box_px, pixel_size_A)
        sampled = sample_blobs(
            self.positions_A,
            self.widths_A,
            self.masses,
            box_px=box_px,
            pixel_size_A=pixel_size_A,
        )
        return build_volume(sampled, pixel_size_A)

    def project(
        self,
        rotation_deg: npt.ArrayLike,
        *,
        shift_A: npt.ArrayLike = (0.0, 0.0),
        box_px: int,
        pixel_size_A: float,
    ) -> Array:
        """Project the density, exactly.

        Parameters
        ----------
        rotation_deg : array_like, shape (n, 3)
            rot, tilt, psi of each image.
        shift_A : array_like, shape (2,) or (n, 2)
            Translation (x, y) in Å that would centre the particle: it stands at minus that.
        box_px
            Edge of the images; the centre of the particle is at pixel ``box_px // 2``.
        pixel_size_A
            Edge of a pixel in Å.

        Returns
        -------
        float32 array, shape (n, box_px, box_px)
            Mass in each pixel.

        Examples
        --------
        >>> particle = phantom(5, radius_A=20)
        >>> image = particle.project([[0, 0, 0]], box_px=32, pixel_size_A=3.0)[0]
        >>> bool(np.allclose(image, particle.volume(32, 3.0).sum("z"), atol=1e-4 * image.max()))
        True
        """
        _check_grid(box_px, pixel_size_A)
        return project_blobs(
            self.positions_A,
            self.widths_A,
            self.masses,
            rotation_deg=rotation_deg,
            shift_A=shift_A,
            box_px=box_px,
            pixel_size_A=pixel_size_A,
        )


def phantom(
    n_blobs: int = 60,
    *,
    radius_A: float = 60.0,
    width_A: float | tuple[float, float] = (4.0, 8.0),
    seed: int = 0,
) -> Phantom:
    """Make a particle without symmetry whose volume and projections are known exactly.

    Parameters
    ----------
    n_blobs
        Number of Gaussians. They lie at random in a ball.
    radius_A
        Distance of the outermost centre from the centre of mass, Å.
    width_A
        Standard deviation of the Gaussians in Å, or the range in which theirs are drawn. On a grid
        it must be at least 1.6 pixels, or the samples are aliased.
    seed
        Of the random numbers.

    Returns
    -------
    Phantom
        With the methods ``volume`` and ``project``; masses lie in [0.5, 1.5].

    Raises
    ------
    ParameterError
        If a number is out of range.

    Examples
    --------
    >>> particle = phantom(20, radius_A=40, width_A=5.0, seed=3)
    >>> particle.positions_A.shape, particle.widths_A[0]
    ((20, 3), np.float64(5.0))
    >>> round(float(np.linalg.norm(particle.positions_A, axis=1).max()), 6)
    40.0
    """
    what = "phantom"
    check_integer(what, "n_blobs", n_blobs, 1)
    check_number(what, "radius_A", radius_A, 0)
    check_integer(what, "seed", seed, 0)
    low_A, high_A = _check_widths(width_A)
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(n_blobs, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    positions = directions * np.cbrt(rng.random((n_blobs, 1)))
    masses = rng.uniform(0.5, 1.5, n_blobs)
    positions -= np.average(positions, axis=0, weights=masses)
    # One blob lies at the centre, whatever the radius.
    farthest = np.linalg.norm(positions, axis=1).max() if n_blobs > 1 else 1.0
    return Phantom(
        positions_A=positions * (radius_A / farthest),
        widths_A=rng.uniform(low_A, high_A, n_blobs),
        masses=masses,
    )


def _check_widths(width_A: Any) -> tuple[float, float]:
    ends = width_A if isinstance(width_A, tuple | list) else (width_A, width_A)
    require(len(ends) == 2, "phantom", "width_A must be a number or a range (low, high)", width_A)
    for end in ends:
        check_number("phantom", "width_A", end, 1e-3)
    require(ends[0] <= ends[1], "phantom", "width_A must be a range (low, high)", width_A)
    return float(ends[0]), float(ends[1])


def _check_grid(box_px: int, pixel_size_A: float) -> None:
    check_integer("phantom", "box_px", box_px, 2)
    check_number("phantom", "pixel_size_A", pixel_size_A, 1e-3)
