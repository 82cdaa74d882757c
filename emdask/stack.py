"""Build, check, select and chunk a stack: a plain `xarray.DataArray` of dims ``(image, y, x)``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_integer, require, sentence
from emdask.config import setting
from emdask.errors import StackError
from emdask.kernels.ctf import Optics
from emdask.variables import BY_NAME

DIMS = ("image", "y", "x")
KINDS = ("micrographs", "particles")
OPTICS = tuple(field.name for field in fields(Optics) if field.name != "phase_flipped")
OPTICS_NEEDED = (
    *("pixel_size_A", "voltage_kV", "spherical_aberration_mm", "amplitude_contrast"),
    "defocus_u_A",
)
# What a CTF can be worked out from; the spherical aberration may be 0, as behind a corrector.
Rule = tuple[str, Callable[[Any], Any]]
POSITIVE: Rule = ("be more than 0", lambda values: values > 0)
SHARE: Rule = ("lie in [0, 1]", lambda values: (values >= 0) & (values <= 1))
POSSIBLE: Mapping[str, Rule] = {
    "pixel_size_A": POSITIVE,
    "voltage_kV": POSITIVE,
    "amplitude_contrast": SHARE,
}
# What attribute ``ctf_state`` says of images that are not as they were recorded: as without CTF, or
# multiplied by its sign.
CORRECTED, PHASE_FLIPPED = "corrected", "phase_flipped"
# RELION's flags of images that were multiplied by their CTF, or by its sign.
PREMULTIPLIED_FLAG = "rlnCtfDataAreCtfPremultiplied"
FLIPPED_FLAG = "rlnCtfDataArePhaseFlipped"


def build_stack(
    images: da.Array,
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Label a Dask array of images.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        The pixels, whole images in each chunk.
    coords
        Name to array along ``image``; names of `emdask.variables` get their dims, dtype and unit,
        other names are kept as they are, one value an image.
    attrs
        What holds for all images.

    Returns
    -------
    xarray.DataArray
        The stack, named ``images``.

    Raises
    ------
    StackError
        If the array has not three dimensions, or a coordinate has not one entry an image.

    Examples
    --------
    >>> import dask.array as da
    >>> stack = build_stack(da.zeros((3, 8, 8)), {"defocus_u_A": [1e4, 2e4, 3e4]})
    >>> stack[1].defocus_u_A.item()
    20000.0
    """
    if images.ndim != 3:
        raise StackError(sentence("stack", "images must have dims (image, y, x)", images.shape))
    labelled = {
        name: _coordinate(name, value, images.shape[0]) for name, value in (coords or {}).items()
    }
    stack = xr.DataArray(images, dims=DIMS, attrs=dict(attrs or {}), name="images")
    # Given to the constructor, the coordinates of a million images would be copied: 3 s.
    return stack.assign_coords(labelled)


def _coordinate(name: str, value: Any, n_images: int) -> xr.Variable:
    variable = BY_NAME.get(name)
    array = np.asarray(value)
    if array.shape != (n_images,):
        raise StackError(sentence("stack", f"{name} must have shape {(n_images,)}", array.shape))
    if variable is None:
        return xr.Variable("image", array)
    if not (array.dtype.kind == variable.dtype == "U"):
        array = array.astype(variable.dtype, copy=False)
    return xr.Variable("image", array, {"units": variable.unit} if variable.unit else {})


def as_stack(images: Any) -> xr.DataArray:
    """Take whatever a verb accepts as images and return a Dask-backed stack.

    Parameters
    ----------
    images
        A stack, or a Dask or NumPy array of 2 or 3 dims, real numbers.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        Whole images in each chunk; one image gets a leading axis of length 1.

    Raises
    ------
    StackError
        If the array has other dims, no pixels, or pixels that are not real numbers.

    Examples
    --------
    >>> as_stack(np.zeros((8, 6), np.float32)).shape
    (1, 8, 6)
    """
    stack = images if isinstance(images, xr.DataArray) else _label_array(images)
    if stack.ndim == 2 and stack.dims == DIMS[1:]:
        stack = stack.expand_dims("image")
    if stack.dims != DIMS:
        raise StackError(
            sentence("stack", "dims must be (image, y, x)", stack.dims, "Rename or transpose them.")
        )
    if stack.dtype.kind not in "iuf":
        raise StackError(sentence("stack", "pixels must be real numbers", str(stack.dtype)))
    if 0 in stack.shape:
        raise StackError(sentence("stack", "there must be at least one pixel", stack.shape))
    return _whole_images(stack)


