"""Screening: keep the images that are seen from near a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from emdask.backend import array_namespace, check_device
from emdask.checks import check_choice, check_number, require
from emdask.classifiers import as_particles, check_references, score_stack, view_columns
from emdask.classifiers.acf import check_seen, check_view
from emdask.classifiers.template import of_noise
from emdask.kernels.conformations import (
    SpectrumSet,
    StackSums,
    View,
    add_stacks,
    find_threshold,
    prepare_spectrum_set,
    sum_stack,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.polar import match_spectra
from emdask.kernels.references import References
from emdask.lazy import BAD_PIXELS
from emdask.method import Classifier, parameter

NAME = "screen"
COLUMNS = ("screen_score", "kept", "rot_deg", "tilt_deg")


@dataclass(frozen=True, kw_only=True)
class Screen:
    """Parameters of `screen`; see there."""

    view: tuple[float, float] = parameter((0.0, 0.0), "rot and tilt that are wanted", "deg")
    cone_deg: float = parameter(10.0, "how far from the view is still near", "deg")
    keep: float = parameter(0.95, "share of the cone's images that is to be kept")
    spacing_deg: float = parameter(7.5, "distance of the directions of references", "deg")

    def __post_init__(self) -> None:
        require(self.view is not None, NAME, "a view must be given", self.view)
        check_view(NAME, self.view)
        check_number(NAME, "cone_deg", self.cone_deg, 0.5, 90)
        check_number(NAME, "keep", self.keep, 0.01, 0.999)
        check_number(NAME, "spacing_deg", self.spacing_deg, 2, 45)

    @property
    def cone(self) -> View:
        """What is wanted."""
        return View(self.view, self.cone_deg)


def screen(
    stack: Any,
    references: Any,
    view: tuple[float, float],
    *,
    keep: float = 0.95,
    cone_deg: float = 10.0,
    spacing_deg: float = 7.5,
    device: str | None = None,
    bad_pixels: str = "raise",
) -> xr.Dataset:
    """Tell which images are seen from near a direction, by features that no shift changes, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Square particle images, light on dark, as they were recorded, noise of any spectrum. Where
        the stack knows a defocus, its CTF is accounted for.
    references
        Volumes, or images with known directions, as of `emdask.classify`.
    view : (float, float)
        rot and tilt of the direction, degrees, RELION's.
    keep
        Share of the images of the cone that is to be kept. The score that does it is found on
        images that are simulated with the noise, contrast and CTFs of the stack. Of references that
        are images, these are their own images with noise: of others somewhat fewer are kept.
    cone_deg
        How far from the direction is still near.
    spacing_deg
        Distance of the directions from which volumes are seen, all over the sphere: mirror images,
        as they are seen from behind, are among them.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.

    Returns
    -------
    xarray.Dataset
        Lazy, aligned with the stack: ``kept`` (image), ``screen_score`` (image): how much likelier
        the image is to be of the cone than from elsewhere, natural logarithm, all directions of
        either being as likely; ``rot_deg``, ``tilt_deg`` (image): the likeliest direction in the
        cone, NaN where not kept. ``stack[screened.kept.values]`` are the images kept.

    Raises
    ------
    ParameterError, StackError, FormatError, DeviceError
        At once, before anything is computed. ParameterError also when it is computed: where images
        do not show the references, or are dark on light.

    Warns
    -----
    EmdaskWarning
        If the images have been denoised.

    Notes
    -----
    The method is that of `emdask.kernels.polar`. Of RNA polymerases seen from all sides, of which
    95 % of those within 10 degrees are to be kept, it removes 99.9 % of those more than 20 degrees
    away at an SNR of 0.1 and 96 % at 0.05, in less than a millisecond an image on one core
    (``docs/conformations.md``).

    Examples
    --------
    >>> from emdask import phantom, simulate
    >>> particle = phantom(8, radius_A=40, seed=1).volume(32, 4.0)
    >>> images = simulate(particle, 40, snr=2.0).images
    >>> screened = screen(images, particle, (0.0, 0.0), cone_deg=20).compute()
    >>> screened.kept.shape, sorted(screened.data_vars)
    ((40,), ['kept', 'rot_deg', 'screen_score', 'tilt_deg'])
    """
    params = Screen(view=view, keep=keep, cone_deg=cone_deg, spacing_deg=spacing_deg)
    check_choice(NAME, "bad_pixels", bad_pixels, BAD_PIXELS)
    device = check_device(device, NAME, METHOD.score)
    source = as_particles(stack, NAME)
    opened = check_references(NAME, METHOD, params, references, source)
    scores = score_stack(source, NAME, METHOD, params, opened, device, bad_pixels)
    kept = scores.column("kept") > 0
    table = {"kept": ("image", kept), **view_columns(scores, kept)}
    return xr.Dataset(table, {"image_id": ("image", scores.image_id)}, scores.attrs)


class Screening(NamedTuple):
    """References, and the score below which images are not kept."""

    spectra: SpectrumSet
    threshold: float


def check(params: Screen, references: References) -> None:
    """Refuse reference images without directions."""
    check_seen(NAME, params.cone, references)


def columns(params: Screen, n_classes: int) -> tuple[str, ...]:
    """Names of the numbers of a row."""
    return COLUMNS


def chunk(
    images: Any, ids: Any, params: Screen, n_images: int, *, optics: Optics | None
) -> StackSums:
    """Measure a block."""
    return sum_stack(images, ids, n_images, optics)


def prepare(sums: StackSums, params: Screen, references: References) -> Screening:
    """Make the references, and find the score."""
    how: dict[str, Any] = {"spacing_deg": params.spacing_deg, "view": params.cone}
    spectra = prepare_spectrum_set(references, sums, by_class=False, **how)
    return Screening(spectra, find_threshold(spectra, references, sums, params.cone, params.keep))


def score(images: Any, params: Screen, model: Screening, *, optics: Optics | None) -> Any:
    """Score images."""
    xp = array_namespace(images)
    found = match_spectra(images, model.spectra.bank, optics)
    scores = found.log_likelihood[:, 0] - found.log_likelihood[:, 1]
    kept = scores >= np.float32(model.threshold)
    views = xp.asarray(model.spectra.angles_deg, np.float32)[found.best[:, 0], :2]
    return xp.stack([scores, kept.astype(np.float32), *views.T], 1)


METHOD = Classifier(
    params=Screen,
    chunk={"cpu": chunk},
    combine=add_stacks,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=columns,
    check=check,
    of_noise=of_noise,
)
