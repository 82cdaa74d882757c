"""Projections against a volume of the same blobs, summed along the view."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels.projections import project_blobs, rotation_matrices, sample_blobs
from emdask.kernels.proteins import N_COPIES, grow_protein


def test_matrices_are_those_of_relion():
    rot, tilt, psi = np.deg2rad([20.0, 50.0, -70.0])
    ca, sa, cb, sb, cg, sg = (f(a) for a in (rot, tilt, psi) for f in (np.cos, np.sin))
    # Heymann, Chagoyen and Belnap 2005, J. Struct. Biol. 151:196, the ZYZ convention.
    expected = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    np.testing.assert_allclose(rotation_matrices([20.0, 50.0, -70.0]), expected, atol=1e-12)


def test_projection_is_the_sum_of_the_turned_volume(rng):
    points, width_A, box, pixel_A = rng.normal(scale=10, size=(5, 3)), 3.0, 32, 2.0
    rotation_deg, shift_A = [30.0, 60.0, 90.0], [4.0, -3.0]
    image = project_blobs(
        points,
        width_A,
        rotation_deg=[rotation_deg],
        shift_A=[shift_A],
        box_px=box,
        pixel_size_A=pixel_A,
    )[0]
    grid = (np.arange(box) - box // 2) * pixel_A
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    volume = np.zeros((box,) * 3)
    for px, py, pz in points @ rotation_matrices(rotation_deg).T - [*shift_A, 0.0]:
        volume += np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2) / (2 * width_A**2))
    volume *= pixel_A**3 / (2 * np.pi * width_A**2) ** 1.5
    np.testing.assert_allclose(image, volume.sum(axis=0), atol=2e-6)


def test_a_shift_of_whole_pixels_moves_the_particle_against_it():
    options = {"rotation_deg": [[0, 0, 0]], "box_px": 16, "pixel_size_A": 2.0}
    point = np.zeros((1, 3))
    still = project_blobs(point, 3.0, **options)
    moved = project_blobs(point, 3.0, shift_A=[[2.0, -4.0]], **options)
    np.testing.assert_allclose(moved[0], np.roll(still[0], (2, -1), axis=(0, 1)), atol=1e-4)


def test_a_width_and_a_mass_for_each_blob(rng):
    points, widths_A = rng.normal(scale=12, size=(4, 3)), np.array([3.0, 4.0, 5.0, 6.0])
    masses = np.array([1.0, -0.5, 2.0, 0.25])
    options = {"rotation_deg": [[20, 40, 60], [0, 90, 0]], "box_px": 24, "pixel_size_A": 2.0}
    together = project_blobs(points, widths_A, masses, **options)
    apart = sum(
        mass * project_blobs(point[None], width_A, **options)
        for point, width_A, mass in zip(points, widths_A, masses, strict=True)
    )
    np.testing.assert_allclose(together, apart, atol=1e-6 * together.max())


@pytest.mark.parametrize("box", [16, 17])
def test_sampled_blobs_are_those_of_the_formula(rng, box):
    points, widths_A = rng.normal(scale=6, size=(3, 3)), np.array([3.0, 4.0, 5.0])
    masses, pixel_A = np.array([1.0, 2.0, 0.5]), 2.0
    volume = sample_blobs(points, widths_A, masses, box_px=box, pixel_size_A=pixel_A)
    grid = (np.arange(box) - box // 2) * pixel_A
    z, y, x = np.meshgrid(grid, grid, grid, indexing="ij")
    expected = np.zeros((box,) * 3)
    for (px, py, pz), width, mass in zip(points, widths_A, masses, strict=True):
        squared = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
        expected += mass * np.exp(-squared / (2 * width**2)) / (2 * np.pi * width**2) ** 1.5
    np.testing.assert_allclose(volume, expected * pixel_A**3, atol=1e-7)


@pytest.mark.parametrize("seed", [0, 7])
def test_protein_is_three_equal_subunits_that_keep_apart(seed):
    points = grow_protein(seed)
    n = len(points) // N_COPIES
    assert len(points) == N_COPIES * n
    assert 60 < np.linalg.norm(points, axis=1).max() < 120
    angle = 2 * np.pi / N_COPIES
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    np.testing.assert_allclose(points[n : 2 * n], points[:n] @ turn.T, atol=1e-9)
    np.testing.assert_array_equal(points, grow_protein(seed))
