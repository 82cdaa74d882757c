"""Template matching: normalised cross-correlation with views of a volume, or with images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from emdask.checks import check_integer, check_number, require, sentence
from emdask.errors import FormatError, ParameterError
from emdask.io import open_stack
from emdask.io.volumes import holds_volume, open_volume
from emdask.kernels.crystals import remove_crystals
from emdask.kernels.picking import ScoreMap
from emdask.kernels.template_matching import Templates, prepare_templates, score_templates
from emdask.kernels.templates import project_views, resample, turn_images
from emdask.method import Picker, parameter
from emdask.volumes import VOLUME_DIMS

NAME = "template"
STANDARD_PX = 16.0
# Radius of the disc that is compared, in diameters: some of the background, against which a
# particle stands out, belongs to it.
RADIUS = 0.65
# Of a particle, in boxes of its templates: beyond, sizes are surely wrong.
LARGEST = 1.5
LEAST_PX = 4.0
MOST_TEMPLATES = 20_000


@dataclass(frozen=True, kw_only=True)
class Template:
    """Parameters of template matching.

    Parameters
    ----------
    template
        What the particle looks like, light on dark: a volume, of which views are made (a path as
        of `emdask.open_volume`, a `xarray.DataArray` (z, y, x), or a cube), or images of it (a path
        as of `emdask.open_stack`, a stack, or an array (h, w) or (n, h, w)). Its centre is at
        ``n // 2``.
    n_views
        Directions from which a volume is seen, over the whole sphere.
    angle_step_deg
        Step by which templates are turned in their plane, at most 360 degrees. Views, or images,
        times turns may be 20,000 templates at most.
    template_pixel_size_A
        Edge of a pixel or voxel of the template, Å; None: what it says itself.
    template_diameter_px
        Diameter of the particle in pixels or voxels of the template; None: the ``diameter_A`` of
        the micrographs' particles over the template's pixel size. Needed where either is not known.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    A score is the largest correlation coefficient with a template, -1 to 1, within 0.65 diameters
    (`emdask.kernels.template_matching.score_templates`). The threshold, 0.29, was chosen on
    simulated ribosomes of SNR 0.02 to 0.1, where the best were 0.26 to 0.34. Micrographs that have
    been denoised correlate more with anything: on those of beta-galactosidase (EMPIAR-10017) 0.6
    was best. Crystals of ice as large as a particle may score as one. Whitening by the
    micrograph's power spectrum found fewer particles, in coloured noise too, and was left out.

    Examples
    --------
    >>> Template(template="map.mrc", n_views=60).angle_step_deg
    30.0
    """

    template: str | tuple[Any, ...] | None = parameter(
        None, "volume, or images, of the particle, light on dark: a file; needed"
    )
    n_views: int = parameter(40, "directions from which a volume is seen")
    angle_step_deg: float = parameter(30.0, "step by which templates are turned", "deg")
    template_pixel_size_A: float | None = parameter(
        None, "pixel of the template; default: what it says itself", "Å"
    )
    template_diameter_px: float | None = parameter(
        None, "the particle's diameter in the template; default: by the pixel sizes", "px"
    )

    def __post_init__(self) -> None:
        check_integer(NAME, "n_views", self.n_views, 1, 2000)
        check_number(NAME, "angle_step_deg", self.angle_step_deg, 1, 360)
        for name in ("template_pixel_size_A", "template_diameter_px"):
            if getattr(self, name) is not None:
                check_number(NAME, name, getattr(self, name), 1e-3)
        _check_count(self.n_views, "n_views", self.n_angles)

    @property
    def n_angles(self) -> int:
        """Turns of each template in its plane."""
        return max(1, round(360 / self.angle_step_deg))


def _check_count(n_images: int, called: str, n_angles: int) -> None:
    rule = f"{called} times {n_angles} turns must be at most {MOST_TEMPLATES:,} templates"
    remedy = "Take fewer of them, or a larger angle_step_deg."
    require(n_images * n_angles <= MOST_TEMPLATES, NAME, rule, n_images * n_angles, remedy)


def load(params: Template, diameter_A: float | None) -> Templates:
    """Make the templates.

    Parameters
    ----------
    params
        Parameters.
    diameter_A
        Of the particle, Å; None where micrographs have no pixel size.

    Returns
    -------
    Templates

    Raises
    ------
    ParameterError, StackError, FormatError, FileNotFoundError
        If there is no template, it cannot be read, or its scale is not known.
    """
    source = open_template(params)
    factor = STANDARD_PX / find_template_diameter(source, params, diameter_A)
    if source.dims != VOLUME_DIMS:
        _check_count(len(source), "images", params.n_angles)
    values = source.values.astype(np.float32)
    require(bool(np.isfinite(values).all()), NAME, "pixels of templates must be finite")
    if source.dims == VOLUME_DIMS:
        images = project_views(values, factor, params.n_views, params.n_angles)
    else:
        images = turn_images(resample(values, factor, (1, 2)), params.n_angles)
    return prepare_templates(images, RADIUS * STANDARD_PX)


def open_template(params: Template) -> xr.DataArray:
    """Open the template, in memory or not.

    Returns
    -------
    xarray.DataArray, dims (z, y, x) or (image, y, x)
        A volume or images.
    """
    given: Any = params.template
    rule = "template must be a volume or images of the particle"
    remedy = "Pass template=, such as a map (.mrc) or class averages (.mrcs)."
    require(given is not None, NAME, rule, given, remedy)
    if isinstance(given, str | os.PathLike):
        if not holds_volume(given):
            return open_stack(given, pixel_size_A=params.template_pixel_size_A)
        return _open_map(given, params)
    if isinstance(given, xr.DataArray) and given.ndim == 3:
        return given
    values = np.asarray(given)
    ok = values.ndim in (2, 3) and values.dtype.kind in "iuf" and values.size > 0
    require(ok, NAME, rule, f"{values.dtype} array of shape {values.shape}", remedy)
    cube = values.ndim == 3 and len(set(values.shape)) == 1
    dims = VOLUME_DIMS if cube else ("image", "y", "x")
    return xr.DataArray(values.reshape((-1, *values.shape[-2:])), dims=dims)


def _open_map(path: str | os.PathLike[str], params: Template) -> xr.DataArray:
    # Where it is told how large the particle is, no pixel size is needed.
    known = 1.0 if params.template_diameter_px is not None else None
    pixel_size_A = params.template_pixel_size_A or known
    try:
        return open_volume(path, pixel_size_A=pixel_size_A)
    except FormatError as error:
        if pixel_size_A is not None:
            raise
        remedy = "For a template it is template_pixel_size_A=, or pass template_diameter_px=."
        raise FormatError(f"{error} {remedy}") from error


def find_template_diameter(
    source: xr.DataArray, params: Template, diameter_A: float | None
) -> float:
    """Return the particle's diameter in pixels or voxels of the template.

    Raises
    ------
    ParameterError
        If it is not known, or not that of what is in the template's box.
    """
    remedy = "Pass template_diameter_px=, the particle's diameter in pixels of the template."
    diameter_px = params.template_diameter_px
    if diameter_px is None:
        said_A = source.attrs.get("pixel_size_A")
        given_A = params.template_pixel_size_A
        pixel_size_A = said_A if given_A is None else given_A
        unknown = [
            name
            for name, value in (
                ("the pixel size of the template", pixel_size_A),
                ("the diameter in Å, since micrographs have no pixel size", diameter_A),
            )
            if value is None
        ]
        if diameter_A is None or pixel_size_A is None:
            rule = f"the scale of the template must be known, and {' and '.join(unknown)} is not"
            raise ParameterError(sentence(NAME, rule, remedy=remedy))
        diameter_px = diameter_A / float(pixel_size_A)
    most = LARGEST * max(source.shape[1:])
    rule = f"the particle's diameter in the template must be {LEAST_PX:g} to {most:g} px"
    require(LEAST_PX <= diameter_px <= most, NAME, rule, f"{diameter_px:.4g} px", remedy)
    return float(diameter_px)


def score(image: Any, params: Template, model: Templates) -> ScoreMap:
    """Score a micrograph; NumPy or CuPy.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Standard micrograph.
    params
        Parameters.
    model
        Of `load`.

    Returns
    -------
    ScoreMap
        A cell for each pixel.
    """
    return ScoreMap(score_templates(remove_crystals(image, STANDARD_PX), model), 1.0, 0.0)


METHOD = Picker(
    params=Template,
    score={"cpu": score, "cuda": score},
    standard_px=STANDARD_PX,
    threshold=0.29,
    load=load,
    loaded=("template",),
)
