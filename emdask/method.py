"""What a method is: a frozen record in a file of its own.

``emdask/denoisers/bm3d.py`` holds ``METHOD = Method(...)`` and by that
``denoise(stack, method="bm3d")`` works.
Another package adds a method through an entry point of the group ``emdask.denoisers``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from emdask.checks import require, sentence, suggest
from emdask.errors import UnknownMethodError


@dataclass(frozen=True, kw_only=True)
class Learn:
    """How a method learns from a stack in one pass of sums.

    Parameters
    ----------
    chunk
        Device to ``(images, image_ids, params, n_images) -> sums``: a block of images to additive
        sums, of a stack of so many images. Images and sums are of the host; what works on a card
        does its own moving. Methods that take optics are given them by the keyword ``optics``.
    combine
        ``(sums, sums) -> sums``; associative.
    finalize
        ``(sums, params) -> model``, an `xarray.Dataset`; its attributes are numbers and words.
        Method and parameters are added to them.
    wanted
        ``params -> bool``: whether these parameters ask for a model; None where all do. ``apply``
        gets None for the model where they do not.
    shared
        Parameters that must be those of the model.
    check
        ``(model, params, stack, optics) -> None``: raises where a model does not suit a stack, of
        these optics, or the parameters that the user gave; None where any does.
    """

    chunk: Mapping[str, Callable[..., Any]]
    combine: Callable[[Any, Any], Any]
    finalize: Callable[..., Any]
    wanted: Callable[[Any], bool] | None = None
    shared: tuple[str, ...] = ()
    check: Callable[[Any, Any, Any, Any], None] | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the network of a method is trained.

    Parameters
    ----------
    params
        Frozen dataclass of what can be chosen; checks itself in ``__post_init__``, made of
        `parameter` fields.
    begin
        ``(params, *, start, seed, device, short) -> training``: a network in training, as
        `emdask.kernels.denoiser_training.DenoiserTraining` is; ``start`` are named arrays to start
        from, or None.
    takes
        "clean": noisy images, and the same without noise; "pairs": noisy images, and others of the
        same with noise of their own, where there are; "noisy": noisy images alone.
    stride
        ``params -> px``: multiple of which the edges of an image are.
    """

    params: type
    begin: Callable[..., Any]
    takes: Literal["clean", "pairs", "noisy"]
    stride: Callable[[Any], int]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of a family.

    Parameters
    ----------
    params
        Frozen dataclass of the parameters; checks itself in ``__post_init__``, made of `parameter`
        fields.
    apply
        Device to ``(images, params[, model]) -> images``, plain arrays in and out.
    learn
        How its model is learnt; None where it needs none.
    halo
        ``params -> px``: how far a pixel of the result reaches into the image, for tiles; None
        where the method needs whole images.
    complete
        ``(params, attrs, shape) -> params``: puts in what the stack's attributes and its shape (n,
        h, w) tell, such as the pixel size, and raises at once where they tell too little; None
        where nothing is wanted of them.
    takes_optics
        Whether ``apply``, and the sums of ``learn``, have the keyword ``optics``: the
        `emdask.kernels.ctf.Optics` of their images, None where the stack knows no defocus.
    corrects
        ``params -> bool``: whether images whose CTF is known come back as without it; None where
        they never do.
    removes
        What the images lose by it: "noise", or "outliers" alone.
    load
        ``(model, attrs, shape) -> weights``, of methods that are networks: opens what the user
        gave, or of what ships what suits the stack, given None; on the client, once.
    training
        How its network is trained; None where it has none.
    needs_model
        Whether nothing ships, so that the user has to give a model.
    libraries
        What it takes that an install may lack.
    """

    params: type
    apply: Mapping[str, Callable[..., Any]]
    learn: Learn | None = None
    halo: Callable[[Any], int] | None = None
    complete: Callable[[Any, Mapping[str, Any], tuple[int, ...]], Any] | None = None
    takes_optics: bool = False
    corrects: Callable[[Any], bool] | None = None
    removes: Literal["noise", "outliers"] = "noise"
    load: Callable[[Any, Mapping[str, Any], tuple[int, ...]], Any] | None = None
    training: Training | None = None
    needs_model: bool = False
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reconstructor:
    """One way to make a volume of images whose poses are known: sums over the images, in one pass.

    Parameters
    ----------
    params
        Frozen dataclass of the parameters; checks itself in ``__post_init__``, made of `parameter`
        fields.
    insert
        Device to ``(sums, images, params, *, rotation_deg, shift_A, half, optics) -> sums``: adds a
        block of images (n, h, w) to sums that it leaves as they are; None begins. Sums are of the
        host. ``rotation_deg`` (n, 3), ``shift_A`` (n, 2) and ``half`` (n,), 1 or 2, go along with
        the images, and so does ``optics``, None where no defocus is known.
    combine
        ``(sums, sums) -> sums``; associative.
    finalize
        ``(sums, params) -> xarray.Dataset``.
    complete
        As of `Method`.
    """

    params: type
    insert: Mapping[str, Callable[..., Any]]
    combine: Callable[[Any, Any], Any]
    finalize: Callable[..., Any]
    complete: Callable[[Any, Mapping[str, Any], tuple[int, ...]], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Picker:
    """One way to score how likely a particle's centre is at each place of a micrograph.

    Parameters
    ----------
    params
        Frozen dataclass of the parameters; checks itself in ``__post_init__``, made of `parameter`
        fields.
    score
        Device to ``(image, params, model) -> emdask.kernels.picking.ScoreMap``: a micrograph (h, w)
        as `emdask.kernels.standard_micrographs.standardise` makes it, particles light, to its map
        of scores, of the same library.
    standard_px
        Diameter of a particle in the image that it scores.
    threshold
        Least score of a particle, unless the user says otherwise.
    load
        ``(params, diameter_A) -> model``: reads and prepares what all micrographs need, on the
        client, once; ``diameter_A`` is None where no pixel size is known. None where nothing is
        needed; ``score`` then gets None for the model.
    loaded
        Parameters that ``load`` alone reads, and that may be None afterwards: they stay on the
        client.
    threshold_of
        ``(model) -> threshold``, where models have thresholds of their own.
    """

    params: type
    score: Mapping[str, Callable[..., Any]]
    standard_px: float
    threshold: float
    load: Callable[[Any, float | None], Any] | None = None
    loaded: tuple[str, ...] = ()
    threshold_of: Callable[[Any], float] | None = None


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """One way to tell how likely each image is under each of some classes.

    Parameters
    ----------
    params
        Frozen dataclass of the parameters; checks itself in ``__post_init__``, made of `parameter`
        fields. Methods without references have ``n_classes`` among them.
    chunk, combine
        Sums of the stack in one pass, as of `Learn`.
    prepare
        ``(sums, params, references) -> model``: what every block is compared with, a record of
        plain arrays, made in one task. ``references`` is `emdask.kernels.references.References`, or
        None for methods that need none.
    score
        Device to ``(images, params, model) -> rows``: images (m, h, w) to an array (m, number of
        columns), treated one by one, of the same library. Methods that take optics are given them
        by the keyword ``optics``.
    columns
        ``(params, n_classes) -> names`` of a row's numbers: "class_1", "class_2", ..., the natural
        logarithms of how likely the image is under each class, up to a number of the image; -inf
        where a class is out of the question. Then any of "none", the same for an image that is
        none of these; "kept", 0 for images that are no matter of classes, whatever else their row
        says, else 1; "screen_score"; "rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A".
    needs_references
        Whether there is something to compare with; else classes are found among the images.
    takes_optics
        Whether ``score`` and ``chunk`` have the keyword ``optics``, as of `Method`.
    complete
        As of `Method`.
    check
        ``(params, references) -> None``: raises at once where references do not suit; None where
        any do.
    of_noise
        ``params -> bool``: whether images must have the noise that they were recorded with; None
        where it does not matter.
    """

    params: type
    chunk: Mapping[str, Callable[..., Any]]
    combine: Callable[[Any, Any], Any]
    prepare: Callable[[Any, Any, Any], Any]
    score: Mapping[str, Callable[..., Any]]
    columns: Callable[[Any, int], tuple[str, ...]]
    needs_references: bool = True
    takes_optics: bool = True
    complete: Callable[[Any, Mapping[str, Any], tuple[int, ...]], Any] | None = None
    check: Callable[[Any, Any], None] | None = None
    of_noise: Callable[[Any], bool] | None = None


RECORDS = (Method, Reconstructor, Picker, Classifier)
# The record of a method of any family.
Record = Method | Reconstructor | Picker | Classifier


def parameter(default: Any, meaning: str, unit: str = "") -> Any:
    """Declare one field of a parameter record.

    Parameters
    ----------
    default
        Its default value.
    meaning
        One line, shown by ``emdask methods`` and as the help of the CLI's option.
    unit
        Unit of a number.

    Returns
    -------
    dataclasses.Field
        To be assigned in a dataclass body.

    Examples
    --------
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Blur:
    ...     width_px: float = parameter(2.0, "standard deviation of the kernel", "px")
    >>> dataclasses.fields(Blur)[0].metadata["unit"]
    'px'
    """
    return dataclasses.field(default=default, metadata={"meaning": meaning, "unit": unit})


def noise_parameter() -> Any:
    """Declare the field ``sigma`` of a parameter record, the same in all methods.

    Its type is ``Literal["auto"] | float``; `emdask.checks.check_sigma` checks it.

    Returns
    -------
    dataclasses.Field
        To be assigned in a dataclass body.

    Examples
    --------
    >>> noise_parameter().default
    'auto'
    """
    meaning = "standard deviation of the noise; auto: estimated image by image"
    return parameter("auto", meaning, "grey levels")


def list_methods(family: str) -> tuple[str, ...]:
    """Return the names of the methods of a family; imports none of them.

    Parameters
    ----------
    family
        Package of the family, as "emdask.denoisers"; also the entry point group.

    Returns
    -------
    tuple of str
        Sorted names.

    Examples
    --------
    >>> "bm3d" in list_methods("emdask.denoisers")
    True
    """
    return tuple(sorted(find_homes(family)))


def find_denoiser(attrs: Mapping[str, Any]) -> str | None:
    """Name the last denoiser that images went through, as far as their provenance tells.

    Parameters
    ----------
    attrs
        Of the stack.

    Examples
    --------
    >>> find_denoiser({"provenance": ({"step": "open"}, {"step": "bm3d"}, {"step": "crop"})})
    'bm3d'
    """
    steps = [entry["step"] for entry in attrs.get("provenance", ())]
    known = list_methods("emdask.denoisers")
    return next((step for step in reversed(steps) if step in known), None)


@cache
def find_homes(family: str) -> Mapping[str, EntryPoint | None]:
    """Find where the methods of a family are: at an entry point, or in files of ours (None)."""
    package = importlib.import_module(family)
    files = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]
    return dict.fromkeys(files) | {point.name: point for point in entry_points(group=family)}


def find_method(family: str, name: str) -> Any:
    """Load the method of that name.

    Returns
    -------
    Method, Reconstructor, Picker or Classifier
        As the family has.

    Raises
    ------
    UnknownMethodError
        If there is none, naming those there are.

    Examples
    --------
    >>> find_method("emdask.denoisers", "bm3d").params.__name__
    'BM3D'
    """
    if name not in list_methods(family):
        what = family.rpartition(".")[2]
        remedy = suggest(name, list_methods(family))
        raise UnknownMethodError(sentence(what, "no method of this name", name, remedy))
    if (point := find_homes(family)[name]) is not None:
        return point.load()
    return importlib.import_module(f"{family}.{name}").METHOD


def learns(record: Method, params: Any) -> bool:
    """Whether a method with these parameters learns from the stack.

    Examples
    --------
    >>> ksvd = find_method("emdask.denoisers", "ksvd")
    >>> learns(ksvd, ksvd.params()), learns(ksvd, ksvd.params(scope="image"))
    (True, False)
    """
    if record.learn is None:
        return False
    return record.learn.wanted is None or record.learn.wanted(params)


def about(record: Record) -> str:
    """Return what a method does, in one line: the first of its file.

    Examples
    --------
    >>> about(find_method("emdask.denoisers", "gaussian"))
    'Gaussian blur: each pixel becomes the mean of its surroundings, near ones counting more.'
    """
    lines = (sys.modules[record.params.__module__].__doc__ or "").strip().splitlines()
    return lines[0] if lines else ""


def resolve_method(
    family: str, method: str | Any, options: Mapping[str, Any]
) -> tuple[str, Any, Any]:
    """Turn what the user gave into name, record and parameters.

    Parameters
    ----------
    family
        Package of the family.
    method
        A method's name, or an instance of its parameter record.
    options
        Parameters by name; must be empty beside an instance.

    Returns
    -------
    name : str
    record : Method, Reconstructor, Picker or Classifier
    params : object
        Instance of ``record.params``.

    Raises
    ------
    UnknownMethodError, ParameterError
        Naming what was wrong and what there is.

    Examples
    --------
    >>> resolve_method("emdask.denoisers", "bm3d", {"sigma": 0.5})[2].sigma
    0.5
    """
    if isinstance(method, str):
        found = find_method(family, method)
        return method, found, build_params(method, found, options)
    module = sys.modules[type(method).__module__]
    record = getattr(module, "METHOD", None)
    if not isinstance(record, RECORDS) or not isinstance(method, record.params):
        rule = "method must be a name or an instance of a method's parameter record"
        remedy = f"Names: {', '.join(list_methods(family))}."
        raise UnknownMethodError(sentence(family.rpartition(".")[2], rule, method, remedy))
    name = module.__name__.rpartition(".")[2]
    rule = "parameters go into the record, not beside it"
    require(not options, name, rule, sorted(options))
    return name, record, method


def build_params(name: str, record: Record, options: Mapping[str, Any]) -> Any:
    """Make the parameter record from parameters by name.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range.

    Examples
    --------
    >>> build_params("bm3d", find_method("emdask.denoisers", "bm3d"), {"sgma": 1})
    Traceback (most recent call last):
    emdask.errors.ParameterError: bm3d: no parameter of this name; got 'sgma'. Did you mean sigma?
    ...
    """
    return build_record(name, record.params, options)


def build_record(name: str, record: type, options: Mapping[str, Any]) -> Any:
    """Make any record of parameters from parameters by name.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range.
    """
    known = [field.name for field in dataclasses.fields(record)]
    for option in options:
        require(option in known, name, "no parameter of this name", option, suggest(option, known))
    return record(**options)
