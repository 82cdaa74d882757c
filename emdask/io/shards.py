"""Shards: the files that hold the images of a Zarr store, written and read without zarr-python.

A shard of the Zarr v3 codec ``sharding_indexed`` is its inner chunks one after another, then an
index of their (offset, length) in bytes as uint64, then the CRC-32C of the index. Where each inner
chunk is a few whole images without compression, the file is the images as they lie in memory plus
that tail: writing it is one pass over the block, and reading any run of images one read. The bytes
are those of zarr-python, which spends up to 5 times the CPU on them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from emdask.checks import sentence
from emdask.errors import FormatError
from emdask.io.output import replace_file

Images = npt.NDArray[Any]
ABSENT = 2**64 - 1  # offset and length of an inner chunk that is not there
CRC_BYTES = 4
COMPRESSION_LEVEL = 1
SHUFFLE = "bitshuffle"


@dataclass(frozen=True, kw_only=True)
class Shards:
    """How the images of a store lie in its shards.

    Parameters
    ----------
    folder
        Folder of the Zarr array.
    shape
        (n, h, w).
    dtype
        Type of a pixel in the files, little endian.
    shard
        Images a shard.
    inner
        Images an inner chunk; divides ``shard``.
    compression
        "none", or Blosc with bitshuffle and "lz4" or "zstd".
    is_complete
        True where every shard must be there: a missing one is damage and not zeros.
    """

    folder: str
    shape: tuple[int, int, int]
    dtype: str
    shard: int
    inner: int
    compression: str = "none"
    is_complete: bool = True

    @property
    def image_bytes(self) -> int:
        """Bytes of one image without compression."""
        return self.shape[1] * self.shape[2] * np.dtype(self.dtype).itemsize

    @property
    def tail_bytes(self) -> int:
        """Bytes of a shard's index and its checksum."""
        return 16 * (self.shard // self.inner) + CRC_BYTES

    def path(self, number: int) -> Path:
        """File of the shard of that number."""
        return Path(self.folder, "c", str(number), "0", "0")


def write_shard(shards: Shards, images: Images, start: int, drafts: Path) -> None:
    """Write one whole shard; it takes its name only when all of it is there.

    Parameters
    ----------
    shards
        Where the shards lie.
    images : array, shape (n, h, w)
        All images of the shard.
    start
        Position of the first image; a multiple of ``shards.shard``.
    drafts
        Folder for the file while it is written, on the same file system.
    """
    number, rest = divmod(start, shards.shard)
    size = min(shards.shard, shards.shape[0] - start)
    if rest or images.shape != (size, *shards.shape[1:]):
        # Two blocks in one shard would overwrite each other's images without a word.
        rule = f"a block must be one whole shard of {shards.shard} images"
        raise ValueError(sentence(shards.folder, rule, (start, images.shape)))
    path = shards.path(number)
    drafts.mkdir(exist_ok=True)  # fails where the job is gone, before a folder is made for it
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, compose_shard(shards, images), drafts)


