"""The width that is chosen without the clean image: the estimate is Stein's, and near the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from emdask.kernels.smoothing import (
    WIDTHS_PX,
    best_gaussian_widths,
    best_kernels,
    gaussian_kernel,
    gaussian_noise,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise
from emdask.simulators.demo_images import demo_particles

Floats = npt.NDArray[np.floating]


def slow_risk(image: Floats, smooth: Callable[[Floats], Floats]) -> float:
    """Stein's estimate for unit noise; the trace of a linear filter from its impulses."""
    trace = 0.0
    for place in np.ndindex(*image.shape):
        impulse = np.zeros(image.shape)
        impulse[place] = 1
        trace += smooth(impulse)[place]
    return float(((image - smooth(image)) ** 2).sum() + 2 * trace) / image.size - 1


@pytest.mark.parametrize("width_px", [0.35, 0.5, 1.0, 2.7])
def test_the_kernel_is_scipys(width_px: float) -> None:
    impulse = np.zeros(41)
    impulse[20] = 1
    half = gaussian_kernel(width_px)
    whole = gaussian_filter1d(impulse, width_px)
    np.testing.assert_allclose(whole[20 : 20 + len(half)], half, atol=1e-12)
    square = np.zeros((41, 41))
    square[20, 20] = 1
    kernel = gaussian_filter(square, width_px)
    assert gaussian_noise(width_px) == pytest.approx(np.sqrt((kernel**2).sum()))


@pytest.mark.parametrize("shape", [(6, 7), (9, 4), (1, 12)])
def test_the_estimate_is_steins(shape: tuple[int, int], rng: np.random.Generator) -> None:
    widths = (0.0, 0.5, 1.0, 2.0, 4.0)
    for signal in (0.0, 1.0, 3.0):
        image = rng.normal(size=shape) + signal * np.linspace(-1, 1, shape[1]) ** 2
        image -= image.mean()
        risks = [slow_risk(image, lambda x, w=w: gaussian_filter(x, w)) for w in widths]
        kernels = [gaussian_kernel(w) for w in widths]
        assert best_kernels(image[None].astype("f4"), kernels).tolist() == [np.argmin(risks)]


@pytest.mark.parametrize("snr", [1.0, 0.1, 0.05])
def test_the_width_is_near_that_which_is_best(snr: float) -> None:
    stack, clean = demo_particles(6, box_px=128, snr=snr, ctf=False)
    noisy = stack.values

    def error(width: float, i: int) -> float:
        return float(np.mean((gaussian_filter(noisy[i], width) - clean[i]) ** 2))

    steps, losses = [], []
    for i, chosen in enumerate(best_gaussian_widths(noisy - noisy.mean((1, 2), keepdims=True))):
        errors = [error(width, i) for width in WIDTHS_PX]
        steps.append(abs(int(np.argmin(errors)) - WIDTHS_PX.index(chosen)))
        losses.append(error(chosen, i) / min(errors))
    assert np.median(steps) <= 1
    assert np.mean(losses) < 1.06


def test_an_image_does_not_depend_on_those_beside_it(device: str) -> None:
    images: Any = demo_particles(5, box_px=48, snr=0.5)[0].values
    if device == "cuda":
        import cupy

        images = cupy.asarray(images)
    whole = best_gaussian_widths(images)
    parts = [best_gaussian_widths(images[i : i + 1])[0] for i in range(5)]
    assert whole.tolist() == parts


def test_grey_levels_come_back(rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, 20, 20)).astype("f4") * 40 + 1000
    images[1] = 7
    same = denoise_at_unit_noise(images, "auto", lambda units: units)
    np.testing.assert_allclose(same, images, rtol=1e-6)
    seen = []
    denoise_at_unit_noise(images, 20.0, lambda units: seen.append(units) or units)  # type: ignore[func-returns-value]
    np.testing.assert_allclose(seen[0].mean(axis=(1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(seen[0][0].std(), images[0].std() / 20, rtol=1e-5)
    np.testing.assert_array_equal(denoise_at_unit_noise(images, 0.0, np.zeros_like), images)
