"""The HTML report of a training: its curves, and what the network makes of some images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from emdask.metrics import psnr
from emdask.model_plots import draw_training
from emdask.plots import svg_text
from emdask.report import Section, Table, environment_text, picture_images, write_report

# Shown as a table of its own.
CURVE = "curve"
TRUTH = "the truth, which it learnt from"


def write_training(
    path: str | Path,
    about: Mapping[str, str],
    curve: pd.DataFrame,
    *,
    noisy: npt.NDArray[Any],
    denoised: npt.NDArray[Any],
    clean: npt.NDArray[Any] | None = None,
) -> Path:
    """Write the page of a training.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    about
        What the weights tell.
    curve
        A row for each epoch: ``epoch``, ``step``, ``learning_rate``, ``training_loss``,
        ``validation_loss``.
    noisy, denoised, clean : array, shape (n, h, w)
        Some images, what the network makes of them, and the truth where it is known.

    Returns
    -------
    pathlib.Path
    """
    errors = curve["validation_loss"].to_numpy(float)
    headline = [(str(len(curve)), "epochs"), (f"{int(curve['step'].iloc[-1]):,}", "steps")]
    if not np.isnan(errors).all():
        best = int(np.argmin(errors))
        headline += [(f"{errors[best]:.4g}", f"validation loss, of epoch {best + 1}")]
    if clean is not None:
        before, after = (float(np.mean(psnr(images, clean))) for images in (noisy, denoised))
        headline += [(f"{before:.2f} → {after:.2f} dB", "mean PSNR of the images below")]
    rows = [(name, str(value)) for name, value in about.items() if name != CURVE]
    sections = [
        Section(
            title="Images",
            text="Of the stack that it learnt from: how it does on others, compare tells.",
            pictures=picture_images(noisy, denoised, clean, truth=TRUTH),
        ),
        Section(
            title="Curves",
            text="The loss of images that it learns from, and of those that are held out. Where "
            "the latter rises while the former falls, it learns them by heart. Of unet and "
            "autoencoder, losses are natural logarithms of the squared error as a share of the "
            "signal, so -3 is a twentieth, and of gan of the absolute error; of noise2noise and "
            "noise2void they are variances in units of the noise, and hold that of what the result "
            "is compared with.",
            wide_drawing=svg_text(draw_training(curve)),
        ),
        Section(
            title="Epochs",
            table=Table(
                header=tuple(str(name).replace("_", " ") for name in curve),
                rows=[tuple(f"{value:.5g}" for value in row) for row in curve.to_numpy(float)],
                is_figures=True,
            ),
        ),
        Section(
            title="How it was trained",
            table=Table(header=("", ""), rows=rows),
            text=environment_text(),
        ),
    ]
    title = f"Training of {about.get('method', 'a network')}"
    return write_report(path, title=title, text="", headline=headline, sections=sections)
