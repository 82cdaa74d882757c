"""The noise estimate: right on white noise whatever lies under it."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter
from skimage import data

from emdask.kernels.noise import bisect_median, estimate_sigma, estimate_snr

Floats = npt.NDArray[np.floating]
SNRS = (0.01, 0.1, 1.0)


def blobs(rng: np.random.Generator) -> Floats:
    """A particle-like image: smooth random density within a disc."""
    y, x = np.mgrid[-64:64, -64:64]
    return gaussian_filter(rng.normal(size=(128, 128)), 2.5) * (np.hypot(y, x) < 40)


def assert_estimates(clean: Floats, snr: float, rng: np.random.Generator) -> None:
    sigma = np.sqrt(clean.var() / snr)
    noisy = (clean + sigma * rng.normal(size=clean.shape)).astype(np.float32)
    assert estimate_sigma(noisy[None])[0] == pytest.approx(sigma, rel=0.05)
    assert estimate_snr(noisy[None], np.array([sigma]))[0] == pytest.approx(snr, rel=0.1, abs=0.03)


@pytest.mark.parametrize("snr", SNRS)
def test_particle(snr: float, rng: np.random.Generator) -> None:
    assert_estimates(blobs(rng), snr, rng)


@pytest.mark.parametrize("snr", SNRS)
def test_photograph(snr: float, rng: np.random.Generator) -> None:
    assert_estimates(data.camera().astype(float), snr, rng)


@pytest.mark.parametrize("snr", SNRS)
def test_projection_of_a_map(snr: float, shared_data: Path, rng: np.random.Generator) -> None:
    volume = mrcfile.read(shared_data / "maps" / "betaGal.mrc")
    for axis in range(3):
        assert_estimates(volume.sum(axis=axis).astype(float), snr, rng)


def test_counted_electrons(rng: np.random.Generator) -> None:
    counts = rng.poisson(1.3, size=(1, 256, 256))
    assert estimate_sigma(counts)[0] == pytest.approx(np.sqrt(1.3), rel=0.05)


def test_noise_that_fades_towards_the_finest_detail(rng: np.random.Generator) -> None:
    noise = gaussian_filter(rng.normal(size=(1, 256, 256)), (0, 0.4, 0.4))
    finest = np.diff(np.diff(noise[0], axis=0), axis=1).std() / 2
    assert estimate_sigma(noise)[0] > 1.05 * finest
    assert estimate_sigma(noise)[0] == pytest.approx(noise.std(), rel=0.1)


def test_unit_and_offset(rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, 64, 48))
    sigmas = estimate_sigma(images)
    np.testing.assert_allclose(estimate_sigma(1000 + 5 * images), 5 * sigmas, rtol=1e-9)
    np.testing.assert_array_equal(estimate_sigma(images[1:]), sigmas[1:])


def test_no_noise() -> None:
    images = np.full((2, 16, 16), 3, np.uint8)
    np.testing.assert_array_equal(estimate_sigma(images), 0)
    np.testing.assert_array_equal(estimate_snr(images, np.zeros(2)), np.inf)
    np.testing.assert_array_equal(estimate_sigma(np.ones((2, 1, 9))), 0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (7, 1), (10, 10)])
def test_median_by_bisection(shape: tuple[int, int], rng: np.random.Generator) -> None:
    values = np.concatenate(
        [rng.normal(size=(3, *shape)) ** 2, np.zeros((1, *shape)), rng.integers(0, 3, (3, *shape))]
    )
    np.testing.assert_array_equal(bisect_median(values), np.median(values, axis=(1, 2)))
