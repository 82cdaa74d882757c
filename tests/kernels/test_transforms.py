"""Transforms of images: those of NumPy, and each image's its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels import scales
from emdask.kernels.transforms import to_half_planes, to_images


def move(array: Any, device: str) -> Any:
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


def back(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) and not hasattr(array, "get") else array.get()


@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", ">i2"])
@pytest.mark.parametrize("shape", [(6, 9), (8, 8)])
def test_transforms_are_those_of_numpy(
    device: str, dtype: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scales, "TRANSFORM_PIXELS", 2 * shape[0] * shape[1])
    images = np.random.default_rng(0).normal(scale=9, size=(5, *shape)).astype(dtype)
    if device == "cuda":
        images = images.astype(images.dtype.newbyteorder("="))
    terms = to_half_planes(move(images, device))
    expected = np.fft.rfft2(images.astype("f8"))
    assert (terms.dtype, terms.shape) == (np.complex64, expected.shape)
    np.testing.assert_allclose(back(terms), expected, atol=1e-5 * abs(expected).max())
    again = to_images(terms, shape)
    assert again.dtype == np.float32
    np.testing.assert_allclose(back(again), images, atol=1e-5 * abs(images).max())


def test_an_image_does_not_depend_on_those_beside_it(device: str) -> None:
    images = np.random.default_rng(0).normal(size=(5, 24, 20)).astype("f4")
    terms = back(to_half_planes(move(images, device)))
    again = back(to_images(move(terms, device), (24, 20)))
    for i in range(5):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(back(to_half_planes(move(images[one], device))), terms[one])
        alone = to_images(move(terms[one], device), (24, 20))
        np.testing.assert_array_equal(back(alone), again[one])