def as_micrographs(images: Any, what: str) -> xr.DataArray:
    """Take whatever a verb accepts as micrographs and return a Dask-backed stack.

    Parameters
    ----------
    images
        As of `as_stack`.
    what
        The verb, for the message.

    Raises
    ------
    StackError
        As of `as_stack`, and if they are known to be particles.

    Examples
    --------
    >>> as_micrographs(np.zeros((8, 6), np.float32), "pick").shape
    (1, 8, 6)
    """
    stack = as_stack(images)
    kind = stack.attrs.get("kind", "micrographs")
    if kind != "micrographs":
        remedy = 'If they are micrographs, say so: open_stack(..., kind="micrographs").'
        raise StackError(sentence(what, "images must be micrographs", kind, remedy))
    return stack


def _label_array(images: Any) -> xr.DataArray:
    if isinstance(images, xr.Dataset):
        remedy = "Pass one of its variables, such as dataset.images."
        rule = "must be an array, not a dataset"
        raise StackError(sentence("stack", rule, [*map(str, images.data_vars)], remedy))
    if not hasattr(images, "ndim"):
        images = np.asarray(images)
    if images.ndim not in (2, 3):
        raise StackError(sentence("stack", "an array must have 2 or 3 dims", images.shape))
    return xr.DataArray(images, dims=DIMS[-images.ndim :])


def _whole_images(stack: xr.DataArray) -> xr.DataArray:
    """Dask-backed, with whole images in each chunk."""
    if stack.chunks is None:
        return stack.chunk({"image": choose_chunk(stack.shape, stack.dtype), "y": -1, "x": -1})
    if any(len(sizes) > 1 for sizes in stack.chunks[1:]):
        return stack.chunk({"y": -1, "x": -1})
    return stack


def like_input(result: xr.DataArray, images: Any) -> Any:
    """Give back the form that came in: a stack for a stack, a Dask array for an array."""
    if images.ndim == 2 and result.ndim == 3:
        result = result[0]
    return result if isinstance(images, xr.DataArray) else result.data


