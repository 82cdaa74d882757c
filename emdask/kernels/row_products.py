"""Products of many rows with one matrix: the bits of a row do not depend on those beside it.

A library rounds otherwise for another number of rows, and on the CPU for another place among them.
There our own kernel is used; on a card, always as many rows are multiplied.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import numpy as np

from emdask.backend import array_namespace

__all__ = ["PackedMatrix", "move_matrix", "multiply_rows", "pack_matrix"]

# Matrices on the card, by the identity of those of the host.
_MOVED: dict[int, PackedMatrix] = {}
_MOVING = threading.Lock()
# Rows that fill a card.
ROWS_ON_CARD = 1 << 10


class PackedMatrix(NamedTuple):
    """A matrix as `multiply_rows` wants it.

    Parameters
    ----------
    n_columns
        Of the matrix.
    values
        Float32: panels of columns on the CPU, the matrix itself on a card.
    """

    n_columns: int
    values: Any


def pack_matrix(matrix: Any, xp: Any = np) -> PackedMatrix:
    """Prepare a matrix that many rows are multiplied with.

    Parameters
    ----------
    matrix : array, shape (m, f)
        Of NumPy, or of ``xp``.
    xp
        Array library of the rows, NumPy or CuPy.

    Returns
    -------
    PackedMatrix

    Examples
    --------
    >>> pack_matrix(np.ones((3, 2))).n_columns
    2
    """
    if xp is np:
        from emdask.kernels.row_products_cpu import pack_panels

        return PackedMatrix(matrix.shape[1], pack_panels(matrix))
    return PackedMatrix(matrix.shape[1], xp.asarray(matrix, np.float32))


def move_matrix(matrix: PackedMatrix, xp: Any) -> PackedMatrix:
    """Bring a matrix that was packed for the CPU to an array library: to a card once.

    There it stays for as long as the matrix itself does; a process works on one card.

    Parameters
    ----------
    matrix
        Of `pack_matrix` for NumPy.
    xp
        Array library of the rows, NumPy or CuPy.

    Returns
    -------
    PackedMatrix
        The very matrix for NumPy.

    Examples
    --------
    >>> matrix = pack_matrix(np.ones((3, 2)))
    >>> move_matrix(matrix, np) is matrix
    True
    """
    if xp is np:
        return matrix
    key = id(matrix.values)
    with _MOVING:
        if key not in _MOVED:
            panels = xp.asarray(matrix.values).transpose(1, 0, 2)
            values = panels.reshape(len(panels), -1)[:, : matrix.n_columns]
            moved = PackedMatrix(matrix.n_columns, xp.ascontiguousarray(values))
            # Other threads use it on streams of their own.
            xp.cuda.get_current_stream().synchronize()
            _MOVED[key] = moved
            weakref.finalize(matrix.values, _MOVED.pop, key, None)
        return _MOVED[key]


def multiply_rows(rows: Any, matrix: PackedMatrix) -> Any:
    """Multiply rows with a matrix.

    Parameters
    ----------
    rows : float32 array, shape (n, m)
        NumPy or CuPy.
    matrix : PackedMatrix, shape (m, f)
        As of `pack_matrix` for the library of the rows.

    Returns
    -------
    float32 array, shape (n, f)

    Examples
    --------
    >>> rows = np.arange(4, dtype=np.float32).reshape(2, 2)
    >>> multiply_rows(rows, pack_matrix(np.ones((2, 1))))
    array([[1.],
           [5.]], dtype=float32)
    """
    xp = array_namespace(rows)
    if xp is np:
        from emdask.kernels.row_products_cpu import multiply_panels

        products = multiply_panels(np.ascontiguousarray(rows), matrix.values)
        return products[:, : matrix.n_columns]
    products = xp.empty((len(rows), matrix.n_columns), np.float32)
    batch = xp.zeros((ROWS_ON_CARD, rows.shape[1]), np.float32)
    for start in range(0, len(rows), ROWS_ON_CARD):
        part = rows[start : start + ROWS_ON_CARD]
        batch[: len(part)] = part
        products[start : start + ROWS_ON_CARD] = (batch @ matrix.values)[: len(part)]
    return products
