"""Classifiers: every other file of this package is one method."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import check_device
from emdask.checks import check_choice, require, sentence
from emdask.errors import EmdaskWarning, StackError
from emdask.kernels.mixtures import (
    bootstrap_proportions,
    estimate_proportions,
    posteriors,
    summarize_draws,
    without_last,
)
from emdask.kernels.references import References
from emdask.lazy import BAD_PIXELS, map_rows, map_signature, prepare_model
from emdask.method import Classifier, find_denoiser, resolve_method
from emdask.references import open_references
from emdask.stack import add_provenance, as_stack, image_ids, is_whitened, one_pixel_size, optics_of
from emdask.variables import ANGLES, SHIFTS

FAMILY = __name__
WHAT = "classify"
# Of the bootstrap: errors are then known to 5 %.
N_DRAWS = 200
SEED = 0
# Names of columns of scores, and units of those that go into the table as they are.
CLASS, NONE, KEPT, SCREEN = "class_", "none", "kept", "screen_score"
POSE_UNITS = {**dict.fromkeys(ANGLES, "deg"), **dict.fromkeys(SHIFTS, "Å")}
# What the table says of each image beside posteriors, and of each class.
VERDICTS = ("class_id", "margin", "confidence")
PROPORTIONS = ("proportion", "proportion_error", "proportion_low", "proportion_high")
N_SHARES = len(PROPORTIONS) + 1

Array = npt.NDArray[Any]


def classify(
    stack: Any,
    references: Any = None,
    method: str | Any = "two_stage",
    *,
    device: str | None = None,
    bad_pixels: str = "raise",
    **parameters: Any,
) -> xr.Dataset:
    """Tell which class each particle image is of, and how many are of each, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Square particle images, light on dark, as they were recorded: neither denoised nor whitened.
        Where the stack knows a defocus, its CTF is accounted for.
    references
        What images are compared with, in their box and pixel size: a volume or a list of volumes,
        one a class (paths as of `emdask.open_volume`, `xarray.DataArray` (z, y, x), or cubes); or
        images (a path as of `emdask.open_stack`, or a stack) with coordinates ``class_id``, from 1,
        and ``rot_deg``, ``tilt_deg`` and ``psi_deg`` where they are known. None for methods that
        find classes among the images.
    method
        Name of a method (``emdask methods`` lists them) or an instance of its parameter record.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    xarray.Dataset
        Lazy: call ``.compute()`` on the whole of it, or the images are gone through once for each
        variable. Dims ``image``, with the coordinate ``image_id``, and ``class``, with the numbers
        of the classes, from 1.

        - ``class_id`` (image): the likeliest class; 0 where the image is none of them.
        - ``kept`` (image): whether it is of a class.
        - ``log_likelihood`` (image, class): natural logarithm of how likely the image is under each
          class, up to a number of the image; -inf where screening has left the image out, or the
          class is out of the question.
        - ``posterior`` (image, class), ``posterior_none`` (image): how probable each class is, and
          that it is none of them, given the proportions of all; 1 in sum.
        - ``margin`` (image): log-likelihood of the likeliest class less that of the second; NaN
          where there are not two. ``confidence`` (image): posterior of what ``class_id`` says.
        - ``rot_deg``, ``tilt_deg``, ``psi_deg``, ``shift_x_A``, ``shift_y_A`` (image), by methods
          that find them: the pose in RELION's sense; NaN where the image is of no class.
        - ``screen_score`` (image), by methods that screen: larger is nearer to the view.
        - ``proportion`` (class): share of each among the images that are of a class, NaN where no
          image is; and its standard error ``proportion_error`` and 95 % interval,
          ``proportion_low`` to ``proportion_high``; ``proportion_none``: share of all images that
          are of none. They are those that make all images most likely, not counts of ``class_id``,
          which favour the more frequent classes; errors are those of 200 draws of images with
          replacement.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, FormatError, DeviceError
        At once, before anything is computed. ParameterError also when it is computed: where images
        do not show the references, or are dark on light.

    Warns
    -----
    EmdaskWarning
        If the images have been denoised.

    Notes
    -----
    Images are read twice: once for what a method has to know of all of them, such as their noise,
    and once to be classified. Memory holds what they are compared with, once for each worker, a few
    chunks, and the table. Where no pixel size of the images is known, it is taken to be that of the
    references.

    Examples
    --------
    >>> from emdask import phantom, simulate
    >>> shapes = [phantom(8, radius_A=size, seed=1).volume(32, 3.0) for size in (16, 32)]
    >>> images = simulate(shapes, 60, snr=5.0, proportions=[0.7, 0.3]).images
    >>> found = classify(images, method="kmeans", n_classes=2, n_components=2).compute()
    >>> found.class_id.shape, found.posterior.dims
    ((60,), ('image', 'class'))
    """
    name, record, params = resolve_method(FAMILY, method, parameters)
    check_choice(name, "bad_pixels", bad_pixels, BAD_PIXELS)
    device = check_device(device, name, record.score)
    source = as_told(as_particles(stack, WHAT), params)
    opened = check_references(name, record, params, references, source)
    return _tabulate(score_stack(source, name, record, params, opened, device, bad_pixels))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Rows of numbers of all images, yet to be computed.

    Parameters
    ----------
    rows : dask.array.Array, shape (n, number of columns), float32
        As `emdask.method.Classifier` scores images.
    columns
        Names of the numbers in a row.
    image_id : array, shape (n,)
        Numbers of the images.
    attrs
        What is known of all of them.
    """

    rows: da.Array
    columns: tuple[str, ...]
    image_id: Array
    attrs: dict[str, Any]

    @property
    def n_classes(self) -> int:
        """Number of classes among the columns."""
        return sum(column.startswith(CLASS) for column in self.columns)

    def column(self, name: str) -> Any:
        """One number of each image, (n,)."""
        return self.rows[:, self.columns.index(name)]


