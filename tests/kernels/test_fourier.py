"""Spectra against the discrete Fourier transform written out."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels.fourier import frequency_grid, half_plane_weights, power_spectrum, radial_power


@pytest.mark.parametrize("shape", [(6, 6), (5, 7), (8, 5)])
def test_power_spectrum_is_that_of_the_transform(shape, rng):
    image = rng.normal(loc=3.0, size=shape)
    y, x = np.indices(shape)
    for ky, kx in [(0, 1), (1, 0), (2, 2)]:
        wave = np.exp(-2j * np.pi * (ky * y / shape[0] + kx * x / shape[1]))
        expected = abs((image * wave).sum()) ** 2 / image.size
        np.testing.assert_allclose(power_spectrum(image)[ky, kx], expected)
    np.testing.assert_allclose(power_spectrum(image)[0, 0], 0, atol=1e-20)


@pytest.mark.parametrize("shape", [(6, 6), (5, 7), (8, 5)])
def test_weights_make_parseval_hold(shape, rng):
    image = rng.normal(size=shape)
    total = (power_spectrum(image) * half_plane_weights(shape)).sum()
    np.testing.assert_allclose(total, image.var() * image.size)
    assert half_plane_weights(shape).sum() == image.size


def test_frequencies_are_in_the_inverse_unit_of_the_pixel():
    assert frequency_grid((4, 4), pixel_size_A=2.0).max() == pytest.approx(np.hypot(0.25, 0.25))


@pytest.mark.parametrize("shape", [(16, 16), (15, 20), (21, 12)])
def test_rings_against_the_whole_plane(shape, rng):
    images = rng.normal(size=(2, *shape))
    frequency, power = radial_power(images)
    n = min(shape)
    grid = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1])[None, :])
    full = abs(np.fft.fft2(images - images.mean(axis=(1, 2), keepdims=True))) ** 2 / grid.size
    for ring in range(1, n // 2 + 1):
        inside = (np.rint(grid * n) == ring) & (grid <= 0.5)
        np.testing.assert_allclose(frequency[ring - 1], grid[inside].mean())
        np.testing.assert_allclose(power[:, ring - 1], full[:, inside].mean(axis=1))


def test_white_noise_has_its_variance_at_every_frequency(rng):
    _, power = radial_power(rng.normal(scale=3.0, size=(40, 64, 64)))
    np.testing.assert_allclose(power.mean(axis=0)[4:], 9, rtol=0.1)
