"""Writing a stack as a Zarr store: one task writes one whole shard, which is one Dask chunk."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_choice
from emdask.config import setting
from emdask.io.output import Options, Output, cast_images, check_cast
from emdask.io.shards import Shards, compose_shard, write_shard
from emdask.io.zarr import create_zarr

Images = npt.NDArray[Any]
COMPRESSIONS = ("auto", "none", "lz4", "zstd")
INNER_BYTES = 8 * 2**20
INNER_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class ZarrTarget:
    """A store that is being written.

    Parameters
    ----------
    shards
        Where its images go.
    drafts
        Folder for shards while they are written.
    """

    shards: Shards
    drafts: str

    @property
    def dtype(self) -> str:
        """Type of a pixel in the files."""
        return self.shards.dtype

    @property
    def path(self) -> str:
        """The store."""
        return str(Path(self.shards.folder).parent)

    @property
    def compression(self) -> str:
        """Compression of the images."""
        return self.shards.compression

    @property
    def n_bytes(self) -> int:
        """Bytes that the images take; 0 where compression decides."""
        known = self.shards.compression == "none"
        return self.shards.shape[0] * self.shards.image_bytes if known else 0


def arrange_shards(stack: xr.DataArray) -> xr.DataArray:
    """Return the stack in chunks of one size, of which only the last may be smaller.

    A shard is a file: tiny chunks are joined where there are more than `choose_chunk` aims at.

    Examples
    --------
    >>> import numpy as np
    >>> stack = xr.DataArray(np.zeros((7, 2, 2)), dims=("image", "y", "x"))
    >>> arrange_shards(stack.chunk({"image": (1, 3, 3)})).chunks[0]
    (3, 3, 1)
    >>> many = xr.DataArray(np.zeros((5000, 32, 32)), dims=("image", "y", "x"))
    >>> arrange_shards(many.chunk({"image": 1})).chunks[0][:2]
    (256, 256)
    """
    sizes = stack.data.chunks[0]
    full = max(sizes)
    if len(sizes) > setting("chunks-per-stack"):
        chunk_bytes = full * stack.shape[1] * stack.shape[2] * stack.dtype.itemsize
        full *= max(setting("chunk-min-MiB") * 2**20 // chunk_bytes, 1)
    if set(sizes[:-1]) <= {full}:
        return stack
    return stack.chunk({"image": full})


def plan_zarr(stack: xr.DataArray, folder: Path, name: str, options: Options) -> ZarrTarget:
    """Say how the stack will lie in a store.

    Raises
    ------
    ParameterError
        If the type of pixel or the compression cannot be.
    """
    check_choice("save_stack", "compression", options.compression, COMPRESSIONS)
    dtype = options.dtype or stack.dtype
    check_cast(stack.dtype, dtype)
    image_bytes = stack.shape[1] * stack.shape[2] * dtype.itemsize
    shard = stack.data.chunks[0][0]
    auto = options.compression == "auto"
    shards = Shards(
        folder=str(folder / name / "images"),
        shape=(stack.shape[0], stack.shape[1], stack.shape[2]),
        dtype=dtype.newbyteorder("<").str,
        shard=shard,
        inner=choose_inner(shard, image_bytes),
        compression=choose_compression(dtype) if auto else options.compression,
    )
    return ZarrTarget(shards=shards, drafts=str(folder / "drafts"))


def choose_compression(dtype: np.dtype[Any]) -> str:
    """Return the compression for images of that type.

    Noise in real numbers shrinks by a seventh at most, for four times the CPU time; electron counts
    shrink to a third (benchmarks/results/codecs.md).

    Examples
    --------
    >>> choose_compression(np.dtype("f4")), choose_compression(np.dtype("i1"))
    ('none', 'lz4')
    """
    return "none" if dtype.kind == "f" else "lz4"


def choose_inner(shard: int, image_bytes: int) -> int:
    """Return the images an inner chunk: the largest divisor of ``shard`` up to 64 images and 8 MiB.

    Examples
    --------
    >>> choose_inner(1024, 128 * 128 * 4), choose_inner(1, 4096 * 4096 * 4)
    (64, 1)
    """
    most = max(min(INNER_BYTES // image_bytes, INNER_IMAGES, shard), 1)
    return next(n for n in range(most, 0, -1) if shard % n == 0)


def _create(target: ZarrTarget, stack: xr.DataArray) -> None:
    create_zarr(target.shards, stack)


def _write(target: ZarrTarget, images: Images, start: int) -> None:
    images = cast_images(images, target.dtype, start)
    write_shard(target.shards, images, start, Path(target.drafts))


def _find_done(target: ZarrTarget, starts: Sequence[int], sizes: Sequence[int]) -> set[int]:
    shard = target.shards.shard
    return {i for i, start in enumerate(starts) if target.shards.path(start // shard).is_file()}


def _holds(target: ZarrTarget, images: Images, start: int) -> bool:
    parts = compose_shard(target.shards, cast_images(images, target.dtype, start))
    return target.shards.path(start // target.shards.shard).read_bytes() == b"".join(parts)


def _is_like(made: ZarrTarget, found: ZarrTarget) -> bool:
    ours, theirs = (Path(target.shards.folder).parent for target in (made, found))
    files = [path.relative_to(ours) for path in ours.rglob("*") if path.is_file()]
    starts = range(0, found.shards.shape[0], found.shards.shard)
    return len(_find_done(found, starts, ())) == len(starts) and all(
        (theirs / file).is_file() and filecmp.cmp(ours / file, theirs / file, shallow=False)
        for file in files
    )


def _finish(target: ZarrTarget, starts: Sequence[int]) -> None:
    """Nothing is left to do: the metadata were written first."""


def _products(name: str) -> tuple[str, ...]:
    return (name,)


ZARR = Output(
    task="write-zarr",
    arrange=arrange_shards,
    plan=plan_zarr,
    create=_create,
    write=_write,
    find_done=_find_done,
    holds=_holds,
    is_like=_is_like,
    finish=_finish,
    products=_products,
)
