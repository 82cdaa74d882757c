"""Power of signal and noise of a stack, and the filter by it, against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.ndimage

from emdask.backend import on_device
from emdask.kernels import spectral_snr
from emdask.kernels.ctf import Optics, ctf_2d
from emdask.kernels.deconvolution import gradients
from emdask.kernels.fourier import frequency_grid
from emdask.kernels.psf import freeze_psf, transfer_function, transfer_functions
from emdask.kernels.spectral_snr import (
    add_sums,
    filter_images,
    learn_spectrum,
    sum_spectrum,
)

LOPSIDED = np.array([[0.0, 0.1, 0.0], [0.1, 0.2, 0.4], [0.0, 0.0, 0.2]])
DEFOCUS_A = np.array([9e3, 2e4, 1.4e4, 2e4, 1.1e4])


def astigmatic(n_images: int = 5) -> Optics:
    u = np.resize(DEFOCUS_A, n_images)
    turned = np.resize([0.0, 30.0, 70.0], n_images)
    return Optics(pixel_size_A=3.0, defocus_u_A=u, defocus_v_A=0.8 * u, astigmatism_deg=turned)


def plain_optics(optics: Optics, image: int) -> dict[str, Any]:
    """What `ctf_2d` takes for one image."""
    names = ("defocus_u_A", "defocus_v_A", "astigmatism_deg")
    return {"pixel_size_A": 3.0} | {name: getattr(optics, name)[image] for name in names}


def without_gradient(image: np.ndarray) -> np.ndarray:
    y, x = (np.linspace(-1, 1, n) for n in image.shape)
    columns = np.stack([np.outer(a, b).ravel() for a in (y**0, y) for b in (x**0, x)], axis=1)
    return image - (columns @ np.linalg.lstsq(columns, image.ravel())[0]).reshape(image.shape)


def slow_spectrum(images: np.ndarray, optics: Optics) -> tuple[np.ndarray, np.ndarray]:
    """Least squares by rings, over the whole Fourier plane, image by image."""
    h, w = images.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w))
    rings = np.rint(frequency * min(h, w)).astype(int)
    rings[0, 0] = -1
    powers, squares = [], []
    for i, image in enumerate(images):
        powers.append(np.abs(np.fft.fft2(without_gradient(image))) ** 2 / (h * w))
        half = ctf_2d((h, w), **plain_optics(optics, i)) ** 2
        # The CTF of the other half plane is that of the same points, turned around the origin.
        whole = np.empty((h, w))
        whole[:, : w // 2 + 1] = half
        for x in range(w // 2 + 1, w):
            whole[:, x] = np.roll(half[::-1, w - x], 1)
        squares.append(whole)
    found, at = [], []
    for ring in range(rings.max() + 1):
        there = rings == ring
        if there.any():
            h2 = np.concatenate([square[there] for square in squares])
            above = np.concatenate([power[there] for power in powers]) - 1
            found.append(max((h2 @ above) / (h2 @ h2), 0))
            at.append(frequency[there].mean())
    return np.array(at), np.array(found)


@pytest.mark.parametrize("shape", [(24, 24), (21, 30)])
def test_the_signal_is_that_of_least_squares(
    shape: tuple[int, int], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectral_snr, "SEEN", 0.0)
    monkeypatch.setattr(spectral_snr, "SURE", 0.0)
    images = scipy.ndimage.gaussian_filter(rng.normal(size=(5, *shape)), (0, 1.5, 1.5)) * 8
    images += rng.normal(size=images.shape)
    optics = astigmatic()
    frequency, signal, noise = learn_spectrum(sum_spectrum(images, 1.0, "auto", optics))
    at, expected = slow_spectrum(images, optics)
    np.testing.assert_allclose(frequency, at)
    np.testing.assert_allclose(signal, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(noise, 1)


def test_a_known_spectrum_is_found(rng: np.random.Generator) -> None:
    shape, n_images = (48, 48), 120
    optics = astigmatic(n_images)

    def power(frequency: Any) -> Any:
        return 3 / (1 + (frequency / 0.1) ** 4)

    white = np.fft.rfft2(rng.normal(size=(n_images, *shape)))
    fields = white * np.sqrt(power(frequency_grid(shape)))
    seen = np.fft.irfft2(fields * optics.ctfs(shape, n_images), s=shape)
    images = 2.0 * (seen + rng.normal(size=seen.shape))
    frequency, signal, _ = learn_spectrum(sum_spectrum(images, 2.0, "auto", optics))
    inner = (frequency > 0.05) & (frequency < 0.25)
    np.testing.assert_allclose(signal[inner], power(frequency[inner]), rtol=0.12, atol=0.06)
    fine = frequency > 0.25
    np.testing.assert_allclose(signal[fine], power(frequency[fine]), atol=0.1)


def test_where_only_noise_is_there_is_no_signal(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(30, 32, 32))
    for psf in ("none", 3.0):
        signal = learn_spectrum(sum_spectrum(noise, 1.0, psf, None))[1]
        np.testing.assert_array_equal(signal, 0)
    broad = 3 * np.cos(2 * np.pi * np.arange(32) / 16)
    frequency, signal, _ = learn_spectrum(sum_spectrum(noise + broad, 1.0, 3.0, None))
    assert frequency[signal.argmax()] == pytest.approx(1 / 16, abs=0.01)
    assert np.count_nonzero(signal) == 1


def test_the_filter_is_wieners(rng: np.random.Generator) -> None:
    images = rng.normal(size=(5, 20, 27)) + 7
    optics = astigmatic()
    spectrum = np.array([0.0, 0.2, 0.8]), np.array([9.0, 1.0, 0.1]), np.array([1.0, 1.0, 2.0])
    result = filter_images(images, 0.5, "auto", optics, spectrum)
    grid = frequency_grid((20, 27))
    signal, noise = (np.interp(grid, spectrum[0], power) for power in spectrum[1:])
    for i, image in enumerate(images):
        ctf = transfer_function("auto", (20, 27), optics, i)
        assert ctf is not None
        rest = without_gradient(image)
        gain = ctf * signal / (ctf**2 * signal + noise)
        expected = np.fft.irfft2(np.fft.rfft2(rest) * gain, s=image.shape) + image - rest
        np.testing.assert_allclose(result[i], expected, atol=1e-5)


@pytest.mark.parametrize("psf", ["none", 1.2, freeze_psf("wiener", LOPSIDED)])
def test_psfs_are_undone(psf: Any, rng: np.random.Generator) -> None:
    images = rng.normal(size=(2, 16, 16))
    spectrum = np.array([0.0]), np.array([1e3]), np.array([1.0])
    result = filter_images(images, 1.0, psf, None, spectrum)
    transfer = transfer_function(psf, (16, 16))
    transfer = np.ones((16, 9)) if transfer is None else transfer
    gain = transfer.conj() * 1e3 / (np.abs(transfer) ** 2 * 1e3 + 1)
    means = images.mean(axis=(1, 2), keepdims=True)
    expected = np.fft.irfft2(np.fft.rfft2(images - means) * gain) + means
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_transfer_functions_are_those_of_each_image() -> None:
    for shape in ((32, 32), (20, 27)):
        found: dict[int, np.ndarray] = {}
        for which, transfer in transfer_functions("auto", shape, astigmatic(), 5):
            found |= {int(i): transfer[0] for i in which}
        for i in range(5):
            alone = transfer_function("auto", shape, astigmatic(), i)
            assert alone is not None
            np.testing.assert_allclose(found[i], alone, atol=1e-6)


def test_gradients_are_least_squares(rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, 9, 14))
    for image, surface in zip(images, gradients(images), strict=True):
        np.testing.assert_allclose(image - surface, without_gradient(image), atol=1e-12)


def test_sums_add_up_to_rounding(rng: np.random.Generator) -> None:
    images = rng.normal(size=(5, 32, 32))
    images[2] = 4
    optics = astigmatic()
    whole = sum_spectrum(images, "auto", "auto", optics)
    parts = [
        sum_spectrum(images[part], "auto", "auto", optics[part])
        for part in (slice(0, 1), slice(1, 5))
    ]
    both = add_sums(*parts)
    assert both.n_images == whole.n_images == 4
    for a, b in zip(both[2:], whole[2:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_the_noise_is_that_of_quiet_corners(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(400, 64, 64))
    assert spectral_snr._corner_variances(noise).mean() == pytest.approx(1, abs=0.01)
    beside = noise.copy()
    beside[:, :10, -10:] *= 3
    assert beside.var() > 1.1
    assert spectral_snr._corner_variances(beside).mean() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(spectral_snr._corner_variances(noise[:2, :5, :7]), 1)
    # Corners that a mask has emptied tell nothing.
    masked = noise[:20] * (np.hypot(*np.mgrid[-1:1:64j, -1:1:64j]) < 0.9)
    assert learn_spectrum(sum_spectrum(masked, "auto", "none", None))[2][0] == 1


def test_devices_agree(device: str, rng: np.random.Generator) -> None:
    images = (rng.normal(size=(5, 32, 32)) + 3).astype(np.float32)
    optics = astigmatic()
    here = learn_spectrum(sum_spectrum(images, "auto", "auto", optics))

    def both(there: Any) -> Any:
        spectrum = learn_spectrum(sum_spectrum(there, "auto", "auto", optics))
        for a, b in zip(spectrum, here, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        return filter_images(there, "auto", "auto", optics, here)

    result = on_device(both, images, device=device)
    expected = filter_images(images, "auto", "auto", optics, here)
    np.testing.assert_allclose(result, expected, atol=1e-4)
