"""Models that a method has learnt: datasets, kept as Zarr groups, and weights of networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from emdask.checks import require, sentence
from emdask.errors import FormatError
from emdask.io.output import remove_path, replace_path
from emdask.io.weights import SUFFIX as WEIGHTS_SUFFIX
from emdask.io.weights import Weights, open_weights, save_weights

SUFFIX = ".zarr"


def save_model(model: xr.Dataset | Weights, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write what `emdask.learn_denoiser` or `emdask.train_picker` learnt, to be used elsewhere.

    Parameters
    ----------
    model
        The model, computed: a dataset, whose attribute ``method`` names the method, or weights.
    path
        Target; its name ends in ``.zarr``, that of weights in ``.safetensors``.
    overwrite
        Whether an existing model gives way.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ParameterError
        If it is no model, or the name ends otherwise.
    FileExistsError
        If there is something of that name.

    Examples
    --------
    >>> import tempfile
    >>> model = xr.Dataset({"atoms": ("atom", [1.0, 2.0])}, attrs={"method": "ksvd"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_model(save_model(model, f"{folder}/model.zarr")).atoms.values
    array([1., 2.])
    """
    path = Path(path)
    if isinstance(model, Weights):
        return save_weights(model, path, overwrite=overwrite)
    is_model = isinstance(model, xr.Dataset) and "method" in model.attrs
    remedy = "Give what learn_denoiser(...).compute() or train_picker(...) returned."
    require(is_model, "save_model", "needs a model", type(model).__name__, remedy)
    check_model_target(path, overwrite=overwrite)
    draft = path.with_name(f"{path.name}.partial")
    remove_path(draft)
    model.to_zarr(draft, zarr_format=3, consolidated=False)
    replace_path(draft, path)
    return path


def check_model_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse, before hours of work, a target that `save_model` would refuse after them.

    This is for datasets; `emdask.io.weights.check_weights_target` is for weights.

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError
    """
    path = Path(path)
    require(path.suffix == SUFFIX, str(path), f"a model's name must end in {SUFFIX}", path.name)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    if path.exists() and not (overwrite and is_model(path)):
        rule = "exists already" if is_model(path) else "exists already and is no model"
        remedy = "Name another one, or pass overwrite=True (--overwrite)."
        if not is_model(path):
            remedy = "Name another one."
        raise FileExistsError(sentence(str(path), rule, remedy=remedy))


def open_model(path: str | Path) -> Any:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path
        The Zarr group, or a ``.safetensors`` file.

    Returns
    -------
    xarray.Dataset or Weights
        In memory; weights of what ends in ``.safetensors``.

    Raises
    ------
    FileNotFoundError, FormatError
        If there is none, or it is something else.

    Examples
    --------
    >>> open_model("no/such.zarr")
    Traceback (most recent call last):
    FileNotFoundError: no/such.zarr: no such model.
    """
    if not Path(path).exists():
        raise FileNotFoundError(sentence(str(path), "no such model"))
    if Path(path).suffix.lower() == WEIGHTS_SUFFIX:
        return open_weights(path)
    if not is_model(path):
        rule = "is not a model"
        remedy = "Models are written by save_model() or emdask denoise --save-model."
        raise FormatError(sentence(str(path), rule, remedy=remedy))
    with xr.open_zarr(path, consolidated=False, chunks=None) as model:
        loaded: xr.Dataset = model.load()
    return loaded


def is_model(path: str | Path) -> bool:
    """Whether there is a Zarr group that says of which method it is the model."""
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as found:
            return "method" in found.attrs
    except (OSError, ValueError, KeyError):
        return False
