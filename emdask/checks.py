"""Parameter checks; one sentence form for every message: *what: rule; got value. remedy.*"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real

from emdask.errors import ParameterError

NOTHING = object()


def sentence(what: str, rule: str, got: object = NOTHING, remedy: str = "") -> str:
    """Compose one message of the form *what: rule; got value. remedy.*

    Examples
    --------
    >>> sentence("bm3d", "patch_px must lie in [4, 16]", 3)
    'bm3d: patch_px must lie in [4, 16]; got 3.'
    """
    message = f"{what}: {rule}" + ("" if got is NOTHING else f"; got {got!r}") + "."
    return f"{message} {remedy}" if remedy else message


def require(ok: bool, what: str, rule: str, got: object = NOTHING, remedy: str = "") -> None:
    """Raise `ParameterError` with the sentence unless ``ok``."""
    if not ok:
        raise ParameterError(sentence(what, rule, got, remedy))


def check_number(
    what: str, name: str, value: object, low: float = -math.inf, high: float = math.inf
) -> None:
    """Require a finite real number in ``[low, high]``."""
    ok = isinstance(value, Real) and not isinstance(value, bool)
    ok = ok and math.isfinite(float(value)) and low <= float(value) <= high  # type: ignore[arg-type]
    require(ok, what, f"{name} must be a number{_range(low, high)}", value)


def check_integer(
    what: str, name: str, value: object, low: float = -math.inf, high: float = math.inf
) -> None:
    """Require an integer in ``[low, high]``."""
    ok = isinstance(value, Integral) and not isinstance(value, bool)
    ok = ok and low <= int(value) <= high  # type: ignore[call-overload]
    require(ok, what, f"{name} must be an integer{_range(low, high)}", value)


def check_sigma(what: str, value: object) -> None:
    """Require a standard deviation of the noise: "auto" or a number of at least 0."""
    if value != "auto":
        ok = isinstance(value, Real) and not isinstance(value, bool)
        ok = ok and 0 <= float(value) < math.inf  # type: ignore[arg-type]
        require(ok, what, 'sigma must be "auto" or a number of at least 0', value)


def check_width(what: str, name: str, value: object) -> None:
    """Require a width of a kernel in px: "auto" or a number."""
    if value != "auto":
        ok = isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1000
        require(ok, what, f'{name} must be "auto" or a number in [0, 1000]', value)


def check_window(what: str, name: str, value: object, most: int, *, auto: bool = False) -> None:
    """Require the side of a window that has a middle: odd, or "auto" where that is a choice."""
    if value != "auto" or not auto:
        ok = isinstance(value, Integral) and not isinstance(value, bool)
        ok = ok and 1 <= int(value) <= most and int(value) % 2 == 1  # type: ignore[call-overload]
        word = '"auto" or ' if auto else ""
        require(ok, what, f"{name} must be {word}an odd integer in [1, {most}]", value)


def check_choice(what: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Require one of the words in ``choices``."""
    words = list(choices)
    require(value in words, what, f"{name} must be one of {', '.join(words)}", value)


def suggest(word: str, known: Iterable[str]) -> str:
    """Say what was probably meant, or list what there is.

    Examples
    --------
    >>> suggest("sigm", ["sigma", "profile"])
    'Did you mean sigma? Known: profile, sigma.'
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{hint}Known: {', '.join(names) or 'none'}."


def _range(low: float, high: float) -> str:
    if low == -math.inf and high == math.inf:
        return ""
    if high == math.inf:
        return f" of at least {low:g}"
    if low == -math.inf:
        return f" of at most {high:g}"
    return f" in [{low:g}, {high:g}]"
