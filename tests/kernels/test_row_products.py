"""Products of rows with a matrix: right, and each row's its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emdask.backend import why_no_cuda
from emdask.kernels import row_products
from emdask.kernels.row_products import move_matrix, multiply_rows, pack_matrix


def namespace(device: str) -> Any:
    if device == "cpu":
        return np
    import cupy

    return cupy


def back(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) and not hasattr(array, "get") else array.get()


def draw(n: int, m: int, n_columns: int) -> Any:
    rng = np.random.default_rng(n + m)
    return tuple(rng.normal(size=shape).astype("f4") for shape in ((n, m), (m, n_columns)))


# One, two and six rows at a time; a depth and more; a panel, and panels that are not full.
@pytest.mark.parametrize("n", [0, 1, 5, 13, 101])
@pytest.mark.parametrize(("m", "n_columns"), [(1, 1), (40, 16), (257, 33)])
def test_products_are_those_of_numpy(
    device: str, n: int, m: int, n_columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_products, "ROWS_ON_CARD", 8)
    xp = namespace(device)
    rows, matrix = draw(n, m, n_columns)
    products = multiply_rows(xp.asarray(rows), pack_matrix(matrix, xp))
    assert (products.dtype, products.shape) == (np.float32, (n, n_columns))
    expected = rows.astype("f8") @ matrix.astype("f8")
    np.testing.assert_allclose(back(products), expected, atol=1e-6 * m)


# The stand-in for a card multiplies by a BLAS of the CPU, for which this does not hold.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_row_does_not_depend_on_those_beside_it(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    monkeypatch.setattr(row_products, "ROWS_ON_CARD", 64)
    xp = namespace(device)
    for m, n_columns in ((402, 316), (300, 7)):
        rows, matrix = draw(131, m, n_columns)
        packed = pack_matrix(matrix, xp)
        products = back(multiply_rows(xp.asarray(rows), packed))
        for i in (0, 5, 6, 63, 64, 95, 100, 129, 130):
            alone = back(multiply_rows(xp.asarray(rows[i : i + 1]), packed))
            np.testing.assert_array_equal(alone[0], products[i])
        mixed = back(multiply_rows(xp.asarray(rows[::-1].copy()), packed))
        np.testing.assert_array_equal(mixed[::-1], products)


def test_a_moved_matrix_is_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_products, "_MOVED", {})
    matrix = np.random.default_rng(0).normal(size=(7, 37)).astype(np.float32)
    packed = pack_matrix(matrix)
    stream = SimpleNamespace(synchronize=lambda: None)
    other = SimpleNamespace(
        asarray=np.asarray,
        ascontiguousarray=np.ascontiguousarray,
        cuda=SimpleNamespace(get_current_stream=lambda: stream),
    )
    moved = move_matrix(packed, other)
    assert moved.n_columns == 37
    np.testing.assert_array_equal(moved.values, matrix)
    assert move_matrix(packed, np) is packed
    # Once, and until the matrix goes.
    assert move_matrix(packed, other) is moved
    assert len(row_products._MOVED) == 1
    del packed
    assert not row_products._MOVED
