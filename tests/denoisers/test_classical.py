"""The classical filters: each against its library or a slow reference, and what they do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pywt
from scipy.ndimage import gaussian_filter, median_filter, uniform_filter
from skimage import restoration

import emdask
from emdask.denoisers import FAMILY, bilateral, median, nl_means, wavelet
from emdask.errors import ParameterError
from emdask.kernels.scales import halve, merge_scales
from emdask.method import find_method
from emdask.simulators.demo_images import demo_particles

Floats = npt.NDArray[np.floating]
METHODS = (
    *("gaussian", "mean", "median", "bilateral", "nl_means", "tv_chambolle", "tv_bregman"),
    "wavelet",
)
WITH_STRENGTH = METHODS[3:]


def run(method: str, images: Any, **parameters: Any) -> Floats:
    record = find_method(FAMILY, method)
    result: Floats = record.apply["cpu"](images, record.params(**parameters))
    return result


def error(images: Any, clean: Floats) -> float:
    return float(np.mean((images - clean) ** 2, dtype="f8"))


def by_hand(images: Floats, sigma: float, function: Any) -> Floats:
    """What a function of one image gives at mean 0 and unit noise."""
    means = images.mean(axis=(1, 2), keepdims=True, dtype="f8")
    units = (images - means) / sigma
    return np.asarray(np.stack([function(unit) for unit in units]) * sigma + means)


@pytest.fixture
def images(rng: np.random.Generator) -> Floats:
    """Small images of a grey level far from 0: edges, a slope, noise of deviation 3."""
    y, x = np.mgrid[:24, :30]
    clean = 20.0 * (np.hypot(y - 12, x - 15) < 7) + 0.3 * x
    return np.asarray(500 + clean + 3 * rng.normal(size=(2, 24, 30)))


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("gaussian", {"width_px": -1}, 'width_px must be "auto" or a number in .0, 1000.; got -1'),
        ("gaussian", {"width_px": "wide"}, "got 'wide'"),
        ("gaussian", {"width_px": True}, "got True"),
        ("gaussian", {"width_px": float("nan")}, "got nan"),
        ("gaussian", {"sigma": -1}, 'sigma must be "auto" or a number of at least 0; got -1'),
        ("mean", {"size_px": 4}, 'size_px must be "auto" or an odd integer in .1, 999.; got 4'),
        ("mean", {"size_px": 3.0}, "got 3.0"),
        (
            "median",
            {"size_px": 51},
            'size_px must be "auto" or an odd integer in .1, 49.; got 51',
        ),
        ("bilateral", {"guide_px": -1}, 'guide_px must be "auto" or a number'),
        ("bilateral", {"strength": 0}, "strength must be a number in"),
        (
            "nl_means",
            {"patch_px": "auto"},
            "patch_px must be an odd integer in .1, 99.; got 'auto'",
        ),
        ("nl_means", {"window_px": 10}, "window_px must be an odd integer"),
        ("nl_means", {"n_scales": 0}, "n_scales must be an integer in"),
        ("tv_chambolle", {"strength": "high"}, "strength must be a number in"),
        ("tv_chambolle", {"n_iterations": 0}, "n_iterations must be an integer in"),
        ("tv_bregman", {"n_iterations": 2.5}, "n_iterations must be an integer in"),
        ("wavelet", {"wavelet": "sym44"}, "discrete wavelet of PyWavelets; got 'sym44'.*sym4"),
        ("wavelet", {"shrinkage": "sure"}, "shrinkage must be one of bayes, visu"),
        ("wavelet", {"cycle_spin": 5}, "cycle_spin must be a power of two in .1, 256.; got 5"),
        ("wavelet", {"n_scales": 9}, "n_scales must be an integer in"),
    ],
)
def test_parameters_out_of_range(method: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{method}: .*{message}"):
        emdask.denoise(np.zeros((1, 8, 8)), method, **parameters)


def test_given_widths_are_scipys(images: Floats) -> None:
    for method, parameters, function in (
        ("gaussian", {"width_px": 1.7}, lambda image: gaussian_filter(image, 1.7)),
        ("gaussian", {"width_px": 0}, lambda image: image),
        ("mean", {"size_px": 5}, lambda image: uniform_filter(image, 5)),
        ("median", {"size_px": 5}, lambda image: median_filter(image, 5)),
    ):
        expected = np.stack([function(image) for image in images])
        np.testing.assert_allclose(run(method, images, **parameters), expected, rtol=1e-6)


def test_the_libraries_on_images_of_unit_noise(images: Floats) -> None:
    for method, function in (
        ("tv_chambolle", lambda image: restoration.denoise_tv_chambolle(image, 2.2, 0, 40)),
        (
            "tv_bregman",
            lambda image: restoration.denoise_tv_bregman(
                np.pad(image, 8, mode="symmetric"), 0.5, max_num_iter=40, isotropic=False
            )[8:-8, 8:-8],
        ),
    ):
        result = run(method, images, sigma=3.0, strength=2.0, n_iterations=40)
        np.testing.assert_allclose(result, by_hand(images, 3.0, function), atol=1e-3)


def test_nl_means_of_one_scale_is_the_librarys(images: Floats) -> None:
    params = nl_means.NlMeans(sigma=3.0, strength=0.5, patch_px=5, window_px=9, n_scales=2)

    def average(image: Floats, n_scales: int, snr: float) -> Floats:
        h = 0.5 * nl_means.suitable_h(snr, n_scales)
        averaged = restoration.denoise_nl_means(image, 5, 4, h, sigma=1.0, fast_mode=True)
        return np.asarray(averaged, np.float32)

    def one_scale(image: Floats) -> Floats:
        return average(image, 1, image.var() - 1)

    def two_scales(image: Floats) -> Floats:
        coarse = halve(image.astype("f4")).astype("f8")
        fine, coarse = (average(scale, 2, image.var() - 1) for scale in (image, coarse))
        return np.asarray(merge_scales(fine, coarse))

    for n_scales, function in ((1, one_scale), (2, two_scales)):
        result = nl_means.denoise_cpu(images, replace(params, n_scales=n_scales))
        np.testing.assert_allclose(result, by_hand(images, 3.0, function), rtol=1e-5)


def test_nl_means_scales_and_decay_follow_the_snr() -> None:
    params = nl_means.NlMeans()
    assert nl_means.suitable_scales((128, 128), 0.1, params) == 4
    assert nl_means.suitable_scales((128, 128), 0.2, params) == 3
    assert nl_means.suitable_scales((36, 90), 0.2, params) == 3
    assert nl_means.suitable_scales((35, 90), 0.2, params) == 3
    assert nl_means.suitable_scales((34, 90), 0.2, params) == 2
    assert nl_means.suitable_scales((17, 90), 0.2, params) == 1
    # A coarser scale has the fourfold SNR.
    assert nl_means.suitable_h(0.2, 3) == pytest.approx(nl_means.suitable_h(0.05, 4))
    decays = [nl_means.suitable_h(snr, 3) for snr in (0.0, 0.1, 0.2, 5.0)]
    assert decays == sorted(decays)


def slow_bilateral(image: Floats, guide: Floats, width_px: float, range_width: float) -> Floats:
    radius = int(bilateral.TRUNCATE * width_px + 0.5)
    padded, padded_guide = (np.pad(x, radius, mode="symmetric") for x in (image, guide))
    offsets = np.arange(-radius, radius + 1)
    near = np.exp(-np.add.outer(offsets**2, offsets**2) / (2 * width_px**2))
    result = np.empty(image.shape)
    for y, x in np.ndindex(*image.shape):
        window = np.s_[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
        alike = np.exp(-((padded_guide[window] - guide[y, x]) ** 2) / (2 * range_width**2))
        result[y, x] = (near * alike * padded[window]).sum() / (near * alike).sum()
    return result


@pytest.mark.parametrize("guide_px", [0.0, 1.2])
def test_bilateral_is_its_definition(
    images: Floats, guide_px: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    impulse = np.zeros((21, 21))
    impulse[10, 10] = 1
    noise = np.sqrt((gaussian_filter(impulse, guide_px) ** 2).sum())

    def filter_image(image: Floats) -> Floats:
        guide = gaussian_filter(image, guide_px)
        return slow_bilateral(image, guide, 1.5, 0.8 * bilateral.RANGE * noise)

    monkeypatch.setattr(bilateral, "BAND_PIXELS", 30 * 7)
    result = run("bilateral", images, sigma=3.0, strength=0.8, width_px=1.5, guide_px=guide_px)
    np.testing.assert_allclose(result, by_hand(images, 3.0, filter_image), rtol=1e-5)


def test_bilateral_without_a_limit_of_grey_levels_is_a_gaussian(images: Floats) -> None:
    result = run("bilateral", images, sigma=30.0, strength=100, width_px=1.5)
    blurred = np.stack([gaussian_filter(image, 1.5, truncate=2.0) for image in images])
    np.testing.assert_allclose(result, blurred, atol=0.01)


def hard(band: Floats) -> Floats:
    return np.where(np.abs(band) > 1.5, band, 0)


# That the image is short beside the filters of the coarser levels.
@pytest.mark.filterwarnings("ignore:Level value:UserWarning")
@pytest.mark.parametrize("name", ["haar", "db2", "bior4.4"])
@pytest.mark.parametrize(("n_scales", "n_spun"), [(1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (3, 3)])
@pytest.mark.parametrize("at_once", [0, 1 << 17])
def test_shared_shifts_are_all_shifts(
    name: str,
    n_scales: int,
    n_spun: int,
    at_once: int,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against the mean over shifts, each with a transform of its own."""
    monkeypatch.setattr(wavelet, "AT_ONCE_PIXELS", at_once)
    image = rng.normal(size=(16, 24)) + np.linspace(-3, 3, 24)
    total = np.zeros(image.shape)
    for dy, dx in np.ndindex(2**n_spun, 2**n_spun):
        shifted = np.roll(image, (-dy, -dx), (0, 1))
        rest, *details = pywt.wavedec2(shifted, name, wavelet.MODE, n_scales)
        shrunk = [tuple(hard(band) for band in level) for level in details]
        total += np.roll(pywt.waverec2([rest, *shrunk], name, wavelet.MODE), (dy, dx), (0, 1))
    result = wavelet.spin(image[None], name, n_scales, n_spun, hard)[0]
    np.testing.assert_allclose(result, total / 4**n_spun, atol=1e-10)


