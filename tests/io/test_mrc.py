"""MRC files against mrcfile, which writes the truth."""

from __future__ import annotations

import bz2
import gzip
import logging
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emdask import open_stack
from emdask.errors import EmdaskError, FormatError
from emdask.io.mrc import (
    HEADER_DTYPE,
    MRC_DTYPES,
    build_header,
    find_mode,
    read_block,
    read_header,
)

SHAPE = (5, 12, 10)


def make_images(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    rng = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    images = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)
    images.flat[:2] = limits.min, limits.max
    return images


def write_mrc(path: Path, images: np.ndarray, order: str = "<", extended: bytes = b"") -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(images)
        mrc.voxel_size = 1.25
        if extended:
            mrc.set_extended_header(np.frombuffer(extended, "V1"))
    if order == ">":
        swap_bytes(path, images.dtype)
    return path


def swap_bytes(path: Path, dtype: np.dtype[Any]) -> None:
    """Turn a little endian file into the big endian file of the same contents."""
    raw = path.read_bytes()
    header = np.frombuffer(raw, HEADER_DTYPE.newbyteorder("<"), 1)
    offset = 1024 + int(header["extended_bytes"][0])
    swapped = bytearray(header.astype(HEADER_DTYPE.newbyteorder(">")).tobytes())
    swapped[212:216] = b"\x11\x11\x00\x00"
    pixels = np.frombuffer(raw, dtype.newbyteorder("<"), offset=offset)
    path.write_bytes(
        bytes(swapped) + raw[1024:offset] + pixels.astype(dtype.newbyteorder(">")).tobytes()
    )


@pytest.mark.parametrize("extended", [b"", b"x" * 300])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", MRC_DTYPES.values(), ids=str)
def test_every_mode_order_and_extended_header(
    tmp_path: Path, dtype: np.dtype[Any], order: str, extended: bytes
) -> None:
    images = make_images(dtype)
    path = write_mrc(tmp_path / "stack.mrcs", images, order, extended)
    with mrcfile.open(path) as mrc:
        np.testing.assert_array_equal(mrc.data, images)
    stack = open_stack(path, chunks=2)
    assert stack.dtype == dtype
    assert stack.dtype.isnative
    assert stack.attrs["pixel_size_A"] == 1.25
    computed = stack.compute()
    assert computed.dtype == dtype
    assert computed.dtype.isnative
    np.testing.assert_array_equal(computed.values, images)
    np.testing.assert_array_equal(stack[3].compute().values, images[3])


@pytest.mark.parametrize("dtype", MRC_DTYPES.values(), ids=str)
def test_mrcfile_reads_our_header(tmp_path: Path, dtype: np.dtype[Any]) -> None:
    images = make_images(dtype)
    path = tmp_path / "ours.mrcs"
    exact = images.astype(np.float64)
    statistics = (exact.min(), exact.max(), exact.mean(), exact.std())
    path.write_bytes(build_header(SHAPE, dtype, 1.5, statistics=statistics) + images.tobytes())
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack()
        assert mrc.header.mode == find_mode(dtype)
        assert mrc.voxel_size.x == np.float32(1.5)
        np.testing.assert_array_equal(mrc.data, images)


def test_header_of_a_volume_and_unknown_statistics(tmp_path: Path) -> None:
    path = tmp_path / "volume.mrc"
    path.write_bytes(build_header(SHAPE, "f4", 2.0, is_stack=False) + bytes(4 * 600))
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume()
        header = mrc.header
        assert header.dmax < header.dmin
        assert header.dmean < header.dmax
        assert header.rms < 0
    assert mrcfile.validate(path)


def test_build_header_refuses(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"int8, int16, float32, uint16, float16; got 'float64'"):
        build_header(SHAPE, "f8", 1.0)
    with pytest.raises(FormatError, match="each length"):
        build_header((0, 4, 4), "f4", 1.0)


def test_one_image_is_a_stack_of_one(tmp_path: Path) -> None:
    image = make_images("f4", (9, 7))
    stack = open_stack(write_mrc(tmp_path / "one.mrc", image))
    assert stack.shape == (1, 9, 7)
    assert stack.attrs["kind"] == "micrographs"
    np.testing.assert_array_equal(stack.values[0], image)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
