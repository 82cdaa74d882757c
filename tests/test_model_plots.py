"""Pictures of models show what was learnt."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from emdask.model_plots import (
    PANELS_A_ROW,
    atom_sheets,
    draw_eigenimages,
    draw_eigenvalues,
    draw_power_spectra,
    eigenimage_limits,
    power_spectra,
    relative_eigenvalues,
)
from emdask.plots import grey_limits, svg_text
from tests.fake_models import covariance_model, dictionary_model, power_model


def line_of(axes, label):
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return line


def test_eigenvalues_are_in_units_of_the_noise_and_know_their_edge():
    order, value, edge = relative_eigenvalues(covariance_model())
    assert order.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_allclose(value, [4, 1, 2, 0.5, 1])
    np.testing.assert_allclose(edge, [2, 2, 1.5, 1.5, 1.25])


def test_eigenvalues_above_the_edge_stand_out_by_order_and_by_rank():
    by_order, by_rank = draw_eigenvalues(covariance_model()).axes
    np.testing.assert_allclose(
        line_of(by_order, "noise edge").get_xydata(), [[0, 2], [1, 1.5], [2, 1.25]]
    )
    np.testing.assert_allclose(line_of(by_order, "above it").get_xydata(), [[0, 4], [1, 2]])
    np.testing.assert_allclose(
        line_of(by_order, "within the noise").get_xydata(), [[0, 1], [1, 0.5], [2, 1]]
    )
    below, above, edge = by_rank.lines
    np.testing.assert_allclose(above.get_xydata(), [[1, 2], [2, 4 / 3]])
    np.testing.assert_allclose(below.get_xydata(), [[3, 0.8], [4, 0.5], [5, 1 / 3]])
    np.testing.assert_array_equal(edge.get_ydata(), 1)
    assert by_order.get_yscale() == by_rank.get_yscale() == "log"
    assert [axes.get_xlabel() for axes in (by_order, by_rank)] == ["angular order k", "rank"]
    assert by_order.get_ylabel() == "eigenvalue / noise variance"
    assert by_rank.get_ylabel() == "eigenvalue / noise edge of its order"


def test_eigenvalues_of_nothing_but_rounding_do_not_press_the_others_together():
    model = covariance_model()
    model["spectrum"][1, 1] = -1e-12
    model["spectrum"][2, 0] = 1e-12
    left, right = draw_eigenvalues(model).axes
    assert left.get_ylim()[0] == pytest.approx(0.01)
    assert right.get_ylim()[0] == pytest.approx(0.01)


def test_eigenvalues_that_are_nothing_can_be_drawn():
    model = covariance_model()
    model["spectrum"] = 0 * model["spectrum"]
    assert ">noise edge<" in svg_text(draw_eigenvalues(model))


def test_a_picture_of_thousands_of_eigenvalues_is_small():
    rng = np.random.default_rng(0)
    spectrum = rng.uniform(0.5, 1.5, (150, 60))
    parts = {
        "spectrum": (("order_k", "radial"), spectrum),
        "noise_edge": ("order_k", np.full(150, 1.6)),
    }
    model = xr.Dataset(parts, {"order_k": np.arange(150)}, {"noise_variance": 1.0})
    svg = svg_text(draw_eigenvalues(model))
    assert "data:image/png" in svg
    assert len(svg) < 200_000


def test_mean_and_leading_eigenimages_are_drawn_each_on_its_scale():
    model = covariance_model()
    figure = draw_eigenimages(model, n_images=8)
    axes = figure.axes
    assert len(axes) == 9
    titles = ["mean", *(f"k = {i % 3}, {30 - i}" for i in range(8))]
    assert [one.get_title() for one in axes] == titles
    for one, image in zip(axes[1:], model.eigenimages.values, strict=False):
        (shown,) = one.images
        np.testing.assert_array_equal(shown.get_array(), image)
        assert shown.get_clim() == eigenimage_limits(image)
        assert shown.get_clim()[0] == -shown.get_clim()[1]
    assert axes[0].images[0].get_clim() == grey_limits(model["mean"].values)
    columns = {one.get_subplotspec().colspan.start for one in axes}
    assert columns == set(range(PANELS_A_ROW))
    assert len(draw_eigenimages(model).axes) == 18
    assert len(draw_eigenimages(model.isel(component=slice(2))).axes) == 3


def test_an_eigenimage_of_nothing_can_be_drawn():
    assert eigenimage_limits(np.zeros((4, 4))) == (-1, 1)


def test_atoms_that_were_learnt_are_laid_out_at_full_contrast():
    model = dictionary_model()
    sheets = atom_sheets(model)
    assert list(sheets) == ["scale 1: 10 atoms of 4 × 4 px", "scale 2: 7 atoms of 4 × 4 px"]
    sheet = sheets["scale 1: 10 atoms of 4 × 4 px"]
    # 4 of 10 in a row: 3 gaps of 2 pixels, 22 pixels across, each drawn 480 // 22 = 21 times.
    assert sheet.shape == (21 * 16, 21 * 22)
    first = model.atoms.values[0, 0].reshape(4, 4)
    np.testing.assert_allclose(sheet[: 21 * 4 : 21, : 21 * 4 : 21], first / np.abs(first).max())
    assert np.isnan(sheet[21 * 4, 0])
    model["atoms"][1] = 0
    assert list(atom_sheets(model)) == ["scale 1: 10 atoms of 4 × 4 px"]


def test_spectra_are_drawn_where_they_have_power():
    (axes,) = draw_power_spectra(power_model()).axes
    signal, noise = line_of(axes, "signal power"), line_of(axes, "noise power")
    np.testing.assert_array_equal(signal.get_ydata(), [8, 2, np.nan])
    np.testing.assert_array_equal(noise.get_xydata(), [[0, 1], [0.25, 1], [0.5, 1.5]])
    assert axes.get_xlabel() == "frequency (cycles/px)"
    assert axes.get_yscale() == "log"
    assert power_spectra(covariance_model()) == {}
    model = power_model()
    model["noise_power"].attrs |= {"long_name": "power of the noise", "units": "grey levels²"}
    assert list(power_spectra(model)) == ["signal power", "power of the noise"]
    assert draw_power_spectra(model).axes[0].get_ylabel() == "power (grey levels²)"
    assert axes.get_ylabel() == "power"


def test_numbers_of_a_narrow_axis_are_plain():
    model = power_model().drop_vars("signal_power")
    figure = draw_power_spectra(model)
    figure.draw_without_rendering()
    labels = {text.get_text() for text in figure.axes[0].get_yticklabels(which="both")}
    assert "1" in labels
    assert not any("10^" in label or "e" in label for label in labels)
