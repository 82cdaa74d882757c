"""Resolutions of an image: white noise stays white, and what is coarse is kept."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels import scales


def test_half_of_white_noise_is_white_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(255, 256)).astype(np.float32)
    half = scales.halve(noise)
    assert half.shape == (128, 128)
    assert half.std() == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(scales.halve(scales.double(half, (255, 256))), half, atol=1e-5)


def test_merging_keeps_the_coarse_and_takes_the_fine(rng: np.random.Generator) -> None:
    fine, coarse = rng.normal(size=(32, 30)), rng.normal(size=(16, 15))
    merged = scales.merge_scales(fine, coarse)
    kept = slice(0, 12)
    spectra = [scales.to_frequencies(images) for images in (merged, fine, coarse)]
    np.testing.assert_allclose(spectra[0][kept, kept], spectra[2][kept, kept], atol=1e-12)
    np.testing.assert_allclose(spectra[0][13:], spectra[1][13:], atol=1e-12)
