"""``emdask extract``: particles cut out of micrographs, from files to files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emdask.console import Stopwatch, count_text, follow_images, rate_text, say
from emdask.extractors import NAME, extract
from emdask.io import check_target, save_stack
from emdask.io.coordinates import open_picks
from emdask.jobs import (
    IMAGES_SHOWN,
    PREVIEW_SUFFIXES,
    Source,
    Workers,
    check_picture_path,
    reopen,
)

# There is no code for cards: cutting is reading.
DEVICES = ("cpu",)


def extract_files(
    source: Source,
    picks: str,
    out: str,
    *,
    parameters: Mapping[str, Any],
    flip_y: bool,
    workers: Workers,
    resume: bool,
    overwrite: bool,
    preview: Path | None = None,
) -> None:
    """Extract particles from files to files.

    Parameters
    ----------
    source
        The micrographs.
    picks
        Where the particles are, as of `emdask.open_picks`.
    out
        Target; its ending says the format.
    parameters
        Of `emdask.extract`.
    flip_y
        Whether y of the picks counts from the last row.
    workers
        Where the work runs.
    resume, overwrite
        As of `emdask.save_stack`.
    preview
        Picture of some particles, where asked for.
    """
    check_picture_path(preview, PREVIEW_SUFFIXES)
    stack = source.open()
    places = open_picks(picks, flip_y=flip_y, height_px=stack.shape[1] if flip_y else None)
    targets: dict[str, Any] = {"resume": resume, "overwrite": overwrite}
    # Before workers start: a wrong parameter or target is to be told at once.
    particles = extract(stack, places, **parameters)
    check_target(particles, out, **targets)
    n = len(particles)
    with workers.connect(DEVICES, DEVICES[0]) as client:
        watch = Stopwatch()
        with follow_images(NAME, n, client.dashboard_link, "particles") as on_progress:
            path = save_stack(particles, out, **targets, on_progress=on_progress)
    rate = rate_text(n, watch.seconds, "particles")
    say(f"{describe_particles(particles)} ({rate}) -> {path}")
    if n < len(places):
        left_out = f"{len(places) - n:,} of {count_text(len(places), 'pick')}"
        say(f"left out: {left_out}, too near to the edge of their micrograph")
    if preview is not None:
        save_particles(path, preview, f"{count_text(n, 'particle')} of {picks}")
        say(f"picture -> {preview}")


def describe_particles(particles: xr.DataArray) -> str:
    """Say how many particles there are, how large, and of how many micrographs.

    Examples
    --------
    >>> stack = xr.DataArray(np.zeros((2, 8, 8)), dims=("image", "y", "x"))
    >>> describe_particles(stack.assign_coords(micrograph=("image", ["a", "a"])))
    '2 particles of 8 x 8 pixels, from 1 micrograph'
    """
    n, h, w = particles.shape
    size_A = particles.attrs.get("pixel_size_A")
    size = f"{w} x {h} pixels" + (f" of {size_A:g} Å" if size_A else "")
    n_micrographs = len(np.unique(particles.micrograph.values))
    return f"{count_text(n, 'particle')} of {size}, from {count_text(n_micrographs, 'micrograph')}"


def save_particles(path: str | Path, picture: Path, title: str) -> None:
    """Draw particles from all over a stack into a file.

    Parameters
    ----------
    path
        The stack.
    picture
        The file.
    title
        Written above.
    """
    from emdask.plots import draw_images, save_figure

    stack = reopen(path)
    n_shown = min(len(stack), IMAGES_SHOWN)
    places = np.linspace(0, len(stack) - 1, n_shown).round().astype(int)
    pixel_size_A = stack.attrs.get("pixel_size_A")
    figure = draw_images(
        {"particles": stack[places].values}, pixel_size_A=pixel_size_A, title=title
    )
    save_figure(figure, picture)
