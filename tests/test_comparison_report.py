"""The table and the page of a comparison say what was measured, and nothing else."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import xarray as xr

from emdask.comparison_report import (
    failures,
    over_images,
    shown_snr,
    text_table,
    write_comparison,
    write_csv,
)
from emdask.comparisons import compare

SNRS = [0.5, 0.1]
BEST, WORST, LEARNS = "bm3d", "bm3d:threshold=9", "learns"


@pytest.fixture(scope="module")
def table() -> xr.Dataset:
    """Two methods of images of discs; a third, which failed at one SNR, is made up."""
    y, x = np.mgrid[:32, :32]
    clean = np.stack([np.hypot(y - c, x - 16) < 7 for c in (14, 18)]).astype("f4")
    table = compare(clean, snr=SNRS, methods=[WORST, BEST])
    third = table.sel(denoiser=[BEST]).assign_coords(denoiser=[LEARNS]).copy(deep=True)
    third["learning_seconds"] += 1.5
    third["parameters"][:] = [["a = 1", "a = 2"]]
    third["why_not"] = third.why_not.astype("<U20").copy(data=[["", "too <dark>"]])
    for name in ("mse", "psnr", "ssim", "frc", "picture", "seconds_per_image"):
        third[name].loc[{"snr": 0.1}] = np.nan
    return xr.concat([table, third], "denoiser", data_vars="minimal").assign_attrs(table.attrs)


@pytest.fixture(scope="module")
def page(table, tmp_path_factory) -> str:
    path = write_comparison(table, tmp_path_factory.mktemp("page") / "compare.html")
    return path.read_text(encoding="utf-8")


def test_methods_are_in_order_of_their_psnr_and_failures_last(table):
    means = over_images(table)
    order = means.denoiser.values.tolist()
    assert order[-1] == LEARNS
    assert order.index(BEST) < order.index("noisy")
    np.testing.assert_allclose(
        means.psnr.sel(denoiser=BEST), table.psnr.sel(denoiser=BEST).mean("image")
    )


def test_csv_has_a_row_a_method_and_snr(table, tmp_path):
    path = write_csv(table, tmp_path / "compare.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 2
    found = {(row["method"], float(row["SNR"])): row for row in rows}
    for (name, snr), row in found.items():
        cell = table.sel(denoiser=name, snr=snr)
        if not row["why_not"]:
            assert float(row["MSE"]) == pytest.approx(float(cell.mse.mean()), rel=1e-5)
            assert float(row["PSNR_dB"]) == pytest.approx(float(cell.psnr.mean()), rel=1e-5)
            assert float(row["SSIM"]) == pytest.approx(float(cell.ssim.mean()), rel=1e-5)
        assert row["parameters"] == cell.parameters.item()
    broken = found[(LEARNS, 0.1)]
    assert (broken["PSNR_dB"], broken["why_not"]) == ("", "too <dark>")
    assert float(found[(LEARNS, 0.5)]["learning_seconds"]) == 1.5
    assert found[("noisy", 0.5)]["seconds_per_image"] == ""


def test_text_has_dashes_for_what_is_missing(table):
    header, rows = text_table(over_images(table), "psnr", "{:.1f}".format)
    assert header == ("SNR", "0.5", "0.1")
    assert rows[-1][0] == LEARNS
    assert rows[-1][2] == "–"
    assert float(rows[0][1]) == pytest.approx(
        float(table.psnr.sel(denoiser=rows[0][0])[0].mean()), abs=0.06
    )


def test_failures_are_told_with_their_snr(table):
    assert failures(table) == [(LEARNS, "at SNR 0.1: too <dark>")]
    everywhere = table.assign(why_not=table.why_not.copy(data=np.full((5, 2), "no")))
    assert failures(everywhere)[0] == ("noisy", "no")


def test_the_snr_that_is_shown_is_the_nearest_to_a_tenth(table):
    assert shown_snr(table) == 0.1
    assert shown_snr(table.assign_coords(snr=[0.04, 0.2])) == 0.2


def test_page_has_every_figure_and_picture(page, table):
    means = table.psnr.mean("image")
    for name in (BEST, WORST, "noisy", "best gaussian"):
        for snr in SNRS:
            assert f"{float(means.sel(denoiser=name, snr=snr)):.2f}" in page
    for words in ("PSNR against SNR", "Fourier ring correlation", "Peak memory", "Learning from"):
        assert words in page
    assert "too &lt;dark&gt;" in page
    # At one SNR: clean, two controls, two methods that worked; at each: five methods.
    assert page.count("data:image/png;base64,") == 5 + 5 * 2
    assert page.count("<svg") == 2
    assert re.search(r"<td>learns</td><td>0\.5</td><td>a = 1</td>", page)


def test_the_best_of_each_snr_stands_out(page, table):
    best = table.psnr.mean("image").max("denoiser", skipna=True)
    for snr in SNRS:
        assert f"<b>{float(best.sel(snr=snr)):.2f}</b>" in page


def test_a_table_of_controls_alone_has_a_page(table, tmp_path):
    controls = table.isel(denoiser=slice(2), snr=[0])
    page = write_comparison(controls, tmp_path / "c.html").read_text(encoding="utf-8")
    assert "denoised by 0 methods" in page
    assert page.count("<svg") == 1
    assert "What failed" not in page
    assert "Learning from" not in page


def test_memory_that_cannot_be_measured_is_left_out_with_the_reason(table, tmp_path):
    missing = table.assign_attrs(memory_missing="it is a secret")
    page = write_comparison(missing, tmp_path / "c.html").read_text(encoding="utf-8")
    assert "Peak memory" not in page
    assert "it is a secret" in page
