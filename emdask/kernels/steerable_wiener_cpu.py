"""Small symmetric systems of equations, one of each image, on one CPU core.

Eight images are solved side by side, each in its own lane, so that an image's bits do not depend on
those beside it, and matrices of any size fill the vectors.
"""

from __future__ import annotations

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

__all__ = ["multiply_pairs", "solve_systems"]

Floats = npt.NDArray[np.float32]


def multiply_pairs(rows: npt.NDArray[Any]) -> Floats:
    """Multiply each row with itself and with each row before it.

    Parameters
    ----------
    rows : array, shape (rank, n)

    Returns
    -------
    float32 array, shape (rank * (rank + 1) / 2, n)
        In the order of `numpy.tril_indices`.
    """
    rank, n = rows.shape
    products = np.empty((rank * (rank + 1) // 2, n), np.float32)
    _fill_products(np.ascontiguousarray(rows, np.float32), products)
    return products


def solve_systems(lower: Floats, which: npt.NDArray[np.intp], right: Floats) -> Floats:
    """Solve (1 + M) z = b for each image.

    Parameters
    ----------
    lower : float32 array, shape (rank * (rank + 1) / 2, m)
        Lower halves of m positive semidefinite matrices M, one a column, in the order of
        `numpy.tril_indices`.
    which : int array, shape (n,)
        Which of them is that of each image.
    right : float32 array, shape (n, 2, rank)
        Two right-hand sides b of each image.

    Returns
    -------
    float32 array, shape (n, 2, rank)
    """
    solutions = np.empty_like(right)
    _solve(lower, which.astype(np.int64), right, solutions)
    return solutions


@compiled
def _fill_products(rows: Floats, products: Floats) -> None:
    p = 0
    for i in range(len(rows)):
        for j in range(i + 1):
            for r in range(rows.shape[1]):
                products[p, r] = rows[i, r] * rows[j, r]
            p += 1


@compiled
def _solve(lower: Floats, which: npt.NDArray[np.int64], right: Floats, solutions: Floats) -> None:
    n, _, rank = right.shape
    # Of the rows of the factor, and of both right-hand sides, which lie below it as two more rows.
    starts = np.array([i * (i + 1) // 2 for i in range(rank + 1)] + [0])
    starts[rank + 1] = starts[rank] + rank
    lanes = np.empty((starts[rank + 1] + rank) * N_LANES, np.float32)
    inverses = np.empty(rank * N_LANES, np.float32)
    for first in range(0, n, N_LANES):
        for lane in range(N_LANES):
            image = min(first + lane, n - 1)
            for p in range(len(lower)):
                lanes[p * N_LANES + lane] = lower[p, which[image]]
            for part in range(2):
                for i in range(rank):
                    place = (starts[rank + part] + i) * N_LANES + lane
                    lanes[place] = right[image, part, i]
        _factor(lanes, starts, inverses, rank)
        for part in range(2):
            _substitute(lanes, starts, inverses, rank, starts[rank + part])
            for lane in range(min(N_LANES, n - first)):
                for i in range(rank):
                    place = (starts[rank + part] + i) * N_LANES + lane
                    solutions[first + lane, part, i] = lanes[place]


@compiled
def _factor(lanes: Floats, starts: Any, inverses: Floats, rank: int) -> None:
    """Turn 1 + M into its Cholesky factor, with inverses of the diagonal, and solve downwards."""
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
                # A pivot of 1 + M is 1 or more, but for rounding.
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
