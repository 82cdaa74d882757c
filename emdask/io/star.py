"""RELION STAR files: particles and micrographs, 3.0 (one flat table) and 3.1 to 5 (optics groups).

Both are read as 3.1: a flat table is split into optics groups first, as RELION itself does. Labels
of `emdask.variables` become coordinates and attributes by their names; every other label stays what
it is, in coordinates (rows) or in ``attrs["relion"]`` (optics groups and other tables), and is
written back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from emdask.checks import sentence
from emdask.errors import FormatError
from emdask.io.files import ImageFile, inspect_files, read_files
from emdask.io.star_text import Column, Table, parse_star
from emdask.stack import build_stack
from emdask.variables import VARIABLES, Variable

IMAGE = "rlnImageName"
MICROGRAPH = "rlnMicrographName"
ORIGINAL = "rlnImageOriginalName"
GROUP = "rlnOpticsGroup"
GROUP_NAME = "rlnOpticsGroupName"
MAGNIFICATION = "rlnMagnification"
DETECTOR_UM = "rlnDetectorPixelSize"
SHIFT_PX = ("rlnOriginX", "rlnOriginY")
# Where the pixel size is written to, by kind of stack; read from there first.
PIXEL_SIZE = {"particles": "rlnImagePixelSize", "micrographs": "rlnMicrographPixelSize"}
OTHER_PIXEL_SIZES = (
    "rlnImagePixelSize",
    "rlnPixelSize",
    "rlnMicrographPixelSize",
    "rlnMicrographOriginalPixelSize",
)
# What a flat table says in every row, and RELION 3.1 once a group.
FLAT_OPTICS = (
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    MAGNIFICATION,
    DETECTOR_UM,
)
DERIVED = ("rlnImageSize", "rlnImageDimensionality")
OWN_TABLE = "emdask"
OWN_LABEL = "emdaskAttributes"
TEXT_LABELS = (IMAGE, MICROGRAPH, ORIGINAL, GROUP_NAME, OWN_LABEL)
OPTICS_VARIABLES = tuple(v for v in VARIABLES if v.optics)
ROW_VARIABLES = tuple(v for v in VARIABLES if v.relion and not v.optics)


def open_star(
    path: str | os.PathLike[str],
    *,
    chunks: int | str = "auto",
    project_folder: str | os.PathLike[str] | None = None,
) -> xr.DataArray:
    """Open the images that a RELION STAR file names, in its order.

    Parameters
    ----------
    path
        The STAR file.
    chunks
        Images in a block, or "auto".
    project_folder
        Folder that the paths in the file start from; None looks for it.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        Lazy; see `emdask.open_stack`.

    Raises
    ------
    FormatError
        If it is no STAR file, names no images, or asks for an image that its file has not.
    FileNotFoundError
        If a file that it names is not there.
    StackError
        If the images differ in size.
    """
    name = os.fspath(path)
    tables = parse_star(Path(name).read_bytes(), name, TEXT_LABELS)
    table_name, rows = _find_rows(name, tables)
    optics = tables.get("optics", {})
    if not optics and GROUP not in rows:
        optics, rows = split_optics(rows)
    is_micrographs = table_name == "micrographs" or IMAGE not in rows
    kind = "micrographs" if is_micrographs else "particles"
    files, file_of, index_of = _find_images(name, rows, project_folder)
    pixels = read_files(files, file_of, index_of, chunks)

    groups = _match_groups(name, rows, optics, len(file_of))
    known = _read_optics(kind, rows, optics, groups)
    known.setdefault("pixel_size_A", _header_sizes(files)[file_of])
    coords = _read_rows(name, kind, rows, known["pixel_size_A"])
    coords.setdefault("image_id", np.arange(len(file_of)))
    attrs: dict[str, Any] = {"kind": kind}
    _place(known, attrs, coords)
    attrs |= _keep_others(kind, table_name, tables, optics, groups)
    return build_stack(pixels, coords, attrs)


def _find_rows(path: str, tables: Mapping[str, Table]) -> tuple[str, Table]:
    """Find the table with a row an image."""
    for label in (IMAGE, MICROGRAPH):
        for name, table in tables.items():
            if label in table and name != "optics":
                if len(table[label]) == 0:
                    raise FormatError(f"{path}: data_{name} must have at least one row; got none.")
                return name, table
    labels = sorted({label for table in tables.values() for label in table})
    remedy = f"It has {', '.join(labels) or 'no labels'}."
    if "rlnMicrographMovieName" in labels:
        remedy = "It lists movies: open the STAR file of the micrographs made from them."
    rule = f"a table must have the label {IMAGE} or {MICROGRAPH}"
    raise FormatError(sentence(path, rule, remedy=remedy))


def split_optics(rows: Table) -> tuple[Table, Table]:
    """Split a flat table of RELION 3.0 into optics groups and rows.

    Examples
    --------
    >>> optics, rows = split_optics({"rlnVoltage": np.array([300.0, 200.0, 300.0])})
    >>> rows["rlnOpticsGroup"], optics["rlnVoltage"]
    (array([2, 1, 2]), array([200., 300.]))
    """
    n_rows = len(next(iter(rows.values())))
    labels = [label for label in FLAT_OPTICS if label in rows and rows[label].dtype.kind in "if"]
    first, group_of = find_groups([rows[label] for label in labels], n_rows)
    optics: Table = {
        GROUP: np.arange(1, len(first) + 1),
        GROUP_NAME: np.array([f"opticsGroup{i + 1}" for i in range(len(first))], object),
        **{label: rows[label][first] for label in labels},
    }
    rest = {label: column for label, column in rows.items() if label not in labels}
    return optics, {**rest, GROUP: group_of + 1}


def find_groups(
    columns: Sequence[Column], n_rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Find the rows whose values are the same.

    Parameters
    ----------
    columns
        Numbers, each of shape (n_rows,); none puts all rows in one group.
    n_rows
        Number of rows.

    Returns
    -------
    first, group_of
        First row of each group, and the group of each row, from 0.

    Examples
    --------
    >>> first, group_of = find_groups([np.array([2, 1, 2])], 3)
    >>> first.tolist(), group_of.tolist()
    ([1, 0], [1, 0, 1])
    """
    if not columns:
        return np.zeros(1, np.int64), np.zeros(n_rows, np.int64)
    # Column by column, as along an axis NumPy takes every NaN for another value.
    codes = [np.unique(column.astype(np.float64), return_inverse=True)[1] for column in columns]
    values = np.column_stack(codes)
    if (values == values[0]).all():
        return np.zeros(1, np.int64), np.zeros(n_rows, np.int64)
    _, first, group_of = np.unique(values, axis=0, return_index=True, return_inverse=True)
    return first, group_of.reshape(-1)


