"""Open what images are compared with: volumes or images of the particle, by class."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import sentence
from emdask.errors import FormatError, StackError
from emdask.io import open_stack, open_volume
from emdask.io.volumes import holds_volume
from emdask.kernels.references import References
from emdask.stack import as_stack, one_pixel_size
from emdask.variables import ANGLES
from emdask.volumes import VOLUME_DIMS, as_volume

# Beyond, shells at Nyquist of a box of 100 px lie a quarter of a shell apart.
SAME_SIZE = 0.005
RESAMPLE = "Pad, crop or resample them to the images'."


def open_references(references: Any, stack: xr.DataArray, what: str) -> References:
    """Open what the images of a stack are compared with, and see that it goes with them.

    Parameters
    ----------
    references
        A volume or a sequence of volumes, one a class: paths as of `emdask.open_volume`,
        `xarray.DataArray` (z, y, x), or cubes. Or images: a path as of `emdask.open_stack`, a stack
        (image, y, x) or an array that is no cube, with coordinates ``class_id``, from 1 (else all
        are of one class), and ``rot_deg``, ``tilt_deg`` and ``psi_deg`` where they are known. All
        light on dark, and read into memory. What says no pixel size is taken to have the images'.
    stack : xarray.DataArray, dims (image, y, x)
        The images. Where they say no pixel size, it is taken to be the references'.
    what
        The verb that errors name.

    Returns
    -------
    References
        Its ``pixel_size_A`` is set.

    Raises
    ------
    StackError
        If boxes or pixel sizes are not those of the images, no pixel size is known, classes are not
        numbered from 1, or they are no volumes or images of finite pixels.
    FormatError, FileNotFoundError
        If a file cannot be read.

    Examples
    --------
    >>> images = as_stack(np.zeros((5, 8, 8))).assign_attrs(pixel_size_A=2.0)
    >>> open_references([np.ones((8, 8, 8)), np.eye(8) * np.ones((8, 1, 1))], images, "classify")
    References(pixel_size_A=2.0)
    """
    images_A = one_pixel_size(stack, what, "Take the images of each size by themselves.")
    several = isinstance(references, Sequence) and not isinstance(references, str)
    opened = [_open(one, images_A, what) for one in (references if several else [references])]
    are_volumes = [one.dims == VOLUME_DIMS for one in opened]
    if not opened or (len(opened) > 1 and not all(are_volumes)):
        rule = "references must be a volume, a list of volumes, or one stack of images"
        remedy = "Put all images into one stack; its coordinate class_id tells classes."
        raise StackError(sentence(what, rule, [one.dims for one in opened], remedy))
    for one in opened:
        _check_box(one.shape, stack.shape[1:], what)
    size_A = _check_pixel_sizes(opened, images_A, what)
    if all(are_volumes):
        return References(volumes=tuple(one.values for one in opened), pixel_size_A=size_A)
    return _read_images(opened[0], size_A, what)


def _open(reference: Any, images_A: float | None, what: str) -> xr.DataArray:
    """A volume in memory or a stack, be its pixel size known or not."""
    if isinstance(reference, str | os.PathLike):
        return _open_file(reference)
    if not isinstance(reference, xr.DataArray):
        values = np.asarray(reference)
        is_cube = values.ndim == 3 and len(set(values.shape)) == 1
        reference = xr.DataArray(values, dims=VOLUME_DIMS) if is_cube else as_stack(values)
    if reference.dims != VOLUME_DIMS:
        return as_stack(reference)
    size_A = reference.attrs.get("pixel_size_A", images_A)
    if size_A is None:
        rule = "a pixel size must be known, of the references or of the images, for shifts in Å"
        remedy = "Set it: stack.assign_attrs(pixel_size_A=...), or that of the volume."
        raise StackError(sentence(what, rule, remedy=remedy))
    return as_volume(reference, size_A)


def _open_file(path: str | os.PathLike[str]) -> xr.DataArray:
    if not holds_volume(path):
        return as_stack(open_stack(path))
    try:
        return open_volume(path)
    except FormatError as error:
        if "does not say its pixel size" not in str(error):
            raise
        rule = "the file does not say its pixel size"
        remedy = "Open it yourself: open_volume(path, pixel_size_A=...)."
        raise FormatError(sentence(os.fspath(path), rule, remedy=remedy)) from error


def _check_box(shape: tuple[int, ...], images: tuple[int, ...], what: str) -> None:
    rule = f"references must have the box of the images, {images[1]} x {images[0]} pixels"
    if shape[-2:] != images:
        raise StackError(sentence(what, rule, shape, RESAMPLE))


def _check_pixel_sizes(opened: Sequence[xr.DataArray], images_A: float | None, what: str) -> float:
    remedy = "Take references of one size."
    sizes_A = [one_pixel_size(one, f"{what}: references", remedy) for one in opened]
    known_A = [size_A for size_A in (images_A, *sizes_A) if size_A is not None]
    if not known_A:
        rule = "a pixel size must be known, of the references or of the images, for shifts in Å"
        remedy = "Set it: stack.assign_attrs(pixel_size_A=...)."
        raise StackError(sentence(what, rule, remedy=remedy))
    for size_A in known_A:
        if not math.isclose(size_A, known_A[0], rel_tol=SAME_SIZE):
            rule = f"references must have the pixel size of the images, {known_A[0]:g} Å, to 0.5 %"
            raise StackError(sentence(what, rule, f"{size_A:g} Å", RESAMPLE))
    return known_A[0]


def _read_images(stack: xr.DataArray, size_A: float, what: str) -> References:
    images: npt.NDArray[np.float32] = np.asarray(stack.values, np.float32)
    bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2)))
    if len(bad):
        rule = f"pixels of references must be finite; image {bad[0]} has others"
        raise StackError(sentence(what, rule, remedy="Leave such images out."))
    known = all(name in stack.coords for name in ANGLES)
    angles = [np.asarray(stack.coords[name].values, np.float64) for name in ANGLES if known]
    # Those of a single image of a stack are numbers.
    angles_deg = np.stack([np.broadcast_to(a, len(images)) for a in angles], 1) if known else None
    if angles_deg is not None and not np.isfinite(angles_deg).all():
        rule = f"{', '.join(ANGLES)} of references must be finite, where they are known"
        remedy = f"Drop them: references.drop_vars({list(ANGLES)})."
        raise StackError(sentence(what, rule, remedy=remedy))
    return References(
        images=images,
        class_index=_find_classes(stack, what),
        angles_deg=angles_deg,
        pixel_size_A=size_A,
    )


def _find_classes(stack: xr.DataArray, what: str) -> npt.NDArray[np.int64]:
    """Class of each image, from 0."""
    ids = stack.coords["class_id"].values if "class_id" in stack.coords else 1
    class_id = np.broadcast_to(np.asarray(ids), stack.shape[:1])
    found = np.unique(class_id).tolist()
    if found != list(range(1, len(found) + 1)):
        rule = "class_id of references must run from 1, and each class must have an image"
        remedy = 'Number them anew: references.assign_coords(class_id=("image", ...)).'
        raise StackError(sentence(what, rule, found[:10], remedy))
    return class_id.astype(np.int64) - 1
