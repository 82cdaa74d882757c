"""The empirical Bayes covariance: its parts against slow references, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from emdask import simulate
from emdask.kernels import prior_covariance
from emdask.kernels.covariance import ESTIMATORS, estimate_covariance, sum_coefficients
from emdask.kernels.prior_covariance import bayes_covariance, fit_powers
from emdask.kernels.steerable import expand, steerable_basis
from emdask.kernels.transforms import to_half_planes
from emdask.phantoms import phantom

BOX = 24


@pytest.fixture(scope="module")
def basis():
    return steerable_basis(BOX)


@pytest.fixture(scope="module")
def truth(basis):
    """Return covariances of a field in a soft disc, with a few directions stronger than that."""
    components = prior_covariance._make_components(basis)
    n_frequencies = components[0].shape[1] // len(prior_covariance.DISCS)
    falls = np.exp(-np.arange(n_frequencies) / 4.0)
    powers = np.multiply.outer([0, 0, 3.0, 0, 1.0, 0, 0], falls).ravel()
    rng = np.random.default_rng(1)
    blocks = []
    for own in components:
        root = own * np.sqrt(powers)
        one = root @ rng.normal(size=(root.shape[1], 2))
        blocks.append(root @ root.T + one @ one.T / 2)
    return blocks


@pytest.fixture(scope="module")
def squares(basis):
    """Return five squared CTFs at the nodes, with zeros at different places."""
    waves = np.sin(np.multiply.outer([20, 25, 31, 36, 44], basis.nodes**2 * 4) + 0.3) ** 2
    waves[:, -1] = 0
    return waves


def _moments(blocks, squares, basis, variance):
    """Return mean(G C G) + variance * mean(G), CTF by CTF."""
    expected = []
    for block, radial in zip(blocks, basis.radial, strict=True):
        filters = [radial.T @ (h[:, None] * radial) for h in squares]
        expected.append(np.mean([g @ block @ g + variance * g for g in filters], axis=0))
    return expected


def _draw(expected, n_images, rng):
    samples = []
    for k, matrix in enumerate(expected):
        n = n_images * (2 if k else 1)
        values, vectors = np.linalg.eigh(matrix)
        drawn = rng.normal(size=(n, len(matrix))) @ (vectors * np.sqrt(np.maximum(values, 0))).T
        samples.append(drawn.T @ drawn / n)
    return samples


def _risk(blocks, truth, variance):
    """Return the mean squared error of Wiener filters with some covariance, by the true one."""
    risk = 0.0
    for k, (block, true) in enumerate(zip(blocks, truth, strict=True)):
        filters = block @ np.linalg.inv(block + variance * np.eye(len(block)))
        rest = np.eye(len(block)) - filters
        own = np.trace(rest @ true @ rest.T) + variance * np.trace(filters @ filters.T)
        risk += own * (2 if k else 1)
    return risk


def _estimate(samples, squares, n_images, basis, variance):
    pairs = np.mean([np.outer(h, h) for h in squares], axis=0)
    return bayes_covariance(samples, squares.mean(axis=0), pairs, n_images, basis, variance)


def test_bessel_functions_are_those_of_scipy():
    at = np.geomspace(1e-3, 90, 50)
    values = list(prior_covariance._sample_bessel(80, at))[::-1]
    for k, own in enumerate(values):
        np.testing.assert_allclose(own, special.jv(k, at), rtol=0, atol=1e-12)


def test_components_of_one_disc_add_up_to_white_noise_in_it(basis):
    """All frequencies of equal power, seen through the largest disc, leave all inside as it is."""
    components = prior_covariance._make_components(basis)
    n = components[0].shape[1] // len(prior_covariance.DISCS)
    for own in components[:6]:
        values = np.linalg.eigvalsh(own[:, -n:] @ own[:, -n:].T)
        assert 0.85 < values[len(values) // 2] < 1.15


def test_powers_are_found_that_explain_the_samples(basis):
    components = prior_covariance._make_components(basis)
    rng = np.random.default_rng(0)
    powers = rng.exponential(size=components[0].shape[1])
    blocks = [(own * powers) @ own.T for own in components]
    flat = np.ones((1, len(basis.nodes)))
    samples = _moments(blocks, flat, basis, 0.5)
    pairs = np.ones((len(basis.nodes),) * 2)
    orders = prior_covariance._gather(samples, flat[0], pairs, 10**5, basis, 0.5)
    found = fit_powers(orders, components)
    assert (found >= 0).all()
    for own, block in zip(components[:8], blocks, strict=False):
        assert np.linalg.norm((own * found) @ own.T - block) < 0.02 * np.linalg.norm(block)


def test_the_estimate_solves_its_equations(basis, truth, squares):
    """Against the dense solution, entry by entry of D, of one order with five CTFs."""
    k, n_images, variance = 5, 40, 0.3
    prior = truth[k] + 0.1 * np.eye(len(truth[k]))
    sample = _draw(_moments(truth, squares, basis, variance), n_images, np.random.default_rng(2))[k]
    filters = [basis.radial[k].T @ (h[:, None] * basis.radial[k]) for h in squares]
    values, vectors = np.linalg.eigh(prior)
    root = vectors * np.sqrt(values)
    noise = variance * np.mean(filters, axis=0)
    expected = np.mean([g @ prior @ g for g in filters], axis=0) + noise
    inverse = np.linalg.inv(expected)
    seen = np.mean([np.kron(g @ root, g @ root) for g in filters], axis=0)
    weights = np.kron(inverse, inverse)
    left = 2 * n_images * seen.T @ weights @ seen
    left += prior_covariance.STRENGTH * np.eye(len(left))
    right = 2 * n_images * seen.T @ weights @ (sample - expected).ravel()
    deviation = np.linalg.solve(left, right).reshape(prior.shape)
    spread, turned = np.linalg.eigh(np.eye(len(prior)) + (deviation + deviation.T) / 2)
    dense = root @ (turned * np.maximum(spread, 0)) @ turned.T @ root.T

    samples = [np.eye(len(own)) for own in truth]
    samples[k] = sample
    pairs = np.mean([np.outer(h, h) for h in squares], axis=0)
    orders = prior_covariance._gather(
        samples, squares.mean(axis=0), pairs, n_images, basis, variance
    )
    found = prior_covariance._update(orders[k], prior)
    np.testing.assert_allclose(found, dense, rtol=0, atol=1e-4 * np.abs(dense).max())


def test_many_images_outweigh_the_prior(basis, truth, squares):
    samples = _moments(truth, squares, basis, 0.5)
    blocks = _estimate(samples, squares, 10**8, basis, 0.5)
    for block, true in zip(blocks[:10], truth, strict=False):
        assert np.linalg.norm(block - true) < 0.01 * np.linalg.norm(true)


@pytest.mark.parametrize(("n_images", "gain"), [(20, 0.8), (100, 0.93), (1000, 1.0)])
def test_denoises_better_than_shrunk_eigenvalues(basis, truth, n_images, gain):
    flat = np.ones((1, len(basis.nodes)))
    variance = 2 * np.trace(truth[3]) / len(truth[3])
    samples = _draw(_moments(truth, flat, basis, variance), n_images, np.random.default_rng(3))
    ours = _estimate(samples, flat, n_images, basis, variance)
    pairs = np.ones((len(basis.nodes),) * 2)
    shrunk = ESTIMATORS["frobenius"](samples, flat[0], pairs, n_images, basis, variance)
    best = _risk(truth, truth, variance)
    assert best < _risk(ours, truth, variance) < gain * _risk(shrunk, truth, variance)


def test_projections_of_a_volume_are_denoised_better():
    """The whole way with 40 projections at SNR 0.1, neither of the prior's making."""
    basis, n = steerable_basis(32), 40
    particle = phantom(40, radius_A=36, seed=2).volume(32, 3.0)
    made = simulate(particle, n, snr=0.1, seed=1)
    noisy, clean = (
        expand(to_half_planes(made[name].values), basis) for name in ("images", "clean")
    )
    flat = np.append(np.ones(len(basis.nodes) - 1), 0.0)
    sums = sum_coefficients(noisy, basis, flat[None], np.zeros(n, int))
    errors = []
    for shrinkage in ("bayes", "frobenius"):
        found = estimate_covariance(sums, basis, 1.0, shrinkage)
        error = 0.0
        for k, (own, block) in enumerate(zip(basis.slices, found.blocks, strict=True)):
            wiener = block @ np.linalg.inv(block + np.eye(len(block)))
            mean = found.mean if k == 0 else np.zeros(len(block))
            rest = (noisy[:, own] - mean) @ wiener.T + mean - clean[:, own]
            error += (np.abs(rest) ** 2).sum() * (2 if k else 1)
        errors.append(error)
    assert errors[0] < 0.9 * errors[1]


