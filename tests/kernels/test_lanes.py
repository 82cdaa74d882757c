"""Explicit vectors of compiled code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import N_LANES, broadcast, compiled, load, multiply_add, store


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
