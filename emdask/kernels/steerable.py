"""Steerable (Fourier-Bessel) expansion of images: turning an image shifts phases of coefficients.

Zhao, Shkolnisky and Singer, "Fast steerable principal component analysis", IEEE Transactions on
Computational Imaging 2 (2016) 1-12.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev
from scipy import special

from emdask.backend import array_namespace
from emdask.checks import check_integer, check_number

__all__ = ["SteerableBasis", "evaluate", "expand", "mirror", "rotate", "steerable_basis"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# A library may round otherwise for another number of images, so always as many are expanded.
IMAGES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class SteerableBasis:
    """Functions u(r) exp(i k φ) of an image, band-limited, and nearly supported in a disc.

    The Fourier transform of each is a Bessel function J_k with a root at the edge of the band;
    φ runs from the x axis to the y axis, about pixel ``box_px // 2``.

    Parameters
    ----------
    box_px
        Edge of the images.
    radius_px
        Radius of the disc that holds most of each function.
    band
        Highest frequency, cycles a pixel.
    orders : int64 array, shape (n_coefs,)
        Angular order k >= 0 of each coefficient, ascending.
    slices
        The coefficients of each order.
    nodes : float64 array, shape (n_r,)
        Radial frequencies, cycles a pixel.
    radial
        For each order, float64 (n_r, n_q), the functions at the nodes times roots of quadrature
        weights: ``radial[k].T @ (h[:, None] * radial[k])`` is the filter h in the coefficients.
    """

    box_px: int
    radius_px: float
    band: float
    orders: Integers = field(repr=False)
    slices: tuple[slice, ...] = field(repr=False)
    nodes: Doubles = field(repr=False)
    radial: tuple[Doubles, ...] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Three numbers; what they make is made once in a process."""
        return _make_basis, (self.box_px, self.radius_px, self.band)


def steerable_basis(
    box_px: int, *, radius_px: float | None = None, band: float = 0.5
) -> SteerableBasis:
    """Choose the functions that a disc in real space and one in Fourier space hold.

    Of each order k those are taken whose next root R of J_k is at most 2 π band radius.

    Parameters
    ----------
    box_px
        Edge of the images.
    radius_px
        Radius of the disc in real space; half the edge by default.
    band
        Highest frequency, cycles a pixel.

    Returns
    -------
    SteerableBasis
        Kept in the process: the same object for the same numbers.

    Raises
    ------
    ParameterError
        If a number is out of its range.

    Examples
    --------
    >>> basis = steerable_basis(16)
    >>> len(basis.slices), len(basis.orders)
    (16, 56)
    """
    check_integer("steerable basis", "box_px", box_px, 8)
    radius_px = box_px / 2 if radius_px is None else radius_px
    check_number("steerable basis", "radius_px", radius_px, 2, box_px / 2)
    check_number("steerable basis", "band", band, 2 / box_px, 0.5)
    return _make_basis(int(box_px), float(radius_px), float(band))


@functools.lru_cache(maxsize=16)
def _make_basis(box_px: int, radius_px: float, band: float) -> SteerableBasis:
    largest = 2 * math.pi * band * radius_px
    roots = _find_roots(largest)
    ends = np.cumsum([len(own) for own in roots])
    points, weights = np.polynomial.legendre.leggauss(math.ceil(largest) + 10)
    at, weights = (points + 1) / 2, weights / 2
    radial = [
        values * np.sqrt(2 * np.pi * at * weights)[:, None] * band
        for values in _sample_functions(roots, at, band)
    ]
    return SteerableBasis(
        box_px=box_px,
        radius_px=radius_px,
        band=band,
        orders=np.repeat(np.arange(len(roots)), [len(own) for own in roots]),
        slices=tuple(slice(int(e) - len(own), int(e)) for e, own in zip(ends, roots, strict=True)),
        nodes=at * band,
        radial=tuple(radial),
    )


def _find_roots(largest: float) -> list[Doubles]:
    """Return of each order the roots of J_k but the last of those up to a number."""
    roots: list[Doubles] = []
    while (k := len(roots)) < largest:
        # The phase of J_k, in half turns, counts its roots.
        phase = math.sqrt(largest**2 - k**2) - k * math.acos(k / largest)
        own = special.jn_zeros(k, int(phase / math.pi) + 2)
        own = own[own <= largest][:-1]
        if len(own) == 0:
            break
        roots.append(own)
    return roots


