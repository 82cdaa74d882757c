"""Images with noise, and how far a result is from the truth, for the benchmarks of this folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Input:
    """Clean and noisy images of one shape, noise, and range of the PSNR."""

    name: str
    clean: Floats
    noisy: Floats
    sigma: float
    data_range: float


def with_noise(
    name: str, clean: Floats, sigma: float, data_range: float, rng: np.random.Generator
) -> Input:
    """Add white noise to clean images."""
    noisy = (clean + sigma * rng.normal(size=clean.shape)).astype(np.float32)
    return Input(name=name, clean=clean, noisy=noisy, sigma=sigma, data_range=data_range)


def simulate_particles(n: int, size: int, rng: np.random.Generator) -> Floats:
    """Sum blobs within a disc, in [0, 1], as projections of a protein."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images = np.zeros((n, size, size), np.float32)
    for image in images:
        for _ in range(40):
            angle, radius = rng.uniform(0, 2 * np.pi), size / 4 * np.sqrt(rng.uniform())
            cy, cx, width = radius * np.sin(angle), radius * np.cos(angle), rng.uniform(2, 5)
            image += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
        image /= image.max()
    return images


def psnr(images: Any, clean: Floats, data_range: float) -> float:
    """Peak signal-to-noise ratio over all images, in dB."""
    error = np.mean((np.asarray(images, np.float64) - clean) ** 2)
    return float(10 * np.log10(data_range**2 / error))
