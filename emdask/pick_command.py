"""``emdask pick``: micrographs to files of coordinates, and a page that shows them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
from rich.console import Console

from emdask.backend import check_device, resolve_device
from emdask.checks import require, sentence
from emdask.config import setting
from emdask.console import Stopwatch, count_text, follow_images, rate_text, say, say_table
from emdask.errors import EmdaskError
from emdask.io.coordinates import open_picks
from emdask.io.coordinates_output import check_picks_target, save_picks
from emdask.jobs import (
    Source,
    Workers,
    check_picture_path,
    options_text,
    paths_text,
)
from emdask.pickers import build_search, run_search
from emdask.picks import NAMES, pair_names
from emdask.placement import on_cards
from emdask.stack import micrograph_names

MICROGRAPHS = "micrographs"
NAMED_AT_MOST = 5
# Of the box that is proposed, in diameters: room for what the CTF spreads and for shifts.
BOX = 1.5


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where picks go.

    Parameters
    ----------
    path
        Target.
    format
        As of `emdask.save_picks`; None for what the path says.
    box_px
        Side of the boxes of ``.box`` files; None for one and a half diameters.
    overwrite
        Whether existing files give way.
    """

    path: str
    format: str | None = None
    box_px: int | None = None
    overwrite: bool = False


def pick_files(
    source: Source,
    output: Output,
    *,
    method: str,
    parameters: Mapping[str, Any],
    search: Mapping[str, Any],
    device: str | None,
    bad_pixels: str,
    workers: Workers,
    truth: str | None = None,
    flip_y: bool = False,
    report: Path | None = None,
) -> None:
    """Pick particles from files to files.

    Parameters
    ----------
    source
        The micrographs.
    output
        Where the picks go.
    method, parameters, device, bad_pixels
        As of `emdask.pick`.
    search
        Its parameters that all methods share.
    workers
        Where the work runs.
    truth
        Known particles to judge the picks by, where there are any.
    flip_y
        Whether their y counts from the last row.
    report
        HTML page, where asked for.
    """
    check_picture_path(report, (".html",))
    stack = source.open()
    rule = "picks are made in micrographs"
    remedy = "If these are micrographs, say so: --kind micrographs."
    kind = stack.attrs.get("kind", MICROGRAPHS)
    require(kind == MICROGRAPHS, "pick", rule, kind, remedy)
    names = [str(name) for name in micrograph_names(stack)]
    stack = stack.assign_coords(micrograph=("image", names))
    # Before workers start: a wrong parameter or file is to be told at once.
    looked_for = build_search(stack, method, **search, **parameters)
    table = run_search(stack, looked_for, device=device, bad_pixels=bad_pixels)
    box_px = output.box_px or propose_box(looked_for.diameter_px)
    target: dict[str, Any] = {"format": output.format, "overwrite": output.overwrite}
    target["box_px"] = box_px
    check_picks_target(output.path, names, **target)
    known = None if truth is None else open_known(truth, stack, flip_y=flip_y)
    supported = looked_for.record.score
    here = check_device(device, method, supported)
    if report is not None:
        # The page is made by this process, on the device that was named.
        here = resolve_device(here, supported)
    with workers.connect(supported, device) as client:
        watch = Stopwatch()
        with follow_images(method, len(names), client.dashboard_link, MICROGRAPHS) as on_progress:
            picks = compute_picks(table, client, device, on_progress, len(names))
        seconds = watch.seconds
    picks.attrs[NAMES] = tuple(names)
    path = save_picks(picks, output.path, **target)
    n_micrographs = count_text(len(names), "micrograph")
    say(f"{n_micrographs}, {method} ({rate_text(len(names), seconds, MICROGRAPHS)}) -> {path}")
    for line in describe_picks(picks, looked_for.threshold):
        say(line)
    if report is not None or known is not None:
        from emdask.pick_report import CAPTION, Picked, match_table, write_picks_page

        picked = Picked(
            micrographs=stack,
            picks=picks,
            search=looked_for,
            parameters=parameters,
            device=here,
            seconds=seconds,
            truth=known,
        )
        if known is not None:
            say()
            say_table(*match_table(picked.matches))
            say(CAPTION)
            say()
        if report is not None:
            say(f"report -> {write_picks_page(report, picked)}")
    if len(picks):
        say(f"Next: {propose_extraction(source, path, box_px)}")


