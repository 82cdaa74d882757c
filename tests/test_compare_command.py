"""``emdask compare`` hands on what it is told."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emdask.cli import app
from emdask.comparisons import compare


def rows_of(out: Path, *words: str) -> list[dict[str, str]]:
    options = ["--snr", "0.4", "--methods", "gaussian", "--n-images", "1", "--out", str(out)]
    result = CliRunner().invoke(app, ["compare", "simulate", *options, *words])
    assert result.exit_code == 0, result.output
    with (out / "compare.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_data_range_is_that_of_the_table_and_the_page(tmp_path):
    rows = rows_of(tmp_path, "--data-range", "7")
    table = compare("simulate", snr=0.4, methods=["gaussian"], n_images=1, data_range=7.0)
    for row in rows:
        expected = float(table.psnr.sel(denoiser=row["method"]).mean())
        assert float(row["PSNR_dB"]) == pytest.approx(expected, rel=1e-5)
        assert expected == pytest.approx(10 * np.log10(49 / float(row["MSE"])), rel=1e-4)
    assert "data range: 7.0" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_a_data_range_that_is_none_is_refused_before_a_folder_is_made(tmp_path):
    words = ["compare", "simulate", "--data-range", "0", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "compare: data_range must be a number above 0; got 0.0." in result.stderr
    assert not (tmp_path / "new").exists()
