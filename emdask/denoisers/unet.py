"""U-net: a network that was shown noisy images and clean ones of other structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from emdask.checks import check_integer, check_sigma
from emdask.io.weights import Weights
from emdask.method import Method, Training, noise_parameter, parameter
from emdask.networks import LIBRARIES, open_network, suits

NAME = "unet"
# Networks that ship, by name.
SHIPPED = {
    name: Path(__file__).with_name("weights") / f"{name}.safetensors"
    for name in ("particles", "micrographs")
}
LEAST_TILE_PX = 256
MOST_LEVELS = 6


@dataclass(frozen=True, kw_only=True)
class UNet:
    """Parameters of denoising by a U-net.

    Parameters
    ----------
    sigma
        Standard deviation of the noise in grey levels, or "auto": estimated image by image.
    tile_px
        Edge of what is denoised at once, in px; more takes more memory, about 250 bytes a pixel of
        the tile. Tiles overlap by all that the network reaches, so they have no seams.

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

    sigma: Literal["auto"] | float = noise_parameter()
    tile_px: int = parameter(2048, "edge of what is denoised at once; more takes more memory", "px")

    def __post_init__(self) -> None:
        check_network(NAME, self)


@dataclass(frozen=True, kw_only=True)
class UNetTraining:
    """What can be chosen of a U-net in training.

    Parameters
    ----------
    width
        Channels at half of the resolution; twice, three times, ... as many at a quarter, an eighth,
        ...
    n_levels
        Resolutions, each half of the one before.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    The loss is the mean logarithm of each image's error as a share of its signal, so images of all
    SNRs count alike; `emdask.kernels.denoiser_training.relative_errors`.
    """

    width: int = parameter(32, "channels at half of the resolution; more at coarser ones")
    n_levels: int = parameter(4, "resolutions, each half of the one before")

    def __post_init__(self) -> None:
        check_integer(NAME, "width", self.width, 1)
        check_integer(NAME, "n_levels", self.n_levels, 1, MOST_LEVELS)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution."""
        return tuple(self.width * (i + 1) for i in range(self.n_levels))

    @property
    def stride_px(self) -> int:
        """Multiple of which the edges of an image are."""
        return int(2**self.n_levels)


def check_network(name: str, params: Any) -> None:
    """Check what all networks have.

    Parameters
    ----------
    name
        Of the method.
    params
        Record with ``sigma`` and ``tile_px``.

    Raises
    ------
    ParameterError
    """
    check_sigma(name, params.sigma)
    check_integer(name, "tile_px", params.tile_px, LEAST_TILE_PX)


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
