"""U-net: a network that was shown noisy images and clean ones of other structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from emdask.io.weights import Weights
from emdask.method import Method, Training
from emdask.networks import LIBRARIES, NetworkParams, NetworkTrainingParams, open_network, suits

NAME = "unet"
# Networks that ship, by name.
SHIPPED = {
    name: Path(__file__).with_name("weights") / f"{name}.safetensors"
    for name in ("particles", "micrographs")
}


@dataclass(frozen=True, kw_only=True)
class UNet(NetworkParams):
    """Parameters of denoising by a U-net.

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
    ``model``: "particles" or "micrographs", which ship and have seen simulated images of random
    structures with noise of SNR 0.015 to 2, white and coloured, light on dark and dark on light; by
    default what the stack holds. Or what `emdask.train_denoiser` made. The CTF stays in the image.

    A network puts what it has seen before where noise leaves the choice: look at what becomes of
    noise alone before trusting detail, and reconstruct from the images as they were recorded.

    O. Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI
    2015; for micrographs, T. Bepler et al., "Topaz-Denoise: general deep denoising models for
    cryoEM and cryoET", Nature Communications 11 (2020). `emdask.kernels.denoising_network` tells
    of the layers.

    Examples
    --------
    >>> UNet().tile_px
    2048
    """

    method = NAME


@dataclass(frozen=True, kw_only=True)
class UNetTraining(NetworkTrainingParams):
    """What can be chosen of a U-net in training.

    Parameters
    ----------
    width, n_levels
        As of `emdask.networks.NetworkTrainingParams`.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    The loss is the mean logarithm of each image's error as a share of its signal, so images of all
    SNRs count alike; `emdask.kernels.denoiser_training.relative_errors`.
    """

    method = NAME


def load(model: Any, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Weights:
    """Open the network that was given, or of those that ship what suits the stack.

    Raises
    ------
    MissingLibraryError, FileNotFoundError, FormatError, ParameterError
    """
    return open_network(NAME, model, shipped=SHIPPED, default=suits(attrs, shape))


def denoise(images: Any, params: UNet, model: Weights) -> Any:
    """Denoise images; (n, h, w) to (n, h, w) float32, NumPy or CuPy."""
    # PyTorch takes seconds to load, and is not needed to list this method.
    from emdask.kernels.denoising_network import apply_network, build_unet

    return apply_network(
        images, model, build=build_unet, sigma=params.sigma, tile_px=params.tile_px
    )


def begin(params: UNetTraining, **how: Any) -> Any:
    """Begin to train a U-net on noisy images and clean ones."""
    from emdask.kernels.denoiser_training import DenoiserTraining, relative_errors, unet_objective

    return DenoiserTraining(unet_objective(params.widths, relative_errors), **how)


METHOD = Method(
    params=UNet,
    apply={"cpu": denoise, "cuda": denoise},
    load=load,
    training=Training(
        params=UNetTraining, begin=begin, takes="clean", stride=attrgetter("stride_px")
    ),
    libraries=LIBRARIES,
)
