"""Point groups: closed, of the right order, and with the axes of RELION."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from emdask.errors import ParameterError
from emdask.kernels.symmetry import symmetry_matrices

ORDERS = {"C1": 1, "C2": 2, "C7": 7, "D1": 2, "D2": 4, "D7": 14, "T": 12, "O": 24}
ORDERS |= dict.fromkeys(("I", "I1", "I2", "I3", "I4"), 60)


def contains(group, matrix):
    return np.abs(group - matrix).max(axis=(1, 2)).min() < 1e-6


def turn(fold, axis):
    axis = np.array(axis) / np.linalg.norm(axis)
    return Rotation.from_rotvec(2 * np.pi / fold * axis).as_matrix()


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_it_is_a_group_of_rotations(name, order):
    group = symmetry_matrices(name)
    assert group.shape == (order, 3, 3)
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(group @ group.transpose(0, 2, 1), [np.eye(3)] * order, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1)
    assert all(contains(group, one @ other) for one in group for other in group[:5])
    apart = np.abs(group[:, None] - group[None]).max(axis=(2, 3)) + np.eye(order)
    assert apart.min() > 0.1


# Fold and direction of axes, as `rot_axis` of RELION's groups says them.
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("C5", [(5, (0, 0, 1))]),
        ("D3", [(3, (0, 0, 1)), (2, (1, 0, 0))]),
        ("T", [(3, (0, 0, 1)), (2, (0, 0.816496, 0.577350))]),
        ("O", [(4, (0, 0, 1)), (4, (1, 0, 0)), (4, (0, 1, 0)), (3, (1, 1, 1))]),
        ("I1", [(2, (1, 0, 0)), (5, (0.8506508, 0, -0.5257311)), (3, (0.9341724, 0.3568221, 0))]),
        ("I2", [(2, (0, 0, 1)), (5, (0.5257311, 0, 0.8506508)), (3, (0, 0.3568221, 0.9341724))]),
        (
            "I3",
            [
                (2, (-0.5257311, 0, 0.8506508)),
                (5, (0, 0, 1)),
                (3, (-0.4911235, 0.3568221, 0.7946545)),
            ],
        ),
        (
            "I4",
            [
                (2, (0.5257311, 0, 0.8506508)),
                (5, (0.8944272, 0, 0.4472136)),
                (3, (0.4911235, 0.3568221, 0.7946545)),
            ],
        ),
    ],
)
def test_axes_are_those_of_relion(name, axes):
    group = symmetry_matrices(name)
    for fold, axis in axes:
        assert contains(group, turn(fold, axis))


def test_two_settings_of_the_icosahedron_differ():
    one, two = symmetry_matrices("I1"), symmetry_matrices("I2")
    np.testing.assert_array_equal(two, symmetry_matrices("i"))
    assert not all(contains(two, matrix) for matrix in one)
    # A quarter turn about z takes one into the other.
    quarter = turn(4, (0, 0, 1))
    assert all(contains(two, quarter @ matrix @ quarter.T) for matrix in one)
    # Nearest to z a 5-fold axis lies in the plane x = 0 for I1, y = 0 for I2.
    assert contains(one, turn(5, (0, 0.5257311, 0.8506508)))


@pytest.mark.parametrize("name", ["C0", "C", "X3", "TH", "I5", "D1000", "", None, 3])
def test_unknown_groups_are_refused(name):
    with pytest.raises(ParameterError, match=r"symmetry: must be a group without mirrors: C1, C2"):
        symmetry_matrices(name)
