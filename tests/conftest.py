"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import shutil
import subprocess
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


CARDS = ["cuda on host", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=["cpu", *CARDS])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn: "cpu", and "cuda" as `card` has it."""
    return "cpu" if request.param == "cpu" else use_card(request)


@pytest.fixture(params=CARDS)
def card(request: pytest.FixtureRequest) -> str:
    """The device "cuda": on the host, by a stand-in for CuPy, and where there is a card on that."""
    return use_card(request)


def use_card(request: pytest.FixtureRequest) -> str:
    """Prepare the device of a fixture's parameter; skip, with the reason, where there is none."""
    if request.param == "cuda on host":
        request.getfixturevalue("cuda_on_host").strict = True
    elif (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    return "cuda"


@pytest.fixture
def cuda_on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Card of a stand-in for CuPy that runs kernels on the host; see ``cupy_on_host.Card``."""
    from tests.cuda_host import cupy_on_host, host

    if (reason := host.why_no_compiler()) is not None:
        pytest.skip(reason)
    # A card transforms 4 million pixels at once, however few there are: half a second here.
    monkeypatch.setattr("emdask.kernels.scales.TRANSFORM_PIXELS", 1 << 12)
    monkeypatch.setattr("emdask.kernels.tight_frame.COEFFICIENTS_ON_CARD", 1 << 18)
    with cupy_on_host.installed(cupy_on_host.Card()) as card:
        yield card


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands run on the threads of the process."""
    from tests.command_line import local_threads

    monkeypatch.setattr("emdask.jobs.connect_quietly", local_threads)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded random numbers."""
    return np.random.default_rng(20261122)


# --- Where a card is, tests of it run -------------------------------------------------------------

GPU_RUNS = pytest.StashKey[dict[str, bool]]()


def visible_card() -> str:
    """Say how an NVIDIA card shows, be CuPy installed or not; "" where none does."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return ""
    if nodes := sorted(Path("/dev").glob("nvidia[0-9]*")):
        return str(nodes[0])
    if (command := shutil.which("nvidia-smi")) is None:
        return ""
    listed = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)
    cards = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return cards[0] if listed.returncode == 0 and cards else ""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[GPU_RUNS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus(report: Any, config: pytest.Config) -> Any:
    """Note of each test of the card whether it ran; also where pytest-xdist runs the tests."""
    if "gpu" in getattr(report, "keywords", ()):
        ran = config.stash[GPU_RUNS]
        ran[report.nodeid] = ran.get(report.nodeid, False) or (
            report.when == "call" and not report.skipped
        )
    return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a card shows and tests of it were selected, but every one of them was skipped."""
    ran = session.config.stash[GPU_RUNS]
    ok = session.exitstatus == pytest.ExitCode.OK
    if ok and ran and not any(ran.values()) and visible_card():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    ran = config.stash[GPU_RUNS]
    if ran and not any(ran.values()) and (card := visible_card()):
        terminalreporter.write_line(
            f"FAILED: a card is here ({card}), but all {len(ran)} gpu tests were skipped: "
            f"{why_no_cuda() or 'see the reasons above'}. Run `make gpu`, or hide the card with "
            "CUDA_VISIBLE_DEVICES=.",
            red=True,
        )
