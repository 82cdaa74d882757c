"""Files of images: what each says of itself, and images picked from many of them."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt

from emdask.errors import FormatError, StackError
from emdask.lazy import read_images
from emdask.stack import choose_chunk

logger = logging.getLogger(__name__)

Images = npt.NDArray[Any]

# Suffix to the module whose ``inspect_file(path)`` gives an `ImageFile`.
IMAGE_FORMATS = {
    ".mrc": "emdask.io.mrc",
    ".mrcs": "emdask.io.mrc",
    ".map": "emdask.io.mrc",
    ".st": "emdask.io.mrc",
    ".tif": "emdask.io.tiff",
    ".tiff": "emdask.io.tiff",
}
COMPRESSED = (".gz", ".bz2")
THREADS = 16  # headers are small: on a network file system their time is waiting
NAMED_AT_MOST = 5


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """One file of images.

    Parameters
    ----------
    path
        The file.
    read
        ``(source, start, stop) -> images``, in the byte order of the machine.
    source
        What ``read`` needs, small and picklable.
    shape
        (n, h, w).
    dtype
        Type of the pixels that ``read`` gives.
    n_whole
        Images that the file really holds; below ``n`` where it is truncated.
    pixel_size_A
        Edge of a pixel, Å; None where the file does not say.
    what_is_short
        Sentence for a truncated file.
    compression
        Name of the compression that must be undone from the file's start; "" for none.
    """

    path: str
    read: Callable[[Any, int, int], Images]
    source: Any
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    n_whole: int
    pixel_size_A: float | None = None
    what_is_short: str = ""
    compression: str = ""

    def check_whole(self, stop: int) -> None:
        """Raise `FormatError` unless the images before ``stop`` are in the file."""
        if stop > self.n_whole:
            remedy = "It is truncated; copy it again"
            if self.n_whole:
                remedy += f" or pass images=slice(0, {self.n_whole}) (--images 0:{self.n_whole})"
            raise FormatError(f"{self.what_is_short} {remedy}.")


@dataclass(frozen=True, kw_only=True)
class PickedImages:
    """Images picked from files, in any order.

    Parameters
    ----------
    files
        The files.
    file_of
        File of each image, shape (n,), the smallest unsigned type that holds it.
    index_of
        Position of each image in its file, from 0, shape (n,).
    shape
        (n, h, w).
    dtype
        Common type of the pixels.
    """

    files: tuple[ImageFile, ...]
    file_of: npt.NDArray[Any]
    index_of: npt.NDArray[Any]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def __dask_tokenize__(self) -> str:
        # Field by field, Dask takes a second over some thousand files.
        return hashlib.sha256(pickle.dumps(self)).hexdigest()


def pick_images(
    files: Sequence[ImageFile], file_of: npt.ArrayLike, index_of: npt.ArrayLike
) -> PickedImages:
    """Join images of many files to one source for `read_picked`.

    Raises
    ------
    StackError
        If the images differ in size.
    """
    check_same_size(files)
    files_of, indices = (_small(np.asarray(numbers)) for numbers in (file_of, index_of))
    return PickedImages(
        files=tuple(files),
        file_of=files_of,
        index_of=indices,
        shape=(len(files_of), *files[0].shape[1:]),
        dtype=np.result_type(*{file.dtype for file in files}),
    )


def _small(numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Hold a million of them in 2 MB: they are a part of the graph."""
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def read_picked(source: PickedImages, start: int, stop: int) -> Images:
    """Read images ``start .. stop``; neighbours in a file in one read, wherever they stand."""
    file_of = source.file_of[start:stop].astype(np.int64)
    index_of = source.index_of[start:stop].astype(np.int64)
    images = np.empty((stop - start, *source.shape[1:]), source.dtype)
    order = np.lexsort((index_of, file_of))
    breaks = (np.diff(file_of[order]) != 0) | (np.diff(index_of[order]) != 1)
    for run in np.split(order, np.flatnonzero(breaks) + 1):
        if len(run):
            file, first = source.files[file_of[run[0]]], int(index_of[run[0]])
            images[run] = file.read(file.source, first, first + len(run))
    return images


def read_file(file: ImageFile, chunks: int | str) -> da.Array:
    """Make a lazy array of all images of a file, shape (n, h, w)."""
    return read_images(
        file.read,
        file.source,
        shape=file.shape,
        dtype=file.dtype,
        chunk=choose_chunk(file.shape, file.dtype, chunks),
        name=_task_name([file]),
    )


