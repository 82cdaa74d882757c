"""Open files of images as one lazy stack."""

from __future__ import annotations

import bisect
import glob
import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_choice, check_number, require, sentence
from emdask.errors import FormatError, StackError
from emdask.io.files import (
    IMAGE_FORMATS,
    ImageFile,
    check_file,
    find_suffix,
    inspect_files,
    read_file,
    read_files,
    unknown_suffix,
)
from emdask.stack import KINDS, build_stack

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]

# Suffix to the function that opens a whole stack by itself, as "module:function".
STACK_FORMATS = {
    ".star": "emdask.io.star:open_star",
    ".zarr": "emdask.io.zarr:open_zarr",
}
LARGEST_PARTICLE_PX = 1024


def open_stack(
    path_or_paths: Paths,
    *,
    chunks: int | str = "auto",
    images: slice | None = None,
    kind: str | None = None,
    pixel_size_A: float | None = None,
    project_folder: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """Open micrographs or particle images, lazily: headers and tables are read, pixels are not.

    Parameters
    ----------
    path_or_paths
        A file, a pattern such as ``"micrographs/*.mrc"``, or a list of them: MRC (``.mrc .mrcs .map
        .st``, also ``.gz`` and ``.bz2``), TIFF, one RELION ``.star``, or one ``.zarr`` store. Many
        files must hold images of one size and are joined in the order given, a pattern's in that of
        their names. A volume or a movie is a stack of its sections.
    chunks
        Images in a block, or "auto" (see `emdask.stack.choose_chunk`).
    images
        Which images to take, as ``slice(0, 610)``; also the way to what is left of a truncated
        file.
    kind
        "micrographs" or "particles". Without it a table says; else files of one image, and images
        of more than 1024 px, are micrographs, and other stacks are particles.
    pixel_size_A
        Edge of a pixel, Å, where the files do not say or are wrong.
    project_folder
        Folder that the paths in a STAR file start from. Without it they are looked for from the
        STAR file's folder, then from each folder above it, then from the working directory.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        Pixels of the type that is stored, with what is known of each image as coordinates
        (`emdask.variables`) and what holds for all in ``attrs``: ``kind``, ``pixel_size_A`` ...

    Raises
    ------
    FileNotFoundError
        If there is no such file, or no file of that pattern.
    FormatError
        If a file is truncated, damaged, or not of its format.
    StackError
        If images differ in size.
    ParameterError
        If a parameter is out of range.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from emdask.io.mrc import build_header
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.mrcs"
    >>> _ = path.write_bytes(build_header((2, 8, 6), "int16", 1.5) + bytes(2 * 8 * 6 * 2))
    >>> stack = open_stack(path)
    >>> dict(stack.sizes), stack.attrs
    ({'image': 2, 'y': 8, 'x': 6}, {'kind': 'particles', 'pixel_size_A': 1.5})
    """
    _check_parameters(images, kind, pixel_size_A)
    paths = find_paths(path_or_paths)
    suffixes = {find_suffix(path) for path in paths}
    if suffixes & STACK_FORMATS.keys():
        stack = _open_by_itself(paths, chunks, images, project_folder)
    elif unknown := sorted(suffixes - IMAGE_FORMATS.keys()):
        path = next(path for path in paths if find_suffix(path) == unknown[0])
        check_file(path)
        raise FormatError(f"{path}: {unknown_suffix([*IMAGE_FORMATS, *STACK_FORMATS])}")
    else:
        stack = _open_image_files(paths, chunks, images)
    given = {"kind": kind, "pixel_size_A": pixel_size_A}
    given = {name: value for name, value in given.items() if value is not None}
    return stack.drop_vars(given, errors="ignore").assign_attrs(given) if given else stack


def _check_parameters(images: object, kind: str | None, pixel_size_A: object) -> None:
    rule = "images must be a slice, as slice(0, 100)"
    require(images is None or isinstance(images, slice), "open_stack", rule, images)
    if kind is not None:
        check_choice("open_stack", "kind", kind, KINDS)
    if pixel_size_A is not None:
        check_number("open_stack", "pixel_size_A", pixel_size_A, low=1e-3)


def find_paths(path_or_paths: Paths) -> list[str]:
    """List the files that a path, a pattern, or a list of them means.

    Raises
    ------
    FileNotFoundError
        If a pattern fits no file, or a list is empty.

    Examples
    --------
    >>> find_paths(["b.mrc", "a.mrc"])
    ['b.mrc', 'a.mrc']
    """
    if not isinstance(path_or_paths, str | os.PathLike):
        paths = [path for entry in path_or_paths for path in find_paths(entry)]
        if not paths:
            raise FileNotFoundError("open_stack: there must be at least one file; got none.")
        return paths
    path = os.path.expanduser(os.fspath(path_or_paths))
    if not glob.has_magic(path) or os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        folder = os.path.abspath(os.path.dirname(path))
        raise FileNotFoundError(f"{path}: no file fits this pattern (working from {folder}).")
    return found


def _open_by_itself(
    paths: Sequence[str],
    chunks: int | str,
    images: slice | None,
    project_folder: str | os.PathLike[str] | None,
) -> xr.DataArray:
    """Open a STAR file or a Zarr store."""
    if len(paths) > 1:
        rule = f"{', '.join(STACK_FORMATS)} files are opened one at a time"
        raise FormatError(f"open_stack: {rule}; got {len(paths)} files.")
    suffix = find_suffix(paths[0])
    module, name = STACK_FORMATS[suffix].split(":")
    if not os.path.exists(paths[0]) or suffix == ".star":
        check_file(paths[0])
    extra = {"project_folder": project_folder} if suffix == ".star" else {}
    opener = getattr(importlib.import_module(module), name)
    stack: xr.DataArray = opener(paths[0], chunks=chunks, **extra)
    return stack if images is None else stack.isel(image=images)


def _open_image_files(
    paths: Sequence[str], chunks: int | str, images: slice | None
) -> xr.DataArray:
    files = inspect_files(paths)
    counts = [file.shape[0] for file in files]
    _check_whole(files, counts, images)
    file_of = np.repeat(np.arange(len(files)), counts)
    attrs = {"kind": _guess_kind(files)}
    coords: dict[str, Any] = {"image_id": np.arange(len(file_of))}
    if len(files) > 1 or attrs["kind"] == "micrographs":
        coords["micrograph"] = np.array([file.path for file in files])[file_of]
    sizes_A = [file.pixel_size_A for file in files]
    attrs, coords = _place_pixel_size(sizes_A, file_of, attrs, coords)
    if len(files) == 1:
        pixels = read_file(files[0], chunks)
    else:
        starts = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
        pixels = read_files(files, file_of, np.arange(len(file_of)) - starts, chunks)
    stack = build_stack(pixels, coords, attrs)
    return stack if images is None else stack.isel(image=images)


def _check_whole(files: Sequence[ImageFile], counts: Sequence[int], images: slice | None) -> None:
    """Refuse images that truncated files do not hold."""
    first = 0
    wanted = range(sum(counts))[images or slice(None)]
    if not wanted:
        raise StackError(sentence("open_stack", "images must select at least one", images))
    rising = wanted if wanted.step > 0 else wanted[::-1]
    for file, count in zip(files, counts, strict=True):
        if file.n_whole < count:
            n_before = bisect.bisect_left(rising, first + count)
            last = rising[n_before - 1] if n_before else -1
            file.check_whole(last - first + 1)
        first += count


def _guess_kind(files: Sequence[ImageFile]) -> str:
    n_images, height, width = files[0].shape
    is_one = n_images == 1 and find_suffix(files[0].path) != ".mrcs"
    return "micrographs" if is_one or max(height, width) > LARGEST_PARTICLE_PX else "particles"


def _place_pixel_size(
    sizes_A: Sequence[float | None],
    file_of: npt.NDArray[Any],
    attrs: dict[str, Any],
    coords: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One size for all is an attribute; sizes that differ are a coordinate, NaN where unknown."""
    if len(set(sizes_A)) > 1:
        known = np.array([np.nan if size is None else size for size in sizes_A])
        return attrs, {**coords, "pixel_size_A": known[file_of]}
    return (attrs if sizes_A[0] is None else {**attrs, "pixel_size_A": sizes_A[0]}), coords
