"""``emdask phase-flip``: images multiplied by the sign of their CTF, from files to files."""

from __future__ import annotations

from typing import Any

from emdask.console import Stopwatch, count_text, follow_images, rate_text, say
from emdask.ctf_correctors import FLIP, NAME, phase_flip
from emdask.io import check_target, save_stack
from emdask.jobs import Source, Workers


def phase_flip_files(
    source: Source,
    out: str,
    *,
    device: str | None,
    bad_pixels: str,
    workers: Workers,
    resume: bool,
    overwrite: bool,
) -> None:
    """Flip the phases of a stack from files to files.

    Parameters
    ----------
    source
        The files, with the defocus of each image.
    out
        Target; its ending says the format.
    device, bad_pixels
        As of `emdask.phase_flip`.
    workers
        Where the work runs.
    resume, overwrite
        As of `emdask.save_stack`.
    """
    stack = source.open()
    options: dict[str, Any] = {"device": device, "bad_pixels": bad_pixels}
    targets: dict[str, Any] = {"resume": resume, "overwrite": overwrite}
    # Before workers start: a stack without defocus or a wrong target is to be told at once.
    check_target(phase_flip(stack, **options), out, **targets)
    n_images = len(stack)
    with workers.connect(FLIP.apply, device) as client:
        watch = Stopwatch()
        flipped = phase_flip(stack, **options)
        with follow_images(NAME, n_images, client.dashboard_link) as on_progress:
            path = save_stack(flipped, out, **targets, on_progress=on_progress)
    say(f"{count_text(n_images)}, phases flipped ({rate_text(n_images, watch.seconds)}) -> {path}")
