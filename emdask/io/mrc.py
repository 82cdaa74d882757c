"""MRC2014 files: ``.mrc``, ``.mrcs``, ``.map``, ``.st``.

The layout is that of Cheng et al. 2015, J. Struct. Biol. 192, 146. Headers are read with the
tolerance that the field's files need (no MAP word, empty machine stamp), and then held against the
size of the file: what a header says must be there.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import logging
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.checks import sentence
from emdask.errors import FormatError
from emdask.io.files import ImageFile

logger = logging.getLogger(__name__)

HEADER_BYTES = 1024
MRC_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("i1"),
    1: np.dtype("i2"),
    2: np.dtype("f4"),
    6: np.dtype("u2"),
    12: np.dtype("f2"),
}
OTHER_MODES = {3: "complex int16", 4: "complex float32", 16: "RGB", 101: "4-bit"}
LITTLE_STAMP = b"\x44\x44\x00\x00"
UNDETERMINED = (0.0, -1.0, -2.0, -1.0)  # MRC2014: max < min, mean < both, rms < 0
LARGEST_EDGE_PX = 2**20
COMPRESSIONS = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2"}
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile)
MOST_BYTES = 2**30  # Linux reads at most 2 GiB in one call

_FIELDS = [
    ("shape_xyz", "i4", 3),
    ("mode", "i4"),
    ("start", "i4", 3),
    ("sampling", "i4", 3),
    ("cell_A", "f4", 3),
    ("angles_deg", "f4", 3),
    ("axes", "i4", 3),
    ("minimum", "f4"),
    ("maximum", "f4"),
    ("mean", "f4"),
    ("space_group", "i4"),
    ("extended_bytes", "i4"),
    ("extra1", "S8"),
    ("extended_type", "S4"),
    ("version", "i4"),
    ("extra2", "S84"),
    ("origin", "f4", 3),
    ("map", "S4"),
    ("stamp", "S4"),
    ("rms", "f4"),
    ("n_labels", "i4"),
    ("labels", "S80", 10),
]
HEADER_DTYPE = np.dtype(_FIELDS)


@dataclass(frozen=True, kw_only=True)
class MrcHeader:
    """What the header of an MRC file says, as far as images need it.

    Parameters
    ----------
    path
        The file.
    shape
        (n, h, w) as the header says.
    dtype
        Type of a pixel in the file, byte order included.
    offset
        Bytes before the first pixel.
    n_whole
        Images that are whole in the file; ``n`` where only reading it all would tell (compressed).
    pixel_size_A
        Edge of a pixel, Å; None where the header does not say.
    compression
        "", "gzip" or "bzip2".
    modified_ns
        When the file was last changed: the same path with other pixels is another source.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    n_whole: int
    pixel_size_A: float | None = None
    compression: str = ""
    modified_ns: int = 0

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.shape[1] * self.shape[2] * self.dtype.itemsize


def build_header(
    shape: tuple[int, int, int],
    dtype: npt.DTypeLike,
    pixel_size_A: float | None,
    *,
    statistics: tuple[float, float, float, float] | None = None,
    is_stack: bool = True,
    origin_A: Sequence[float] = (0.0, 0.0, 0.0),
) -> bytes:
    """Make the header of an MRC2014 file, little endian.

    Parameters
    ----------
    shape
        (n, h, w): images, or sections of a volume.
    dtype
        Type of a pixel: int8, int16, uint16, float16 or float32.
    pixel_size_A
        Edge of a pixel, Å; None or 0 where it is unknown.
    statistics
        (minimum, maximum, mean, root mean square deviation) of the pixels; without them the header
        says "not determined".
    is_stack
        True for a stack of images, False for a volume.
    origin_A
        Place (x, y, z) of the first voxel, Å.

    Returns
    -------
    bytes
        1024 bytes.

    Raises
    ------
    FormatError
        If MRC has no mode for ``dtype``, or the shape does not fit its fields.

    Examples
    --------
    >>> len(build_header((10, 64, 64), "f4", 1.5))
    1024
    """
    n_images, height, width = shape
    if not all(1 <= n < 2**31 for n in shape):
        raise FormatError(sentence("MRC", "each length must lie in [1, 2147483647]", shape))
    size_A = float(pixel_size_A or 0.0)
    depth = 1 if is_stack else n_images
    header = np.zeros((), HEADER_DTYPE)
    header["shape_xyz"] = (width, height, n_images)
    header["mode"] = find_mode(dtype)
    header["sampling"] = (width, height, depth)
    header["cell_A"] = (width * size_A, height * size_A, depth * size_A)
    header["angles_deg"] = 90.0
    header["axes"] = (1, 2, 3)
    fields = ("minimum", "maximum", "mean", "rms")
    for field, value in zip(fields, statistics or UNDETERMINED, strict=True):
        header[field] = value
    header["space_group"] = 0 if is_stack else 1
    header["version"] = 20141
    header["origin"] = origin_A
    header["map"] = b"MAP "
    header["stamp"] = LITTLE_STAMP
    header["n_labels"] = 1
    header["labels"][0] = b"emdask".ljust(80)
    return header.astype(HEADER_DTYPE.newbyteorder("<")).tobytes()


