"""Pictures hold the pixels that they are given."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from matplotlib import rcParams
from PIL import Image

from emdask.kernels.fourier import radial_power
from emdask.plots import (
    about_median,
    draw_before_after,
    draw_comparison,
    draw_frc,
    draw_images,
    draw_spectra,
    grey_limits,
    line_styles,
    montage,
    png_bytes,
    save_figure,
    svg_text,
)


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_png_stretches_grey_levels_between_the_limits():
    image = np.array([[-5.0, 0.0], [1.0, 99.0]])
    np.testing.assert_array_equal(decode(png_bytes(image, (0.0, 2.0))), [[0, 0], [128, 255]])


def test_nan_is_transparent():
    pixels = decode(png_bytes(np.array([[np.nan, 1.0]]), (0.0, 1.0)))
    np.testing.assert_array_equal(pixels, [[[0, 0], [255, 255]]])


def test_limits_ignore_outliers_and_never_coincide(rng):
    image = rng.normal(size=(100, 100))
    image[0, 0] = 1e6
    assert grey_limits(image)[1] < 5
    assert grey_limits(np.zeros((4, 4))) == (-1, 1)


def test_montage_puts_images_in_rows(rng):
    images = rng.normal(size=(5, 3, 4))
    canvas = montage(images, n_columns=2)
    assert canvas.shape == (3 * 5 - 2, 2 * 6 - 2)
    np.testing.assert_array_equal(canvas[5:8, 6:10], images[3])
    assert np.isnan(canvas[3:5]).all()
    assert np.isnan(canvas[10:, 6:]).all()


def test_spectra_are_in_inverse_angstrom(rng):
    axes = draw_spectra({"noise": rng.normal(size=(3, 32, 32))}, pixel_size_A=2.0).axes[0]
    frequency, power = axes.lines[0].get_data()
    np.testing.assert_allclose(frequency, radial_power(np.zeros((32, 32)))[0] / 2)
    assert 0.24 < frequency[-1] <= 0.25
    np.testing.assert_allclose(power[3:], 1, rtol=0.5)


def test_lines_of_many_methods_can_be_told_apart():
    names = [f"method {i}" for i in range(22)]
    styles = line_styles(["noisy", *names], controls=["noisy"])
    assert len({(s["color"], s["ls"]) for s in styles.values()}) == 23


def test_comparison_is_drawn_by_rising_snr_and_against_the_reference():
    psnr_dB = {"a": [30.0, 20.0], "b": [31.0, 19.0], "gone": [np.nan, 25.0]}
    left, right = draw_comparison([0.4, 0.1], psnr_dB, "a", ["a"]).axes
    for axes, expected in ((left, [19, 31]), (right, [-1, 1])):
        np.testing.assert_array_equal(axes.lines[1].get_xdata(), [0.1, 0.4])
        np.testing.assert_array_equal(axes.lines[1].get_ydata(), expected)
    assert [text.get_text() for text in left.get_xticklabels()] == ["0.1", "0.4"]


def test_dashes_of_the_controls_are_seen_in_the_legend():
    values = {"noisy": [1.0, 2.0], "best gaussian": [2.0, 3.0]}
    for figure in (
        draw_comparison([0.1, 0.4], values, "noisy", [*values]),
        draw_frc([0.1, 0.4], values, controls=[*values]),
    ):
        (legend,) = figure.legends
        solid, dashed = legend.legend_handles
        assert (solid.get_linestyle(), dashed.get_linestyle()) == ("-", "--")
        period_pt = sum(rcParams["lines.dashed_pattern"]) * dashed.get_linewidth()
        length_pt = legend.handlelength * legend.get_texts()[0].get_fontsize()
        assert length_pt > 3 * period_pt


def test_frc_is_drawn_as_far_as_something_correlates():
    frequency = np.linspace(0.01, 0.5, 50)
    curve = np.where(frequency < 0.2, 0.9, 0.01)
    axes = draw_frc(frequency, {"a": curve, "b": curve / 2}, pixel_size_A=2.0).axes[0]
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), curve / 2)
    assert 0.1 < axes.get_xlim()[1] < 0.15
    assert draw_frc(frequency, {"a": 0 * curve}).axes[0].get_xlim()[1] == 0.5
    assert draw_frc(frequency, {"a": 1 + 0 * curve}).axes[0].get_xlim()[1] == 0.5


def test_svg_takes_the_colour_of_the_page():
    text = svg_text(draw_spectra({"a": np.eye(16)[None]}))
    assert "currentColor" in text
    assert "#010203" not in text
    assert text.rstrip().endswith("</svg>")
    legend = svg_text(draw_comparison([0.1, 1], {"a": [1, 2], "b": [1, 3]}, "a", []))
    assert 'fill="#000000"' not in legend
    assert legend.count("currentColor") > 20


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".svg", b"<?xml")]
)
def test_preview_is_a_file_of_the_kind_that_its_name_says(tmp_path, rng, suffix, start):
    images = rng.normal(size=(3, 24, 24))
    path = save_figure(draw_before_after(images, images / 2), tmp_path / f"a{suffix}")
    assert path.read_bytes().startswith(start)


def test_sets_of_images_are_beside_their_spectra(rng):
    images = rng.normal(size=(20, 8, 8))
    figure = draw_images({"images": images, "none": 0 * images}, pixel_size_A=2.0, title="here")
    assert [axes.get_title() for axes in figure.axes] == ["images", "none", "power spectrum"]
    shown = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(shown, montage(about_median(images[:16])))
    assert figure.get_suptitle() == "here"
    assert figure.axes[2].get_xlabel() == "frequency (1/Å)"
    assert {axes.get_subplotspec().rowspan.start for axes in figure.axes} == {0}


def test_pyplot_and_its_windows_are_not_loaded():
    import subprocess

    code = "import sys, emdask.report; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
