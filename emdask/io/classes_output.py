"""What a classification found, as files: STAR with classes and poses, tables, proportions.

A STAR file points at the images where they lie; no pixel is copied.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from emdask.checks import require, sentence
from emdask.errors import FormatError
from emdask.io.files import IMAGE_FORMATS, find_suffix, inspect_files
from emdask.io.output import remove_path, replace_path
from emdask.io.reading import find_paths
from emdask.io.star import IMAGE, ORIGINAL, TEXT_LABELS, find_named_files
from emdask.io.star_output import write_star
from emdask.io.star_text import parse_star
from emdask.io.zarr import plain_attributes
from emdask.stack import image_ids
from emdask.variables import ANGLES, SHIFTS

Array = npt.NDArray[Any]

STAR, CSV, ZARR = SUFFIXES = (".star", ".csv", ".zarr")
# RELION's label of the probability of the likeliest class and pose.
CONFIDENCE = "rlnMaxValueProbDistribution"
NONE_ROW = "none"
BY_CLASS = ("posterior", "log_likelihood")
BY_IMAGE = ("class_id", "kept", "confidence", "margin", "posterior_none", "screen_score")


def save_classes(
    table: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    stack: xr.DataArray,
    names: Sequence[str] = (),
    all_images: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write the classes of images.

    Parameters
    ----------
    table
        What `emdask.classify` returned, computed.
    path
        A ``.star`` file of the images that are in a class, with classes and poses beside what the
        stack knows of them; or all of the table as ``.csv`` or ``.zarr``.
    stack : xarray.DataArray, dims (image, y, x)
        The images; no pixel is read.
    names
        Where each image lies, as of `list_image_names`; for a STAR file.
    all_images
        Whether a STAR file has those in no class too, with class 0; poses that are not known are 0.
    overwrite
        Whether what exists gives way.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError
        As of `check_classes_target`.
    """
    path = Path(path)
    check_classes_target(path, overwrite=overwrite)
    if path.suffix.lower() == STAR:
        labelled = label_classes(stack, table, names)
        chosen = np.arange(len(stack)) if all_images else np.flatnonzero(table.class_id.values)
        write_star(labelled.isel(image=chosen), path, [names[i] for i in chosen.tolist()])
    elif path.suffix.lower() == CSV:
        write_csv(tabulate_classes(table), path)
    else:
        draft = path.with_name(f"{path.name}.partial")
        remove_path(draft)
        plain = table.assign_attrs(plain_attributes(table.attrs))
        plain.to_zarr(draft, zarr_format=3, consolidated=False)
        replace_path(draft, path)
    return path


def check_classes_target(
    path: str | os.PathLike[str],
    *,
    suffixes: Sequence[str] = SUFFIXES,
    overwrite: bool = False,
    inputs: Sequence[str] = (),
) -> None:
    """Refuse, before hours of work, a target that could not be written after them.

    Parameters
    ----------
    path
        The target.
    suffixes
        Those that its name may have.
    overwrite
        Whether an existing one gives way.
    inputs
        Files that never give way, since they are read.

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError, PermissionError

    Examples
    --------
    >>> check_classes_target("a.txt")
    Traceback (most recent call last):
    emdask.errors.ParameterError: a.txt: the name must end in .star, .csv or .zarr; got '.txt'.
    """
    path = Path(path)
    words = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]] if suffixes[1:] else suffixes)
    rule = f"the name must end in {words}"
    require(path.suffix.lower() in suffixes, str(path), rule, path.suffix)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    if not os.access(folder, os.W_OK):
        raise PermissionError(sentence(str(path), "its folder is read-only"))
    if os.path.realpath(path) in {os.path.realpath(name) for name in inputs}:
        rule = "is what the images are read from"
        raise FileExistsError(sentence(str(path), rule, remedy="Name another one."))
    if not path.exists():
        return
    is_own = path.is_file() if path.suffix.lower() != ZARR else holds_classes(path)
    if not is_own:
        rule = "exists already and is something else"
        raise FileExistsError(sentence(str(path), rule, remedy="Name another one."))
    if not overwrite:
        remedy = "Name another one, or pass overwrite=True (--overwrite)."
        raise FileExistsError(sentence(str(path), "exists already", remedy=remedy))


