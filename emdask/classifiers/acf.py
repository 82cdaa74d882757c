"""Invariant features: images go to the class of the references that their features match best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

from emdask.backend import array_namespace, to_host
from emdask.checks import check_choice, check_number, require
from emdask.kernels.conformations import (
    SpectrumSet,
    StackSums,
    View,
    add_stacks,
    prepare_spectrum_set,
    reference_images,
    sum_stack,
)
from emdask.kernels.contours import contour_features
from emdask.kernels.ctf import Optics
from emdask.kernels.polar import match_spectra
from emdask.kernels.references import References
from emdask.method import Classifier, parameter

NAME = "acf"
FEATURES = ("spectrum", "contour")
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ACF:
    """Parameters of classification by autocorrelation features.

    Parameters
    ----------
    features
        "spectrum": amplitudes of the Fourier transform, which is that of the autocorrelation in
        another form, on polar rings: they do not change with the particle's place. All turns are
        tried. "contour": the autocorrelation of the particle's longest outline, of images that have
        been denoised; it changes with neither place nor turn.
    view
        rot and tilt of the direction that is wanted, degrees; images from elsewhere are of no
        class. None: all directions.
    cone_deg
        How far from it is still near.
    spacing_deg
        Distance of the directions from which volumes are seen.
    blur_px
        Of "contour": standard deviation of a Gaussian by which images and references are blurred
        alike; noise wrinkles an outline, and blur rounds it.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    What is told apart well is directions of view. Conformations a few degrees apart are not: of
    five RNA polymerases (chance 0.20) seen within 10 degrees amplitudes tell 0.62 at an SNR of 0.1
    right. Use method="two_stage" for these. Spectra: `emdask.kernels.polar`; contours:
    `emdask.kernels.contours`.

    Examples
    --------
    >>> ACF(view=(0.0, 0.0)).cone_deg
    10.0
    """

    features: Literal["spectrum", "contour"] = parameter(
        "spectrum", "spectrum: polar amplitudes; contour: the outline, of denoised images"
    )
    view: tuple[float, float] | None = parameter(None, "rot and tilt that are wanted", "deg")
    cone_deg: float = parameter(10.0, "how far from the view is still near", "deg")
    spacing_deg: float = parameter(7.5, "distance of the directions of references", "deg")
    blur_px: float = parameter(4.0, "of contours: blur of images and references", "px")

    def __post_init__(self) -> None:
        check_choice(NAME, "features", self.features, FEATURES)
        check_view(NAME, self.view)
        check_number(NAME, "cone_deg", self.cone_deg, 0.5, 90)
        check_number(NAME, "spacing_deg", self.spacing_deg, 2, 45)
        check_number(NAME, "blur_px", self.blur_px, 0, 50)

    @property
    def cone(self) -> View | None:
        """What is wanted."""
        return None if self.view is None else View(self.view, self.cone_deg)


def check_view(name: str, view: Any) -> None:
    """Refuse a direction that is none.

    Raises
    ------
    ParameterError
        If it is not None or two finite numbers.

    Examples
    --------
    >>> check_view("acf", (0.0, 90.0))
    """
    if view is None:
        return
    rule = "view must be rot and tilt, two numbers in degrees"
    values = np.asarray(view)
    ok = values.shape == (2,) and values.dtype.kind in "if" and bool(np.isfinite(values).all())
    require(ok, name, rule, view)


def check_seen(name: str, view: View | None, references: References) -> None:
    """Refuse reference images that are not known to be of the view, or none of which is.

    Raises
    ------
    ParameterError
    """
    if view is None or references.volumes is not None:
        return
    remedy = "Give them rot_deg, tilt_deg and psi_deg, or pass volumes."
    rule = "reference images must have known directions where a view is wanted"
    require(references.angles_deg is not None, name, rule, remedy=remedy)
    near = check_near(name, view, references)
    require(not near.all(), name, "there must be reference images of other views, too")


def check_near(name: str, view: View, references: References) -> npt.NDArray[np.bool_]:
    """Say which reference images are near to the view; refuse it where a class has none.

    Raises
    ------
    ParameterError
    """
    assert references.angles_deg is not None
    assert references.class_index is not None
    near = view.holds(references.angles_deg[:, :2])
    counts = np.bincount(references.class_index[near], minlength=references.n_classes)
    rule = f"each class needs a reference image within {view.cone_deg:g} degrees of the view"
    require(bool(counts.all()), name, rule, counts.tolist())
    return near


class Contours(NamedTuple):
    """Contour features of the references, (v, f), and the class of each, (v,)."""

    features: Array
    class_index: Array
    n_groups: int


def check(params: ACF, references: References) -> None:
    """Refuse references that do not suit."""
    check_seen(NAME, params.cone, references)


def columns(params: ACF, n_classes: int) -> tuple[str, ...]:
    """Names of the numbers of a row."""
    names = [f"class_{i + 1}" for i in range(n_classes)]
    names += ["none"] if params.view is not None else []
    return (*names, "kept") if params.features == "contour" else tuple(names)


def chunk(
    images: Array, ids: Array, params: ACF, n_images: int, *, optics: Optics | None
) -> StackSums:
    """Measure a block."""
    return sum_stack(images, ids, n_images, optics)


def prepare(sums: StackSums, params: ACF, references: References) -> SpectrumSet | Contours:
    """Make the references, by class; what is outside of the cone is one more."""
    how: dict[str, Any] = {"spacing_deg": params.spacing_deg, "view": params.cone}
    if params.features == "spectrum":
        return prepare_spectrum_set(references, sums, by_class=True, **how)
    images, groups = reference_images(references, **how)
    features = contour_features(_blur(images, params.blur_px), of="steps", normalise=True)
    seen = np.isfinite(features).all(axis=1)
    rule = "no reference has a closed outline: particles must be light on dark, and not cut off"
    require(bool(seen.any()), NAME, rule)
    n_groups = references.n_classes + (params.view is not None)
    return Contours(features[seen], groups[seen], n_groups)


def score(images: Any, params: ACF, model: SpectrumSet | Contours, *, optics: Optics | None) -> Any:
    """Score images."""
    if isinstance(model, SpectrumSet):
        return match_spectra(images, model.bank, optics).log_likelihood
    xp = array_namespace(images)
    rows = _nearest(_blur(np.asarray(to_host(images)), params.blur_px), model)
    return xp.asarray(rows)


def _blur(images: Array, blur_px: float) -> Array:
    return np.asarray(gaussian_filter(images.astype(np.float32), (0, blur_px, blur_px)))


def _nearest(images: Array, model: Contours) -> Array:
    """0 for the class of the nearest reference, else -inf; and whether there is an outline."""
    features = contour_features(images, of="steps", normalise=True)
    seen = np.isfinite(features).all(axis=1)
    rows = np.full((len(images), model.n_groups + 1), -np.inf, np.float32)
    rows[:, -1] = seen
    found = [np.square(model.features - own).sum(axis=1).argmin() for own in features[seen]]
    rows[np.flatnonzero(seen), model.class_index[np.array(found, np.int64)]] = 0
    rows[~seen, :-1] = 0
    return rows


def of_noise(params: ACF) -> bool:
    """Say whether likelihoods rest on the noise; outlines are those of denoised images."""
    return params.features == "spectrum"


METHOD = Classifier(
    params=ACF,
    chunk={"cpu": chunk},
    combine=add_stacks,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=columns,
    check=check,
    of_noise=of_noise,
)