def test_thresholds_of_wavelets(rng: np.random.Generator) -> None:
    band = 2.0 * rng.normal(size=(1, 200, 200))
    threshold = 0.5 * wavelet.BAYES / math.sqrt(np.mean(band**2) - 1)
    soft = np.sign(band) * np.maximum(np.abs(band) - threshold, 0)
    np.testing.assert_allclose(wavelet.shrink_bayes(0.5, 1)(band), soft, atol=1e-6)
    np.testing.assert_array_equal(wavelet.shrink_bayes(1.0, 1)(band / 4), 0)
    threshold = 0.5 * wavelet.VISU * math.sqrt(2 * math.log(10_000))
    expected = np.where(np.abs(band) < threshold, 0, band)
    np.testing.assert_array_equal(wavelet.shrink_visu(0.5, 10_000)(band), expected)


@pytest.mark.parametrize(("snr", "sizes_px"), [(1.0, (3, 5, 7)), (0.1, (5, 7, 11))])
def test_median_takes_a_size_near_the_best(snr: float, sizes_px: tuple[int, ...]) -> None:
    stack, clean = demo_particles(2, box_px=64, pixel_size_A=4.0, snr=snr, ctf=False)
    errors = [error(run("median", stack.values, size_px=size), clean) for size in sizes_px]
    assert error(run("median", stack.values, sigma=1.0), clean) < 1.25 * min(errors)


