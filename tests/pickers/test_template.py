"""Template matching: what it takes for templates, what it finds, and what it says otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from emdask import phantom, save_stack, save_volume, simulate_micrographs
from emdask.errors import FormatError, ParameterError
from emdask.metrics import match_picks
from emdask.pickers import pick
from emdask.pickers.template import Template, load
from emdask.stack import as_stack
from emdask.volumes import build_volume

DIAMETER_A = 110.0


@pytest.fixture(scope="module")
def volume() -> xr.DataArray:
    """A particle of some 100 Å in a box of 144."""
    return phantom(40, radius_A=40, seed=3).volume(48, 3.0)


@pytest.fixture(scope="module")
def made(volume: xr.DataArray) -> Any:
    return simulate_micrographs(
        volume, 2, snr=0.3, snr_in="particles", size_px=400, n_particles=16, seed=5
    )


def test_it_finds_the_particles_of_a_volume(made: Any, volume: xr.DataArray) -> None:
    data, truth = made
    picks = pick(data.images, "template", diameter_A=DIAMETER_A, template=volume).compute()
    found = match_picks(picks, truth, radius_px=0.2 * DIAMETER_A / 3)
    assert found.average_precision > 0.9
    assert found.f1 > 0.7


def test_a_file_and_a_cube_are_that_volume(made: Any, volume: xr.DataArray, tmp_path: Path) -> None:
    save_volume(volume, tmp_path / "map.mrc")
    expected = load(Template(template=volume, n_views=5), DIAMETER_A)
    for given, options in [
        (str(tmp_path / "map.mrc"), {}),
        (volume.values, {"template_pixel_size_A": 3.0}),
        (volume.values, {"template_diameter_px": DIAMETER_A / 3}),
    ]:
        templates = load(Template(template=given, n_views=5, **options), DIAMETER_A)
        for a, b in zip(templates, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_images_are_turned_and_found(rng: np.random.Generator, tmp_path: Path) -> None:
    y, x = np.indices((40, 40)) - 20
    bar = ((abs(x) < 15) & (abs(y) < 4)).astype(np.float32)
    micrograph = rng.normal(size=(300, 320)).astype(np.float32)
    micrograph[50:90, 60:100] -= 2 * bar
    micrograph[200:240, 200:240] -= 2 * bar.T
    stack = as_stack(bar[None]).assign_attrs(pixel_size_A=2.0, kind="particles")
    save_stack(stack, tmp_path / "bar.mrcs")
    for given, options in [
        (bar, {"template_diameter_px": 32.0}),
        (np.stack([bar, bar]), {"template_diameter_px": 32.0}),
        (str(tmp_path / "bar.mrcs"), {"template_diameter_px": 32.0}),
    ]:
        picks = pick(micrograph, "template", diameter_px=32.0, template=given, **options).compute()
        best = picks.head(2).sort_values("x_px")
        np.testing.assert_allclose(best.x_px, [80, 220], atol=2)
        np.testing.assert_allclose(best.y_px, [70, 220], atol=2)


def test_templates_of_another_pixel_size_are_brought_to_scale() -> None:
    blobs = [(0, 0, 25), (10, -15, 0), (-15, 5, -10)]

    def sample(pixel_A: float, n: int) -> xr.DataArray:
        z, y, x = (np.indices((n, n, n)) - n // 2) * pixel_A
        parts = [np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 200) for a, b, c in blobs]
        return build_volume(np.sum(parts, 0), pixel_A)

    one = load(Template(template=sample(2.0, 70), n_views=6), 80.0)
    other = load(Template(template=sample(3.5, 40), n_views=6), 80.0)
    views = [np.tensordot(t.weights, t.components, 1) for t in (one, other)]
    assert (views[0] * views[1]).sum((1, 2)).min() > 0.98


def test_nothing_given_says_what_to_pass() -> None:
    with pytest.raises(ParameterError, match="template must be a volume or images") as caught:
        pick(np.zeros((99, 99)), "template", diameter_px=30.0)
    assert "Pass template=" in str(caught.value)


@pytest.mark.parametrize("given", [np.zeros(5), np.zeros((2, 3, 4, 5)), np.array(["a"]), {}])
def test_what_is_no_template_is_refused(given: Any) -> None:
    with pytest.raises(ParameterError, match="template must be a volume or images"):
        load(Template(template=given), 100.0)


def test_an_unknown_scale_is_named(volume: xr.DataArray) -> None:
    with pytest.raises(ParameterError, match=r"the diameter in Å.*template_diameter_px="):
        pick(np.zeros((99, 99)), "template", diameter_px=30.0, template=volume)
    with pytest.raises(ParameterError, match="the pixel size of the template"):
        load(Template(template=volume.values), 100.0)


def test_a_map_that_does_not_say_its_pixel_size(shared_data: Path) -> None:
    path = str(shared_data / "maps" / "clean70SRibosome_vol_65p.mrc")
    with pytest.raises(FormatError, match=r"pixel size.*template_pixel_size_A="):
        load(Template(template=path), 270.0)
    expected = load(Template(template=path, template_pixel_size_A=5.0, n_views=4), 270.0)
    found = load(Template(template=path, template_diameter_px=54.0, n_views=4), None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_sizes_that_cannot_be_are_refused(volume: xr.DataArray) -> None:
    with pytest.raises(ParameterError, match="diameter in the template must be 4 to 72 px"):
        load(Template(template=volume), 1100.0)
    with pytest.raises(ParameterError, match="diameter in the template must be 4 to 72 px"):
        load(Template(template=volume), 3.0)


def test_bad_pixels_are_refused() -> None:
    with pytest.raises(ParameterError, match="must be finite"):
        load(Template(template=np.full((9, 9), np.nan), template_diameter_px=9.0), None)


@pytest.mark.parametrize(
    "options",
    [
        {"n_views": 0},
        {"angle_step_deg": 0},
        {"template_pixel_size_A": -1.0},
        {"template_diameter_px": "a"},
    ],
)
def test_parameters_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"template: {next(iter(options))} must be"):
        Template(template="map.mrc", **options)


def test_templates_are_bounded() -> None:
    message = "n_views times 360 turns must be at most 20,000 templates; got 720000"
    with pytest.raises(ParameterError, match=message):
        Template(template="map.mrc", n_views=2000, angle_step_deg=1)
    images = np.ones((60, 8, 9))
    with pytest.raises(ParameterError, match=r"images times 360 turns .*; got 21600"):
        load(Template(template=images, angle_step_deg=1, template_diameter_px=8.0), None)


def test_flat_micrographs_give_no_picks(volume: xr.DataArray) -> None:
    flat = as_stack(np.full((99, 99), 7.0)).assign_attrs(pixel_size_A=3.0)
    picks = pick(flat, "template", diameter_A=DIAMETER_A, template=volume, n_views=3)
    assert len(picks.compute()) == 0
