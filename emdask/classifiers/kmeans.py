"""K-means without references: classes of images that look alike, however they are turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer, sentence
from emdask.errors import StackError
from emdask.kernels.clusters import MAX_SEED, KmeansClasses, assign_kmeans, fit_kmeans
from emdask.kernels.feature_axes import (
    FeatureAxes,
    FeatureStatistics,
    add_statistics,
    find_axes,
    gather_statistics,
    image_points,
)
from emdask.kernels.invariants import FEATURES, count_features
from emdask.method import Classifier, parameter

NAME = "kmeans"
MOST_CLASSES = 1000


@dataclass(frozen=True, kw_only=True)
class Kmeans:
    """Parameters of k-means on principal components of features that turns do not change.

    Parameters
    ----------
    n_classes
        Number of classes.
    features
        "spectrum": angular powers of the amplitude spectrum, which neither turns nor shifts of the
        particle change; "steerable": moduli of steerable coefficients, which see more, but change
        with shifts: particles must be centred to a pixel or so.
    n_components
        Principal components of the features in which distances are measured.
    max_images
        Most images that centres are found among; all are then assigned.
    seed
        Of the choice of images, and of where k-means starts.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    For what differs much: other molecules, broken particles and ice, views of one kind. It is no
    way to conformations. Of five states of an RNA polymerase whose clamp opens by 5 degrees each,
    images within 10 degrees of one view, classes by k-means and by mixtures alike agreed with the
    states for 25 to 30 % of the images at SNR 0.1, for 27 to 41 % at SNR 1, and for 23 to 24 % if
    all views were there; chance gives 22 %, once numbers of classes are matched. Another view
    changes an image more than a domain does that moves by a few degrees, and features that turns do
    not change have lost most of what such a domain says. Align images first: compare them with
    references (``method="two_stage"``), or look at averages of aligned images
    (`emdask.class_averages`).

    Amplitude spectra show the CTF of their images, so that images of unlike defocus may be taken
    apart for it: correct for it first, as by ``denoise(stack, "cwf")``.

    Features (`emdask.kernels.invariants`) are brought to variance 1 over the stack. Components are
    those of all images; centres are found among a sample that follows ``image_id`` and the seed, by
    Lloyd's algorithm from the best of ten starts. Classes are numbered by size, the largest first.
    ``log_likelihood`` is 0 for the class of the nearest centre and -inf for others, so that
    proportions are counts, and ``posterior`` 0 or 1.

    Examples
    --------
    >>> Kmeans(n_classes=3).features
    'spectrum'
    >>> Kmeans(n_classes=0)
    Traceback (most recent call last):
    emdask.errors.ParameterError: kmeans: n_classes must be an integer in [1, 1000]; got 0.
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


class KmeansModel(NamedTuple):
    """What every image is compared with.

    Parameters
    ----------
    axes
        Along which images are placed.
    classes
        Centres there.
    """

    axes: FeatureAxes
    classes: KmeansClasses


def check_features(name: str, params: Any) -> None:
    """Check the parameters that methods on features have in common.

    Parameters
    ----------
    name
        Of the method.
    params
        As `Kmeans`.

    Raises
    ------
    ParameterError
    """
    check_integer(name, "n_classes", params.n_classes, 1, MOST_CLASSES)
    check_choice(name, "features", params.features, FEATURES)
    check_integer(name, "n_components", params.n_components, 1, 200)
    check_integer(name, "max_images", params.max_images, 2, 1 << 20)
    check_integer(name, "seed", params.seed, 0, MAX_SEED)


def check_stack(
    params: Any, attrs: Mapping[str, Any], shape: tuple[int, ...], name: str = NAME
) -> Any:
    """Refuse stacks that are too small for what is looked for.

    Parameters
    ----------
    params, name
        As of `check_features`.
    attrs
        Of the stack; they play no part.
    shape
        Its shape, (n, box, box).

    Returns
    -------
    object
        The parameters as they are.

    Raises
    ------
    ParameterError
        If the box is less than 8 px.
    StackError
        If there are too few images or features.
    """
    least = max(params.n_classes, params.n_components + 1)
    rule = f"{params.n_classes} classes in {params.n_components} components need {least} images"
    if min(shape[0], params.max_images) < least:
        remedy = "Take fewer classes or components."
        raise StackError(sentence(name, rule, min(shape[0], params.max_images), remedy))
    n_features = count_features(shape[-1], params.features)
    if params.n_components > n_features:
        rule = f"images of {shape[-1]} px have {n_features} features, and no more components"
        raise StackError(sentence(name, rule, params.n_components, "Take fewer components."))
    return params


def gather(
    images: npt.NDArray[Any],
    image_ids: npt.NDArray[Any],
    params: Any,
    n_images: int = 1,
    *,
    device: str = "cpu",
) -> FeatureStatistics:
    """Gather what images tell of the stack, on the processor or a card.

    Parameters
    ----------
    images
        (n, box, box).
    image_ids
        Their numbers, (n,).
    params
        As of `check_features`.
    n_images
        Size of the stack.
    device
        "cpu" or "cuda".

    Returns
    -------
    FeatureStatistics
    """
    return gather_statistics(
        images,
        image_ids,
        features=params.features,
        n_sample=params.max_images,
        seed=params.seed,
        n_images=n_images,
        device=device,
    )


def prepare(statistics: FeatureStatistics, params: Kmeans, references: None) -> KmeansModel:
    """Find the classes.

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
    KmeansModel
    """
    axes, points = find_axes(statistics, params.features, params.n_components)
    return KmeansModel(axes, fit_kmeans(points, params.n_classes, params.seed))


def score(images: Any, params: Kmeans, model: KmeansModel) -> Any:
    """Tell of each image which centre is nearest; NumPy or CuPy.

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
        0 for that class, -inf for others.
    """
    xp = array_namespace(images)
    labels, _ = assign_kmeans(image_points(images, model.axes), model.classes)
    others = labels[:, None] != xp.arange(params.n_classes)
    return xp.where(others, -np.inf, 0.0).astype(np.float32)


def name_columns(params: Any, n_classes: int) -> tuple[str, ...]:
    """Names of the scores: a log-likelihood of each class."""
    return tuple(f"class_{number}" for number in range(1, n_classes + 1))


METHOD = Classifier(
    params=Kmeans,
    chunk={"cpu": gather, "cuda": partial(gather, device="cuda")},
    combine=add_statistics,
    prepare=prepare,
    score={"cpu": score, "cuda": score},
    columns=name_columns,
    needs_references=False,
    takes_optics=False,
    complete=check_stack,
)
