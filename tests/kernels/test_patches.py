"""Samples of patches."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from emdask.kernels import patches
from emdask.kernels.patches import PatchSample, merge_samples, sample_patches

SIZES = {"patch_px": 3, "seed": 5}


def stack(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(6, 9, 11)).astype(np.float32)


@pytest.fixture(autouse=True)
def few_places_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emdask.kernels.patches.PLACES_AT_ONCE", 20)


def equal(a: PatchSample, b: PatchSample) -> bool:
    return np.array_equal(a.keys, b.keys) and np.array_equal(a.patches, b.patches)


@pytest.mark.parametrize("n_patches", [1, 50, 300, 1000])
def test_the_smallest_keys_are_kept(rng: np.random.Generator, n_patches: int) -> None:
    images, ids = stack(rng), [4, 9, 2, 0, 1, 77]
    places = []
    for image, image_id in zip(images, ids, strict=True):
        keys = np.random.default_rng([5, image_id]).random(7 * 9)
        corners = [(y, x) for y in range(7) for x in range(9)]
        places += [
            (key, image[y : y + 3, x : x + 3]) for key, (y, x) in zip(keys, corners, strict=True)
        ]
    places.sort(key=lambda place: place[0])
    sample = sample_patches(images, ids, n_patches=n_patches, **SIZES)
    expected = np.array([patch.ravel() for _, patch in places[:n_patches]])
    np.testing.assert_array_equal(sample.patches, expected)
    assert sample.patches.dtype == np.float32


def test_chunks_and_order_do_not_show(rng: np.random.Generator) -> None:
    images, ids = stack(rng), np.arange(6)

    def draw(which: list[int]) -> PatchSample:
        return sample_patches(images[which], ids[which], n_patches=40, **SIZES)

    whole = draw([0, 1, 2, 3, 4, 5])
    a, b, c = draw([4, 0]), draw([3]), draw([5, 2, 1])
    assert equal(whole, draw([5, 3, 1, 0, 2, 4]))
    assert equal(whole, merge_samples(merge_samples(a, b, 40), c, 40))
    assert equal(whole, merge_samples(c, merge_samples(b, a, 40), 40))


def test_equal_keys_are_ordered_by_what_they_hold() -> None:
    a = PatchSample(np.array([0.5]), np.array([[2.0]], np.float32))
    b = PatchSample(np.array([0.5]), np.array([[1.0]], np.float32))
    for n in (1, 2):
        assert equal(merge_samples(a, b, n), merge_samples(b, a, n))


def test_small_images_give_no_patches() -> None:
    sample = sample_patches(np.ones((2, 2, 9)), [0, 1], n_patches=4, **SIZES)
    assert sample.patches.shape == (0, 9)


def test_every_place_has_the_same_chance() -> None:
    image = np.arange(36.0).reshape(1, 6, 6)
    counts = np.zeros(36)
    for seed in range(400):
        sample = sample_patches(image, [0], patch_px=1, n_patches=9, seed=seed)
        counts[sample.patches.ravel().astype(int)] += 1
    assert counts.sum() == 3600
    assert np.abs(counts - 100).max() < 5 * np.sqrt(100 * 0.75)


def test_blocks_of_a_large_stack_keep_their_share_and_some() -> None:
    images = np.random.default_rng(0).normal(size=(60, 20, 20))
    ids = np.arange(60)
    whole = sample_patches(images, ids, n_patches=50, **SIZES)
    parts = [
        sample_patches(images[i : i + 1], ids[i : i + 1], n_patches=50, n_images=60, **SIZES)
        for i in range(60)
    ]
    assert max(len(part.keys) for part in parts) < 3 * patches.SURPLUS * 50 / 60
    merged = functools.reduce(lambda a, b: merge_samples(a, b, 50), parts)
    np.testing.assert_array_equal(merged.patches, whole.patches)
