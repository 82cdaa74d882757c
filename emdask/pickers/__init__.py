"""Pickers: every other file of this package is one method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import check_device, resolve_device, run_on, to_device, to_host
from emdask.checks import check_choice, check_number, require, sentence
from emdask.errors import StackError
from emdask.kernels.picking import ScoreMap, clean_scores, filter_peaks
from emdask.kernels.standard_micrographs import CONTRASTS, Scale, standardise
from emdask.lazy import BAD_PIXELS, map_tables
from emdask.method import Picker, resolve_method
from emdask.stack import as_micrographs, micrograph_names, one_pixel_size

FAMILY = __name__
WHAT = "pick"
COLUMNS = {"micrograph": "str", "x_px": "float64", "y_px": "float64", "score": "float64"}
SIZE_BY_SIZE = "Pick those of each size by themselves."
# A particle of fewer pixels is no more than a dot.
LEAST_DIAMETER_PX = 5.0
# Of a standard micrograph: some 32 bytes a pixel are needed.
MOST_STANDARD_PIXELS = 2**26
# Of a card: bytes for a pixel of a micrograph and for one of a standard image, and more besides.
CARD_BYTES = (24, 1024, 2**28)
Images = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Search:
    """How particles are looked for in a micrograph.

    Parameters
    ----------
    name
        Of the method.
    record, params, model
        The method's record, its parameters, and what it has loaded.
    diameter_px
        Of a particle, in px of the micrographs.
    threshold
        Least score of a pick.
    spacing
        Least distance between picks in diameters.
    border_px
        Picks nearer to an edge of the micrograph than this are left out.
    contrast
        "dark" or "light" particles.
    """

    name: str
    record: Picker
    params: Any
    model: Any
    diameter_px: float
    threshold: float
    spacing: float
    border_px: float
    contrast: str


def pick(
    micrographs: Any,
    method: str | Any = "cnn",
    *,
    diameter_A: float | None = None,
    diameter_px: float | None = None,
    threshold: float | None = None,
    spacing: float = 0.5,
    border_px: float = 0.0,
    contrast: str = "dark",
    device: str | None = None,
    bad_pixels: str = "raise",
    **parameters: Any,
) -> Any:
    """Find particles in micrographs, lazily.

    Each micrograph is brought to a standard size of particle, background and scale of grey levels
    (`emdask.kernels.standard_micrographs.standardise`); scored (`score_micrograph`); what scores
    high but is far larger than a particle is dropped (`emdask.kernels.picking.clean_scores`); peaks
    are found and thinned out (`filter_peaks`) and sorted, the best first (`sort_picks`).

    Parameters
    ----------
    micrographs : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Micrographs in grey levels of any scale. A block holds whole micrographs.
    method
        Name of a method (``emdask methods`` lists them) or an instance of its parameter record.
    diameter_A
        Diameter of a particle in Å: of the smallest circle around most of its views. Where the
        pixel size is not known, give ``diameter_px``.
    diameter_px
        The same in pixels of the micrographs; one of the two must be given.
    threshold
        Least score of a pick; None for that of the model, where it has one, or of the method. Lower
        ones find more and err more.
    spacing
        Least distance between two picks, in diameters.
    border_px
        Leaves out picks nearer to an edge of the micrograph than this, in px.
    contrast
        "dark" where particles are darker than the ice, as the camera records them in underfocus, or
        "light".
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    dask.dataframe.DataFrame
        Lazy; a partition a block of micrographs, in their order, and in each micrograph the best
        first. ``micrograph``: the coordinate of this name, or "image_000012" after ``image_id``
        where there is none. ``x_px`` to the right and ``y_px`` downwards: where the particle's
        centre is, in px of the micrograph, the centre of the first pixel being (0, 0). ``score``:
        in the method's unit. A micrograph without particles has no rows.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, DeviceError
        At once, before anything is computed.

    Notes
    -----
    The answer does not depend on how micrographs are chunked, nor on the number of workers. On a
    cluster of which not all workers have a card, compute what was made with ``device="cuda"``
    within `emdask.placement.on_cards`.

    References
    ----------
    .. [1] F. Wang et al., "DeepPicker: a deep learning approach for fully automated particle
       picking in cryo-EM", J. Struct. Biol. 195 (2016): score, clean, filter, sort, iterate.

    Examples
    --------
    >>> from emdask import phantom, simulate_micrographs
    >>> particle = phantom(8, radius_A=20).volume(32, 3.0)
    >>> made, truth = simulate_micrographs(particle, 2, snr=0.5, size_px=256, n_particles=9)
    >>> picks = pick(made.images, "log", diameter_A=50).compute()
    >>> list(picks.columns), len(picks) > 9
    (['micrograph', 'x_px', 'y_px', 'score'], True)
    """
    source = as_micrographs(micrographs, WHAT)
    search = build_search(
        source,
        method,
        diameter_A=diameter_A,
        diameter_px=diameter_px,
        threshold=threshold,
        spacing=spacing,
        border_px=border_px,
        contrast=contrast,
        **parameters,
    )
    return run_search(source, search, device=device, bad_pixels=bad_pixels)


def run_search(
    micrographs: Any, search: Search, *, device: str | None = None, bad_pixels: str = "raise"
) -> Any:
    """Find particles as a search says that was built before.

    Parameters
    ----------
    micrographs, device, bad_pixels
        As of `pick`.
    search
        From `build_search`, for these micrographs.

    Returns
    -------
    dask.dataframe.DataFrame
        As of `pick`.

    Raises
    ------
    ParameterError, StackError, DeviceError

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(1, 64, 64))
    >>> search = build_search(image, "log", diameter_px=20, threshold=50)
    >>> len(run_search(image, search))
    0
    """
    check_choice(WHAT, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_micrographs(micrographs, WHAT)
    return map_tables(
        source.data,
        micrograph_names(source),
        pick_block,
        columns=COLUMNS,
        name=f"pick-{search.name}",
        device=check_device(device, search.name, search.record.score),
        supported=tuple(search.record.score),
        model=search,
        bad_pixels=bad_pixels,
    )


def score_micrograph(
    image: Any,
    method: str | Any = "cnn",
    *,
    diameter_px: float,
    contrast: str = "dark",
    device: str | None = None,
    **parameters: Any,
) -> tuple[ScoreMap, Scale]:
    """Score how likely a particle's centre is at each place of one micrograph, at once.

    Parameters
    ----------
    image : array, shape (h, w)
        Micrograph.
    method, diameter_px, contrast, device, **parameters
        As of `pick`.

    Returns
    -------
    scores : ScoreMap
        On the host.
    scale : Scale
        Leads from px of the standard image, in which the map says where its cells are, to those of
        the micrograph.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, DeviceError

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(128, 128))
    >>> scores, scale = score_micrograph(image, "log", diameter_px=32)
    >>> scores.scores.ndim
    2
    """
    source = as_micrographs(image, WHAT)
    require(len(source) == 1, WHAT, "one micrograph is scored at a time", len(source))
    search = build_search(source, method, diameter_px=diameter_px, contrast=contrast, **parameters)
    device = check_device(device, search.name, search.record.score)
    values = source.values[0]
    rule = "the micrograph must have finite pixels"
    require(bool(np.isfinite(values).all()), WHAT, rule, remedy="Replace the others.")
    return score_image(values, search, resolve_device(device, search.record.score))


def build_search(
    micrographs: Any,
    method: str | Any = "cnn",
    *,
    diameter_A: float | None = None,
    diameter_px: float | None = None,
    threshold: float | None = None,
    spacing: float = 0.5,
    border_px: float = 0.0,
    contrast: str = "dark",
    **parameters: Any,
) -> Search:
    """Check how particles are to be looked for, and load what the method needs, once for all.

    Parameters
    ----------
    micrographs, method, diameter_A, diameter_px, threshold, spacing, border_px, contrast
        As of `pick`, and so are ``**parameters``.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    Search

    Raises
    ------
    UnknownMethodError, ParameterError, StackError

    Examples
    --------
    >>> build_search(np.zeros((64, 64)), "log", diameter_px=20).threshold
    3.0
    """
    stack = as_micrographs(micrographs, WHAT)
    name, record, params = resolve_method(FAMILY, method, parameters)
    diameter_px = find_diameter(stack, diameter_A, diameter_px)
    if threshold is not None:
        check_number(WHAT, "threshold", threshold)
    check_number(WHAT, "spacing", spacing, 0)
    check_number(WHAT, "border_px", border_px, 0)
    check_choice(WHAT, "contrast", contrast, CONTRASTS)
    n_pixels = stack.shape[1] * stack.shape[2] * (record.standard_px / diameter_px) ** 2
    rule = f"{name} would magnify micrographs to {n_pixels / 1e6:.0f} million pixels"
    rule += f", {record.standard_px:g} for a particle's diameter"
    remedy = "Is the diameter right, and the pixel size?"
    require(n_pixels <= MOST_STANDARD_PIXELS, WHAT, rule, f"{diameter_px:g} px", remedy)
    model = None
    if record.load is not None:
        pixel_A = one_pixel_size(stack, WHAT, SIZE_BY_SIZE)
        model = record.load(params, None if pixel_A is None else diameter_px * pixel_A)
    if threshold is None:
        of_model = record.threshold_of
        threshold = record.threshold if of_model is None else of_model(model)
    return Search(
        name=name,
        record=record,
        params=replace(params, **dict.fromkeys(record.loaded)),
        model=model,
        diameter_px=diameter_px,
        threshold=threshold,
        spacing=spacing,
        border_px=border_px,
        contrast=contrast,
    )


def pick_block(images: Images, labels: Images, *, device: str, model: Search) -> dict[str, Any]:
    """Pick the particles of a block of micrographs; what a task of `pick` does.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Micrographs of the host.
    labels : array, shape (n,)
        Their names.
    device
        "cpu" or "cuda".
    model
        How they are looked for.

    Returns
    -------
    dict of str to array
        The columns of `pick`.
    """
    found = [pick_image(image, model, device) for image in images]
    counts = [len(places) for places in found]
    x_px, y_px, score = np.concatenate(found).T if found else np.empty((3, 0))
    return {"micrograph": np.repeat(labels, counts), "x_px": x_px, "y_px": y_px, "score": score}


def pick_image(image: Images, search: Search, device: str) -> Images:
    """Pick the particles of one micrograph.

    Parameters
    ----------
    image : array, shape (h, w)
        Micrograph.
    search
        How they are looked for.
    device
        "cpu" or "cuda".

    Returns
    -------
    float64 array, shape (m, 3)
        x and y in px and score, the best first.
    """
    score_map, scale = score_image(image, search, device)
    diameter = search.record.standard_px / score_map.step_px
    # Below the method's own threshold noise would connect everything.
    cleaned = clean_scores(score_map.scores, search.record.threshold, diameter)
    columns, rows, score = filter_peaks(
        cleaned, search.threshold, diameter, search.spacing * diameter
    )
    x_px, y_px = scale.to_original(
        *(score_map.offset_px + cells * score_map.step_px for cells in (columns, rows))
    )
    inside = np.ones(len(score), bool)
    for place, length in ((y_px, image.shape[0]), (x_px, image.shape[1])):
        # The frame ends half a pixel beyond the centres of its outermost pixels.
        inside &= np.minimum(place, length - 1 - place) >= search.border_px - 0.5
    picks: Images = np.column_stack([x_px, y_px, score])[inside]
    return picks


def score_image(image: Images, search: Search, device: str) -> tuple[ScoreMap, Scale]:
    """Score one micrograph.

    Parameters
    ----------
    image : array, shape (h, w)
        Micrograph, of finite pixels.
    search
        How particles are looked for.
    device
        "cpu" or "cuda".

    Returns
    -------
    scores : ScoreMap
        On the host.
    scale : Scale
        As of `score_micrograph`.
    """
    factor = search.record.standard_px / search.diameter_px
    a_pixel, a_standard, besides = CARD_BYTES
    n_bytes = int(image.size * (a_pixel + a_standard * factor**2)) + besides
    task = partial(_score_there, image, search, device)
    return run_on(device, task, n_bytes=n_bytes, what=f"{search.name} on a micrograph")


def _score_there(image: Images, search: Search, device: str) -> tuple[ScoreMap, Scale]:
    record = search.record
    standard, scale = standardise(
        to_device(image, device), search.diameter_px, record.standard_px, search.contrast
    )
    found = record.score[device](standard, search.params, search.model)
    return found._replace(scores=to_host(found.scores)), scale


def find_diameter(
    stack: xr.DataArray, diameter_A: float | None, diameter_px: float | None, what: str = WHAT
) -> float:
    """Return the diameter in px, of what the user gave.

    Parameters
    ----------
    stack
        Micrographs.
    diameter_A, diameter_px
        As of `pick`.
    what
        The verb, for messages.

    Raises
    ------
    ParameterError
        If neither or both are given, or it fits neither pixels nor micrographs.
    StackError
        If it is given in Å and no pixel size is known.

    Examples
    --------
    >>> stack = as_micrographs(np.zeros((100, 100)), "pick").assign_attrs(pixel_size_A=2.0)
    >>> find_diameter(stack, 60.0, None)
    30.0
    """
    rule = "one of diameter_A and diameter_px must be given"
    given = [value for value in (diameter_A, diameter_px) if value is not None]
    remedy = "It is the diameter of a particle, in Å or in pixels of the micrographs."
    require(len(given) == 1, what, rule, given, remedy)
    if diameter_A is not None:
        check_number(what, "diameter_A", diameter_A, 1e-3)
        pixel_A = one_pixel_size(stack, what, SIZE_BY_SIZE)
        if pixel_A is None:
            rule = "diameter_A is in Å, and the pixel size of the micrographs is not known"
            remedy = "Pass diameter_px, or open_stack(..., pixel_size_A=...)."
            raise StackError(sentence(what, rule, remedy=remedy))
        diameter_px = diameter_A / pixel_A
    check_number(what, "diameter_px", diameter_px, 1e-3)
    assert diameter_px is not None
    size_px = min(stack.shape[1:])
    rule = f"the diameter must be {LEAST_DIAMETER_PX:g} px at least and fit into the micrographs"
    rule += f", of which {size_px} px are the shorter side"
    fits = LEAST_DIAMETER_PX <= diameter_px <= size_px
    remedy = "Is it in the right unit, and the pixel size right?"
    require(fits, what, rule, f"{diameter_px:g} px", remedy)
    return float(diameter_px)
