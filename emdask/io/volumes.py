"""Volumes: MRC and CCP4 maps, and Zarr groups."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_number, require, sentence
from emdask.errors import FormatError, StackError
from emdask.io.files import COMPRESSED, check_file, find_suffix
from emdask.io.mrc import build_header, describe_size, read_block, read_fields, read_header
from emdask.io.output import remove_path, replace_path
from emdask.io.zarr import plain_attributes
from emdask.volumes import VOLUME_DIMS, as_volume, build_volume

Array = npt.NDArray[Any]

MAP_SUFFIXES = (".mrc", ".map", ".ccp4")
ZARR_SUFFIX = ".zarr"
SUFFIXES = (*MAP_SUFFIXES, ZARR_SUFFIX)
# Of the array in a Zarr group, that of `save_volume` and that of a reconstruction.
ARRAY_NAME = "volume"
# Programs round the cell to three digits, and the pixel size with it.
PIXEL_SIZE_TOLERANCE = 2e-3


def open_volume(path: str | os.PathLike[str], pixel_size_A: float | None = None) -> xr.DataArray:
    """Read a volume.

    Parameters
    ----------
    path
        MRC or CCP4 map (``.mrc .map .ccp4``, also ``.gz`` and ``.bz2``) with its axes in any order,
        or a ``.zarr`` group of `save_volume`, or that of a reconstruction.
    pixel_size_A
        Edge of a voxel, Å, where the file does not say or is wrong.

    Returns
    -------
    xarray.DataArray, dims (z, y, x), float32
        In memory. Attributes: ``pixel_size_A``, and ``origin_A``, the place (x, y, z) of the first
        voxel, where a map says one.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is truncated, damaged or no volume, or does not say its pixel size.
    ParameterError
        If the pixel size is no positive number.

    Examples
    --------
    >>> import tempfile
    >>> volume = build_volume(np.ones((8, 8, 8)), 2.5)
    >>> path = save_volume(volume, tempfile.mkdtemp() + "/ones.mrc")
    >>> open_volume(path).attrs["pixel_size_A"]
    2.5
    """
    if pixel_size_A is not None:
        check_number("open_volume", "pixel_size_A", pixel_size_A, low=1e-3)
    name = os.path.expanduser(os.fspath(path))
    suffix = find_suffix(name)
    if suffix not in SUFFIXES:
        packed = " or ".join(COMPRESSED)
        rule = f"a volume's name must end in {', '.join(SUFFIXES)} (maps also with {packed})"
        raise FormatError(sentence(name, rule, Path(name).name))
    read = _read_zarr if suffix == ZARR_SUFFIX else _read_map
    values, attrs = read(name, pixel_size_A)
    if not attrs["pixel_size_A"]:
        remedy = "Pass pixel_size_A= (--pixel-size-A)."
        raise FormatError(sentence(name, "the file does not say its pixel size", remedy=remedy))
    try:
        return build_volume(values, attrs["pixel_size_A"], attrs)
    except StackError as error:
        raise FormatError(f"{name}: {error}") from error


def holds_volume(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file is a volume rather than a stack of images, as far as it says.

    Parameters
    ----------
    path
        Any file or pattern.

    Returns
    -------
    bool
        For ``.mrc``, where headers do not tell, whether it is a cube; for ``.map`` and ``.ccp4``
        always; for a Zarr group whether it has an array that volumes are in.

    Examples
    --------
    >>> holds_volume("particles.mrcs"), holds_volume("absent.mrc"), holds_volume("a.map")
    (False, False, True)
    """
    name = os.path.expanduser(os.fspath(path))
    suffix = find_suffix(name)
    if suffix == ZARR_SUFFIX:
        store = _open_store(name)
        return store is not None and ARRAY_NAME in store
    if suffix != ".mrc" or not os.path.isfile(name):
        return suffix in MAP_SUFFIXES[1:]
    edges = set(read_header(name).shape)
    return len(edges) == 1 and edges != {1}


