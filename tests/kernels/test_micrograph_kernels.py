"""Kernels of simulated micrographs: whole fields through a CTF, ice, film, places of particles."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.kernels.fields import blur_px, image_field
from emdask.kernels.ice import add_crystal, carbon_film, ice_slope
from emdask.kernels.placing_cpu import TRIES, place_particles

OPTICS = {
    "pixel_size_A": 3.0,
    "defocus_u_A": 12_000.0,
    "defocus_v_A": 11_000.0,
    "astigmatism_deg": 30.0,
    "voltage_kV": 200.0,
    "amplitude_contrast": 0.07,
    "b_factor_A2": 40.0,
}
EVERYWHERE = np.array([0.0, 0.0, np.inf])


def test_rows_of_a_ctf_are_those_of_the_whole():
    whole = ctf_2d((30, 24), **OPTICS)
    for rows in (slice(0, 8), slice(24, 32)):
        np.testing.assert_array_equal(ctf_2d((30, 24), **OPTICS, rows=rows), whole[rows])


@pytest.mark.parametrize("shape", [(64, 80), (45, 33)])
def test_a_field_is_imaged_as_small_images_are(rng, shape):
    field = rng.standard_normal(shape, np.float32)
    image = image_field(field, OPTICS)
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, apply_ctf(field, ctf_2d(shape, **OPTICS)), atol=1e-5)


@pytest.mark.parametrize("defocus_A", [8_000.0, 30_000.0])
def test_blur_is_how_far_a_point_reaches(defocus_A):
    optics = {"pixel_size_A": 2.0, "defocus_u_A": defocus_A}
    point = np.zeros((512, 512), np.float32)
    point[256, 256] = 1
    image = image_field(point, optics)
    y, x = np.mgrid[-256:256, -256:256]
    distance, power = np.hypot(y, x), image.astype(float) ** 2
    reach = blur_px(optics)
    # The corners of the Fourier plane lie beyond Nyquist.
    assert power[distance > 1.5 * reach].sum() < 0.02 * power.sum()
    assert power[distance > 0.7 * reach].sum() > 0.1 * power.sum()


def test_film_is_what_lies_beyond_the_hole():
    film = carbon_film((40, 60), (10.0, 15.0, 22.0), 4.0)
    y, x = np.mgrid[:40, :60]
    beyond = np.hypot(x - 10, y - 15) - 22
    assert (film[beyond > 2.01] == 1).all()
    assert (film[beyond < -2.01] == 0).all()
    middle = abs(beyond) < 2
    np.testing.assert_allclose(film[middle], 0.5 + beyond[middle] / 4, atol=1e-5)


@pytest.mark.parametrize("angle_deg", [0.0, 70.0, 200.0])
def test_ice_grows_thicker_along_its_direction(angle_deg):
    ice = ice_slope((64, 96), angle_deg, 40.0)
    assert ice.dtype == np.float32
    y, x = np.mgrid[-0.5:0.5:64j, -0.5:0.5:96j]
    angle = np.deg2rad(angle_deg)
    along = np.cos(angle) * x + np.sin(angle) * y
    wave = ice - along / np.ptp(along)
    assert abs(wave).max() < 0.151
    across = np.cos(angle) * y - np.sin(angle) * x
    np.testing.assert_allclose(wave, 0.15 * np.cos(1.6 * np.pi * across + 0.6981317), atol=1e-4)


def test_a_crystal_is_a_lump_and_may_be_cut_by_the_edge():
    field = np.zeros((50, 60), np.float32)
    add_crystal(field, 30.0, 20.0, 10.0, 2.0, 6)
    assert field.max() == 2.0
    assert field[20, 43] == 0
    # Half an ellipsoid's thickness over the area of its rim, which bulges by 0.2 per cent.
    assert field.sum() == pytest.approx(2.0 * 2 / 3 * np.pi * 100 * 1.0025, rel=0.02)
    cut = np.zeros((50, 60), np.float32)
    add_crystal(cut, -2.0, 49.0, 10.0, 2.0, 4)
    assert 0 < cut.sum() < field.sum() / 2
    add_crystal(cut, -100.0, 500.0, 10.0, 2.0, 4)


@pytest.mark.parametrize("crowding", [0.0, 0.6])
def test_places_keep_apart_and_off_the_film(rng, crowding):
    hole = np.array([50.0, 40.0, 60.0])
    draws = rng.random((TRIES * 40, 4))
    places = place_particles(draws, 40, 100, 120, 9.0, crowding, hole)
    assert places.shape == (40, 2)
    assert pdist(places).min() >= 9
    assert np.hypot(*(places - hole[:2]).T).max() <= 60
    assert (places >= 0).all()
    assert (places <= [119, 99]).all()


def test_as_many_find_room_as_the_simulator_lets_through(rng):
    # 0.42 of the frame.
    n = int(0.42 * 300**2 / (np.pi / 4 * 12**2))
    draws = rng.random((TRIES * n, 4))
    assert len(place_particles(draws, n, 300, 300, 12.0, 0.0, EVERYWHERE)) == n


def test_no_more_are_placed_than_find_room(rng):
    places = place_particles(rng.random((5000, 4)), 1000, 50, 50, 20.0, 0.0, EVERYWHERE)
    assert 3 < len(places) < 12


def test_places_are_even(rng):
    draws = rng.random((3000, 4))
    places = place_particles(draws, 3000, 64, 128, 1e-9, 0.0, EVERYWHERE)
    counts, _, _ = np.histogram2d(*places.T, bins=(4, 4), range=[[0, 127], [0, 63]])
    assert ((counts - 187.5) ** 2 / 187.5).sum() < 35
