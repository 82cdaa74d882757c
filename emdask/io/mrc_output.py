"""Writing a stack as MRC files: one ``.mrcs`` with its STAR file, or a folder of micrographs.

Many tasks write into one ``.mrcs`` at their offsets, so what tells a finished chunk is a line in a
journal. The line also carries the sums that the header's statistics are made of.
"""

from __future__ import annotations

import dataclasses
import filecmp
import math
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import require, sentence
from emdask.errors import ParameterError
from emdask.io.mrc import HEADER_BYTES, HEADER_DTYPE, build_header, find_mode
from emdask.io.output import Options, Output, cast_images, check_cast, replace_file
from emdask.io.star_output import write_star

Images = npt.NDArray[Any]
STATISTICS = ("minimum", "maximum", "mean", "rms")
WIDER = {"float64": "float32", "uint8": "uint16", "bool": "int8"}  # types that MRC lacks
MOST_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class MrcTarget:
    """An MRC file, or a folder of them, that is being written.

    Parameters
    ----------
    path
        The file, or the folder.
    shape
        (n, h, w).
    dtype
        Type of a pixel in the files, little endian.
    pixel_size_A
        Edge of a pixel, Å; 0 where it is unknown.
    workshop
        Folder of journals and drafts.
    has_star
        True where a STAR file goes with it.
    names
        Names of the files in a folder.
    compression
        MRC has none.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: str
    pixel_size_A: float
    workshop: str
    has_star: bool = True
    names: tuple[str, ...] = ()
    compression: str = "none"

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.shape[1] * self.shape[2] * np.dtype(self.dtype).itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes that the images take."""
        return self.shape[0] * self.image_bytes

    @property
    def star(self) -> Path:
        """STAR file of a ``.mrcs``."""
        return Path(self.path).with_suffix(".star")


class Sums(NamedTuple):
    """Additive statistics of some pixels."""

    n_px: int
    minimum: float
    maximum: float
    total: float
    squares: float


def _plan(stack: xr.DataArray, folder: Path, name: str, options: Options) -> MrcTarget:
    rule = "compression is of Zarr stores only"
    require(options.compression in ("auto", "none"), name, rule, options.compression)
    dtype = options.dtype
    if dtype is None:
        dtype = np.dtype(WIDER.get(stack.dtype.name, stack.dtype))
    check_cast(stack.dtype, dtype)
    find_mode(dtype)
    return MrcTarget(
        path=str(folder / name),
        shape=(stack.shape[0], stack.shape[1], stack.shape[2]),
        dtype=dtype.newbyteorder("<").str,
        pixel_size_A=float(stack.attrs.get("pixel_size_A") or 0),
        workshop=str(folder / "workshop"),
    )


def _plan_single(stack: xr.DataArray, folder: Path, name: str, options: Options) -> MrcTarget:
    target = _plan(stack, folder, name, options)
    if stack.shape[0] > 1:
        remedy = "Save them as .mrcs, or into a folder (a path without suffix)."
        rule = "a .mrc file holds one micrograph"
        raise ParameterError(sentence(name, rule, f"{stack.shape[0]} images", remedy))
    return dataclasses.replace(target, has_star=False)


def _plan_folder(stack: xr.DataArray, folder: Path, name: str, options: Options) -> MrcTarget:
    target = _plan(stack, folder, name, options)
    return dataclasses.replace(target, names=tuple(name_micrographs(stack)))


def _arrange(stack: xr.DataArray) -> xr.DataArray:
    return stack


def _create(target: MrcTarget, stack: xr.DataArray) -> None:
    """Write the STAR file, and the file of images with its size and without pixels."""
    Path(target.workshop).mkdir()
    if target.has_star:
        file = Path(target.path).name
        write_star(stack, target.star, [f"{i + 1:06d}@{file}" for i in range(target.shape[0])])
    with open(target.path, "wb") as images:
        images.write(_header(target, target.shape, None))
        images.truncate(HEADER_BYTES + target.n_bytes)


def _header(target: MrcTarget, shape: tuple[int, int, int], sums: Sums | None) -> bytes:
    statistics = None if sums is None else _statistics(sums)
    return build_header(shape, target.dtype, target.pixel_size_A, statistics=statistics)


def _write(target: MrcTarget, images: Images, start: int) -> None:
    images = cast_images(images, target.dtype, start)
    pixels = images.reshape(-1).view(np.uint8).data
    descriptor = os.open(target.path, os.O_WRONLY)
    try:
        offset = HEADER_BYTES + start * target.image_bytes
        done = 0
        while done < len(pixels):
            done += os.pwrite(descriptor, pixels[done : done + MOST_BYTES], offset + done)
    finally:
        os.close(descriptor)
    _append_journal(target, start, measure(images))


