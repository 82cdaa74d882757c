"""One micrograph from its file to coordinates in a process of its own, for ``pick.py``.

    python benchmarks/pick_once.py MICROGRAPH.mrc PICKS.star METHOD DIAMETER_PX

Prints the CPU seconds and the most MB of each part as JSON. What a part calls of another counts
there alone. Nothing but the standard library is loaded before the clock of imports starts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# What is loaded for every method, and for one.
MODULES = (
    *("emdask.io", "emdask.pickers", "dask.dataframe", "distributed"),
    *("scipy.ndimage", "scipy.spatial"),
)
OF_METHOD = {"cnn": ("emdask.pickers.cnn", "emdask.kernels.scoring_network")}
# Parts by the name that `emdask.pickers` calls them by.
PARTS = {
    "standardise": "standardise",
    "run_on": "score",
    "clean_scores": "clean and filter",
    "filter_peaks": "clean and filter",
}


class Parts:
    """CPU seconds and the most MB of parts that may call each other."""

    def __init__(self) -> None:
        self.cpu_s: dict[str, float] = defaultdict(float)
        self.memory_MB: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.start = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs within for a part, and no longer for the one around it."""
        self._settle()
        self.running.append(name)
        yield
        self._settle()
        self.running.pop()

    def _settle(self) -> None:
        now = time.process_time()
        for name in self.running[-1:]:
            self.cpu_s[name] += now - self.start
            self.memory_MB[name] = max(self.memory_MB[name], peak_memory())
        self.start = now


def main() -> None:
    """Pick, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("method")
    parser.add_argument("diameter_px", type=float)
    options = parser.parse_args()
    parts = Parts()
    with parts.part("import"):
        for module in (*MODULES, *OF_METHOD.get(options.method, ())):
            importlib.import_module(module)
    # The start of Python itself belongs to it.
    parts.cpu_s["import"] = time.process_time()
    pick_file(options, parts)
    print(json.dumps({"cpu_s": parts.cpu_s, "memory_MB": parts.memory_MB}))


def pick_file(options: argparse.Namespace, parts: Parts) -> None:
    """Do what a user would, with clocks."""
    import emdask
    import emdask.pickers as home

    for function, name in PARTS.items():
        setattr(home, function, clocked(getattr(home, function), name, parts))
    with parts.part("open, load weights"):
        stack = emdask.open_stack(options.source)
        table = emdask.pick(stack, options.method, diameter_px=options.diameter_px)
    with parts.part("read and all else"):
        picks = table.compute(scheduler="synchronous")
    with parts.part("write"):
        emdask.save_picks(picks, options.target)


def clocked(function: Callable[..., Any], name: str, parts: Parts) -> Callable[..., Any]:
    """Count a function for a part."""

    def run(*args: Any, **named: Any) -> Any:
        with parts.part(name):
            return function(*args, **named)

    return run


def peak_memory() -> float:
    """MB that this process held at most since it was last asked, where the kernel lets it reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return held


if __name__ == "__main__":
    main()
