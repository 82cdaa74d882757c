"""Zarr stores: the group that xarray makes, ``images (image, y, x)`` and its coordinates."""

from __future__ import annotations

import dataclasses
import os
import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec
from zarr.storage import LocalStore

from emdask.checks import require, sentence
from emdask.errors import FormatError
from emdask.io.shards import COMPRESSION_LEVEL, SHUFFLE, Shards, read_shards
from emdask.lazy import read_images
from emdask.stack import DIMS, choose_chunk

MARK = "emdask_store"  # attribute of stores that `save_stack` writes: version of their form
PACKED = ("scale_factor", "add_offset")


@dataclass(frozen=True, kw_only=True)
class ZarrSource:
    """Where the images of a store are.

    Parameters
    ----------
    path
        The store.
    name
        Name of the array in its group; "" where the store is the array.
    shards
        How they lie in files, where emdask can read these itself; None leaves it to zarr-python.
    changed_ns
        When the metadata were written; a store that was replaced is another source.
    """

    path: str
    name: str
    shards: Shards | None
    changed_ns: int


def open_zarr(path: str | os.PathLike[str], *, chunks: int | str = "auto") -> xr.DataArray:
    """Open a Zarr store lazily.

    Parameters
    ----------
    path
        A store of Zarr format 3 or 2: a group as xarray makes it, with an array ``images`` of dims
        (image, y, x), or such an array itself.
    chunks
        Images a chunk; "auto" takes the store's shards, or its chunks grouped to a useful size.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        Coordinates and attributes as stored. No pixel is read.

    Raises
    ------
    FormatError
        If it is no Zarr store, has no ``images`` of three dimensions, or is not finished.
    FileNotFoundError
        If there is nothing.
    ParameterError
        If ``chunks`` is neither "auto" nor a positive integer.

    Examples
    --------
    >>> import tempfile
    >>> from emdask.io.writing import save_stack
    >>> path = save_stack(np.ones((4, 8, 8), "f4"), tempfile.mkdtemp() + "/ones.zarr")
    >>> open_zarr(path).sizes["image"]
    4
    """
    path = Path(path)
    node = _open_node(path)
    array = _find_images(path, node)
    coords, attrs = ({}, array.attrs.asdict()) if node is array else _read_labels(path, node)
    images = read_images(
        read_zarr,
        _describe(path, node, array),
        shape=array.shape,
        dtype=array.dtype.newbyteorder("="),
        chunk=_choose_zarr_chunk(array, chunks),
        name="read-zarr",
    )
    return xr.DataArray(images, dims=DIMS, coords=coords, attrs=attrs, name="images")


def _open_node(path: Path) -> Any:
    _check_finished(path)
    try:
        return zarr.open(LocalStore(path, read_only=True), mode="r")
    except (FileNotFoundError, ValueError, KeyError) as error:
        rule = "not a Zarr store: there is no readable zarr.json, .zgroup or .zarray"
        raise FormatError(sentence(str(path), rule)) from error


def _check_finished(path: Path) -> None:
    unfinished = Path(f"{path}.partial")
    remedy = "Run the command that wrote it again, with resume=True (--resume)."
    if path.suffix == ".partial" and path.is_dir():
        raise FormatError(sentence(str(path), "an unfinished output", remedy=remedy))
    if path.exists():
        return
    if unfinished.exists():
        rule = f"no such store; there is an unfinished {unfinished.name}"
        raise FileNotFoundError(sentence(str(path), rule, remedy=remedy))
    raise FileNotFoundError(sentence(str(path), "no such file or folder"))


def _find_images(path: Path, node: Any) -> Any:
    array = node
    if isinstance(node, zarr.Group):
        if "images" not in node:
            names = ", ".join(sorted(node.array_keys())) or "none"
            rule = f'a store must hold an array "images"; this one has: {names}'
            remedy = 'Rename yours with xarray, as ds.rename({"volume": "images"}).'
            raise FormatError(sentence(str(path), rule, remedy=remedy))
        array = node["images"]
    shape = getattr(array, "shape", ())
    if len(shape) != 3 or 0 in shape:
        raise FormatError(sentence(str(path), "images must have dims (image, y, x)", shape))
    if array.dtype.kind not in "iuf":
        raise FormatError(sentence(str(path), "pixels must be real numbers", str(array.dtype)))
    packed = [name for name in PACKED if name in array.attrs]
    if packed:
        rule = f"images are packed by the attribute {packed[0]}"
        remedy = "Unpack them with xarray: xr.open_zarr(path).images."
        raise FormatError(sentence(str(path), rule, remedy=remedy))
    return array


