"""Every parameter message has one form and says what to do."""

from __future__ import annotations

import numpy as np
import pytest

from emdask import checks, errors
from emdask.errors import EmdaskError, ParameterError


@pytest.mark.parametrize("value", [3, 17, 4.0, "4", None, True])
def test_integers(value: object) -> None:
    with pytest.raises(
        ParameterError, match=r"^bm3d: block_px must be an integer in \[4, 16\]; got"
    ):
        checks.check_integer("bm3d", "block_px", value, 4, 16)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "1", None, False])
def test_numbers(value: object) -> None:
    with pytest.raises(ParameterError, match=r"^bm3d: sigma must be a number of at least 0; got"):
        checks.check_number("bm3d", "sigma", value, 0)


@pytest.mark.parametrize("value", [4, np.int64(5), 16])
def test_good_integers_pass(value: int) -> None:
    checks.check_integer("bm3d", "block_px", value, 4, 16)


def test_numpy_numbers_pass() -> None:
    checks.check_number("bm3d", "sigma", np.float32(1.5), 0)


def test_choices() -> None:
    with pytest.raises(ParameterError, match="profile must be one of a, b; got 'c'"):
        checks.check_choice("bm3d", "profile", "c", ["a", "b"])


def test_the_tree_is_as_drawn() -> None:
    drawn = errors.__doc__ or ""
    for error in EmdaskError.__subclasses__():
        builtin = error.__mro__[2]
        assert f"{error.__name__}" in drawn
        assert f"({builtin.__name__})" in drawn.split(error.__name__, 1)[1].splitlines()[0]
