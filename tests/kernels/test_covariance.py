"""Covariance of images in a steerable basis: sums over any CTFs, least squares, shrinkage."""

from __future__ import annotations

import pickle
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

import emdask
from emdask.kernels.covariance import (
    ESTIMATORS,
    CoefficientSums,
    add_sums,
    estimate_covariance,
    sum_coefficients,
)
from emdask.kernels.steerable import SteerableBasis, steerable_basis
from tests.kernels.test_transforms import move

Doubles = npt.NDArray[np.float64]


def draw_powers(basis: SteerableBasis, n: int) -> Doubles:
    """Squared CTFs of many defoci, with the node that takes away the means of images."""
    defocus = np.linspace(5, 30, n)[:, None]
    power = np.sin(defocus * basis.nodes**2 * 4 + 0.3) ** 2
    power[:, -1] *= -1
    return np.asarray(power)


def filters(basis: SteerableBasis, k: int, h: Doubles) -> Doubles:
    return np.asarray(basis.radial[k].T @ (h[:, None] * basis.radial[k]))


def draw_truth(basis: SteerableBasis, rank: int = 2) -> tuple[Doubles, list[Doubles]]:
    rng = np.random.default_rng(1)
    sizes = [radial.shape[1] for radial in basis.radial]
    factors = [rng.normal(size=(q, rank)) * 3 / (k + 1) for k, q in enumerate(sizes)]
    return rng.normal(size=sizes[0]) * 4, factors


def draw_coefs(
    basis: SteerableBasis,
    power: Doubles,
    which: npt.NDArray[np.intp],
    variance: float,
    rank: int = 2,
) -> npt.NDArray[np.complex128]:
    """Premultiplied coefficients of images of `draw_truth`; of rank 0, of noise alone."""
    rng = np.random.default_rng(2)
    mean, factors = draw_truth(basis, rank)
    n = len(which)
    coefs = np.zeros((n, len(basis.orders)), np.complex128)
    for k, (own, factor) in enumerate(zip(basis.slices, factors, strict=True)):
        matrices = np.einsum(
            "rp,mr,rq->mpq", basis.radial[k], power, basis.radial[k], optimize=True
        )
        values, vectors = np.linalg.eigh(matrices)
        roots = vectors * np.sqrt(np.maximum(values, 0) * variance)[:, None]
        for side in (1,) if k == 0 else (np.sqrt(0.5), np.sqrt(-0.5 + 0j)):
            clean = rng.normal(size=(n, factor.shape[1])) @ factor.T
            coefs[:, own] += side * np.einsum("npq,nq->np", matrices[which], clean)
            noise = rng.normal(size=clean.shape)
            coefs[:, own] += side * np.einsum("npq,nq->np", roots[which], noise)
        if k == 0 and rank:
            coefs[:, own] += (matrices @ mean)[which]
    return coefs


def test_sums_are_those_of_single_images(device: str) -> None:
    basis = steerable_basis(16)
    power, which = draw_powers(basis, 3), np.array([0, 2, 2, 1, 0])
    coefs = draw_coefs(basis, power, which, 0.1).astype(np.complex64)
    sums = sum_coefficients(move(coefs, device), basis, power, which)
    first = coefs[:, basis.slices[0]].real.astype(float)
    assert sums.n_images == 5
    np.testing.assert_allclose(sums.first, first.sum(0), rtol=1e-12)
    expected = sum(np.multiply.outer(t, power[w]) for t, w in zip(first, which, strict=True))
    np.testing.assert_allclose(sums.first_by_power, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums.power, power[which].sum(0), rtol=1e-12)
    pairs = sum(np.multiply.outer(power[w], power[w]) for w in which)
    np.testing.assert_allclose(sums.power_products, pairs[np.tril_indices(len(pairs))], atol=1e-12)
    start = 0
    for own in basis.slices:
        wide = coefs[:, own].astype(complex)
        matrix = sum(np.multiply.outer(t, t.conj()).real for t in wide)
        lower = matrix[np.tril_indices(len(matrix))]
        np.testing.assert_allclose(sums.products[start : start + len(lower)], lower, atol=1e-9)
        start += len(lower)
    assert start == len(sums.products)


