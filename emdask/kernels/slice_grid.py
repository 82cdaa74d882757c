"""The grid that central slices are read from and added to, and its interpolation kernel.

A volume's Fourier transform is kept on a grid finer than that of the volume. Between its cells it
is interpolated by a separable Kaiser-Bessel kernel, whose own transform is divided out of the
volume beforehand (or afterwards, where slices are added up). What is left is the kernel's
response to the periodic copies of the volume; it falls about tenfold for each cell of width.

Beatty, Nishimura and Pauly, "Rapid gridding reconstruction with a minimal oversampling ratio", IEEE
Transactions on Medical Imaging 24 (2005) 799-808.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.checks import check_choice, check_integer

__all__ = ["ACCURACIES", "GridPlan"]

Floats = npt.NDArray[np.float32]


class Setting(NamedTuple):
    """Interpolation of one accuracy: cells of the kernel, and of the grid for one frequency."""

    width: int
    oversampling: float


SETTINGS = {"rough": Setting(4, 1.5), "normal": Setting(5, 1.5), "high": Setting(7, 1.5)}
ACCURACIES = tuple(SETTINGS)
# Degrees of the polynomials beyond the kernel's width; they then fit it to rounding.
MORE_DEGREES = 3
NODES = 16
LEAST_BOX_PX = 8


@dataclass(frozen=True, kw_only=True)
class GridPlan:
    """Sizes of the grid for volumes of one size.

    Of the grid, the half ``x >= 0`` is stored, with margins on all sides so that no kernel reaches
    beyond it. Frequency (x, y, z) is cell ``[z + centre, y + centre, x + margin_px]``.

    Parameters
    ----------
    box_px
        Edge n of the volume and of its projections.
    accuracy
        One of `ACCURACIES`.

    Examples
    --------
    >>> plan = GridPlan(box_px=128)
    >>> plan.grid_px, plan.width, plan.shape
    (192, 5, (199, 199, 104))
    """

    box_px: int
    accuracy: str = "normal"

    def __post_init__(self) -> None:
        check_integer("slices", "box_px", self.box_px, LEAST_BOX_PX)
        check_choice("slices", "accuracy", self.accuracy, ACCURACIES)

    @property
    def width(self) -> int:
        """Cells of the kernel along each axis."""
        return SETTINGS[self.accuracy].width

    @functools.cached_property
    def grid_px(self) -> int:
        """Edge m of the whole grid: even, and quick to transform."""
        from scipy.fft import next_fast_len

        at_least = SETTINGS[self.accuracy].oversampling * self.box_px
        return 2 * int(next_fast_len(int(np.ceil(at_least / 2)), real=True))

    @property
    def scale(self) -> float:
        """Cells between neighbouring frequencies of a slice."""
        return self.grid_px / self.box_px

    @property
    def margin_px(self) -> int:
        """Cells beyond the sphere of the slices' frequencies; the kernel reaches into them."""
        return self.width // 2 + 1

    @property
    def centre(self) -> int:
        """Index of frequency 0 along z and y."""
        return self.grid_px // 2 + self.margin_px

    @property
    def shape(self) -> tuple[int, int, int]:
        """Stored cells (z, y, x); rows are multiples of four, for runs of whole vectors."""
        side = 2 * self.centre + 1
        row = self.grid_px // 2 + 1 + 2 * self.margin_px
        return side, side, -(-row // 4) * 4

    @property
    def coefficients(self) -> npt.NDArray[np.float64]:
        """Polynomials of the kernel, (degree + 1, width), the constants first.

        A point at p, in cells, is reached by cells ``first + j`` with
        ``first = ceil(p - width / 2)``; their weights are polynomials of the offset
        ``2 * (first - p + width / 2) - 1``, in [-1, 1).
        """
        return _coefficients(self.width, self.scale)

    @property
    def correction(self) -> npt.NDArray[np.float64]:
        """Inverse of the kernel's transform at the n voxels of an axis, centre at ``n // 2``."""
        position = np.arange(self.box_px) - self.box_px // 2
        return self._invert(position / self.grid_px)

    @property
    def grid_correction(self) -> npt.NDArray[np.float64]:
        """The same at the m voxels of an axis of the whole grid's transform, centre at 0."""
        return self._invert(np.fft.fftfreq(self.grid_px))

    def _invert(self, position: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        return _read_only(1 / _transform(self.width, self.scale, tuple(position)))

    def phases(
        self, shifts_px: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.complex64], npt.NDArray[np.complex64]]:
        """Factors that bring a particle from voxel (0, 0) to its place in each view.

        Parameters
        ----------
        shifts_px : array, shape (v, 2)
            Translations (x, y) that would centre the particle.

        Returns
        -------
        along_x : complex64 array, shape (v, n // 2 + 1)
        along_y : complex64 array, shape (v, n)
            The factor at a frequency is their product.
        """
        n = self.box_px
        turns = 2j * np.pi / n * (shifts_px - n // 2)
        along_x = np.exp(turns[:, :1] * np.arange(n // 2 + 1))
        along_y = np.exp(turns[:, 1:] * np.fft.fftfreq(n, 1 / n))
        return along_x.astype(np.complex64), along_y.astype(np.complex64)


@functools.lru_cache(maxsize=16)
def _coefficients(width: int, scale: float) -> npt.NDArray[np.float64]:
    offset = np.cos(np.pi * (np.arange(NODES) + 0.5) / NODES)
    cells = np.arange(width) - width / 2 + (offset[:, None] + 1) / 2
    values = _kaiser_bessel(cells, width, scale)
    fit = np.polynomial.chebyshev.chebfit(offset, values, width + MORE_DEGREES)
    columns = [np.polynomial.chebyshev.cheb2poly(column) for column in fit.T]
    return _read_only(np.stack(columns, axis=1))


def _kaiser_bessel(cells: Any, width: int, scale: float) -> Any:
    """Kernel whose transform ends its main lobe where the first copy of the volume begins."""
    beta = np.pi * width * (1 - 1 / (2 * scale))
    root = np.sqrt(np.maximum(1 - (2 * cells / width) ** 2, 0))
    return np.i0(beta * root) / np.i0(beta)


@functools.lru_cache(maxsize=16)
def _transform(width: int, scale: float, position: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Transform the polynomials themselves: exact, whatever they lack of the kernel."""
    offset, measure = np.polynomial.legendre.leggauss(NODES)
    weights = np.polynomial.polynomial.polyval(offset, _coefficients(width, scale)).T
    cells = np.arange(width) - width / 2 + (offset[:, None] + 1) / 2
    waves = np.cos(2 * np.pi * np.asarray(position)[:, None, None] * cells)
    return _read_only(np.einsum("xqj,qj,q->x", waves, weights, measure / 2))


def _read_only(array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    array.flags.writeable = False
    return array
