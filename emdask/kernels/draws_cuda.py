"""Random numbers of the host for functions of the card, so that both devices draw the same."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["host_draws"]


def host_draws(seed: int) -> Any:
    """Return a generator of CuPy whose draws are those of NumPy's ``default_rng(seed)``.

    Parameters
    ----------
    seed
        Seed of NumPy's generator.

    Returns
    -------
    cupy.random.Generator
        Draws normal and gamma numbers on the host, and gives them as arrays of the card.
    """
    import cupy

    host = np.random.default_rng(seed)

    class HostDraws(cupy.random.Generator):  # type: ignore[misc]
        def __init__(self) -> None:
            """Take no source of random bits on the card."""

        def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Any:
            return cupy.asarray(host.standard_normal(size, dtype))

        def gamma(self, shape: Any, scale: Any = 1.0, size: Any = None) -> Any:
            return cupy.asarray(host.gamma(float(shape), float(scale), size))

    return HostDraws()