def test_blocks_are_positive_and_follow_the_unit(basis, truth, squares):
    samples = _draw(_moments(truth, squares, basis, 1.0), 30, np.random.default_rng(4))
    blocks = _estimate(samples, squares, 30, basis, 1.0)
    larger = _estimate([own * 1e8 for own in samples], squares, 30, basis, 1e8)
    for block, large in zip(blocks, larger, strict=True):
        np.testing.assert_allclose(block, block.T, atol=1e-12 * np.abs(block).max())
        assert np.linalg.eigvalsh(block)[0] >= -1e-10 * np.abs(block).max()
        np.testing.assert_allclose(large, block * 1e8, rtol=0, atol=1e4 * np.abs(block).max())


@pytest.mark.parametrize("variance", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("n_images", [1, 3, 200])
def test_noise_alone_or_nothing_gives_finite_blocks(basis, n_images, variance):
    flat = np.ones((1, len(basis.nodes)))
    sizes = [radial.shape[1] for radial in basis.radial]
    noise = _draw([np.eye(size) for size in sizes], n_images, np.random.default_rng(5))
    for samples in (noise, [np.zeros((size, size)) for size in sizes]):
        blocks = _estimate(samples, flat, n_images, basis, variance)
        assert all(np.isfinite(block).all() for block in blocks)
        if variance == 50.0 or not samples[0].any():
            assert max(np.abs(block).max() for block in blocks) < 1e-3


def test_where_no_ctf_lets_anything_through_nothing_is_estimated(basis):
    samples = [np.eye(radial.shape[1]) for radial in basis.radial]
    blocks = _estimate(samples, np.zeros((1, len(basis.nodes))), 10, basis, 1.0)
    assert not any(block.any() for block in blocks)


def test_few_images_full_of_noise_are_hardly_taken_for_signal(basis, truth):
    """At SNR 0.01 and 10 images nothing may be worse than the mean alone by more than a tenth."""
    flat = np.ones((1, len(basis.nodes)))
    variance = 30 * np.trace(truth[3]) / len(truth[3])
    samples = _draw(_moments(truth, flat, basis, variance), 10, np.random.default_rng(6))
    blocks = _estimate(samples, flat, 10, basis, variance)
    nothing = [np.zeros_like(own) for own in truth]
    assert _risk(blocks, truth, variance) < 1.1 * _risk(nothing, truth, variance)
