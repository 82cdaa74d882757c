"""Wiener filter in a steerable basis: the linear estimate of least error, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels.steerable import SteerableBasis, combine, steerable_basis
from emdask.kernels.steerable_wiener import filter_coefficients, scale_factors
from tests.kernels.test_covariance import draw_coefs, draw_powers, draw_truth, filters
from tests.kernels.test_transforms import back, move


def filter_slowly(coefs: Any, basis: Any, power: Any, which: Any, variance: float) -> Any:
    """The estimate written with the covariance and its inverse, one image at a time."""
    mean, factors = draw_truth(basis, rank=12)
    clean = np.zeros(coefs.shape, complex)
    for k, (own, factor) in enumerate(zip(basis.slices, factors, strict=True)):
        covariance = factor @ factor.T
        centre = mean if k == 0 else 0 * factor[:, 0]
        for i, w in enumerate(which):
            seen = filters(basis, k, power[w])
            gain = covariance @ np.linalg.inv(seen @ covariance + variance * np.eye(len(seen)))
            clean[i, own] = centre + gain @ (coefs[i, own] - seen @ centre)
    return clean


def filter_all(
    coefs: Any,
    basis: SteerableBasis,
    power: Any,
    which: Any,
    device: str = "cpu",
    *,
    mean: Any,
    factors: Any,
    noise_variance: float,
) -> Any:
    """The estimate in the whole basis, of coefficients in the whole basis."""
    scaled = scale_factors(factors, noise_variance)
    components = combine(basis, scaled)
    pairs = [*zip(basis.slices, components.slices, scaled, strict=True)]
    weights = np.concatenate([coefs[:, own] @ factor for own, _, factor in pairs], 1)
    weights = move(weights.astype(np.complex64), device)
    profile = basis.radial[0] @ mean
    found = back(filter_coefficients(weights, components, power, which, profile))
    assert found.dtype == np.complex64
    clean = np.concatenate([found[:, own] @ factor.T for _, own, factor in pairs], 1)
    clean[:, basis.slices[0]] += mean
    return clean


@pytest.mark.parametrize("ctfs", ["one", "few", "each"])
def test_filter_is_the_linear_estimate_of_least_error(device: str, ctfs: str) -> None:
    basis = steerable_basis(16)
    power = draw_powers(basis, {"one": 1, "few": 3, "each": 70}[ctfs])
    which = np.arange(70) % len(power)
    coefs = draw_coefs(basis, power, which, 0.5).astype(np.complex64)
    mean, factors = draw_truth(basis, rank=12)
    factors = [np.linalg.svd(factor, full_matrices=False) for factor in factors]
    factors = [vectors * values for vectors, values, _ in factors]
    model = {"mean": mean, "factors": factors, "noise_variance": 0.5}
    clean = filter_all(coefs, basis, power, which, device, **model)
    expected = filter_slowly(coefs, basis, power, which, 0.5)
    # Single precision, and components of little variance left out.
    np.testing.assert_allclose(clean, expected, atol=1e-3 * abs(expected).max())


# Not on the stand-in for a card: its products are those of a BLAS, which keeps no row's bits.
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True
)
def test_an_image_does_not_depend_on_those_beside_it(device: str) -> None:
    basis = steerable_basis(16)
    power = draw_powers(basis, 20)
    which = np.random.default_rng(0).integers(0, 20, 90)
    coefs = draw_coefs(basis, power, which, 0.5).astype(np.complex64)
    mean, factors = draw_truth(basis, rank=12)
    components, profile = combine(basis, scale_factors(factors, 0.5)), basis.radial[0] @ mean
    coefs = np.random.default_rng(1).normal(size=(90, 2 * len(components.orders)))
    coefs = coefs.astype("f4").view("c8")
    clean = back(filter_coefficients(move(coefs, device), components, power, which, profile))
    for chosen in ([3], [89, 5], [*range(17, 60)]):
        rows, own = np.unique(which[chosen], return_inverse=True)
        some = move(coefs[chosen], device)
        part = filter_coefficients(some, components, power[rows], own, profile)
        np.testing.assert_array_equal(back(part), clean[chosen])


def test_without_signal_the_mean_is_left(device: str) -> None:
    basis = steerable_basis(16)
    power, which = draw_powers(basis, 2), np.array([0, 1, 1])
    coefs = draw_coefs(basis, power, which, 0.5).astype(np.complex64)
    mean, factors = draw_truth(basis)
    factors = [0 * factor for factor in factors]
    model = {"mean": mean, "factors": factors, "noise_variance": 0.5}
    clean = filter_all(coefs, basis, power, which, device, **model)
    np.testing.assert_array_equal(clean[:, basis.slices[0]], np.tile(mean, (3, 1)))
    assert (clean[:, basis.slices[0].stop :] == 0).all()


def test_without_noise_images_are_restored() -> None:
    basis = steerable_basis(16)
    power, which = draw_powers(basis, 1), np.zeros(4, int)
    coefs = draw_coefs(basis, power, which, 0.0).astype(np.complex64)
    mean, factors = draw_truth(basis)
    model = {"mean": mean, "factors": factors, "noise_variance": 0.0}
    clean = filter_all(coefs, basis, power, which, **model)
    for k, own in enumerate(basis.slices):
        again = clean[:, own] @ filters(basis, k, power[0])
        np.testing.assert_allclose(again, coefs[:, own], atol=3e-3 * abs(coefs).max())
