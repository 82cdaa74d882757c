"""Mixtures of Gaussians: classes of unlike spread, and how sure each image is."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from scipy.stats import multivariate_normal

import emdask
from emdask.classifiers.gmm import Gmm, prepare
from emdask.classifiers.kmeans import gather
from emdask.errors import ParameterError, StackError
from emdask.kernels.feature_axes import image_points
from emdask.phantoms import phantom

BOX, N = 32, 240
SHARES = (0.65, 0.35)
PARTICLES = [phantom(10, radius_A=25, width_A=(4, 8), seed=s).volume(BOX, 3.0) for s in (2, 9)]
OPTIONS: dict[str, Any] = {"method": "gmm", "n_classes": 2, "n_components": 3}


def simulate(snr: float) -> xr.DataArray:
    """Two particles, each seen from one side, turned in the plane and shifted."""
    poses = np.column_stack([np.zeros(N), np.full(N, 40), np.random.default_rng(0).random(N) * 360])
    made = emdask.simulate(PARTICLES, N, snr=snr, poses=poses, proportions=SHARES, shifts_A=6.0)
    return made.images.compute()


@pytest.fixture(scope="module")
def images() -> xr.DataArray:
    return simulate(1.0)


def classify(images: Any, **options: Any) -> xr.Dataset:
    return emdask.classify(images, **{**OPTIONS, **options}).compute(scheduler="sync")


def test_particles_are_told_apart(images: xr.DataArray) -> None:
    found = classify(images)
    assert (found.class_id.values == images.class_id.values).mean() > 0.95
    np.testing.assert_allclose(found.proportion, SHARES, atol=0.06)
    np.testing.assert_allclose(found.posterior.sum("class"), 1, atol=1e-6)


def test_likelihoods_are_densities_of_the_gaussians(images: xr.DataArray) -> None:
    found = classify(images)
    params = Gmm(n_classes=2, n_components=3)
    model = prepare(gather(images.values, images.image_id.values, params, N), params, None)
    points = image_points(images.values, model.axes)
    for k, (centre, covariance) in enumerate(
        zip(model.classes.centres, model.classes.covariances, strict=True)
    ):
        expected = multivariate_normal(centre, covariance).logpdf(points)
        np.testing.assert_allclose(found.log_likelihood[:, k], expected, rtol=1e-4, atol=1e-3)
    assert model.classes.weights[0] > model.classes.weights[1]
    np.testing.assert_allclose(found.proportion, model.classes.weights, atol=0.01)


def test_images_that_may_be_of_either_say_so() -> None:
    """Those that are sure are right more often."""
    noisy = simulate(0.1)
    found = classify(noisy)
    is_right = found.class_id.values == noisy.class_id.values
    is_sure = found.confidence.values > 0.95
    assert 0.3 < is_sure.mean() < 0.95
    assert is_right[is_sure].mean() > is_right[~is_sure].mean() + 0.05


def test_chunks_and_cards_do_not_matter(card: str, images: xr.DataArray) -> None:
    expected = classify(images)
    in_parts = classify(images.chunk(image=50))
    with dask.config.set(scheduler="sync"):
        on_card = classify(images, device=card)
    for found, tolerance in ((in_parts, 1e-3), (on_card, 0.02)):
        np.testing.assert_allclose(found.posterior, expected.posterior, atol=tolerance)


def test_wrong_parameters_are_refused(images: xr.DataArray) -> None:
    with pytest.raises(ParameterError, match="gmm: n_classes must be an integer in"):
        Gmm(n_classes=0)
    with pytest.raises(StackError, match="gmm: 2 classes in 3 components need 4 images; got 3"):
        emdask.classify(images[:3], **OPTIONS)
