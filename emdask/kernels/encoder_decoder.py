"""The encoder-decoders of the methods gan, autoencoder and vae: convolutional, for any image size.

Layers with strides have kernels that are a multiple of them, so each pixel is made by as many terms
as the next: otherwise a checkerboard shows (Odena et al., "Deconvolution and checkerboard
artifacts", Distill 2016). PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from emdask.kernels.denoising_network import Residual
from emdask.kernels.torch_arrays import Net, fill_network

__all__ = [
    "EncoderDecoder",
    "Variational",
    "build_encoder_decoder",
    "build_variational",
    "draw_encoder_decoder",
    "draw_variational",
    "kl_divergence",
]

Array = npt.NDArray[Any]

WIDTHS: Final = (32, 64, 96, 128)
LATENT: Final = 8
# Logarithm of the variance that latent variables begin with.
FIRST_LOG_VARIANCE: Final = -3.0
# Power of the first answer, as a share of that of what it is made of.
FIRST_ANSWER: Final = 0.1


class Encoder(nn.Module):
    """From images (n, 1, h, w) to cells (n, widths[-1], h / stride, w / stride)."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1) for fine, coarse in pairwise(widths)
        )
        self.block = Residual(widths[-1])
        self.stride = 2 ** len(widths)
        # Down and up, a layer sees a cell of its finer side beyond its own two; the coarsest cells
        # see four of each other, in either half; and a pixel lies anywhere in its coarsest cell.
        self.reach_px = 2 * sum(2**i for i in range(len(widths))) + 5 * self.stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = self.stem(images)
        for layer in self.down:
            cells = layer(functional.relu(cells))
        found: torch.Tensor = self.block(cells)
        return found


class Decoder(nn.Module):
    """From cells back to images."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.block = Residual(widths[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1)
            for fine, coarse in reversed(list(pairwise(widths)))
        )
        self.head = nn.ConvTranspose2d(widths[0], 1, 4, stride=2, padding=1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        cells = self.block(cells)
        for layer in self.up:
            cells = layer(functional.relu(cells))
        images: torch.Tensor = self.head(functional.relu(cells))
        return images


class EncoderDecoder(nn.Module):
    """From images (n, 1, h, w) to images, h and w multiples of ``stride``, without shortcuts.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, ... of the resolution.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.encoder = Encoder(widths)
        self.decoder = Decoder(widths)

    @property
    def stride(self) -> int:
        """Multiple of pixels that the edges of an image must be."""
        return int(self.encoder.stride)

    @property
    def reach_px(self) -> int:
        """How far from a pixel of the result what it depends on may lie."""
        return int(self.encoder.reach_px)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.decoder(self.encoder(images))
        return found


class Variational(nn.Module):
    """An encoder-decoder whose cells are drawn from normal distributions.

    Parameters
    ----------
    widths
        As of `EncoderDecoder`.
    latent
        Latent variables of each coarsest cell.

    Notes
    -----
    D. Kingma and M. Welling, "Auto-encoding variational Bayes", ICLR 2014.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, latent: int = LATENT) -> None:
        super().__init__()
        self.encoder = Encoder(widths)
        self.mean = nn.Conv2d(widths[-1], latent, 1)
        self.log_variance = nn.Conv2d(widths[-1], latent, 1)
        self.spread = nn.Conv2d(latent, widths[-1], 1)
        self.decoder = Decoder(widths)

    @property
    def stride(self) -> int:
        """Multiple of pixels that the edges of an image must be."""
        return int(self.encoder.stride)

    @property
    def reach_px(self) -> int:
        """How far from a pixel of the result what it depends on may lie."""
        return int(self.encoder.reach_px)

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and logarithm of the variance of latent variables.

        Each is (n, latent, h / stride, w / stride).
        """
        cells = functional.relu(self.encoder(images))
        return self.mean(cells), self.log_variance(cells)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Return the images (n, 1, h, w) of latent variables."""
        images: torch.Tensor = self.decoder(self.spread(latent))
        return images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(images)[0])


def sample_latent(
    mean: torch.Tensor, log_variance: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Draw latent variables, so that gradients reach mean and variance."""
    noise = torch.empty_like(mean).normal_(generator=generator)
    return mean + torch.exp(0.5 * log_variance) * noise


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return how far latent variables are from a standard normal distribution, (n,), in nats.

    Parameters
    ----------
    mean, log_variance : tensor, shape (n, ...)
        Of latent variables.

    Notes
    -----
    Kingma and Welling (2014), appendix B, summed over the variables of an image.

    Examples
    --------
    >>> kl_divergence(torch.tensor([[1.0]]), torch.tensor([[0.0]])).tolist()
    [0.5]
    """
    terms = mean.square() + log_variance.exp() - 1 - log_variance
    return 0.5 * terms.flatten(1).sum(dim=1)


def draw_encoder_decoder(seed: int, widths: Sequence[int] = WIDTHS) -> EncoderDecoder:
    """Draw the first weights; the answer begins weakly.

    Notes
    -----
    He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    return _draw(EncoderDecoder(widths), seed)


def draw_variational(
    seed: int, widths: Sequence[int] = WIDTHS, latent: int = LATENT
) -> Variational:
    """Draw the first weights; the answer begins weakly, variances as exp(-3)."""
    network = _draw(Variational(widths, latent), seed)
    assert network.log_variance.bias is not None
    with torch.no_grad():
        network.log_variance.weight.zero_()
        network.log_variance.bias.fill_(FIRST_LOG_VARIANCE)
    return network


def _draw(network: Net, seed: int) -> Net:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, layer in network.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                continue
            assert layer.bias is not None
            layer.bias.zero_()
            if name.endswith("block.second"):
                layer.weight.zero_()
                continue
            # Kernels of 4 by strides of 2: four terms of each channel make a pixel.
            n_terms = layer.in_channels * 4
            if isinstance(layer, nn.Conv2d):
                n_terms = layer.weight[0].numel()
            gain = 1.0 if name in ("encoder.stem", "spread", "mean") else 2.0
            # Not 0, where absolute errors of what is mostly background would like to stay.
            gain *= FIRST_ANSWER if name.endswith("head") else 1.0
            layer.weight.normal_(0, math.sqrt(gain / n_terms), generator=generator)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_encoder_decoder(arrays: Mapping[str, Array]) -> EncoderDecoder:
    """Make the network of given weights; its widths follow from their shapes.

    Raises
    ------
    KeyError, RuntimeError
        If they are not those of an `EncoderDecoder`.
    """
    return fill_network(EncoderDecoder(_widths(arrays)), arrays)


def build_variational(arrays: Mapping[str, Array]) -> Variational:
    """Make the network of given weights; its widths follow from their shapes.

    Raises
    ------
    KeyError, RuntimeError
        If they are not those of a `Variational`.
    """
    network = Variational(_widths(arrays), arrays["mean.bias"].shape[0])
    return fill_network(network, arrays)


def _widths(arrays: Mapping[str, Array]) -> list[int]:
    widths = [arrays["encoder.stem.weight"].shape[0]]
    while (name := f"encoder.down.{len(widths) - 1}.weight") in arrays:
        widths.append(arrays[name].shape[0])
    return widths
