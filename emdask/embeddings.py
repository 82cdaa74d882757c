"""A sample of the images of a stack, laid out in a plane by what turns and shifts do not change."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_choice, sentence
from emdask.errors import MissingLibraryError
from emdask.kernels.invariants import image_features

Array = npt.NDArray[Any]

PCA, UMAP = EMBEDDINGS = ("pca", "umap")
# A block is read whole: images are taken from a few of them.
SAMPLED, BLOCKS_READ, BYTES_READ = 2000, 32, 2**28
# Components that UMAP is given, and the seed of its random numbers.
UMAP_COMPONENTS, SEED = 30, 0
# Of features, those that vary less beside the others do so by rounding.
LEAST_SPREAD = 1e-6


class Sample(NamedTuple):
    """Some of the images, looked at more closely.

    Parameters
    ----------
    position : int64 array, shape (m,)
        In the stack, rising.
    images : float32 array, shape (m, h, w)
        Their pixels.
    points : float64 array, shape (m, 2)
        Where they lie in the plane of the embedding.
    axis
        Name of its axes.
    """

    position: Array
    images: Array
    points: Array
    axis: str


def choose_sample(
    block_sizes: Sequence[int], image_bytes: int, *, n_most: int = SAMPLED
) -> npt.NDArray[np.int64]:
    """Choose images spread over a stack, from a few of its blocks.

    Parameters
    ----------
    block_sizes
        Images in each block of the stack.
    image_bytes
        Of one image; what is chosen takes 256 MiB at most.
    n_most
        Most images.

    Returns
    -------
    int64 array, shape (m,)
        Positions, rising.

    Examples
    --------
    >>> choose_sample([4, 4, 2], 100, n_most=5)
    array([0, 2, 4, 7, 9])
    >>> len(choose_sample([100] * 1000, 100)), len(choose_sample([100] * 1000, 2**24))
    (2000, 16)
    """
    starts = np.cumsum([0, *block_sizes])
    n_blocks = len(block_sizes)
    blocks = np.unique(np.linspace(0, n_blocks - 1, min(n_blocks, BLOCKS_READ)).round().astype(int))
    there = np.concatenate([np.arange(starts[b], starts[b + 1]) for b in blocks])
    n = max(1, min(n_most, len(there), BYTES_READ // image_bytes))
    return np.asarray(there[np.linspace(0, len(there) - 1, n).round().astype(int)], np.int64)


def read_sample(stack: xr.DataArray, position: npt.ArrayLike) -> Array:
    """Read some images; pixels that are not finite become the median of theirs.

    Parameters
    ----------
    stack : xarray.DataArray, dims (image, y, x)
        Images.
    position : int array, shape (m,)
        Which.

    Returns
    -------
    float32 array, shape (m, h, w)

    Examples
    --------
    >>> stack = xr.DataArray([[[1, np.nan], [2, 3]], [[4.0] * 2] * 2], dims=("image", "y", "x"))
    >>> read_sample(stack, [0]).tolist()
    [[[1.0, 2.0], [2.0, 3.0]]]
    """
    # A copy: what is read may be a part of a file that is not to be written to.
    images = np.array(stack.isel(image=np.asarray(position)).values, np.float32)
    for i in np.flatnonzero(~np.isfinite(images).all(axis=(1, 2))):
        there = np.isfinite(images[i])
        images[i][~there] = np.median(images[i][there]) if there.any() else 0.0
    return images


def describe_images(images: npt.ArrayLike) -> Array:
    """Return features of images that do not change when these are turned or shifted.

    Parameters
    ----------
    images : array, shape (m, box, box)
        Images.

    Returns
    -------
    float64 array, shape (m, d)
        Of `emdask.kernels.invariants.image_features`, "spectrum", each of variance 1: in noise that
        is the variance of the noise. Those that do not vary are left out.

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(5, 16, 16))
    >>> describe_images(images).std(axis=0).round(6).tolist()[:2]
    [1.0, 1.0]
    """
    features = np.asarray(image_features(np.asarray(images), "spectrum"), np.float64)
    spread = features.std(axis=0)
    varies = spread > LEAST_SPREAD * spread.max()
    return np.asarray(features[:, varies] / spread[varies])


def check_embedding(name: str) -> None:
    """Refuse an embedding that there is not, before hours of work.

    Raises
    ------
    ParameterError
        If it is none of ``pca`` and ``umap``.
    MissingLibraryError
        If the library for it is absent.

    Examples
    --------
    >>> check_embedding("tsne")
    Traceback (most recent call last):
    emdask.errors.ParameterError: --embedding: name must be one of pca, umap; got 'tsne'.
    """
    check_choice("--embedding", "name", name, EMBEDDINGS)
    if name == UMAP and importlib.util.find_spec("umap") is None:
        remedy = "Install it: pip install 'emdask[umap]'; or take --embedding pca."
        raise MissingLibraryError(sentence("--embedding umap", "needs umap-learn", remedy=remedy))


def embed(features: npt.ArrayLike, name: str = PCA) -> tuple[Array, str]:
    """Lay images out in a plane by their features.

    Parameters
    ----------
    features : array, shape (m, d)
        Of each image.
    name
        "pca": the two directions in which features vary most; "umap": a map that keeps neighbours
        together (McInnes, Healy and Melville 2018), of their first 30 principal components.

    Returns
    -------
    points : float64 array, shape (m, 2)
    axis
        Name of the axes.

    Examples
    --------
    >>> points, axis = embed([[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [4.0, 0.0, 1.0]])
    >>> abs(points[:, 0]).round(6).tolist(), axis
    ([2.0, 0.0, 2.0], 'principal component')
    """
    table = np.asarray(features, np.float64)
    centred = table - table.mean(axis=0)
    axes, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    components = axes * sizes
    if name == UMAP:
        make = importlib.import_module("umap").UMAP
        mapped = make(n_components=2, random_state=SEED, n_jobs=1)
        points = mapped.fit_transform(components[:, :UMAP_COMPONENTS])
        return np.asarray(points, np.float64), "UMAP coordinate"
    points = np.zeros((len(table), 2))
    n = min(2, components.shape[1])
    points[:, :n] = components[:, :n]
    return points, "principal component"