def measure(images: Images) -> Sums:
    """Sum up the pixels of a block, image by image, in the same order on every machine.

    Examples
    --------
    >>> measure(np.array([[[1.0, 3.0]]], "f4"))
    Sums(n_px=2, minimum=1.0, maximum=3.0, total=4.0, squares=10.0)
    """
    minimum, maximum, total, squares = math.inf, -math.inf, 0.0, 0.0
    for image in images:
        pixels = image.ravel().astype(np.float64)
        minimum = min(minimum, float(pixels.min()))
        maximum = max(maximum, float(pixels.max()))
        total += float(pixels.sum())
        # Not a BLAS product: its threads would make the last bits depend on their number.
        squares += float(np.square(pixels, out=pixels).sum())
    return Sums(images.size, minimum, maximum, total, squares)


def _statistics(sums: Sums) -> tuple[float, float, float, float] | None:
    """Return minimum, maximum, mean and deviation; None where a pixel is NaN or infinite."""
    if not math.isfinite(sums.total) or not math.isfinite(sums.squares):
        return None
    mean = sums.total / sums.n_px
    return sums.minimum, sums.maximum, mean, math.sqrt(max(sums.squares / sums.n_px - mean**2, 0))


def _append_journal(target: MrcTarget, start: int, sums: Sums) -> None:
    """Note a finished chunk in the journal of this process.

    One journal for each process, because appending from several machines is not safe on network
    file systems. A line has a break before it too and ends with a full stop, so that what a crash
    leaves of one is neither taken for a whole one nor spoils the next.
    """
    numbers = " ".join(float(number).hex() for number in sums[1:])
    line = f"\n{start} {sums.n_px} {numbers} .\n".encode()
    name = Path(target.workshop, f"journal-{socket.gethostname()}-{os.getpid()}")
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _read_journals(target: MrcTarget) -> dict[int, Sums]:
    """Return the sums of each finished chunk by the position of its first image."""
    finished = {}
    for journal in sorted(Path(target.workshop).glob("journal-*")):
        for line in journal.read_text().split("\n"):
            words = line.split(" ")
            if len(words) == 7 and words[-1] == ".":
                numbers = [float.fromhex(word) for word in words[2:6]]
                finished[int(words[0])] = Sums(int(words[1]), *numbers)
    return finished


def _find_done(target: MrcTarget, starts: Sequence[int], sizes: Sequence[int]) -> set[int]:
    finished = _read_journals(target)
    return {i for i, start in enumerate(starts) if start in finished}


def _holds(target: MrcTarget, images: Images, start: int) -> bool:
    pixels = cast_images(images, target.dtype, start)
    with open(target.path, "rb") as file:
        file.seek(HEADER_BYTES + start * target.image_bytes)
        return file.read(pixels.nbytes) == pixels.tobytes()


def _is_like(made: MrcTarget, found: MrcTarget) -> bool:
    if os.path.getsize(found.path) != os.path.getsize(made.path):
        return False
    if _plain_header(made.path) != _plain_header(found.path):
        return False
    return not made.has_star or _same_file(made.star, found.star)


def _same_file(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)


def _plain_header(path: str) -> bytes:
    """Return a header without the statistics of the pixels."""
    header = np.fromfile(path, HEADER_DTYPE.newbyteorder("<"), count=1)
    for name in STATISTICS:
        header[name] = 0
    return header.tobytes()


def _finish(target: MrcTarget, starts: Sequence[int]) -> None:
    """Write the header again, with the statistics; in the order of chunks, for equal last bits."""
    finished = _read_journals(target)
    header = _header(target, target.shape, add_up(finished[start] for start in starts))
    with open(target.path, "r+b") as images:
        images.write(header)


def add_up(parts: Iterable[Sums]) -> Sums:
    """Add statistics up, in their order.

    Examples
    --------
    >>> add_up([Sums(1, 2.0, 2.0, 2.0, 4.0), Sums(1, 3.0, 3.0, 3.0, 9.0)])
    Sums(n_px=2, minimum=2.0, maximum=3.0, total=5.0, squares=13.0)
    """
    count, minimum, maximum, total, squares = 0, math.inf, -math.inf, 0.0, 0.0
    for part in parts:
        count += part.n_px
        minimum, maximum = min(minimum, part.minimum), max(maximum, part.maximum)
        total, squares = total + part.total, squares + part.squares
    return Sums(count, minimum, maximum, total, squares)


def _stack_products(name: str) -> tuple[str, ...]:
    return (str(Path(name).with_suffix(".star")), name)