def test_median_of_counted_electrons_does_not_mind_ties(rng: np.random.Generator) -> None:
    counts = rng.poisson(1.0, size=(1, 64, 64)).astype("f4")
    assert median.best_size(counts[0] - counts.mean()) >= 7


def test_median_fits_large_images_to_parts_of_them(rng: np.random.Generator) -> None:
    fine = 5 * (np.indices((600, 600)) // 4 % 2).sum(axis=0) % 10 + rng.normal(size=(600, 600))
    assert median.best_size(fine.astype("f4")) <= 3
    assert median.best_size(rng.normal(size=(3, 100_000)).astype("f4")) >= 7


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("snr", [1.0, 0.1])
def test_helps_where_noise_prevails(method: str, snr: float) -> None:
    stack, clean = demo_particles(2, box_px=64, pixel_size_A=4.0, snr=snr, ctf=False)
    noisy = stack.values
    result = run(method, noisy)
    gaussian = min(error(gaussian_filter(noisy, (0, w, w)), clean) for w in np.arange(0.5, 6, 0.25))
    # Of the median no more is asked than to come near.
    assert error(result, clean) < (1.8 if method == "median" else 1.25) * gaussian
    assert error(result, clean) < 0.15 * error(noisy, clean)


@pytest.mark.parametrize("method", WITH_STRENGTH)
def test_more_strength_is_smoother(method: str) -> None:
    noisy = demo_particles(2, box_px=64, pixel_size_A=4.0, snr=0.2, ctf=False)[0].values
    results = [run(method, noisy, strength=strength) for strength in (0.4, 0.8, 1.6)]
    roughness = [float(np.abs(np.diff(result)).mean()) for result in results]
    assert roughness == sorted(roughness, reverse=True)
    removed = [error(result, noisy) for result in results]
    assert removed == sorted(removed)


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 9, 1), (1, 4, 4)])
def test_total_variation_of_thin_images(shape: tuple[int, int, int]) -> None:
    image = np.linspace(0, 9, math.prod(shape)).reshape(shape)
    smooth = run("tv_bregman", image, sigma=1.0)
    assert smooth.mean() == pytest.approx(image.mean(), abs=0.01)
    assert smooth.std() < image.std()