def _read_map(path: str, pixel_size_A: float | None) -> tuple[Array, dict[str, Any]]:
    check_file(path)
    header, fields = read_header(path), read_fields(path)
    if header.n_whole < header.shape[0]:
        what = describe_size(header, os.path.getsize(path))
        raise FormatError(f"{what} It is truncated; copy it again.")
    axes = _find_axes(path, fields)
    # Axis k of the array, from the slowest, is that of the cell with the number axes[2 - k].
    order = tuple(int(np.flatnonzero(axes[::-1] == number)[0]) for number in (3, 2, 1))
    values = read_block(header, 0, header.shape[0]).transpose(order)
    attrs: dict[str, Any] = {"pixel_size_A": pixel_size_A or _find_pixel_size(path, fields)}
    origin_A = _find_origin(fields, axes, attrs["pixel_size_A"])
    if origin_A.any() and np.isfinite(origin_A).all():
        attrs["origin_A"] = [float(f"{value:.7g}") for value in origin_A]
    return np.ascontiguousarray(values), attrs


def _find_axes(path: str, fields: np.void) -> Array:
    """Return the axes of the cell (1 x, 2 y, 3 z) that columns, rows and sections go along."""
    axes = np.array(fields["axes"], np.int64)
    if not axes.any():  # as old programs leave it
        return np.array([1, 2, 3])
    if sorted(axes) != [1, 2, 3]:
        rule = "mapc, mapr, maps of the header must be 1, 2 and 3 in some order"
        raise FormatError(sentence(path, rule, axes.tolist()))
    return axes


def _find_origin(fields: np.void, axes: Array, pixel_size_A: float | None) -> Array:
    """Return the place (x, y, z) of the first voxel in Å; 0 where the header says nothing."""
    origin_A = _numbers(fields["origin"])
    if not origin_A.any() and pixel_size_A:
        # As maps of X-ray crystals have it, and many of EMDB: voxels from the origin of the cell.
        origin_A = np.zeros(3)
        origin_A[axes - 1] = _numbers(fields["start"]) * pixel_size_A
    return origin_A


def _find_pixel_size(path: str, fields: np.void) -> float | None:
    """Return the edge of a voxel in Å, None where the header says nothing."""
    cell_A, sampling = _numbers(fields["cell_A"]), _numbers(fields["sampling"])
    if not np.isfinite(cell_A).all() or (cell_A <= 0).any() or (sampling <= 0).any():
        return None
    angles_deg = _numbers(fields["angles_deg"])
    if angles_deg.any() and not np.allclose(angles_deg, 90, atol=0.01):
        rule = "the cell must have right angles"
        raise FormatError(sentence(path, rule, angles_deg.tolist()))
    # Seven digits are what a float32 holds.
    sizes_A = [float(f"{size_A:.7g}") for size_A in cell_A / sampling]
    if max(sizes_A) > min(sizes_A) * (1 + PIXEL_SIZE_TOLERANCE):
        remedy = "Sample it again with equal edges, or pass pixel_size_A=."
        raise FormatError(sentence(path, "voxels must be cubes, Å", sizes_A, remedy))
    return sizes_A[0]


def _numbers(field: Any) -> Array:
    return np.asarray(field, np.float64)


def _read_zarr(path: str, pixel_size_A: float | None) -> tuple[Array, dict[str, Any]]:
    if not os.path.exists(path):
        raise FileNotFoundError(sentence(path, "no such file or folder"))
    found = _open_store(path)
    if found is None:
        raise FormatError(sentence(path, "not a Zarr group"))
    with found as store:
        if ARRAY_NAME not in store:
            names = ", ".join(sorted(map(str, store))) or "none"
            rule = f'a group of a volume must hold an array "{ARRAY_NAME}"; this one has: {names}'
            raise FormatError(sentence(path, rule))
        volume = store[ARRAY_NAME]
        if volume.dims != VOLUME_DIMS:
            raise FormatError(sentence(path, "a volume must have dims (z, y, x)", volume.dims))
        # A reconstruction says its pixel size once for all its volumes.
        known_A = volume.attrs.get("pixel_size_A", store.attrs.get("pixel_size_A"))
        return volume.values, {**volume.attrs, "pixel_size_A": pixel_size_A or known_A}


