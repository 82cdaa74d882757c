"""Denoisers: every other file of this package is one method."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xarray as xr
from dask.delayed import Delayed

from emdask.backend import check_device
from emdask.checks import check_choice, require
from emdask.io import open_model
from emdask.io.weights import Weights
from emdask.kernels.ctf import Optics
from emdask.lazy import BAD_PIXELS, learn_model, map_images, stored_parameters
from emdask.method import Method, learns, resolve_method
from emdask.stack import (
    CORRECTED,
    add_provenance,
    as_stack,
    image_ids,
    is_whitened,
    like_input,
    optics_of,
)

FAMILY = __name__
PIXEL_SIZE = "pixel_size_A"
# As far as pixel sizes of one microscope are calibrated.
SAME_SIZE = 0.01


def denoise(
    stack: Any,
    method: str | Any = "bm3d",
    *,
    model: Any = None,
    device: str | None = None,
    bad_pixels: str = "raise",
    **parameters: Any,
) -> Any:
    """Denoise micrographs or particle images, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Images in grey levels of any scale. Chunks along y and x are merged: a block holds whole
        images.
    method
        Name of a method (``emdask methods`` lists them) or an instance of its parameter record.
    model
        What `learn_denoiser` returned, or the path of what `save_model` wrote, for methods that
        learn; without it the model is learnt from ``stack`` within the same graph, which suits
        small stacks. For methods that are networks, what `emdask.train_denoiser` returned, the path
        of it, or the name of one that ships; a worker loads it once.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``. A device that is named
        never falls back to another one.
    bad_pixels
        "raise" refuses NaN and infinite pixels, naming the image, when its block is computed;
        "replace" puts the mean of the image's finite pixels there.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    xarray.DataArray or dask.array.Array
        Same dims, float32, lazy: a stack for a stack, a Dask array for an array. A stack keeps its
        coordinates and attributes, and the attribute ``provenance`` gains the method and its
        parameters. Blocks are computed whole: to look at one image, denoise ``stack[5:6]``.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, DeviceError
        At once, before anything is computed.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(size=(2, 32, 32)).astype("f4")
    >>> clean = denoise(images, method="bm3d", sigma=1.0)
    >>> clean.shape, bool(clean.compute().std() < 0.5)
    ((2, 32, 32), True)
    """
    name, record, params = resolve_method(FAMILY, method, parameters)
    device = check_device(device, name, record.apply)
    check_choice(name, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_stack(stack)
    optics = optics_of(source) if record.takes_optics else None
    model = _check_model(model, name, record, params, source, optics)
    params = complete_params(record, params, source)
    if learns(record, params) and model is None:
        model = _learn(source, name, record, params, optics, device, bad_pixels)
    images = map_images(
        source.data,
        record,
        params,
        name=name,
        device=device,
        model=model,
        optics=optics,
        bad_pixels=bad_pixels,
    )
    attrs = add_provenance(source.attrs, name, asdict(params) | _about_model(model))
    if optics is not None and record.corrects is not None and record.corrects(params):
        attrs["ctf_state"] = CORRECTED
    return like_input(source.copy(deep=False, data=images).assign_attrs(attrs), stack)


def learn_denoiser(
    stack: Any,
    method: str | Any,
    *,
    device: str | None = None,
    bad_pixels: str = "raise",
    **parameters: Any,
) -> Any:
    """Learn a denoiser's model from a stack in one pass, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Images to learn from.
    method
        Name of a method that learns, or an instance of its parameter record.
    device
        As of `denoise`, for methods that can learn on a card; others learn on the processor.
    bad_pixels
        As of `denoise`.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` gives the model, an `xarray.Dataset`, to be passed to ``denoise(...,
        model=model)`` or kept by `save_model`. For large
        stacks always compute it first: in one graph a rechunk or a slice would hold the whole
        stack in memory.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError
        At once; StackError where the method has nothing to learn.

    Examples
    --------
    >>> import numpy as np
    >>> learn_denoiser(np.zeros((1, 16, 16), "f4"), "bm3d")
    Traceback (most recent call last):
    emdask.errors.StackError: bm3d: has nothing to learn. Call denoise() at once.
    """
    name, record, params = resolve_method(FAMILY, method, parameters)
    device = check_device(device, name, record.apply)
    check_choice(name, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_stack(stack)
    params = complete_params(record, params, source)
    optics = optics_of(source) if record.takes_optics else None
    return _learn(source, name, record, params, optics, device, bad_pixels)


def _about_model(model: Any) -> dict[str, Any]:
    """What the provenance tells of a model."""
    if isinstance(model, xr.Dataset):
        return {"model": dict(model.attrs)}
    if isinstance(model, Weights):
        return {"model": {**model.about, "digest": model.digest}}
    return {}


def complete_params(record: Method, params: Any, stack: xr.DataArray) -> Any:
    """Put into the parameters what the stack's attributes and shape tell."""
    return params if record.complete is None else record.complete(params, stack.attrs, stack.shape)


def _check_model(
    model: Any,
    name: str,
    record: Method,
    params: Any,
    stack: xr.DataArray,
    optics: Optics | None,
) -> Any:
    """Open a model that is given by its path; refuse one that is for something else."""
    if record.load is not None:
        return record.load(model, stack.attrs, stack.shape)
    if model is None:
        return None
    wanted = record.learn is not None and learns(record, params)
    rule = "learns nothing from a stack, with these parameters, and takes no model"
    require(wanted, name, rule, type(model).__name__)
    other = f"model must be one that {name} has learnt"
    if isinstance(model, str | Path):
        model = open_model(model)
    if isinstance(model, xr.Dataset):
        require(model.attrs.get("method") == name, name, other, model.attrs.get("method"))
        for shared in record.learn.shared if record.learn is not None else ():
            learnt, given = model.attrs.get(shared), stored_parameters(params).get(shared)
            rule = f"{shared} must be that of the model, {learnt!r}"
            require(given == learnt, name, rule, given, f"Pass {shared} as well.")
        _check_size(model, name, stack)
        if record.learn is not None and record.learn.check is not None:
            record.learn.check(model, params, stack, optics)
        # What methods make of a model they keep; a copy, should the user change it afterwards.
        return model.load().copy(deep=False)
    is_delayed = isinstance(model, Delayed)
    require(is_delayed, name, "model must be a dataset, or a path of one", type(model).__name__)
    of_method, is_model, _ = str(model.key).partition("-model-")
    require(not is_model or of_method == name, name, other, of_method)
    return model


def _check_size(model: xr.Dataset, name: str, stack: xr.DataArray) -> None:
    """Refuse images whose box or pixels are not those of a model that says its box."""
    if (box_px := model.attrs.get("box_px")) is None:
        return
    rule = f"images must be of the model's size, {box_px} x {box_px} pixels"
    require(stack.shape[1:] == (box_px, box_px), name, rule, stack.shape[1:])
    if PIXEL_SIZE in model.attrs and PIXEL_SIZE in stack.attrs:
        learnt, given = float(model.attrs[PIXEL_SIZE]), float(stack.attrs[PIXEL_SIZE])
        rule = f"pixels must be as large as the model's, {learnt:g} Å"
        require(math.isclose(learnt, given, rel_tol=SAME_SIZE), name, rule, given)


def _learn(
    stack: xr.DataArray,
    name: str,
    record: Method,
    params: Any,
    optics: Optics | None,
    device: str,
    bad_pixels: str,
) -> Any:
    there = record.learn.chunk if record.learn is not None else ()
    known = {key: value for key, value in stack.attrs.items() if key == PIXEL_SIZE}
    return learn_model(
        stack.data,
        image_ids(stack),
        record,
        params,
        name=name,
        device=device if device in ("auto", *there) else "cpu",
        optics=optics,
        known=known | {"whitened": is_whitened(stack)},
        bad_pixels=bad_pixels,
    )
