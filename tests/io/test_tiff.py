"""TIFF files against tifffile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from emdask import open_stack
from emdask.errors import FormatError

IMAGES = np.random.default_rng(4).integers(0, 2000, (5, 12, 10)).astype("u2")


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f2", "f4"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_pages(tmp_path: Path, dtype: str, order: Any, compression: str | None) -> None:
    if dtype == "f2" and compression == "lzw":
        pytest.skip("tifffile writes no float16 by LZW")
    images = IMAGES.astype(dtype)
    path = tmp_path / "pages.tif"
    tifffile.imwrite(
        path, images, byteorder=order, compression=compression, photometric="minisblack"
    )
    stack = open_stack(path, chunks=2)
    assert stack.dtype == dtype
    assert "pixel_size_A" not in stack.attrs
    np.testing.assert_array_equal(stack.values, images)
    np.testing.assert_array_equal(stack[3].values, images[3])


@pytest.mark.parametrize(("unit", "factor"), [("CENTIMETER", 1e8), ("INCH", 2.54e8)])
def test_pixel_size_of_the_tags(tmp_path: Path, unit: str, factor: float) -> None:
    path = tmp_path / "size.tif"
    resolution = (factor / 1.25, factor / 1.25)
    tifffile.imwrite(path, IMAGES[0], resolution=resolution, resolutionunit=unit)
    stack = open_stack(path)
    assert stack.shape == (1, 12, 10)
    assert stack.attrs["kind"] == "micrographs"
    assert stack.attrs["pixel_size_A"] == pytest.approx(1.25, rel=1e-6)


def test_screen_resolution_says_nothing(tmp_path: Path) -> None:
    path = tmp_path / "screen.tif"
    tifffile.imwrite(path, IMAGES[0], resolution=(72, 72), resolutionunit="INCH")
    assert "pixel_size_A" not in open_stack(path).attrs


def test_imagej(tmp_path: Path) -> None:
    path = tmp_path / "imagej.tif"
    tifffile.imwrite(
        path, IMAGES, imagej=True, resolution=(8.0, 8.0), metadata={"unit": "nm", "axes": "ZYX"}
    )
    stack = open_stack(path)
    assert stack.attrs["pixel_size_A"] == 1.25
    np.testing.assert_array_equal(stack.values, IMAGES)


def test_colours_and_uneven_pages_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, np.zeros((8, 8, 3), "u1"), photometric="rgb")
    with pytest.raises(FormatError, match="one real number a pixel"):
        open_stack(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(IMAGES[0])
        writer.write(IMAGES[0, :5])
    with pytest.raises(FormatError, match="at page 1"):
        open_stack(path)


@pytest.mark.parametrize("contents", [b"II*\0 no more", b"not a TIFF at all" * 9, bytes(200)])
def test_no_tiff(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "bad.tiff"
    path.write_bytes(contents)
    with pytest.raises(FormatError, match=r"bad\.tiff: not a TIFF"):
        open_stack(path)


def test_cut(tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, IMAGES, compression="zlib")
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FormatError, match=r"cut\.tif"):
        open_stack(path).compute()
