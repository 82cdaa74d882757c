"""Small symmetric systems of equations for coefficients, of each image, on one CPU core.

Eight images are solved side by side, each in its own lane, so that an image's bits do not depend on
those beside it, and matrices of any size fill the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import (
    N_LANES,
    broadcast,
    compiled,
    load,
    maximum,
    multiply_add,
    store,
)
from emdask.kernels.row_products_cpu import PANEL, add_products, pack_panels

__all__ = ["solve_orders"]

Floats = npt.NDArray[np.float32]


def solve_orders(
    coefs: npt.NDArray[np.complex64],
    places: Sequence[slice],
    radial: Sequence[npt.NDArray[Any]],
    power: npt.NDArray[Any],
    which: npt.NDArray[np.intp],
) -> npt.NDArray[np.complex64]:
    """Solve (1 + G) z = t for the coefficients t of each order, G that of the image's CTF.

    Parameters
    ----------
    coefs : complex64 array, shape (n, n_coefs)
        In C order.
    places
        Of each order's coefficients.
    radial
        For each order, (n_r, n_q): the elements of G are sums of products of two columns, weighted
        by the squared CTF.
    power : array, shape (m, n_r)
        The squared CTFs that differ.
    which : int array, shape (n,)
        Which of them each image has.

    Returns
    -------
    complex64 array, shape (n, n_coefs)
    """
    solutions = coefs.copy()
    if coefs.size:
        _solve_orders(
            solutions.view(np.float32).reshape(*coefs.shape, 2),
            np.array([place.start for place in places]),
            np.array([own.shape[1] for own in radial]),
            np.concatenate([np.ravel(own.T) for own in radial]).astype(np.float32),
            pack_panels(power.T),
            which.astype(np.int64),
        )
    return solutions


@compiled
def _solve_orders(
    parts: Any, starts: Any, sizes: Any, rows: Floats, panels: Any, which: Any
) -> None:
    n_panels, n_nodes = panels.shape[:2]
    at = 0
    for start, size in zip(starts, sizes):  # noqa: B905
        samples = rows[at : at + size * n_nodes].reshape(size, n_nodes)
        at += size * n_nodes
        if size == 0:
            continue
        pairs = _multiply_pairs(samples)
        lower = np.zeros((len(pairs), n_panels * PANEL), np.float32)
        add_products(
            pairs.reshape(-1), panels.reshape(-1), len(pairs), n_nodes, n_panels, lower.reshape(-1)
        )
        _solve(lower, which, parts[:, start : start + size])


@compiled
def _multiply_pairs(rows: Floats) -> Floats:
    """Multiply each row with itself and with each row before it."""
    rank, n = rows.shape
    products = np.empty((rank * (rank + 1) // 2, n), np.float32)
    p = 0
    for i in range(rank):
        for j in range(i + 1):
            for r in range(n):
                products[p, r] = rows[i, r] * rows[j, r]
            p += 1
    return products


@compiled
def _solve(lower: Floats, which: Any, right: Any) -> None:
    """Solve (1 + G) z = t for both parts of each image, in place, G a column of lower halves."""
    n, rank, _ = right.shape
    # Of the rows of the factor, and of both right-hand sides, which lie below it as two more rows.
    starts = np.array([i * (i + 1) // 2 for i in range(rank + 1)] + [0])
    starts[rank + 1] = starts[rank] + rank
    lanes = np.empty((starts[rank + 1] + rank) * N_LANES, np.float32)
    inverses = np.empty(rank * N_LANES, np.float32)
    for first in range(0, n, N_LANES):
        for lane in range(N_LANES):
            image = min(first + lane, n - 1)
            for p in range(rank * (rank + 1) // 2):
                lanes[p * N_LANES + lane] = lower[p, which[image]]
            for part in range(2):
                for i in range(rank):
                    place = (starts[rank + part] + i) * N_LANES + lane
                    lanes[place] = right[image, i, part]
        _factor(lanes, starts, inverses, rank)
        for part in range(2):
            _substitute(lanes, starts, inverses, rank, starts[rank + part])
            for lane in range(min(N_LANES, n - first)):
                for i in range(rank):
                    place = (starts[rank + part] + i) * N_LANES + lane
                    right[first + lane, i, part] = lanes[place]


@compiled
def _factor(lanes: Floats, starts: Any, inverses: Floats, rank: int) -> None:
    """Turn 1 + G into its Cholesky factor, with inverses of the diagonal, and solve downwards."""
    one = broadcast(np.float32(1))
    zero = broadcast(np.float32(0))
    last = rank + 1
    for j in range(rank):
        row = starts[j] * N_LANES
        for i in range(j, rank + 2, 4):
            a = starts[i] * N_LANES
            b = starts[min(i + 1, last)] * N_LANES
            c = starts[min(i + 2, last)] * N_LANES
            d = starts[min(i + 3, last)] * N_LANES
            of_a, of_b, of_c, of_d = zero, zero, zero, zero
            for k in range(0, j * N_LANES, N_LANES):
                other = load(lanes, row + k)
                of_a = multiply_add(load(lanes, a + k), other, of_a)
                of_b = multiply_add(load(lanes, b + k), other, of_b)
                of_c = multiply_add(load(lanes, c + k), other, of_c)
                of_d = multiply_add(load(lanes, d + k), other, of_d)
            place = j * N_LANES
            of_a = load(lanes, a + place) - of_a
            of_b = load(lanes, b + place) - of_b
            of_c = load(lanes, c + place) - of_c
            of_d = load(lanes, d + place) - of_d
            if i == j:
                # A pivot of 1 + G is 1 or more, but for rounding.
                store(inverses, place, maximum(of_a + one, one))
                for lane in range(place, place + N_LANES):
                    inverses[lane] = 1 / np.sqrt(inverses[lane])
                of_a = one
            inverse = load(inverses, place)
            store(lanes, a + place, of_a * inverse)
            store(lanes, b + place, of_b * inverse)
            store(lanes, c + place, of_c * inverse)
            store(lanes, d + place, of_d * inverse)


@compiled
def _substitute(lanes: Floats, starts: Any, inverses: Floats, rank: int, at: int) -> None:
    """Solve upwards, in place."""
    zero = broadcast(np.float32(0))
    values = at * N_LANES
    for i in range(rank - 1, -1, -1):
        row = starts[i] * N_LANES
        place = i * N_LANES
        value = load(lanes, values + place) * load(inverses, place)
        store(lanes, values + place, value)
        minus = zero - value
        for k in range(0, place, N_LANES):
            store(
                lanes,
                values + k,
                multiply_add(load(lanes, row + k), minus, load(lanes, values + k)),
            )