def holds_classes(path: str | os.PathLike[str]) -> bool:
    """Whether there is a Zarr group of `save_classes`.

    Examples
    --------
    >>> holds_classes("absent.zarr")
    False
    """
    try:
        with xr.open_zarr(path, consolidated=False, chunks=None) as found:
            return {"class_id", "posterior", "proportion"} <= set(found.data_vars)
    except (OSError, ValueError, KeyError):
        return False


def label_classes(stack: xr.DataArray, table: xr.Dataset, names: Sequence[str]) -> xr.DataArray:
    """Give images the classes and poses that were found.

    Parameters
    ----------
    stack : xarray.DataArray, dims (image, y, x)
        The images.
    table
        What `emdask.classify` returned, computed.
    names
        Where they lie. A label of the original names is left out where these are the same but for
        folders: `emdask.open_stack` makes it of the names.

    Returns
    -------
    xarray.DataArray, dims (image, y, x)
        With coordinates ``class_id`` and, where poses were found, angles and shifts, 0 where they
        are NaN; and RELION's label of the probability of what was found.

    Examples
    --------
    >>> stack = xr.DataArray(np.zeros((2, 4, 4)), dims=("image", "y", "x"))
    >>> table = xr.Dataset({"class_id": ("image", [2, 0]), "confidence": ("image", [0.9, 0.0]),
    ...                     "rot_deg": ("image", [10.0, np.nan])})
    >>> label_classes(stack, table, []).rot_deg.values
    array([10.,  0.])
    """
    if ORIGINAL in stack.coords and _bare(stack[ORIGINAL].values) == _bare(names):
        stack = stack.drop_vars(ORIGINAL)
    poses = [name for name in (*ANGLES, *SHIFTS) if name in table]
    found = {name: np.nan_to_num(table[name].values.astype(np.float64)) for name in poses}
    found["class_id"] = table.class_id.values
    found[CONFIDENCE] = table.confidence.values.astype(np.float64).round(6)
    attrs = {name: table.attrs[name] for name in ("provenance",) if name in table.attrs}
    labels = {name: ("image", values) for name, values in found.items()}
    return stack.assign_coords(labels).assign_attrs(attrs)


def _bare(names: Iterable[str]) -> list[tuple[str, str]]:
    """Numbers and files without folders: what stays the same for a STAR file at another place."""
    parts = (name.rpartition("@") for name in names)
    return [(number, path.rpartition("/")[2]) for number, _, path in parts]


def tabulate_classes(table: xr.Dataset) -> pd.DataFrame:
    """Return what was found of each image, a row each.

    Parameters
    ----------
    table
        What `emdask.classify` returned, computed.

    Returns
    -------
    pandas.DataFrame
        ``image_id``, ``class_id``, ``kept`` ..., poses, and ``posterior_1`` ... of each class.

    Examples
    --------
    >>> table = xr.Dataset({"class_id": ("image", [1]), "posterior": (("image", "class"), [[0.9]])},
    ...                    {"class": [1]})
    >>> list(tabulate_classes(table))
    ['image_id', 'class_id', 'posterior_1']
    """
    columns: dict[str, Any] = {"image_id": image_ids(table.class_id)}
    for name in (*BY_IMAGE, *ANGLES, *SHIFTS):
        if name in table:
            columns[name] = table[name].values
    for name in BY_CLASS:
        if name in table:
            for number, values in zip(table["class"].values, table[name].values.T, strict=True):
                columns[f"{name}_{number}"] = values
    return pd.DataFrame(columns)


def tabulate_proportions(table: xr.Dataset) -> pd.DataFrame:
    """Return the proportion of each class, a row each, and of none as the last.

    Parameters
    ----------
    table
        What `emdask.classify` returned, computed.

    Returns
    -------
    pandas.DataFrame
        ``class``, ``n_images``, ``proportion``, ``error`` and the 95 % interval ``low``, ``high``:
        among the images in classes. In the row "none", the share of all images.

    Examples
    --------
    >>> k = "class"
    >>> table = xr.Dataset({"class_id": ("image", [1, 1, 2, 0]), "proportion": (k, [0.6, 0.4]),
    ...     "proportion_error": (k, [0.1, 0.1]), "proportion_low": (k, [0.4, 0.2]),
    ...     "proportion_high": (k, [0.8, 0.6]), "proportion_none": 0.25}, {k: [1, 2]})
    >>> print(tabulate_proportions(table).to_csv(index=False).strip())
    class,n_images,proportion,error,low,high
    1,2,0.6,0.1,0.4,0.8
    2,1,0.4,0.1,0.2,0.6
    none,1,0.25,,,
    """
    numbers = table["class"].values
    counts = np.bincount(table.class_id.values, minlength=int(numbers.max()) + 1)
    rows = {
        "class": [*map(str, numbers), NONE_ROW],
        "n_images": [*counts[numbers], counts[0]],
        "proportion": [*table.proportion.values, float(table.proportion_none)],
    }
    for name in ("error", "low", "high"):
        rows[name] = [*table[f"proportion_{name}"].values, np.nan]
    return pd.DataFrame(rows)


