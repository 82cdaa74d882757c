"""What a stack's features have in common: their principal components, and a sample of images.

Sums over all images add up over chunks and give the components. Classes are found among the images
of a sample, which is bounded and depends on the numbers of the images and a seed alone, not on the
chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, sum_batches, to_host
from emdask.blocks_cuda import batch_size
from emdask.kernels.clusters import (
    Components,
    FeatureSums,
    add_sums,
    find_components,
    project,
    sum_features,
)
from emdask.kernels.draws import uniform_draws
from emdask.kernels.invariants import image_features
from emdask.kernels.patches import PatchSample, merge_samples

__all__ = [
    "FeatureAxes",
    "FeatureStatistics",
    "add_statistics",
    "find_axes",
    "gather_statistics",
    "image_points",
]

Array = npt.NDArray[Any]

# Of what is drawn for an image: which images are of the sample.
STREAM = 41
# Of a large stack, a block keeps so many times its share of the sample.
SURPLUS = 2
# Of the mean variance of features: those of less are taken to be the same in all images.
LEAST_VARIANCE = 1e-9


class FeatureStatistics(NamedTuple):
    """What some images tell of a stack; on the host.

    Parameters
    ----------
    sums
        Over the features of all of them.
    sample
        Features of those whose random numbers are the smallest, in their order.
    n_sample
        Most images of a sample.
    """

    sums: FeatureSums
    sample: PatchSample
    n_sample: int


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureAxes:
    """Axes along which the images of a stack differ most.

    Parameters
    ----------
    features
        Which features, as of `emdask.kernels.invariants.image_features`.
    scales : float64 array, shape (f,)
        What each is multiplied with, to have variance 1 in the stack.
    components
        Principal components of the scaled features.
    """

    features: str
    scales: npt.NDArray[np.float64]
    components: Components


def gather_statistics(
    images: Array,
    image_ids: Array,
    *,
    features: str,
    n_sample: int,
    seed: int,
    n_images: int,
    device: str = "cpu",
) -> FeatureStatistics:
    """Add up the features of some images, and keep those of a few.

    Parameters
    ----------
    images : array, shape (n, box, box)
        Of the host.
    image_ids : int array, shape (n,)
        Number of each, at least 0.
    features
        As of `emdask.kernels.invariants.image_features`.
    n_sample
        Most images of the sample.
    seed
        Of the choice of images, at least 0.
    n_images
        Of the stack: of a large one, images that have no chance beside the others are left out.
    device
        "cpu" or "cuda".

    Returns
    -------
    FeatureStatistics

    Examples
    --------
    >>> images = np.random.default_rng(0).normal(size=(9, 8, 8))
    >>> found = gather_statistics(
    ...     images, np.arange(9), features="steerable", n_sample=4, seed=1, n_images=9
    ... )
    >>> found.sums.n, found.sample.patches.shape
    (9, (4, 10))
    """
    keys = uniform_draws(seed, image_ids, 1, stream=STREAM)[:, 0]
    return sum_batches(
        partial(
            _gather_batch, features=features, n_sample=n_sample, limit=SURPLUS * n_sample / n_images
        ),
        images,
        along={"keys": keys},
        combine=add_statistics,
        device=device,
        n_images=batch_size(images.shape[1:]),
        what=f"features of images of {images.shape[-1]} px",
    )


def _gather_batch(
    images: Any, *, keys: Array, features: str, n_sample: int, limit: float
) -> FeatureStatistics:
    rows = image_features(images, features)
    chosen = np.argsort(keys, kind="stable")[:n_sample]
    chosen = chosen[keys[chosen] <= limit]
    sample = PatchSample(keys[chosen], to_host(rows)[chosen])
    return FeatureStatistics(sum_features(rows), sample, n_sample)


def add_statistics(a: FeatureStatistics, b: FeatureStatistics) -> FeatureStatistics:
    """Combine what two parts of a stack tell; the sample is the same for any parts."""
    sample = merge_samples(a.sample, b.sample, a.n_sample)
    return FeatureStatistics(add_sums(a.sums, b.sums), sample, a.n_sample)


def find_axes(
    statistics: FeatureStatistics, features: str, n_components: int
) -> tuple[FeatureAxes, npt.NDArray[np.float32]]:
    """Find the principal components of features, and where the sample lies along them.

    Parameters
    ----------
    statistics
        Of all images.
    features
        What they are of.
    n_components
        As many as there are features at most, and less than there are images.

    Returns
    -------
    axes : FeatureAxes
    points : float32 array, shape (m, n_components)
        Of the images of the sample.

    Raises
    ------
    ParameterError
        If the number of components is out of range.

    Notes
    -----
    Features are brought to variance 1 before: in noise, it is that of the noise, so that none
    counts for the unit it has.
    """
    n, total, outer = statistics.sums
    variances = np.maximum(np.diagonal(outer) / n - (total / n) ** 2, 0)
    varies = variances > LEAST_VARIANCE * max(variances.mean(), 1e-300)
    scales = np.where(varies, 1 / np.sqrt(np.where(varies, variances, 1)), 0.0)
    scaled = FeatureSums(n, total * scales, outer * np.outer(scales, scales))
    axes = FeatureAxes(
        features=features, scales=scales, components=find_components(scaled, n_components)
    )
    return axes, _place(statistics.sample.patches, axes)


def image_points(images: Any, axes: FeatureAxes) -> Any:
    """Return where images lie along axes.

    Parameters
    ----------
    images : array, shape (n, box, box)
        NumPy or CuPy.
    axes
        Of `find_axes`.

    Returns
    -------
    float32 array, shape (n, number of components)
        Of the library of the images.
    """
    return _place(image_features(images, axes.features), axes)


def _place(rows: Any, axes: FeatureAxes) -> Any:
    xp = array_namespace(rows)
    return project(rows * xp.asarray(axes.scales), axes.components)
