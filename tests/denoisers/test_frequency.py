"""Low-pass and band-pass filters: what they keep, what they choose, and what they refuse."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage

import emdask
from emdask.denoisers.bandpass import Bandpass
from emdask.denoisers.lowpass import Lowpass
from emdask.errors import ParameterError, StackError
from emdask.kernels.bands import best_cutoff, filter_bands, soft_edge
from emdask.kernels.scales import to_frequencies
from emdask.stack import build_stack


def waves(shape: tuple[int, int], *orders: tuple[int, int]) -> np.ndarray:
    """Cosines of half waves (down, across) that an image can hold, one an image."""
    y, x = (np.arange(n) + 0.5 for n in shape)
    return np.stack(
        [
            np.outer(np.cos(np.pi * k * y / shape[0]), np.cos(np.pi * m * x / shape[1]))
            for k, m in orders
        ]
    )


def gain_at(frequency: float, cutoff: float, edge: float) -> float:
    """The soft edge, told once more."""
    first, last = cutoff * (1 - edge / 2), cutoff * (1 + edge / 2)
    if frequency <= first:
        return 1.0
    if frequency >= last:
        return 0.0
    return float(0.5 * (1 + np.cos(np.pi * (frequency - first) / (last - first))))


ORDERS = ((0, 3), (4, 0), (6, 8), (11, 2), (9, 20), (30, 3))


@pytest.mark.parametrize("edge", [0.0, 0.3, 1.0, 2.0])
def test_each_wave_is_multiplied_by_its_gain(device: str, edge: float) -> None:
    images = waves((40, 51), *ORDERS)
    result = emdask.denoise(
        images, "lowpass", cutoff_A=15.0, pixel_size_A=3.0, edge=edge, device=device
    ).compute()
    gains = [gain_at(np.hypot(k / 80, m / 102), 0.2, edge) for k, m in ORDERS]
    np.testing.assert_allclose(result, images * np.reshape(gains, (-1, 1, 1)), atol=2e-6)


def test_a_band_is_left(device: str) -> None:
    images = waves((40, 51), *ORDERS)
    parameters: dict[str, Any] = {"short_A": 12.0, "long_A": 40.0, "pixel_size_A": 4.0}
    result = emdask.denoise(images, "bandpass", edge=0.4, device=device, **parameters).compute()
    frequencies = [np.hypot(k / 80, m / 102) for k, m in ORDERS]
    gains = [gain_at(f, 1 / 3, 0.4) * (1 - gain_at(f, 0.1, 0.4)) for f in frequencies]
    np.testing.assert_allclose(result, images * np.reshape(gains, (-1, 1, 1)), atol=2e-6)


@pytest.mark.parametrize("method", ["lowpass", "bandpass"])
def test_the_mean_is_kept(method: str, rng: np.random.Generator) -> None:
    images = rng.normal(30000, 2, size=(3, 33, 40))
    result = emdask.denoise(images, method).compute()
    np.testing.assert_allclose(result.mean(axis=(1, 2), dtype="f8"), images.mean(axis=(1, 2)), 1e-6)


def test_borders_do_not_wrap() -> None:
    step = np.repeat([0.0, 1.0], 32) * np.ones((64, 1))
    result = emdask.denoise(step[None], "lowpass", cutoff_A=8, pixel_size_A=1, edge=1.5).compute()
    assert np.abs(result[0, :, 0]).max() < 0.02
    assert np.abs(result[0, :, -1] - 1).max() < 0.02


def test_the_bandpass_takes_gradients_and_leaves_particles() -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    particle = np.exp(-(y**2 + x**2) / (2 * 8**2))
    gradient = 0.03 * x - 0.02 * y
    plain, tilted = emdask.denoise(
        np.stack([particle, particle + gradient]), "bandpass", sigma=0.01
    ).compute()
    assert np.abs(tilted - plain).std() < 0.15 * gradient.std()
    assert np.corrcoef(plain.ravel(), particle.ravel())[0, 1] > 0.99


def test_the_cutoff_is_that_of_least_error(rng: np.random.Generator) -> None:
    for width, sigma in ((2.0, 0.2), (4.0, 0.5)):
        clean = scipy.ndimage.gaussian_filter(rng.normal(size=(96, 80)), width, mode="mirror")
        clean /= clean.std()
        noisy = clean + rng.normal(scale=sigma, size=clean.shape)
        tried = np.geomspace(0.01, 0.7, 80)
        errors = [
            np.mean((filter_bands(noisy[None], 0.0, cutoff, 1.0, "auto")[0] - clean) ** 2)
            for cutoff in tried
        ]
        chosen = best_cutoff(to_frequencies(noisy), sigma, 1.0)
        own = np.mean((filter_bands(noisy[None], 0.0, chosen, 1.0, sigma)[0] - clean) ** 2)
        assert own < 1.03 * min(errors)


def test_the_estimated_error_is_the_error(rng: np.random.Generator) -> None:
    """`best_cutoff` against the formula of Stein, coefficient by coefficient."""
    spectrum = rng.normal(size=(24, 36))
    spectrum[:6, :6] *= 9
    frequency = np.hypot(np.arange(24)[:, None] / 48, np.arange(36) / 72)
    chosen = best_cutoff(spectrum, 1.0, 0.5)

    def risk(cutoff: float) -> float:
        gain = soft_edge(frequency, cutoff, 0.5)
        return float(((1 - gain) ** 2 * spectrum**2 + 2 * gain - 1).sum())

    best = min(risk(cutoff) for cutoff in np.geomspace(0.01, 1, 300))
    assert risk(chosen) < best + 0.02 * abs(risk(1.0))


def test_white_noise_is_all_taken_away(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(4, 64, 64))
    assert emdask.denoise(noise, "lowpass").compute().var() < 0.02


def test_resolutions_take_the_pixel_size_of_the_stack() -> None:
    images = waves((40, 51), *ORDERS)
    stack = build_stack(da.from_array(images), {}, {"pixel_size_A": 3.0})
    result = emdask.denoise(stack, "lowpass", cutoff_A=15.0)
    (step,) = result.attrs["provenance"]
    assert step["parameters"]["pixel_size_A"] == 3.0
    given = emdask.denoise(images, "lowpass", cutoff_A=15.0, pixel_size_A=3.0)
    np.testing.assert_array_equal(result.values, given.compute())


def test_what_is_missing_is_told_at_once() -> None:
    with pytest.raises(StackError, match=r"^lowpass: cutoff_A is in Å, and the pixel size of"):
        emdask.denoise(np.zeros((1, 8, 8)), "lowpass", cutoff_A=20.0)
    with pytest.raises(StackError, match=r"^bandpass: long_A is in Å.* Pass pixel_size_A=\.\.\."):
        emdask.denoise(np.zeros((1, 8, 8)), "bandpass", long_A=200.0)
    with pytest.raises(ParameterError, match=r"cutoff_A must be at least two pixels, 4 Å; got 3"):
        emdask.denoise(np.zeros((1, 8, 8)), "lowpass", cutoff_A=3.0, pixel_size_A=2)


@pytest.mark.parametrize("bad", [0, -3.0, "automatic", np.nan, np.inf, True, None])
def test_resolutions_are_lengths(bad: Any) -> None:
    for record, name in ((Lowpass, "cutoff_A"), (Bandpass, "short_A"), (Bandpass, "long_A")):
        with pytest.raises(ParameterError, match=rf'{name} must be "auto" or a number above 0'):
            record(**{name: bad})


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ParameterError, match=r"edge must be a number in \[0, 2\]; got 2\.5"):
        Lowpass(edge=2.5)
    with pytest.raises(ParameterError, match="pixel_size_A must be None or a number above 0"):
        Lowpass(pixel_size_A=0)
    with pytest.raises(ParameterError, match="sigma must be"):
        Bandpass(sigma=-1)
    with pytest.raises(ParameterError, match=r"short_A must be below long_A; got \(50, 50\)"):
        Bandpass(short_A=50, long_A=50)
