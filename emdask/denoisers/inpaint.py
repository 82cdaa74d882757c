"""Inpainting of hot pixels and gold beads, found or under a mask; all other pixels stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import check_number, require, sentence
from emdask.errors import FormatError, StackError
from emdask.kernels.inpainting import fill_masked
from emdask.kernels.outliers import find_beads, find_hot_pixels, grow
from emdask.method import Method, parameter

FORMATS = (".npy", ".mrc", ".mrcs", ".tif", ".tiff")
RULE = f"mask must be the path of a file {', '.join(FORMATS)}"


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Parameters of inpainting.

    Parameters
    ----------
    mask
        File with one image (h, w), other than 0 where the pixels of all images are to be filled:
        ``.npy``, ``.mrc`` or ``.tif``. None looks for outliers in each image instead.
    threshold
        Pixels are hot or dead if they are as many robust standard deviations of the 9 x 9 px around
        them away from their median; beads likewise, see ``bead_px``.
    bead_px
        Diameter of gold beads; None looks for none. Compact regions of about that size are filled
        whose mean differs from the median around them by more than ``threshold`` robust deviations
        of such differences in the image, and by two standard deviations of a pixel.
    grow_px
        What was found is extended by this much; a mask from a file is not.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Biharmonic inpainting by scikit-image (Damelin and Hoang, International Journal of Mathematics
    and Mathematical Sciences (2018) 3950312). Regions of more than 100 pixels are filled in a
    binned image, or the noise at their rim would be continued across them. An image without
    outliers comes back bit by bit. Of sparse counts, such as an image of zeros with less than 1 %
    of ones, each count is an outlier: give a mask there.

    Examples
    --------
    >>> Inpaint(bead_px=80).threshold
    8.0
    >>> Inpaint(threshold=0)
    Traceback (most recent call last):
    emdask.errors.ParameterError: inpaint: threshold must be a number in [3, 1000]; got 0.
    """

    mask: str | None = parameter(
        None, "file (.npy, .mrc, .tif) that marks what is to be filled; none: outliers are found"
    )
    threshold: float = parameter(
        8.0, "distance of an outlier from the median around it", "robust standard deviations"
    )
    bead_px: float | None = parameter(
        None, "diameter of gold beads; none: only hot and dead pixels are looked for", "px"
    )
    grow_px: float = parameter(1.0, "what was found is extended by this much", "px")

    def __post_init__(self) -> None:
        if self.mask is not None:
            is_path = isinstance(self.mask, str | Path)
            ok = is_path and Path(self.mask).suffix.lower() in FORMATS
            require(ok, "inpaint", RULE, self.mask if is_path else type(self.mask).__name__)
            object.__setattr__(self, "mask", str(self.mask))
            found = "not both a mask and beads that are to be found"
            require(self.bead_px is None, "inpaint", found, self.bead_px)
        check_number("inpaint", "threshold", self.threshold, 3, 1000)
        if self.bead_px is not None:
            check_number("inpaint", "bead_px", self.bead_px, 6, 1000)
        check_number("inpaint", "grow_px", self.grow_px, 0, 100)


def complete(params: Inpaint, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Inpaint:
    """Look at the mask's file at once, and tell workers where it is whatever their folder."""
    if params.mask is None:
        return params
    path = str(Path(params.mask).expanduser().absolute())
    _mask_for(path, shape[1:])
    return replace(params, mask=path)


def read_mask(path: str) -> npt.NDArray[np.bool_]:
    """Read a mask (h, w) from a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    FormatError
        If it does not hold one image of numbers, or leaves no pixel to fill from.
    """
    stat = Path(path).stat()
    return _read_mask(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2)
def _read_mask(path: str, changed: int, size: int) -> npt.NDArray[np.bool_]:
    """Read what a file held at a time."""
    if Path(path).suffix.lower() == ".npy":
        values = _load_array(path)
    else:
        from emdask.io import open_stack

        values = open_stack(path).data.compute(scheduler="synchronous")
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim != 2:
        raise FormatError(sentence(path, "a mask is one image (h, w)", values.shape))
    mask = np.asarray(values != 0)
    if mask.all():
        remedy = "Is it the other way round? Pixels that are not 0 are filled."
        raise FormatError(sentence(path, "a mask must leave pixels to fill from", remedy=remedy))
    return mask


def _load_array(path: str) -> npt.NDArray[Any]:
    """Read an array of numbers; no pickles."""
    rule, remedy = "must be a whole array of numbers", "Write it by numpy.save()."
    try:
        with open(path, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise FormatError(sentence(path, rule, remedy=remedy)) from error
    if values.dtype.kind not in "biuf":
        raise FormatError(sentence(path, rule, str(values.dtype), remedy))
    return np.asarray(values)


def denoise_cpu(images: npt.NDArray[Any], params: Inpaint) -> npt.NDArray[np.float32]:
    """Fill the outliers of images on one CPU core.

    Parameters
    ----------
    images
        In grey levels, (n, h, w).
    params
        Parameters.

    Returns
    -------
    (n, h, w) float32
    """
    result = np.array(images, np.float32)
    fixed = None if params.mask is None else _mask_for(params.mask, images.shape[1:])
    for i, image in enumerate(result):
        mask = find_outliers(image, params) if fixed is None else fixed
        result[i] = fill_masked(image, mask)
    return result


def _mask_for(path: str, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    mask = read_mask(path)
    if mask.shape != shape:
        rule = f"mask must have the size of the images, {shape[0]} x {shape[1]} px"
        raise StackError(sentence("inpaint", rule, f"{mask.shape[0]} x {mask.shape[1]} in {path}"))
    return mask


def find_outliers(image: npt.NDArray[np.float32], params: Inpaint) -> npt.NDArray[np.bool_]:
    """Return what is to be filled, (h, w) bool."""
    found = find_hot_pixels(image, params.threshold)
    if params.bead_px is not None:
        found |= find_beads(image, ~found, params.bead_px, params.threshold)
    return grow(found, params.grow_px)


METHOD = Method(params=Inpaint, apply={"cpu": denoise_cpu}, complete=complete, removes="outliers")
