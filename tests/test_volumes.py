"""What is a volume, and what is said of what is none."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from emdask.errors import StackError
from emdask.volumes import as_volume, build_volume


def test_an_array_becomes_a_volume(rng):
    array = rng.normal(size=(6, 6, 6))
    volume = build_volume(array, 1.5, {"origin_A": [1.0, 2.0, 3.0]})
    assert (volume.dims, volume.dtype, volume.name) == (("z", "y", "x"), np.float32, "volume")
    assert volume.attrs == {"origin_A": [1.0, 2.0, 3.0], "pixel_size_A": 1.5}
    np.testing.assert_array_equal(volume, array.astype(np.float32))


def test_a_volume_stays_one():
    volume = build_volume(np.ones((4, 4, 4), np.float32), 2.0, {"note": "kept"})
    again = as_volume(volume)
    assert again.attrs == volume.attrs
    assert again.values.base is volume.values or again.values is volume.values
    assert as_volume(volume, 3.0).attrs == {"note": "kept", "pixel_size_A": 3.0}


def test_a_lazy_volume_is_computed():
    lazy = build_volume(np.ones((4, 4, 4)), 2.0).chunk()
    assert isinstance(lazy.data, da.Array)
    assert isinstance(as_volume(lazy).data, np.ndarray)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((4, 4, 5)), "volume: must be a cube of dims (z, y, x); got (4, 4, 5). Pad"),
        (np.zeros((4, 4)), "volume: must be a cube of dims (z, y, x); got (4, 4)."),
        (np.zeros((0, 0, 0)), "volume: must be a cube"),
        (np.zeros((4, 4, 4), complex), "volume: voxels must be real numbers; got 'complex128'."),
        (xr.DataArray(np.zeros((4,) * 3), dims=("image", "y", "x")), "dims must be (z, y, x)"),
        (None, "volume: must be an array of numbers of dims (z, y, x); got 'NoneType'."),
        ({"volume": 1}, "got 'dict'. Of a dataset pick one array"),
        (xr.Dataset(), "got 'Dataset'. Of a dataset pick one array, as found.volume"),
        ((np.ones((4, 4, 4)) for _ in range(2)), "several volumes go into a list"),
        ([[1.0], [1.0, 2.0]], "must be an array of numbers"),
    ],
)
def test_what_is_no_volume(volume, message):
    with pytest.raises(StackError, match=re.escape(message)):
        as_volume(volume, 2.0)


def test_a_voxel_that_is_not_finite_is_named():
    array = np.zeros((4, 4, 4))
    array[1, 2, 3] = np.nan
    with pytest.raises(StackError, match=re.escape("must be finite; got 'nan at (1, 2, 3)'.")):
        as_volume(array, 2.0)


def test_what_is_no_volume_is_said_before_that_it_has_no_pixel_size():
    with pytest.raises(StackError, match="must be an array of numbers"):
        as_volume(None)


@pytest.mark.parametrize("pixel_size_A", [None, 0, -1.0, np.nan, np.inf, "2", True])
def test_the_pixel_size_must_be_known(pixel_size_A):
    with pytest.raises(StackError, match=r"pixel size must be known.*Pass pixel_size_A="):
        as_volume(np.zeros((4, 4, 4)), pixel_size_A)
