"""Correlation with templates against sums over pixels; views and turns against what they show."""

import numpy as np
import pytest

from emdask.backend import to_device, to_host
from emdask.errors import ParameterError
from emdask.kernels import template_matching
from emdask.kernels.template_matching import Templates, prepare_templates, score_templates
from emdask.kernels.templates import project_views, resample, sphere_views, turn_images


def correlate_by_loops(image: np.ndarray, templates: Templates) -> np.ndarray:
    """Largest correlation coefficient with any template, pixel by pixel."""
    inside = templates.mask > 0
    reach = len(inside) // 2
    padded = np.pad(image.astype(float), reach, mode="symmetric")
    made = np.tensordot(templates.weights, templates.components, 1)[:, inside]
    best, contrast = np.empty(image.shape), np.empty(image.shape)
    for y, x in np.ndindex(image.shape):
        around = padded[y : y + 2 * reach + 1, x : x + 2 * reach + 1][inside]
        best[y, x] = max(made @ (around - around.mean()))
        contrast[y, x] = np.linalg.norm(around - around.mean())
    return best / np.maximum(contrast, np.median(contrast) / 2)


@pytest.mark.parametrize("shape", [(40, 61), (17, 16), (131, 9)])
def test_scores_are_the_largest_correlation_coefficients(
    device: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(template_matching, "TILE_PX", 8)
    monkeypatch.setattr(template_matching, "PIXELS_AT_ONCE", 100)
    image = (5 + 2 * rng.normal(size=shape)).astype(np.float32)
    image[:8, :8] = 5  # less contrast than the least
    templates = prepare_templates(rng.normal(size=(7, 12, 12)), 4.3)
    scores = to_host(score_templates(to_device(image, device), templates))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, correlate_by_loops(image, templates), atol=2e-5)


def test_tiles_do_not_show(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    image = rng.normal(size=(150, 210)).astype(np.float32)
    templates = prepare_templates(rng.normal(size=(5, 15, 15)), 6.0)
    whole = score_templates(image, templates)
    monkeypatch.setattr(template_matching, "TILE_PX", 8)
    np.testing.assert_allclose(score_templates(image, templates), whole, atol=1e-5)


def test_a_template_itself_scores_1_at_its_centre_whatever_its_grey_levels(
    rng: np.random.Generator, device: str
) -> None:
    images = rng.normal(size=(3, 11, 11))
    templates = prepare_templates(images, 5.0)
    assert len(templates.components) == 3
    image = rng.normal(size=(80, 90)).astype(np.float32)
    for number, (y, x) in enumerate([(20, 30), (50, 15), (60, 70)]):
        image[y - 5 : y + 6, x - 5 : x + 6] = 40 - 7.0 * number + 3.0 * images[number]
    scores = to_host(score_templates(to_device(image, device), templates))
    found = [scores[y, x] for y, x in [(20, 30), (50, 15), (60, 70)]]
    np.testing.assert_allclose(found, 1, atol=1e-3)
    assert scores.max() < 1.001


def test_few_components_make_many_templates(rng: np.random.Generator) -> None:
    y, x = np.indices((25, 25)) - 12
    angles = np.arange(60) * 2 * np.pi / 60
    images = [np.exp(-((x * np.cos(a) + y * np.sin(a)) ** 2) / 8) for a in angles]
    templates = prepare_templates(np.array(images), 10.0)
    components = templates.components.reshape(len(templates.components), -1)
    assert 2 < len(components) < 20
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=1e-5)
    inside = templates.mask > 0
    given = np.array(images)[:, 2:-2, 2:-2][:, inside]
    given = given - given.mean(1, keepdims=True)
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    made = np.tensordot(templates.weights, templates.components, 1)[:, inside]
    assert (made * given).sum(1).min() > 0.95
    assert (templates.components[:, ~inside] == 0).all()


def test_constant_templates_are_left_out_or_refused(rng: np.random.Generator) -> None:
    images = np.concatenate([np.ones((2, 9, 9)), rng.normal(size=(1, 9, 9))])
    assert len(prepare_templates(images, 4.0).weights) == 1
    with pytest.raises(ParameterError, match="must not be constant"):
        prepare_templates(np.ones((2, 9, 9)), 4.0)


def test_a_constant_image_scores_nothing(rng: np.random.Generator, device: str) -> None:
    templates = prepare_templates(rng.normal(size=(2, 9, 9)), 4.0)
    image = np.full((30, 40), 3, np.float32)
    np.testing.assert_array_equal(to_host(score_templates(to_device(image, device), templates)), 0)


def test_views_are_spread_over_the_sphere() -> None:
    rot, tilt = np.deg2rad(sphere_views(200).T)
    points = np.array([np.sin(tilt) * np.cos(rot), np.sin(tilt) * np.sin(rot), np.cos(tilt)])
    np.testing.assert_allclose(points.mean(1), 0, atol=0.01)
    np.testing.assert_allclose(points @ points.T / 200, np.eye(3) / 3, atol=0.01)
    nearest = np.sort(points.T @ points, axis=1)[:, -2]
    assert np.rad2deg(np.arccos(nearest)).min() > 0.7 * np.sqrt(41253 / 200)


@pytest.mark.parametrize("factor", [0.25, 0.4, 1.0, 1.7])
@pytest.mark.parametrize("n", [40, 41])
def test_resampled_arrays_show_the_same_about_the_same_centre(n: int, factor: float) -> None:
    def blob(n: int, factor: float) -> np.ndarray:
        y, x = (np.indices((n, n)) - n // 2) / factor
        return np.exp(-((x - 2) ** 2 + (y + 3) ** 2) / (2 * 5.0**2))

    small = resample(blob(n, 1.0)[None], factor, (1, 2))[0]
    assert small.dtype == np.float32
    assert len(small) % 2 == 0
    np.testing.assert_allclose(small, blob(len(small), factor), atol=0.03)


def test_projections_are_those_of_the_turned_volume() -> None:
    z, y, x = np.indices((24, 24, 24)) - 12
    volume = np.exp(-((x - 4) ** 2 + y**2 + z**2) / 8.0).astype(np.float32)
    images = project_views(volume, 0.5, n_views=5, n_angles=4)
    assert images.shape == (20, 12, 12)
    turned = images.reshape(5, 4, 12, 12)
    for view in turned:
        centred = view[0, 1:, 1:]
        np.testing.assert_allclose(np.rot90(centred, 1), view[1, 1:, 1:], atol=0.02 * images.max())
        np.testing.assert_allclose(np.rot90(centred, 2), view[2, 1:, 1:], atol=0.02 * images.max())


def test_images_turn_about_their_centres() -> None:
    y, x = np.indices((31, 31)) - 15
    image = np.exp(-((x - 6) ** 2 + y**2) / 8.0)
    turned = turn_images(image[None], 12)
    for number, angle in enumerate(np.arange(12) * np.pi / 6):
        expected = np.exp(-((x - 6 * np.cos(angle)) ** 2 + (y - 6 * np.sin(angle)) ** 2) / 8.0)
        np.testing.assert_allclose(turned[number], expected, atol=0.02)
