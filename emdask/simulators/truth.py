"""What is drawn for each simulated image: its view, its place, its class and its optics.

Each number follows from the seed and the number of the image alone, so a stack may be made in any
chunks and any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import check_number, require, suggest
from emdask.kernels.ctf import Optics
from emdask.kernels.draws import uniform_draws

Array = npt.NDArray[Any]

WHAT = "simulate"
POSES = ("uniform", "cone")
# Streams of random numbers.
POSE, SHIFT, CLASS, GROUP, CTF = range(5)
# What the CTF depends on where a dictionary does not say; a pair is a range.
CTF_DEFAULTS: Mapping[str, Any] = {
    "defocus_A": (10_000.0, 20_000.0),
    "astigmatism_A": 0.0,
    "astigmatism_deg": (0.0, 180.0),
    "phase_shift_deg": 0.0,
    "b_factor_A2": 0.0,
    "voltage_kV": 300.0,
    "spherical_aberration_mm": 2.7,
    "amplitude_contrast": 0.1,
}
CTF_LIMITS = {"voltage_kV": (1.0, 10_000.0), "amplitude_contrast": (0.0, 1.0)}
MICROSCOPE = ("voltage_kV", "spherical_aberration_mm", "amplitude_contrast")
OPTIONAL = ("phase_shift_deg", "b_factor_A2")


@dataclass(frozen=True, kw_only=True)
class Views:
    """From where the particles are seen.

    Parameters
    ----------
    poses
        "uniform": every direction is as likely as another. "cone": directions within ``cone_deg``
        of ``view_deg``, equally likely over their part of the sphere. Or the Euler angles (rot,
        tilt, psi) of each image in degrees, shape (n, 3). In the plane every angle is as likely.
    cone_deg
        Half of the cone's opening, 0 to 180.
    view_deg
        rot and tilt of the cone's axis.
    """

    poses: Any = "uniform"
    cone_deg: float = 10.0
    view_deg: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        check_number(WHAT, "cone_deg", self.cone_deg, 0.0, 180.0)
        ok = np.shape(self.view_deg) == (2,) and bool(np.isfinite(self.view_deg).all())
        require(ok, WHAT, "view_deg must be (rot, tilt) in degrees", self.view_deg)
        if isinstance(self.poses, str):
            rule = f"poses must be one of {', '.join(POSES)}, or Euler angles of shape (n, 3)"
            require(self.poses in POSES, WHAT, rule, self.poses, suggest(self.poses, POSES))

    def draw(self, image_ids: Array, seed: int) -> Array:
        """Return rot, tilt and psi of each image in degrees; float64 (n, 3).

        Examples
        --------
        >>> Views(poses="cone", cone_deg=5.0).draw(np.arange(100), 0)[:, 1].max() <= 5
        np.True_
        """
        if not isinstance(self.poses, str):
            return np.asarray(per_image("poses", self.poses, (3,), image_ids), np.float64)
        height, around, turn = uniform_draws(seed, image_ids, 3, stream=POSE).T
        widest = 180.0 if self.poses == "uniform" else self.cone_deg
        cosine = 1 - height * (1 - np.cos(np.deg2rad(widest)))
        sine = np.sqrt(np.maximum(1 - cosine**2, 0))
        angle = 2 * np.pi * around
        directions = np.stack([sine * np.cos(angle), sine * np.sin(angle), cosine], axis=-1)
        x, y, z = (directions @ self._towards_axis().T).T
        rot, tilt = np.arctan2(y, x), np.arctan2(np.hypot(x, y), z)
        return np.stack([np.rad2deg(rot), np.rad2deg(tilt), 360 * turn - 180], axis=-1)

    def _towards_axis(self) -> Array:
        """Rotation that takes the z axis to the axis of the cone."""
        if self.poses == "uniform":
            return np.eye(3)
        rot, tilt = np.deg2rad(self.view_deg)
        c, s = np.cos(tilt), np.sin(tilt)
        about_y = np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])
        c, s = np.cos(rot), np.sin(rot)
        about_z = np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
        return np.asarray(about_z @ about_y)


def draw_shifts(shifts_A: Any, image_ids: Array, seed: int) -> Array:
    """Return the translation (x, y) that would centre each particle.

    Parameters
    ----------
    shifts_A
        Largest shift along each axis in Å, all up to it equally likely; or the shifts, (n, 2).
    image_ids, seed
        Of which images.

    Returns
    -------
    float64 array, shape (n, 2)

    Examples
    --------
    >>> draw_shifts([[1.0, 2.0], [3.0, 4.0]], np.array([1]), 0)
    array([[3., 4.]])
    """
    if np.ndim(shifts_A) == 0:
        check_number(WHAT, "shifts_A", shifts_A, 0.0)
        draws = uniform_draws(seed, image_ids, 2, stream=SHIFT)
        # Plus 0: no shift is not -0.
        return np.asarray(shifts_A * (2 * draws - 1) + 0.0)
    return np.asarray(per_image("shifts_A", shifts_A, (2,), image_ids), np.float64)


def draw_classes(
    proportions: Sequence[float] | None, n_volumes: int, image_ids: Array, seed: int
) -> Array:
    """Return which volume each image shows, from 0.

    Parameters
    ----------
    proportions
        Of the volumes, in any unit; None for equal ones.
    n_volumes
        Number of volumes.
    image_ids, seed
        Of which images.

    Returns
    -------
    int64 array, shape (n,)

    Examples
    --------
    >>> draw_classes([1, 0], 2, np.arange(4), 0)
    array([0, 0, 0, 0])
    """
    shares = np.ones(n_volumes) if proportions is None else np.asarray(proportions, np.float64)
    ok = shares.shape == (n_volumes,) and bool((shares >= 0).all()) and 0 < shares.sum() < np.inf
    rule = f"proportions must be {n_volumes} numbers, one a volume, at least 0"
    require(ok, WHAT, rule, proportions)
    ends = np.cumsum(shares) / shares.sum()
    draws = uniform_draws(seed, image_ids, 1, stream=CLASS)[:, 0]
    return np.searchsorted(ends, draws, side="right")


def draw_optics(ctf: Any, image_ids: Array, seed: int) -> dict[str, Array | float]:
    """Return what the CTF of each image depends on.

    Parameters
    ----------
    ctf
        Of `emdask.simulate`: a dictionary, or a list of them, one an optics group.
    image_ids, seed
        Of which images.

    Returns
    -------
    dict
        Name of a variable to an array (n,), or to a number where it is one of the microscope that
        all images share; empty without a CTF.

    Examples
    --------
    >>> optics = draw_optics({"defocus_A": 15000}, np.arange(2), 0)
    >>> optics["defocus_u_A"], optics["voltage_kV"]
    (array([15000., 15000.]), 300.0)
    """
    if ctf is None:
        return {}
    if isinstance(ctf, Mapping):
        return _plain(_draw_group(ctf, image_ids, seed))
    ok = isinstance(ctf, list | tuple) and bool(ctf) and all(isinstance(g, Mapping) for g in ctf)
    rule = "ctf must be a dictionary, or a list of them with one an optics group"
    require(ok, WHAT, rule, ctf)
    draws = uniform_draws(seed, image_ids, 1, stream=GROUP)[:, 0]
    group = np.minimum((draws * len(ctf)).astype(np.int64), len(ctf) - 1)
    drawn = [_draw_group(one, image_ids, seed) for one in ctf]
    images = np.arange(len(group))
    chosen = {name: np.stack([one[name] for one in drawn])[group, images] for name in drawn[0]}
    return {**_plain(chosen), "optics_group": group + 1}


def _draw_group(ctf: Mapping[str, Any], image_ids: Array, seed: int) -> dict[str, Array]:
    for name in ctf:
        remedy = suggest(str(name), tuple(CTF_DEFAULTS))
        require(name in CTF_DEFAULTS, WHAT, "ctf has no entry of this name", name, remedy)
    draws = uniform_draws(seed, image_ids, len(CTF_DEFAULTS), stream=CTF).T
    values = {
        name: _draw_value(name, ctf.get(name, default), draw, image_ids)
        for (name, default), draw in zip(CTF_DEFAULTS.items(), draws, strict=True)
    }
    for name, (low, high) in CTF_LIMITS.items():
        inside = bool(((values[name] >= low) & (values[name] <= high)).all())
        require(inside, WHAT, f"{name} must lie in [{low:g}, {high:g}]", ctf.get(name))
    mean, difference = values.pop("defocus_A"), values.pop("astigmatism_A")
    axes = {"defocus_u_A": mean + difference / 2, "defocus_v_A": mean - difference / 2}
    return axes | values


def _draw_value(name: str, value: Any, draw: Array, image_ids: Array) -> Array:
    if isinstance(value, tuple | list):
        ok = len(value) == 2 and all(isinstance(end, Real) for end in value)
        ok = ok and -np.inf < value[0] <= value[1] < np.inf
        require(ok, WHAT, f"the range of {name} must be (low, high)", value)
        return np.asarray(value[0] + (value[1] - value[0]) * draw)
    if np.ndim(value):
        return np.asarray(per_image(name, value, (), image_ids), np.float64)
    check_number(WHAT, name, value, -np.inf)
    return np.full(len(draw), float(value))


def _plain(values: Mapping[str, Array]) -> dict[str, Array | float]:
    """One number for what all images share of the microscope; what is 0 everywhere left out."""
    plain: dict[str, Array | float] = {}
    for name, array in values.items():
        same = bool((array == array[0]).all())
        if name in MICROSCOPE and same:
            plain[name] = float(array[0])
        elif not (name in OPTIONAL and same and array[0] == 0):
            plain[name] = array
    return plain


def optics_record(drawn: Mapping[str, Any], pixel_size_A: float) -> Optics | None:
    """Return what `draw_optics` drew as the record that kernels take; None without a CTF.

    Examples
    --------
    >>> optics_record({}, 2.0) is None
    True
    """
    if not drawn:
        return None
    values = {name: value for name, value in drawn.items() if name != "optics_group"}
    return Optics(pixel_size_A=pixel_size_A, **values)


def per_image(name: str, values: Any, shape: tuple[int, ...], image_ids: Array) -> Array:
    """Return the values of these images of an array that has one entry an image.

    Raises
    ------
    ParameterError
        If it has another shape, too few entries, or is not finite.

    Examples
    --------
    >>> per_image("shifts_A", [[0, 1], [2, 3]], (2,), np.array([1]))
    array([[2, 3]])
    """
    array = np.asarray(values)
    wanted = ("n", *shape)
    rule = f"{name} must have shape ({', '.join(map(str, wanted))}{',' * (not shape)})"
    require(array.ndim == 1 + len(shape) and array.shape[1:] == shape, WHAT, rule, array.shape)
    enough = int(image_ids.max(initial=-1)) < len(array)
    require(enough, WHAT, f"{name} must have one entry an image", len(array))
    require(bool(np.isfinite(array).all()), WHAT, f"{name} must be finite", "NaN or infinity")
    return array[image_ids]