def compose_shard(shards: Shards, images: Images) -> list[Any]:
    """Return the contents of a shard, as bytes-like parts.

    Parameters
    ----------
    shards
        How images lie in a shard.
    images : array, shape (n, h, w)
        All images of the shard.

    Returns
    -------
    list of bytes-like
        Inner chunks, index, checksum. Where the last inner chunk lacks images it is filled with
        zeros; inner chunks past the end of the array are absent.

    Examples
    --------
    >>> shards = Shards(folder="", shape=(3, 2, 2), dtype="<f4", shard=4, inner=2)
    >>> [len(part) for part in compose_shard(shards, np.zeros((3, 2, 2), "f4"))]
    [32, 16, 16, 36]
    """
    images = np.ascontiguousarray(images, shards.dtype)
    parts: list[Any] = []
    index = np.full((shards.shard // shards.inner, 2), ABSENT, "<u8")
    offset = 0
    for k, first in enumerate(range(0, len(images), shards.inner)):
        chunk = encode_chunk(shards, images[first : first + shards.inner])
        length = sum(len(part) for part in chunk)
        index[k] = offset, length
        offset += length
        parts.extend(chunk)
    tail = index.tobytes()
    return [*parts, tail + crc32c(tail).to_bytes(CRC_BYTES, "little")]


def encode_chunk(shards: Shards, images: Images) -> list[Any]:
    """Return the contents of an inner chunk, as bytes-like parts.

    Parameters
    ----------
    shards
        How images lie in a shard.
    images : array, shape (n, h, w)
        Images of the chunk in the type of the files; missing ones become zeros.

    Examples
    --------
    >>> shards = Shards(folder="", shape=(3, 2, 2), dtype="<f4", shard=4, inner=2)
    >>> [len(part) for part in encode_chunk(shards, np.zeros((1, 2, 2), "f4"))]
    [16, 16]
    """
    missing = shards.inner - len(images)
    if shards.compression == "none":
        pixels = images.reshape(-1).view(np.uint8).data
        return [pixels, bytes(missing * shards.image_bytes)] if missing else [pixels]
    from imagecodecs import blosc_encode

    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
    # Blosc's threads write their blocks in the order in which they end: not the same bytes twice.
    return [
        blosc_encode(
            images,  # type: ignore[arg-type]
            COMPRESSION_LEVEL,
            compressor=shards.compression,
            shuffle=SHUFFLE,
            typesize=images.dtype.itemsize,
            numthreads=1,
        )
    ]


def read_shards(shards: Shards, start: int, stop: int) -> Images:
    """Read images ``start .. stop``, from as many shards as they lie in.

    Parameters
    ----------
    shards
        Where the shards lie.
    start, stop
        Positions of the first image and of the one after the last.

    Returns
    -------
    array, shape (stop - start, h, w)
        Native byte order. Images of absent shards are zeros unless ``shards.is_complete``.

    Raises
    ------
    FormatError
        If a shard is missing from a complete store, truncated, or its index is damaged.
    """
    images = np.empty((stop - start, *shards.shape[1:]), shards.dtype)
    first = start
    while first < stop:
        number = first // shards.shard
        last = min(stop, (number + 1) * shards.shard)
        _read_shard(shards, number, first, images[first - start : last - start])
        first = last
    return images.astype(images.dtype.newbyteorder("="), copy=False)


def _read_shard(shards: Shards, number: int, first: int, images: Images) -> None:
    """Fill ``images`` with those from position ``first`` on, all in one shard."""
    path = shards.path(number)
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError as error:
        if shards.is_complete:
            rule = f"a shard of the store is missing: {path.relative_to(shards.folder)}"
            raise FormatError(
                sentence(shards.folder, rule, remedy="Copy the store again.")
            ) from error
        images[:] = 0
        return
    with file:
        index = _read_index(shards, file, path)
        local = first - number * shards.shard
        needed = index[: -(-(local + len(images)) // shards.inner)]
        if shards.compression == "none" and _is_plain(needed, shards):
            _fill(file, local * shards.image_bytes, images, path)
            return
        done = 0
        while done < len(images):
            k, skip = divmod(local + done, shards.inner)
            count = min(shards.inner - skip, len(images) - done)
            part = images[done : done + count]
            if count == shards.inner:
                _read_inner(shards, file, index[k], path, part)
            else:
                whole = np.empty((shards.inner, *images.shape[1:]), images.dtype)
                _read_inner(shards, file, index[k], path, whole)
                part[...] = whole[skip : skip + count]
            done += count


def _is_plain(index: npt.NDArray[np.uint64], shards: Shards) -> bool:
    """Say whether these inner chunks lie where they would lie in memory."""
    length = shards.inner * shards.image_bytes
    expected = np.arange(len(index), dtype=np.uint64) * np.uint64(length)
    return bool((index[:, 0] == expected).all() and (index[:, 1] == length).all())


def _read_index(shards: Shards, file: IO[bytes], path: Path) -> npt.NDArray[np.uint64]:
    tail = np.empty(shards.tail_bytes, np.uint8)
    size = os.fstat(file.fileno()).st_size
    _fill(file, size - shards.tail_bytes, tail, path)
    found = int.from_bytes(tail[-CRC_BYTES:].tobytes(), "little")
    if crc32c(tail[:-CRC_BYTES].tobytes()) != found:
        rule = "damaged shard: its index does not match its checksum"
        raise FormatError(sentence(str(path), rule, remedy="Copy the store again."))
    return tail[:-CRC_BYTES].view("<u8").reshape(-1, 2)


def _read_inner(
    shards: Shards, file: IO[bytes], entry: npt.NDArray[np.uint64], path: Path, target: Images
) -> None:
    """Fill ``target`` with a whole inner chunk."""
    offset, length = (int(n) for n in entry)
    if offset == ABSENT:
        target[...] = 0
        return
    raw = np.empty(length, np.uint8)
    _fill(file, offset, raw, path)
    try:
        decode_chunk(shards, raw, target)
    except ValueError as error:
        rule = "damaged shard: an inner chunk does not decompress"
        raise FormatError(sentence(str(path), rule, remedy="Copy the store again.")) from error


def decode_chunk(shards: Shards, raw: npt.NDArray[np.uint8], target: Images) -> None:
    """Turn the contents of an inner chunk into images; the inverse of `encode_chunk`.

    Parameters
    ----------
    shards
        How images lie in a shard.
    raw
        Contents.
    target : array, shape (shards.inner, h, w)
        Contiguous, in the type of the files; is filled.

    Raises
    ------
    ValueError
        If the contents are not those of a whole chunk.
    """
    pixels = target.reshape(-1).view(np.uint8)
    n_bytes = len(raw)
    if shards.compression == "none":
        pixels[:n_bytes] = raw
    else:
        from imagecodecs import BloscError, blosc_decode

        try:
            n_bytes = len(blosc_decode(raw.data, numthreads=1, out=pixels.data))  # type: ignore[arg-type]
        except BloscError as error:
            raise ValueError(str(error)) from error
    if n_bytes != len(pixels):
        raise ValueError(f"{n_bytes:,} bytes where {len(pixels):,} are due")


def _fill(file: IO[bytes], offset: int, target: npt.NDArray[Any], path: Path) -> None:
    """Fill the array with the bytes at that offset; one call may give less than asked."""
    view = target.reshape(-1).view(np.uint8).data
    done = 0
    if offset >= 0:
        file.seek(offset)
        while done < len(view):
            n_read = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not n_read:
                break
            done += n_read
    if done < len(view):
        rule = f"truncated shard: {len(view):,} bytes are needed at byte {max(offset, 0):,}"
        raise FormatError(sentence(str(path), rule, done, "Copy the store again."))


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of a few bytes; meant for indices of kilobytes.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    table = _crc_table()
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@cache
def _crc_table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(value) for value in range(256))
