"""Mixture of Gaussians without references: classes of images that look alike, each of its shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from emdask.classifiers.kmeans import check_features, check_stack, gather, name_columns
from emdask.kernels.clusters import GaussianClasses, fit_gmm, log_densities
from emdask.kernels.feature_axes import (
    FeatureAxes,
    FeatureStatistics,
    add_statistics,
    find_axes,
    image_points,
)
from emdask.method import Classifier, parameter

NAME = "gmm"


@dataclass(frozen=True, kw_only=True)
class Gmm:
    """Parameters of a mixture of Gaussians on features that turns do not change.

    Parameters
    ----------
    n_classes
        Number of Gaussians.
    features
        "spectrum" or "steerable", as of `emdask.classifiers.kmeans.Kmeans`.
    n_components
        Principal components of the features in which Gaussians are.
    max_images
        Most images that Gaussians are fitted to; all are then assigned.
    seed
        Of the choice of images, and of where the fit starts.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    As `emdask.classifiers.kmeans.Kmeans`, but for classes that differ in spread as well as in
    place, and images that may be of either of two. It is no way to conformations a few degrees
    apart either, of which it tells little more than chance does. Align images first: compare them
    with references (``method="two_stage"``), or look at averages of aligned images
    (`emdask.class_averages`).

    ``log_likelihood`` is the logarithm of each Gaussian's density, so that proportions and
    posteriors are those of the mixture for all images. Gaussians are fitted by expectation
    maximisation from the best of five starts, and numbered by their weight, the largest first. Each
    should have many more images than there are components.

    Examples
    --------
    >>> Gmm(n_classes=3).n_components
    10
    >>> Gmm(features="contour")
    Traceback (most recent call last):
    emdask.errors.ParameterError: gmm: features must be one of spectrum, steerable; got 'contour'.
    """

    n_classes: int = parameter(5, "number of classes")
    features: Literal["spectrum", "steerable"] = parameter(
        "spectrum", "what of an image no turn changes; steerable: particles must be centred"
    )
    n_components: int = parameter(10, "principal components of the features")
    max_images: int = parameter(20_000, "most images that classes are found among")
    seed: int = parameter(0, "seed of the choice of images and of where to start")

    def __post_init__(self) -> None:
        check_features(NAME, self)


class GmmModel(NamedTuple):
    """What every image is compared with.

    Parameters
    ----------
    axes
        Along which images are placed.
    classes
        Gaussians there.
    """

    axes: FeatureAxes
    classes: GaussianClasses


def complete(params: Gmm, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Gmm:
    """Refuse stacks that are too small for what is looked for."""
    check_stack(params, attrs, shape, NAME)
    return params


def prepare(statistics: FeatureStatistics, params: Gmm, references: None) -> GmmModel:
    """Fit the Gaussians.

    Parameters
    ----------
    statistics
        Of the stack.
    params
        Parameters.
    references
        None.

    Returns
    -------
    GmmModel
    """
    axes, points = find_axes(statistics, params.features, params.n_components)
    return GmmModel(axes, fit_gmm(points, params.n_classes, params.seed))


def score(images: Any, params: Gmm, model: GmmModel) -> Any:
    """Tell how likely each image is under each Gaussian; NumPy or CuPy.

    Parameters
    ----------
    images
        (n, box, box).
    params
        Parameters.
    model
        Of `prepare`.

    Returns
    -------
    float32 array, shape (n, n_classes)
        Logarithms of densities.
    """
    points = image_points(images, model.axes)
    return log_densities(points, model.classes).astype(np.float32)


METHOD = Classifier(
    params=Gmm,
    chunk={"cpu": gather, "cuda": partial(gather, device="cuda")},
    combine=add_statistics,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=name_columns,
    needs_references=False,
    takes_optics=False,
    complete=complete,
)
