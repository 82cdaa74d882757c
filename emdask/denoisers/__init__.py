"""Denoisers: every other file of this package is one method."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from emdask.backend import check_device
from emdask.checks import check_choice, require
from emdask.lazy import learn_model, map_images
from emdask.method import Method, resolve_method
from emdask.stack import add_provenance, as_stack, like_input

FAMILY = __name__
BAD_PIXELS = ("raise", "replace")


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
        What `learn_denoiser` returned, for methods that learn; without it the model is learnt from
        ``stack`` within the same graph, which suits small stacks.
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
    >>> images = np.random.default_rng(0).normal(size=(2, 32, 32)).astype("f4")
    >>> clean = denoise(images, method="bm3d", sigma=1.0)
    >>> clean.shape, bool(clean.compute().std() < 0.5)
    ((2, 32, 32), True)
    """
    name, record, params = resolve_method(FAMILY, method, parameters)
    device = check_device(device, name, record.apply)
    check_choice(name, "bad_pixels", bad_pixels, BAD_PIXELS)
    rule = "learns nothing and takes no model"
    require(model is None or record.learn is not None, name, rule, type(model).__name__)
    source = as_stack(stack)
    if record.learn is not None and model is None:
        model = _learn(source, name, record, params)
    images = map_images(
        source.data,
        record,
        params,
        name=name,
        device=device,
        model=model,
        bad_pixels=bad_pixels,
    )
    attrs = add_provenance(source.attrs, name, asdict(params))
    return like_input(source.copy(deep=False, data=images).assign_attrs(attrs), stack)


def learn_denoiser(stack: Any, method: str | Any, **parameters: Any) -> Any:
    """Learn a denoiser's model from a stack in one pass, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Images to learn from.
    method
        Name of a method that learns, or an instance of its parameter record.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` gives the model, to be passed to ``denoise(..., model=model)``. For large
        stacks always compute it first: in one graph a rechunk or a slice would hold the whole
        stack in memory.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError
        At once; StackError where the method has nothing to learn.

    Examples
    --------
    >>> learn_denoiser(np.zeros((1, 16, 16), "f4"), "bm3d")
    Traceback (most recent call last):
    emdask.errors.StackError: bm3d: has nothing to learn. Call denoise() at once.
    """
    name, record, params = resolve_method(FAMILY, method, parameters)
    return _learn(as_stack(stack), name, record, params)


def _learn(stack: Any, name: str, record: Method, params: Any) -> Any:
    ids = stack.coords.get("image_id")
    image_ids = np.arange(stack.shape[0]) if ids is None else np.asarray(ids.values)
    return learn_model(stack.data, image_ids, record, params, name=name)
