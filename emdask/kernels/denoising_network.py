"""A U-net that denoises, and how networks from images to images are applied to any size.

Its convolutions are padded with zeros, at the border of an image as of a tile, and none of its
layers sees the whole image: tiles with the margin that it reaches have no seams. PyTorch; arrays of
NumPy or CuPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from emdask.backend import array_namespace
from emdask.kernels.mirroring import mirror_places
from emdask.kernels.torch_arrays import (
    NamedArrays,
    fill_network,
    kept_network,
    repeatable,
    to_library,
    torch_for,
    within_memory,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise

__all__ = ["UNet", "apply_network", "build_unet", "draw_unet", "state_arrays", "where_finite"]

Array = npt.NDArray[Any]

# Channels at 1/2, 1/4, ... of the resolution.
WIDTHS: Final = (32, 64, 96, 128)
# Of a card at once: a network needs some 300 bytes a pixel.
PIXELS_AT_ONCE: Final = 1 << 20
IMAGES_AT_ONCE: Final = 32


class TiledNetwork(Protocol):
    """What tiles need to know of a network."""

    @property
    def stride(self) -> int:
        """Multiple of pixels that the edges of an image must be."""
        ...

    @property
    def reach_px(self) -> int:
        """How far from a pixel of the result what it depends on may lie."""
        ...

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 1, h, w) to the same."""
        ...


