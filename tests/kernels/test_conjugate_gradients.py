"""Conjugate gradients against the equations solved directly."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels.conjugate_gradients import solve_equations

SIZE = 12


@pytest.fixture
def matrix() -> np.ndarray:
    factor = np.random.default_rng(0).normal(size=(SIZE, SIZE))
    scales = np.geomspace(1, 1e4, SIZE)
    return np.sqrt(np.multiply.outer(scales, scales)) * (factor @ factor.T + SIZE * np.eye(SIZE))


def test_equations_are_solved_in_any_shape(matrix: np.ndarray) -> None:
    right = np.random.default_rng(1).normal(size=(3, 4))
    found = solve_equations(
        lambda x: (matrix @ x.ravel()).reshape(3, 4),
        right,
        lambda x: x / np.diag(matrix).reshape(3, 4),
        tolerance=1e-10,
        most_steps=100,
    )
    np.testing.assert_allclose(found.ravel(), np.linalg.solve(matrix, right.ravel()), rtol=1e-7)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-6])
def test_the_residual_is_as_small_as_asked_for_and_no_smaller(
    matrix: np.ndarray, tolerance: float
) -> None:
    right = np.random.default_rng(2).normal(size=SIZE)
    scaling = np.diag(matrix)
    calls = []

    def apply(x: np.ndarray) -> np.ndarray:
        calls.append(x)
        return matrix @ x

    def solve(most_steps: int) -> float:
        found = solve_equations(
            apply, right, lambda x: x / scaling, tolerance=tolerance, most_steps=most_steps
        )
        rest = right - matrix @ found
        return float(np.sqrt((rest @ (rest / scaling)) / (right @ (right / scaling))))

    assert solve(100) <= tolerance
    n_steps = len(calls)
    assert n_steps < 2 * SIZE
    assert solve(n_steps - 1) > tolerance


def test_a_perfect_preconditioner_takes_one_step(matrix: np.ndarray) -> None:
    right = np.ones(SIZE)
    exact = np.linalg.solve(matrix, right)
    found = solve_equations(
        lambda x: matrix @ x,
        right,
        lambda x: np.linalg.solve(matrix, x),
        tolerance=1e-12,
        most_steps=1,
    )
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_nothing_is_solved_by_nothing() -> None:
    found = solve_equations(
        lambda x: x, np.zeros((2, 2)), lambda x: x, tolerance=1e-6, most_steps=5
    )
    np.testing.assert_array_equal(found, np.zeros((2, 2)))