def _open_store(path: str | Path) -> Any:
    """Return the Zarr group at ``path`` as a dataset, None where there is none."""
    try:
        return xr.open_zarr(path, consolidated=False, chunks=None)
    except (OSError, ValueError, KeyError):
        return None


def save_volume(volume: Any, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write a volume: an MRC map with its pixel size, or a Zarr group.

    Parameters
    ----------
    volume : xarray.DataArray, dims (z, y, x)
        With the attribute ``pixel_size_A``; ``origin_A`` is written where there is one.
    path
        Target; its name ends in ``.mrc``, ``.map``, ``.ccp4`` or ``.zarr``. It is written under
        another name and then renamed, so that it is whole or not there.
    overwrite
        Whether an existing volume gives way.

    Returns
    -------
    pathlib.Path
        The target.

    Raises
    ------
    StackError
        If it is no volume or its pixel size is unknown.
    ParameterError
        If the name ends otherwise.
    FileExistsError, FileNotFoundError
        If there is something of that name, or no folder for it.

    Examples
    --------
    >>> import tempfile
    >>> volume = build_volume(np.ones((8, 8, 8)), 2.5)
    >>> save_volume(volume, tempfile.mkdtemp() + "/ones.zarr").name
    'ones.zarr'
    """
    path = Path(os.path.expanduser(os.fspath(path)))
    check_volume_target(path, overwrite=overwrite)
    write = _write_zarr if path.suffix == ZARR_SUFFIX else _write_map
    whole = as_volume(volume)
    draft = path.with_name(f"{path.name}.partial")
    remove_path(draft)
    try:
        write(whole, draft)
        replace_path(draft, path)
    except BaseException:
        remove_path(draft)
        raise
    return path


def check_volume_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse, before hours of work, a target that `save_volume` would refuse after them.

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError
    """
    path = Path(path)
    rule = f"a volume's name must end in {', '.join(SUFFIXES)}"
    require(path.suffix in SUFFIXES, str(path), rule, path.name)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    if not path.exists():
        return
    # What is overwritten is a volume: never a stack of that name, nor a folder of other things.
    gives_way = _is_volume_store(path) if path.suffix == ZARR_SUFFIX else _is_map(path)
    if not (overwrite and gives_way):
        rule = "exists already" if gives_way else "exists already and is no volume"
        remedy = "Name another one" + (
            ", or pass overwrite=True (--overwrite)." if gives_way else "."
        )
        raise FileExistsError(sentence(str(path), rule, remedy=remedy))


def _is_volume_store(path: Path) -> bool:
    store = _open_store(path)
    # A reconstruction has more in it, and is not one.
    return store is not None and set(store) == {ARRAY_NAME}


def _is_map(path: Path) -> bool:
    try:
        return path.is_file() and holds_volume(path)
    except FormatError:
        return False


def _write_map(volume: xr.DataArray, path: Path) -> None:
    values = np.ascontiguousarray(volume.values, "<f4")
    mean = float(values.mean(dtype=np.float64))
    deviation = float(values.std(dtype=np.float64))
    header = build_header(
        values.shape,
        "f4",
        volume.attrs["pixel_size_A"],
        statistics=(float(values.min()), float(values.max()), mean, deviation),
        is_stack=False,
        origin_A=volume.attrs.get("origin_A", (0.0, 0.0, 0.0)),
    )
    with open(path, "wb") as file:
        file.writelines([header, values.reshape(-1).view(np.uint8).data])


def _write_zarr(volume: xr.DataArray, path: Path) -> None:
    labelled = (VOLUME_DIMS, volume.values, plain_attributes(volume.attrs))
    xr.Dataset({ARRAY_NAME: labelled}).to_zarr(path, zarr_format=3, consolidated=False)
