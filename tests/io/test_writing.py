"""`save_stack`: what is written is what was given; every bad target is a sentence."""

from __future__ import annotations

import errno
import shutil
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import mrcfile
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import FormatError, ParameterError, StackError
from emdask.io import writing
from emdask.io.mrc_output import name_micrographs
from emdask.io.zarr import open_zarr
from emdask.stack import build_stack


def make_stack(n: int = 19, dtype: str = "f4", chunks: Any = 8, seed: int = 0) -> xr.DataArray:
    """Make a stack with text, numbers and attributes."""
    rng = np.random.default_rng(seed)
    images = rng.poisson(5, (n, 6, 5)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        images += rng.normal(size=images.shape).astype(dtype)
    coords = {
        "image_id": np.arange(n) * 3,
        "micrograph": [f"mic/é{i}.mrc" for i in range(n)],
        "defocus_u_A": rng.uniform(5e3, 3e4, n),
        "class_id": rng.integers(1, 5, n),
        "rlnUnknownLabel": rng.normal(size=n),
        "rlnUnknownText": [f"word{i % 3}" for i in range(n)],
    }
    history = [{"step": "bm3d", "parameters": {"sigma": 1.5, "profile": "normal"}}]
    attrs = {"kind": "particles", "pixel_size_A": 1.25, "voltage_kV": 300.0, "provenance": history}
    return build_stack(da.from_array(images, chunks=(chunks, 6, 5)), coords, attrs)


@pytest.mark.parametrize("dtype", ["f4", "f2", "i1", "i2", "u2"])
def test_mrcs_and_zarr_round_trip_keeps_all(tmp_path: Path, dtype: str) -> None:
    stack = make_stack(dtype=dtype)
    first = emdask.open_stack(emdask.save_stack(stack, tmp_path / "a.star"))
    store = emdask.open_stack(emdask.save_stack(first, tmp_path / "b.zarr"))
    again = emdask.open_stack(emdask.save_stack(store, tmp_path / "c.star"))
    assert first.dtype == store.dtype == again.dtype == np.dtype(dtype)
    xr.testing.assert_identical(first.compute(), store.compute())
    same = [name for name in first.coords if name != "rlnImageOriginalName"]
    for name in same:
        np.testing.assert_array_equal(again[name].values, first[name].values)
    for name in stack.coords:
        if name != "image_id":
            np.testing.assert_array_equal(again[name].values, stack[name].values)
    np.testing.assert_array_equal(again.values, stack.values)
    assert again.attrs == first.attrs
    assert again.attrs["provenance"] == stack.attrs["provenance"]
    assert (tmp_path / "a.mrcs").read_bytes() == (tmp_path / "c.mrcs").read_bytes()


def test_mrcs_header_has_the_statistics(tmp_path: Path) -> None:
    stack = make_stack()
    with mrcfile.open(emdask.save_stack(stack, tmp_path / "a.mrcs"), header_only=True) as mrc:
        header = mrc.header
        np.testing.assert_allclose(
            [header.dmin, header.dmax, header.dmean, header.rms],
            [stack.min(), stack.max(), stack.values.mean(dtype="f8"), stack.values.std(dtype="f8")],
            rtol=1e-6,
        )
        assert mrc.voxel_size.x == pytest.approx(1.25)
    assert mrcfile.validate(str(tmp_path / "a.mrcs"))


def test_statistics_of_nan_are_undetermined(tmp_path: Path) -> None:
    images = np.ones((2, 4, 4), "f4")
    images[1, 2, 2] = np.nan
    emdask.save_stack(images, tmp_path / "a.mrcs")
    with mrcfile.open(tmp_path / "a.mrcs", header_only=True) as mrc:
        assert mrc.header.dmax < mrc.header.dmin
        assert mrc.header.rms < 0


def test_irregular_chunks_are_made_regular(tmp_path: Path) -> None:
    stack = make_stack()[3:].chunk({"image": (1, 5, 3, 7)})
    store = emdask.open_stack(emdask.save_stack(stack, tmp_path / "a.zarr"))
    assert store.chunks[0] == (7, 7, 2)
    np.testing.assert_array_equal(store.values, stack.values)


def test_one_file_for_each_micrograph(tmp_path: Path) -> None:
    stack = make_stack(5).assign_attrs(kind="micrographs")
    folder = emdask.save_stack(stack, tmp_path / "out")
    assert sorted(p.name for p in folder.iterdir()) == [
        "micrographs.star",
        *(f"é{i}.mrc" for i in range(5)),
    ]
    with mrcfile.open(folder / "é3.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data.reshape(6, 5), stack.values[3])
        assert mrc.header.dmean == pytest.approx(stack.values[3].mean(), rel=1e-6)
    again = emdask.open_stack(folder / "micrographs.star")
    np.testing.assert_array_equal(again.values, stack.values)
    np.testing.assert_array_equal(again.defocus_u_A, stack.defocus_u_A)


def test_names_stay_in_the_folder_and_differ() -> None:
    stack = xr.DataArray(np.zeros((6, 2, 2)), dims=("image", "y", "x"))
    names = ["../../etc/passwd", "/a/b.mrc", "B.MRC", "..", "", "x\x00y/z\n.tif"]
    files = name_micrographs(stack.assign_coords(micrograph=("image", names)))
    assert len({name.lower() for name in files}) == 6
    assert all("/" not in name and not name.startswith(".") for name in files)
    assert all(name.isprintable() and name.endswith(".mrc") for name in files)


def test_one_micrograph(tmp_path: Path) -> None:
    stack = make_stack()
    path = emdask.save_stack(stack[4], tmp_path / "m.mrc")
    np.testing.assert_array_equal(emdask.open_stack(path).values[0], stack.values[4])
    with pytest.raises(ParameterError, match=r"holds one micrograph; got '19 images'.*\.mrcs"):
        emdask.save_stack(stack, tmp_path / "n.mrc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.mrc"]


@pytest.mark.parametrize("name", ["a.zarr", "a.mrcs", "a.star", "a"])
def test_existing_target_is_untouched(tmp_path: Path, name: str) -> None:
    stack = make_stack()
    path = emdask.save_stack(stack, tmp_path / name)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for options in ({}, {"resume": True}):
        with pytest.raises(FileExistsError, match=r"already exists.*--overwrite"):
            emdask.save_stack(stack + 1, path, **options)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    calls: list[int] = []
    emdask.save_stack(stack, path, resume=True, on_progress=lambda a, b: calls.append(a))
    assert calls == []
    emdask.save_stack(stack + 1, path, overwrite=True)
    if name != "a":
        np.testing.assert_array_equal(emdask.open_stack(path).values, stack.values + 1)
    assert not any("partial" in p.name for p in tmp_path.iterdir())


def test_old_output_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    stack = make_stack()
    path = emdask.save_stack(stack, tmp_path / "a.zarr")
    with pytest.raises(ZeroDivisionError):
        emdask.save_stack(
            stack.copy(data=stack.data.map_blocks(_fail, dtype=stack.dtype)), path, overwrite=True
        )
    np.testing.assert_array_equal(emdask.open_stack(path).values, stack.values)


def _fail(images: Any) -> Any:
    if images.size:
        raise ZeroDivisionError
    return images


def test_bad_paths(tmp_path: Path) -> None:
    images = np.ones((2, 4, 4), "f4")
    with pytest.raises(ParameterError, match=r"suffix must be one of .*\.zarr.*got '\.hdf'"):
        emdask.save_stack(images, tmp_path / "a.hdf")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none\. Create it first\."):
        emdask.save_stack(images, tmp_path / "none" / "a.zarr")
    (tmp_path / "b.zarr.partial").mkdir()
    (tmp_path / "b.zarr.partial" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds something else\. Move"):
        emdask.save_stack(images, tmp_path / "b.zarr", overwrite=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["b.zarr.partial", "thesis.tex"]


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"a\.zarr: the folder .* is read-only\. Choose"):
        emdask.save_stack(np.ones((2, 4, 4), "f4"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="needs 128 bytes; its file system has 1 free"):
        emdask.save_stack(np.ones((2, 4, 4), "f4"), tmp_path / "a.zarr")
    assert not list(tmp_path.iterdir())


def test_full_target_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack()
    original = writing.write_images

    def write_half(*args: Any, **options: Any) -> None:
        original(*args, **{**options, "done": {1, 2}})
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "write_images", write_half)
    with pytest.raises(OSError, match=r"file system is full\..*kept.*--resume") as caught:
        emdask.save_stack(stack, tmp_path / "a.zarr")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match=r"unfinished output is here\. Go on .*--resume"):
        emdask.save_stack(stack, tmp_path / "a.zarr")
    with pytest.raises(FormatError, match="an unfinished output"):
        open_zarr(tmp_path / "a.zarr.partial")
    seen: list[int] = []
    emdask.save_stack(
        stack, tmp_path / "a.zarr", resume=True, on_progress=lambda a, _: seen.append(a)
    )
    assert len(seen) == 2
    np.testing.assert_array_equal(emdask.open_stack(tmp_path / "a.zarr").values, stack.values)


def test_types_of_pixels(tmp_path: Path) -> None:
    doubles = np.random.default_rng(0).normal(size=(3, 4, 4))
    path = emdask.save_stack(doubles, tmp_path / "a.mrcs")
    assert emdask.open_stack(path).dtype == np.float32
    np.testing.assert_array_equal(emdask.open_stack(path).values, doubles.astype("f4"))
    half = emdask.save_stack(doubles, tmp_path / "h.zarr", dtype="float16")
    np.testing.assert_array_equal(emdask.open_stack(half).values, doubles.astype("f2"))
    with pytest.raises(
        ParameterError, match="dtype must hold the stack's float64 without rounding"
    ):
        emdask.save_stack(doubles, tmp_path / "b.mrcs", dtype="int16")
    with pytest.raises(FormatError, match="pixels must be int8"):
        emdask.save_stack(doubles.astype("i4"), tmp_path / "c.mrcs")
    doubles[1] = 1e5
    with pytest.raises(StackError, match="pixels of image 1 must lie within ±65504 for float16"):
        emdask.save_stack(doubles, tmp_path / "d.zarr", dtype="f2")
    with pytest.raises(ParameterError, match="compression is of Zarr stores only"):
        emdask.save_stack(doubles, tmp_path / "e.mrcs", compression="lz4")


def test_no_warning_and_no_rest(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emdask.save_stack(make_stack(), tmp_path / "a.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_tiny_chunks_are_joined_to_a_few_shards(tmp_path: Path) -> None:
    images = da.arange(1200 * 64, dtype="f4", chunks=-1).reshape(1200, 8, 8).rechunk((1, 8, 8))
    path = emdask.save_stack(images, tmp_path / "a.zarr")
    assert len(list((path / "images" / "c").iterdir())) == 1
    np.testing.assert_array_equal(emdask.open_stack(path).values, images.compute())
