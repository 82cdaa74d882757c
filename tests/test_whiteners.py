"""Coloured noise is measured and made white; BM3D gains by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import ParameterError
from emdask.kernels.fourier import frequency_grid, radial_power
from emdask.metrics import low_frequency_ratio, psnr
from emdask.simulators.demo_images import demo_particles


def coloured_power(frequency: Any) -> Any:
    """Noise as of ice and a detector: strong at low frequency, faint at high."""
    return 0.3 + 4 / (1 + (frequency / 0.08) ** 2)


def coloured_noise(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    white = np.random.default_rng(seed).normal(size=shape)
    gains = np.sqrt(coloured_power(frequency_grid(shape[1:])))
    return np.fft.irfft2(np.fft.rfft2(white) * gains, s=shape[1:])


@pytest.fixture(scope="module")
def particles() -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean images of 128 px; the noise is coloured."""
    _, clean = demo_particles(24, snr=0.3, ctf=False)
    return (clean + coloured_noise(clean.shape)).astype(np.float32), clean


def test_the_spectrum_of_noise_among_particles(particles: tuple[np.ndarray, np.ndarray]) -> None:
    model = emdask.learn_noise(particles[0]).compute()
    truth = coloured_power(model.frequency)
    error = abs(model.power / truth - 1)
    inner = (model.frequency > 0.03) & (model.frequency < 0.5)
    assert float(error.where(inner).mean()) < 0.05
    assert float(error.where(inner).max()) < 0.2


def test_the_spectrum_of_a_micrograph_of_noise() -> None:
    model = emdask.learn_noise(coloured_noise((1, 1024, 768))).compute()
    error = abs(model.power / coloured_power(model.frequency) - 1)
    assert float(error.where((model.frequency > 0.02) & (model.frequency < 0.5)).mean()) < 0.08


@pytest.mark.parametrize(("box", "n"), [(24, 20_000), (32, 800), (48, 800)])
def test_noise_of_small_boxes_is_not_too_low(box: int, n: int) -> None:
    """Nor is that of low frequencies, though a corner's own mean is taken off."""
    noise = np.random.default_rng(1).normal(size=(n, box, box))
    model = emdask.learn_noise(noise, background="corners").compute()
    low = float(model.power.where((model.frequency > 0) & (model.frequency < 0.15)).mean())
    assert low == pytest.approx(1, abs=0.03)
    assert float(model.power.where(model.frequency < 0.5).mean()) == pytest.approx(1, abs=0.01)
    # Of all terms, which are as many as rings are long.
    assert float(model.power.weighted(model.frequency).mean()) == pytest.approx(1, abs=0.01)


def test_whitened_noise_is_white() -> None:
    noise = coloured_noise((40, 96, 80))
    white = emdask.whiten(noise).compute()
    assert white.dtype == np.float32
    assert white.std() == pytest.approx(1, abs=0.02)
    frequency, power = radial_power(white)
    # Small places, less their mean, say little of the lowest frequencies.
    inner = frequency > 0.08
    np.testing.assert_allclose(power.mean(axis=0)[inner], 1, atol=0.12)
    np.testing.assert_allclose(power.mean(axis=0)[2:], 1, atol=0.4)
    assert low_frequency_ratio(noise).mean() > 2
    assert abs(low_frequency_ratio(white).mean() - 1) < 0.2


def test_bm3d_is_better_on_whitened_noise(particles: tuple[np.ndarray, np.ndarray]) -> None:
    noisy, clean = (images[:6] for images in particles)
    noise = emdask.learn_noise(particles[0]).compute()
    denoised = emdask.denoise(emdask.whiten(noisy, noise), "bm3d")
    by_white = emdask.unwhiten(denoised, noise).compute()
    as_it_is = emdask.denoise(noisy, "bm3d").compute()
    assert psnr(by_white, clean).mean() > psnr(as_it_is, clean).mean() + 1


def test_chunks_do_not_matter(particles: tuple[np.ndarray, np.ndarray]) -> None:
    results = [
        emdask.whiten(da.from_array(particles[0], chunks=(n, -1, -1))).compute() for n in (24, 5)
    ]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)


def test_devices_agree(particles: tuple[np.ndarray, np.ndarray], device: str) -> None:
    noise = emdask.learn_noise(particles[0]).compute()
    here, there = (emdask.whiten(particles[0][:5], noise, device=d) for d in ("cpu", device))
    np.testing.assert_allclose(there.compute(), here.compute(), atol=1e-4)
    back = emdask.unwhiten(there, noise, device=device).compute()
    np.testing.assert_allclose(back, particles[0][:5], atol=1e-4)


def test_a_stack_keeps_what_is_known(tmp_path: Path) -> None:
    stack, _ = demo_particles(3, box_px=32, pixel_size_A=8.0)
    path = emdask.save_model(emdask.learn_noise(stack).compute(), tmp_path / "noise.zarr")
    white = emdask.whiten(stack, path)
    xr.testing.assert_equal(white.coords.to_dataset(), stack.coords.to_dataset())
    assert [step["step"] for step in white.attrs["provenance"]] == ["demo", "whiten"]
    np.testing.assert_array_equal(white, emdask.whiten(stack).compute())


def test_tiny_and_flat_images_survive() -> None:
    for shape in ((2, 1, 1), (1, 5, 7), (3, 16, 9)):
        for images in (np.zeros(shape), np.random.default_rng(0).normal(size=shape)):
            assert np.isfinite(emdask.whiten(images).compute()).all()


def test_wrong_input_is_told() -> None:
    images = np.zeros((2, 8, 8))
    with pytest.raises(ParameterError, match="whiten: background must be one of auto, corners"):
        emdask.learn_noise(images, background="corner")
    with pytest.raises(ParameterError, match="unwhiten: noise must be what learn_noise returned"):
        emdask.unwhiten(images, 3.0)
    other = xr.Dataset(attrs={"method": "ksvd"})
    with pytest.raises(ParameterError, match="whiten: noise must be what learn_noise returned"):
        emdask.whiten(images, other)
