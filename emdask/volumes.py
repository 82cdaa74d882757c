"""Build and check a volume: a plain `xarray.DataArray` of dims ``(z, y, x)``.

A volume is cubic, float32, and turns about voxel ``n // 2`` of each axis. A voxel holds the mass in
it, so that a projection is the plain sum along the view and an image sums to what its volume does.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
import xarray as xr

from emdask.checks import sentence
from emdask.errors import StackError

VOLUME_DIMS = ("z", "y", "x")


def build_volume(
    array: Any, pixel_size_A: float | None, attrs: Mapping[str, Any] | None = None
) -> xr.DataArray:
    """Label an array as a volume.

    Parameters
    ----------
    array : array, shape (n, n, n)
        Axes z, y, x; mass in each voxel.
    pixel_size_A
        Edge of a voxel in Å.
    attrs
        What else is known of it.

    Returns
    -------
    xarray.DataArray, dims (z, y, x), float32
        Named ``volume``; its attribute ``pixel_size_A`` is set.

    Raises
    ------
    StackError
        If the array is no cube of finite real numbers, or the pixel size no positive number.

    Examples
    --------
    >>> volume = build_volume(np.ones((8, 8, 8)), 2.5)
    >>> volume.dims, volume.dtype, volume.attrs["pixel_size_A"]
    (('z', 'y', 'x'), dtype('float32'), 2.5)
    """
    cube = _check_cube(array)
    known = {**(attrs or {}), "pixel_size_A": _check_pixel_size(pixel_size_A)}
    return xr.DataArray(cube, dims=VOLUME_DIMS, attrs=known, name="volume")


def as_volume(volume: Any, pixel_size_A: float | None = None) -> xr.DataArray:
    """Take whatever a verb accepts as a volume.

    Parameters
    ----------
    volume
        A volume, or an array of 3 equal dims (z, y, x).
    pixel_size_A
        Edge of a voxel in Å; by default what the attribute ``pixel_size_A`` says.

    Returns
    -------
    xarray.DataArray, dims (z, y, x), float32
        In memory, with its attribute ``pixel_size_A``.

    Raises
    ------
    StackError
        If it has other dims, is no cube of finite real numbers, or its pixel size is unknown.

    Examples
    --------
    >>> as_volume(np.ones((4, 4, 4)), 2.0).attrs
    {'pixel_size_A': 2.0}
    """
    attrs: Mapping[str, Any] = {}
    if isinstance(volume, xr.DataArray):
        if volume.dims != VOLUME_DIMS:
            remedy = "Rename or transpose them."
            raise StackError(sentence("volume", "dims must be (z, y, x)", volume.dims, remedy))
        attrs, volume = volume.attrs, volume.values
    known = attrs.get("pixel_size_A") if pixel_size_A is None else pixel_size_A
    return build_volume(volume, known, attrs)


def _check_cube(array: Any) -> Any:
    try:
        values = np.asarray(array)
    except (TypeError, ValueError):  # a dataset; lists of different lengths
        values = np.asarray(None)
    if values.dtype.kind == "O":
        rule = "must be an array of numbers of dims (z, y, x)"
        remedy = "Of a dataset pick one array, as found.volume; several volumes go into a list."
        raise StackError(sentence("volume", rule, type(array).__name__, remedy))
    if values.ndim != 3 or len(set(values.shape)) != 1 or 0 in values.shape:
        remedy = "Pad or crop it to the longest or shortest edge."
        rule = "must be a cube of dims (z, y, x)"
        raise StackError(sentence("volume", rule, values.shape, remedy))
    if values.dtype.kind not in "iuf":
        raise StackError(sentence("volume", "voxels must be real numbers", str(values.dtype)))
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        rule = "voxels must be finite"
        remedy = "Replace them, as volume.fillna(0) does."
        raise StackError(sentence("volume", rule, f"{values[place]} at {place}", remedy))
    return values


def _check_pixel_size(pixel_size_A: Any) -> float:
    rule = "pixel size must be known, a positive number of Å"
    remedy = "Pass pixel_size_A=, or set volume.attrs['pixel_size_A']."
    ok = isinstance(pixel_size_A, Real) and not isinstance(pixel_size_A, bool)
    if not ok or not 0 < float(pixel_size_A) < float("inf"):
        raise StackError(sentence("volume", rule, pixel_size_A, remedy))
    return float(pixel_size_A)
