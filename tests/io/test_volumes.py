"""Volumes from file to file, against mrcfile and gemmi."""

from __future__ import annotations

import bz2
import gzip
import os
import re
from pathlib import Path
from typing import Any

import gemmi
import mrcfile
import numpy as np
import pytest
import xarray as xr

from emdask import open_volume, save_stack, save_volume
from emdask.errors import FormatError, ParameterError, StackError
from emdask.io.mrc import HEADER_DTYPE
from emdask.volumes import build_volume

N = 6


@pytest.fixture
def volume(rng: np.random.Generator) -> xr.DataArray:
    return build_volume(rng.normal(size=(N, N, N)), 1.25, {"origin_A": [1.5, -2.25, 3.0]})


def change_header(path: Path, **fields: Any) -> Path:
    raw = bytearray(path.read_bytes())
    header = np.frombuffer(bytes(raw), HEADER_DTYPE, 1).copy()
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.tobytes() + bytes(raw[1024:]))
    return path


def write_map(path: Path, array: np.ndarray, pixel_size_A: float = 2.0) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(array)
        mrc.set_volume()
        mrc.voxel_size = pixel_size_A
    return path


@pytest.mark.parametrize("name", ["v.mrc", "v.map", "v.ccp4", "v.zarr"])
def test_there_and_back(volume: xr.DataArray, tmp_path: Path, name: str) -> None:
    again = open_volume(save_volume(volume, tmp_path / name))
    np.testing.assert_array_equal(again, volume)
    assert again.dims == ("z", "y", "x")
    assert again.dtype == np.float32
    assert again.attrs == volume.attrs
    assert os.listdir(tmp_path) == [name]


def test_mrcfile_and_gemmi_find_a_valid_volume(volume: xr.DataArray, tmp_path: Path) -> None:
    path = save_volume(volume, tmp_path / "v.mrc")
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume()
        assert mrc.voxel_size.x == mrc.voxel_size.z == 1.25
        assert mrc.header.origin.y == -2.25
        assert mrc.header.rms == pytest.approx(volume.values.std(), rel=1e-6)
        np.testing.assert_array_equal(mrc.data, volume)
    grid = gemmi.read_ccp4_map(str(path)).grid
    assert grid.unit_cell.a == N * 1.25
    np.testing.assert_array_equal(np.array(grid).transpose(2, 1, 0), volume)


