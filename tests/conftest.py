"""Fixtures that several test folders share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emdask.backend import why_no_cuda

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real data sets kept beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not here (../shared/data)")
    return SHARED


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn; "cuda" skips, with the reason, where there is no card."""
    if request.param == "cuda" and why_no_cuda() is not None:
        pytest.skip(f"no card: {why_no_cuda()}")
    return str(request.param)


@pytest.fixture
def cuda_on_host() -> Iterator[Any]:
    """Card of a stand-in for CuPy that runs kernels on the host; see ``cupy_on_host.Card``."""
    from tests.cuda_host import cupy_on_host, host

    if (reason := host.why_no_compiler()) is not None:
        pytest.skip(reason)
    with cupy_on_host.installed(cupy_on_host.Card()) as card:
        yield card


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20261122)