def as_particles(stack: Any, what: str) -> xr.DataArray:
    """Take whatever a verb accepts as particle images.

    Parameters
    ----------
    stack
        As of `emdask.stack.as_stack`.
    what
        The verb that errors name.

    Raises
    ------
    StackError
        As of `emdask.stack.as_stack`, and if images are not square.

    Examples
    --------
    >>> as_particles(np.zeros((3, 8, 8)), "classify").shape
    (3, 8, 8)
    """
    source = as_stack(stack)
    if source.shape[1] != source.shape[2]:
        rule = "images must be square, with the particle near the middle"
        raise StackError(sentence(what, rule, source.shape[1:], "Pad or crop them."))
    return source


def as_told(stack: xr.DataArray, params: Any) -> xr.DataArray:
    """Give a stack the pixel size that a method was told, if it was told one.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> as_told(xr.DataArray(np.zeros(3)), SimpleNamespace(pixel_size_A=1.5)).attrs
    {'pixel_size_A': 1.5}
    """
    size_A = getattr(params, "pixel_size_A", None)
    if size_A is None:
        return stack
    return stack.drop_vars("pixel_size_A", errors="ignore").assign_attrs(pixel_size_A=size_A)


def check_references(
    name: str, record: Classifier, params: Any, references: Any, stack: xr.DataArray
) -> References | None:
    """Open the references that a method needs; refuse them where it needs none.

    Parameters
    ----------
    name, record, params
        Of the method.
    references, stack
        As of `classify`.

    Raises
    ------
    ParameterError
        If there are none where they are needed, or there are some where they are not.
    StackError, FormatError, FileNotFoundError
        If they cannot be read or do not go with the images, or if images have been whitened and
        noise matters.

    Warns
    -----
    EmdaskWarning
        If images have been denoised and noise matters.
    """
    if not record.needs_references:
        rule = "finds classes among the images and takes no references"
        remedy = 'Leave them out, or take method="two_stage".'
        require(references is None, name, rule, type(references).__name__, remedy)
        return None
    rule = "references must be given, which images are compared with"
    remedy = "Pass a volume for each class (--reference), or images of them."
    require(references is not None, name, rule, references, remedy)
    if record.of_noise is not None and record.of_noise(params):
        check_noise(name, stack)
    opened = open_references(references, stack, WHAT)
    if record.check is not None:
        record.check(params, opened)
    return opened


def check_noise(name: str, stack: xr.DataArray) -> None:
    """Refuse images that were whitened, as references are not; warn of those that were denoised.

    Raises
    ------
    StackError

    Warns
    -----
    EmdaskWarning

    Examples
    --------
    >>> check_noise("template", as_stack(np.zeros((1, 8, 8))))
    """
    rule = "images have been whitened, and what they are compared with has not"
    remedy = "Take them as they were: the spectrum of the noise is measured and accounted for."
    if is_whitened(stack):
        raise StackError(sentence(name, rule, remedy=remedy))
    denoiser = find_denoiser(stack.attrs)
    if denoiser is not None:
        warnings.warn(
            f"{name}: these images were denoised ({denoiser}), so their noise is not what it is "
            "measured to be: answers are often wrong, and always sure. Take images as they were "
            "recorded.",
            EmdaskWarning,
            stacklevel=4,
        )


