"""The Laplacian of Gaussian against sums over pixels, and what it makes of balls and crystals."""

import numpy as np
import pytest

from emdask.backend import to_device, to_host
from emdask.kernels.laplacian import laplacian_of_gaussian, score_laplacian


def ball(shape: tuple[int, int], y: float, x: float, diameter: float, height: float) -> np.ndarray:
    """Projection of a ball."""
    rows, columns = np.indices(shape)
    squared = ((rows - y) ** 2 + (columns - x) ** 2) / (diameter / 2) ** 2
    return (height * np.sqrt(np.maximum(1 - squared, 0))).astype(np.float32)


@pytest.mark.parametrize("shape", [(40, 33), (17, 52)])
def test_filter_is_a_sum_over_a_mirrored_image(
    device: str, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    image = rng.normal(size=shape).astype(np.float32)
    width = 3.0
    y, x = np.indices((61, 61)) - 30
    squared = (y**2 + x**2) / width**2
    kernel = (2 - squared) * np.exp(-squared / 2) / (2 * np.pi * width**2)
    padded = np.pad(image, 30, mode="symmetric")
    expected = [
        [(padded[i : i + 61, j : j + 61] * kernel).sum() for j in range(shape[1])]
        for i in range(shape[0])
    ]
    found = to_host(laplacian_of_gaussian(to_device(image, device), width))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_ball_responds_most_at_its_own_width() -> None:
    image = ball((200, 200), 100, 100, 60.0, 1.0)
    widths = np.arange(0.2, 0.45, 0.01)
    middle = [laplacian_of_gaussian(image, 60 * w)[100, 100] for w in widths]
    assert abs(widths[int(np.argmax(middle))] - 0.3) < 0.011


def test_scores_are_in_deviations_of_the_background(device: str, rng: np.random.Generator) -> None:
    noise = rng.normal(size=(300, 320)).astype(np.float32)
    scores = to_host(score_laplacian(to_device(noise, device), 16.0))
    assert scores.dtype == np.float32
    assert scores.shape == noise.shape
    assert abs(np.median(scores)) < 0.1
    assert 0.95 < scores.std() < 1.25
    particles = sum(ball(noise.shape, y, x, 16.0, 3.0) for y in (50, 250) for x in (40, 160, 280))
    with_particles = to_host(score_laplacian(to_device(noise + particles, device), 16.0))
    far = np.ones(noise.shape, bool)
    for y in (50, 250):
        for x in (40, 160, 280):
            far[y - 30 : y + 31, max(x - 30, 0) : x + 31] = False
            assert with_particles[y - 3 : y + 4, x - 3 : x + 4].max() > 6
    np.testing.assert_allclose(with_particles[far], scores[far], rtol=0.12, atol=0.12)


def test_crystals_at_the_limit_of_grey_levels_do_not_score(
    device: str, rng: np.random.Generator
) -> None:
    image = rng.normal(size=(160, 160)).astype(np.float32) + ball((160, 160), 40, 120, 16.0, 4.0)
    crystal = image.copy()
    y, x = np.indices(image.shape)
    crystal[np.hypot(y - 90, x - 50) < 14] = 30.0
    scores = to_host(score_laplacian(to_device(crystal.clip(-5, 5), device), 16.0))
    assert scores[60:120, 20:80].max() < scores[40, 120] / 2
    assert np.unravel_index(scores.argmax(), scores.shape) == pytest.approx((40, 120), abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (2, 9), (30, 30)])
def test_nothing_scores_nothing(device: str, shape: tuple[int, int]) -> None:
    scores = to_host(score_laplacian(to_device(np.zeros(shape, np.float32), device), 16.0))
    np.testing.assert_array_equal(scores, np.zeros(shape))
