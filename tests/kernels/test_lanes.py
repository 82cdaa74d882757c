"""Explicit vectors of compiled code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import (
    N_LANES,
    broadcast,
    compiled,
    load,
    multiply_add,
    pair_totals,
    prefetch,
    store,
)


@compiled
def multiply_subtract(values: npt.NDArray[np.float32], subtrahend: float) -> None:
    """Square values in place, less a number."""
    value = load(values, 0)
    store(values, 0, multiply_add(value, value, broadcast(np.float32(-subtrahend))))


def test_multiply_add_rounds_once() -> None:
    """The square of 1 + 2^-12 has a last digit that float32 cannot hold."""
    values = np.full(N_LANES, 1 + 2**-12, np.float32)
    assert (values * values == 1 + 2**-11).all()
    multiply_subtract(values, np.float32(1 + 2**-11))
    assert (values == 2**-24).all()


@compiled
def add_pairs(values: npt.NDArray[np.float32], ahead: int) -> complex:
    """Add up four complex numbers, after asking for memory that need not be there."""
    prefetch(values, ahead)
    return complex(pair_totals(load(values, 0)))


def test_pairs_are_added_up_as_complex_numbers() -> None:
    values = np.arange(N_LANES, dtype=np.float32)
    assert add_pairs(values, 10**9) == 12 + 16j