def score_stack(
    stack: xr.DataArray,
    name: str,
    record: Classifier,
    params: Any,
    references: References | None,
    device: str,
    bad_pixels: str,
) -> Scores:
    """Score every image, lazily: what a method prepares is made in one task and sent to all others.

    Parameters
    ----------
    stack
        Images, of `as_particles`.
    name, record, params
        Of the method.
    references
        Of `check_references`.
    device
        "auto", "cpu" or "cuda".
    bad_pixels
        As of `classify`.

    Returns
    -------
    Scores
    """
    remedy = "Classify the images of each size by themselves."
    size_A = one_pixel_size(stack, WHAT, remedy)
    if size_A is None and references is not None:
        size_A = references.pixel_size_A
    known = {**stack.attrs, **({} if size_A is None else {"pixel_size_A": size_A})}
    if record.complete is not None:
        params = record.complete(params, known, stack.shape)
    n_classes = params.n_classes if references is None else references.n_classes
    columns = record.columns(params, n_classes)
    ids = image_ids(stack)
    how: dict[str, Any] = {"name": name, "device": device, "bad_pixels": bad_pixels}
    how["optics"] = optics_of(stack.assign_attrs(known)) if record.takes_optics else None
    model = prepare_model(stack.data, ids, record, params, references, **how)
    rows = map_rows(stack.data, record, params, n_columns=len(columns), model=model, **how)
    about = {"n_images": len(stack), "method": name}
    history = {"provenance": stack.attrs.get("provenance", ())}
    attrs = add_provenance(history, name, asdict(params) | {"n_classes": n_classes})
    attrs |= about if size_A is None else {"pixel_size_A": size_A, **about}
    return Scores(rows=rows, columns=columns, image_id=ids, attrs=attrs)


def _tabulate(scores: Scores) -> xr.Dataset:
    """The table of `classify`."""
    n_classes = scores.n_classes
    used = [i for i, name in enumerate(scores.columns) if is_of_class(name)]
    rows, columns = scores.rows[:, used], tuple(scores.columns[i] for i in used)
    estimate, judge = (partial(f, columns=columns) for f in (estimate_shares, judge_images))
    # All images in one task: of each, no more than what proportions are estimated from.
    shares = map_signature(estimate, "(n,c)->(s,k)", rows, s=N_SHARES, k=n_classes + 1)
    width = 2 * n_classes + 1 + len(VERDICTS)
    judged = map_signature(judge, "(c),(s,k)->(j)", rows, shares, j=width)
    class_id, margin, confidence = (judged[:, i - len(VERDICTS)] for i in range(len(VERDICTS)))
    kept = class_id > 0
    table = {
        "class_id": ("image", class_id.astype(np.int64)),
        "kept": ("image", kept),
        "log_likelihood": (("image", "class"), judged[:, :n_classes].astype(np.float32)),
        "posterior": (("image", "class"), judged[:, n_classes:][:, :n_classes].astype(np.float32)),
        "posterior_none": ("image", judged[:, 2 * n_classes].astype(np.float32)),
        "margin": ("image", margin.astype(np.float32)),
        "confidence": ("image", confidence.astype(np.float32)),
        **view_columns(scores, kept),
        **{name: ("class", shares[i, :n_classes]) for i, name in enumerate(PROPORTIONS)},
        "proportion_none": ((), shares[0, n_classes]),
    }
    coords = {"image_id": ("image", scores.image_id), "class": np.arange(1, n_classes + 1)}
    return xr.Dataset(table, coords, scores.attrs)


def is_of_class(column: str) -> bool:
    """Whether a column of scores tells of classes, rather than of views.

    Examples
    --------
    >>> [is_of_class(column) for column in ("class_1", "none", "kept", "rot_deg")]
    [True, True, True, False]
    """
    return column.startswith(CLASS) or column in (NONE, KEPT)


