"""A small residual network, trained on simulated micrographs of many structures, and some real."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emdask.checks import check_integer, require, sentence
from emdask.errors import MissingLibraryError, ParameterError
from emdask.io.weights import Weights, open_weights
from emdask.kernels.picking import ScoreMap
from emdask.kernels.standard_micrographs import STANDARD_PX
from emdask.method import Picker, parameter

NAME = "cnn"
THRESHOLD = 0.1
# Networks that ship, by name.
SHIPPED = Path(__file__).with_name("weights")
SHIPPED_NAMES = ("general", "simulated")
LEAST_TILE_PX = 64


@dataclass(frozen=True, kw_only=True)
class CNN:
    """Parameters of picking by a network.

    Parameters
    ----------
    model
        "general" knows simulated micrographs of many structures and beta-galactosidase
        (EMPIAR-10017), "simulated" the former alone; or the path of what `emdask.train_picker` made
        and `emdask.save_model` wrote; or what `emdask.train_picker` returned.
    tile_px
        Edge of what is scored at once, in px of the standard micrograph; more takes more memory.
        The answer does not depend on it.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    A score is the network's probability that a particle's centre is within a quarter of a diameter
    or so (`emdask.kernels.scoring_network.score_network`). On a card it works in 16 bits.

    Examples
    --------
    >>> CNN(model="simulated").tile_px
    1024
    """

    model: str | Weights = parameter(  # noqa: RUF009
        "general", "the network: general, simulated, or a .safetensors file of train-picker"
    )
    tile_px: int = parameter(1024, "edge of what is scored at once; more takes more memory", "px")

    def __post_init__(self) -> None:
        rule = "model must be general, simulated, a path, or weights"
        is_known = isinstance(self.model, str | Path | Weights)
        require(is_known, NAME, rule, type(self.model).__name__)
        check_integer(NAME, "tile_px", self.tile_px, LEAST_TILE_PX)


def load(params: CNN, diameter_A: float | None) -> Weights:
    """Return the weights of the network.

    Parameters
    ----------
    params
        Parameters.
    diameter_A
        Of no account: the network sees every particle at one size.

    Raises
    ------
    MissingLibraryError
        Where there is no PyTorch.
    FileNotFoundError, FormatError, ParameterError
        If there are no such weights, or of another kind of network.
    """
    if importlib.util.find_spec("torch") is None:
        remedy = "pip install 'emdask[torch]', or take another method: log, template."
        raise MissingLibraryError(sentence(NAME, "needs PyTorch", remedy=remedy))
    weights = params.model if isinstance(params.model, Weights) else _open(params.model)
    shapes, known = _shapes(weights), _shapes(_open(SHIPPED_NAMES[0]))
    if shapes != known:
        others = sorted(set(shapes.items()) ^ set(known.items()))
        rule = "model must hold the weights of a network that picks, as train-picker makes them"
        raise ParameterError(sentence(NAME, rule, f"{others[0][0]} of {others[0][1]}"))
    finite = all(bool(np.isfinite(array).all()) for array in weights.arrays.values())
    require(finite, NAME, "weights must be finite", remedy="Train the network anew.")
    return weights


def _shapes(weights: Weights) -> dict[str, tuple[int, ...]]:
    return {name: tuple(array.shape) for name, array in weights.arrays.items()}


def _open(model: str | Path) -> Weights:
    if model in SHIPPED_NAMES:
        return open_weights(SHIPPED / f"{model}.safetensors")
    path = Path(model).expanduser()
    rule = f"model must be {', '.join(SHIPPED_NAMES)}, or a file of weights"
    require(path.suffix != "" or path.exists(), NAME, rule, str(model))
    return open_weights(path)


def threshold_of(model: Weights) -> float:
    """Return the threshold that a network was given when it was trained, or that of the method.

    Raises
    ------
    ParameterError
        If it is not a finite number.

    Examples
    --------
    >>> threshold_of(Weights({})), threshold_of(Weights({}, {"threshold": "0.4"}))
    (0.1, 0.4)
    """
    told = model.about.get("threshold", f"{THRESHOLD}")
    try:
        threshold = float(told)
    except ValueError:
        threshold = math.nan
    rule = "the threshold in a model's metadata must be a finite number"
    require(math.isfinite(threshold), NAME, rule, repr(told))
    return threshold


def score(image: Any, params: CNN, model: Weights) -> ScoreMap:
    """Score a micrograph; NumPy or CuPy.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Standard micrograph.
    params
        Parameters.
    model
        Weights.

    Returns
    -------
    ScoreMap
        A cell for every fourth pixel.
    """
    # PyTorch takes seconds to load, and is not needed to list this method.
    from emdask.kernels.scoring_network import score_network

    return score_network(image, model, tile_px=params.tile_px)


METHOD = Picker(
    params=CNN,
    score={"cpu": score, "cuda": score},
    standard_px=STANDARD_PX,
    threshold=THRESHOLD,
    load=load,
    threshold_of=threshold_of,
)
