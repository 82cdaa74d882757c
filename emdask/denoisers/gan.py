"""Generative adversarial network: makes images that a second network takes for clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Literal

from emdask.checks import check_choice, check_number
from emdask.denoisers.autoencoder import denoise
from emdask.method import Method, Training, parameter
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_trained

NAME = "gan"
LOSSES = ("vanilla", "least_squares", "wasserstein", "beta")


@dataclass(frozen=True, kw_only=True)
class Gan(NetworkParams):
    """Parameters of denoising by the generator of a generative adversarial network.

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
    H. Gu et al., "Generative adversarial networks for robust cryo-EM image denoising", arXiv
    2008.07307 (2020). Its images are sharper than those of networks that lower the squared error,
    and further from the truth: detail that noise hides is made up. Nothing ships:
    ``train_denoiser(clean=images, snr=0.1, method="gan")``.

    Examples
    --------
    >>> Gan().sigma
    'auto'
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class GanTraining(NetworkTrainingParams):
    """What can be chosen of the networks in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.
    loss
        What generator and discriminator play for: "vanilla", "least_squares", "wasserstein" with a
        gradient penalty, or "beta", the family of proper scoring rules.
    alpha, beta
        Of the family; 0 and 0 are vanilla, and above 0 no image counts for much.
    penalty
        Weight of the gradient penalty of "wasserstein".
    l1_weight
        Weight of the robust term beside the discriminator's opinion: the logarithm of the mean
        absolute error, in deviations of the signal.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    method = NAME
    loss: Literal["vanilla", "least_squares", "wasserstein", "beta"] = parameter(
        "least_squares", "what generator and discriminator play for"
    )
    alpha: float = parameter(1.0, "of the family of loss beta; 0 and 0 are vanilla")
    beta: float = parameter(1.0, "likewise; above 0 no image counts for much")
    penalty: float = parameter(10.0, "weight of the gradient penalty of loss wasserstein")
    l1_weight: float = parameter(
        10.0, "weight of the robust term beside the discriminator's opinion"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(NAME, "loss", self.loss, LOSSES)
        check_number(NAME, "alpha", self.alpha, -0.9, 10)
        check_number(NAME, "beta", self.beta, -0.9, 10)
        check_number(NAME, "penalty", self.penalty, 0)
        check_number(NAME, "l1_weight", self.l1_weight, 1e-6)


def begin(params: GanTraining, **how: Any) -> Any:
    """Begin to train generator and discriminator on noisy images and clean ones."""
    from emdask.kernels.adversarial import Adversary
    from emdask.kernels.adversarial_training import AdversarialTraining
    from emdask.kernels.denoiser_training import Objective, absolute_errors
    from emdask.kernels.encoder_decoder import build_encoder_decoder, draw_encoder_decoder

    adversary = Adversary(
        kind=params.loss, alpha=params.alpha, beta=params.beta, penalty=params.penalty
    )
    draw = partial(draw_encoder_decoder, widths=params.widths)
    objective = Objective(draw=draw, build=build_encoder_decoder, errors=absolute_errors)
    return AdversarialTraining(objective, adversary, weight=1 / params.l1_weight, **how)


METHOD = Method(
    params=Gan,
    apply={"cpu": denoise, "cuda": denoise},
    load=partial(open_trained, NAME),
    training=Training(
        params=GanTraining, begin=begin, takes="clean", stride=attrgetter("stride_px")
    ),
    needs_model=True,
    libraries=LIBRARIES,
)
