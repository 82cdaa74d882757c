"""Noise2noise: a U-net that learns from pairs of noisy images of the same, without clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from emdask.checks import check_number
from emdask.denoisers.unet import denoise
from emdask.method import Method, Training, parameter
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_trained

NAME = "noise2noise"


@dataclass(frozen=True, kw_only=True)
class Noise2Noise(NetworkParams):
    """Parameters of denoising by a U-net that was trained on noisy images.

    Parameters
    ----------
    sigma, tile_px
        As of `emdask.networks.NetworkParams`.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    J. Lehtinen et al., "Noise2Noise: learning image restoration without clean data", ICML 2018:
    what a network cannot predict of another image of the same is its noise, so it learns the
    signal. Nothing ships: train it on the stack at hand, ``train_denoiser(halves, pair=others,
    method="noise2noise")``, where images and others are sums of even and odd frames.

    Where there are no halves, leave out ``pair``. Of each image two are then made whose noise is
    independent, if it is white and Gaussian: T. Pang et al., "Recorrupted-to-recorrupted:
    unsupervised deep learning for image denoising", CVPR 2021. Whiten coloured noise first.

    Examples
    --------
    >>> Noise2Noise().sigma
    'auto'
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class Noise2NoiseTraining(NetworkTrainingParams):
    """What can be chosen of the network in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.
    strength
        Of the noise that makes two of an image, where there are no pairs: what the network is shown
        has 1 + strength² times the variance, what it is compared with 1 + 1 / strength².

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    method = NAME
    strength: float = parameter(0.5, "of the noise that makes two of an image, without pairs")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(NAME, "strength", self.strength, 0.01, 10)


def begin(params: Noise2NoiseTraining, **how: Any) -> Any:
    """Begin to train a U-net on pairs of noisy images."""
    from emdask.kernels.denoiser_training import DenoiserTraining, pair_errors, unet_objective

    errors = partial(pair_errors, strength=params.strength)
    return DenoiserTraining(unet_objective(params.widths, errors), **how)


METHOD = Method(
    params=Noise2Noise,
    apply={"cpu": denoise, "cuda": denoise},
    load=partial(open_trained, NAME),
    training=Training(
        params=Noise2NoiseTraining, begin=begin, takes="pairs", stride=attrgetter("stride_px")
    ),
    needs_model=True,
    libraries=LIBRARIES,
)
