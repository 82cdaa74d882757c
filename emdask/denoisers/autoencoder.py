"""Denoising autoencoder: images pass through few numbers, in which there is no room for noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from emdask.io.weights import Weights
from emdask.method import Method, Training
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_trained

NAME = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class Autoencoder(NetworkParams):
    """Parameters of denoising by an autoencoder.

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
    P. Vincent et al., "Stacked denoising autoencoders", Journal of Machine Learning Research 11
    (2010). A convolutional encoder and decoder without shortcuts
    (`emdask.kernels.encoder_decoder`), for particles of one kind: what there is no code for is
    lost, be it noise or detail. Nothing ships: ``train_denoiser(clean=images, snr=0.1,
    method="autoencoder")``.

    Examples
    --------
    >>> Autoencoder().sigma
    'auto'
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining(NetworkTrainingParams):
    """What can be chosen of the network in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    method = NAME


def denoise(images: Any, params: Autoencoder, model: Weights) -> Any:
    """Denoise images; (n, h, w) to (n, h, w) float32, NumPy or CuPy."""
    from emdask.kernels.denoising_network import apply_network
    from emdask.kernels.encoder_decoder import build_encoder_decoder

    return apply_network(
        images, model, build=build_encoder_decoder, sigma=params.sigma, tile_px=params.tile_px
    )


def begin(params: AutoencoderTraining, **how: Any) -> Any:
    """Begin to train an autoencoder on noisy images and clean ones."""
    from emdask.kernels.denoiser_training import DenoiserTraining, Objective, relative_errors
    from emdask.kernels.encoder_decoder import build_encoder_decoder, draw_encoder_decoder

    draw = partial(draw_encoder_decoder, widths=params.widths)
    return DenoiserTraining(
        Objective(draw=draw, build=build_encoder_decoder, errors=relative_errors), **how
    )


METHOD = Method(
    params=Autoencoder,
    apply={"cpu": denoise, "cuda": denoise},
    load=partial(open_trained, NAME),
    training=Training(
        params=AutoencoderTraining, begin=begin, takes="clean", stride=attrgetter("stride_px")
    ),
    needs_model=True,
    libraries=LIBRARIES,
)
