"""Two stages: invariant features keep images near a view, brute force tells their conformation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from emdask.backend import array_namespace
from emdask.checks import check_number, require
from emdask.classifiers import template
from emdask.classifiers.acf import check_seen
from emdask.classifiers.template import Template
from emdask.kernels.conformations import (
    PoseSet,
    SpectrumSet,
    StackSums,
    View,
    add_stacks,
    find_threshold,
    prepare_spectrum_set,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.polar import match_spectra
from emdask.kernels.references import References
from emdask.method import Classifier, parameter

NAME = "two_stage"


@dataclass(frozen=True, kw_only=True)
class TwoStage:
    """Parameters of both stages.

    Parameters
    ----------
    view
        rot and tilt of the direction that is wanted, degrees; needed.
    cone_deg
        How far from it is still near, up to 30: the second stage's references grow with its square.
    keep
        Of the first stage: share of the images of the cone that it is to keep. The score that does
        it is found on images that are simulated with the noise, contrast and CTFs of the stack.
    spacing_deg
        Of the first stage: distance of the directions of references all over the sphere.
    step_deg, rim_deg, shift_A, resolution_A, likelihood, pixel_size_A
        Of the second: `emdask.classifiers.template.Template`; here with a rim.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    An image takes the first stage (`emdask.kernels.polar`) a tenth of the time that it takes the
    second (`emdask.kernels.pose_search`), which sees the images alone that are kept.

    Examples
    --------
    >>> TwoStage(view=(0.0, 0.0)).keep
    0.95
    """

    view: tuple[float, float] | None = parameter(None, "rot and tilt that are wanted", "deg")
    cone_deg: float = parameter(10.0, "how far from the view is still near", "deg")
    keep: float = parameter(0.95, "share of the cone's images that the first stage keeps")
    spacing_deg: float = parameter(7.5, "distance of the first stage's directions", "deg")
    step_deg: float = parameter(3.0, "distance of the second stage's directions", "deg")
    rim_deg: float = parameter(3.0, 'width of the rim whose views are "none of these"', "deg")
    shift_A: float | None = parameter(None, "largest shift along x or y; default: 4 % of box", "Å")
    resolution_A: float | None = parameter(
        None, "finest detail compared; default: by what tells the conformations apart", "Å"
    )
    likelihood: Literal["marginal", "maximum"] = parameter(
        "marginal", "of a class: of all its poses together, or of the best"
    )
    pixel_size_A: float | None = parameter(None, "of the images; default: what they say", "Å")

    def __post_init__(self) -> None:
        check_number(NAME, "keep", self.keep, 0.01, 0.999)
        check_number(NAME, "spacing_deg", self.spacing_deg, 2, 45)
        check_number(NAME, "cone_deg", self.cone_deg, 0.5, 30)
        names = "view cone_deg step_deg rim_deg shift_A resolution_A likelihood pixel_size_A"
        Template(**{name: getattr(self, name) for name in names.split()})

    @property
    def cone(self) -> View:
        """What is wanted."""
        assert self.view is not None
        return View(self.view, self.cone_deg)


class TwoBanks(NamedTuple):
    """References of both stages, and the score below which images are not kept."""

    spectra: SpectrumSet
    threshold: float
    poses: PoseSet


def check(params: TwoStage, references: References) -> None:
    """Refuse to go on without a view, and reference images without directions."""
    rule = "a view must be given: rot and tilt of the direction whose images are wanted"
    require(params.view is not None, NAME, rule, remedy="Pass view=(0, 0) (--view 0,0).")
    check_seen(NAME, params.cone, references)


def columns(params: TwoStage, n_classes: int) -> tuple[str, ...]:
    """Names of the numbers of a row."""
    second = template.columns(params, n_classes)  # type: ignore[arg-type]
    return (*second, "screen_score", "kept")


def prepare(sums: StackSums, params: TwoStage, references: References) -> TwoBanks:
    """Make the references of both stages."""
    view = params.cone
    spectra = prepare_spectrum_set(
        references, sums, spacing_deg=params.spacing_deg, view=view, by_class=False
    )
    threshold = find_threshold(spectra, references, sums, view, params.keep)
    poses = template.make_pose_set(sums, params, references, everywhere=True)
    return TwoBanks(spectra, threshold, poses)


def score(images: Any, params: TwoStage, model: TwoBanks, *, optics: Optics | None) -> Any:
    """Score images; the second stage sees those alone that the first keeps."""
    xp = array_namespace(images)
    likely = match_spectra(images, model.spectra.bank, optics).log_likelihood
    scores = likely[:, 0] - likely[:, 1]
    kept = xp.flatnonzero(scores >= np.float32(model.threshold))
    few = optics and optics[kept if xp is np else xp.asnumpy(kept)]
    found = template.score(images[kept], params, model.poses, optics=few)
    rows = xp.full((len(images), found.shape[1] + 2), -np.inf, np.float32)
    rows[kept, : found.shape[1]] = found
    rows[:, -2] = scores
    rows[:, -1] = 0
    rows[kept, -1] = 1
    return rows


METHOD = Classifier(
    params=TwoStage,
    chunk={"cpu": template.chunk},
    combine=add_stacks,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=columns,
    complete=template.complete,
    check=check,
    of_noise=template.of_noise,
)