def _products(name: str) -> tuple[str, ...]:
    return (name,)


def name_micrographs(stack: xr.DataArray) -> list[str]:
    """Return a file name for each image, after its micrograph; all are different.

    Examples
    --------
    >>> stack = xr.DataArray(np.zeros((3, 2, 2)), dims=("image", "y", "x"))
    >>> name_micrographs(stack)
    ['image_000001.mrc', 'image_000002.mrc', 'image_000003.mrc']
    >>> name_micrographs(stack.assign_coords(micrograph=("image", ["a/m.mrc", "b/m.mrc", "../n"])))
    ['m_000001.mrc', 'm_000002.mrc', 'n.mrc']
    """
    n_images = stack.shape[0]
    if "micrograph" in stack.coords:
        values = np.broadcast_to(stack.coords["micrograph"].values, (n_images,))
        stems = [_stem(str(value)) for value in values]
    else:
        stems = ["image"] * n_images
    numbered = [f"{stem}_{i + 1:06d}" for i, stem in enumerate(stems)]
    # A name in lower case, because some file systems do not tell the cases apart.
    lower = [stem.lower() for stem in stems]
    repeated = {stem for stem, count in _count(lower).items() if count > 1}
    chosen = [
        number if low in repeated or stem == "image" else stem
        for stem, low, number in zip(stems, lower, numbered, strict=True)
    ]
    if len(set(map(str.lower, chosen))) < n_images:
        chosen = numbered
    return [f"{stem}.mrc" for stem in chosen]


def _stem(micrograph: str) -> str:
    """Return the bare name of a micrograph: no folder, no suffix, nothing hidden."""
    name = micrograph.replace("\\", "/").rpartition("/")[2]
    for suffix in (".mrc", ".mrcs", ".tif", ".tiff", ".eer"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    name = "".join(c if c.isprintable() else "_" for c in name).lstrip(".")
    return name[:200] or "image"


def _count(words: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


def _create_folder(target: MrcTarget, stack: xr.DataArray) -> None:
    """Write the STAR file of the micrographs, if anything is known of them."""
    folder = Path(target.path)
    folder.mkdir()
    Path(target.workshop).mkdir()
    if stack.coords or stack.attrs:
        kind = stack.attrs.get("kind", "micrographs")
        write_star(stack.assign_attrs(kind=kind), folder / "micrographs.star", target.names)


def _micrograph_parts(
    target: MrcTarget, images: Images, start: int
) -> Iterator[tuple[Path, list[Any]]]:
    """Give each image's file and contents."""
    for i, image in enumerate(cast_images(images, target.dtype, start)):
        header = _header(target, (1, *image.shape), measure(image[None]))
        pixels = image.reshape(-1).view(np.uint8).data
        yield Path(target.path, target.names[start + i]), [header, pixels]


def _write_folder(target: MrcTarget, images: Images, start: int) -> None:
    for path, parts in _micrograph_parts(target, images, start):
        replace_file(path, parts, Path(target.workshop, "drafts"))


def _find_done_folder(target: MrcTarget, starts: Sequence[int], sizes: Sequence[int]) -> set[int]:
    there = set(os.listdir(target.path))
    return {
        i
        for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
        if there.issuperset(target.names[start : start + size])
    }


def _holds_folder(target: MrcTarget, images: Images, start: int) -> bool:
    return all(
        path.read_bytes() == b"".join(parts)
        for path, parts in _micrograph_parts(target, images, start)
    )


def _is_like_folder(made: MrcTarget, found: MrcTarget) -> bool:
    there = set(os.listdir(found.path))
    if not there.issuperset(made.names):
        return False
    star = Path(made.path, "micrographs.star")
    return not star.exists() or _same_file(star, Path(found.path, star.name))


def _finish_folder(target: MrcTarget, starts: Sequence[int]) -> None:
    """Nothing is left to do: each micrograph has its own header."""


MRCS = Output(
    task="write-mrcs",
    arrange=_arrange,
    plan=_plan,
    create=_create,
    write=_write,
    find_done=_find_done,
    holds=_holds,
    is_like=_is_like,
    finish=_finish,
    products=_stack_products,
)
MRC = dataclasses.replace(MRCS, task="write-mrc", plan=_plan_single, products=_products)
MICROGRAPHS = Output(
    task="write-micrographs",
    arrange=_arrange,
    plan=_plan_folder,
    create=_create_folder,
    write=_write_folder,
    find_done=_find_done_folder,
    holds=_holds_folder,
    is_like=_is_like_folder,
    finish=_finish_folder,
    products=_products,
)