class Residual(nn.Module):
    """Two convolutions of 3 x 3 cells beside the identity, activated first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        change: torch.Tensor = self.second(
            functional.relu(self.first(functional.relu(cells)), inplace=True)
        )
        return change.add_(cells) if torch.is_inference_mode_enabled() else cells + change


class UNet(nn.Module):
    """From images (n, 1, h, w) of unit noise to denoised ones, h and w multiples of ``stride``.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, ... of the resolution.

    Notes
    -----
    Ronneberger et al., "U-Net: convolutional networks for biomedical image segmentation", MICCAI
    2015, with residual blocks (He et al., ECCV 2016) and sums for concatenations. Squares of 2 x 2
    pixels become channels at once: where noise prevails, single pixels tell little.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        steps = list(pairwise(widths))
        self.stem = nn.Conv2d(4, widths[0], 3, padding=1)
        self.before = nn.ModuleList(Residual(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.middle = Residual(widths[-1])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in steps
        )
        self.after = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], 4, 3, padding=1)

    @property
    def stride(self) -> int:
        """Multiple of pixels that the edges of an image must be."""
        return int(2 ** len(self.before))

    @property
    def reach_px(self) -> int:
        """How far from a pixel of the result what it depends on may lie."""
        # Four convolutions at each scale, stem and head at the finest, and where a pixel lies
        # within its coarsest cell.
        scales = [2 << i for i in range(len(self.before))]
        return 2 * scales[0] + 4 * sum(scales) + scales[-1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = self.stem(functional.pixel_unshuffle(images, 2))
        kept = []
        for i, block in enumerate(self.before):
            if i > 0:
                cells = self.down[i - 1](cells)
            cells = block(cells)
            kept.append(cells)
        cells = self.middle(kept.pop())
        for i in reversed(range(len(self.up))):
            cells = self.after[i](self.up[i](cells) + kept.pop())
        return functional.pixel_shuffle(self.head(functional.relu(cells)), 2)


def draw_unet(seed: int, widths: Sequence[int] = WIDTHS) -> UNet:
    """Draw the first weights of a U-net: blocks begin as the identity, and the answer as 0.

    Parameters
    ----------
    seed
        Of the weights.
    widths
        As of `UNet`.

    Notes
    -----
    He et al., "Delving deep into rectifiers", ICCV 2015; last layers of blocks begin with zeros
    (Zhang et al., "Fixup initialization", ICLR 2019).

    Examples
    --------
    >>> float(draw_unet(0, (4, 8))(torch.ones(1, 1, 8, 8)).detach().abs().max())
    0.0
    """
    network = UNet(widths)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim == 1 or name.startswith("head.") or ".second." in name:
                parameter.zero_()
                continue
            gain = 2.0 if ".first." in name else 1.0
            # Of a transposed convolution without overlap each pixel has one cell of each channel.
            n_terms = parameter.shape[0] if name.startswith("up.") else parameter[0].numel()
            parameter.normal_(0, math.sqrt(gain / n_terms), generator=generator)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def build_unet(arrays: Mapping[str, Array]) -> UNet:
    """Make the U-net of given weights; its widths follow from their shapes.

    Raises
    ------
    KeyError, RuntimeError
        If they are not those of a `UNet`.

    Examples
    --------
    >>> build_unet(state_arrays(draw_unet(0, (4, 8)))).stride
    4
    """
    widths = [arrays["stem.weight"].shape[0]]
    while (name := f"down.{len(widths) - 1}.weight") in arrays:
        widths.append(arrays[name].shape[0])
    return fill_network(UNet(widths), arrays)


def state_arrays(network: nn.Module) -> dict[str, Array]:
    """Return the weights of a network by name, on the host.

    Examples
    --------
    >>> state_arrays(draw_unet(0, (4, 8)))["head.bias"].tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    return {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}


# --- Application ----------------------------------------------------------------------------------


def apply_network(
    images: Any,
    weights: NamedArrays,
    *,
    build: Callable[[Mapping[str, Array]], Any],
    sigma: Any = "auto",
    tile_px: int = 2048,
) -> Any:
    """Denoise images by a network that knows images of unit noise.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    weights
        Those of the network.
    build
        Makes the network of them, a `TiledNetwork`; a process keeps it.
    sigma
        Standard deviation of the noise in grey levels, or "auto": estimated image by image.
    tile_px
        Edge of what is denoised at once, where images are larger; the answer depends on it by
        rounding alone.

    Returns
    -------
    (n, h, w) float32
        Of the images' library. In 32 bits on the CPU, image by image by one thread; on a card in 16
        bits, but for images that these do not hold.

    Raises
    ------
    MemoryError
        If the card has no room for it, as where CuPy finds none.
    """
    on_unit = partial(within_memory, _apply, weights, build, tile_px)
    return denoise_at_unit_noise(images, sigma, on_unit)


def _apply(
    weights: NamedArrays,
    build: Callable[[Mapping[str, Array]], Any],
    tile_px: int,
    images: Any,
) -> Any:
    if images.size == 0:
        return images
    xp = array_namespace(images)
    result = xp.empty(images.shape, np.float32)
    height, width = images.shape[1:]
    with torch_for(xp.ascontiguousarray(images)) as tensor, torch.inference_mode(), repeatable():
        network = kept_network(weights, tensor.device, build)
        size = [-(-n // network.stride) * network.stride for n in (height, width)]
        step = _at_once(xp, size, tile_px)
        for start in range(0, len(images), step):
            given = _pad(tensor[start : start + step], size, step)
            found = _denoise(network, given[:, None], tile_px)[:, 0, :height, :width]
            some = result[start : start + step]
            some[...] = to_library(found[: len(some)].contiguous(), images)
    return result


def _denoise(network: TiledNetwork, images: torch.Tensor, tile_px: int) -> torch.Tensor:
    """Apply a network to images whose edges are multiples of its stride; on a card in 16 bits."""

    def apply() -> torch.Tensor:
        return _by_tiles(network, images, tile_px)

    if images.device.type == "cpu":
        return apply()
    # Of the two kinds that which has three more bits for what is after the point.
    with torch.autocast(images.device.type, dtype=torch.float16):
        short = apply()
    return where_finite(short, apply)


def where_finite(short: torch.Tensor, apply: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Take images that 16 bits could not hold from a computation in 32 bits.

    Parameters
    ----------
    short
        Images, (n, ...).
    apply
        Returns the same in 32 bits; called where it is needed.

    Examples
    --------
    >>> short = torch.tensor([[1.0, 2.0], [3.0, torch.inf]])
    >>> where_finite(short, lambda: torch.full((2, 2), 7.0)).tolist()
    [[1.0, 2.0], [7.0, 7.0]]
    """
    fits = short.isfinite().flatten(1).all(dim=1)
    if bool(fits.all()):
        return short
    return torch.where(fits.view(-1, *[1] * (short.ndim - 1)), short, apply())


def _at_once(xp: Any, size: Sequence[int], tile_px: int) -> int:
    """Images of a batch: always as many, because libraries round otherwise for other numbers."""
    if xp is np:
        return 1
    return max(1, min(IMAGES_AT_ONCE, PIXELS_AT_ONCE // min(math.prod(size), tile_px**2)))


def _pad(images: torch.Tensor, size: Sequence[int], n_images: int) -> torch.Tensor:
    """Mirror images beyond their lower and right edges, and repeat them, to a size and a number."""
    rows, columns = (
        torch.from_numpy(mirror_places(np.arange(n), length)).to(images.device)
        for n, length in zip(size, images.shape[1:], strict=True)
    )
    numbers = torch.arange(n_images, device=images.device) % len(images)
    return images[numbers[:, None, None], rows[:, None], columns]


def _by_tiles(network: TiledNetwork, images: torch.Tensor, tile_px: int) -> torch.Tensor:
    """Apply a network to images whose edges are multiples of its stride, tile by tile."""
    height, width = images.shape[2:]
    if height <= tile_px and width <= tile_px:
        return network(images).float()
    result = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for rows, inner_rows, kept_rows in _tiles(height, tile_px, network):
        for columns, inner_columns, kept_columns in _tiles(width, tile_px, network):
            found = network(images[..., rows, columns])[..., kept_rows, kept_columns]
            result[..., inner_rows, inner_columns] = found.float()
    return result


def _tiles(
    length: int, tile_px: int, network: TiledNetwork
) -> Iterator[tuple[slice, slice, slice]]:
    """What each tile sees of a line, what it fills, and where that is in what it sees."""
    stride = network.stride
    margin = -(-network.reach_px // stride) * stride
    n_tiles = -(-length // max(tile_px, stride))
    step = -(-length // (n_tiles * stride)) * stride
    for start in range(0, length, step):
        stop = min(start + step, length)
        first, last = max(0, start - margin), min(length, stop + margin)
        yield slice(first, last), slice(start, stop), slice(start - first, stop - first)