def write_csv(frame: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV; the file appears as a whole.

    Parameters
    ----------
    frame
        The table; its index is left out.
    path
        Where to; an existing file is replaced.

    Returns
    -------
    pathlib.Path
    """
    path = Path(path)
    draft = path.with_name(f"{path.name}.partial")
    try:
        draft.write_text(frame.to_csv(index=False, lineterminator="\n"), encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


# Where images lie


def list_image_names(
    paths: Sequence[str],
    star_path: str | os.PathLike[str],
    *,
    images: slice | None = None,
    project_folder: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Return how a STAR file calls images that lie in other files.

    Parameters
    ----------
    paths
        Files that `emdask.open_stack` would open: of images, or a STAR file.
    star_path
        The STAR file that is to be written.
    images, project_folder
        As of `emdask.open_stack`.

    Returns
    -------
    list of str
        As "000001@particles.mrcs", relative to the folder of the STAR file. Names of a STAR file
        stay what they are where they lead to the same files from the new one.

    Raises
    ------
    FormatError
        If the images lie in no file that a STAR file can name.
    FileNotFoundError
        If a file is not there.
    """
    found = find_paths(list(paths))
    suffix = find_suffix(found[0])
    if suffix == STAR:
        names = _names_in_star(found[0], Path(star_path), project_folder)
    elif suffix in IMAGE_FORMATS:
        names = _names_in_files(found, Path(star_path))
    else:
        rule = "a STAR file can only name images in files of their own, not those in a store"
        remedy = "Name a .csv or .zarr instead, or bring them into one first: emdask convert "
        remedy += f"{found[0]} particles.mrcs."
        raise FormatError(sentence(str(star_path), rule, found[0], remedy))
    return names if images is None else names[images]


def _names_in_files(paths: Sequence[str], star_path: Path) -> list[str]:
    counts = [file.shape[0] for file in inspect_files(paths)]
    return [
        f"{number:06d}@{_relative(path, star_path)}"
        for path, count in zip(paths, counts, strict=True)
        for number in range(1, count + 1)
    ]


def _names_in_star(
    path: str, star_path: Path, project_folder: str | os.PathLike[str] | None
) -> list[str]:
    tables = parse_star(Path(path).read_bytes(), path, TEXT_LABELS)
    rows = next((rows for name, rows in tables.items() if IMAGE in rows and name != "optics"), None)
    if rows is None:
        raise FormatError(sentence(path, f"particles must have the label {IMAGE}"))
    words = [word.rpartition("@") for word in rows[IMAGE].tolist()]
    files = list(dict.fromkeys(file for _, _, file in words))
    there = find_named_files(path, files, project_folder)
    new = {old: _name_from(old, real, star_path) for old, real in zip(files, there, strict=True)}
    return [f"{number}{at}{new[file]}" for number, at, file in words]


def _name_from(name: str, path: str, star_path: Path) -> str:
    """The name itself where it leads from the new file to the same images, else a relative one."""
    try:
        (seen,) = find_named_files(str(star_path), [name])
    except FileNotFoundError:
        return _relative(path, star_path)
    same = os.path.realpath(seen) == os.path.realpath(path)
    return name if same else _relative(path, star_path)


def _relative(path: str, star_path: Path) -> str:
    """Path from the folder of the STAR file; a link to the images stays one, folders do not."""
    start = os.path.realpath(star_path.absolute().parent)
    folder, name = os.path.split(os.path.abspath(path))
    return Path(os.path.relpath(os.path.join(os.path.realpath(folder), name), start)).as_posix()
