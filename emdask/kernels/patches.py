"""Patches of images: a seeded sample for methods that learn.

A sample is bounded and does not depend on chunks or their order: every place of every image has a
random key that follows from the seed and the image's id, and the patches of the smallest keys are
kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "PatchSample",
    "ScaleSamples",
    "merge_samples",
    "merge_scale_samples",
    "sample_patches",
]

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.float64]

# Of a large stack, a block keeps so many times its share: images without noise, and those that some
# scale does without, teach nothing, and others make up for them.
SURPLUS = 8
# Keys of a large image are drawn piece by piece: 2 MiB.
PLACES_AT_ONCE = 1 << 18


class PatchSample(NamedTuple):
    """Patches drawn at random.

    Parameters
    ----------
    keys
        Random number of each patch, ascending; (m,) float64.
    patches
        Pixels of each patch, row by row, in units of the noise; (m, d) float32.
    """

    keys: Keys
    patches: Floats


class ScaleSamples(NamedTuple):
    """What images at several resolutions tell of a stack.

    Parameters
    ----------
    n_patches
        Most patches of each resolution.
    scales
        Patches of each resolution, the finest first, in units of the noise.
    """

    n_patches: int
    scales: tuple[PatchSample, ...]


def sample_patches(
    images: npt.NDArray[Any],
    image_ids: Iterable[int],
    *,
    patch_px: int,
    n_patches: int,
    seed: int,
    n_images: int = 1,
) -> PatchSample:
    """Draw square patches from all places of images with equal chances.

    Parameters
    ----------
    images
        Images of unit noise, (n, h, w). Images smaller than a patch give none.
    image_ids
        Number of each image, at least 0, (n,); the choice of patches follows it.
    patch_px
        Side of a patch, px.
    n_patches
        Most patches in the sample.
    seed
        Of the choice, at least 0.
    n_images
        Size of the stack: of a large one, places with keys that have no chance beside those of the
        other images are left out, so that what its blocks send is little.

    Returns
    -------
    PatchSample
        Of ``min(n_patches, number of places)`` patches of ``patch_px**2`` pixels.

    Examples
    --------
    >>> images = np.arange(50.0).reshape(2, 5, 5)
    >>> sample_patches(images, [7, 8], patch_px=2, n_patches=6, seed=0).patches.shape
    (6, 4)
    """
    height, width = (max(0, n - patch_px + 1) for n in images.shape[1:])
    limit = SURPLUS * n_patches / max(1, n_images * height * width)
    keys, places = _draw_places(image_ids, height * width, n_patches, seed, limit)
    if len(keys) == 0:
        return PatchSample(keys, np.empty((0, patch_px**2), np.float32))
    order = np.argsort(keys)[:n_patches]
    keys, places = keys[order], places[order]
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch_px, patch_px), axis=(1, 2))
    patches = windows[np.unravel_index(places, windows.shape[:3])].reshape(len(keys), -1)
    return _keep_smallest(keys, patches.astype(np.float32, copy=False), n_patches)


def merge_samples(a: PatchSample, b: PatchSample, n_patches: int) -> PatchSample:
    """Keep the smallest keys of two samples.

    Parameters
    ----------
    a, b
        Samples of different images.
    n_patches
        Most patches in the sample.

    Returns
    -------
    PatchSample
        The same for any order and grouping of what is merged.

    Examples
    --------
    >>> a = PatchSample(np.array([0.1, 0.4]), np.array([[1], [4]], np.float32))
    >>> b = PatchSample(np.array([0.2, 0.3]), np.array([[2], [3]], np.float32))
    >>> merge_samples(a, b, 3).patches.ravel().tolist()
    [1.0, 2.0, 3.0]
    """
    if not len(a.keys) or not len(b.keys):
        return _keep_smallest(*(a if len(a.keys) else b), n_patches)
    keys = np.concatenate([a.keys, b.keys])
    return _keep_smallest(keys, np.concatenate([a.patches, b.patches]), n_patches)


def merge_scale_samples(a: ScaleSamples, b: ScaleSamples) -> ScaleSamples:
    """Merge the samples of two blocks, resolution by resolution."""
    pairs = zip(a.scales, b.scales, strict=True)
    return ScaleSamples(a.n_patches, tuple(merge_samples(*pair, a.n_patches) for pair in pairs))


def _keep_smallest(keys: Keys, patches: Floats, n_patches: int) -> PatchSample:
    if np.all(keys[1:] > keys[:-1]):
        return PatchSample(keys[:n_patches], patches[:n_patches])
    # Billions of places may give two equal keys.
    order = np.lexsort((patches[:, 0], keys))[:n_patches]
    return PatchSample(keys[order], patches[order])


def _draw_places(
    image_ids: Iterable[int], n_places: int, n_patches: int, seed: int, limit: float
) -> tuple[Keys, npt.NDArray[np.int64]]:
    """Smallest keys of some images, and where in the stack they are, flat; in no order."""
    keys, places = np.empty(0), np.empty(0, np.int64)
    for number, image_id in enumerate(image_ids):
        rng = np.random.default_rng([seed, int(image_id)])
        for start in range(0, n_places, PLACES_AT_ONCE):
            more = rng.random(min(PLACES_AT_ONCE, n_places - start))
            chosen = np.flatnonzero(more <= limit)
            keys = np.concatenate([keys, more[chosen]])
            places = np.concatenate([places, chosen + (number * n_places + start)])
            if len(keys) > 2 * n_patches:
                kept = np.argpartition(keys, n_patches - 1)[:n_patches]
                keys, places = keys[kept], places[kept]
                limit = keys.max()
    return keys, places