def _read_labels(path: Path, group: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return coordinates, in memory, and attributes of the images."""
    store = xr.open_zarr(
        path,
        chunks=None,
        consolidated=group.metadata.consolidated_metadata is not None,
        decode_timedelta=False,
    )
    dims = store["images"].dims
    if dims != DIMS and not all(name.startswith("phony") for name in dims):
        remedy = "Rename or transpose them with xarray."
        raise FormatError(sentence(str(path), "images must have dims (image, y, x)", dims, remedy))
    coords = {
        name: xr.Variable(variable.dims, _as_stored(variable.values), variable.attrs)
        for name, variable in store["images"].coords.variables.items()
    }
    return coords, dict(store["images"].attrs)


def _as_stored(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Text of variable length, as Zarr keeps it, in NumPy's fixed width as the stack has it."""
    return np.array(values.tolist(), dtype=str) if values.dtype.kind in "TO" else values


def _choose_zarr_chunk(array: Any, chunks: int | str) -> int:
    shape = array.shape
    if chunks != "auto":
        return choose_chunk(shape, array.dtype, chunks)
    if array.shards is not None:
        return int(min(array.shards[0], shape[0]))
    stored = min(array.chunks[0], shape[0])
    wanted = choose_chunk(shape, array.dtype)
    return int(min(stored * max(round(wanted / stored), 1), shape[0]))


def _describe(path: Path, node: Any, array: Any) -> ZarrSource:
    name = "" if node is array else "images"
    folder = path.resolve() / name
    metadata = folder / ("zarr.json" if array.metadata.zarr_format == 3 else ".zarray")
    shards = _find_shards(str(folder), array)
    if shards is not None:
        shards = dataclasses.replace(shards, is_complete=MARK in node.attrs)
    return ZarrSource(
        path=str(path.resolve()),
        name=name,
        shards=shards,
        changed_ns=metadata.stat().st_mtime_ns,
    )


def _find_shards(folder: str, array: Any) -> Shards | None:
    """Say how the images lie in shards if that is the form that emdask writes, else None."""
    metadata = array.metadata
    if metadata.zarr_format != 3 or len(metadata.codecs) != 1:
        return None
    codec = metadata.codecs[0]
    keys = metadata.chunk_key_encoding
    if not isinstance(codec, ShardingCodec) or keys.name != "default" or keys.separator != "/":
        return None
    inner, shard = codec.chunk_shape, array.shards
    compression = _find_compression(codec)
    whole_images = tuple(inner[1:]) == tuple(shard[1:]) == tuple(array.shape[1:])
    if not whole_images or compression is None or float(metadata.fill_value) != 0:
        return None
    return Shards(
        folder=folder,
        shape=array.shape,
        dtype=array.dtype.newbyteorder("<").str,
        shard=shard[0],
        inner=inner[0],
        compression=compression,
    )


def _find_compression(codec: ShardingCodec) -> str | None:
    index = [type(step) for step in codec.index_codecs]
    if index != [BytesCodec, Crc32cCodec] or _word(codec.index_location) != "end":
        return None
    serializer, *rest = codec.codecs
    if not isinstance(serializer, BytesCodec) or _word(serializer.endian) == "big":
        return None
    if not rest:
        return "none"
    if len(rest) == 1 and isinstance(rest[0], BloscCodec):
        return _word(rest[0].cname)
    return None


def _word(setting: Any) -> str:
    """Return a codec's setting as text: zarr-python had enumerations until 3.4."""
    return str(getattr(setting, "value", setting))


def read_zarr(source: ZarrSource, start: int, stop: int) -> npt.NDArray[Any]:
    """Read images ``start .. stop``.

    Parameters
    ----------
    source
        What `open_zarr` found.
    start, stop
        Positions of the first image and of the one after the last.

    Returns
    -------
    array, shape (stop - start, h, w)
        Native byte order.
    """
    if source.shards is not None:
        return read_shards(source.shards, start, stop)
    images = np.asarray(_open_array(source)[start:stop])
    return images.astype(images.dtype.newbyteorder("="), copy=False)


@lru_cache(maxsize=16)
def _open_array(source: ZarrSource) -> Any:
    node = zarr.open(LocalStore(source.path, read_only=True), mode="r")
    return node[source.name] if isinstance(node, zarr.Group) else node


def create_zarr(shards: Shards, stack: xr.DataArray) -> None:
    """Write a store without its images: groups, coordinates, and the array's metadata.

    Parameters
    ----------
    shards
        How its images will lie; the store is the parent of ``shards.folder`` and must not exist.
    stack
        Coordinates and attributes are taken.
    """
    store = Path(shards.folder).parent
    labels = stack.coords.to_dataset().compute().drop_encoding()
    for name, coordinate in labels.variables.items():
        text = coordinate.dtype.kind in "UTO"
        labels[name] = coordinate.astype(object) if text else coordinate
    labels.attrs = {MARK: 1}
    labels.to_zarr(store, mode="w-", zarr_format=3, consolidated=False)
    group = zarr.open_group(store, mode="r+")
    images_shape = shards.shape[1:]
    group.create_array(
        "images",
        shape=shards.shape,
        dtype=shards.dtype,
        chunks=(shards.inner, *images_shape),
        shards=(shards.shard, *images_shape),
        filters=None,
        compressors=_make_compressor(shards),
        fill_value=0,
        dimension_names=DIMS,
        attributes=plain_attributes(stack.attrs),
    )
    with warnings.catch_warnings():
        # xarray warns where they are not consolidated, zarr where they are.
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(store)


def _make_compressor(shards: Shards) -> BloscCodec | None:
    if shards.compression == "none":
        return None
    return BloscCodec(
        cname=shards.compression,  # type: ignore[arg-type]
        clevel=COMPRESSION_LEVEL,
        shuffle=SHUFFLE,  # type: ignore[arg-type]
        typesize=np.dtype(shards.dtype).itemsize,
    )


def plain_attributes(attrs: Any) -> Any:
    """Return attributes as JSON knows them: NumPy numbers and arrays as Python's, tuples as lists.

    Examples
    --------
    >>> plain_attributes({"voltage_kV": np.float32(300), "origin": (0, 1)})
    {'voltage_kV': 300.0, 'origin': [0, 1]}
    """
    if isinstance(attrs, dict):
        return {str(key): plain_attributes(value) for key, value in attrs.items()}
    if isinstance(attrs, list | tuple):
        return [plain_attributes(value) for value in attrs]
    if isinstance(attrs, np.ndarray | np.generic):
        return attrs.tolist()
    known = attrs is None or isinstance(attrs, str | int | float | bool)
    rule = "attributes must be text, numbers, or lists and dictionaries of them"
    require(known, "save_stack", rule, type(attrs).__name__)
    return attrs
