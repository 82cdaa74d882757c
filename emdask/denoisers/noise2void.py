"""Noise2void: a U-net that learns from noisy images alone, by pixels that it does not see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from emdask.checks import check_integer, check_number
from emdask.denoisers.unet import denoise
from emdask.method import Method, Training, parameter
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_trained

NAME = "noise2void"


@dataclass(frozen=True, kw_only=True)
class Noise2Void(NetworkParams):
    """Parameters of denoising by a U-net that was trained on noisy images alone.

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
    A. Krull, T.-O. Buchholz, F. Jug, "Noise2Void: learning denoising from single noisy images",
    CVPR 2019: some pixels of what the network is shown are replaced by neighbours, and it learns to
    tell what was there. It cannot tell their noise, if that of neighbours is independent; of
    coloured noise it learns some as well, so whiten it first. Nothing ships: train it on the stack
    at hand, ``train_denoiser(stack, method="noise2void")``.

    Examples
    --------
    >>> Noise2Void().sigma
    'auto'
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class Noise2VoidTraining(NetworkTrainingParams):
    """What can be chosen of the network in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.
    hidden
        Share of the pixels that are hidden in each step.
    reach_px
        How far from a hidden pixel the one may be that is put there.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    method = NAME
    hidden: float = parameter(0.015, "share of the pixels that are hidden in each step")
    reach_px: int = parameter(2, "how far from a hidden pixel is what is put there", "px")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(NAME, "hidden", self.hidden, 1e-4, 0.25)
        check_integer(NAME, "reach_px", self.reach_px, 1)


def begin(params: Noise2VoidTraining, **how: Any) -> Any:
    """Begin to train a U-net on noisy images alone."""
    from emdask.kernels.denoiser_training import (
        DenoiserTraining,
        blind_spot_errors,
        unet_objective,
    )

    errors = partial(blind_spot_errors, share=params.hidden, reach_px=params.reach_px)
    return DenoiserTraining(unet_objective(params.widths, errors), **how)


METHOD = Method(
    params=Noise2Void,
    apply={"cpu": denoise, "cuda": denoise},
    load=partial(open_trained, NAME),
    training=Training(
        params=Noise2VoidTraining, begin=begin, takes="noisy", stride=attrgetter("stride_px")
    ),
    needs_model=True,
    libraries=LIBRARIES,
)
