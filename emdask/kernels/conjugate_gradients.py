"""Conjugate gradients for symmetric linear equations whose matrix is a function.

Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", Journal of
Research of the National Bureau of Standards 49 (1952) 409-436.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["solve_equations"]

Doubles = npt.NDArray[np.float64]


def solve_equations(
    apply: Callable[[Doubles], Doubles],
    right: Doubles,
    precondition: Callable[[Doubles], Doubles],
    *,
    tolerance: float,
    most_steps: int,
) -> Doubles:
    """Solve apply(x) = right.

    Parameters
    ----------
    apply
        Linear, symmetric, without negative eigenvalues.
    right : float64 array, of any shape
        The right-hand side.
    precondition
        Nearly the inverse of `apply`: linear, symmetric, of positive eigenvalues.
    tolerance
        Least norm of the residual, in parts of that of `right`: the norm in which
        `precondition` is the metric.
    most_steps
        After as many it ends in any case.

    Returns
    -------
    float64 array, of the shape of `right`

    Examples
    --------
    >>> weights = np.array([1.0, 4.0])
    >>> solve_equations(
    ...     lambda x: weights * x, np.ones(2), lambda x: x, tolerance=1e-9, most_steps=9
    ... ).round(6)
    array([1.  , 0.25])
    """
    solution, residual = np.zeros_like(right), right.copy()
    steered = precondition(residual)
    direction, size = steered, np.vdot(residual, steered)
    small = tolerance**2 * size
    for _ in range(most_steps):
        if size <= small:
            break
        image = apply(direction)
        step = size / np.vdot(direction, image)
        solution = solution + step * direction
        residual = residual - step * image
        steered = precondition(residual)
        size, previous = np.vdot(residual, steered), size
        direction = steered + size / previous * direction
    return solution
