"""``emdask compare``: the table on the terminal, and a folder with it, pictures and curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from emdask.checks import sentence
from emdask.comparison_report import (
    failures,
    over_images,
    shown_snr,
    text_table,
    three_digits,
    write_comparison,
    write_csv,
)
from emdask.comparisons import SNRS, compare
from emdask.console import Stopwatch, follow_steps, say, say_table
from emdask.errors import ParameterError
from emdask.report import claim_folder

MARK_TEXT = "Table and report of a comparison of denoisers, made by `emdask compare`.\n"


def compare_files(
    clean: str,
    *,
    snr: Sequence[str] | None,
    methods: Sequence[str] | None,
    n_images: int,
    data_range: float | None,
    seed: int,
    out: Path,
) -> None:
    """Compare denoisers, print the table, and write ``compare.csv`` and ``compare.html``.

    Parameters
    ----------
    clean, methods, n_images, data_range, seed
        As of `emdask.compare`.
    snr
        Numbers; None for the usual ones.
    out
        Folder to be written.

    Raises
    ------
    FileExistsError
        If the folder holds something that no comparison made; nothing is computed.
    """
    snrs = SNRS if snr is None else [_number(text) for text in snr]
    watch = Stopwatch()
    with follow_steps() as on_step:

        def on_progress(label: str, level: float, done: int, total: int) -> None:
            # Not before: what is wrong with the arguments is told by now.
            if done == 0:
                claim_folder(out, "comparison", MARK_TEXT)
            on_step(f"{label}, SNR {level:g}", done, total)

        table = compare(
            clean,
            snr=snrs,
            methods=methods,
            n_images=n_images,
            data_range=data_range,
            seed=seed,
            on_progress=on_progress,
        )
    _say_results(table)
    say(f"Table:                {write_csv(table, out / 'compare.csv')}")
    say(f"Pictures and curves:  {write_comparison(table, out / 'compare.html')}")
    say(f"Time:                 {watch.seconds:.0f} s in all")


def _say_results(table: xr.Dataset) -> None:
    """Print PSNR at each SNR, time and memory, and what failed."""
    means = over_images(table)
    header, rows = text_table(means, "psnr", "{:.2f}".format)
    at = means.sel(snr=[shown_snr(means)])
    times = text_table(at, "seconds_per_image", lambda seconds: three_digits(seconds * 1e3))[1]
    peaks = text_table(at, "peak_memory_MB", "{:.1f}".format)[1]
    cells = [(*row, time[1], peak[1]) for row, time, peak in zip(rows, times, peaks, strict=True)]
    say(f"PSNR in dB, mean over the images; time and memory at SNR {at.snr.item():g}")
    say_table((*header, "ms/image", "MB"), cells)
    for name, reason in failures(means):
        say(f"{name} failed: {reason}")
    say()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        remedy = "CLEAN goes before the options: emdask compare CLEAN --snr 0.4 0.1"
        raise ParameterError(sentence("--snr", "must be numbers", text, remedy)) from None
