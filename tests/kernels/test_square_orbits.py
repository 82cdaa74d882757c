"""Folding of half planes: nothing in the disc is lost, and sums over it are kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels.square_orbits import (
    find_octant,
    find_quadrant,
    fold_imag,
    fold_real,
    unfold_imag,
    unfold_real,
)

SIZES = [(16, 0.5), (17, 0.5), (16, 0.3)]


def namespace(device: str) -> Any:
    if device == "cpu":
        return np
    import cupy

    return cupy


def back(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) and not hasattr(array, "get") else array.get()


def draw_terms(box_px: int) -> Any:
    """Half planes of three images, and the whole planes."""
    images = np.random.default_rng(2).normal(size=(3, box_px, box_px))
    return np.fft.rfft2(images).reshape(3, -1), np.fft.fft2(images)


def is_inside(box_px: int, band: float, columns: int) -> Any:
    y, x = np.fft.fftfreq(box_px)[:, None], np.fft.fftfreq(box_px)[:columns]
    return np.hypot(abs(x), y) < band


@pytest.mark.parametrize(("box_px", "band"), SIZES)
def test_unfolding_gives_back_what_is_in_the_disc(device: str, box_px: int, band: float) -> None:
    xp = namespace(device)
    octant, quadrant = find_octant(box_px, band).to(xp), find_quadrant(box_px, band).to(xp)
    terms = draw_terms(box_px)[0]
    inside = is_inside(box_px, band, box_px // 2 + 1).ravel()
    parts = fold_real(xp.asarray(terms.real), octant)
    real = back(unfold_real(tuple(part / 4 for part in parts), octant))
    imag = back(unfold_imag(fold_imag(xp.asarray(terms.imag), quadrant) / 2, quadrant))
    np.testing.assert_allclose(real, terms.real * inside, atol=1e-12)
    np.testing.assert_allclose(imag, terms.imag * inside, atol=1e-12)


@pytest.mark.parametrize(("box_px", "band"), SIZES)
def test_sums_over_the_disc_are_weighted_sums_of_folded_values(box_px: int, band: float) -> None:
    """With functions that change under the symmetries as the parts do."""
    octant, quadrant = find_octant(box_px, band), find_quadrant(box_px, band)
    half, whole = draw_terms(box_px)
    y, x = np.meshgrid(*[np.fft.fftfreq(box_px, 1 / box_px)] * 2, indexing="ij")
    inside = is_inside(box_px, band, box_px)
    even = [x * x + y * y + 1, x**2 - y**2, x * y, x * y * (x**2 - y**2)]
    for function, part in zip(even, fold_real(half.real, octant), strict=True):
        values = function[octant.points[:, 1], octant.points[:, 0]] * octant.weights
        expected = (whole.real * function * inside).sum(axis=(1, 2))
        np.testing.assert_allclose(part @ values, expected, rtol=1e-9, atol=1e-6)
    folded = fold_imag(half.imag, quadrant)
    values = x[quadrant.points[:, 1], quadrant.points[:, 0]] * quadrant.weights
    for function, part in ((x, folded[:3]), (y, folded[3:])):
        expected = (whole.imag * function * inside).sum(axis=(1, 2))
        np.testing.assert_allclose(part @ values, expected, rtol=1e-9, atol=1e-6)
