"""A small residual network that scores every fourth pixel of a micrograph, and its application.

All its convolutions are without padding and none of its layers sees the whole image, so applying it
to a micrograph is the sliding window, each of whose convolutions is computed once, and tiles with
the right margin have no seams. PyTorch; arrays of NumPy or CuPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from emdask.backend import array_namespace
from emdask.kernels.mirroring import mirror_places
from emdask.kernels.picking import ScoreMap
from emdask.kernels.torch_arrays import (
    NamedArrays,
    fill_network,
    kept_network,
    precision_of,
    to_library,
    torch_for,
    within_memory,
)

__all__ = [
    "FIELD_PX",
    "STEP_PX",
    "Network",
    "build_network",
    "fold",
    "score_network",
]

Array = npt.NDArray[Any]

STEP_PX: Final = 4
# Of each block, how far apart the cells lie that its first convolution takes.
DILATIONS: Final = (1, 2, 2, 1, 1)
STEM_PX: Final = 7
# Window that a score depends on: the two strided convolutions, then two of 3 x 3 cells a block.
FIELD_PX: Final = STEM_PX + 2 * 2 + 2 * sum(d + 1 for d in DILATIONS) * STEP_PX
MARGIN_PX: Final = FIELD_PX // 2


class Block(nn.Module):
    """Two convolutions of 3 x 3 cells beside the identity, cut as they cut at borders."""

    def __init__(self, width: int, dilation: int, normalised: bool) -> None:
        super().__init__()
        self.lost = dilation + 1
        self.first = _Convolution(width, width, 3, normalised, dilation=dilation)
        self.second = _Convolution(width, width, 3, normalised)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        change = self.second(functional.relu(self.first(cells)))
        kept = slice(self.lost, -self.lost)
        return functional.relu(cells[..., kept, kept] + change)


class Network(nn.Module):
    """From images (n, 1, h, w) to logits (n, 1, h', w'), one for every `STEP_PX` pixels.

    Parameters
    ----------
    stem_width, width
        Channels at half and at a quarter of the resolution.
    normalised
        Whether batches are normalised, as in training from nothing; `fold` does away with it.
    """

    def __init__(self, stem_width: int, width: int, normalised: bool = False) -> None:
        super().__init__()
        self.stem = _Convolution(1, stem_width, STEM_PX, normalised, stride=2)
        self.down = _Convolution(stem_width, width, 3, normalised, stride=2)
        self.blocks = nn.Sequential(*(Block(width, d, normalised) for d in DILATIONS))
        self.hidden = nn.Conv2d(width, width, 1)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        cells = functional.relu(self.down(functional.relu(self.stem(images))))
        logits: torch.Tensor = self.head(functional.relu(self.hidden(self.blocks(cells))))
        return logits


class _Convolution(nn.Conv2d):
    """A convolution, without padding, whose channels may be normalised over the batch."""

    def __init__(self, n_in: int, n_out: int, side: int, normalised: bool, **how: int) -> None:
        super().__init__(n_in, n_out, side, **how)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(n_out) if normalised else None

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        result = super().forward(cells)
        return result if self.norm is None else self.norm(result)


def fold(network: Network) -> dict[str, Array]:
    """Return the weights of a network without normalisation that answers as this one does.

    Examples
    --------
    >>> sorted(fold(Network(2, 4, normalised=True)))[-2:]
    ['stem.bias', 'stem.weight']
    """
    state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    for name, layer in network.named_modules():
        if isinstance(layer, _Convolution) and (norm := layer.norm) is not None:
            assert norm.running_var is not None
            assert norm.running_mean is not None
            gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach()
            state[f"{name}.weight"] *= gain[:, None, None, None]
            bias = state[f"{name}.bias"] - norm.running_mean
            state[f"{name}.bias"] = norm.bias.detach() + gain * bias
    return {name: t.cpu().numpy() for name, t in state.items() if ".norm." not in name}


def build_network(arrays: Mapping[str, Array]) -> Network:
    """Make the network of given weights; its widths follow from their shapes.

    Raises
    ------
    KeyError, RuntimeError
        If they are not those of a `Network`.
    """
    network = Network(arrays["stem.weight"].shape[0], arrays["down.weight"].shape[0])
    return fill_network(network, arrays)


def score_network(image: Any, weights: NamedArrays, *, tile_px: int = 1024) -> ScoreMap:
    """Score a standard micrograph: how likely a particle's centre is near, from 0 to 1.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        NumPy or CuPy, as `emdask.kernels.standard_micrographs.standardise` makes it. Beyond its
        borders it is taken to be mirrored.
    weights
        Those of the network.
    tile_px
        Pixels along an edge of what is scored at once; the answer does not depend on it.

    Returns
    -------
    ScoreMap
        Of the image's library; the first cell is at the first pixel. In 32 bits on the CPU, by one
        thread; on a card in 16 bits, which moves scores by about 0.01.

    Raises
    ------
    MemoryError
        If the card has no room for it, as where CuPy finds none.
    """
    found: ScoreMap = within_memory(_score, image, weights, tile_px)
    return found


def _score(image: Any, weights: NamedArrays, tile_px: int) -> ScoreMap:
    height, width = image.shape
    n_rows, n_columns = (-(-n // STEP_PX) for n in (height, width))
    n_tile = max(1, tile_px // STEP_PX)
    padded = _mirror(image, n_rows, n_columns)
    with torch_for(padded) as tensor, torch.inference_mode():
        network = kept_network(weights, tensor.device, build_network)
        scores = torch.empty((n_rows, n_columns), dtype=torch.float32, device=tensor.device)
        for row in range(0, n_rows, n_tile):
            for column in range(0, n_columns, n_tile):
                n = min(n_tile, n_rows - row), min(n_tile, n_columns - column)
                tile = _cut(tensor, row, column, n)
                with precision_of(tensor.device):
                    logits = network(tile[None, None])[0, 0]
                scores[row : row + n[0], column : column + n[1]] = torch.sigmoid(logits.float())
    return ScoreMap(to_library(scores, image), STEP_PX, 0.0)


def _mirror(image: Any, n_rows: int, n_columns: int) -> Any:
    """Add what the windows of the outermost cells see beyond the borders."""
    xp = array_namespace(image)
    rows, columns = (
        xp.asarray(mirror_places(np.arange(-MARGIN_PX, STEP_PX * (n - 1) + MARGIN_PX + 1), length))
        for n, length in zip((n_rows, n_columns), image.shape, strict=True)
    )
    return xp.ascontiguousarray(image[rows[:, None], columns], dtype=np.float32)


def _cut(tensor: torch.Tensor, row: int, column: int, n: tuple[int, int]) -> torch.Tensor:
    """Return the pixels that so many cells from a place on depend on."""
    top, left = STEP_PX * row, STEP_PX * column
    height, width = (STEP_PX * (k - 1) + FIELD_PX for k in n)
    return tensor[top : top + height, left : left + width]
