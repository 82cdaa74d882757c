"""Features that turns, and shifts, do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.backend import on_device
from emdask.errors import ParameterError
from emdask.kernels import invariants
from emdask.kernels.invariants import FEATURES, count_features, image_features
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.phantoms import phantom

BOX = 48


def views(seed: int, angles_deg: Any, shifts_px: Any = None) -> np.ndarray:
    """Projections of a particle in the middle two thirds of the box."""
    volume = phantom(12, radius_A=28, width_A=(5, 8), seed=seed).volume(BOX, 2.0)
    return project_volume(prepare_volume(volume.values), rotation_matrices(angles_deg), shifts_px)


@pytest.fixture(params=FEATURES)
def features(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def distance(a: np.ndarray, b: np.ndarray) -> Any:
    return np.linalg.norm(a - b, axis=-1)


def test_turns_change_nothing(features: str) -> None:
    angles = [[20, 60, psi] for psi in (0, 17, 45, 90, 201, 333)]
    turned = image_features(views(1, angles), features)
    other = image_features(views(2, angles[:1]), features)
    assert distance(turned, turned[0]).max() < 0.1 * distance(turned[0], other[0])
    assert np.abs(turned - turned[0]).max() < 0.05 * np.abs(turned[0]).max()


def test_shifts_change_nothing_of_spectra() -> None:
    angles = [[20, 60, 40]] * 4
    shifts = [[0, 0], [5, -3], [-7, 2.5], [0.5, 6]]
    for features, change in (("spectrum", 0.08), ("steerable", 0.5)):
        found = image_features(views(1, angles, shifts), features)
        other = image_features(views(2, angles[:1]), features)
        relative = distance(found[1:], found[0]) / distance(found[0], other[0])
        is_same = relative < change
        assert is_same.all() if features == "spectrum" else not is_same.any()


def test_views_and_grey_levels(features: str) -> None:
    images = views(1, [[0, 0, 0], [0, 40, 0]])
    found = image_features(images, features)
    assert distance(*found) > 0.1 * np.linalg.norm(found[0])
    np.testing.assert_allclose(
        image_features(-3 * images + 7, features)[:, 1:],
        (found if features == "spectrum" else found * _signs(found, features))[:, 1:],
        atol=1e-4 * np.abs(found).max(),
    )


def _signs(found: np.ndarray, features: str) -> np.ndarray:
    """What is signed turns with the contrast: the coefficients of order 0."""
    n_round = int((invariants._find_basis(BOX).orders == 0).sum())
    return np.where(np.arange(found.shape[1]) < n_round, -1, 1)


def test_a_wave_is_in_its_ring_and_order(rng: np.random.Generator) -> None:
    """Of two waves at an angle a, the angular power of order m is that of cos(m a)."""
    y, x = np.indices((BOX, BOX)) - BOX // 2
    window = np.exp(-(x**2 + y**2) / (2 * 8.0**2))
    images = [
        window * (np.cos(2 * np.pi * 12 * x / BOX) + np.cos(2 * np.pi * 12 * turned / BOX))
        for turned in (x, y, (x + y) / np.sqrt(2))
    ]
    found = image_features(np.array(images), "spectrum").reshape(3, -1, invariants.N_ORDERS)
    strongest = found[:, :, 0].argmax(axis=1) + invariants.FIRST_RING
    np.testing.assert_array_equal(strongest, 12)
    ring = found[:, 12 - invariants.FIRST_RING]
    relative = ring / ring[:, :1]
    # Half turns of m orders: at right angles odd ones cancel, at 45 degrees 2 and 6 do.
    np.testing.assert_allclose(relative[1, 1:6:2], 0, atol=0.03)
    np.testing.assert_allclose(relative[1, 2:5:2], relative[0, 2:5:2], atol=0.05)
    np.testing.assert_allclose(relative[2, [2, 6]], 0, atol=0.03)
    np.testing.assert_allclose(relative[2, 4], relative[0, 4], atol=0.05)
    np.testing.assert_allclose(relative[2, 1] / relative[0, 1], np.cos(np.pi / 4), atol=0.02)


def test_noise_has_the_amplitudes_of_rayleigh(rng: np.random.Generator) -> None:
    found = image_features(rng.normal(size=(200, 32, 32)), "spectrum")
    means = found.reshape(200, -1, invariants.N_ORDERS)[:, :, 0].mean(axis=0)
    # Interpolation between neighbours lowers it a little.
    np.testing.assert_allclose(means, np.sqrt(np.pi) / 2, rtol=0.05)


def test_images_by_themselves_and_on_cards(
    device: str, features: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = rng.normal(size=(5, 32, 32)).astype("f4")
    images[3] = 7.0
    expected = image_features(images, features)
    monkeypatch.setattr(invariants, "IMAGES_AT_ONCE", {"numpy": 2, "cupy": 3})
    found = on_device(image_features, images, features, device=device)
    assert found.shape == (5, count_features(32, features))
    assert found.dtype == np.float32
    if device == "cpu":
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(image_features(images[1:2], features), expected[1:2])
        scaled = image_features((images * 100).astype("i2"), features)
        np.testing.assert_allclose(scaled, expected, atol=0.02 * expected.max())
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())
    assert (found[3] == 0).all()


@pytest.mark.parametrize("box_px", [8, 9, 31, 32, 100, 301])
def test_features_are_few_whatever_the_box(box_px: int, features: str) -> None:
    image = np.random.default_rng(0).normal(size=(1, box_px, box_px))
    found = image_features(image, features)
    assert found.shape == (1, count_features(box_px, features))
    assert 8 <= found.shape[1] <= 520
    assert np.isfinite(found).all()
    assert image_features(image[:0], features).shape == (0, found.shape[1])


def test_what_there_is_not_is_refused() -> None:
    with pytest.raises(ParameterError, match="features must be one of spectrum, steerable; got 'c"):
        image_features(np.zeros((1, 16, 16)), "contour")
    with pytest.raises(
        ParameterError, match="the box of images, in px, must be an integer of at l"
    ):
        image_features(np.zeros((1, 6, 6)), "spectrum")
    with pytest.raises(ParameterError, match="at least 8; got 7"):
        count_features(7, "steerable")
