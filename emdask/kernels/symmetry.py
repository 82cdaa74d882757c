"""Point groups of particles, oriented as RELION has them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import require

Array = npt.NDArray[Any]

# Golden ratio: the directions of an icosahedron's axes are made of it.
PHI = (1 + math.sqrt(5)) / 2
# Two rotations of each group that make all others: how often an axis repeats, and its direction.
AXES: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, math.sqrt(2), 1))),
    "O": ((4, (0, 0, 1)), (3, (1, 1, 1))),
    "I1": ((2, (0, 0, 1)), (5, (PHI, 0, -1))),
    "I2": ((2, (0, 0, 1)), (5, (1, 0, PHI))),
    "I3": ((5, (0, 0, 1)), (2, (-1, 0, PHI))),
    "I4": ((5, (0, 0, 1)), (2, (1, 0, PHI))),
}
AXES["I"] = AXES["I2"]


def symmetry_matrices(group: str) -> Array:
    """Return the rotations that leave a particle as it is.

    Parameters
    ----------
    group
        Name of a point group. "C5": 5-fold axis z. "D7": 7-fold axis z, 2-fold axis x. "T": 3-fold
        axis z, a 2-fold axis in the plane x = 0 with y and z of one sign. "O": 4-fold axes x, y and
        z. Icosahedral groups: "I1" and "I2" (or "I") have 2-fold axes x, y and z; nearest to z the
        5-fold axes of "I2" lie in the plane y = 0, those of "I1" in x = 0. "I3" and "I4" have a
        5-fold axis z and 2-fold axes next to it in the plane y = 0, those of "I3" at negative x,
        of "I4" at positive x.

    Returns
    -------
    float64 array, shape (n, 3, 3)
        Each takes a point (x, y, z) to one of equal density; the identity is the first.

    Raises
    ------
    ParameterError
        If there is no such group.

    Examples
    --------
    >>> len(symmetry_matrices("C1")), len(symmetry_matrices("D7")), len(symmetry_matrices("I"))
    (1, 14, 60)
    >>> symmetry_matrices("C4")[1].round(6) + 0.0
    array([[ 0., -1.,  0.],
           [ 1.,  0.,  0.],
           [ 0.,  0.,  1.]])
    """
    generators = [_turn(fold, np.array(axis, np.float64)) for fold, axis in _find_axes(group)]
    found = [np.eye(3)]
    # The list grows while it is walked along.
    for element in found:
        for generator in generators:
            product = generator @ element
            if min(np.abs(product - known).max() for known in found) > 1e-6:
                found.append(product)
    return np.stack(found)


def _find_axes(group: str) -> tuple[tuple[int, tuple[float, float, float]], ...]:
    name = group.strip().upper() if isinstance(group, str) else ""
    if name in AXES:
        return AXES[name]
    family = re.fullmatch(r"([CD])([1-9]\d{0,2})", name)
    rule = "must be a group without mirrors: C1, C2 ..., D1, D2 ..., T, O, I, I1, I2, I3 or I4"
    require(family is not None, "symmetry", rule, group)
    assert family is not None
    about_z = (int(family[2]), (0.0, 0.0, 1.0))
    return (about_z,) if family[1] == "C" else (about_z, (2, (1.0, 0.0, 0.0)))


def _turn(fold: int, axis: Array) -> Array:
    """Return the rotation by one part of a full turn about an axis."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = 2 * math.pi / fold
    # Rodrigues' formula.
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def factor_group(matrices: Array) -> list[Array]:
    """Split the sum over a group into sums over few rotations, one after another.

    Parameters
    ----------
    matrices : float64 array, shape (n, 3, 3)
        All rotations of the group.

    Returns
    -------
    list of float64 arrays, shape (f, 3, 3)
        Of each factor the rotations besides the identity: each rotation of the group is the product
        of one of each factor, or the identity, in exactly one way.

    Examples
    --------
    >>> [len(factor) for factor in factor_group(symmetry_matrices("I"))]
    [1, 1, 2, 4]
    """
    table = np.stack([_find(one @ matrices, matrices) for one in matrices])
    identity = int(np.abs(matrices - np.eye(3)).max(axis=(1, 2)).argmin())
    cycles = [_powers(table, element, identity) for element in range(len(matrices))]
    cycles = sorted((cycle for cycle in cycles if len(cycle) > 1), key=len)
    found = _factor(table, cycles, [identity])
    return [matrices[cycle[1:]] for cycle in found or []]


def _find(products: Array, matrices: Array) -> Array:
    """Positions of the nearest of the matrices."""
    return np.asarray(np.abs(products[:, None] - matrices).max(axis=(-2, -1)).argmin(axis=-1))


def _powers(table: Array, element: int, identity: int) -> list[int]:
    powers = [identity]
    while (following := int(table[powers[-1], element])) != identity:
        powers.append(following)
    return powers


def _factor(table: Array, cycles: list[list[int]], made: list[int]) -> list[list[int]] | None:
    """Cycles whose products with what is made are the whole group, each element once."""
    if len(made) == len(table):
        return []
    for cycle in cycles:
        products = table[np.ix_(made, cycle)].ravel()
        if len(set(products.tolist())) == len(products) and len(table) % len(products) == 0:
            rest = _factor(table, cycles, products.tolist())
            if rest is not None:
                return [cycle, *rest]
    return None
