"""Phantoms: what is promised of them, and views against sums of their volume."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from emdask.errors import ParameterError
from emdask.phantoms import phantom


def test_views_along_the_axes_are_sums_of_the_volume():
    particle = phantom(30, radius_A=30, width_A=(4.0, 6.0))
    box, pixel_A = 48, 2.0
    volume = particle.volume(box, pixel_A).values
    along_z, along_x = particle.project([[0, 0, 0], [0, 90, 0]], box_px=box, pixel_size_A=pixel_A)
    np.testing.assert_allclose(along_z, volume.sum(axis=0), atol=1e-5 * along_z.max())
    # Tilted by 90 degrees the view looks along x; its x axis is minus z of the particle.
    seen = volume.sum(axis=2)[::-1].T
    np.testing.assert_allclose(along_x[:, 1:], seen[:, :-1], atol=1e-5 * along_x.max())


def test_mass_is_that_of_volume_and_views():
    particle = phantom(40, radius_A=40, width_A=5.0, seed=2)
    mass = particle.masses.sum()
    assert particle.volume(64, 2.5).values.sum() == pytest.approx(mass, rel=1e-5)
    images = particle.project([[10, 20, 30], [50, 120, 0]], box_px=64, pixel_size_A=2.5)
    np.testing.assert_allclose(images.sum(axis=(1, 2)), mass, rtol=1e-5)


def test_a_shifted_particle_stands_at_minus_the_shift():
    particle = phantom(10, radius_A=20, width_A=5.0)
    options = {"box_px": 40, "pixel_size_A": 2.0}
    still = particle.project([[10, 20, 30]], **options)[0]
    moved = particle.project([[10, 20, 30]], shift_A=[[4.0, -6.0]], **options)[0]
    np.testing.assert_allclose(moved, np.roll(still, (3, -2), axis=(0, 1)), atol=1e-5)


def test_it_lies_about_its_centre_and_reaches_its_radius():
    particle = phantom(50, radius_A=70, width_A=(3.0, 9.0), seed=5)
    centre = np.average(particle.positions_A, axis=0, weights=particle.masses)
    np.testing.assert_allclose(centre, 0, atol=1e-9)
    assert np.linalg.norm(particle.positions_A, axis=1).max() == pytest.approx(70)
    assert ((particle.widths_A >= 3) & (particle.widths_A <= 9)).all()
    assert len(set(particle.widths_A)) == 50


def test_the_seed_is_all_that_chooses():
    one, again, other = phantom(seed=1), phantom(seed=1), phantom(seed=2)
    np.testing.assert_array_equal(one.positions_A, again.positions_A)
    assert (one.positions_A != other.positions_A).all()
    copy = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(copy.volume(16, 10.0), one.volume(16, 10.0))


def test_one_blob_lies_at_the_centre():
    volume = phantom(1, width_A=4.0).volume(16, 2.0).values
    assert np.unravel_index(volume.argmax(), volume.shape) == (8, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blobs": 0}, "phantom: n_blobs must be an integer of at least 1; got 0."),
        ({"radius_A": -1.0}, "phantom: radius_A must be a number of at least 0; got -1.0."),
        ({"width_A": (5.0, 4.0)}, "width_A must be a range"),
        ({"width_A": "wide"}, "width_A must be a number"),
        ({"width_A": (1.0, 2.0, 3.0)}, "width_A must be a number or a range"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
    ],
)
def test_wrong_parameters_are_named(options, message):
    with pytest.raises(ParameterError, match=message.replace("(", r"\(").split("; got")[0]):
        phantom(**options)


def test_a_grid_must_be_one():
    with pytest.raises(ParameterError, match="phantom: box_px must be an integer"):
        phantom().volume(1, 2.0)
    with pytest.raises(ParameterError, match="phantom: pixel_size_A must be a number"):
        phantom().project([[0, 0, 0]], box_px=8, pixel_size_A=0.0)