# The files of the images


def _find_images(
    star: str, rows: Table, project_folder: str | os.PathLike[str] | None
) -> tuple[list[ImageFile], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    label = IMAGE if IMAGE in rows else MICROGRAPH
    words = [word if "@" in word else f"1@{word}" for word in rows[label].tolist()]
    # Plain strings, no pairs: a million small tuples would keep the garbage collector busy.
    numbers = [word[: word.index("@")] for word in words]
    names = [word[word.index("@") + 1 :] for word in words]
    try:
        index_of = np.array([int(number) for number in numbers]) - 1
    except ValueError:
        row = next(i for i, number in enumerate(numbers) if not number.isdecimal())
        rule = f"row {row + 1}: {label} must read as 000001@stack.mrcs or as a file"
        raise FormatError(sentence(star, rule, words[row])) from None
    file_of, different = pd.factorize(np.array(names, object))
    files = inspect_files(find_named_files(star, different.tolist(), project_folder))
    _check_indices(star, files, file_of, index_of)
    return files, file_of, index_of


def find_named_files(
    star: str, names: Sequence[str], project_folder: str | os.PathLike[str] | None = None
) -> list[str]:
    """Find the files that a STAR file names.

    Parameters
    ----------
    star
        The STAR file.
    names
        Paths as they stand in it.
    project_folder
        Folder they start from, where they may also lie without their own folders; None tries the
        STAR file's folder, each folder above it, and the working directory.

    Returns
    -------
    list of str

    Raises
    ------
    FileNotFoundError
        If one is in none of these places.
    """
    roots = list(_roots(star)) if project_folder is None else [os.fspath(project_folder)]
    paths = []
    for name in names:
        tries = [os.path.join(root, name) for root in roots]
        if project_folder is not None:
            tries.append(os.path.join(roots[0], os.path.basename(name)))
        found = next((i for i, path in enumerate(tries) if os.path.isfile(path)), None)
        if found is None:
            raise FileNotFoundError(_say_missing(star, name, project_folder))
        paths.append(os.path.normpath(tries[found]))
        if project_folder is None:
            roots.insert(0, roots.pop(found))
    return paths


def _roots(star: str) -> Iterator[str]:
    """The STAR file's folder and those above it; RELION's links to jobs as they stand first."""
    seen = set()
    for start in (os.path.abspath(star), os.path.realpath(star)):
        for folder in Path(start).parents:
            if folder not in seen:
                seen.add(folder)
                yield os.path.relpath(folder) if not os.path.isabs(star) else str(folder)
    yield ""


def _say_missing(star: str, name: str, project_folder: object) -> str:
    if project_folder is not None:
        return f"{star}: it names {name}, which is not in {project_folder}. Copy it there."
    remedy = (
        "Copy it there, or pass project_folder= (--project-folder) with the folder that its paths "
        "start from."
    )
    folder = os.path.dirname(os.path.abspath(star))
    return f"{star}: it names {name}, which is not in {folder} nor in a folder above it. {remedy}"


def _check_indices(
    star: str,
    files: Sequence[ImageFile],
    file_of: npt.NDArray[np.int64],
    index_of: npt.NDArray[np.int64],
) -> None:
    n_images = np.array([file.shape[0] for file in files])[file_of]
    wrong = np.flatnonzero((index_of < 0) | (index_of >= n_images))
    if len(wrong):
        row = int(wrong[0])
        file = files[file_of[row]]
        rule = f"row {row + 1} must name an image of {file.path} from 1 to {file.shape[0]}"
        more = f" {len(wrong) - 1} more rows do so." if len(wrong) > 1 else ""
        raise FormatError(f"{star}: {rule}; got {int(index_of[row]) + 1}.{more}")
    whole = np.array([file.n_whole for file in files])[file_of]
    for row in np.flatnonzero(index_of >= whole)[:1]:
        files[file_of[row]].check_whole(int(index_of[row]) + 1)


# From labels to variables


def _match_groups(path: str, rows: Table, optics: Table, n_images: int) -> npt.NDArray[np.int64]:
    """Row of the optics table for each image."""
    if GROUP not in rows or not optics:
        return np.zeros(n_images, np.int64)
    if GROUP not in optics:
        raise FormatError(f"{path}: data_optics must have the label {GROUP}.")
    if len(optics[GROUP]) == 0:
        raise FormatError(f"{path}: data_optics must have at least one row; got none.")
    numbers = _integers(path, GROUP, optics[GROUP])
    wanted = _integers(path, GROUP, rows[GROUP])
    order = np.argsort(numbers)
    place = order[np.minimum(np.searchsorted(numbers, wanted, sorter=order), len(order) - 1)]
    wrong = np.flatnonzero(numbers[place] != wanted)
    if len(wrong):
        rule = f"row {wrong[0] + 1}: {GROUP} must be one of data_optics, {numbers.tolist()}"
        raise FormatError(sentence(path, rule, int(wrong[0])))
    return place


def _read_optics(
    kind: str, rows: Table, optics: Table, groups: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float64]]:
    """What is known of the microscope, for each image."""
    per_image = {
        label: rows[label] if label in rows else optics[label][groups]
        for label in {*OTHER_PIXEL_SIZES, *FLAT_OPTICS}
        if label in rows or label in optics
    }
    numbers = {
        label: column.astype(np.float64)
        for label, column in per_image.items()
        if column.dtype.kind in "if"
    }
    known = {v.name: numbers[v.relion[0]] for v in OPTICS_VARIABLES if v.relion[0] in numbers}
    known.pop("pixel_size_A", None)
    size_A = _pixel_size(kind, numbers)
    return known if size_A is None else {**known, "pixel_size_A": size_A}


