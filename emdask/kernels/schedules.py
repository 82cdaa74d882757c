"""How the learning rate goes in the course of a training."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["fall", "rise_and_fall", "rise_and_stay"]

WARM_UP: Final = 0.1


def rise_and_fall(step: int, n_steps: int) -> float:
    """Share of the learning rate: a short rise, then half a cosine.

    Examples
    --------
    >>> [round(rise_and_fall(step, 100), 2) for step in (0, 9, 55, 99)]
    [0.09, 0.91, 0.5, 0.0]
    """
    rise = max(1.0, WARM_UP * n_steps)
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1.0, n_steps - rise))


def rise_and_stay(step: int, n_steps: int) -> float:
    """Share of the learning rate: a short rise, then as it is."""
    return min(1.0, (step + 1) / max(1.0, WARM_UP * n_steps))


def fall(step: int, n_steps: int) -> float:
    """Share of the learning rate: from where it stayed down to nothing."""
    return 1 - step / n_steps
