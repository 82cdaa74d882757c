"""What a call costs."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from emdask.cost import many_measurements, measure, why_no_peak

needs_linux = pytest.mark.skipif(why_no_peak() is not None, reason=str(why_no_peak()))


def test_linux_tells_the_peak():
    assert (why_no_peak() is None) == (sys.platform == "linux")


@needs_linux
def test_peak_is_what_the_call_adds_for_a_moment():
    def call() -> float:
        return float(np.ones(4_000_000).sum())

    kept = np.ones(8_000_000)
    for _ in range(2):
        result, cost = measure(call)
        assert result == 4_000_000
        assert 30 < cost.peak_MB < 36
    assert kept[-1] == 1


@needs_linux
def test_memory_freed_before_is_not_used_unseen():
    scraps = [np.ones(1000) for _ in range(4000)]
    del scraps
    _, cost = measure(lambda: [np.ones(1000) for _ in range(4000)])
    assert 30 < cost.peak_MB < 40


def test_time_is_that_of_the_call():
    _, nothing = measure(lambda: None)
    _, much = measure(lambda: sum(range(3_000_000)))
    assert 0 <= nothing.cpu_s < much.cpu_s


def test_a_system_without_peaks_gives_nan_and_a_reason(monkeypatch):
    monkeypatch.setattr("emdask.cost.RESET_PEAK", Path("/nowhere/clear_refs"))
    monkeypatch.setattr("emdask.cost.STATUS", Path("/nowhere/status"))
    result, cost = measure(lambda: 3)
    assert result == 3
    assert math.isnan(cost.peak_MB)
    assert "Linux" in why_no_peak()


@pytest.mark.parametrize("error", [OSError, TypeError, AttributeError])
def test_a_system_whose_memory_cannot_be_given_back_is_measured_all_the_same(monkeypatch, error):
    def fail(name):
        raise error

    monkeypatch.setattr("emdask.cost.ctypes.CDLL", fail)
    result, cost = measure(lambda: 3)
    assert result == 3
    assert cost.cpu_s >= 0


def test_many_measurements_leave_the_collector_as_it_was():
    frozen = []

    def fail() -> None:
        with many_measurements():
            frozen.append(gc.get_freeze_count())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert frozen[0] > 0 == gc.get_freeze_count()
