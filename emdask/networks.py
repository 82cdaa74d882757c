"""Networks that denoise: what all have, how their weights are found, and whether they suit."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from emdask.checks import check_integer, check_sigma, require, sentence
from emdask.errors import MissingLibraryError
from emdask.io.weights import SUFFIX, Weights, open_weights
from emdask.method import noise_parameter, parameter

LIBRARIES = ("torch", "safetensors")
# Of the stacks of which nothing says what they hold, those of larger images are micrographs.
LARGEST_BOX_PX = 512
LEAST_TILE_PX = 256
MOST_LEVELS = 6


@dataclass(frozen=True, kw_only=True)
class NetworkParams:
    """Parameters of denoising by any network.

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
    """

    method: ClassVar[str]
    sigma: Literal["auto"] | float = noise_parameter()
    tile_px: int = parameter(2048, "edge of what is denoised at once; more takes more memory", "px")

    def __post_init__(self) -> None:
        check_sigma(self.method, self.sigma)
        check_integer(self.method, "tile_px", self.tile_px, LEAST_TILE_PX)


@dataclass(frozen=True, kw_only=True)
class NetworkTrainingParams:
    """What can be chosen of any network in training.

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
    """

    method: ClassVar[str]
    width: int = parameter(32, "channels at half of the resolution; more at coarser ones")
    n_levels: int = parameter(4, "resolutions, each half of the one before")

    def __post_init__(self) -> None:
        check_integer(self.method, "width", self.width, 1)
        check_integer(self.method, "n_levels", self.n_levels, 1, MOST_LEVELS)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution."""
        return tuple(self.width * (i + 1) for i in range(self.n_levels))

    @property
    def stride_px(self) -> int:
        """Multiple of which the edges of an image are."""
        return int(2**self.n_levels)


def open_network(
    name: str, model: Any, *, shipped: Mapping[str, Path], default: str | None = None
) -> Weights:
    """Return the weights of a method's network.

    Parameters
    ----------
    name
        Of the method.
    model
        What the user gave: weights, the path of some, the name of some that ship, or None.
    shipped
        Names of those that ship, and where they are.
    default
        Name of those that None stands for; None where the user has to choose.

    Returns
    -------
    Weights

    Raises
    ------
    MissingLibraryError
        Where there is no PyTorch.
    FileNotFoundError, FormatError, ParameterError
        If there are no such weights, or they are of another method.

    Examples
    --------
    >>> open_network("unet", Weights({}, {"method": "gan"}), shipped={})
    Traceback (most recent call last):
    emdask.errors.ParameterError: unet: model must be one that was trained for unet; got 'gan'...
    """
    if importlib.util.find_spec("torch") is None:
        remedy = "pip install 'emdask[torch]', or take another method."
        raise MissingLibraryError(sentence(name, "needs PyTorch", remedy=remedy))
    model = default if model is None else model
    remedy = "Train one: train_denoiser(stack, ...), or emdask train-denoiser."
    require(model is not None, name, "needs a model, as none ships", remedy=remedy)
    weights = model if isinstance(model, Weights) else _open(name, model, shipped)
    method = weights.about.get("method")
    remedy = f"Call denoise(..., {method!r}, model=...)." if method else ""
    rule = f"model must be one that was trained for {name}"
    require(method == name, name, rule, method, remedy)
    finite = all(bool(np.isfinite(array).all()) for array in weights.arrays.values())
    require(finite, name, "weights must be finite", remedy="Train the network anew.")
    return weights


def open_trained(
    name: str, model: Any, attrs: Mapping[str, Any], shape: tuple[int, ...]
) -> Weights:
    """Open the network of a method of which none ships, as ``load`` of its record.

    Raises
    ------
    MissingLibraryError, FileNotFoundError, FormatError, ParameterError
    """
    return open_network(name, model, shipped={})


def _open(name: str, model: Any, shipped: Mapping[str, Path]) -> Weights:
    rule = "model must be weights, a path of some, or a name"
    require(isinstance(model, str | Path), name, rule, type(model).__name__)
    if model in shipped:
        return open_weights(shipped[str(model)])
    path = Path(model).expanduser()
    is_file = path.suffix == SUFFIX or path.exists()
    known = f"one of {', '.join(shipped)}, or " if shipped else ""
    require(is_file, name, f"model must be {known}a {SUFFIX} file", str(model))
    return open_weights(path)


def suits(attrs: Mapping[str, Any], shape: tuple[int, ...]) -> str:
    """Return what a stack holds, "particles" or "micrographs", as far as can be told.

    Parameters
    ----------
    attrs
        Of the stack.
    shape
        (n, h, w).

    Examples
    --------
    >>> suits({}, (9, 128, 128)), suits({"kind": "micrographs"}, (9, 128, 128))
    ('particles', 'micrographs')
    """
    kind = attrs.get("kind")
    if kind in ("particles", "micrographs"):
        return str(kind)
    return "particles" if max(shape[1:]) <= LARGEST_BOX_PX else "micrographs"
