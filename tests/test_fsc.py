"""Fourier shell correlation of volumes of any kind of array."""

import dask.array as da
import numpy as np
import pytest
from scipy.signal import resample

from emdask.errors import ParameterError, StackError
from emdask.kernels.masks import spherical_mask
from emdask.metrics import frc_resolution, fsc
from emdask.volumes import build_volume


@pytest.fixture
def pair() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(16, 16, 16)).astype(np.float32)
    return [volume, volume + rng.normal(size=volume.shape).astype(np.float32)]


def test_signal_and_noise_give_the_correlation_that_they_must() -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(32, 32, 32))
    halves = [signal + rng.normal(size=signal.shape) for _ in range(2)]
    assert abs(fsc(*halves)[1][8:].mean() - 0.5) < 0.03
    assert abs(fsc(halves[0], signal)[1][8:].mean() - np.sqrt(0.5)) < 0.03


def test_arrays_of_dask_and_xarray_give_the_same(pair: list[np.ndarray]) -> None:
    frequency, expected = fsc(*pair)
    lazy = fsc(*(da.from_array(volume, chunks=8) for volume in pair))[1]
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), expected, atol=1e-6)
    labelled = fsc(*(build_volume(volume, 2.0) for volume in pair))[1]
    assert labelled.dims == ("frequency",)
    np.testing.assert_allclose(labelled, expected, atol=1e-6)
    np.testing.assert_array_equal(labelled.frequency, frequency)
    assert 0 < float(frc_resolution(*fsc(pair[0], 2 * pair[0]), threshold=0.143)) <= 0.5


def test_a_mask_leaves_the_noise_beside_the_particle_out() -> None:
    rng = np.random.default_rng(2)
    n, ball, mask = 32, spherical_mask(32, 6.0), spherical_mask(32, 6.0, 2.0)
    signal = 3 * rng.normal(size=(n, n, n)) * ball
    halves = [signal + rng.normal(size=signal.shape) for _ in range(2)]
    power, noise = 9 * (ball * mask**2).sum(), (mask**2).sum()
    expected = power / (power + noise)
    assert fsc(*halves)[1][8:].mean() < 0.5
    found = fsc(*halves, mask=mask)[1]
    assert abs(found[8:].mean() - expected) < 0.03
    labelled = fsc(*(build_volume(half, 2.0) for half in halves), mask=build_volume(mask, 2.0))[1]
    np.testing.assert_allclose(labelled, found, atol=1e-6)


def test_what_the_outline_of_a_mask_lends_is_taken_off() -> None:
    """Halves that agree by an offset and by coarse detail alone."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(12, 12, 12))
    for axis in range(3):
        coarse = resample(coarse, 32, axis=axis)
    halves = [1 + coarse + 0.3 * rng.normal(size=coarse.shape) for _ in range(2)]
    mask = build_volume(spherical_mask(32, 6.0), 2.0)
    masked, corrected = (fsc(*halves, mask=mask, corrected=c)[1][11:].mean() for c in (False, True))
    assert masked > 0.5
    assert abs(corrected) < 0.2


def test_what_does_not_fit_is_refused_at_once(pair: list[np.ndarray]) -> None:
    with pytest.raises(StackError, match="must be cubes"):
        fsc(pair[0][:8], pair[1][:8])
    with pytest.raises(StackError, match="must be cubes"):
        fsc(pair[0][0], pair[1][0])
    with pytest.raises(StackError, match="one size"):
        fsc(pair[0], pair[1][:8, :8, :8])
    with pytest.raises(ParameterError, match="corrected needs a mask"):
        fsc(*pair, corrected=True)