def view_columns(scores: Scores, kept: Any) -> dict[str, Any]:
    """What a table says of views and poses: those of images that are not kept are NaN.

    Parameters
    ----------
    scores
        Of `score_stack`.
    kept : bool dask.array.Array, shape (n,)
        Which images are kept.

    Returns
    -------
    dict of str to tuple
        Variables of a dataset; none where the method finds none.
    """
    found: dict[str, Any] = {}
    if SCREEN in scores.columns:
        found[SCREEN] = ("image", scores.column(SCREEN))
    for name, unit in POSE_UNITS.items():
        if name in scores.columns:
            values = da.where(kept, scores.column(name).astype(np.float64), np.nan)
            found[name] = ("image", values, {"units": unit})
    return found


def estimate_shares(rows: Array, *, columns: Sequence[str]) -> Array:
    """Estimate the proportions of classes from the scores of all images.

    Parameters
    ----------
    rows : float32 array, shape (n, number of columns)
        Scores, those that tell of classes.
    columns
        Their names.

    Returns
    -------
    float64 array, shape (5, n_classes + 1)
        In the first four rows of each class proportion, standard error, and lower and upper bound,
        among images of a class; in the last column, first row, the share of all images that are of
        none. NaN is what there is not. The last row are the shares among images that screening has
        kept, of the classes and of none.

    Examples
    --------
    >>> rows = np.array([[0, -9, 1], [0, -9, 1], [-9, 0, 1], [-9, 0, 0]])
    >>> estimate_shares(rows, columns=("class_1", "class_2", "kept"))[0].round(3)
    array([0.667, 0.333, 0.25 ])
    """
    table, kept = _split_rows(rows, columns)
    n_classes = sum(column.startswith(CLASS) for column in columns)
    shares = np.full((N_SHARES, n_classes + 1), np.nan)
    shares[0, -1] = 1.0
    if not kept.any():
        return shares
    best = estimate_proportions(table[kept])
    draws = bootstrap_proportions(table[kept], N_DRAWS, SEED)
    of_none = best[n_classes:].sum()
    among = (without_last(best), without_last(draws)) if NONE in columns else (best, draws)
    shares[:4, :-1] = summarize_draws(*among)
    shares[0, -1] = 1 - kept.mean() * (1 - of_none)
    shares[4] = *best[:n_classes], of_none
    return shares


def judge_images(rows: Array, shares: Array, *, columns: Sequence[str]) -> Array:
    """Tell how probable classes are for some images, given the proportions of all.

    Parameters
    ----------
    rows : float32 array, shape (m, number of columns)
        Scores, those that tell of classes.
    shares : float64 array, shape (5, n_classes + 1)
        Of `estimate_shares`.
    columns
        Names of the scores.

    Returns
    -------
    float64 array, shape (m, 2 * n_classes + 4)
        Log-likelihood of each class, posterior of each class and of none, and class, margin and
        confidence.

    Examples
    --------
    >>> rows = np.log([[0.9, 0.1], [0.1, 0.9]])
    >>> shares = np.array([[0.5, 0.5, 0.0]] * 5)
    >>> judge_images(rows, shares, columns=("class_1", "class_2"))[:, 2:6].round(2)
    array([[0.9, 0.1, 0. , 1. ],
           [0.1, 0.9, 0. , 2. ]])
    """
    table, kept = _split_rows(rows, columns)
    n_classes = shares.shape[1] - 1
    likely = np.where(kept[:, None], table[:, :n_classes], -np.inf)
    probable = np.zeros((len(rows), n_classes + 1))
    probable[:, n_classes] = ~kept
    if kept.any():
        among = table.shape[1]
        probable[kept, :among] = posteriors(table[kept], shares[4, :among])
    best = probable.argmax(axis=1)
    class_id = np.where(best == n_classes, 0, best + 1)
    margin = np.full(len(rows), np.nan)
    if n_classes > 1:
        second, first = np.sort(likely[kept], axis=1)[:, -2:].T
        with np.errstate(invalid="ignore"):
            margin[kept] = first - second
    return np.column_stack([likely, probable, class_id, margin, probable.max(axis=1)])


def _split_rows(rows: Array, columns: Sequence[str]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Log-likelihoods of classes, and of "none" where there is such; and which rows are kept."""
    chosen = [i for i, name in enumerate(columns) if name.startswith(CLASS)]
    chosen += [columns.index(NONE)] if NONE in columns else []
    kept = rows[:, columns.index(KEPT)] > 0 if KEPT in columns else np.ones(len(rows), bool)
    return rows[:, chosen], kept