def choose_chunk(shape: tuple[int, ...], dtype: Any, chunks: int | str = "auto") -> int:
    """Return the number of images in a chunk.

    Parameters
    ----------
    shape : (n, h, w)
        Shape of the stack.
    dtype
        Type of a pixel.
    chunks
        A number of images, or "auto": the stack in about 1024 chunks, each of 2 to 256 MiB (see
        `emdask.config`), so that a small stack still feeds every core and 10 TB are 40,000 tasks.

    Returns
    -------
    int
        At least one, at most ``n``.

    Raises
    ------
    ParameterError
        If ``chunks`` is neither "auto" nor a positive integer.

    Examples
    --------
    >>> choose_chunk((1000, 128, 128), "f4"), choose_chunk((10_000_000, 128, 128), "f4")
    (32, 4096)
    """
    n_images, height, width = shape
    if chunks != "auto":
        what = 'chunks must be "auto" or a number of images'
        require(not isinstance(chunks, str), "open_stack", what, chunks)
        check_integer("open_stack", "chunks", chunks, 1)
        return min(int(chunks), n_images)
    image_bytes = height * width * np.dtype(dtype).itemsize
    low, high = (setting(f"chunk-{end}-MiB") * 2**20 for end in ("min", "max"))
    target = min(max(n_images * image_bytes / setting("chunks-per-stack"), low), high)
    return int(min(max(target // image_bytes, 1), n_images))


def image_ids(stack: xr.DataArray) -> Any:
    """Return the number of each image, which seeds follow; their positions where none are known.

    Examples
    --------
    >>> image_ids(as_stack(np.zeros((3, 4, 4))))
    array([0, 1, 2])
    """
    known = stack.coords.get("image_id")
    return np.arange(stack.shape[0]) if known is None else np.atleast_1d(known.values)


def one_pixel_size(stack: xr.DataArray, what: str, remedy: str) -> float | None:
    """Return the pixel size of all images in Å; None where it is not known.

    Parameters
    ----------
    stack
        Images.
    what, remedy
        The verb, and what to do where sizes differ, for the message.

    Raises
    ------
    StackError
        If it is not the same for all.

    Examples
    --------
    >>> one_pixel_size(as_stack(np.zeros((2, 8, 8))).assign_attrs(pixel_size_A=1.5), "pick", "")
    1.5
    """
    if "pixel_size_A" not in stack.coords:
        size_A = stack.attrs.get("pixel_size_A")
        return None if size_A is None else float(size_A)
    sizes_A = np.unique(stack.coords["pixel_size_A"].values)
    if len(sizes_A) > 1:
        rule = "images must have one pixel size"
        raise StackError(sentence(what, rule, sizes_A.tolist(), remedy))
    return float(sizes_A[0])


def micrograph_names(stack: xr.DataArray) -> npt.NDArray[Any]:
    """Return what each micrograph is called in a table of picks; all are different.

    Images of one name, as the sections of a file are, get their ``image_id`` before it, from 1 as
    RELION counts.

    Raises
    ------
    StackError
        If two would have one name.

    Examples
    --------
    >>> micrograph_names(as_stack(np.zeros((2, 8, 8)))).tolist()
    ['image_000000', 'image_000001']
    >>> same = as_stack(np.zeros((2, 8, 8))).assign_coords(micrograph=("image", ["m.mrc"] * 2))
    >>> micrograph_names(same).tolist()
    ['000001@m.mrc', '000002@m.mrc']
    """
    ids = image_ids(stack).tolist()
    if "micrograph" not in stack.coords:
        return _all_different([f"image_{number:06d}" for number in ids])
    names = np.broadcast_to(stack.coords["micrograph"].values.astype(str), stack.shape[:1]).tolist()
    times = Counter(names)
    numbered = zip(ids, names, strict=True)
    return _all_different(
        [f"{i + 1:06d}@{name}" if times[name] > 1 else name for i, name in numbered]
    )


def _all_different(names: list[str]) -> npt.NDArray[Any]:
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        rule = f"micrographs must differ in micrograph or image_id, but {times} are {name}"
        remedy = 'Number them: stack.assign_coords(image_id=("image", range(len(stack)))).'
        raise StackError(sentence("stack", rule, remedy=remedy))
    return np.array(names)


def optics_of(stack: xr.DataArray) -> Optics | None:
    """Return what the contrast transfer of the images depends on; None where they have none.

    They have none where no defocus is known, and where `ctf_state` is "corrected". Where it is
    "phase_flipped", the CTF is its absolute value.

    Parameters
    ----------
    stack
        Images.

    Returns
    -------
    Optics or None
        A number for what is the same in all images, an array along ``image`` for the rest.

    Raises
    ------
    StackError
        If there is a defocus without the pixel size or what is to be known of the microscope, if
        one of these is not finite or is not possible, as a voltage of 0, or if RELION has flagged
        images as multiplied by the CTF, or some of them, but not all, as phase-flipped.

    Examples
    --------
    >>> import dask.array as da
    >>> attrs = {"pixel_size_A": 2, "voltage_kV": 300, "spherical_aberration_mm": 2.7}
    >>> stack = build_stack(da.zeros((2, 8, 8)), {"defocus_u_A": [1e4, 2e4]}, attrs)
    >>> optics_of(stack.assign_attrs(amplitude_contrast=0.1)).defocus_v_A
    array([10000., 20000.])
    """
    if "defocus_u_A" not in stack.coords:
        return None
    state = ctf_state(stack)
    if state == CORRECTED:
        return None
    known = {name: stack.attrs[name] for name in OPTICS if name in stack.attrs}
    known |= {name: stack.coords[name].values for name in OPTICS if name in stack.coords}
    known.setdefault("defocus_v_A", known["defocus_u_A"])
    missing = [name for name in OPTICS_NEEDED if name not in known]
    if missing:
        rule = f"has defocus_u_A, but for the CTF {', '.join(missing)} must be known as well"
        remedy = f"Set it: stack.attrs[{missing[0]!r}] = ..."
        raise StackError(sentence("stack", rule, remedy=remedy))
    _check_possible(known)
    values = {name: _one_or_all(value) for name, value in known.items()}
    return Optics(**values, phase_flipped=state == PHASE_FLIPPED)


def ctf_state(stack: xr.DataArray) -> str | None:
    """Return what has been done about the CTF of images; None if nothing has.

    Parameters
    ----------
    stack
        Images.

    Returns
    -------
    str or None
        Attribute ``ctf_state``, "corrected" or "phase_flipped"; where it is not there, the latter
        if RELION's flag ``rlnCtfDataArePhaseFlipped`` is set for all images.

    Raises
    ------
    StackError
        If it is neither, or differs from image to image, or RELION has flagged images as multiplied
        by the CTF.

    Examples
    --------
    >>> ctf_state(as_stack(np.zeros((3, 4, 4))).assign_attrs(ctf_state="corrected"))
    'corrected'
    """
    state = stack.attrs.get("ctf_state")
    if state is not None:
        rule = f"attribute ctf_state must be {CORRECTED!r} or {PHASE_FLIPPED!r}, if it is there"
        if state not in (CORRECTED, PHASE_FLIPPED):
            raise StackError(sentence("stack", rule, state))
        return str(state)
    if premultiplied := [word for word, is_set in _flags(stack, PREMULTIPLIED_FLAG) if is_set]:
        rule = "images must not be corrected for the CTF already, but "
        rule += f"{PREMULTIPLIED_FLAG} is {premultiplied[0]}"
        remedy = "Open them as they were recorded, or set it to 0 in their .star if they are."
        raise StackError(sentence("stack", rule, remedy=remedy))
    flipped = [is_set for _, is_set in _flags(stack, FLIPPED_FLAG)]
    if any(flipped) and not all(flipped):
        rule = f"{FLIPPED_FLAG} must be the same for all images where the CTF is used"
        raise StackError(sentence("stack", rule, "0 and 1", "Select images of either kind."))
    return PHASE_FLIPPED if any(flipped) else None


def _flags(stack: xr.DataArray, label: str) -> list[tuple[Any, bool]]:
    """Values of a label of the images, or else of their optics groups, and whether they say yes."""
    if label in stack.coords:
        return _read_flags(np.unique(stack.coords[label].values))
    groups = stack.attrs.get("relion", {}).get("optics", {})
    values = groups.get(label, [])
    if "optics_group" not in stack.coords or "rlnOpticsGroup" not in groups:
        return _read_flags(values)
    used = set(np.unique(stack.coords["optics_group"].values).tolist())
    pairs = zip(groups["rlnOpticsGroup"], values, strict=bool(values))
    return _read_flags(value for number, value in pairs if number in used)


def _read_flags(values: Iterable[Any]) -> list[tuple[Any, bool]]:
    return [(value, str(value) not in ("0", "0.0")) for value in values]


def _check_possible(known: Mapping[str, Any]) -> None:
    """Refuse what there is no CTF for, naming the first image."""
    finite: Rule = ("be finite", np.isfinite)
    for name, value in known.items():
        values = np.ravel(np.asarray(value, np.float64))
        for rule, is_possible in (finite, POSSIBLE.get(name, finite)):
            bad = np.flatnonzero(~is_possible(values))
            if len(bad):
                where = f"{name} of image {bad[0]}" if np.ndim(value) else name
                rule = f"{where} must {rule} for the CTF"
                remedy = "Set it, or leave these images out."
                raise StackError(sentence("stack", rule, float(values[bad[0]]), remedy))


def _one_or_all(value: Any) -> Any:
    values = np.asarray(value, np.float64)
    same = values.ndim == 0 or bool((values == values[0]).all())
    return float(values.ravel()[0]) if same else values


def is_whitened(stack: xr.DataArray) -> bool:
    """Whether the noise of the images has been made white, and not been coloured again.

    Examples
    --------
    >>> stack = as_stack(np.zeros((1, 4, 4)))
    >>> is_whitened(stack), is_whitened(stack.assign_attrs(add_provenance({}, "whiten", {})))
    (False, True)
    """
    steps = [entry["step"] for entry in stack.attrs.get("provenance", ())]
    return [step for step in steps if step in ("whiten", "unwhiten")][-1:] == ["whiten"]


def add_provenance(
    attrs: Mapping[str, Any], step: str, parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return ``attrs`` with one more entry in its list ``provenance``.

    Examples
    --------
    >>> add_provenance({}, "bm3d", {"sigma": 2.0})["provenance"]
    [{'step': 'bm3d', 'parameters': {'sigma': 2.0}}]
    """
    history = [*attrs.get("provenance", ()), {"step": step, "parameters": dict(parameters)}]
    return {**attrs, "provenance": history}


def step_parameters(step: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of an entry of ``provenance``, to be read: None is left out.

    Of a model, only what the step's own parameters do not say is told.

    Examples
    --------
    >>> parameters = {"strength": 1.0, "sigma": None, "model": {"strength": 1.0, "n_images": 9}}
    >>> step_parameters({"step": "ksvd", "parameters": parameters})
    {'strength': '1', 'model.n_images': '9'}
    """
    given = {name: value for name, value in step["parameters"].items() if value is not None}
    own = {name: value for name, value in given.items() if not isinstance(value, Mapping)}
    # What the method is called is what the step is called.
    said = own | {"method": step["step"]}
    for name, inner in given.items():
        if isinstance(inner, Mapping):
            own |= {f"{name}.{key}": v for key, v in inner.items() if said.get(key) != v}
    return {name: value_text(value) for name, value in own.items()}


def value_text(value: Any) -> str:
    """Write a parameter, numbers with six digits at most.

    Examples
    --------
    >>> value_text(0.1 + 0.2), value_text(-0.0), value_text(5), value_text("auto")
    ('0.3', '0', '5', 'auto')
    """
    # Without the sign of -0.
    return f"{value + 0.0:.6g}" if isinstance(value, float | np.floating) else str(value)
