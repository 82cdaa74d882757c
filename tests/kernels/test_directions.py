"""Directions of view: against matrices of rotation, and by how evenly they lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels.directions import (
    align_views,
    angles_between,
    cone_views,
    sphere_grid,
    turn_pole,
    unit_vectors,
)
from emdask.kernels.projections import rotation_matrices

AXES = [(0.0, 0.0), (40.0, 60.0), (200.0, 180.0), (-70.0, 90.0)]


def draw_views(n: int, rng: np.random.Generator) -> Any:
    return np.column_stack([360 * rng.random(n), np.rad2deg(np.arccos(rng.uniform(-1, 1, n)))])


def draw_cone(view_deg: Any, cone_deg: float, n: int, rng: np.random.Generator) -> Any:
    """Directions within a cone, by rejection of vectors."""
    axis = unit_vectors(view_deg)
    vectors = axis + np.sin(np.deg2rad(cone_deg)) * rng.uniform(-1, 1, (20 * n, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = vectors[vectors @ axis > np.cos(np.deg2rad(cone_deg))][:n]
    x, y, z = near.T
    return np.column_stack([np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arccos(z))])


def to_nearest(some: Any, others: Any) -> Any:
    """Angle of each of some directions to the nearest of others, degrees."""
    cosines = unit_vectors(some) @ unit_vectors(others).T
    return np.rad2deg(np.arccos(cosines.max(axis=1).clip(-1, 1)))


def turn_between(a: Any, b: Any) -> Any:
    """Angle of the rotation from one matrix to another, degrees."""
    trace = np.einsum("...ij,...ij->...", a, b)
    return np.rad2deg(np.arccos(((trace - 1) / 2).clip(-1, 1)))


def test_directions_are_where_matrices_look_from(rng: np.random.Generator) -> None:
    views = draw_views(50, rng)
    matrices = rotation_matrices(np.column_stack([views, 360 * rng.random(50)]))
    # A point at the direction, seen from there, lies before the middle of the image.
    seen = np.einsum("vij,vj->vi", matrices, unit_vectors(views))
    np.testing.assert_allclose(seen, np.tile([0, 0, 1], (50, 1)), atol=1e-12)


def test_angles_are_those_of_directions() -> None:
    views = [[0.0, 0.0], [123.0, 10.0], [303.0, 10.0], [0.0, 180.0], [123.0, 170.0]]
    found = angles_between(views, [123.0, 10.0])
    np.testing.assert_allclose(found, [10, 0, 20, 170, 160], atol=1e-5)
    assert angles_between(np.zeros((0, 2)), [0.0, 0.0]).shape == (0,)


@pytest.mark.parametrize("axis", AXES)
def test_aligned_views_are_tipped_by_the_least_rotation(
    axis: tuple[float, float], rng: np.random.Generator
) -> None:
    views = draw_cone(axis, 60.0, 40, rng)
    aligned = align_views(views, axis)
    np.testing.assert_array_equal(aligned[:, :2], views)
    untipped = rotation_matrices([*axis, 0.0])
    turns = turn_between(rotation_matrices(aligned), untipped)
    np.testing.assert_allclose(turns, angles_between(views, axis), atol=1e-5)
    for other_psi in (-20.0, 3.0, 90.0):
        other = rotation_matrices(aligned + np.array([0.0, 0.0, other_psi]))
        assert (turn_between(other, untipped) > turns).all()


def test_the_opposite_view_can_be_aligned_too() -> None:
    assert np.isfinite(align_views([[0.0, 180.0], [77.0, 180.0]], [0.0, 0.0])).all()


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize(("cone_deg", "step_deg"), [(10.0, 3.0), (20.0, 6.0), (30.0, 4.0)])
def test_a_cone_is_filled_evenly(
    axis: tuple[float, float], cone_deg: float, step_deg: float, rng: np.random.Generator
) -> None:
    views = cone_views(axis, cone_deg, step_deg)
    distances = angles_between(views, axis)
    np.testing.assert_allclose(distances[0], 0, atol=1e-5)
    assert (np.diff(distances) > -1e-5).all()
    assert distances.max() == pytest.approx(cone_deg, abs=1e-5)
    # In a square grid no place is further from a point than 0.71 of a step.
    assert to_nearest(draw_cone(axis, cone_deg, 500, rng), views).max() < 0.8 * step_deg
    gaps = [to_nearest(views[i : i + 1], np.delete(views, i, 0))[0] for i in range(len(views))]
    assert min(gaps) > 0.6 * step_deg
    area = 2 * np.pi * (1 - np.cos(np.deg2rad(cone_deg + step_deg / 2)))
    assert len(views) == pytest.approx(area / np.deg2rad(step_deg) ** 2, rel=0.15)


def test_rings_beyond_a_cone_are_outside_and_reach_as_far_as_is_said() -> None:
    axis = (40.0, 60.0)
    inner = cone_views(axis, 10.0, 3.0)
    for beyond_deg, rings in ((1.0, [11.0]), (3.0, [13.0]), (6.0, [13.0, 16.0])):
        views = cone_views(axis, 10.0, 3.0, beyond_deg)
        np.testing.assert_array_equal(views[: len(inner)], inner)
        found = np.unique(angles_between(views[len(inner) :], axis).round(4))
        np.testing.assert_allclose(found, rings)


def test_a_cone_of_no_width_is_its_axis() -> None:
    np.testing.assert_allclose(cone_views([40.0, 60.0], 0.0, 3.0), [[40.0, 60.0]])
    around = cone_views([40.0, 60.0], 0.0, 3.0, 3.0)
    np.testing.assert_allclose(angles_between(around[1:], [40.0, 60.0]), 3.0)
    assert len(around) == 7


@pytest.mark.parametrize("step_deg", [6.0, 15.0])
def test_the_sphere_is_filled_evenly(step_deg: float, rng: np.random.Generator) -> None:
    views = sphere_grid(step_deg)
    assert len(views) * np.deg2rad(step_deg) ** 2 == pytest.approx(4 * np.pi, rel=0.02)
    assert to_nearest(draw_views(2000, rng), views).max() < 0.95 * step_deg
    # Mirror images of views are views, too.
    opposite = np.column_stack([views[:, 0] + 180, 180 - views[:, 1]])
    assert to_nearest(opposite, views).max() < 0.95 * step_deg


@pytest.mark.parametrize("axis", AXES)
def test_the_pole_comes_to_lie_at_the_view(
    axis: tuple[float, float], rng: np.random.Generator
) -> None:
    views = draw_views(30, rng)
    turned = turn_pole(views, axis)
    np.testing.assert_allclose(angles_between(turned, axis), views[:, 1], atol=1e-5)
    for i in (0, 7):
        expected = angles_between(views, views[i])
        np.testing.assert_allclose(angles_between(turned, turned[i]), expected, atol=1e-4)
    # It is a rotation, no reflection.
    volumes = [np.linalg.det(unit_vectors(each[:3])) for each in (views, turned)]
    assert volumes[0] == pytest.approx(volumes[1], abs=1e-9)
