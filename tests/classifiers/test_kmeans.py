"""K-means: particles that differ are told apart, however they lie."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.optimize import linear_sum_assignment

import emdask
from emdask.classifiers.kmeans import Kmeans, gather, prepare
from emdask.errors import ParameterError, StackError
from emdask.kernels.feature_axes import image_points
from emdask.phantoms import phantom

BOX, N = 32, 240
SHARES = (0.5, 0.3, 0.2)
PARTICLES = [phantom(10, radius_A=25, width_A=(4, 8), seed=s).volume(BOX, 3.0) for s in (2, 5, 9)]


def simulate(snr: float = 2.0, n: int = N, **options: Any) -> xr.DataArray:
    """Three particles, each seen from one side, turned in the plane."""
    poses = np.column_stack([np.zeros(n), np.full(n, 40), np.random.default_rng(0).random(n) * 360])
    options = {"proportions": SHARES, "poses": poses, **options}
    return emdask.simulate(PARTICLES, n, snr=snr, **options).images.compute()


@pytest.fixture(scope="module")
def images() -> xr.DataArray:
    return simulate()


def accuracy(truth: Any, found: Any) -> float:
    """Share of images of which classes agree, once their numbers are matched."""
    counts = np.zeros((truth.max(), found.max()), int)
    np.add.at(counts, (truth - 1, found - 1), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(truth))


def classify(images: Any, **options: Any) -> xr.Dataset:
    known = {"method": "kmeans", "n_classes": 3, "n_components": 4, **options}
    return emdask.classify(images, **known).compute(scheduler="sync")


@pytest.mark.parametrize("features", ["spectrum", "steerable"])
def test_particles_are_told_apart_however_they_are_turned(
    features: str, images: xr.DataArray
) -> None:
    found = classify(images, features=features)
    assert accuracy(images.class_id.values, found.class_id.values) > 0.97
    # Numbered by size, as the particles were drawn.
    counts = np.bincount(found.class_id, minlength=4)[1:]
    assert counts.tolist() == sorted(counts, reverse=True)
    np.testing.assert_allclose(found.proportion, counts / N, atol=1e-9)
    np.testing.assert_allclose(found.proportion, SHARES, atol=0.08)
    assert ((found.proportion_low < SHARES) & (found.proportion_high > SHARES)).all()


def test_shifts_matter_to_steerable_features_alone() -> None:
    shifted = simulate(shifts_A=9.0)
    scores = {
        features: accuracy(
            shifted.class_id.values, classify(shifted, features=features).class_id.values
        )
        for features in ("spectrum", "steerable")
    }
    assert scores["spectrum"] > 0.97
    assert scores["steerable"] < 0.9


def test_the_nearest_centre_is_the_class(images: xr.DataArray) -> None:
    found = classify(images)
    params = Kmeans(n_classes=3, n_components=4)
    model = prepare(gather(images.values, images.image_id.values, params, N), params, None)
    points = image_points(images.values, model.axes)
    distances = np.linalg.norm(points[:, None] - model.classes.centres, axis=2)
    np.testing.assert_array_equal(found.class_id, distances.argmin(axis=1) + 1)
    certain = np.where(found["class"].values == found.class_id.values[:, None], 0, -np.inf)
    np.testing.assert_array_equal(found.log_likelihood, certain)
    np.testing.assert_array_equal(found.posterior, np.exp(certain))
    assert (found.margin == np.inf).all()
    assert (found.posterior_none == 0).all()


def test_chunks_do_not_matter(images: xr.DataArray) -> None:
    options = {"max_images": 100, "seed": 3}
    expected = classify(images, **options)
    for chunk in (17, 120):
        found = classify(images.chunk(image=chunk), **options)
        np.testing.assert_array_equal(found.class_id, expected.class_id)
        np.testing.assert_allclose(found.proportion, expected.proportion)


def test_a_sample_is_enough_and_its_seed_counts(images: xr.DataArray) -> None:
    found = classify(images, max_images=60)
    assert accuracy(images.class_id.values, found.class_id.values) > 0.95
    params = [Kmeans(n_classes=3, max_images=60, seed=seed) for seed in (0, 0, 1)]
    centres = [
        prepare(gather(images.values, images.image_id.values, p, N), p, None).classes.centres
        for p in params
    ]
    np.testing.assert_array_equal(centres[0], centres[1])
    assert np.abs(centres[0] - centres[2]).max() > 1e-3


def test_building_reads_nothing() -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("was computed")

    zeros = da.zeros((40, BOX, BOX), chunks=(10, -1, -1), dtype="f4")
    poisoned = zeros.map_blocks(explode, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    lazy = emdask.classify(poisoned, method="kmeans", n_classes=3)
    assert lazy.posterior.shape == (40, 3)
    with pytest.raises(AssertionError, match="was computed"):
        lazy.compute(scheduler="sync")


def test_workers_do_not_matter(images: xr.DataArray) -> None:
    lazy = emdask.classify(images.chunk(image=40), method="kmeans", n_classes=3, n_components=4)
    alone = lazy.compute(scheduler="sync")
    with emdask.connect("local", n_workers=2):
        xr.testing.assert_identical(lazy.compute(), alone)


def test_cards_find_the_same(card: str, images: xr.DataArray) -> None:
    with dask.config.set(scheduler="sync"):
        on_host, on_card = (classify(images, device=device) for device in ("cpu", card))
    assert accuracy(on_host.class_id.values, on_card.class_id.values) > 0.99


def test_what_is_too_little_is_refused_at_once(images: xr.DataArray) -> None:
    def refuse(error: type[Exception], match: str, stack: Any = images, **options: Any) -> None:
        with pytest.raises(error, match=match):
            emdask.classify(stack, method="kmeans", **options)

    refuse(StackError, "kmeans: 5 classes in 10 components need 11 images; got 8", images[:8])
    refuse(StackError, "need 11 images; got 10. Take fewer classes", max_images=10)
    refuse(StackError, "30 classes in 10 components need 30", images[:20], n_classes=30)
    small = images[:, :8, :8]
    refuse(StackError, "images of 8 px have 32 features, and no mo", small, n_components=33)
    refuse(ParameterError, "box of images, in px, must be an integer", images[:, :6, :6])
    refuse(ParameterError, "kmeans: features must be one of", features="contour")
    refuse(ParameterError, "kmeans: seed must be an integer in", seed=-1)
    refuse(ParameterError, "kmeans: n_components must be an integer", n_components=0)
    refuse(ParameterError, "kmeans: max_images must be an integer", max_images=1)
    refuse(ParameterError, "takes no references", references=PARTICLES)


def test_images_without_contrast_are_a_class_of_their_own(images: xr.DataArray) -> None:
    blank = images.copy(deep=True)
    blank[5:25] = 3.0
    found = classify(blank, n_classes=4)
    own = found.class_id.values[5]
    assert (found.class_id.values == own).nonzero()[0].tolist() == list(range(5, 25))
