"""Images at several resolutions, each half of the last; one function for NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from emdask.backend import array_namespace, fourier_namespace

__all__ = [
    "double",
    "from_frequencies",
    "halve",
    "has_coarser_scale",
    "merge_scales",
    "to_frequencies",
]

# Share of a coarse image's frequencies, from zero on, that its estimate decides.
COARSE_SHARE = 0.8
# Pixels that a card transforms at once: in 100 to 200 MiB of working memory.
TRANSFORM_PIXELS = 1 << 22


def has_coarser_scale(shape: tuple[int, ...], block_px: int = 8) -> bool:
    """Whether blocks of that side still fit into an image of half the size."""
    return min(shape) >= 2 * block_px


def halve(images: Any) -> Any:
    """Low frequencies of images as smaller images: (..., h, w) -> (..., ceil(h/2), ceil(w/2)).

    Cosine transforms keep white noise white and of the same deviation, work for any size and treat
    all sides of the image alike.

    Examples
    --------
    >>> halve(np.ones((5, 8), np.float32)).shape
    (3, 4)
    """
    rows, columns = (-(-n // 2) for n in images.shape[-2:])
    return from_frequencies(to_frequencies(images)[..., :rows, :columns])


def double(images: Any, shape: tuple[int, int]) -> Any:
    """Smooth images of a shape whose `halve` are the given images; (..., *shape)."""
    rows, columns = images.shape[-2:]
    frequencies = array_namespace(images).zeros((*images.shape[:-2], *shape), np.float32)
    frequencies[..., :rows, :columns] = to_frequencies(images)
    return from_frequencies(frequencies)


def merge_scales(fine: Any, coarse: Any) -> Any:
    """Replace the low frequencies of estimates by those of estimates at half resolution.

    Facciolo, Pierazzo and Morel, "Conservative scale recomposition for multiscale denoising", SIAM
    Journal on Imaging Sciences 10 (2017) 1603-1626.
    """
    rows, columns = (round(COARSE_SHARE * n) for n in coarse.shape[-2:])
    frequencies = to_frequencies(fine)
    frequencies[..., :rows, :columns] = to_frequencies(coarse)[..., :rows, :columns]
    return from_frequencies(frequencies)


def to_frequencies(images: Any) -> Any:
    """Orthonormal cosine transform along the last two axes: (..., h, w), float32 stays so."""
    return _transform("dct", images)


def from_frequencies(frequencies: Any) -> Any:
    """Inverse of `to_frequencies`."""
    return _transform("idct", frequencies)


def _transform(name: str, images: Any) -> Any:
    """Orthonormal cosine transform, or its inverse, along the last two axes."""
    xp = array_namespace(images)
    library = fourier_namespace(images)
    if xp is np:
        return getattr(library, name + "n")(images, norm="ortho", axes=(-2, -1))
    for _ in range(2):
        rows = _transform_rows(getattr(library, name), images)
        images = xp.ascontiguousarray(xp.swapaxes(rows, -1, -2))
    return images


def _transform_rows(transform: Any, images: Any) -> Any:
    """Transform along the last axis, always as many rows at a time.

    The card's library may round otherwise for another number of rows, and an image must not depend
    on those beside it; nor on their number how much memory the transform takes.
    """
    xp = array_namespace(images)
    length = images.shape[-1]
    rows = xp.ascontiguousarray(images, np.float32).reshape(-1, length)
    result = xp.empty(rows.shape, np.float32)
    batch = xp.zeros((max(1, TRANSFORM_PIXELS // length), length), np.float32)
    for start in range(0, len(rows), len(batch)):
        part = rows[start : start + len(batch)]
        batch[: len(part)] = part
        result[start : start + len(batch)] = transform(batch, norm="ortho", axis=-1)[: len(part)]
    return result.reshape(images.shape)
