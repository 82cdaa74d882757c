"""TIFF files: ``.tif``, ``.tiff``, each page an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.errors import FormatError
from emdask.io.files import ImageFile

A_PER_INCH = 2.54e8
A_PER_CM = 1e8
# A resolution of a screen or a printer says nothing of the specimen.
LARGEST_PIXEL_A = 1e4


@dataclass(frozen=True, kw_only=True)
class TiffSource:
    """Where the pages of a TIFF file are.

    Parameters
    ----------
    path
        The file.
    shape
        (n, h, w).
    dtype
        Type of a pixel.
    modified_ns
        When the file was last changed.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    modified_ns: int


def inspect_file(path: str | os.PathLike[str]) -> ImageFile:
    """Read what a TIFF file says of itself.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    ImageFile

    Raises
    ------
    FormatError
        If it is no TIFF, its pages differ, or a pixel is no single real number.
    """
    import tifffile

    name = os.fspath(path)
    try:
        with tifffile.TiffFile(name) as tiff:
            shape, dtype = _common_page(name, tiff)
            size_A = _pixel_size(tiff)
    except (tifffile.TiffFileError, ValueError, TypeError, KeyError, IndexError, OSError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{name}: not a TIFF file that can be read: {error}.") from error
    return ImageFile(
        path=name,
        read=read_block,
        # Workers may run in another folder.
        source=TiffSource(
            path=os.path.abspath(name),
            shape=shape,
            dtype=dtype,
            modified_ns=os.stat(name).st_mtime_ns,
        ),
        shape=shape,
        dtype=dtype,
        n_whole=shape[0],
        pixel_size_A=size_A,
    )


def read_block(source: TiffSource, start: int, stop: int) -> npt.NDArray[Any]:
    """Read pages ``start .. stop``, shape (stop - start, h, w).

    Raises
    ------
    FormatError
        If a page cannot be decoded.
    """
    import tifffile

    images = np.empty((stop - start, *source.shape[1:]), source.dtype)
    try:
        with tifffile.TiffFile(source.path) as tiff:
            if len(tiff.pages) < source.shape[0]:
                _read_contiguous(tiff, source, start, images)
            else:
                for i in range(start, stop):
                    images[i - start] = tiff.pages[i].asarray(maxworkers=1)
    except (tifffile.TiffFileError, ValueError, OSError, RuntimeError) as error:
        rule = f"images {start} to {stop - 1} cannot be decoded"
        raise FormatError(f"{source.path}: {rule}: {error}.") from error
    return images


def _read_contiguous(tiff: Any, source: TiffSource, start: int, images: npt.NDArray[Any]) -> None:
    """Read from an ImageJ file of more than 4 GB: one page stands for all, pixels lie in a row."""
    dtype = source.dtype.newbyteorder(tiff.byteorder)
    offset = tiff.pages[0].dataoffsets[0] + start * images[:1].nbytes
    count = images.size
    stored = np.fromfile(source.path, dtype, count, offset=offset)
    images[...] = stored.reshape(images.shape)


def _common_page(name: str, tiff: Any) -> tuple[tuple[int, int, int], np.dtype[Any]]:
    first = tiff.pages[0]
    height, width = first.shape[:2]
    if len(first.shape) != 2 or first.dtype is None or first.dtype.kind not in "iuf":
        rule = "each page must be an image of one real number a pixel"
        raise FormatError(f"{name}: {rule}; got {first.shape} of {first.dtype}.")
    n_images = len(tiff.pages)
    if n_images == 1 and tiff.is_imagej and tiff.series[0].dataoffset is not None:
        n_images = max(tiff.series[0].size // (height * width), 1)
    elif n_images > 1:
        _check_pages(name, tiff)
    return (n_images, height, width), first.dtype.newbyteorder("=")


def _check_pages(name: str, tiff: Any) -> None:
    first = tiff.pages[0]
    for i, page in enumerate(tiff.pages):
        page = page.aspage() if hasattr(page, "aspage") else page
        if page.shape != first.shape or page.dtype != first.dtype:
            rule = f"all pages must be alike; the first is {first.shape} of {first.dtype}"
            raise FormatError(f"{name}: {rule}; got {page.shape} of {page.dtype} at page {i}.")


def _pixel_size(tiff: Any) -> float | None:
    """Edge of a pixel from the resolution tags, or from ImageJ's unit."""
    tags = tiff.pages[0].tags
    if "XResolution" not in tags:
        return None
    numerator, denominator = tags["XResolution"].value
    if not numerator or not denominator:
        return None
    unit_A = _unit(tiff, int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2)
    size_A = float(f"{unit_A * denominator / numerator:.7g}") if unit_A else 0.0
    return size_A if 0 < size_A < LARGEST_PIXEL_A else None


def _unit(tiff: Any, code: int) -> float:
    imagej = {"nm": 10.0, "µm": 1e4, "um": 1e4, "\\u00B5m": 1e4, "micron": 1e4, "A": 1.0, "Å": 1.0}
    if tiff.is_imagej and tiff.imagej_metadata:
        return imagej.get(str(tiff.imagej_metadata.get("unit", "")), 0.0)
    return {2: A_PER_INCH, 3: A_PER_CM}.get(code, 0.0)
