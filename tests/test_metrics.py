"""Metrics against the definitions, written out."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

from emdask.errors import ParameterError, StackError
from emdask.metrics import (
    affine_fit,
    frc,
    frc_resolution,
    low_frequency_ratio,
    mse,
    psnr,
    snr,
    ssim,
)


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


def test_integers_do_not_wrap_around():
    images, clean = np.full((2, 2), 3, "u1"), np.array([[5, 3], [3, 3]], "u1")
    assert mse(images, clean) == 1
    assert psnr(images, clean, data_range=2) == pytest.approx(10 * np.log10(4))
    assert psnr(images.astype("i1") - 100, clean.astype("i1"), data_range=1) < 0
    assert np.isposinf(psnr(np.array([[-100, 100]], "i1"), np.array([[-100, 100]], "i1")))


def test_a_range_of_any_number_type_is_squared_without_overflow():
    images, clean = np.zeros((2, 3, 4), "u1"), np.full((2, 3, 4), 102, "u1")
    expected = 10 * np.log10(255**2 / 102**2)
    whole = np.array([255, 255], "u1")
    for span in (np.uint8(255), np.float16(255), 255, whole, da.from_array(whole)):
        np.testing.assert_allclose(psnr(images, clean, data_range=span), expected)
    stacks = [xr.DataArray(a, dims=("image", "y", "x")) for a in (images, clean)]
    for span in (whole, xr.DataArray(whole, dims="image")):
        np.testing.assert_allclose(psnr(*stacks, data_range=span), expected)


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize("span", [0, -1.0, np.nan, np.inf, "x", True, np.int8(-1)])
def test_a_range_that_is_no_number_above_0_is_refused(metric, span):
    with pytest.raises(ParameterError, match=r": data_range must be a number above 0; got "):
        metric(np.zeros((16, 16)), np.eye(16), data_range=span)


def test_ssim_is_that_of_scikit_image(rng):
    from skimage.metrics import structural_similarity

    clean = rng.normal(size=(3, 23, 31)).cumsum(axis=2)
    images = clean + rng.normal(size=clean.shape)
    ranges = np.ptp(clean, axis=(1, 2))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    for given, expected in ((None, ranges), (4.0, np.full(3, 4.0)), (ranges / 2, ranges / 2)):
        by_skimage = [
            structural_similarity(image, truth, data_range=span, **options)
            for image, truth, span in zip(images, clean, expected, strict=True)
        ]
        np.testing.assert_allclose(ssim(images, clean, data_range=given), by_skimage, rtol=1e-9)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(StackError, match=r"at least 11 x 11 pixels; got \(10, 12\)"):
        ssim(np.zeros((10, 12)), np.zeros((10, 12)))


def slow_frc(image: np.ndarray, other: np.ndarray) -> list[float]:
    h, w = image.shape
    a, b = np.fft.fft2(image), np.fft.fft2(other)
    rings: dict[int, list[complex]] = {}
    for y in range(h):
        for x in range(w):
            frequency = np.hypot(np.fft.fftfreq(h)[y], np.fft.fftfreq(w)[x])
            terms = (a[y, x] * b[y, x].conj(), abs(a[y, x]) ** 2, abs(b[y, x]) ** 2)
            if frequency <= 0.5:
                rings.setdefault(int(np.rint(frequency * min(h, w))), []).append(terms)
    sums = [np.sum(rings[k], axis=0) for k in range(1, min(h, w) // 2 + 1)]
    return [float((s[0] / np.sqrt(s[1] * s[2])).real) for s in sums]


@pytest.mark.parametrize("shape", [(12, 12), (11, 14), (15, 9)])
def test_frc_is_the_correlation_of_the_terms_of_each_ring(rng, shape):
    images, clean = rng.normal(size=(2, 2, *shape))
    frequency, correlation = frc(images, clean)
    assert frequency.shape == (min(shape) // 2,)
    expected = [slow_frc(a, b) for a, b in zip(images, clean, strict=True)]
    np.testing.assert_allclose(correlation, expected, atol=1e-12)


def test_frc_knows_no_grey_scale_and_takes_nothing_for_0(rng):
    image = rng.normal(size=(16, 16))
    np.testing.assert_allclose(frc(image, 3 - 2 * image)[1], -1)
    np.testing.assert_array_equal(frc(image, np.ones((16, 16)))[1], np.zeros(8))


def test_frc_of_signal_and_noise_has_the_value_of_its_snr(rng):
    clean, noise = rng.normal(size=(2, 20, 128, 128))
    correlation = frc(clean + 2 * noise, clean)[1].mean()
    assert correlation == pytest.approx(np.sqrt(1 / 5), abs=0.01)


def test_a_taper_takes_away_the_step_between_opposite_edges(rng):
    """A ramp is a step to the Fourier transform, and the same one in both images."""
    ramp = np.linspace(0, 30, 64) * np.ones((64, 1))
    one, two = rng.normal(size=(2, 10, 64, 64))
    assert frc(ramp + one, ramp + two)[1][:, 20:].mean() > 0.1
    assert abs(frc(ramp + one, ramp + two, taper=1)[1][:, 20:].mean()) < 0.02
    with pytest.raises(ParameterError, match=r"taper must be a number in \[0, 1\]; got 2"):
        frc(ramp, ramp, taper=2)


def test_a_taper_is_a_cosine_and_scales_with_the_side(rng):
    image, other = rng.normal(size=(2, 33, 20))
    y, x = (np.sin(np.pi * np.arange(n) / (n - 1)) ** 2 for n in (33, 20))
    window = y[:, None] * x
    by_hand = frc((image - image.mean()) * window, (other - other.mean()) * window)[1]
    np.testing.assert_allclose(frc(image, other, taper=1.0)[1], by_hand, atol=1e-12)


@pytest.mark.parametrize("width_px", [2.0, 3.15, 8.0])
def test_frc_of_a_blur_does_not_rise_above_that_of_the_noisy_images(rng, width_px):
    """Where a blur leaves nothing, there is what the taper spreads of low frequencies."""
    y, x = np.mgrid[:128, :120]
    places = rng.uniform(30, 90, (4, 9, 2))
    clean = np.array(
        [sum(np.exp(-((y - v) ** 2 + (x - u) ** 2) / 40) for v, u in p) for p in places]
    )
    noisy = clean + 0.3 * rng.normal(size=clean.shape)
    blurred = gaussian_filter(noisy, (0, width_px, width_px))
    of_noisy, of_blurred = (frc(a, clean, taper=1.0)[1].mean(axis=0) for a in (noisy, blurred))
    assert (of_blurred < np.maximum(of_noisy, 0) + 0.1).all()
    np.testing.assert_allclose(of_blurred[:4], of_noisy[:4], atol=0.1)
    assert of_blurred[0] > 0.9


def test_rings_count_as_empty_only_where_a_taper_can_have_filled_them(rng):
    """A wave of 1e-6 of the power of a blob is seen, and without a taper one of 1e-12."""
    y, x = np.mgrid[:64, :64]
    blob = np.exp(-((y - 32) ** 2 + (x - 32) ** 2) / 50)
    wave = np.cos(2 * np.pi * 20 / 64 * x)
    for size, taper in ((1e-3, 1.0), (1e-6, 0.0)):
        pair = (blob + size * wave, blob - size * wave)
        assert frc(*pair, taper=taper)[1][19] < -0.9
    assert frc(blob + 1e-6 * wave, blob - 1e-6 * wave, taper=1.0)[1][19] == 0


def test_frc_resolution_interpolates_between_rings():
    frequency = np.array([0.1, 0.2, 0.3])
    curves = np.array([[1.0, 0.9, 0.4], [0.4, 1.0, 1.0], [1.0, 1.0, 0.6], [1.0, 0.5, 0.1]])
    np.testing.assert_allclose(frc_resolution(frequency, curves), [0.28, 0, 0.3, 0.2])
    np.testing.assert_allclose(frc_resolution(frequency, curves[0], threshold=0.95), 0.15)


def test_affine_fit_is_the_least_squares_solution(pair):
    images, clean = pair
    fitted = affine_fit(images, clean)
    for image, truth, found in zip(images, clean, fitted, strict=True):
        slope, offset = np.polyfit(image.ravel(), truth.ravel(), 1)
        np.testing.assert_allclose(found, slope * image + offset, rtol=1e-5, atol=1e-6)


def test_affine_fit_undoes_scale_and_offset_and_takes_constants(pair):
    clean = pair[1]
    np.testing.assert_allclose(affine_fit(7 - 0.1 * clean, clean), clean, atol=1e-5)
    constant = affine_fit(np.ones((6, 5)), clean[0])
    np.testing.assert_allclose(constant, np.full((6, 5), clean[0].mean()), rtol=1e-6)


def curves(images, clean):
    return frc(images, clean)[1]


METRICS = [mse, psnr, snr, ssim, curves, affine_fit]


@pytest.fixture
def large_pair(rng) -> tuple[np.ndarray, np.ndarray]:
    clean = rng.normal(size=(3, 12, 13)).astype("f4")
    return clean + rng.normal(scale=0.5, size=clean.shape).astype("f4"), clean


@pytest.mark.parametrize("metric", METRICS)
def test_dask_arrays_stay_lazy_and_agree(large_pair, metric):
    images, clean = large_pair
    expected = metric(images, clean)
    chunked = (da.from_array(images, (2, 5, 13)), da.from_array(clean, (1, 12, 4)))
    for first, second in (chunked, (chunked[0], clean), (images, chunked[1])):
        lazy = metric(first, second)
        assert isinstance(lazy, da.Array)
        assert lazy.dtype == np.float64
        assert lazy.shape == expected.shape
        np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_stacks_keep_their_labels(large_pair, metric):
    images, clean = large_pair
    expected = metric(images, clean)
    rest = {affine_fit: ("y", "x"), curves: ("frequency",)}.get(metric, ())
    stack = xr.DataArray(
        images, dims=("image", "y", "x"), coords={"image_id": ("image", [7, 8, 9])}
    )
    for truth in (stack.copy(data=clean), stack.copy(data=clean).chunk(image=1)):
        labelled = metric(stack, truth)
        assert labelled.dims == ("image", *rest)
        assert labelled.image_id.values.tolist() == [7, 8, 9]
        assert (labelled.chunks is None) == (truth.chunks is None)
        np.testing.assert_allclose(labelled, expected, rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_images_of_another_size_or_with_other_labels_are_refused(large_pair, metric):
    images, clean = large_pair
    for first in (images, da.from_array(images)):
        with pytest.raises(StackError, match=r"must have one size; got \[\(12, 13\), \(12, 12\)\]"):
            metric(first, clean[..., :12])
    with pytest.raises(StackError, match="must have one size"):
        metric(images, clean[..., :1])
    dims = ("image", "y", "x")
    stack, other = (
        xr.DataArray(a, dims=dims, coords={"image": numbers})
        for a, numbers in ((images, [0, 1, 2]), (clean, [7, 8, 9]))
    )
    with pytest.raises(StackError, match="must have the same lengths and labels"):
        metric(stack, other)


@pytest.mark.parametrize("metric", METRICS)
def test_one_clean_image_serves_many(large_pair, metric):
    images, clean = large_pair
    expected = metric(images, np.stack([clean[0]] * 3))
    np.testing.assert_allclose(metric(images, clean[0]), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_building_computes_nothing(metric):
    def refuse(*_):
        raise AssertionError("computed")

    lazy = da.zeros((4, 16, 16), chunks=(2, 16, 16)).map_blocks(refuse, meta=np.empty((0, 0, 0)))
    for images in (lazy, xr.DataArray(lazy, dims=("image", "y", "x"))):
        assert metric(images, images).shape[0] == 4


def test_frequencies_and_resolutions_of_stacks(large_pair):
    stacks = [xr.DataArray(da.from_array(a), dims=("image", "y", "x")) for a in large_pair]
    frequency, correlation = frc(*stacks)
    np.testing.assert_array_equal(correlation.frequency, frequency)
    found = frc_resolution(frequency, correlation)
    assert found.dims == ("image",)
    assert found.chunks is not None
    np.testing.assert_allclose(found, frc_resolution(*frc(*large_pair)))


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
