"""Coloured noise: variance 1, the stated spectrum, the same image in any batch."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels.coloured_noise import colour_noise, noise_gain, noise_power
from emdask.kernels.fourier import radial_power


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (33, 45)])
def test_the_mean_power_of_the_whole_plane_is_one(shape):
    frequencies = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    power = noise_power(frequencies)
    gain = noise_gain(shape)
    np.testing.assert_allclose(gain**2, (power / power.mean())[:, : shape[1] // 2 + 1], rtol=1e-5)


def test_noise_has_variance_one_and_the_stated_spectrum(rng):
    white = rng.standard_normal((40, 96, 96), np.float32)
    options = {"rise": 8.0, "knee": 0.1, "power_at_nyquist": 0.4}
    noise = colour_noise(white, noise_gain((96, 96), **options))
    assert noise.dtype == np.float32
    assert noise.var() == pytest.approx(1, rel=0.01)
    frequency, power = radial_power(noise)
    measured = power.mean(axis=0)
    stated = noise_power(frequency, **options)
    ratio = measured / stated
    # A ring of radius r holds 3 r free terms in each of 40 images.
    scatter = 1 / np.sqrt(40 * 3 * np.arange(1, len(ratio) + 1))
    assert (np.abs(ratio / ratio[20:].mean() - 1) < 4.5 * scatter).all()


def test_an_image_does_not_depend_on_its_batch(rng):
    white, gain = rng.standard_normal((5, 30, 34), np.float32), noise_gain((30, 34))
    np.testing.assert_array_equal(colour_noise(white, gain)[3:4], colour_noise(white[3:4], gain))


def test_without_rise_and_fall_noise_stays_white(rng):
    white = rng.standard_normal((2, 32, 32), np.float32)
    gain = noise_gain((32, 32), rise=0.0, power_at_nyquist=1.0)
    np.testing.assert_allclose(colour_noise(white, gain), white, atol=1e-5)