def read_files(
    files: Sequence[ImageFile], file_of: npt.ArrayLike, index_of: npt.ArrayLike, chunks: int | str
) -> da.Array:
    """Make a lazy array of images picked from files, shape (n, h, w); see `pick_images`."""
    picked = pick_images(files, file_of, index_of)
    return read_images(
        read_picked,
        picked,
        shape=picked.shape,
        dtype=picked.dtype,
        chunk=choose_chunk(picked.shape, picked.dtype, chunks),
        name=_task_name(files),
    )


def _task_name(files: Sequence[ImageFile]) -> str:
    """Name the tasks for the dashboard, as "read-mrc"."""
    return "read-" + IMAGE_FORMATS[find_suffix(files[0].path)].rpartition(".")[2]


def inspect_files(paths: Sequence[str | os.PathLike[str]]) -> list[ImageFile]:
    """Read what each file says of itself, many at a time.

    Raises
    ------
    FileNotFoundError, FormatError
        For the first file, in their order, that is absent or is no file of images.
    """
    if len(paths) == 1:
        files = [inspect_file(paths[0])]
    else:
        with ThreadPoolExecutor(THREADS) as pool:
            files = list(pool.map(inspect_file, paths))
    _note_packed([file for file in files if file.compression])
    return files


def _note_packed(packed: Sequence[ImageFile]) -> None:
    if packed:
        logger.warning(
            "%s: a %s file cannot be sliced lazily: every block unpacks it from its start%s. "
            "Unpack large files first.",
            packed[0].path,
            packed[0].compression,
            f" ({len(packed)} such files)" if len(packed) > 1 else "",
        )


def inspect_file(path: str | os.PathLike[str]) -> ImageFile:
    """Read what a file of images says of itself; no pixels.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is a folder, is empty, or its suffix or its content is that of no known format.
    """
    name = os.fspath(path)
    module = IMAGE_FORMATS.get(find_suffix(name))
    if module is None:
        raise FormatError(f"{name}: {unknown_suffix(IMAGE_FORMATS)}")
    check_file(name)
    file: ImageFile = importlib.import_module(module).inspect_file(name)
    return file


def find_suffix(path: str) -> str:
    """Return the suffix that tells the format, in lower case.

    Examples
    --------
    >>> find_suffix("a.b/stack.MRCS.gz")
    '.mrcs'
    """
    name = Path(path.rstrip(os.sep))
    if name.suffix.lower() in COMPRESSED:
        name = name.with_suffix("")
    return name.suffix.lower()


def unknown_suffix(known: Iterable[str]) -> str:
    """Say which suffixes there are."""
    packed = " or ".join(COMPRESSED)
    return f"the suffix must be one of {', '.join(known)} (MRC also with {packed} after it)."


def check_file(path: str) -> None:
    """Raise a sentence unless the path is a file with something in it."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file. {_near(path)}".rstrip())
    if os.path.isdir(path):
        remedy = f'Pass a pattern of its files, as "{os.path.join(path, "*.mrc")}".'
        raise FormatError(f"{path}: must be a file; it is a folder. {remedy}")
    if os.path.getsize(path) == 0:
        raise FormatError(f"{path}: the file is empty (0 bytes). Copy it again.")


def _near(path: str) -> str:
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        return f"There is no folder {folder} either."
    name = os.path.basename(path)
    close = difflib.get_close_matches(name, os.listdir(folder), n=3, cutoff=0.8)
    return f"Did you mean {' or '.join(close)}?" if close else ""


def check_same_size(files: Sequence[ImageFile]) -> None:
    """Raise `StackError` naming the files whose images have another size than most."""
    sizes = Counter(file.shape[1:] for file in files)
    if len(sizes) == 1:
        return
    usual = sizes.most_common(1)[0][0]
    odd = [file for file in files if file.shape[1:] != usual]
    named = ", ".join(f"{file.path} ({_size(file.shape[1:])})" for file in odd[:NAMED_AT_MOST])
    more = f" and {len(odd) - NAMED_AT_MOST} more" if len(odd) > NAMED_AT_MOST else ""
    rule = f"all images must have one size; {sizes[usual]} of {len(files)} files are {_size(usual)}"
    raise StackError(
        f"stack: {rule}; got {named}{more}. Leave those out, or open them on their own."
    )


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"
