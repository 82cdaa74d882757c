"""Metrics against the definitions, written out."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from emdask.metrics import low_frequency_ratio, mse, psnr, snr


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    clean = rng.normal(size=(3, 6, 5)).astype("f4")
    return clean + rng.normal(scale=0.5, size=clean.shape).astype("f4"), clean


def test_mse_is_the_mean_squared_difference_of_each_image(pair):
    images, clean = pair
    expected = [
        sum((a - b) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / 30
        for x, y in zip(images, clean, strict=True)
    ]
    np.testing.assert_allclose(mse(images, clean), expected, rtol=1e-6)


def test_psnr_takes_the_range_of_each_clean_image_unless_told(pair):
    images, clean = pair
    by_hand = [
        10 * np.log10(np.ptp(c) ** 2 / m) for c, m in zip(clean, mse(images, clean), strict=True)
    ]
    np.testing.assert_allclose(psnr(images, clean), by_hand, rtol=1e-6)
    np.testing.assert_allclose(
        psnr(images, clean, data_range=2.0), 10 * np.log10(4 / mse(images, clean))
    )


def test_psnr_of_equal_images_is_infinite(pair):
    assert np.isposinf(psnr(pair[1], pair[1])).all()


def test_snr_is_the_ratio_of_variances_and_ignores_offsets(rng):
    clean = rng.normal(size=(1, 200, 200))
    noise = rng.normal(scale=np.sqrt(10), size=clean.shape)
    np.testing.assert_allclose(snr(clean + noise + 7, clean), 0.1, rtol=0.03)


@pytest.mark.parametrize("metric", [mse, psnr, snr])
def test_stacks_and_dask_arrays_stay_lazy_and_agree(pair, metric):
    images, clean = pair
    expected = metric(images, clean)
    lazy = metric(da.from_array(images), da.from_array(clean))
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), expected)
    labelled = metric(*(xr.DataArray(a, dims=("image", "y", "x")) for a in (images, clean)))
    assert labelled.dims == ("image",)
    np.testing.assert_allclose(labelled, expected)


def test_low_frequency_ratio_tells_blobs_from_white_noise(rng):
    white = rng.normal(size=(4, 128, 128))
    np.testing.assert_allclose(low_frequency_ratio(white), 1, atol=0.15)
    y, x = np.mgrid[:128, :128]
    blob = 2 * np.exp(-((y - 64) ** 2 + (x - 64) ** 2) / (2 * 8.0**2))
    assert (low_frequency_ratio(white + blob) > 1.5).all()
    wave = np.cos(2 * np.pi * 38 / 128 * x)[None]
    np.testing.assert_allclose(low_frequency_ratio(wave), 0, atol=1e-12)


def test_low_frequency_ratio_of_nothing_is_nan():
    assert np.isnan(low_frequency_ratio(np.zeros((1, 8, 8)))).all()
