"""Variational autoencoder: images pass through few numbers, spread as a normal variable is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from emdask.checks import check_integer, check_number
from emdask.io.weights import Weights
from emdask.method import Method, Training, parameter
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_trained

NAME = "vae"


@dataclass(frozen=True, kw_only=True)
class Vae(NetworkParams):
    """Parameters of denoising by a variational autoencoder.

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
    D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014; as a denoiser, the
    encoder sees a noisy image and the decoder makes a clean one of the means of the latent
    variables (Im et al., "Denoising criterion for variational auto-encoding framework", AAAI 2017).
    Nothing ships: ``train_denoiser(clean=images, snr=0.1, method="vae")``.

    Examples
    --------
    >>> Vae().sigma
    'auto'
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class VaeTraining(NetworkTrainingParams):
    """What can be chosen of the network in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.
    latent
        Latent variables of each coarsest cell, of 2^n_levels x 2^n_levels pixels.
    kl_weight
        How much a nat a pixel counts, by which latent variables differ from a standard normal
        distribution, beside an error as large as the signal.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    method = NAME
    latent: int = parameter(8, "latent variables of each coarsest cell")
    kl_weight: float = parameter(0.1, "of the divergence of latent variables, in nats a pixel")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer(NAME, "latent", self.latent, 1)
        check_number(NAME, "kl_weight", self.kl_weight, 0)


def denoise(images: Any, params: Vae, model: Weights) -> Any:
    """Denoise images; (n, h, w) to (n, h, w) float32, NumPy or CuPy."""
    from emdask.kernels.denoising_network import apply_network
    from emdask.kernels.encoder_decoder import build_variational

    return apply_network(
        images, model, build=build_variational, sigma=params.sigma, tile_px=params.tile_px
    )


def begin(params: VaeTraining, **how: Any) -> Any:
    """Begin to train a variational autoencoder on noisy images and clean ones."""
    from emdask.kernels.denoiser_training import DenoiserTraining, Objective, variational_errors
    from emdask.kernels.encoder_decoder import build_variational, draw_variational

    draw = partial(draw_variational, widths=params.widths, latent=params.latent)
    errors = partial(variational_errors, kl_weight=params.kl_weight)
    return DenoiserTraining(Objective(draw=draw, build=build_variational, errors=errors), **how)


METHOD = Method(
    params=Vae,
    apply={"cpu": denoise, "cuda": denoise},
    load=partial(open_trained, NAME),
    training=Training(
        params=VaeTraining, begin=begin, takes="clean", stride=attrgetter("stride_px")
    ),
    needs_model=True,
    libraries=LIBRARIES,
)