@pytest.mark.parametrize("dtype", ["int8", "int16", "uint16", "float16", "float32"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_modes_and_byte_orders(tmp_path: Path, dtype: str, order: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (N, N, N)).astype(dtype)
    path = tmp_path / "v.mrc"
    write_map(path, array)
    if order == ">":
        raw = path.read_bytes()
        header = bytearray(
            np.frombuffer(raw, HEADER_DTYPE, 1).astype(HEADER_DTYPE.newbyteorder(">")).tobytes()
        )
        header[212:216] = b"\x11\x11\x00\x00"
        path.write_bytes(bytes(header) + array.astype(array.dtype.newbyteorder(">")).tobytes())
    found = open_volume(path)
    np.testing.assert_array_equal(found, array.astype(np.float32))
    assert found.dtype.isnative
    assert found.attrs == {"pixel_size_A": 2.0}


@pytest.mark.parametrize("pack", [gzip, bz2])
def test_compressed_maps(volume: xr.DataArray, tmp_path: Path, pack: Any) -> None:
    plain = save_volume(volume, tmp_path / "v.mrc").read_bytes()
    path = tmp_path / ("v.map.gz" if pack is gzip else "v.map.bz2")
    path.write_bytes(pack.compress(plain))
    np.testing.assert_array_equal(open_volume(path), volume)
    path.write_bytes(pack.compress(plain)[:-200])
    with pytest.raises(FormatError, match=r"v\.map"):
        open_volume(path)


@pytest.mark.parametrize("axes", [(1, 2, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2), (2, 1, 3), (1, 3, 2)])
def test_axes_in_any_order(volume: xr.DataArray, tmp_path: Path, axes: tuple[int, ...]) -> None:
    path = save_volume(volume, tmp_path / "v.map")
    change_header(path, axes=axes)
    # gemmi brings maps into the order x, y, z.
    ccp4 = gemmi.read_ccp4_map(str(path))
    ccp4.setup(0.0)
    truth = np.array(ccp4.grid).transpose(2, 1, 0)
    np.testing.assert_array_equal(open_volume(path), truth)
    if axes != (1, 2, 3):
        assert (truth != volume.values).any()


@pytest.mark.parametrize(
    ("fields", "origin_A"),
    [
        ({"start": (-3, 2, 1)}, [-3.75, 2.5, 1.25]),
        # Columns go along z, rows along y, sections along x.
        ({"start": (-3, 2, 1), "axes": (3, 2, 1)}, [1.25, 2.5, -3.75]),
        ({"start": (-3, 2, 1), "origin": (0, 7, 0)}, [0.0, 7.0, 0.0]),
        ({"start": 0}, None),
        ({"origin": (np.nan, 0, 1)}, None),
    ],
)
def test_the_place_of_the_first_voxel(
    volume: xr.DataArray, tmp_path: Path, fields: dict[str, Any], origin_A: Any
) -> None:
    path = save_volume(volume.assign_attrs(origin_A=[0, 0, 0]), tmp_path / "v.map")
    change_header(path, **fields)
    assert open_volume(path).attrs.get("origin_A") == origin_A


def test_axes_that_are_left_empty_are_x_y_z(volume: xr.DataArray, tmp_path: Path) -> None:
    path = change_header(save_volume(volume, tmp_path / "v.map"), axes=0)
    np.testing.assert_array_equal(open_volume(path), volume)


def test_a_pixel_size_that_is_missing_is_asked_for(volume: xr.DataArray, tmp_path: Path) -> None:
    path = change_header(save_volume(volume, tmp_path / "v.mrc"), cell_A=0)
    with pytest.raises(FormatError, match=r"does not say its pixel size. Pass pixel_size_A="):
        open_volume(path)
    assert open_volume(path, pixel_size_A=5.0).attrs["pixel_size_A"] == 5.0
    with pytest.raises(ParameterError, match="open_volume: pixel_size_A must be a number"):
        open_volume(path, pixel_size_A=0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"axes": (1, 1, 3)}, "mapc, mapr, maps of the header must be 1, 2 and 3 in some order"),
        ({"cell_A": (6, 6, 9)}, "voxels must be cubes, Å; got [1.0, 1.0, 1.5]. Sample it again"),
        ({"angles_deg": (90, 90, 120)}, "must have right angles; got [90.0, 90.0, 120.0]"),
        ({"mode": 4}, "mode must be one of"),
        ({"shape_xyz": (6, 6, 3)}, "Its header does not fit its pixels"),
        ({"shape_xyz": (6, 6, 7)}, "header says 7 images of 6x6 float32"),
    ],
)
def test_headers_that_do_not_fit(
    volume: xr.DataArray, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    path = change_header(save_volume(volume, tmp_path / "v.mrc"), **fields)
    with pytest.raises(FormatError, match=re.escape(message)):
        open_volume(path)


def test_cells_that_are_rounded_pass(volume: xr.DataArray, tmp_path: Path) -> None:
    path = change_header(save_volume(volume, tmp_path / "v.mrc"), cell_A=(7.5, 7.501, 7.499))
    assert open_volume(path).attrs["pixel_size_A"] == 1.25


def test_truncated_files(volume: xr.DataArray, tmp_path: Path) -> None:
    path = save_volume(volume, tmp_path / "v.mrc")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"the file has 1,788\. It is truncated; copy it again\."):
        open_volume(path)


def test_maps_that_are_no_cubes(tmp_path: Path) -> None:
    path = write_map(tmp_path / "v.mrc", np.zeros((4, 4, 5), np.float32))
    with pytest.raises(FormatError, match=r"v\.mrc: volume: must be a cube.*got \(4, 4, 5\)"):
        open_volume(path)


