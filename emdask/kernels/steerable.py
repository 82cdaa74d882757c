"""Steerable (Fourier-Bessel) expansion of images: turning an image shifts phases of coefficients.

Zhao, Shkolnisky and Singer, "Fast steerable principal component analysis", IEEE Transactions on
Computational Imaging 2 (2016) 1-12. There sums over the Fourier grid are evaluated by non-uniform
fast Fourier transforms; here they are short products of matrices, after folding by the symmetries
of the square (`emdask.kernels.square_orbits`). For boxes of N px and frequencies up to b of 0.5 an
image takes 0.18 N⁴ (2 b)⁴ operations, and the matrices, made at first use, 0.24 N⁴ (2 b)⁴ bytes
each way: 62 MB at 128 px.

How exact it is:

- `expand` is the adjoint of `evaluate`, and mirrors images, to single precision (1e-6). It turns
  them as exactly as they are band-limited and inside the disc: 1e-6 of the largest coefficient for
  Gaussians of 3 px within half the radius of 32 px, which also come back to 1e-6 of their peak.
- Functions are orthonormal in the plane, on the grid nearly so, because their tails leave the box.
  With half the box as radius, at 32 and 64 px, white coefficients that are evaluated and expanded
  come back with an error of 3 % (root mean square), white noise gives coefficients of its variance
  to 3 % at worst, and singular values of all products lie in [0.81, 1.23]; the worst functions are
  the last few of each order, which reach furthest. With 3/8 of the box: 0.5 %, 0.3 %, [0.96, 1.05].
- Of the products of functions of one order with a radial filter, `sample_filters` gives the mean
  over cosines and sines to 1e-4 of the largest.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev, legendre
from scipy import special

from emdask.backend import array_namespace
from emdask.checks import check_integer, check_number
from emdask.kernels.row_products import ROWS_ON_CARD, PackedMatrix, multiply_rows, pack_matrix
from emdask.kernels.square_orbits import (
    Folding,
    find_octant,
    find_quadrant,
    fold_imag,
    fold_real,
    unfold_imag,
    unfold_real,
)

__all__ = [
    "SteerableBasis",
    "combine",
    "evaluate",
    "expand",
    "mirror",
    "rotate",
    "sample_filters",
    "steerable_basis",
]

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# What is folded of so many images stays in a core's caches.
IMAGES_AT_ONCE = 48
# Tables that a process keeps: of two bases, both ways.
N_KEPT = 4
# Of the orders modulo 4: factors of the real part, or i times the imaginary part, of a transform;
# and signs of sin(k θ) at transposed points.
TURNS = np.array([1, -1, -1, 1])
TRANSPOSED = np.array([1, 1, 1, -1])
_MAKING = threading.Lock()


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
        Radial frequencies, cycles a pixel; the last is 0, for images whose mean is left out.
    radial
        For each order, float64 (n_r, n_q), the functions at the nodes times roots of quadrature
        weights: ``radial[k].T @ (h[:, None] * radial[k])`` is the filter h in the coefficients,
        with 0 for the last of h, or minus the filter at frequency 0 where the mean is left out.
    """

    box_px: int
    radius_px: float
    band: float
    orders: Integers = field(repr=False)
    slices: tuple[slice, ...] = field(repr=False)
    nodes: Doubles = field(repr=False)
    radial: tuple[Doubles, ...] = field(repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Three numbers, where these make it: once in a process."""
        own = (self.box_px, self.radius_px, self.band)
        if self is _find_basis(*own):
            return _find_basis, own
        return type(self), tuple(getattr(self, each.name) for each in fields(self))


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
    return _find_basis(int(box_px), float(radius_px), float(band))


def _find_basis(box_px: int, radius_px: float, band: float) -> SteerableBasis:
    # Threads wait for the one that makes it, or each would have another object.
    with _MAKING:
        return _make_basis(box_px, radius_px, band)


@functools.lru_cache(maxsize=16)
def _make_basis(box_px: int, radius_px: float, band: float) -> SteerableBasis:
    largest = 2 * math.pi * band * radius_px
    roots = _find_roots(largest)
    at, weights = _place_nodes(math.ceil(largest) + 10)
    radial = [
        values * np.sqrt(2 * np.pi * at * weights)[:, None] * band
        for values in _sample_functions(roots, at, band)
    ]
    # What the mean of an image tells: one point of its transform, which order 0 alone reaches.
    mean = _sample_functions(roots[:1], np.zeros(1), band)[0] / box_px
    radial = [
        np.concatenate([own, mean if k == 0 else np.zeros((1, own.shape[1]))])
        for k, own in enumerate(radial)
    ]
    return SteerableBasis(
        box_px=box_px,
        radius_px=radius_px,
        band=band,
        orders=np.repeat(np.arange(len(roots)), [len(own) for own in roots]),
        slices=_follow([len(own) for own in roots]),
        nodes=np.append(at * band, 0.0),
        radial=tuple(radial),
    )


@functools.lru_cache(maxsize=16)
def _place_nodes(n: int) -> tuple[Doubles, Doubles]:
    """Return the nodes and weights of Gauss-Legendre quadrature of [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(n)
    return (points + 1) / 2, weights / 2


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


def combine(basis: SteerableBasis, matrices: Sequence[Doubles]) -> SteerableBasis:
    """Return the functions that are linear combinations of those of a basis.

    What holds of a basis but that it is orthonormal holds of them: to expand in them is to multiply
    coefficients by the matrices, at the cost of so many functions as there are.

    Parameters
    ----------
    basis
        A basis.
    matrices
        For each order, float64 (n_q, m_q): in each column, the coefficients of a function.

    Returns
    -------
    SteerableBasis

    Examples
    --------
    >>> basis = steerable_basis(16)
    >>> first = combine(basis, [np.eye(own.shape[1])[:, :1] for own in basis.radial])
    >>> len(first.orders), first.slices[2]
    (16, slice(2, 3, None))
    """
    sizes = [matrix.shape[1] for matrix in matrices]
    return replace(
        basis,
        orders=np.repeat(np.arange(len(sizes)), sizes),
        slices=_follow(sizes),
        radial=tuple(own @ matrix for own, matrix in zip(basis.radial, matrices, strict=True)),
    )


def sample_filters(filters: Callable[[Doubles], Doubles], basis: SteerableBasis) -> Doubles:
    """Return radial filters at the nodes of a basis, as images whose mean is left out have them.

    An image knows a filter at the points of its own grid. Where the filter changes between rings
    of points, or its rings are wider than the box, as those of a CTF of much defocus are, sums over
    the grid are not the integrals that nodes stand for. So a value at a node is not that of the
    filter there, but what gives the sum over the grid: it may lie outside the filter's range.

    Parameters
    ----------
    filters
        Takes frequencies, cycles a pixel, (m,), and returns the values of filters, (n, m).
    basis
        Whose nodes are meant.

    Returns
    -------
    float64 array, shape (n, n_r)

    Examples
    --------
    >>> basis = steerable_basis(32)
    >>> h = sample_filters(lambda frequencies: np.exp(-9 * frequencies**2)[None], basis)[0]
    >>> matrix = basis.radial[3].T @ (h[:, None] * basis.radial[3])
    >>> matrix.shape, round(float(matrix[0, 0]), 3)
    ((13, 13), 0.379)
    """
    frequencies, shares = _weigh_rings(basis.box_px, basis.band, len(basis.nodes) - 1)
    values = np.asarray(filters(frequencies) @ shares)
    return np.concatenate([values, np.zeros((len(values), 1))], axis=1)


@functools.lru_cache(maxsize=16)
def _weigh_rings(box_px: int, band: float, n: int) -> tuple[Doubles, Doubles]:
    """Return the frequencies of the grid's rings but 0, (m,), and their shares of nodes, (m, n).

    The sum over rings, as a measure, is projected on polynomials of a degree below n; products of
    two functions are of no higher one, so that the quadrature gives their sums.
    """
    octant = find_octant(box_px, band)
    squares = (octant.points**2).sum(axis=1)
    rings, which = np.unique(squares, return_inverse=True)
    counts = np.bincount(which, 4 * octant.weights)[1:]
    frequencies = np.sqrt(rings[1:]) / box_px
    at, _ = _place_nodes(n)
    degrees = 2 * np.arange(n) + 1
    ours, theirs = (legendre.legvander(2 * place - 1, n - 1) for place in (at, frequencies / band))
    shares = (theirs * degrees) @ ours.T * counts[:, None]
    return frequencies, shares / (2 * np.pi * at * (band * box_px) ** 2)


def _follow(sizes: Sequence[int]) -> tuple[slice, ...]:
    """Slices of these sizes, one after the other."""
    ends = np.cumsum([0, *sizes]).tolist()
    return tuple(slice(start, end) for start, end in itertools.pairwise(ends))


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
    tables = _prepare(basis, xp, is_inverse=False)
    coefs = xp.empty((len(half_planes), len(basis.orders)), np.complex64)
    for some in _batches(len(coefs), xp):
        coefs[some] = _expand_some(half_planes[some], tables)
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
    tables = _prepare(basis, xp, is_inverse=True)
    half_planes = xp.empty((len(coefs), basis.box_px, basis.box_px // 2 + 1), np.complex64)
    for some in _batches(len(coefs), xp):
        half_planes[some] = _evaluate_some(coefs[some], tables).reshape(half_planes[some].shape)
    return half_planes


def _batches(n: int, xp: Any) -> Iterator[slice]:
    step = IMAGES_AT_ONCE if xp is np else ROWS_ON_CARD
    return (slice(start, start + step) for start in range(0, n, step))


def _expand_some(half_planes: Any, tables: _Tables) -> Any:
    xp = array_namespace(half_planes)
    n = len(half_planes)
    points = half_planes.reshape(n, -1)
    if tables.centring is not None:
        points = points * tables.centring
    parts = (*fold_real(points.real, tables.octant), fold_imag(points.imag, tables.quadrant))
    *even, odd = (multiply_rows(*pair) for pair in zip(parts, tables.matrices, strict=True))
    joined = xp.concatenate([*even, odd[:n], odd[n:], xp.zeros((n, 1), np.float32)], 1)
    return (xp.take(joined, tables.places, axis=1) * tables.signs).view(np.complex64)


def _evaluate_some(coefs: Any, tables: _Tables) -> Any:
    xp = array_namespace(coefs)
    values = xp.ascontiguousarray(coefs, np.complex64).view(np.float32)
    joined = xp.take(values, tables.places, axis=1) * tables.signs
    *even, real, imag = xp.split(joined, tables.ends, axis=1)
    rows = (*even, xp.concatenate([real, imag]))
    *parts, odd = (multiply_rows(*pair) for pair in zip(rows, tables.matrices, strict=True))
    points = xp.empty((len(coefs), tables.octant.sources.size), np.complex64)
    points.real = unfold_real(tuple(parts), tables.octant)
    points.imag = unfold_imag(odd, tables.quadrant)
    return points if tables.centring is None else points * tables.centring


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


class _Tables(NamedTuple):
    """What transforms and coefficients are multiplied with.

    The columns of coefficients are cos(k θ) for even k / 2, then odd, sin(k θ) for odd k / 2, then
    even, as `fold_real` has its parts; then real and imaginary parts for odd k. Matrices lead from
    parts of a folded transform to them, or back.

    Parameters
    ----------
    octant, quadrant
        How transforms are folded.
    matrices
        Five; the last is for both kinds of odd k.
    ends
        Where the kinds of columns end, but for the last.
    places, signs
        Where the coefficients, as pairs of real numbers, find their columns, the last but one of
        which is 0; or where the columns find them. And what they are then multiplied by.
    centring
        What moves pixel ``box_px // 2`` to pixel 0 or back, where signs alone do not.
    """

    octant: Folding
    quadrant: Folding
    matrices: tuple[PackedMatrix, ...]
    ends: list[int]
    places: Any
    signs: Any
    centring: Any


def _prepare(basis: SteerableBasis, xp: Any, *, is_inverse: bool) -> _Tables:
    # Threads wait for the one that makes them: they take memory and seconds.
    with _MAKING:
        return _make_tables(basis, is_inverse, xp, None if xp is np else xp.cuda.Device().id)


@functools.lru_cache(maxsize=N_KEPT)
def _make_tables(basis: SteerableBasis, is_inverse: bool, xp: Any, card: int | None) -> _Tables:
    octant, quadrant = (find(basis.box_px, basis.band) for find in (find_octant, find_quadrant))
    members = _sort_coefs(basis.orders)
    foldings = (*[octant] * 4, quadrant)
    sampled = (
        _sample_part(basis, folding, np.unique(basis.orders[own]), is_sine=part in (2, 3))
        for part, (folding, own) in enumerate(zip(foldings, members[:5], strict=True))
    )
    if is_inverse:
        matrices = tuple(pack_matrix(values.T, xp) for values in sampled)
    else:
        matrices = tuple(
            pack_matrix(values * folding.weights[:, None] / basis.box_px**2, xp)
            for values, folding in zip(sampled, foldings, strict=True)
        )
    places, signs = _place_columns(basis.orders, members)
    if is_inverse:
        columns = np.argsort(places, kind="stable")[: sum(map(len, members))]
        counts = np.repeat(np.where(basis.orders == 0, 1, 2), 2)
        places, signs = columns, (signs * counts)[columns]
    tables = _Tables(
        octant=octant.to(xp),
        quadrant=quadrant.to(xp),
        matrices=matrices,
        ends=np.cumsum([len(own) for own in members])[:-1].tolist(),
        places=xp.asarray(places),
        signs=xp.asarray(signs.astype(np.float32)),
        centring=_find_centring(basis.box_px, is_inverse, xp),
    )
    if card is not None:
        # Other threads use them on streams of their own.
        xp.cuda.get_current_stream().synchronize()
    return tables


def _sort_coefs(orders: Integers) -> list[Integers]:
    """Return the coefficients that have a column of each kind."""
    whole, half = orders % 4 == 0, orders % 4 == 2
    odd = orders % 2 == 1
    return [np.flatnonzero(kind) for kind in (whole, half, half, whole & (orders > 0), odd, odd)]


def _place_columns(orders: Integers, members: list[Integers]) -> tuple[Integers, Doubles]:
    """Return the column of each real and imaginary part, and its sign."""
    n_columns = sum(map(len, members))
    places = np.full((len(orders), 2), n_columns)
    starts = np.cumsum([0, *map(len, members)])
    for own, start, part in zip(members, starts, (0, 0, 1, 1, 0, 1), strict=False):
        places[own, part] = start + np.arange(len(own))
    # The transform of u(r) exp(i k φ) has a factor (-i)^k.
    signs = np.stack([TURNS[orders % 4], -TURNS[orders % 4] * TRANSPOSED[orders % 4]], 1)
    return places.reshape(-1), signs.reshape(-1)


def _sample_part(
    basis: SteerableBasis, folding: Folding, orders: Integers, *, is_sine: bool
) -> Doubles:
    """Return the functions of these orders at the points of a folding, one a column."""
    x, y = folding.points.T
    distinct, which = np.unique(np.hypot(x, y), return_inverse=True)
    at, weights = _place_nodes(len(basis.nodes) - 1)
    interpolation = _interpolate(at, weights, distinct / (basis.band * basis.box_px))
    interpolation /= np.sqrt(2 * np.pi * at * weights) * basis.band
    # In even boxes signs are all that moves the origin.
    signs = (-1.0) ** ((x + y) * (basis.box_px % 2 == 0))
    angle, turn = np.arctan2(y, x), np.sin if is_sine else np.cos
    sampled = [
        (interpolation @ basis.radial[k][:-1])[which] * (signs * turn(k * angle))[:, None]
        for k in orders
    ]
    return np.concatenate([np.empty((len(x), 0)), *sampled], axis=1)


def _interpolate(nodes: Doubles, weights: Doubles, at: Doubles) -> Doubles:
    """Return what polynomials at Gauss-Legendre nodes of [0, 1] are multiplied with for others.

    Barycentric: Wang and Xiang, Mathematics of Computation 81 (2012) 861, for these nodes.
    """
    factors = np.sqrt(nodes * (1 - nodes) * weights) * (-1.0) ** np.arange(len(nodes))
    distances = at[:, None] - nodes
    distances[distances == 0] = np.finfo(np.float64).tiny
    shares = factors / distances
    return np.asarray(shares / shares.sum(1, keepdims=True))


def _find_centring(box_px: int, is_inverse: bool, xp: Any) -> Any:
    if box_px % 2 == 0:
        return None
    steps = np.fft.fftfreq(box_px)[:, None] + np.arange(box_px // 2 + 1) / box_px
    phases = 2j * np.pi * (box_px // 2) * steps.reshape(-1)
    return xp.asarray(np.exp(-phases if is_inverse else phases).astype(np.complex64))
