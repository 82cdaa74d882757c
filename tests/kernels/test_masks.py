"""Masks, against distances written out."""

import numpy as np

from emdask.kernels.masks import mask_from_volume, spherical_mask


def test_ball_falls_from_its_radius_on_as_a_cosine() -> None:
    mask = spherical_mask(32, 8.0, 4.0)
    along = mask[16, 16, 16:]
    np.testing.assert_array_equal(along[:9], 1)
    np.testing.assert_allclose(
        along[9:12], (np.cos(np.pi * np.arange(1, 4) / 4) + 1) / 2, atol=1e-6
    )
    np.testing.assert_array_equal(along[12:], 0)
    np.testing.assert_array_equal(mask[1:, 1:, 1:], mask[:0:-1, :0:-1, :0:-1])


def test_ball_of_an_odd_box_is_about_its_middle() -> None:
    mask = spherical_mask(9, 3.0)
    assert mask.sum() == mask[::-1].sum() == 123
    assert mask[4, 4, 7] == mask[4, 4, 1] == 1


def test_mask_holds_the_density_and_not_what_lies_apart() -> None:
    z, y, x = np.mgrid[:48, :48, :48] - 24
    particle = np.exp(-((z / 9.0) ** 2 + (y / 5.0) ** 2 + (x / 5.0) ** 2))
    speck = np.exp(-((z - 4.0) ** 2 + (y - 17.0) ** 2 + x**2) / 4)
    noise = 0.05 * np.random.default_rng(0).normal(size=particle.shape)
    mask = mask_from_volume(particle + speck + noise)
    assert mask.dtype == np.float32
    assert mask[particle > 0.3].min() == 1
    assert mask[speck > 0.5].max() == 0
    assert 0.03 < mask.mean() < 0.25
    assert ((mask > 0) & (mask < 1)).any()


def test_threshold_extent_and_edge_are_as_given() -> None:
    volume = np.zeros((32, 32, 32))
    volume[16, 16, 16] = 1000.0
    mask = mask_from_volume(volume, 1e3 * 0.06, smooth_px=1.0, extend_px=2.0, soft_px=2.0)
    np.testing.assert_array_equal(mask[16, 16, 16:19], 1)
    np.testing.assert_allclose(mask[16, 16, 19:21], [0.5, 0.0], atol=1e-6)


def test_nothing_above_the_threshold_is_an_empty_mask() -> None:
    assert not mask_from_volume(np.zeros((8, 8, 8)), 1.0).any()