def test_files_that_are_absent_or_of_other_kinds(volume: xr.DataArray, tmp_path: Path) -> None:
    for name in ("none.mrc", "none.zarr"):
        with pytest.raises(FileNotFoundError, match=name):
            open_volume(tmp_path / name)
    with pytest.raises(FormatError, match=r"a volume's name must end in \.mrc, \.map"):
        open_volume(tmp_path / "v.pdb")
    stack = save_stack(np.ones((2, 4, 4), np.float32), tmp_path / "s.zarr")
    with pytest.raises(FormatError, match='must hold an array "volume"; this one has: images'):
        open_volume(stack)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(FormatError, match="not a Zarr group"):
        open_volume(tmp_path / "empty.zarr")
    turned = volume.transpose("x", "y", "z").to_dataset(name="volume")
    turned.to_zarr(tmp_path / "turned.zarr", zarr_format=3, consolidated=False)
    with pytest.raises(FormatError, match=r"must have dims \(z, y, x\)"):
        open_volume(tmp_path / "turned.zarr")


def test_a_reconstruction_holds_a_volume_and_is_none(volume: xr.DataArray, tmp_path: Path) -> None:
    plain = volume.drop_attrs()
    result = xr.Dataset({"volume": plain, "half_1": plain}, attrs={"pixel_size_A": 3.0})
    result.to_zarr(tmp_path / "r.zarr", zarr_format=3, consolidated=False)
    assert open_volume(tmp_path / "r.zarr").attrs == {"pixel_size_A": 3.0}
    with pytest.raises(FileExistsError, match="exists already and is no volume"):
        save_volume(volume, tmp_path / "r.zarr", overwrite=True)


@pytest.mark.parametrize("name", ["v.mrc", "v.zarr"])
def test_what_is_there_gives_way_when_asked(
    volume: xr.DataArray, tmp_path: Path, name: str
) -> None:
    save_volume(volume, tmp_path / name)
    with pytest.raises(FileExistsError, match=r"exists already\. Name another"):
        save_volume(volume * 2, tmp_path / name)
    np.testing.assert_array_equal(open_volume(tmp_path / name), volume)
    save_volume((volume * 2).assign_attrs(volume.attrs), tmp_path / name, overwrite=True)
    np.testing.assert_array_equal(open_volume(tmp_path / name), volume * 2)
    assert os.listdir(tmp_path) == [name]


def test_other_things_never_give_way(volume: xr.DataArray, tmp_path: Path) -> None:
    stack = save_stack(np.ones((2, 4, 4), np.float32), tmp_path / "s.zarr")
    images = save_stack(np.ones((2, 4, 4), np.float32), tmp_path / "s.mrcs")
    images = images.rename(tmp_path / "s.mrc")
    (tmp_path / "folder.mrc").mkdir()
    (tmp_path / "folder.map").mkdir()
    (tmp_path / "text.mrc").write_text("no map")
    others = [tmp_path / name for name in ("folder.mrc", "folder.map", "text.mrc")]
    for path in (stack, images, *others):
        with pytest.raises(FileExistsError, match="exists already and is no volume"):
            save_volume(volume, path, overwrite=True)


@pytest.mark.parametrize("name", ["v.mrc", "v.zarr"])
def test_a_volume_that_fails_leaves_nothing(
    volume: xr.DataArray, tmp_path: Path, name: str
) -> None:
    with pytest.raises(StackError, match="pixel size must be known"):
        save_volume(volume.values, tmp_path / name)
    with pytest.raises((ParameterError, ValueError, TypeError)):
        save_volume(volume.assign_attrs(origin_A="far"), tmp_path / "v.mrc")
    with pytest.raises(ParameterError, match="attributes must be text, numbers"):
        save_volume(volume.assign_attrs(note=object()), tmp_path / "v.zarr")
    assert os.listdir(tmp_path) == []


def test_targets_are_checked(volume: xr.DataArray, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"a volume's name must end in .*; got 'v\.tif'"):
        save_volume(volume, tmp_path / "v.tif")
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        save_volume(volume, tmp_path / "no" / "v.mrc")