def compute_picks(
    table: Any,
    client: Any,
    device: str | None,
    on_progress: Callable[[int, int], None],
    n_micrographs: int,
) -> pd.DataFrame:
    """Compute picks on the workers; a bar shows on stderr how many micrographs are done.

    Parameters
    ----------
    table : dask.dataframe.DataFrame
        What `emdask.pick` returned.
    client : distributed.Client
        Whose workers compute.
    device
        What the user asked for; None takes the setting.
    on_progress
        Called with (micrographs done, micrographs in all).
    n_micrographs
        Micrographs in all; each partition has about as many.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    EmdaskError
        If workers died of it.
    """
    from distributed import KilledWorker

    try:
        with on_cards(device or setting("device")):
            if not Console(stderr=True).is_terminal:
                found: pd.DataFrame = table.compute()
            else:
                follow = partial(_count_parts, on_progress, n_micrographs)
                found = _compute_parts(table.to_delayed(), client, follow)
    except KilledWorker as error:
        rule = "the worker processes that took it up died, again and again: most often for memory"
        remedy = "Give each worker more memory or take fewer workers (--workers)."
        raise EmdaskError(sentence("pick", rule, remedy=remedy)) from error
    return found.reset_index(drop=True)


def _count_parts(
    on_progress: Callable[[int, int], None], n_micrographs: int, n_done: int, n_parts: int
) -> None:
    on_progress(round(n_micrographs * n_done / n_parts), n_micrographs)


def _compute_parts(
    parts: Sequence[Any], client: Any, on_progress: Callable[[int, int], None]
) -> pd.DataFrame:
    from distributed import as_completed

    futures = client.compute(parts)
    try:
        for n_done, future in enumerate(as_completed(futures), start=1):
            if future.status != "finished":
                future.result()  # raises
            on_progress(n_done, len(futures))
        found: pd.DataFrame = pd.concat(client.gather(futures))
        return found
    finally:
        client.cancel(futures)


def open_known(
    path: str | Path, stack: xr.DataArray, *, flip_y: bool = False, what: str = "--truth"
) -> pd.DataFrame:
    """Open known particles of micrographs, and give them the names that the stack has.

    Parameters
    ----------
    path
        As of `emdask.open_picks`.
    stack : xarray.DataArray, dims (image, y, x)
        The micrographs.
    flip_y
        Whether y of the file counts from the last row.
    what
        Option that names the file, for the message.

    Returns
    -------
    pandas.DataFrame
        Its attribute ``micrographs`` has those of the stack that the file knows.

    Raises
    ------
    ParameterError
        If none of its micrographs is in the stack.
    """
    found = open_picks(path, flip_y=flip_y, height_px=stack.shape[1] if flip_y else None)
    names = [str(name) for name in micrograph_names(stack)]
    pairs = pair_names(found.attrs[NAMES], names)
    rule = f"none of the micrographs of {path} is among those given"
    examples = [*found.attrs[NAMES][:1], *names[:1]]
    require(len(pairs) > 0, what, rule, " and ".join(examples))
    own = found[found.micrograph.isin(list(pairs))].copy()
    own["micrograph"] = own.micrograph.map(pairs)
    own.attrs[NAMES] = tuple(pairs.values())
    return own.reset_index(drop=True)


def propose_box(diameter_px: float) -> int:
    """Return the side of a box for particles of a diameter, px: even, and half as much again.

    Examples
    --------
    >>> propose_box(100.0), propose_box(31.0)
    (150, 48)
    """
    return 2 * math.ceil(BOX * diameter_px / 2)


def describe_picks(picks: pd.DataFrame, threshold: float) -> Iterator[str]:
    """Say in a few lines what was found.

    Parameters
    ----------
    picks
        With the attribute ``micrographs``.
    threshold
        Least score of a pick.

    Yields
    ------
    str

    Examples
    --------
    >>> picks = pd.DataFrame({"micrograph": ["a.mrc", "a.mrc"]})
    >>> picks.attrs["micrographs"] = ("a.mrc", "b.mrc")
    >>> for line in describe_picks(picks, 3.0):
    ...     print(line)
    2 particles, 1 a micrograph (median; 0 to 2), with scores of 3 and more
    no particle in b.mrc
    """
    names = picks.attrs[NAMES]
    counts = picks.micrograph.value_counts().reindex(names, fill_value=0)
    what = f"with scores of {threshold:g} and more"
    if not len(picks):
        yield f"no particle {what}: are diameter and contrast right? Or try a lower --threshold."
        return
    spread = f"{counts.median():g} a micrograph (median; {counts.min():,} to {counts.max():,})"
    yield f"{count_text(len(picks), 'particle')}, {spread}, {what}"
    if empty := list(counts.index[counts == 0]):
        more = f" and {len(empty) - NAMED_AT_MOST:,} more" if len(empty) > NAMED_AT_MOST else ""
        yield f"no particle in {', '.join(empty[:NAMED_AT_MOST])}{more}"


def propose_extraction(source: Source, picks: Path, box_px: int) -> str:
    """Return the command that comes next.

    Examples
    --------
    >>> propose_extraction(Source(paths=["a.mrc"]), Path("picked"), 150)
    'emdask extract a.mrc picked particles.mrcs --box-px 150'
    """
    words = shlex.join([str(picks), "particles.mrcs", "--box-px", str(box_px)])
    return f"emdask extract {paths_text(source.paths)} {words}{options_text(source)}"
