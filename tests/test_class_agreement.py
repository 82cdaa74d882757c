"""Classes found and known: which is which, and how often they agree."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.class_agreement import NONE, UNKNOWN, build_known, compare_classes


def test_numbers_are_sorted_by_value_and_words_by_letters():
    assert build_known([10, 2, 1, 2], "a").names == ("1", "2", "10")
    assert build_known(["10", "9"], "a").names == ("9", "10")
    assert build_known(["str10", "str9"], "a").names == ("str10", "str9")
    assert build_known([10, 2, 1, 2], "a").number.tolist() == [3, 2, 1, 2]


def test_no_class_and_not_known_are_told_apart():
    words = build_known(["b", "none", "", "?", "a"], "a")
    assert words.number.tolist() == [2, NONE, NONE, UNKNOWN, 1]
    numbers = build_known([3.0, np.nan, -1, 0, 3], "a")
    assert numbers.number.tolist() == [1, UNKNOWN, UNKNOWN, NONE, 1]
    assert numbers.names == ("3",)


def test_counts_are_those_of_a_slow_table(rng):
    labels, found = rng.integers(-1, 4, 200), rng.integers(0, 5, 200)
    agreement = compare_classes(build_known(labels, "a"), found, 4)
    expected = np.zeros((4, 5), int)
    for label, k in zip(labels, found, strict=True):
        if label >= 0:
            expected[label - 1 if label else 3, k - 1 if k else 4] += 1
    np.testing.assert_array_equal(agreement.counts, expected)
    inside = (labels > 0) & (found > 0)
    assert agreement.accuracy == pytest.approx((labels == found)[inside].mean())
    assert agreement.kept == pytest.approx((found > 0)[labels > 0].mean())
    assert agreement.left_out == pytest.approx((found == 0)[labels == 0].mean())
    assert agreement.n_others == (labels == 0).sum()
    assert not agreement.is_matched


def test_best_match_is_that_of_all_orders(rng):
    from itertools import permutations

    labels, found = rng.integers(1, 5, 60), rng.integers(1, 5, 60)
    agreement = compare_classes(build_known(labels, "a"), found, 4, numbers_mean=False)
    best = max((np.array(order)[labels - 1] == found).sum() for order in permutations((1, 2, 3, 4)))
    assert agreement.n_right == best
    assert agreement.is_matched


def test_words_are_matched_even_where_numbers_mean_something():
    known = build_known(["open", "open", "shut"], "a")
    agreement = compare_classes(known, [2, 2, 1], 2)
    assert agreement.is_matched
    assert agreement.accuracy == 1.0


def test_numbers_name_the_class_even_where_some_are_absent():
    agreement = compare_classes(build_known([3, 3, 7], "a"), [3, 1, 2], 3)
    # Class 7 cannot be found: there are three.
    assert agreement.partner.tolist() == [2, -1]
    assert (agreement.n_right, agreement.n_judged) == (1, 3)


def test_rand_index_is_the_published_one():
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(4)
    labels = rng.integers(1, 4, 80)
    found = np.where(rng.random(80) < 0.6, labels, rng.integers(1, 4, 80))
    agreement = compare_classes(build_known(labels, "a"), found, 3)
    assert agreement.rand_index == pytest.approx(adjusted_rand_score(labels, found))
    # Another order of the numbers changes nothing.
    turned = compare_classes(build_known(labels, "a"), found % 3 + 1, 3)
    assert turned.rand_index == pytest.approx(agreement.rand_index)
    assert turned.accuracy < agreement.accuracy


def test_where_nothing_can_be_judged_there_are_no_figures():
    agreement = compare_classes(build_known([1, 2], "a"), [0, 0], 2)
    assert np.isnan([agreement.accuracy, agreement.largest, agreement.rand_index]).all()
    assert agreement.kept == 0.0
    assert np.isnan(agreement.left_out)
