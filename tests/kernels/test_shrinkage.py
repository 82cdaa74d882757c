"""Shrinkage of eigenvalues: against covariances that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from emdask.kernels.shrinkage import shrink_frobenius, shrink_operator

VARIANCE = 2.0
# Over the noise; the last one is below what can be told from it.
SPIKES = np.array([60.0, 20.0, 6.0, 0.5])


def draw_spectrum(n: int, p: int, seed: int) -> tuple[Any, Any]:
    """Return the eigenvalues, ascending, and -vectors of the covariance of n samples."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(n, p)) * np.sqrt(VARIANCE)
    samples[:, : len(SPIKES)] += rng.normal(size=(n, len(SPIKES))) * np.sqrt(SPIKES)
    return np.linalg.eigh(samples.T @ samples / n)


@pytest.mark.parametrize(("n", "p"), [(800, 200), (200, 400)])
def test_eigenvalues_of_the_signal_are_found(n: int, p: int) -> None:
    found = np.mean(
        [shrink_operator(draw_spectrum(n, p, s)[0], VARIANCE, p / n)[:-5:-1] for s in range(10)],
        axis=0,
    )
    np.testing.assert_allclose(found[:2], SPIKES[:2], rtol=0.1)
    assert found[3] < 0.3


def test_frobenius_shrinkage_errs_least() -> None:
    n, p = 300, 150
    truth = np.zeros((p, p))
    truth[range(4), range(4)] = SPIKES

    def measure(shrink: Callable[..., Any]) -> float:
        total = 0.0
        for seed in range(5):
            values, vectors = draw_spectrum(n, p, seed)
            estimate = (vectors * shrink(values, VARIANCE, p / n)) @ vectors.T
            total += float(np.linalg.norm(estimate - truth) ** 2)
        return total

    def subtract_noise(values: Any, variance: float, ratio: float) -> Any:
        return np.maximum(values - variance, 0.0)

    def vary(factor: float) -> Callable[..., Any]:
        return lambda *args: factor * shrink_frobenius(*args)

    least = measure(shrink_frobenius)
    for other in (shrink_operator, subtract_noise, vary(0.85), vary(1.15)):
        assert least < measure(other)


@pytest.mark.parametrize("ratio", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("shrink", [shrink_frobenius, shrink_operator])
def test_shrinkage_keeps_order_and_adds_nothing(shrink: Callable[..., Any], ratio: float) -> None:
    values = np.linspace(0, 200, 4001)
    signal = shrink(values, VARIANCE, ratio)
    assert (np.diff(signal) >= 0).all()
    assert (signal >= 0).all()
    assert (signal <= np.maximum(values - VARIANCE, 0) + 1e-9).all()
    np.testing.assert_allclose(signal[-1], 200, rtol=0.06 * (1 + ratio))
    np.testing.assert_allclose(shrink(values, 0.0, ratio), values, atol=1e-12)
    edge = VARIANCE * (1 + ratio**0.5) ** 2
    assert (signal[values < edge] == 0).all()
    assert (signal[values > edge * 1.01] > 0).all()