def find_mode(dtype: npt.DTypeLike) -> int:
    """Return the MRC mode of a type of pixel, or raise `FormatError`.

    Examples
    --------
    >>> find_mode("float16")
    12
    """
    native = np.dtype(dtype).newbyteorder("=")
    for mode, possible in MRC_DTYPES.items():
        if possible == native:
            return mode
    known = ", ".join(str(possible) for possible in MRC_DTYPES.values())
    remedy = 'Convert the stack first, as stack.astype("float32").'
    raise FormatError(sentence("MRC", f"pixels must be {known}", str(native), remedy))


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read the header of an MRC file and hold it against the file's size.

    Parameters
    ----------
    path
        The file, which may be compressed by gzip or bzip2.

    Returns
    -------
    MrcHeader
        With ``n_whole`` below ``shape[0]`` where the file is truncated.

    Raises
    ------
    FormatError
        If it is no MRC file, has a mode that holds no real images, or is longer than its header
        says by an image or more.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "two.mrcs"
    >>> _ = path.write_bytes(build_header((2, 8, 6), "int16", 1.5) + bytes(2 * 8 * 6 * 2))
    >>> header = read_header(path)
    >>> header.shape, header.pixel_size_A
    ((2, 8, 6), 1.5)
    """
    name = os.fspath(path)
    compression, status = _inspect(name)
    fields, order = _parse(name, _read_start(name, compression))
    width, height, n_images = (int(n) for n in fields["shape_xyz"])
    header = MrcHeader(
        path=name,
        shape=(n_images, height, width),
        dtype=_find_dtype(name, int(fields["mode"])).newbyteorder(order),
        offset=HEADER_BYTES + int(fields["extended_bytes"]),
        n_whole=n_images,
        pixel_size_A=_pixel_size(fields),
        compression=compression,
        modified_ns=status.st_mtime_ns,
    )
    return header if compression else _hold_against_size(header, status.st_size)


def read_fields(path: str | os.PathLike[str]) -> np.void:
    """Read all that the header of an MRC file says, as it stands there.

    Returns
    -------
    numpy.void
        Of the type `HEADER_DTYPE`.

    Raises
    ------
    FormatError
        If it is no MRC file.
    FileNotFoundError
        If there is no such file.
    """
    name = os.fspath(path)
    return _parse(name, _read_start(name, _inspect(name)[0]))[0]


def inspect_file(path: str | os.PathLike[str]) -> ImageFile:
    """Read what an MRC file says of itself; `read_header` in the form that all formats share."""
    header = read_header(path)
    n_images = header.shape[0]
    is_short = header.n_whole < n_images
    return ImageFile(
        path=header.path,
        read=read_block,
        # Workers may run in another folder.
        source=dataclasses.replace(header, path=os.path.abspath(header.path)),
        shape=header.shape,
        dtype=header.dtype.newbyteorder("="),
        n_whole=header.n_whole,
        pixel_size_A=header.pixel_size_A,
        what_is_short=describe_size(header, os.path.getsize(header.path)) if is_short else "",
        compression=header.compression,
    )


def _inspect(path: str) -> tuple[str, os.stat_result]:
    """Return how the file is compressed, by its first bytes, and its state."""
    with open(path, "rb") as file:
        return COMPRESSIONS.get(file.read(3), ""), os.fstat(file.fileno())


def _read_start(path: str, compression: str) -> bytes:
    try:
        with _open_plain(path, compression) as plain:
            return plain.read(HEADER_BYTES)
    except DAMAGE as error:
        raise FormatError(f"{path}: not a whole {compression} file: {error}.") from error


def _open_plain(path: str, compression: str) -> IO[bytes]:
    if compression == "gzip":
        return gzip.open(path)  # type: ignore[return-value]
    if compression == "bzip2":
        return bz2.open(path)
    return open(path, "rb", buffering=0)


def _parse(path: str, raw: bytes) -> tuple[np.void, Literal["<", ">"]]:
    """Find the byte order that makes sense; old programs leave the machine stamp empty."""
    if len(raw) < HEADER_BYTES:
        rule = f"not an MRC file: it must start with a header of {HEADER_BYTES} bytes"
        raise FormatError(f"{path}: {rule}; got {len(raw)}.")
    orders: tuple[Literal["<", ">"], ...] = (">", "<") if raw[212:213] == b"\x11" else ("<", ">")
    for order in orders:
        fields = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        if _makes_sense(fields):
            return fields, order
    fields = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(orders[0]))[0]
    got = [int(n) for n in (*fields["shape_xyz"], fields["mode"], fields["extended_bytes"])]
    rule = "not an MRC file: its header must hold nx, ny, nz, mode, bytes of extended header"
    raise FormatError(sentence(path, rule, got))


def _makes_sense(fields: np.void) -> bool:
    width, height, n_images = (int(n) for n in fields["shape_xyz"])
    return (
        1 <= width <= LARGEST_EDGE_PX
        and 1 <= height <= LARGEST_EDGE_PX
        and n_images >= 1
        and 0 <= int(fields["mode"]) < 1024
        and int(fields["extended_bytes"]) >= 0
    )


def _find_dtype(path: str, mode: int) -> np.dtype[Any]:
    if mode in MRC_DTYPES:
        return MRC_DTYPES[mode]
    known = ", ".join(f"{number} ({dtype})" for number, dtype in MRC_DTYPES.items())
    got = f"{mode} ({OTHER_MODES[mode]})" if mode in OTHER_MODES else str(mode)
    raise FormatError(f"{path}: mode must be one of {known}; got {got}.")


def _pixel_size(fields: np.void) -> float | None:
    cell_A, n_intervals = float(fields["cell_A"][0]), int(fields["sampling"][0])
    if n_intervals <= 0 or not math.isfinite(cell_A) or cell_A <= 0:
        return None
    # Seven digits are what a float32 holds: 234.24 Å over 48 px is 4.88 Å, not 4.8800001.
    size_A = float(f"{cell_A / n_intervals:.7g}")
    return size_A if size_A > 0 else None


def _hold_against_size(header: MrcHeader, file_bytes: int) -> MrcHeader:
    n_images = header.shape[0]
    extra = file_bytes - header.offset - n_images * header.image_bytes
    if extra < 0:
        n_whole = max((file_bytes - header.offset) // header.image_bytes, 0)
        return dataclasses.replace(header, n_whole=n_whole)
    if extra >= header.image_bytes:
        # More whole images than the header counts: it is wrong, and so may be all that it says.
        remedy = "Its header does not fit its pixels; write the file again with the right header."
        raise FormatError(f"{describe_size(header, file_bytes)} {remedy}")
    if extra:
        logger.warning("%s: %d bytes after the last image are ignored.", header.path, extra)
    return header


def describe_size(header: MrcHeader, file_bytes: int) -> str:
    """Say how many bytes the header promises and how many the file has."""
    n_images, height, width = header.shape
    promised = header.offset + n_images * header.image_bytes
    return (
        f"{header.path}: header says {n_images:,} images of {width}x{height} "
        f"{header.dtype.name} ({promised:,} bytes); the file has {file_bytes:,}."
    )


def read_block(source: MrcHeader, start: int, stop: int) -> npt.NDArray[Any]:
    """Read images ``start .. stop`` in one go.

    Parameters
    ----------
    source
        The file's header.
    start, stop
        Positions of the first image and of the one after the last.

    Returns
    -------
    array, shape (stop - start, h, w)
        Type as stored, byte order of the machine.

    Raises
    ------
    FormatError
        If the file is shorter than its header says.
    """
    images = np.empty((stop - start, *source.shape[1:]), source.dtype)
    begin = source.offset + start * source.image_bytes
    try:
        with _open_plain(source.path, source.compression) as file:
            file.seek(begin)
            n_read = _fill(file, images.reshape(-1).view(np.uint8).data)
    except DAMAGE as error:
        raise FormatError(f"{source.path}: damaged {source.compression} file: {error}.") from error
    if n_read < images.nbytes:
        rule = f"images {start} to {stop - 1} need {images.nbytes:,} bytes from byte {begin:,}"
        remedy = "It is truncated; copy it again."
        raise FormatError(f"{source.path}: {rule}; got {n_read:,}. {remedy}")
    return _to_native(images)


def _fill(file: IO[bytes], target: memoryview) -> int:
    """Read until the target is full or the file ends; one call may give less than asked."""
    done = 0
    while done < len(target):
        n_read = file.readinto(target[done : done + MOST_BYTES])  # type: ignore[attr-defined]
        if not n_read:
            break
        done += n_read
    return done


def _to_native(images: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if images.dtype.isnative:
        return images
    return images.byteswap(inplace=True).view(images.dtype.newbyteorder("="))
