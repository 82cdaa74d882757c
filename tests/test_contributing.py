"""The method of CONTRIBUTING.md works as it is printed there."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import emdask
from emdask.errors import ParameterError

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_printed_method_is_a_method(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert match is not None
    blur = ModuleType("blur")
    monkeypatch.setitem(sys.modules, "blur", blur)
    exec(compile(match.group(1), "CONTRIBUTING.md", "exec"), blur.__dict__)
    noisy = rng.normal(size=(2, 32, 32))
    lazy = emdask.denoise(noisy, blur.Blur(width_px=2))
    assert lazy.name.startswith("blur-")
    assert lazy.compute().std() < 0.2
    with pytest.raises(ParameterError, match="blur: width_px must be a number of at least 0"):
        blur.Blur(width_px=-1)
