"""K-SVD on cards: what the contract does not ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import emdask
from emdask.denoisers import ksvd
from tests.denoisers.test_contract import ROUNDING, TURNED_TIES, blobs


def mixed_images() -> np.ndarray:
    """Weak noise, strong noise, none, and nothing but noise: 1 to 3 scales."""
    images = blobs(4, 72)
    images[3] = 0
    sigmas = np.array([0.05, 1.0, 0.0, 1.0])[:, None, None]
    return (images + sigmas * np.random.default_rng(2).normal(size=images.shape)).astype("f4")


@pytest.mark.parametrize("scope", ["stack", "image"])
def test_images_of_any_noise_agree(card: str, scope: str) -> None:
    images = mixed_images()
    params = ksvd.Ksvd(scope=scope, n_iterations=2, n_atoms=64)
    model = emdask.learn_denoiser(images, params).compute() if scope == "stack" else None
    cpu, cuda = (
        emdask.denoise(images, params, model=model, device=device).compute()
        for device in ("cpu", card)
    )
    difference = np.abs(cuda - cpu)
    assert np.median(difference) < ROUNDING * 0.05
    assert difference[:2].max() < TURNED_TIES * 0.05
    assert difference[2:].max() < TURNED_TIES


def test_dictionaries_do_not_follow_the_rounding_of_a_card(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card may sum up in another order: each image still learns what it would on the host."""
    import cupy

    from emdask.kernels import unit_noise

    y, x = np.mgrid[:72, :72]
    stripes = np.sin(x * y / 90) + 0.5 * (y % 11 > 5) * (x > 40)
    noise = np.random.default_rng(1).normal(scale=0.1, size=(1, 72, 72))
    images = (stripes + noise).astype("f4")
    params = ksvd.Ksvd(scope="image", n_iterations=5, n_atoms=64)
    cuda_on_host.strict = True
    expected = ksvd.denoise_cpu(images, params, None)
    estimate = unit_noise.known_sigmas

    def round_otherwise(images: Any, sigma: Any) -> Any:
        on_card = type(images).__module__ == "cupy"
        return estimate(images, sigma) * (1 + 1e-6 * on_card)

    monkeypatch.setattr(unit_noise, "known_sigmas", round_otherwise)
    result = ksvd.denoise_cuda(cupy.asarray(images), params, None).get()
    assert np.median(np.abs(result - expected)) < ROUNDING * 0.1
    assert np.abs(result - expected).max() < TURNED_TIES * 0.1
