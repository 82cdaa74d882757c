"""Brute force: images are compared with every conformation from all directions of a cone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_number, require
from emdask.classifiers.acf import check_near, check_view
from emdask.kernels.conformations import (
    PoseSet,
    StackSums,
    View,
    add_stacks,
    prepare_pose_set,
    sum_stack,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.pose_search import search_poses
from emdask.kernels.references import References
from emdask.method import Classifier, parameter

NAME = "template"
LIKELIHOODS = ("marginal", "maximum")
POSE_COLUMNS = ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A")
# Largest shift unless told: a share of the box.
SHIFT = 0.04
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Template:
    """Parameters of brute-force matching.

    Parameters
    ----------
    view
        rot and tilt of the direction that all images are near to, degrees. Needed with volumes; of
        reference images, all are taken without it, or if their directions are not known.
    cone_deg
        How far from it they are at most, up to 30: references grow with its square.
    step_deg
        Distance of the directions in the cone.
    rim_deg
        Width of a rim outside of the cone, whose views are "none of these": images that match them
        best are of no class. 0: all images are taken to be of the cone.
    shift_A
        Largest shift of a particle from the middle, along x or y; None: 4 % of the box.
    resolution_A
        Finest detail that is compared; None: up to what holds 99.5 % of the squared differences
        between the conformations.
    likelihood
        Of a class: "marginal", of all its poses together, or "maximum", of the best.
    pixel_size_A
        Of the images; None: what the stack says.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    `emdask.kernels.pose_search` says how. The noise's spectrum is measured in the corners of about
    2000 images; how strongly images show the references, the contrast, by their power: both are one
    for all images. Five clamp states of an RNA polymerase, 5 degrees apart, seen within 10 degrees,
    are told with an accuracy of 0.97 at an SNR of 0.1 and 0.87 at 0.05
    (``docs/conformations.md``).

    Examples
    --------
    >>> Template(view=(0.0, 0.0)).step_deg
    3.0
    """

    view: tuple[float, float] | None = parameter(
        None, "rot and tilt that all images are near to; needed with volumes", "deg"
    )
    cone_deg: float = parameter(10.0, "how far from the view images are at most", "deg")
    step_deg: float = parameter(3.0, "distance of the directions in the cone", "deg")
    rim_deg: float = parameter(0.0, 'width of a rim whose views are "none of these"', "deg")
    shift_A: float | None = parameter(None, "largest shift along x or y; default: 4 % of box", "Å")
    resolution_A: float | None = parameter(
        None, "finest detail compared; default: by what tells the conformations apart", "Å"
    )
    likelihood: Literal["marginal", "maximum"] = parameter(
        "marginal", "of a class: of all its poses together, or of the best"
    )
    pixel_size_A: float | None = parameter(None, "of the images; default: what they say", "Å")

    def __post_init__(self) -> None:
        check_view(NAME, self.view)
        check_number(NAME, "cone_deg", self.cone_deg, 0, 30)
        check_number(NAME, "step_deg", self.step_deg, 0.5, 15)
        check_number(NAME, "rim_deg", self.rim_deg, 0, 20)
        check_choice(NAME, "likelihood", self.likelihood, LIKELIHOODS)
        for name in ("shift_A", "resolution_A", "pixel_size_A"):
            if getattr(self, name) is not None:
                check_number(NAME, name, getattr(self, name), 0 if name == "shift_A" else 1e-3)

    @property
    def cone(self) -> View | None:
        """Where images are."""
        return None if self.view is None else View(self.view, self.cone_deg)


def complete(params: Any, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Put in the pixel size and the largest shift.

    Raises
    ------
    ParameterError
        If the images are too small for the shift, or have no such detail.
    """
    pixel_size_A = float(params.pixel_size_A or attrs["pixel_size_A"])
    extent_A = pixel_size_A * shape[-1]
    shift_A = SHIFT * extent_A if params.shift_A is None else params.shift_A
    rule = f"shift_A must be at most a quarter of the box, {extent_A / 4:.4g} Å"
    require(shift_A <= extent_A / 4, NAME, rule, shift_A)
    finest_A, coarsest_A = 2 * pixel_size_A, extent_A / 4
    rule = f"resolution_A must lie between two pixels and a quarter of the box, {finest_A:.4g} to "
    ok = params.resolution_A is None or finest_A <= params.resolution_A <= coarsest_A
    require(ok, NAME, f"{rule}{coarsest_A:.4g} Å", params.resolution_A)
    return replace(params, pixel_size_A=pixel_size_A, shift_A=shift_A)