def _pixel_size(
    kind: str, numbers: Mapping[str, npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64] | None:
    if PIXEL_SIZE[kind] in numbers:
        return numbers[PIXEL_SIZE[kind]]
    if MAGNIFICATION in numbers and DETECTOR_UM in numbers and (numbers[MAGNIFICATION] > 0).all():
        return numbers[DETECTOR_UM] * 1e4 / numbers[MAGNIFICATION]
    return next((numbers[label] for label in OTHER_PIXEL_SIZES if label in numbers), None)


def _header_sizes(files: Sequence[ImageFile]) -> npt.NDArray[np.float64]:
    sizes = [np.nan if file.pixel_size_A is None else file.pixel_size_A for file in files]
    return np.array(sizes, np.float64)


def _read_rows(
    path: str, kind: str, rows: Table, pixel_size_A: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Coordinates of the rows: known labels by their variables' names, others by their own."""
    rest = dict(rows)
    image_names = rest.pop(IMAGE, None)
    for label in _optics_labels(kind):
        rest.pop(label, None)
    _turn_shifts(rest, pixel_size_A)
    coords: dict[str, Any] = {}
    for variable in ROW_VARIABLES:
        for label in [label for label in variable.relion if label in rest][:1]:
            coords[variable.name] = _as_type(path, variable, label, rest.pop(label))
    for label, column in rest.items():
        coords[label] = column.astype(str) if column.dtype.kind == "O" else column
    if kind == "particles" and image_names is not None:
        # The name of the particle that it was: RELION's way back from images that were changed.
        coords.setdefault(ORIGINAL, image_names.astype(str))
    return coords


def _optics_labels(kind: str) -> tuple[str, ...]:
    """Labels that the variables of a stack of this kind say themselves."""
    labels = (v.relion[0] for v in OPTICS_VARIABLES if v.name != "pixel_size_A")
    return (*labels, PIXEL_SIZE[kind])


def _turn_shifts(rest: Table, pixel_size_A: npt.NDArray[np.float64]) -> None:
    """Turn RELION 3.0's shifts, in pixels, into Å where the pixel size is known."""
    if not np.isfinite(pixel_size_A).all():
        return
    for label in SHIFT_PX:
        if label in rest and rest[label].dtype.kind in "if":
            shift_A = rest.pop(label) * pixel_size_A
            rest.setdefault(f"{label}Angst", shift_A)


def _as_type(path: str, variable: Variable, label: str, column: Column) -> npt.NDArray[Any]:
    if variable.dtype == "U":
        return column.astype(str)
    if column.dtype.kind not in "if":
        raise FormatError(f"{path}: {label} must hold numbers; got {_first_word(column)!r}.")
    return _integers(path, label, column) if variable.dtype == "i8" else column.astype(np.float64)


def _first_word(column: Column) -> str:
    for word in column.tolist():
        try:
            float(word)
        except ValueError:
            return str(word)
    return str(column[0])


def _integers(path: str, label: str, column: Column) -> npt.NDArray[np.int64]:
    is_whole = np.zeros(len(column), bool)
    if column.dtype.kind in "if":
        with np.errstate(invalid="ignore"):
            is_whole = (column % 1 == 0) & (np.abs(column) < 2**63)
    if not is_whole.all():
        got = column[~is_whole].tolist()[0]
        raise FormatError(f"{path}: {label} must hold whole numbers; got {got!r}.")
    return column.astype(np.int64)


def _place(
    known: Mapping[str, npt.NDArray[np.float64]], attrs: dict[str, Any], coords: dict[str, Any]
) -> None:
    """One value for all images is an attribute, values that differ are a coordinate."""
    for name, values in known.items():
        if np.isnan(values).all():
            continue
        if (values == values[0]).all():
            attrs[name] = float(values[0])
        else:
            coords[name] = values


def _keep_others(
    kind: str,
    table_name: str,
    tables: Mapping[str, Table],
    optics: Table,
    groups: npt.NDArray[np.int64],
) -> dict[str, Any]:
    """Attributes for what has no variable: other labels of the optics groups, other tables."""
    used = np.unique(groups)
    skip = {*_optics_labels(kind), *DERIVED}
    kept = {label: column[used].tolist() for label, column in optics.items() if label not in skip}
    others = {
        name: {label: column.tolist() for label, column in table.items()}
        for name, table in tables.items()
        if name not in ("optics", table_name, OWN_TABLE)
    }
    relion = {"optics": kept} if kept else {}
    relion |= {"tables": others} if others else {}
    own = json.loads(str(tables.get(OWN_TABLE, {}).get(OWN_LABEL, ["{}"])[0]))
    return {**({"relion": relion} if relion else {}), **own}
