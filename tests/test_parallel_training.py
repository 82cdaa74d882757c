"""Processes that train together: what they return, and how they end."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("torch")

from emdask.parallel_training import run_processes


def abort_late(
    plan: int, rank: int, n_processes: int, device: str, on_progress: Callable[..., None]
) -> Any:
    """As threads of PyTorch do now and then that are still there when the interpreter ends."""
    atexit.register(os.abort)
    on_progress("step", rank + 1, n_processes)
    return plan, rank, n_processes, device


def test_what_is_done_counts_whatever_the_end_of_a_process_brings() -> None:
    told: list[tuple[str, int, int]] = []
    found = run_processes(
        abort_late, 7, n_processes=2, device="cpu", on_progress=lambda *what: told.append(what)
    )
    assert found == (7, 0, 2, "cpu")
    assert told == [("step", 1, 2)]
