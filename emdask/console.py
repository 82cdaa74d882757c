"""What is said on a terminal: progress, one line at the end, tables."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from emdask.cluster import connect

# Lines of a table in a file or a pipe are not to be broken at 80 letters.
WIDTH_OF_FILES = 400
SPEED_PERIOD_S = 300.0
POLL_S = 0.5
# Of tasks that are not done, as Dask's scheduler names them.
OPEN_STATES = ("waiting", "no-worker", "queued", "processing", "erred")
# Stopping a worker that is at work is no reason for a warning, and an error in a task reaches the
# user as a sentence from this process.
DASK_LOGGING = {"distributed.nanny": "error", "distributed.worker": "critical"}
BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB")


class _Rate(ProgressColumn):
    """Images a second, or micrographs."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def render(self, task: Task) -> Text:
        """Return the rate of the last minutes, or of all where it is over."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {self.what}/s", style="cyan")


@contextmanager
def follow_images(
    verb: str, n_images: int, dashboard: str | None = None, what: str = "images"
) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr while images are done; nothing where stderr is no terminal.

    Parameters
    ----------
    verb
        What happens, as "bm3d".
    n_images
        Images in all.
    dashboard
        Address to be shown above the bar.
    what
        What the images are called, as "micrographs".

    Yields
    ------
    callable
        ``(images done, images in all) -> None``, the ``on_progress`` of `emdask.save_stack`.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda written, total: None
        return
    if dashboard:
        console.print(f"dashboard  [link={dashboard}]{dashboard}[/link]", soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + what),
        _Rate(what),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    with (
        _say_log_lines(console),
        Progress(*columns, console=console, speed_estimate_period=SPEED_PERIOD_S) as progress,
    ):
        task = progress.add_task(verb, total=n_images)

        def on_progress(written: int, total: int) -> None:
            progress.update(task, completed=written, total=total)

        yield on_progress


def compute_and_follow(dataset: Any, client: Any, verb: str, group: str, n_images: int) -> Any:
    """Compute a dataset of sums over images; a bar shows on stderr how many are added up.

    Parameters
    ----------
    dataset : xarray.Dataset
        Lazy.
    client : distributed.Client
        Whose workers compute.
    verb
        What happens, for the bar.
    group
        What the keys of the tasks that add images up begin with; each adds up about as many.
    n_images
        Images in all.

    Returns
    -------
    xarray.Dataset
        In memory.
    """
    if not Console(stderr=True).is_terminal:
        return dataset.compute()
    future = client.compute(dataset)
    with follow_images(verb, n_images, client.dashboard_link) as on_progress:
        while not future.done():
            share = client.run_on_scheduler(_share_counter(group))
            on_progress(round(share * n_images), n_images)
            time.sleep(POLL_S)
        if future.status == "finished":
            on_progress(n_images, n_images)
    return future.result()


def _share_counter(group: str) -> Callable[..., float]:
    """Return a function for the scheduler, which need not have this package."""

    def share(dask_scheduler: Any) -> float:
        found = [g for name, g in dask_scheduler.task_groups.items() if name.startswith(group)]
        n_tasks = sum(sum(g.states.values()) for g in found)
        n_open = sum(g.states[state] for g in found for state in OPEN_STATES)
        return 1 - n_open / n_tasks if n_tasks else 0.0

    return share


@contextmanager
def follow_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr while steps are taken; nothing where stderr is no terminal.

    Yields
    ------
    callable
        ``(what begins, steps done, steps in all) -> None``.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )
    with _say_log_lines(console), Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1)

        def on_step(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield on_step


def connect_quietly(target: str = "local", *, n_workers: int | None = None) -> Any:
    """Return `emdask.connect`'s client, whose workers say nothing when the user presses Ctrl-C.

    What the package logs on the workers, as that a first call compiles, is told here on a terminal.
    """
    # Through the environment, because the workers log in processes of their own.
    os.environ.setdefault("DASK_LOGGING", str(DASK_LOGGING))
    logging.getLogger("distributed.nanny").setLevel(logging.ERROR)
    with _hold_back_interrupts() as pressed:
        client = connect(target, n_workers=n_workers, quiet=True)
    if pressed:
        client.close()
        raise KeyboardInterrupt
    if not client.scheduler_info(n_workers=-1)["workers"]:
        address = client.scheduler.address
        text = f"{address} has no workers yet: waiting. Start some with: dask worker {address}"
        Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
    if Console(stderr=True).is_terminal:
        client.run(_log_all)
        client.forward_logging("emdask", level=logging.INFO)
    return client


def _log_all() -> None:
    """Let a worker's log have what is no warning."""
    logging.getLogger("emdask").setLevel(logging.INFO)


@contextmanager
def _hold_back_interrupts() -> Iterator[list[int]]:
    """Keep Ctrl-C from processes that are started meanwhile, for good, and from this one for now.

    The terminal sends the interrupt to every process. The workers inherit that it is blocked, and
    so leave it to this process to stop them.

    Yields
    ------
    list
        In the end, the interrupts that came.
    """
    pressed: list[int] = []
    # Where it must be started, this one takes the block away from the thread that starts a worker.
    resource_tracker.ensure_running()
    handler = signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield pressed
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _say_log_lines(console: Console) -> Iterator[None]:
    """Print what the package logs, as that a first call compiles, above the bar."""

    said: set[str] = set()

    class _Line(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Each worker says it; once is enough.
            if (text := record.getMessage()) not in said:
                said.add(text)
                console.print(text, style="dim", markup=False)

    logger = logging.getLogger("emdask")
    handler, level = _Line(logging.INFO), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def say(text: str = "") -> None:
    """Print one line to stdout, never broken."""
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def say_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None
) -> None:
    """Print a table to stdout.

    Parameters
    ----------
    header
        Names of the columns; empty for a table without a head.
    rows
        Cells, as many a row as names.
    title
        Printed above.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_OF_FILES)
    columns = header or [""] * len(rows[0])
    table = Table(
        *columns,
        title=title,
        box=None,
        title_justify="left",
        show_header=bool(header),
        pad_edge=False,
        padding=(0, 3, 0, 0),
    )
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._start


def count_text(n: int, what: str = "image") -> str:
    """Say a number of images, or of something else.

    Examples
    --------
    >>> count_text(1), count_text(2000), count_text(0, "particle")
    ('1 image', '2,000 images', '0 particles')
    """
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def rate_text(n_images: int, seconds: float, what: str = "images") -> str:
    """Say how long it took and how fast that was.

    Examples
    --------
    >>> rate_text(200, 12.5), rate_text(3, 1.5, "micrographs")
    ('12.5 s, 16 images/s', '1.5 s, 2 micrographs/s')
    """
    return f"{seconds:.3g} s, {n_images / max(seconds, 1e-9):.3g} {what}/s"


def bytes_text(n_bytes: float) -> str:
    """Say a number of bytes in units of 1000.

    Examples
    --------
    >>> bytes_text(65_537_024)
    '65.5 MB'
    """
    power = min(int(np.log10(max(n_bytes, 1)) // 3), len(BYTE_UNITS) - 1)
    return f"{n_bytes / 1000**power:.3g} {BYTE_UNITS[power]}"
