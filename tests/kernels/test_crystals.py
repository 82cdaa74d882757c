"""Crystals of ice are taken for background, particles are not."""

import numpy as np
import pytest

from emdask.backend import to_device, to_host
from emdask.kernels.crystals import remove_crystals


def test_crystals_become_background_and_particles_stay(
    device: str, rng: np.random.Generator
) -> None:
    image = rng.normal(size=(80, 100)).astype(np.float32)
    y, x = np.indices(image.shape)
    crystal, particle = np.hypot(y - 30, x - 30) < 12, np.hypot(y - 55, x - 75) < 8
    image[particle] += 2.5
    image[crystal] = 40
    image = image.clip(-5, 5)
    cleaned = to_host(remove_crystals(to_device(image, device), 16.0))
    assert (cleaned[crystal] == 0).all()
    away = np.hypot(y - 30, x - 30) > 17
    np.testing.assert_array_equal(cleaned[away], image[away])


def test_particles_stay_whatever_their_contrast(rng: np.random.Generator) -> None:
    image = rng.normal(size=(80, 100))
    y, x = np.indices(image.shape)
    for column in (20, 38, 56):  # the first two touch
        image[np.hypot(y - 40, x - column) < 9] += 30
    image = image.clip(-5, 5).astype(np.float32)
    np.testing.assert_array_equal(remove_crystals(image, 16.0), image)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50)])
def test_images_of_any_size_are_taken(shape: tuple[int, int]) -> None:
    image = np.full(shape, 2, np.float32)
    np.testing.assert_array_equal(remove_crystals(image, 16.0), image)
