"""A sample of images, and where it lies in a plane."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

from emdask.embeddings import check_embedding, choose_sample, describe_images, embed, read_sample
from emdask.errors import MissingLibraryError, ParameterError


def test_sample_is_spread_over_few_blocks():
    sizes = [128] * 500
    position = choose_sample(sizes, 4 * 64 * 64)
    assert len(position) == 2000
    assert len(np.unique(position // 128)) == 32
    assert position[0] < 128
    assert position[-1] >= 499 * 128
    assert (np.diff(position) > 0).all()


def test_sample_is_all_of_a_small_stack_and_few_of_large_images():
    assert choose_sample([3, 3, 1], 100).tolist() == list(range(7))
    assert len(choose_sample([100] * 9, 2**26)) == 4
    assert choose_sample([5], 2**30).tolist() == [0]


def test_pixels_that_are_not_finite_are_replaced_in_the_sample(rng):
    values = rng.normal(size=(3, 4, 4)).astype("f4")
    values[1, 2, 3], values[2] = np.inf, np.nan
    stack = xr.DataArray(values, dims=("image", "y", "x"))
    found = read_sample(stack, [0, 1, 2])
    np.testing.assert_array_equal(found[0], values[0])
    assert found[1, 2, 3] == np.median(np.delete(values[1].ravel(), 11))
    assert not found[2].any()
    assert np.isinf(stack.values[1, 2, 3])


def test_principal_components_are_those_of_the_covariance(rng):
    features = rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7))
    points, axis = embed(features)
    vectors = np.linalg.eigh(np.cov(features.T))[1]
    expected = (features - features.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    signs = np.sign((points * expected).sum(axis=0))
    np.testing.assert_allclose(points, signs * expected, atol=1e-9)
    assert axis == "principal component"
    # One image, or one feature, lies somewhere, too.
    assert embed(np.ones((1, 3)))[0].tolist() == [[0.0, 0.0]]
    assert embed(np.arange(4.0)[:, None])[0].shape == (4, 2)


def test_umap_gets_the_components(rng, monkeypatch):
    seen = {}

    class Map:
        def __init__(self, **options):
            seen["options"] = options

        def fit_transform(self, components):
            seen["shape"] = components.shape
            return components[:, :2].astype("f4")

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Map))
    points, axis = embed(rng.normal(size=(60, 50)), "umap")
    assert (points.shape, axis) == ((60, 2), "UMAP coordinate")
    assert seen["shape"] == (60, 30)
    assert seen["options"]["random_state"] == 0


def test_embedding_is_checked_before_the_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"needs umap-learn\. Install it: pip install"):
        check_embedding("umap")
    check_embedding("pca")
    with pytest.raises(ParameterError, match="one of pca, umap; got 'tsne'"):
        check_embedding("tsne")


def test_features_have_one_variance_and_do_not_turn(rng):
    images = rng.normal(size=(12, 24, 24))
    features = describe_images(images)
    np.testing.assert_allclose(features.std(axis=0), 1)
    turned = describe_images(np.concatenate([images[:6], np.rot90(images, axes=(1, 2))[6:]]))
    # An even box turns about another point than its middle pixel, which is a shift.
    assert abs(turned - features).mean() < 0.1
    assert abs(features[:6] - features[6:]).mean() > 0.8


def test_features_that_do_not_vary_are_left_out():
    images = np.zeros((3, 16, 16))
    images[:, 4, 5] = [1.0, 2.0, 3.0]
    # The same image but for contrast, which is taken away first.
    points, _ = embed(describe_images(images))
    assert np.isfinite(points).all()
    assert describe_images(np.zeros((3, 16, 16))).shape == (3, 0)
    assert embed(describe_images(np.zeros((3, 16, 16))))[0].shape == (3, 2)
