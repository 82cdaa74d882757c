"""What is drawn for each simulated image: its view, its place, its class and its optics.

Each number follows from the seed and the number of the image alone, so a stack may be made in any
chunks and any order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import check_number, require, sentence, suggest
from emdask.errors import ParameterError
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
CTF_LIMITS = {
    "voltage_kV": (1.0, 10_000.0),
    "amplitude_contrast": (0.0, 1.0),
    # An envelope only damps; beyond this it leaves nothing.
    "b_factor_A2": (0.0, 10_000.0),
}
MICROSCOPE = ("voltage_kV", "spherical_aberration_mm", "amplitude_contrast")
OPTIONAL = ("phase_shift_deg", "b_factor_A2")


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Images, and the random numbers that their truth is drawn from.

    Parameters
    ----------
    image_ids : int array, shape (n,)
        Numbers of the images.
    seed
        Of the random numbers.
    what
        The verb that errors name.
    """

    image_ids: Array
    seed: int
    what: str = WHAT

    def uniform(self, n_draws: int, stream: int) -> Array:
        """Return numbers in [0, 1) for each image; float64 (n, n_draws)."""
        return uniform_draws(self.seed, self.image_ids, n_draws, stream=stream)


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
    what
        The verb that errors name.
    """

    poses: Any = "uniform"
    cone_deg: float = 10.0
    view_deg: tuple[float, float] = (0.0, 0.0)
    what: InitVar[str] = WHAT

    def __post_init__(self, what: str) -> None:
        check_number(what, "cone_deg", self.cone_deg, 0.0, 180.0)
        axis = _numbers(self.view_deg)
        ok = axis is not None and axis.shape == (2,) and bool(np.isfinite(axis).all())
        require(ok, what, "view_deg must be (rot, tilt) in degrees", self.view_deg)
        if isinstance(self.poses, str):
            rule = f"poses must be one of {', '.join(POSES)}, or Euler angles of shape (n, 3)"
            require(self.poses in POSES, what, rule, self.poses, suggest(self.poses, POSES))

    def draw(self, draws: Draws) -> Array:
        """Return rot, tilt and psi of each image in degrees; float64 (n, 3).

        Examples
        --------
        >>> draws = Draws(image_ids=np.arange(100), seed=0)
        >>> Views(poses="cone", cone_deg=5.0).draw(draws)[:, 1].max() <= 5
        np.True_
        """
        if not isinstance(self.poses, str):
            return per_image("poses", self.poses, (3,), draws)
        height, around, turn = draws.uniform(3, POSE).T
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


def draw_shifts(shifts_A: Any, draws: Draws) -> Array:
    """Return the translation (x, y) that would centre each particle.

    Parameters
    ----------
    shifts_A
        Largest shift along each axis in Å, all up to it equally likely; or the shifts, (n, 2).
    draws
        Of which images.

    Returns
    -------
    float64 array, shape (n, 2)

    Examples
    --------
    >>> draw_shifts([[1.0, 2.0], [3.0, 4.0]], Draws(image_ids=np.array([1]), seed=0))
    array([[3., 4.]])
    """
    if isinstance(shifts_A, Real):
        check_number(draws.what, "shifts_A", shifts_A, 0.0)
        # Plus 0: no shift is not -0.
        return np.asarray(float(shifts_A) * (2 * draws.uniform(2, SHIFT) - 1) + 0.0)
    return per_image("shifts_A", shifts_A, (2,), draws)


def class_ends(proportions: Sequence[float] | None, n_volumes: int, what: str = WHAT) -> Array:
    """Return where the shares of the volumes end, of 1 in all.

    Parameters
    ----------
    proportions
        Of the volumes, in any unit; None for equal ones.
    n_volumes
        Number of volumes.
    what
        The verb that errors name.

    Returns
    -------
    float64 array, shape (n_volumes,)
        Growing; the last is 1.

    Examples
    --------
    >>> class_ends([3, 1], 2)
    array([0.75, 1.  ])
    """
    given = _numbers(np.ones(n_volumes) if proportions is None else proportions)
    # What are no numbers are no shares.
    shares = np.empty(0) if given is None else given
    ok = shares.shape == (n_volumes,) and bool((shares >= 0).all()) and 0 < shares.sum() < np.inf
    rule = f"proportions must be {n_volumes} numbers, one a volume, at least 0"
    require(ok, what, rule, proportions)
    sums = np.cumsum(shares)
    # By the last of these very sums: another way to add up would not end at 1.
    return np.asarray(sums / sums[-1])


def draw_classes(proportions: Sequence[float] | None, n_volumes: int, draws: Draws) -> Array:
    """Return which volume each image shows, from 0.

    Parameters
    ----------
    proportions, n_volumes
        As of `class_ends`.
    draws
        Of which images.

    Returns
    -------
    int64 array, shape (n,)

    Examples
    --------
    >>> draw_classes([1, 0], 2, Draws(image_ids=np.arange(4), seed=0))
    array([0, 0, 0, 0])
    """
    ends = class_ends(proportions, n_volumes, draws.what)
    return np.searchsorted(ends, draws.uniform(1, CLASS)[:, 0], side="right")


def draw_optics(ctf: Any, draws: Draws) -> dict[str, Array | float]:
    """Return what the CTF of each image depends on.

    Parameters
    ----------
    ctf
        Of `emdask.simulate`: a dictionary, or a list of them, one an optics group.
    draws
        Of which images.

    Returns
    -------
    dict
        Name of a variable to an array (n,), or to a number where it is one of the microscope that
        all images share; empty without a CTF.

    Examples
    --------
    >>> optics = draw_optics({"defocus_A": 15000}, Draws(image_ids=np.arange(2), seed=0))
    >>> optics["defocus_u_A"], optics["voltage_kV"]
    (array([15000., 15000.]), 300.0)
    """
    if ctf is None:
        return {}
    if isinstance(ctf, Mapping):
        return _plain(_draw_group(ctf, draws))
    ok = isinstance(ctf, list | tuple) and bool(ctf) and all(isinstance(g, Mapping) for g in ctf)
    rule = "ctf must be a dictionary, or a list of them with one an optics group"
    require(ok, draws.what, rule, ctf)
    places = draws.uniform(1, GROUP)[:, 0] * len(ctf)
    group = np.minimum(places.astype(np.int64), len(ctf) - 1)
    drawn = [_draw_group(one, draws) for one in ctf]
    images = np.arange(len(group))
    chosen = {name: np.stack([one[name] for one in drawn])[group, images] for name in drawn[0]}
    return {**_plain(chosen), "optics_group": group + 1}


def _draw_group(ctf: Mapping[str, Any], draws: Draws) -> dict[str, Array]:
    for name in ctf:
        remedy = suggest(str(name), tuple(CTF_DEFAULTS))
        require(name in CTF_DEFAULTS, draws.what, "ctf has no entry of this name", name, remedy)
    numbers = draws.uniform(len(CTF_DEFAULTS), CTF).T
    values = {
        name: _draw_value(name, ctf.get(name, default), number, draws)
        for (name, default), number in zip(CTF_DEFAULTS.items(), numbers, strict=True)
    }
    for name, (low, high) in CTF_LIMITS.items():
        inside = bool(((values[name] >= low) & (values[name] <= high)).all())
        require(inside, draws.what, f"{name} must lie in [{low:g}, {high:g}]", ctf.get(name))
    mean, difference = values.pop("defocus_A"), values.pop("astigmatism_A")
    axes = {"defocus_u_A": mean + difference / 2, "defocus_v_A": mean - difference / 2}
    return axes | values


def _draw_value(name: str, value: Any, number: Array, draws: Draws) -> Array:
    if isinstance(value, tuple | list):
        ok = len(value) == 2 and all(isinstance(end, Real) for end in value)
        ok = ok and -np.inf < value[0] <= value[1] < np.inf
        require(ok, draws.what, f"the range of {name} must be (low, high)", value)
        return np.asarray(value[0] + (value[1] - value[0]) * number)
    if np.ndim(value):
        return per_image(name, value, (), draws)
    check_number(draws.what, name, value, -np.inf)
    return np.full(len(number), float(value))


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


def per_image(name: str, values: Any, shape: tuple[int, ...], draws: Draws) -> Array:
    """Return the values of these images of an array that has one entry an image; float64.

    Raises
    ------
    ParameterError
        If it has another shape, too few entries, or is not finite.

    Examples
    --------
    >>> draws = Draws(image_ids=np.array([1]), seed=0)
    >>> per_image("shifts_A", [[0, 1], [2, 3]], (2,), draws)
    array([[2., 3.]])
    """
    array, what = _numbers(values), draws.what
    if array is None:
        raise ParameterError(sentence(what, f"{name} must be numbers", values))
    wanted = ("n", *shape)
    rule = f"{name} must have shape ({', '.join(map(str, wanted))}{',' * (not shape)})"
    require(array.ndim == 1 + len(shape) and array.shape[1:] == shape, what, rule, array.shape)
    enough = int(draws.image_ids.max(initial=-1)) < len(array)
    require(enough, what, f"{name} must have one entry an image", len(array))
    require(bool(np.isfinite(array).all()), what, f"{name} must be finite", "NaN or infinity")
    return np.asarray(array[draws.image_ids])


def _numbers(values: Any) -> Array | None:
    """Return values as float64, None where they are no real numbers."""
    try:
        array = np.asarray(values)
    except ValueError:
        return None
    return array.astype(np.float64, copy=False) if array.dtype.kind in "iuf" else None
