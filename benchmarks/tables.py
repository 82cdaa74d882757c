"""Markdown tables and the description of the machine, for the benchmarks of this folder."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """Date, processor, cores, load and versions in one line."""
    model = platform.processor() or "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0].partition(":")[2].strip() if names else model
    versions = [f"{name} {version(name)}" for name in packages]
    cores = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    today = datetime.date.today().isoformat()
    return ", ".join([today, model, cores, f"Python {platform.python_version()}", *versions])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [_line(cells) for cells in (head, ["---"] * len(head), *rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def print_lines(lines: Sequence[str], out: Path | None, note: str | None = None) -> None:
    """Print everything, and a note at its end where there is one; put it into a file as well."""
    if note is not None:
        lines = [*lines, "", note]
    print("\n".join(lines))
    write_lines(lines, out)


def write_lines(lines: Sequence[str], out: Path | None) -> None:
    """Put everything that was printed into a file, if one was named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
