"""Zarr stores: bytes as zarr-python's, opened by xarray, and other people's stores."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec

import emdask
from emdask.errors import FormatError
from emdask.io.shards import (
    Shards,
    crc32c,
    decode_chunk,
    encode_chunk,
    read_shards,
    write_shard,
)
from emdask.io.zarr import open_zarr


@pytest.mark.parametrize(
    ("dtype", "compression"),
    [("<f4", "none"), ("<f2", "none"), ("<i1", "lz4"), ("<i2", "zstd"), ("<u2", "none")],
)
@pytest.mark.parametrize(("n", "shard", "inner"), [(19, 8, 2), (16, 8, 8), (5, 5, 1), (7, 6, 3)])
def test_shards_are_those_of_zarr(
    tmp_path: Path, dtype: str, compression: str, n: int, shard: int, inner: int
) -> None:
    images = np.random.default_rng(0).poisson(3, (n, 4, 5)).astype(dtype)
    compressor = None
    if compression != "none":
        size = np.dtype(dtype).itemsize
        compressor = BloscCodec(cname=compression, clevel=1, shuffle="bitshuffle", typesize=size)
    array = zarr.open_group(tmp_path / "z", mode="w").create_array(
        "images",
        shape=images.shape,
        dtype=dtype,
        chunks=(inner, 4, 5),
        shards=(shard, 4, 5),
        compressors=compressor,
        filters=None,
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    shards = Shards(
        folder=str(tmp_path / "z" / "images"),
        shape=images.shape,
        dtype=dtype,
        shard=shard,
        inner=inner,
        compression=compression,
    )
    for start in range(0, n, shard):
        write_shard(shards, images[start : start + shard], start, tmp_path / "drafts")
    ours = {path: path.read_bytes() for path in (tmp_path / "z/images/c").rglob("*/0/0")}
    np.testing.assert_array_equal(array[:], images)
    for path in ours:
        path.unlink()
    array[:] = images
    assert {path: path.read_bytes() for path in ours} == ours
    for start in range(n):
        for stop in range(start + 1, n + 1):
            np.testing.assert_array_equal(read_shards(shards, start, stop), images[start:stop])


def test_a_block_that_is_no_whole_shard_is_refused(tmp_path: Path) -> None:
    shards = Shards(folder=str(tmp_path), shape=(9, 2, 2), dtype="<f4", shard=4, inner=2)
    for start, size in ((2, 4), (0, 3), (8, 4)):
        with pytest.raises(ValueError, match="a block must be one whole shard"):
            write_shard(shards, np.zeros((size, 2, 2), "f4"), start, tmp_path)
    assert not list(tmp_path.iterdir())


def test_crc32c_known_value() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_xarray_opens_the_same(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(10, 4, 4)).astype("f4")
    stack = xr.DataArray(
        images,
        dims=("image", "y", "x"),
        coords={"micrograph": ("image", [f"m{i}" for i in range(10)]), "snr": 0.1},
        attrs={"pixel_size_A": np.float32(1.5), "origin": (0, 1)},
    ).chunk({"image": 4})
    path = emdask.save_stack(stack, tmp_path / "a.zarr")
    for opened in (xr.open_zarr(path), xr.open_dataset(path, engine="zarr")):
        np.testing.assert_array_equal(opened["images"].values, images)
        assert opened["images"].dims == ("image", "y", "x")
        assert opened["micrograph"].values.tolist() == stack.micrograph.values.tolist()
        assert opened["images"].attrs == {"pixel_size_A": 1.5, "origin": [0, 1]}
    ours = open_zarr(path)
    assert ours.chunks[0] == (4, 4, 2)
    assert ours.micrograph.dtype.kind == "U"
    assert ours.snr == 0.1


def test_opening_and_one_image_read_what_they_need(tmp_path: Path) -> None:
    images = np.arange(64, dtype="f4")[:, None, None] * np.ones((1, 8, 8), "f4")
    path = emdask.save_stack(
        xr.DataArray(images, dims=("image", "y", "x")).chunk({"image": 16}), tmp_path / "a.zarr"
    )
    for number in (0, 1, 3):
        (path / f"images/c/{number}/0/0").write_bytes(b"")
    stack = open_zarr(path)
    np.testing.assert_array_equal(stack[37].values, images[37])
    # Only the image and the index: what lies before it in its shard may be anything.
    shard = path / "images/c/2/0/0"
    raw = bytearray(shard.read_bytes())
    raw[: 5 * 256] = b"\xff" * 5 * 256
    shard.write_bytes(bytes(raw))
    np.testing.assert_array_equal(open_zarr(path)[37].values, images[37])


def test_a_shard_of_zeros_is_there(tmp_path: Path) -> None:
    path = emdask.save_stack(np.zeros((4, 8, 8), "f4"), tmp_path / "a.zarr")
    assert (path / "images/c/0/0/0").stat().st_size > 4 * 8 * 8 * 4


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["little", "big"])
def test_stores_that_xarray_made(tmp_path: Path, zarr_format: Any, order: str) -> None:
    images = (
        np.random.default_rng(0)
        .normal(size=(10, 4, 4))
        .astype("f4" if order == "little" else ">f4")
    )
    ds = xr.Dataset(
        {"images": (("image", "y", "x"), images, {"pixel_size_A": 2.0})},
        coords={"defocus_u_A": ("image", np.arange(10.0))},
    )
    ds.to_zarr(
        tmp_path / "a.zarr",
        zarr_format=zarr_format,
        consolidated=False,
        encoding={"images": {"chunks": (3, 2, 4)}},
    )
    stack = open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(stack.values, images)
    np.testing.assert_array_equal(stack.defocus_u_A, ds.defocus_u_A)
    assert stack.attrs == {"pixel_size_A": 2.0}
    assert stack.dtype == np.float32
    assert open_zarr(tmp_path / "a.zarr", chunks=5).chunks[0] == (5, 5)


def test_absent_shards_of_others_are_zeros_and_of_ours_damage(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    array = group.create_array(
        "images",
        shape=(8, 2, 2),
        dtype="f4",
        chunks=(2, 2, 2),
        shards=(4, 2, 2),
        compressors=None,
        dimension_names=["image", "y", "x"],
    )
    array[5] = 1
    assert open_zarr(tmp_path / "a.zarr").values.sum() == 4
    path = emdask.save_stack(np.ones((8, 2, 2), "f4"), tmp_path / "b.zarr")
    (path / "images/c/0/0/0").unlink()
    with pytest.raises(FormatError, match="a shard of the store is missing: c/0/0/0"):
        open_zarr(path).compute()


@pytest.mark.parametrize(("cut", "text"), [(10, "truncated|checksum"), (None, "checksum")])
def test_damaged_shards_are_named(tmp_path: Path, cut: int | None, text: str) -> None:
    path = emdask.save_stack(np.ones((8, 2, 2), "f4"), tmp_path / "b.zarr")
    shard = path / "images/c/0/0/0"
    raw = bytearray(shard.read_bytes())
    raw[-10] ^= 1
    shard.write_bytes(bytes(raw)[:cut])
    with pytest.raises(FormatError, match=text):
        open_zarr(path).compute()


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(1, (8, 16, 16)).astype("i1")
    path = emdask.save_stack(counts, tmp_path / "b.zarr")
    shard = path / "images/c/0/0/0"
    raw = shard.read_bytes()
    # Sizes in the header of Blosc: more pixels than the chunk holds, then fewer.
    for size in (4 * counts.size, counts.size // 2):
        shard.write_bytes(raw[:4] + size.to_bytes(4, "little") + raw[8:])
        with pytest.raises(FormatError, match="an inner chunk does not decompress"):
            open_zarr(path).compute()


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_chunk_of_another_length_is_damage(compression: str) -> None:
    shards = Shards(
        folder="", shape=(4, 2, 2), dtype="<f4", shard=4, inner=2, compression=compression
    )
    longer = dataclasses.replace(shards, inner=4)
    raw = np.frombuffer(b"".join(encode_chunk(longer, np.ones((4, 2, 2), "f4"))), np.uint8)
    with pytest.raises(ValueError, match=r".+"):
        decode_chunk(shards, raw, np.empty((2, 2, 2), "<f4"))
    whole = np.empty((4, 2, 2), "<f4")
    decode_chunk(longer, raw, whole)
    np.testing.assert_array_equal(whole, 1)


@pytest.mark.parametrize(
    ("dtype", "compression"),
    [("f4", None), ("f2", None), ("f8", None), ("i1", "lz4"), ("u1", "lz4"), ("i2", "lz4")],
)
def test_default_compression_follows_the_pixels(
    tmp_path: Path, dtype: str, compression: str | None
) -> None:
    path = emdask.save_stack(np.zeros((4, 8, 8), dtype), tmp_path / "a.zarr")
    _, *codecs = zarr.open_array(path / "images").metadata.codecs[0].codecs
    settings = [codec.to_dict()["configuration"] for codec in codecs]
    assert [(s["cname"], s["shuffle"], s["clevel"]) for s in settings] == (
        [] if compression is None else [(compression, "bitshuffle", 1)]
    )


def test_bad_stores(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_zarr(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(FormatError, match="not a Zarr store"):
        open_zarr(tmp_path / "empty.zarr")
    (tmp_path / "b.zarr.partial").mkdir()
    with pytest.raises(FileNotFoundError, match=r"unfinished b\.zarr\.partial.*--resume"):
        open_zarr(tmp_path / "b.zarr")
    group = zarr.open_group(tmp_path / "c.zarr", mode="w")
    group.create_array("volume", shape=(2, 2, 2), dtype="f4")
    with pytest.raises(FormatError, match='must hold an array "images"; this one has: volume'):
        open_zarr(tmp_path / "c.zarr")
    group.create_array("images", shape=(2, 2), dtype="f4")
    with pytest.raises(FormatError, match=r"images must have dims .*got \(2, 2\)"):
        open_zarr(tmp_path / "c.zarr")
    group = zarr.open_group(tmp_path / "d.zarr", mode="w")
    group.create_array("images", shape=(2, 2, 2), dtype="c8")
    with pytest.raises(FormatError, match="pixels must be real numbers"):
        open_zarr(tmp_path / "d.zarr")
