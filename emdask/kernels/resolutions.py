"""Resolutions in Å as parameters, and the pixel size that they need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from emdask.checks import require, sentence
from emdask.errors import StackError

__all__ = [
    "check_pixel_size",
    "check_resolution",
    "crossing",
    "known_pixel_size",
    "to_frequency",
]


def check_resolution(what: str, name: str, value: object) -> None:
    """Require "auto" or a length in Å."""
    rule = f'{name} must be "auto" or a number above 0'
    require(value == "auto" or _is_length(value), what, rule, value)


def check_pixel_size(what: str, value: object) -> None:
    """Require None or a length in Å."""
    ok = value is None or _is_length(value)
    require(ok, what, "pixel_size_A must be None or a number above 0", value)


def _is_length(value: object) -> bool:
    ok = isinstance(value, Real) and not isinstance(value, bool)
    return ok and 0 < float(value) < math.inf  # type: ignore[arg-type]


def known_pixel_size(
    what: str, given_A: float | None, attrs: Mapping[str, Any], resolutions: Mapping[str, Any]
) -> float | None:
    """Return the pixel size: as given, or the stack's.

    Parameters
    ----------
    what
        Name of the method, for the message.
    given_A
        What the user gave, or None.
    attrs
        Attributes of the stack.
    resolutions
        Parameters by name: "auto", or in Å.

    Returns
    -------
    float or None
        In Å; None where nobody knows it and no resolution needs it.

    Raises
    ------
    StackError
        If a resolution in Å needs it.
    ParameterError
        If a resolution is finer than two pixels.

    Examples
    --------
    >>> known_pixel_size("lowpass", None, {"pixel_size_A": 2.0}, {"cutoff_A": 20})
    2.0
    """
    pixel_size_A = attrs.get("pixel_size_A") if given_A is None else given_A
    for name, value in resolutions.items():
        if value == "auto":
            continue
        if pixel_size_A is None:
            rule = f"{name} is in Å, and the pixel size of the stack is not known"
            raise StackError(sentence(what, rule, remedy="Pass pixel_size_A=..."))
        rule = f"{name} must be at least two pixels, {2 * pixel_size_A:g} Å"
        require(value >= 2 * pixel_size_A, what, rule, value)
    return pixel_size_A


def to_frequency(resolution_A: Any, pixel_size_A: float | None) -> Any:
    """Return cycles a pixel of a resolution in Å; "auto" stays.

    Examples
    --------
    >>> to_frequency(20.0, 2.0)
    0.1
    """
    return "auto" if resolution_A == "auto" else float(pixel_size_A or 0) / float(resolution_A)


def crossing(frequency: Any, correlation: Any, threshold: float) -> Any:
    """Return the frequency at which a correlation first falls below a threshold.

    Parameters
    ----------
    frequency : array, shape (r,)
        Of the rings or shells, ascending.
    correlation : array, shape (..., r)
        Of each.
    threshold
        As 0.5.

    Returns
    -------
    float64 array, shape (...)
        Interpolated; 0 where the first ring is below, the last frequency where none is.

    Examples
    --------
    >>> float(crossing(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.75, 0.25]), 0.5))
    0.25
    """
    below = correlation < threshold
    ring = np.where(below.any(axis=-1), below.argmax(axis=-1), len(frequency) - 1)
    before = np.maximum(ring - 1, 0)
    high, low = (np.take_along_axis(correlation, i[..., None], -1)[..., 0] for i in (before, ring))
    fall = np.where(high > low, high - low, 1.0)
    share = np.clip((high - threshold) / fall, 0.0, 1.0)
    found = frequency[before] + share * (frequency[ring] - frequency[before])
    found = np.where(below.any(axis=-1), found, frequency[-1])
    return np.where(below[..., 0], 0.0, found)
