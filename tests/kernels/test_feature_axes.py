"""Principal components of features, and a sample that chunks do not change."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import pytest

from emdask.kernels.feature_axes import (
    add_statistics,
    find_axes,
    gather_statistics,
    image_points,
)
from emdask.kernels.invariants import image_features

N, BOX = 60, 16
IDS = 100 + 3 * np.arange(N)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(N, BOX, BOX)).astype("f4")


def gather(images: np.ndarray, ids: np.ndarray = IDS, **options: Any) -> Any:
    known = {"features": "steerable", "n_sample": 25, "seed": 5, "n_images": N, **options}
    return gather_statistics(images, ids, **known)


def test_the_sample_is_the_same_for_any_parts(images: np.ndarray) -> None:
    whole = gather(images)
    rows = image_features(images, "steerable")
    assert whole.sample.patches.shape == (25, rows.shape[1])
    for cuts in ([7, 20], [59], [1, 2, 3, 40]):
        parts = zip(np.split(images, cuts), np.split(IDS, cuts), strict=True)
        statistics = [gather(*part) for part in parts][::-1]
        found = reduce(add_statistics, statistics)
        np.testing.assert_array_equal(found.sample.keys, whole.sample.keys)
        np.testing.assert_array_equal(found.sample.patches, whole.sample.patches)
        np.testing.assert_allclose(found.sums.outer, rows.T.astype("f8") @ rows, rtol=1e-5)
        assert found.sums.n == N


def test_the_sample_follows_numbers_and_seed(images: np.ndarray) -> None:
    whole = gather(images)
    order = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(
        gather(images[order], IDS[order]).sample.patches, whole.sample.patches
    )
    assert not np.array_equal(gather(images, seed=6).sample.keys, whole.sample.keys)
    assert not np.array_equal(gather(images, IDS + 1).sample.keys, whole.sample.keys)
    rows = image_features(images, "steerable")
    # Images, not mixtures of them, and none twice.
    places = (whole.sample.patches[:, None] == rows).all(axis=2)
    assert places.sum(axis=1).tolist() == [1] * 25
    assert places.sum(axis=0).max() == 1


def test_a_small_stack_is_a_sample_of_all(images: np.ndarray) -> None:
    assert len(gather(images, n_sample=1000).sample.keys) == N


def test_blocks_of_a_large_stack_send_little(images: np.ndarray) -> None:
    few = gather(images, n_images=100 * N)
    assert len(few.sample.keys) <= 4
    assert few.sums.n == N


def test_axes_are_those_of_scaled_features(images: np.ndarray) -> None:
    axes, points = find_axes(gather(images), "steerable", 4)
    rows = image_features(images, "steerable").astype("f8")
    scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    strengths = np.linalg.svd(scaled, compute_uv=False)[:4] ** 2 / (N - 1)
    np.testing.assert_allclose(axes.components.variances, strengths, rtol=1e-4)
    placed = image_points(images, axes)
    np.testing.assert_allclose(placed, scaled @ axes.components.axes.T, atol=1e-3)
    np.testing.assert_allclose(placed.var(axis=0, ddof=1), strengths, rtol=1e-3)
    assert points.shape == (25, 4)
    assert all(min(abs(placed - point).max(axis=1)) < 1e-5 for point in points)


def test_what_never_differs_plays_no_part(images: np.ndarray) -> None:
    same = np.repeat(images[:1], N, axis=0)
    axes, points = find_axes(gather(same), "steerable", 2)
    assert (axes.scales == 0).all()
    assert (points == 0).all()


def test_cards_gather_the_same(card: str, images: np.ndarray) -> None:
    on_host, on_card = (gather(images, device=device) for device in ("cpu", card))
    np.testing.assert_array_equal(on_card.sample.keys, on_host.sample.keys)
    np.testing.assert_allclose(on_card.sample.patches, on_host.sample.patches, atol=1e-4)
    np.testing.assert_allclose(on_card.sums.outer, on_host.sums.outer, rtol=1e-3, atol=1e-2)