def test_sums_add_up_and_are_small() -> None:
    basis = steerable_basis(64)
    rng = np.random.default_rng(0)
    shape = (6, len(basis.orders))
    coefs = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    power, which = draw_powers(basis, 6), np.arange(6)
    whole = sum_coefficients(coefs, basis, power, which)
    one = sum_coefficients(coefs[:2], basis, power[:2], which[:2])
    other = sum_coefficients(coefs[2:], basis, power, which[2:])
    for added, expected in zip(add_sums(one, other), whole, strict=True):
        np.testing.assert_allclose(added, expected, rtol=1e-12, atol=1e-12)
    assert len(pickle.dumps(whole)) < 200_000
    assert isinstance(pickle.loads(pickle.dumps(whole)), CoefficientSums)


@pytest.mark.parametrize("shrinkage", sorted(ESTIMATORS.keys() - {"bayes"}))
def test_truth_is_found_with_a_ctf_of_each_image(shrinkage: str) -> None:
    basis = steerable_basis(16)
    n = 3000
    power, which = draw_powers(basis, n), np.arange(n)
    coefs = draw_coefs(basis, power, which, 0.05)
    sums = sum_coefficients(coefs, basis, power, which)
    estimate = estimate_covariance(sums, basis, 0.05, shrinkage)
    mean, factors = draw_truth(basis)
    # What all CTFs leave out, frequency 0 above all, is not known.
    seen = filters(basis, 0, power.mean(0))
    assert np.linalg.norm(seen @ (estimate.mean - mean)) < 0.03 * np.linalg.norm(seen @ mean)
    for k, (block, factor) in enumerate(zip(estimate.blocks, factors, strict=True)):
        seen = filters(basis, k, power.mean(0))
        error = seen @ (block - factor @ factor.T) @ seen
        assert np.linalg.norm(error) < 0.12 * np.linalg.norm(seen @ factor @ factor.T @ seen)
        assert np.linalg.eigvalsh(block).min(initial=0) > -1e-9


def test_least_squares_are_solved_exactly() -> None:
    """The conjugate gradients against the linear equations written out, a matrix for each image."""
    basis = steerable_basis(16)
    power, which = draw_powers(basis, 40), np.arange(40)
    coefs = draw_coefs(basis, power, which, 1e-3)
    sums = sum_coefficients(coefs, basis, power, which)
    estimate = estimate_covariance(sums, basis, 0.0, "operator")
    mean = np.linalg.solve(filters(basis, 0, power.sum(0)), sums.first)
    np.testing.assert_allclose(estimate.mean, mean, rtol=1e-6, atol=1e-8)
    for k, own in enumerate(basis.slices):
        left, right = 0.0, 0.0
        for h, t in zip(power, coefs[:, own], strict=True):
            matrix = filters(basis, k, h)
            left = left + np.kron(matrix, matrix)
            centred = t - matrix @ mean if k == 0 else t
            right = right + np.multiply.outer(centred, centred.conj()).real
        size = len(matrix)
        block = np.linalg.solve(left, np.ravel(right)).reshape(size, size)
        values, vectors = np.linalg.eigh((block + block.T) / 2)
        block = (vectors * np.maximum(values, 0)) @ vectors.T
        np.testing.assert_allclose(estimate.blocks[k], block, atol=1e-3 * abs(block).max())


def test_spectra_tell_signal_from_noise() -> None:
    basis = steerable_basis(32)
    n = 500
    power, which = np.ones((1, len(basis.nodes))), np.zeros(n, int)
    power[:, -1] = 0
    coefs = draw_coefs(basis, power, which, 2.0)
    sums = sum_coefficients(coefs, basis, power, which)
    estimate = estimate_covariance(sums, basis, 2.0, "frobenius")
    for k, spectrum in enumerate(estimate.spectra[:3]):
        size = basis.radial[k].shape[1]
        ratio = size / n / (1 if k == 0 else 2)
        assert spectrum.noise_edge == pytest.approx(2 * (1 + ratio**0.5) ** 2)
        assert (np.diff(spectrum.sample) <= 0).all()
        assert (spectrum.sample > spectrum.noise_edge).sum() == 2
        assert np.linalg.matrix_rank(estimate.blocks[k], tol=1e-6) == 2


