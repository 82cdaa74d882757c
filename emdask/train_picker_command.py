"""``emdask train-picker``: a network learns the particles of one's own micrographs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emdask.console import Stopwatch, count_text, follow_steps, say
from emdask.io.coordinates import open_picks
from emdask.io.weights import check_weights_target, save_weights
from emdask.jobs import Source, options_text, paths_text
from emdask.trainers import train_picker

NOTHING = "none"
# Of what the weights tell, what they were trained on.
LEARNT_FROM = ("micrographs", "labels")


def train_picker_files(
    source: Source,
    out: Path,
    *,
    picks: str | None,
    flip_y: bool,
    start: str,
    parameters: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Train a picker on micrographs, and keep its weights.

    Parameters
    ----------
    source
        The micrographs.
    out
        Target, ``.safetensors``.
    picks
        Labels, as of `emdask.open_picks`; None where there are none.
    flip_y
        Whether their y counts from the last row.
    start
        As of `emdask.train_picker`; "none" for random weights.
    parameters
        Others of `emdask.train_picker`.
    overwrite
        Whether an existing file gives way.
    """
    check_weights_target(out, overwrite=overwrite)
    stack = source.open()
    height_px = stack.shape[1] if flip_y else None
    labels = None if picks is None else open_picks(picks, flip_y=flip_y, height_px=height_px)
    watch = Stopwatch()
    with follow_steps() as on_progress:
        weights = train_picker(
            stack,
            labels,
            start=None if start == NOTHING else start,
            on_progress=on_progress,
            **parameters,
        )
    path = save_weights(weights, out, overwrite=overwrite)
    n_micrographs, n_labels = (int(weights.about[f"trained_n_{w}"]) for w in LEARNT_FROM)
    learnt = f"{count_text(n_labels, 'particle')} in {count_text(n_micrographs, 'micrograph')}"
    say(f"learnt from {learnt} ({watch.seconds:.3g} s) -> {path}")
    words = f"{propose_diameter(parameters)} --model {shlex.quote(str(path))}"
    say(f"Next: emdask pick {paths_text(source.paths)} picked {words}{options_text(source)}")


def propose_diameter(parameters: Mapping[str, Any]) -> str:
    """Return the option that tells the diameter.

    Examples
    --------
    >>> propose_diameter({"diameter_A": 120.0, "diameter_px": None})
    '--diameter-A 120'
    """
    if parameters["diameter_A"] is None:
        return f"--diameter-px {parameters['diameter_px']:g}"
    return f"--diameter-A {parameters['diameter_A']:g}"