@pytest.mark.parametrize("named", [True, False])
def test_compressed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pack: Any, named: bool
) -> None:
    images = make_images("i2")
    path = write_mrc(tmp_path / "stack.mrcs", images)
    suffix = {gzip.compress: ".gz", bz2.compress: ".bz2"}[pack] if named else ""
    packed = path.with_name(f"packed.mrcs{suffix}")
    packed.write_bytes(pack(path.read_bytes()))
    with caplog.at_level(logging.WARNING, logger="emdask"):
        stack = open_stack(packed, chunks=2)
    assert len(caplog.records) == 1
    assert "cannot be sliced lazily" in caplog.text
    np.testing.assert_array_equal(stack.values, images)
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(FormatError, match="packed"):
        open_stack(packed).compute()


def test_old_headers(tmp_path: Path) -> None:
    images = make_images("f4")
    path = tmp_path / "old.mrcs"
    header = np.frombuffer(build_header(SHAPE, "f4", 1.5), HEADER_DTYPE)[0].copy()
    olds: list[dict[str, Any]] = [
        {"map": b"", "stamp": b""},
        {"sampling": 0},
        {"cell_A": 0},
        {"stamp": b"\x11\x11"},
    ]
    for fields in olds:
        old = header.copy()
        for name, value in fields.items():
            old[name] = value
        path.write_bytes(old.tobytes() + images.tobytes())
        stack = open_stack(path)
        np.testing.assert_array_equal(stack.values, images)
        is_known = not fields.keys() & {"sampling", "cell_A"}
        assert ("pixel_size_A" in stack.attrs) == is_known


def test_truncated(tmp_path: Path) -> None:
    images = make_images("f4")
    path = write_mrc(tmp_path / "short.mrcs", images)
    path.write_bytes(path.read_bytes()[: 1024 + 3 * 480 + 100])
    with pytest.raises(FormatError) as caught:
        open_stack(path)
    assert str(caught.value) == (
        f"{path}: header says 5 images of 10x12 float32 (3,424 bytes); the file has 2,564. "
        "It is truncated; copy it again or pass images=slice(0, 3) (--images 0:3)."
    )
    rescued = open_stack(path, images=slice(0, 3))
    np.testing.assert_array_equal(rescued.values, images[:3])
    with pytest.raises(FormatError, match="truncated"):
        open_stack(path, images=slice(2, 4))
    path.write_bytes(path.read_bytes()[:1030])
    with pytest.raises(FormatError, match=r"copy it again\.$"):
        open_stack(path)


def test_cut_after_opening(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "short.mrcs", make_images("f4"))
    header = read_header(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FormatError, match="truncated"):
        read_block(header, 0, 5)


def test_longer_than_the_header_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = make_images("f4")
    path = write_mrc(tmp_path / "long.mrcs", images)
    path.write_bytes(path.read_bytes() + bytes(100))
    with caplog.at_level(logging.WARNING, logger="emdask"):
        np.testing.assert_array_equal(open_stack(path).values, images)
    assert "100 bytes after the last image" in caplog.text
    path.write_bytes(path.read_bytes() + bytes(380))
    with pytest.raises(FormatError, match=r"header says 5 images .* the file has 3,904"):
        open_stack(path)


@pytest.mark.parametrize(("mode", "word"), [(4, "complex float32"), (101, "4-bit"), (77, "77")])
def test_unknown_mode(tmp_path: Path, mode: int, word: str) -> None:
    path = write_mrc(tmp_path / "odd.mrcs", make_images("f4"))
    raw = bytearray(path.read_bytes())
    raw[12:16] = mode.to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(
        FormatError, match=rf"mode must be one of 0 \(int8\).*got {mode}.*"
    ) as caught:
        open_stack(path)
    assert word in str(caught.value)


@pytest.mark.parametrize("contents", [b"short", b"The quick brown fox. " * 100, bytes(5000)])
def test_not_an_mrc(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "note.mrc"
    path.write_bytes(contents)
    with pytest.raises(FormatError, match=r"note\.mrc: not an MRC file"):
        open_stack(path)


GOOD = build_header((1, 4, 4), "i1", 1.0) + bytes(16)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_opens_or_says_why(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, 255)) * 4
        raw[where : where + 4] = data.draw(
            st.binary(min_size=4, max_size=4)
            | st.integers(-3, 20).map(lambda n: n.to_bytes(4, "little", signed=True))
        )
    raw = raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))]
    path = tmp_path / "fuzz.mrc"
    path.write_bytes(raw)
    try:
        stack = open_stack(path)
    except EmdaskError as error:
        message = str(error)
    else:
        message = str(path)
        assert stack.compute().shape == stack.shape
    assert str(path) in message
