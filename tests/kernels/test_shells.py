"""Shells of Fourier transforms, against sums written out."""

import numpy as np
import pytest
from scipy.fft import irfftn

from emdask.kernels.masks import spherical_mask
from emdask.kernels.shells import (
    corrected_correlation,
    randomise_phases,
    shell_correlation,
    shell_frequencies,
    shell_numbers,
    shell_sums,
)


def whole_grid(n: int) -> np.ndarray:
    """Length of the frequency at each point of `numpy.fft.fftn`, in shells."""
    k = np.fft.fftfreq(n, 1 / n)
    return np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)


@pytest.mark.parametrize("n", [8, 9])
def test_correlation_is_that_of_the_whole_transforms(n: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(n, n, n))
    second = first + rng.normal(size=first.shape)
    terms = [np.fft.fftn(volume) for volume in (first, second)]
    shells = np.rint(whole_grid(n))
    expected = []
    for shell in range(1, n // 2 + 1):
        a, b = (t[(shells == shell) & (whole_grid(n) <= n // 2)] for t in terms)
        expected.append((a @ b.conj()).real / np.linalg.norm(a) / np.linalg.norm(b))
    found = shell_correlation(first, second)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    inside = whole_grid(n) <= n // 2
    means = [whole_grid(n)[inside & (shells == s)].mean() / n for s in range(1, n // 2 + 1)]
    np.testing.assert_allclose(shell_frequencies(n), means, rtol=1e-6)


@pytest.mark.parametrize("m", [8, 9])
def test_sums_count_every_point_of_the_whole_grid_once(m: int) -> None:
    volume = np.random.default_rng(1).normal(size=(m, m, m))
    terms, whole = (np.abs(f(volume)) ** 2 for f in (np.fft.rfftn, np.fft.fftn))
    box_px = 6
    radius = whole_grid(m) * box_px / m
    expected = [whole[(np.rint(radius) == s) & (radius <= 3)].sum() for s in range(4)]
    np.testing.assert_allclose(shell_sums(terms, box_px), expected, rtol=1e-5)


def test_shells_of_a_finer_grid_are_those_of_the_volume() -> None:
    shells = shell_numbers(8, 12)
    assert shells.shape == (12, 12, 7)
    assert shells[0, 0].tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert shells[6, 6, 6] == 5


def test_an_empty_volume_correlates_with_nothing() -> None:
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))
    assert not shell_correlation(volume, np.zeros_like(volume)).any()


def test_random_phases_keep_amplitudes_and_low_frequencies() -> None:
    volume = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    random = randomise_phases(volume, 5, seed=2)
    before, after = np.fft.rfftn(volume), np.fft.rfftn(random)
    low = shell_numbers(24) < 5
    np.testing.assert_allclose(after[low], before[low], atol=1e-3)
    np.testing.assert_allclose(abs(after), abs(before), rtol=1e-2, atol=1e-2)
    assert abs(shell_correlation(volume, random)[8:]).max() < 0.2


def test_correction_takes_off_what_a_tight_mask_lends() -> None:
    rng = np.random.default_rng(0)
    n = 32
    signal = np.fft.rfftn(rng.normal(size=(n, n, n)))
    signal = irfftn(np.where(shell_numbers(n) < 8, signal, 0), s=(n, n, n))
    # The same offset gives both the outline of the mask.
    halves = [signal + 1 + 0.3 * rng.normal(size=signal.shape) for _ in range(2)]
    mask = spherical_mask(n, 6.0)
    masked = shell_correlation(*halves, mask)
    corrected = corrected_correlation(*halves, mask)
    unmasked = shell_correlation(*halves)
    assert masked[11:].mean() > 0.5
    assert abs(corrected[11:].mean()) < 0.25
    np.testing.assert_array_equal(corrected[:7], masked[:7])
    assert unmasked[:7].min() > 0.8
