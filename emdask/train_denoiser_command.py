"""``emdask train-denoiser``: a network learns to denoise one's own images."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emdask.checks import require
from emdask.console import Stopwatch, follow_steps, say
from emdask.denoiser_trainer import curve_of, train_denoiser
from emdask.denoisers import denoise
from emdask.io.output import remove_path
from emdask.io.weights import Weights, check_weights_target, save_weights
from emdask.jobs import Source, options_text, paths_text
from emdask.report import PARTICLES_SHOWN

CHECKPOINT_SUFFIX = ".checkpoint"


def train_denoiser_files(
    source: Source,
    out: Path,
    *,
    method: str,
    clean: str | None,
    pair: str | None,
    snr: str | None,
    patience: int,
    parameters: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
    report: Path | None,
) -> None:
    """Train a denoiser on files, and keep its weights.

    Parameters
    ----------
    source
        Noisy images, or clean ones where an SNR is given.
    out
        Target, ``.safetensors``; a checkpoint lies beside it until it is written.
    method
        The method.
    clean, pair
        Files of clean images, or of others of the same.
    snr
        "0.1", or "0.05:1"; None where images have noise.
    patience
        As of `emdask.train_denoiser`; 0 for None.
    parameters
        Others of `emdask.train_denoiser`.
    resume
        Whether to go on from the checkpoint.
    overwrite
        Whether an existing file gives way.
    report
        HTML page, where asked for.
    """
    check_weights_target(out, overwrite=overwrite)
    stack = source.open()
    ratios = None if snr is None else parse_range(snr)
    rule = "IMAGES are the clean ones where --snr is given"
    require(snr is None or clean is None, "--clean", rule, clean, "Leave out one of the two.")
    known = None if clean is None else _open_like(clean, source)
    others = None if pair is None else _open_like(pair, source)
    checkpoint = out.with_name(out.name + CHECKPOINT_SUFFIX + out.suffix)
    watch = Stopwatch()
    with follow_steps() as on_progress:
        weights = train_denoiser(
            None if snr is not None else stack,
            stack if snr is not None else known,
            pair=others,
            method=method,
            snr=ratios,
            patience=patience or None,
            checkpoint=checkpoint,
            resume=resume,
            on_progress=on_progress,
            **parameters,
        )
    path = save_weights(weights, out, overwrite=overwrite)
    remove_path(checkpoint)
    say(f"{method}, {describe_curve(weights)} ({watch.seconds:.3g} s) -> {path}")
    if report is not None:
        shown = stack[:PARTICLES_SHOWN]
        truth = shown if snr is not None else (None if known is None else known[:PARTICLES_SHOWN])
        noisy = shown if ratios is None else add_noise(shown, float(np.sqrt(np.prod(ratios))))
        write_page(report, weights, noisy, truth)
        say(f"report -> {report}")
    noisy_paths = "NOISY" if snr is not None else paths_text(source.paths)
    command = f"emdask denoise {noisy_paths} denoised.zarr --method {method}"
    options = "" if snr is not None else options_text(source)
    say(f"Next: {command} --model {shlex.quote(str(path))}{options}")


def _open_like(path: str, source: Source) -> xr.DataArray:
    """Open images that belong to others, by the same options."""
    return replace(source, paths=[path]).open()


def parse_range(text: str) -> tuple[float, float]:
    """Turn "0.1" or "0.05:1" into the least and the largest.

    Examples
    --------
    >>> parse_range("0.1"), parse_range("0.05:1")
    ((0.1, 0.1), (0.05, 1.0))
    """
    try:
        values = [float(word) for word in text.split(":")]
    except ValueError:
        values = []
    require(len(values) in (1, 2), "--snr", "snr must be a number or LOW:HIGH, as 0.05:1", text)
    return values[0], values[-1]


def describe_curve(weights: Weights) -> str:
    """Say how a training went.

    Examples
    --------
    >>> told = '[{"epoch": 1, "validation_loss": -1.0}, {"epoch": 2, "validation_loss": -2.5}]'
    >>> describe_curve(Weights({}, {"curve": told}))
    '2 epochs, the best of them 2 with validation loss -2.5'
    """
    curve = curve_of(weights)
    errors = curve["validation_loss"].to_numpy(float)
    n_epochs = f"{len(curve)} epoch{'s' * (len(curve) != 1)}"
    if np.isnan(errors).all():
        return f"{n_epochs}, none held out"
    best = int(np.argmin(errors))
    return f"{n_epochs}, the best of them {best + 1} with validation loss {errors[best]:.4g}"


def add_noise(clean: xr.DataArray, snr: float) -> xr.DataArray:
    """Add white noise to a few clean images, at a ratio of signal to noise; at once."""
    images = clean.values.astype(np.float32)
    deviations = images.std(axis=(1, 2), keepdims=True) / np.sqrt(snr)
    noise = np.random.default_rng(0).standard_normal(images.shape, np.float32)
    return clean.copy(data=images + deviations * noise)


def write_page(
    report: Path, weights: Weights, noisy: xr.DataArray, clean: xr.DataArray | None
) -> None:
    """Write the page of a training."""
    from emdask.training_report import write_training

    method = weights.about["method"]
    denoised = denoise(noisy, method, model=weights, device="cpu")
    write_training(
        report,
        weights.about,
        curve_of(weights),
        noisy=noisy.values,
        denoised=denoised.values,
        clean=None if clean is None else clean.values,
    )
