"""Proportions of classes: against slow expectation maximisation and truths that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.backend import on_device
from emdask.errors import ParameterError
from emdask.kernels import mixtures
from emdask.kernels.mixtures import (
    bootstrap_proportions,
    estimate_proportions,
    posteriors,
    summarize_draws,
    without_last,
)

TRUTH = np.array([0.7, 0.2, 0.1])
# Distance of Gaussian classes in units of their width: a third of the images lie nearer to another.
DISTANCE = 1.4


def draw_images(n: int, rng: np.random.Generator, truth: Any = TRUTH) -> tuple[Any, Any]:
    """Class of each image, and log-likelihoods under classes that are Gaussians in a row."""
    labels = rng.choice(len(truth), n, p=truth)
    values = labels * DISTANCE + rng.normal(size=n)
    return labels, -0.5 * (values[:, None] - DISTANCE * np.arange(len(truth))) ** 2


def slow_proportions(log_likelihoods: Any, n_steps: int = 5000) -> Any:
    """Plain expectation maximisation."""
    likelihoods = np.exp(log_likelihoods)
    shares = np.full(likelihoods.shape[1], 1 / likelihoods.shape[1])
    for _ in range(n_steps):
        joint = likelihoods * shares
        shares = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
    return shares


def missing_likelihood(log_likelihoods: Any, shares: Any) -> float:
    """Most that the log-likelihood of all images can lie below its maximum."""
    likelihoods = np.exp(log_likelihoods - log_likelihoods.max(axis=1, keepdims=True))
    slopes = (likelihoods / (likelihoods @ shares)[:, None]).mean(axis=0)
    return float((slopes.max() - 1) * len(likelihoods))


def certain(labels: Any, n_classes: int) -> Any:
    return np.where(np.arange(n_classes) == np.asarray(labels)[:, None], 0.0, -np.inf)


def test_it_is_what_expectation_maximisation_converges_to(rng: np.random.Generator) -> None:
    _, table = draw_images(500, rng)
    found = estimate_proportions(table)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, slow_proportions(table), atol=2e-5)
    np.testing.assert_allclose(posteriors(table, found).mean(axis=0), found, atol=1e-7)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("n", "k"), [(1, 4), (7, 20), (300, 1), (1000, 6)])
def test_it_is_the_maximum_whatever_the_overlap(
    scale: float, n: int, k: int, rng: np.random.Generator
) -> None:
    table = rng.normal(size=(n, k)) * scale
    table[:, 1:][rng.random((n, k - 1)) < 0.3] = -np.inf
    found = estimate_proportions(table)
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    assert missing_likelihood(table, found) < 3e-6


def test_images_that_are_certain_are_counted() -> None:
    np.testing.assert_allclose(
        estimate_proportions(certain([0, 0, 3, 0, 1], 5)), [0.6, 0.2, 0, 0.2, 0], atol=1e-7
    )
    # What no image can be, none is.
    assert estimate_proportions(certain([0, 0, 3, 0, 1], 5))[[2, 4]].tolist() == [0, 0]


def test_classes_that_are_alike_share_equally(rng: np.random.Generator) -> None:
    table = draw_images(300, rng)[1][:, [0, 1, 1, 2]]
    found = estimate_proportions(table)
    assert found[1] == pytest.approx(found[2], abs=1e-9)
    np.testing.assert_allclose(estimate_proportions(np.zeros((9, 4))), 0.25)


def test_only_differences_between_classes_count(rng: np.random.Generator) -> None:
    _, table = draw_images(400, rng)
    found = estimate_proportions(table)
    moved = table + rng.normal(size=(400, 1)) * 1e5
    np.testing.assert_allclose(estimate_proportions(moved), found, atol=1e-8)
    np.testing.assert_allclose(estimate_proportions(table[::-1, ::-1]), found[::-1], atol=1e-8)
    assert estimate_proportions(table.astype(np.float32)) == pytest.approx(found, abs=1e-5)


def test_proportions_are_unbiased_where_counting_is_not(rng: np.random.Generator) -> None:
    found, counted = [], []
    for _ in range(30):
        _, table = draw_images(500, rng)
        found.append(estimate_proportions(table))
        counted.append(np.bincount(table.argmax(axis=1), minlength=3) / 500)
    scatter = np.std(found, axis=0) / np.sqrt(30)
    assert (np.abs(np.mean(found, axis=0) - TRUTH) < 4 * scatter).all()
    assert np.abs(np.mean(counted, axis=0) - TRUTH).max() > 0.04


def test_intervals_cover_the_truth() -> None:
    n, n_seeds = 400, 40
    covered, too_narrow = np.zeros(3), np.zeros(3)
    for seed in range(n_seeds):
        _, table = draw_images(n, np.random.default_rng(seed))
        found = estimate_proportions(table)
        estimate = summarize_draws(found, bootstrap_proportions(table, 100, seed))
        covered += (estimate.low <= TRUTH) & (estimate.high >= TRUTH)
        too_narrow += np.abs(found - TRUTH) <= 1.96 * np.sqrt(found * (1 - found) / n)
    # Intervals that cover 95 % are below 34 of 40 once in 290 times.
    assert covered.min() >= 34
    assert covered.mean() >= 36
    assert too_narrow.mean() < 30


def test_draws_are_of_images_with_replacement(rng: np.random.Generator) -> None:
    _, table = draw_images(200, rng)
    draws = bootstrap_proportions(table, 3, 5)
    counts = mixtures._draw_counts(200, slice(0, 3), 5)
    assert counts.sum(axis=1).tolist() == [200] * 3
    assert counts.max() > 2
    for draw, count in zip(draws, counts, strict=True):
        expected = estimate_proportions(np.repeat(table, count, axis=0))
        np.testing.assert_allclose(draw, expected, atol=1e-8)


def test_draws_depend_on_the_seed_and_their_number_alone(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, table = draw_images(200, rng)
    draws = bootstrap_proportions(table, 5, 5)
    np.testing.assert_array_equal(bootstrap_proportions(table, 5, 5), draws)
    np.testing.assert_allclose(bootstrap_proportions(table, 3, 5), draws[:3], atol=1e-9)
    assert (np.abs(bootstrap_proportions(table, 5, 6) - draws).max(axis=1) > 1e-3).all()
    assert len(np.unique(draws, axis=0)) == 5
    for numbers, counts in ((100, 450), (1, 1)):
        monkeypatch.setattr(mixtures, "NUMBERS_AT_ONCE", numbers)
        monkeypatch.setattr(mixtures, "COUNTS_AT_ONCE", counts)
        np.testing.assert_allclose(bootstrap_proportions(table, 5, 5), draws, atol=1e-9)


def test_errors_of_certain_images_are_those_of_counting() -> None:
    labels = np.repeat([0, 1, 2], [120, 60, 220])
    shares = np.array([0.3, 0.15, 0.55])
    draws = bootstrap_proportions(certain(labels, 3), 1000, 1)
    estimate = summarize_draws(shares, draws)
    np.testing.assert_allclose(estimate.errors, np.sqrt(shares * (1 - shares) / 400), rtol=0.1)
    np.testing.assert_allclose(estimate.low, shares - 1.96 * estimate.errors, atol=0.006)
    np.testing.assert_allclose(estimate.high, shares + 1.96 * estimate.errors, atol=0.006)
    # Among the 180 of the first two, how many there are is no longer a number that is drawn.
    among = summarize_draws(without_last(shares), without_last(draws))
    np.testing.assert_allclose(among.proportions, [2 / 3, 1 / 3])
    np.testing.assert_allclose(among.errors, np.sqrt(2 / 9 / 180), rtol=0.1)


def test_bounds_are_draws_with_a_fortieth_of_all_beyond(rng: np.random.Generator) -> None:
    for n_draws, rank in ((39, 0), (199, 4)):
        draws = rng.random((n_draws, 2))
        estimate = summarize_draws([0.5, 0.5], draws)
        np.testing.assert_allclose(estimate.low, np.sort(draws, axis=0)[rank])
        np.testing.assert_allclose(estimate.high, np.sort(draws, axis=0)[-1 - rank])
        np.testing.assert_allclose(estimate.errors, draws.std(axis=0, ddof=1))


def test_where_all_are_none_of_these_nothing_is_known() -> None:
    among = without_last(np.array([[0.0, 0.0, 1.0], [0.1, 0.1, 0.8]]))
    np.testing.assert_array_equal(among, [[np.nan, np.nan], [0.5, 0.5]])
    assert np.isnan(summarize_draws([0.5, 0.5], among)[1:]).all()


def test_an_absent_class_has_an_interval_from_0(rng: np.random.Generator) -> None:
    _, table = draw_images(400, rng, truth=[0.6, 0.4, 0.0])
    estimate = summarize_draws(estimate_proportions(table), bootstrap_proportions(table, 100, 0))
    assert estimate.low[2] < 1e-6
    assert 0.001 < estimate.high[2] < 0.1


def test_posteriors_are_bayes(device: str, rng: np.random.Generator) -> None:
    table = rng.normal(size=(50, 3)) * 5
    table[3] = [-np.inf, -1e5, -1e5 - 1]
    found = on_device(posteriors, table, TRUTH, device=device)
    expected = np.exp(table - table.max(axis=1, keepdims=True)) * TRUTH
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert found[3, 0] == 0


def test_posteriors_of_few() -> None:
    assert posteriors(np.zeros((0, 3)), TRUTH).shape == (0, 3)
    assert posteriors(np.zeros((2, 3), np.float32), TRUTH).dtype == np.float64
    # The likeliest class has no proportion, and the others' likelihoods underflow.
    table = np.array([[0.0, -2000.0, -2000.0]])
    np.testing.assert_allclose(posteriors(table, [0.0, 0.25, 0.75]), [[0, 0.25, 0.75]])


@pytest.mark.parametrize("wrong", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_rows_that_say_nothing_are_refused(wrong: list[float]) -> None:
    table = np.array([[0.0, -1.0], wrong, wrong])
    message = r"2 of 3 have, as row 1; got \[.*\]. Leave such images out."
    for function, more in ((estimate_proportions, ()), (bootstrap_proportions, (2, 0))):
        with pytest.raises(ParameterError, match=message):
            function(table, *more)
    with pytest.raises(ParameterError, match=message):
        posteriors(table, [0.5, 0.5])


def test_an_image_without_a_possible_class_is_refused() -> None:
    with pytest.raises(ParameterError, match="proportion above 0; 1 of 2 have, as row 1"):
        posteriors([[0.0, 0.0], [0.0, -np.inf]], [0.0, 1.0])


@pytest.mark.parametrize("shares", [[0.5, 0.5, 0.5], [1.2, -0.2, 0.0], [np.nan, 0.5, 0.5], [1.0]])
def test_what_are_no_proportions_is_refused(shares: list[float]) -> None:
    with pytest.raises(ParameterError, match=r"add up to 1|there must be 3"):
        posteriors(np.zeros((2, 3)), shares)


def test_wrong_shapes_and_numbers_are_refused() -> None:
    for table in (np.zeros(3), np.zeros((2, 0))):
        with pytest.raises(ParameterError, match=r"log_likelihoods must be \(images, classes\)"):
            estimate_proportions(table)
    with pytest.raises(ParameterError, match="there must be at least one image"):
        estimate_proportions(np.zeros((0, 2)))
    with pytest.raises(ParameterError, match="n_draws must be an integer of at least 1"):
        bootstrap_proportions(np.zeros((2, 2)), 0, 0)
    with pytest.raises(ParameterError, match="seed must be an integer of at least 0"):
        bootstrap_proportions(np.zeros((2, 2)), 1, -1)
    for draws in (np.zeros((1, 2)), np.zeros((5, 3)), np.zeros(2)):
        with pytest.raises(ParameterError, match="draws must have two rows or more"):
            summarize_draws([0.5, 0.5], draws)
    with pytest.raises(ParameterError, match="there must be a class beside the last"):
        without_last([1.0])


def test_a_maximum_that_is_not_found_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixtures, "N_STEPS", 2)
    with pytest.raises(ParameterError, match="the maximum must be found within 2 steps"):
        estimate_proportions(np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]]))
