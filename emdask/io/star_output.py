"""Write RELION STAR files, in the form of RELION 3.1 and later, from what a stack says."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import sentence
from emdask.errors import StackError
from emdask.io.star import (
    GROUP,
    GROUP_NAME,
    IMAGE,
    MICROGRAPH,
    OPTICS_VARIABLES,
    OWN_LABEL,
    OWN_TABLE,
    PIXEL_SIZE,
    ROW_VARIABLES,
    find_groups,
)
from emdask.io.star_text import Table, format_star
from emdask.stack import CORRECTED, FLIPPED_FLAG, OPTICS, PHASE_FLIPPED


def write_star(
    stack: xr.DataArray, star_path: str | os.PathLike[str], image_names: Sequence[str]
) -> None:
    """Write the STAR file of a stack, in the form of RELION 3.1 and later.

    Images whose CTF is corrected are written without it, lest it be corrected again; those that are
    phase-flipped get RELION's flag.

    Parameters
    ----------
    stack : xarray.DataArray, dims (image, y, x)
        What `emdask.open_stack` knows of the images: coordinates and attributes; no pixel is read.
    star_path
        The file; one that exists is replaced, at once and as a whole.
    image_names
        Where each image lies, as "000001@clean.mrcs", or a file for each micrograph, relative to
        the STAR file.

    Raises
    ------
    StackError
        If there is not one name an image.

    Examples
    --------
    >>> import dask.array as da, pathlib, tempfile
    >>> from emdask.stack import build_stack
    >>> star = pathlib.Path(tempfile.mkdtemp()) / "one.star"
    >>> stack = build_stack(da.zeros((1, 8, 8)), {"half_set": [2]}, {"pixel_size_A": 1.5})
    >>> write_star(stack, star, ["000001@one.mrcs"])
    >>> print(star.read_text().rstrip().splitlines()[-1])
    000001@one.mrcs 2 1
    """
    n_images = stack.sizes["image"]
    if len(image_names) != n_images:
        raise StackError(sentence("write_star", f"needs {n_images} names", len(image_names)))
    kind = "micrographs" if stack.attrs.get("kind") == "micrographs" else "particles"
    stack = _without_ctf(stack)
    optics, groups = _build_optics(stack, kind)
    rows = _build_rows(stack, kind, np.asarray(image_names), groups)
    others = {
        name: {label: np.asarray(column) for label, column in table.items()}
        for name, table in stack.attrs.get("relion", {}).get("tables", {}).items()
    }
    tables = {**_build_own(stack), **others, "optics": optics, kind: rows}
    lists = {OWN_TABLE, *others}
    _replace_file(Path(star_path), format_star(tables, lists))


def _without_ctf(stack: xr.DataArray) -> xr.DataArray:
    """Leave out what does not hold any more where something has been done about the CTF."""
    state = stack.attrs.get("ctf_state")
    if state is None:
        return stack
    of_ctf = [v.name for v in ROW_VARIABLES if v.name in OPTICS] if state == CORRECTED else []
    return stack.drop_vars([FLIPPED_FLAG, *of_ctf], errors="ignore")


def _build_optics(stack: xr.DataArray, kind: str) -> tuple[Table, npt.NDArray[np.int64]]:
    """Optics table, and the group of each image."""
    n_images = stack.sizes["image"]
    varying = [v.name for v in OPTICS_VARIABLES if _is_along_image(stack, v.name)]
    old = _along_image(stack, "optics_group", np.ones(n_images, np.int64))
    first, group_of = find_groups([old, *(stack[name].values for name in varying)], n_images)
    # The groups keep their numbers unless one of them has come apart.
    numbers = (
        old[first]
        if len(set(old[first].tolist())) == len(first)
        else first * 0 + np.arange(1, len(first) + 1)
    )
    table: Table = {GROUP: numbers, **_kept_optics(stack, old[first], numbers)}
    for variable in OPTICS_VARIABLES:
        label = PIXEL_SIZE[kind] if variable.name == "pixel_size_A" else variable.relion[0]
        if variable.name in varying:
            table[label] = stack[variable.name].values[first]
        elif variable.name in stack.attrs:
            table[label] = np.full(len(first), float(stack.attrs[variable.name]))
    if state := stack.attrs.get("ctf_state"):
        table.pop(FLIPPED_FLAG, None)
    if state == PHASE_FLIPPED:
        table[FLIPPED_FLAG] = np.ones(len(first), np.int64)
    if kind == "particles":
        table["rlnImageSize"] = np.full(len(first), stack.sizes["x"])
        table["rlnImageDimensionality"] = np.full(len(first), 2)
    return table, numbers[group_of]


def _kept_optics(
    stack: xr.DataArray, old: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> Table:
    """Labels of the optics groups that came with the stack, for its groups of today."""
    kept = stack.attrs.get("relion", {}).get("optics", {})
    names = np.array([f"opticsGroup{number}" for number in numbers.tolist()], object)
    if not set(old.tolist()) <= set(kept.get(GROUP, ())):
        return {GROUP_NAME: names}
    place = [kept[GROUP].index(number) for number in old.tolist()]
    table: Table = {GROUP_NAME: names}
    for label, values in kept.items():
        if label != GROUP:
            column = np.empty(len(place), object)
            column[:] = [values[i] for i in place]
            table[label] = column
    if (old != numbers).any():
        table[GROUP_NAME] = names
    return table


def _build_rows(
    stack: xr.DataArray,
    kind: str,
    image_names: npt.NDArray[Any],
    groups: npt.NDArray[np.int64],
) -> Table:
    is_in_stack = kind == "particles" or any("@" in name for name in image_names.tolist())
    rows: Table = {IMAGE if is_in_stack else MICROGRAPH: image_names}
    known = {"optics_group", *(v.name for v in OPTICS_VARIABLES)}
    for variable in ROW_VARIABLES:
        if variable.name in stack.coords and variable.name not in known:
            known.add(variable.name)
            values = stack[variable.name].values
            is_count = variable.name == "image_id" and np.array_equal(
                values, np.arange(len(values))
            )
            if not is_count:
                rows.setdefault(variable.relion[0], values)
    for name in stack.coords:
        if name not in known and _is_along_image(stack, str(name)):
            rows.setdefault(str(name), stack[name].values)
    return {**rows, GROUP: groups}


def _is_along_image(stack: xr.DataArray, name: str) -> bool:
    return name in stack.coords and stack[name].dims == ("image",)


def _along_image(stack: xr.DataArray, name: str, default: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return stack[name].values if _is_along_image(stack, name) else default


def _build_own(stack: xr.DataArray) -> dict[str, Table]:
    """Attributes that no RELION label says, such as the provenance, as JSON."""
    said = {"kind", "relion", *(v.name for v in OPTICS_VARIABLES)}
    if stack.attrs.get("ctf_state") == PHASE_FLIPPED:
        said.add("ctf_state")
    rest = {name: value for name, value in stack.attrs.items() if name not in said}
    if not rest:
        return {}
    # An apostrophe would end the quoted text of the STAR file.
    text = json.dumps(rest, default=_plain).replace("'", "\\u0027")
    return {OWN_TABLE: {OWN_LABEL: np.array([text], object)}}


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def _replace_file(path: Path, pieces: Iterator[str]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