def check(params: Template, references: References) -> None:
    """Refuse volumes without a view, and images of which a class has none near to it."""
    rule = "a view must be given: rot and tilt of the direction that all images are near to"
    remedy = 'Pass view=(0, 0) (--view 0,0), or reference images; find views by method="acf".'
    require(references.volumes is None or params.view is not None, NAME, rule, remedy=remedy)
    if params.cone is not None and references.angles_deg is not None:
        check_near(NAME, params.cone, references)


def columns(params: Template, n_classes: int) -> tuple[str, ...]:
    """Names of the numbers of a row."""
    none = ("none",) if _has_none(params) else ()
    return (*(f"class_{i + 1}" for i in range(n_classes)), *none, *POSE_COLUMNS)


def _has_none(params: Any) -> bool:
    """Whether an image may be none of these."""
    return bool(params.rim_deg) and params.view is not None


def chunk(
    images: Array, ids: Array, params: Any, n_images: int, *, optics: Optics | None
) -> StackSums:
    """Measure a block."""
    return sum_stack(images, ids, n_images, optics)


def prepare(sums: StackSums, params: Any, references: References) -> PoseSet:
    """Make the enhanced basis set."""
    return make_pose_set(sums, params, references)


def make_pose_set(
    sums: StackSums, params: Any, references: References, *, everywhere: bool = False
) -> PoseSet:
    """Make the enhanced basis set of parameters that are complete.

    Parameters
    ----------
    sums
        Of the stack.
    params
        Of this method, or of one with the same names among its parameters.
    references
        Volumes or images.
    everywhere
        Whether images of the stack are seen from all sides.
    """
    band = None if params.resolution_A is None else params.pixel_size_A / params.resolution_A
    return prepare_pose_set(
        references,
        sums,
        view=params.cone,
        step_deg=params.step_deg,
        rim_deg=params.rim_deg,
        shift_px=params.shift_A / params.pixel_size_A,
        band=band,
        everywhere=everywhere,
    )


def score(images: Any, params: Any, model: PoseSet, *, optics: Optics | None) -> Any:
    """Score images: log-likelihoods, and the pose in the likeliest class.

    Parameters
    ----------
    images : array, shape (m, n, n)
        NumPy or CuPy.
    params
        As of `make_pose_set`.
    model
        Of it.
    optics
        Of the images.

    Returns
    -------
    float32 array, shape (m, number of columns)
    """
    xp = array_namespace(images)
    best_only = params.likelihood == "maximum"
    found = search_poses(images, model.bank, optics, best_only=best_only)
    likely = found.log_likelihood
    rows = xp.arange(len(images))
    best = likely[:, : model.n_classes].argmax(1)
    if _has_none(params) and likely.shape[1] == model.n_classes:
        # No reference image lies in the rim.
        none = xp.full((len(images), 1), -np.inf, np.float32)
        likely = xp.concatenate([likely, none], 1)
    angles = xp.asarray(model.angles_deg, np.float32)[found.reference[rows, best]]
    # RELION's psi turns the y axis towards x, and its origins are what would centre the particle.
    angles[:, 2] = (angles[:, 2] - found.turn_deg[rows, best] + 180) % 360 - 180
    shift_A = -found.shift_px[rows, best] * np.float32(params.pixel_size_A)
    return xp.concatenate([likely, angles, shift_A], 1)


def of_noise(params: Any) -> bool:
    """Say that likelihoods rest on the noise."""
    return True


METHOD = Classifier(
    params=Template,
    chunk={"cpu": chunk},
    combine=add_stacks,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=columns,
    complete=complete,
    check=check,
    of_noise=of_noise,
)
