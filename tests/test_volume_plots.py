"""Pictures of a volume show what is in it."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.plots import svg_text
from emdask.volume_plots import (
    THRESHOLDS,
    count_views,
    draw_fsc,
    draw_views,
    draw_volume,
    volume_pictures,
)

RESOLUTIONS_A = ["4", "5", "6", "7", "8", "10", "12", "15", "20", "30", "60"]


def test_sections_and_projections_are_those_of_slow_loops(rng):
    volume = rng.normal(size=(6, 6, 6)).astype(np.float32)
    pictures = volume_pictures(volume)
    n = range(6)
    expected = {
        "section y, x": [[volume[3, y, x] for x in n] for y in n],
        "section z, x": [[volume[z, 3, x] for x in n] for z in n],
        "section z, y": [[volume[z, y, 3] for y in n] for z in n],
        "projection along z": [[sum(volume[z, y, x] for z in n) for x in n] for y in n],
        "projection along y": [[sum(volume[z, y, x] for y in n) for x in n] for z in n],
        "projection along x": [[sum(volume[z, y, x] for x in n) for y in n] for z in n],
    }
    assert list(pictures) == list(expected)
    for name, picture in pictures.items():
        np.testing.assert_allclose(picture, expected[name], atol=1e-5)


def test_axes_of_a_drawn_volume_are_about_its_centre(rng):
    axes = draw_volume(rng.normal(size=(8, 8, 8)), pixel_size_A=2.0, title="map").axes
    assert [a.get_title() for a in axes] == [*volume_pictures(np.ones((2, 2, 2)))]
    # Voxel 4 of 8 is the centre: voxels reach from -9 to 7 Å, and y points down.
    assert axes[0].get_xlim() == (-9.0, 7.0)
    assert axes[0].get_ylim() == (7.0, -9.0)
    assert [axes[1].get_ylabel(), axes[1].get_xlabel()] == ["z (Å)", "x (Å)"]
    assert draw_volume(np.ones((4, 4, 4))).axes[5].get_ylabel() == "z (px)"


def test_the_crossing_of_each_threshold_is_marked():
    frequency = np.linspace(0.01, 0.5, 50)
    curves = {"halves": 1 - frequency, "reference": 1 - 2 * frequency, "all": np.ones(50)}
    thresholds = {"halves": 0.143, "reference": 0.5, "all": 0.5}
    axes = draw_fsc(frequency / 2, curves, thresholds).axes[0]
    lines = axes.lines[len(THRESHOLDS) :]
    for line, values in zip(lines, curves.values(), strict=False):
        np.testing.assert_array_equal(line.get_xdata(), frequency / 2)
        np.testing.assert_array_equal(line.get_ydata(), values)
    # Neither of the others comes down to its threshold.
    (dot,) = lines[3:]
    np.testing.assert_allclose(dot.get_xydata(), [[0.125, 0.5]])
    assert dot.get_color() == lines[1].get_color()


@pytest.mark.parametrize("pixel_size_A", [0.3, 1.1, 2.0, 8.0, 40.0])
def test_resolutions_of_the_axis_stand_where_they_belong(pixel_size_A):
    frequency = np.linspace(0.01, 0.5, 50)
    axes = draw_fsc(frequency / pixel_size_A, {"a": frequency}).axes[0]
    ticks = axes.get_xticks()
    labels = [float(text.get_text()) for text in axes.get_xticklabels()]
    np.testing.assert_allclose(ticks, 1 / np.array(labels), rtol=1e-6)
    assert len(labels) >= 6
    assert (-np.diff(ticks) > 0.05 / (2 * pixel_size_A)).all()
    assert axes.get_xlim() == (0, pytest.approx(1 / (2 * pixel_size_A)))
    if pixel_size_A == 2.0:
        assert [f"{label:g}" for label in labels] == RESOLUTIONS_A


def test_even_views_fill_all_cells_alike(rng):
    n = 200_000
    rot_deg = rng.uniform(-900, 900, n)
    tilt_deg = np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))
    counts = count_views(rot_deg, tilt_deg, 6)
    assert counts.shape == (6, 12)
    assert counts.sum() == n
    np.testing.assert_allclose(counts, n / 72, rtol=0.1)


def test_one_direction_is_one_cell_whatever_its_angles():
    same = count_views([30, 390, -150, 210], [70, 70, -70, 290], 8)
    assert same.max() == 4
    band, column = np.argwhere(same == 4)[0]
    # 70 degrees: cosine 0.34 of 1 to -1 in steps of 0.25; 30 degrees: 210 from the left by 22.5.
    assert (band, column) == (2, 9)
    for rot_deg in (180.0, -180.0, 540.0):
        assert count_views([rot_deg], [50], 8)[1, 15] == 1


def test_views_are_drawn_as_shares_of_an_even_spread():
    figure = draw_views(np.zeros(50), np.full(50, 45.0))
    mesh = figure.axes[0].collections[0]
    values = np.asarray(mesh.get_array())
    assert values.max() == pytest.approx(6 * 12)
    assert values.mean() == pytest.approx(1)
    svg = svg_text(figure)
    assert "data:image/png" in svg
    assert "currentColor" in svg
    assert draw_views(np.zeros(100_000), np.zeros(100_000)).axes[0].collections