def _sample_functions(roots: list[Doubles], at: Doubles, band: float) -> list[Doubles]:
    """Return of each order (len(at), n_q) functions at parts of the band, of integral 1 each."""
    largest = max(own[-1] for own in roots)
    degree = math.ceil(largest / 2) + 40
    nodes = (chebyshev.chebpts1(degree + 1) + 1) * largest / 2
    samples = []
    for k, own in enumerate(roots):
        terms = chebyshev.chebfit(nodes * 2 / largest - 1, special.jv(k, nodes), degree)
        values = chebyshev.chebval(np.multiply.outer(at, own) * 2 / largest - 1, terms)
        samples.append(values / (band * math.sqrt(math.pi) * np.abs(special.jv(k + 1, own))))
    return samples


# --- Coefficients ---------------------------------------------------------------------------------


def expand(half_planes: Any, basis: SteerableBasis) -> Any:
    """Return the coefficients of images, by the adjoint of `evaluate`.

    White noise of some variance a pixel gives coefficients of that variance: those of order 0 are
    real, real and imaginary parts of the others have half of it.

    Parameters
    ----------
    half_planes : complex64 array, shape (n, box, box // 2 + 1)
        As of `emdask.kernels.transforms.to_half_planes`; NumPy or CuPy.
    basis
        What they are expanded in.

    Returns
    -------
    complex64 array, shape (n, n_coefs)

    Examples
    --------
    >>> basis = steerable_basis(16)
    >>> expand(np.ones((3, 16, 9), np.complex64), basis).shape
    (3, 56)
    """
    xp = array_namespace(half_planes)
    at, phases, even, odd = _place_tables(basis, xp)
    n, n_points = len(half_planes), basis.box_px * (basis.box_px // 2 + 1)
    columns = _order_columns(basis, xp)
    coefs = xp.empty((n, len(basis.orders)), np.complex64)
    batch = xp.zeros((IMAGES_AT_ONCE, len(at)), np.complex64)
    for start in range(0, n, IMAGES_AT_ONCE):
        part = half_planes[start : start + IMAGES_AT_ONCE].reshape(-1, n_points)
        batch[: len(part)] = part[:, at] * phases
        parts = [batch.real @ even, batch.imag @ odd]
        halves = [xp.split(own, 2, axis=1) for own in parts]
        joined = xp.concatenate([real + 1j * imag for real, imag in halves], 1)
        coefs[start : start + IMAGES_AT_ONCE] = joined[: len(part), columns]
    return coefs


def evaluate(coefs: Any, basis: SteerableBasis) -> Any:
    """Return the transforms of images of these coefficients.

    Parameters
    ----------
    coefs : complex64 array, shape (n, n_coefs)
        NumPy or CuPy; of order 0 the real part is taken.
    basis
        What they are coefficients of.

    Returns
    -------
    complex64 array, shape (n, box, box // 2 + 1)
        `emdask.kernels.transforms.to_images` makes images of them.

    Examples
    --------
    >>> basis = steerable_basis(16)
    >>> evaluate(np.ones((3, 56), np.complex64), basis).shape
    (3, 16, 9)
    """
    xp = array_namespace(coefs)
    at, phases, even, odd = _place_tables(basis, xp)
    shares = xp.asarray(_place_points(basis)[2])
    is_even = xp.asarray(basis.orders % 2 == 0)
    n, n_points = len(coefs), basis.box_px * (basis.box_px // 2 + 1)
    counts = xp.asarray(np.where(basis.orders == 0, 1, 2).astype(np.float32))
    terms = xp.zeros((n, n_points), np.complex64)
    batch = xp.zeros((IMAGES_AT_ONCE, len(basis.orders)), np.complex64)
    for start in range(0, n, IMAGES_AT_ONCE):
        part = coefs[start : start + IMAGES_AT_ONCE]
        batch[: len(part)] = part * counts
        own_even, own_odd = batch[:, is_even], batch[:, ~is_even]
        real = xp.concatenate([own_even.real, own_even.imag], 1) @ even.T
        imag = xp.concatenate([own_odd.real, own_odd.imag], 1) @ odd.T
        values = (real + 1j * imag) * xp.conj(phases) / shares * np.float32(basis.box_px**2)
        terms[start : start + IMAGES_AT_ONCE, at] = values[: len(part)]
    return terms.reshape(n, basis.box_px, basis.box_px // 2 + 1)


def rotate(coefs: Any, basis: SteerableBasis, angle_deg: Any) -> Any:
    """Return the coefficients of images turned about pixel ``box_px // 2``.

    Parameters
    ----------
    coefs : complex array, shape (n, n_coefs)
        NumPy or CuPy.
    basis
        What they are coefficients of.
    angle_deg : float or array, shape (n,)
        Positive turns the x axis towards the y axis: as y points down, clockwise on a screen.

    Returns
    -------
    complex array, shape (n, n_coefs)
        Of the type of ``coefs``.

    Examples
    --------
    >>> basis = steerable_basis(16)
    >>> rotate(np.ones((1, 56), np.complex64), basis, 90.0)[0, basis.slices[1]][0].round(3)
    np.complex64(-1j)
    """
    xp = array_namespace(coefs)
    angles = xp.deg2rad(xp.asarray(angle_deg, np.float64)).reshape(-1, 1)
    return (coefs * xp.exp(-1j * angles * xp.asarray(basis.orders))).astype(coefs.dtype)


def mirror(coefs: Any) -> Any:
    """Return the coefficients of images mirrored top to bottom, about row ``box_px // 2``.

    Parameters
    ----------
    coefs : complex array, shape (n, n_coefs)
        NumPy or CuPy.

    Returns
    -------
    complex array, shape (n, n_coefs)

    Examples
    --------
    >>> mirror(np.array([[1 + 2j]]))
    array([[1.-2.j]])
    """
    return coefs.conj()


# --- Tables ---------------------------------------------------------------------------------------


def _place_points(basis: SteerableBasis) -> tuple[Integers, Doubles, Floats]:
    """Return where the points of the disc lie in a half plane, their (kx, ky), and their shares."""
    box = basis.box_px
    ky = np.fft.fftfreq(box)[:, None] + np.zeros(box // 2 + 1)
    kx = np.arange(box // 2 + 1) / box + np.zeros((box, 1))
    at = np.flatnonzero(kx**2 + ky**2 < basis.band**2)
    # Points at kx = 0 are there with their mates, the others without.
    shares = np.where(kx.flat[at] == 0, 1, 2).astype(np.float32)
    return at, np.stack([kx.flat[at], ky.flat[at]]), shares


@functools.lru_cache(maxsize=4)
def _make_tables(basis: SteerableBasis) -> tuple[Any, ...]:
    at, (kx, ky), shares = _place_points(basis)
    radius, angle = np.hypot(kx, ky), np.arctan2(ky, kx)
    phases = np.exp(2j * np.pi * (basis.box_px // 2) * (kx + ky)).astype(np.complex64)
    distinct, which = np.unique(radius, return_inverse=True)
    roots = _find_roots(2 * math.pi * basis.band * basis.radius_px)
    tables: dict[int, list[list[Doubles]]] = {0: [[], []], 1: [[], []]}
    for k, values in enumerate(_sample_functions(roots, distinct / basis.band, basis.band)):
        sign = (1, -1, -1, 1)[k % 4]
        own = sign * values[which] * shares[:, None] / basis.box_px**2
        tables[k % 2][0].append(own * np.cos(k * angle)[:, None])
        tables[k % 2][1].append(own * -np.sin(k * angle)[:, None])
    even, odd = (
        np.concatenate(tables[odd][0] + tables[odd][1], 1).astype(np.float32) for odd in (0, 1)
    )
    return at, phases, even, odd


def _place_tables(basis: SteerableBasis, xp: Any) -> tuple[Any, ...]:
    return tuple(xp.asarray(table) for table in _make_tables(basis))


def _order_columns(basis: SteerableBasis, xp: Any) -> Any:
    """Return where each coefficient stands among those of even, then of odd order."""
    return xp.asarray(np.argsort(np.argsort(basis.orders % 2, kind="stable"), kind="stable"))