@pytest.mark.parametrize("n_ctfs", [1, 400])
def test_nothing_but_noise_reaches_its_edge_and_gives_hardly_any_covariance(n_ctfs: int) -> None:
    """Of order 0 there are half as many samples as of others, and the edge is further away."""
    basis = steerable_basis(32)
    n, variance = 400, 3.0
    which = np.arange(n) % n_ctfs
    power = draw_powers(basis, n_ctfs)
    sums = sum_coefficients(draw_coefs(basis, power, which, variance, rank=0), basis, power, which)
    estimate = estimate_covariance(sums, basis, variance, "frobenius")
    many = [spectrum for spectrum in estimate.spectra if np.isfinite(spectrum.sample).sum() > 7]
    reached = np.array([own.sample[0] / own.noise_edge for own in many])
    # Eigenvalues spread about the edge by a few parts in a hundred, and stay below it on average.
    assert 0.95 < reached.mean() < 1.0
    assert 0.88 < reached.min() < reached.max() < 1.06
    found = np.array([np.linalg.norm(block, 2) for block in estimate.blocks])
    assert np.mean(found == 0) > 0.85
    assert found.max() < variance


@pytest.mark.parametrize("shrinkage", sorted(ESTIMATORS))
@pytest.mark.parametrize("variance", [0.0, 1.0])
@pytest.mark.parametrize("n", [1, 2])
def test_few_images_and_no_noise_are_possible(n: int, variance: float, shrinkage: str) -> None:
    basis = steerable_basis(16)
    power, which = draw_powers(basis, n), np.arange(n)
    for scale in (0.0, 1.0):
        coefs = draw_coefs(basis, power, which, 1.0) * scale
        sums = sum_coefficients(coefs, basis, power, which)
        estimate = estimate_covariance(sums, basis, variance, shrinkage)
        assert np.isfinite(estimate.mean).all()
        for block in estimate.blocks:
            assert np.isfinite(block).all()
            assert np.linalg.eigvalsh(block).min() >= -1e-9 * abs(block).max()


@cache
def simulated(
    snr: float, scale_A: float, box_px: int, **ctf: float
) -> tuple[xr.DataArray, Doubles]:
    """300 noisy images, and what they are like without noise and CTF."""
    particle = emdask.phantom(200, radius_A=0.39 * box_px * scale_A, width_A=(scale_A, 2 * scale_A))
    volume = particle.volume(box_px, scale_A)
    optics: dict[str, Any] = {"defocus_A": (8e3, 2e4)} | ctf
    made = emdask.simulate(volume, 300, snr=snr, seed=5, ctf=optics)
    unscaled = emdask.simulate(volume, 300, snr=None, seed=5, ctf=optics).clean.values
    clean = emdask.simulate(volume, 300, snr=None, seed=5).clean.values
    scale = np.vdot(unscaled, made.clean.values) / np.vdot(unscaled, unscaled)
    return made.images.compute(), clean * scale


@cache
def denoising_error(
    shrinkage: str, snr: float, scale_A: float = 1.0, box_px: int = 32, **ctf: float
) -> float:
    """Error of denoised images over their power; CTFs have no envelope but what is given."""
    images, clean = simulated(snr, scale_A, box_px, **ctf)
    found = emdask.denoise(images, "cwf", shrinkage=shrinkage).values
    return float(np.square(found - clean).sum() / np.square(clean).sum())


@pytest.mark.parametrize(("b_factor_A2", "snr"), [(100.0, 0.1), (200.0, 0.1), (200.0, 1.0)])
@pytest.mark.parametrize("shrinkage", sorted(ESTIMATORS))
def test_envelopes_that_leave_nothing_do_no_harm(
    shrinkage: str, b_factor_A2: float, snr: float
) -> None:
    """Of amplitudes at Nyquist they leave 2e-3 and 4e-6."""
    found = denoising_error(shrinkage, snr, b_factor_A2=b_factor_A2)
    assert found < 1.25 * denoising_error(shrinkage, snr)


@pytest.mark.parametrize("shrinkage", ["bayes", "frobenius"])
def test_low_frequencies_of_little_contrast_are_not_taken_for_lost(shrinkage: str) -> None:
    """Without them the error is 0.9."""
    assert denoising_error(shrinkage, 0.3, 5.0, 48, amplitude_contrast=0.0) < 0.1
