"""What a call costs: CPU seconds and memory, measured in this process."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a call has cost.

    Parameters
    ----------
    cpu_s
        Seconds of CPU time, of all threads of the process together.
    peak_MB
        Most resident memory during the call above that before it, in MB (10^6 bytes); the result
        counts. NaN where the system cannot tell: see `why_no_peak`.
    """

    cpu_s: float
    peak_MB: float


def measure(call: Callable[[], Any]) -> tuple[Any, Cost]:
    """Call and measure.

    Freed memory is given back to the system before, so that the call cannot use it unseen. What
    a first call keeps for good, such as compiled code, counts too: call once before.

    Parameters
    ----------
    call
        Function without arguments.

    Returns
    -------
    result : object
        What the call returned.
    cost : Cost

    Examples
    --------
    >>> result, cost = measure(lambda: sum(range(100_000)))
    >>> result, cost.cpu_s > 0
    (4999950000, True)
    """
    _give_back_memory()
    before = _start_peak()
    start = time.process_time()
    result = call()
    cpu_s = time.process_time() - start
    return result, Cost(cpu_s=cpu_s, peak_MB=(_status_bytes("VmHWM") - before) / 1e6)


@contextmanager
def many_measurements() -> Iterator[None]:
    """Make each of many measurements quick: what lives now is not searched for garbage again.

    Examples
    --------
    >>> with many_measurements():
    ...     costs = [measure(list)[1] for _ in range(3)]
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def why_no_peak() -> str | None:
    """Say why the peak of memory cannot be measured here; None where it can.

    Examples
    --------
    >>> why_no_peak() is None or "memory" in why_no_peak()
    True
    """
    if not math.isnan(_start_peak()):
        return None
    return "the peak of a process's memory can be set back on Linux alone"


def _give_back_memory() -> None:
    """Free what nothing refers to, and let the system have what is free."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        return  # Another C library than that of most Linuxes: what is free stays with the process.


def _start_peak() -> float:
    """Let the peak start anew from the resident memory, which is returned in bytes."""
    try:
        RESET_PEAK.write_text("5")
    except OSError:
        return math.nan
    return _status_bytes("VmRSS")


def _status_bytes(name: str) -> float:
    """One line of the system's record of this process, in bytes; NaN where there is none."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return math.nan
    sizes = (float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    return next(sizes, math.nan)
