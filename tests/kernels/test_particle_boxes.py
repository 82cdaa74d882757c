"""Boxes cut, made smaller and normalised, against slow references."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from emdask.backend import to_device, to_host
from emdask.kernels.particle_boxes import (
    bin_boxes,
    box_starts,
    cut_boxes,
    fits_inside,
    normalise_boxes,
)


def slow_normalise(box: Any, radius_px: int) -> Any:
    """Plane by least squares on what is beyond the radius; its mean 0, its deviation 1."""
    side = len(box)
    y, x = np.indices(box.shape) - side // 2
    outside = x**2 + y**2 > radius_px**2
    planes = np.stack([np.ones(box.shape), x, y], axis=-1)
    fit = np.linalg.lstsq(planes[outside], box[outside].astype("f8"), rcond=None)[0]
    flat = box - planes @ fit
    return (flat - flat[outside].mean()) / flat[outside].std()


@pytest.mark.parametrize("box_px", [4, 5])
def test_boxes_are_around_the_nearest_pixel(box_px: int, rng: np.random.Generator) -> None:
    image = rng.normal(size=(20, 30))
    centres = np.array([[10.49, 9.51], [10.5, 8.5], [3, 16]])
    boxes = cut_boxes(image, box_starts(centres, box_px), box_px)
    middle = boxes[:, box_px // 2, box_px // 2]
    assert_array_equal(middle, image[[10, 9, 16], [10, 11, 3]].astype("f4"))
    first, end = 10 - box_px // 2, 10 - box_px // 2 + box_px
    assert_array_equal(boxes[0], image[first:end, first:end].astype("f4"))


def test_what_is_beyond_the_frame_is_mirrored(rng: np.random.Generator) -> None:
    image = rng.integers(0, 99, (9, 7)).astype(np.uint8)
    padded = np.pad(image, 6, "symmetric")
    starts = np.array([[-3, -2], [4, 2], [6, 5], [0, 0], [-6, 1]])
    boxes = cut_boxes(image, starts, 7)
    for box, (y, x) in zip(boxes, starts + 6, strict=True):
        assert_array_equal(box, padded[y : y + 7, x : x + 7])
    assert fits_inside(starts, 7, image.shape).tolist() == [False, False, False, True, False]
    assert fits_inside(np.array([[2, 0], [3, 0], [0, 1]]), 7, (9, 7)).tolist() == [
        *(True, False, False)
    ]


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_binning_keeps_images_without_high_frequencies(
    factor: int, rng: np.random.Generator
) -> None:
    """Waves below the new Nyquist frequency: exact at every so many pixels."""
    side = 8 * factor
    y, x = np.indices((side, side)) * 2 * np.pi / side
    boxes = np.stack(
        [
            sum(
                rng.normal() * np.cos(ky * y + kx * x + rng.uniform(0, 6))
                for ky in range(-3, 4)
                for kx in range(4)
            )
            for _ in range(3)
        ]
    ).astype(np.float32)
    assert_allclose(bin_boxes(boxes, factor), boxes[:, ::factor, ::factor], atol=2e-5)


def test_binning_takes_high_frequencies_out(rng: np.random.Generator) -> None:
    side = 24
    fast = np.cos(2 * np.pi * np.arange(side) * 9 / side)
    boxes = np.broadcast_to(fast, (1, side, side)).astype(np.float32)
    assert abs(bin_boxes(boxes, 2)).max() < 1e-5
    noise = rng.normal(size=(50, 32, 32)).astype(np.float32)
    assert abs(bin_boxes(noise, 2).std() - 0.5) < 0.02
    assert bin_boxes(noise, 1) is noise


@pytest.mark.parametrize(("side", "radius_px"), [(32, 12), (33, 16), (16, 8), (8, 0)])
def test_background_as_of_least_squares(
    side: int, radius_px: int, rng: np.random.Generator
) -> None:
    ramp = 500 + np.add.outer(3.0 * np.arange(side), -1.5 * np.arange(side))
    boxes = (7 * rng.normal(size=(3, side, side)) + ramp).astype(np.float32)
    for box, found in zip(boxes, normalise_boxes(boxes, radius_px), strict=True):
        assert_allclose(found, slow_normalise(box, radius_px), atol=2e-4)


def test_flat_boxes_are_left_at_zero() -> None:
    boxes = np.full((2, 16, 16), 1234.5, np.float32)
    boxes[1, 8, 8] += 4
    found = normalise_boxes(boxes, 4)
    assert abs(found[0]).max() < 1e-3
    assert abs(found[1, 8, 8] - 4) < 1e-3


def test_boxes_do_not_depend_on_those_beside_them(rng: np.random.Generator) -> None:
    boxes = rng.normal(size=(7, 40, 40)).astype(np.float32)
    together = normalise_boxes(bin_boxes(boxes, 2), 7)
    alone = [normalise_boxes(bin_boxes(box[None], 2), 7)[0] for box in boxes]
    assert_array_equal(together, np.stack(alone))


def test_devices_agree(device: str, rng: np.random.Generator) -> None:
    image = rng.normal(size=(50, 60)).astype(np.float32)
    starts = np.array([[3, 4], [-5, 40], [20, 30]])

    def process(pixels: Any) -> Any:
        return normalise_boxes(bin_boxes(cut_boxes(pixels, starts, 24), 2), 4)

    assert_allclose(to_host(process(to_device(image, device))), process(image), atol=1e-5)
