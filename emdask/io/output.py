"""What every format of output has in common: its record, its pixels, its files."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import sentence
from emdask.errors import ParameterError, StackError

Images = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user may ask of an output.

    Parameters
    ----------
    dtype
        Type of a pixel; None keeps the stack's.
    compression
        "auto", "none", "lz4" or "zstd"; of Zarr only.
    """

    dtype: np.dtype[Any] | None = None
    compression: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Output:
    """One format of output. All functions are at module level, so that workers can have them.

    Parameters
    ----------
    task
        Name of the tasks that write.
    arrange
        ``stack -> stack`` in the chunks that the format can write.
    plan
        ``(stack, folder, name, options) -> target``: a small picklable record with ``path``,
        ``dtype``, ``compression`` and ``n_bytes``; checks all that can be checked and writes
        nothing. ``folder`` is where the output will be made, ``name`` what it will be called.
    create
        ``(target, stack)``: write all but the pixels into the folder.
    write
        ``(target, images, start)``: write one chunk; from any worker.
    find_done
        ``(target, starts, sizes) -> positions`` of the chunks that are whole.
    holds
        ``(target, images, start) -> bool``: whether the output has just these pixels.
    is_like
        ``(made, found) -> bool``: whether the second target is whole and has the metadata of the
        first, of which no more than `create` was called.
    finish
        ``(target, starts)``: what is left to do once all chunks are there.
    products
        ``name -> names`` that appear beside each other at the end, the images last.
    """

    task: str
    arrange: Callable[[xr.DataArray], xr.DataArray]
    plan: Callable[[xr.DataArray, Path, str, Options], Any]
    create: Callable[[Any, xr.DataArray], None]
    write: Callable[[Any, Images, int], None]
    find_done: Callable[[Any, Sequence[int], Sequence[int]], set[int]]
    holds: Callable[[Any, Images, int], bool]
    is_like: Callable[[Any, Any], bool]
    finish: Callable[[Any, Sequence[int]], None]
    products: Callable[[str], tuple[str, ...]]


def check_cast(source: np.dtype[Any], target: np.dtype[Any]) -> None:
    """Refuse a conversion that would round or wrap grey levels.

    Raises
    ------
    ParameterError
        If it is one from real numbers to integers, or to integers that hold less.

    Examples
    --------
    >>> check_cast(np.dtype("float64"), np.dtype("float16"))
    """
    to_real = target.kind == "f"
    if not to_real and not np.can_cast(source, target, "safe"):
        remedy = "Round and scale the stack first, or take a wider type."
        rule = f"dtype must hold the stack's {source} without rounding or wrapping"
        raise ParameterError(sentence("save_stack", rule, str(target), remedy))


def cast_images(images: Images, dtype: npt.DTypeLike, start: int) -> Images:
    """Return the images in the type of the file; refuse what becomes infinite by it.

    Parameters
    ----------
    images : array, shape (n, h, w)
        A block.
    dtype
        Type of a pixel in the file.
    start
        Position of the block's first image, for the message.

    Raises
    ------
    StackError
        If a finite pixel is beyond the range of ``dtype``.

    Examples
    --------
    >>> cast_images(np.ones((1, 2, 2)), "<f4", 0).dtype
    dtype('float32')
    """
    dtype = np.dtype(dtype)
    if images.dtype == dtype:
        return np.ascontiguousarray(images)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(images, dtype)
    narrower = dtype.kind == "f" and not np.can_cast(images.dtype, dtype, "safe")
    if narrower and (lost := np.isinf(cast) & np.isfinite(images)).any():
        first = int(np.flatnonzero(lost.any(axis=(1, 2)))[0])
        rule = (
            f"pixels of image {start + first} must lie within ±{np.finfo(dtype).max:g} for {dtype}"
        )
        largest = float(np.abs(images[first][lost[first]]).max())
        raise StackError(sentence("save_stack", rule, largest, "Scale the stack first."))
    return cast


def replace_file(path: Path, parts: Sequence[Any], drafts: Path) -> None:
    """Write a file under another name, then give it its own: it is whole or not there.

    Parameters
    ----------
    path
        The file.
    parts
        Contents, bytes-like.
    drafts
        Folder for the file while it is written, on the same file system.
    """
    # No parents: a task that outlives its job must not make the job's folder again.
    drafts.mkdir(exist_ok=True)
    draft = drafts / uuid.uuid4().hex
    try:
        with open(draft, "wb") as file:
            file.writelines(parts)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def replace_path(draft: Path, path: Path) -> None:
    """Give a draft, a file or a folder, its name; what has the name is removed after that.

    Parameters
    ----------
    draft
        What is whole, on the same file system.
    path
        Its name. A folder cannot take the place of another: that steps aside.
    """
    if not path.is_dir():
        os.replace(draft, path)
        return
    aside = path.with_name(f"{path.name}.replaced")
    remove_path(aside)
    os.replace(path, aside)
    os.replace(draft, path)
    remove_path(aside)


def remove_path(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    remove: Callable[..., None] = shutil.rmtree if path.is_dir() else os.unlink
    if path.exists():
        remove(path)
