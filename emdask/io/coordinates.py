"""Files of coordinates: picks as RELION, EMAN, Topaz and tables of text keep them.

The origin, format by format; here the centre of the first pixel of a file is (0, 0), x counts
along the rows of the file and y from row to row, which programs that draw the first row on top, as
RELION does, show as down, and those that draw it at the bottom, as EMAN and 3dmod do, as up.

==================  ===========================================  ==================================
format              what it has                                  origin
==================  ===========================================  ==================================
RELION ``.star``    rlnCoordinateX, rlnCoordinateY: the centre   as here: pixel (0, 0) is the first
EMAN ``.box``       first pixel of a box, and its width and      the first pixel is (0, 0); the
                    height                                       centre is corner + width // 2
Topaz ``.txt``      x_coord, y_coord: the centre                 as here
text, ``.csv``      x, y: the centre                             as here
==================  ===========================================  ==================================

RELION's own reader of ``.box`` files has the same rule. Files whose y counts from the other side,
as of programs that turn images over when they open them, are read with ``flip_y=True``.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from emdask.checks import check_number, require, sentence
from emdask.errors import FormatError
from emdask.io.files import check_file
from emdask.io.star import IMAGE, MICROGRAPH, find_named_files
from emdask.io.star_text import Table, parse_star
from emdask.picks import SCORE, build_picks, pair_names

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]
Heights = int | Mapping[str, int]

WHAT = "open_picks"
X, Y, FOM = "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit"
COORDINATES = "rlnMicrographCoordinates"
# What RELION puts after the name of a micrograph.
PICK_SUFFIXES = ("_autopick", "_manualpick")
# Of columns of a text table, the names that programs give them, in lower case.
TEXT_COLUMNS = {
    "micrograph": ("micrograph", "image_name", "micrograph_name", "rlnmicrographname"),
    "x_px": ("x_px", "x_coord", "x", "rlncoordinatex"),
    "y_px": ("y_px", "y_coord", "y", "rlncoordinatey"),
    SCORE: ("score", "rlnautopickfigureofmerit"),
}
COLUMNS_RULE = "must have one column x and one y, as x_px and y_px, or x_coord and y_coord"
SEPARATE = "Separate columns by commas or tabs, below a header as micrograph,x_px,y_px,score."
FOLDER_SUFFIXES = ((".star",), (".box",), (".csv",), (".txt", ".tsv"))


class Rows(NamedTuple):
    """What a file has: names of all its micrographs, and columns as of a table of picks."""

    micrographs: Sequence[str]
    columns: Mapping[str, npt.NDArray[Any]]


def open_picks(
    path_or_paths: Paths,
    *,
    micrograph: str | None = None,
    flip_y: bool = False,
    height_px: Heights | None = None,
) -> pd.DataFrame:
    """Read picks, or labels, from files of coordinates.

    Parameters
    ----------
    path_or_paths
        A file, a folder, or a list of them:

        - RELION ``.star``: a list of coordinate files (``autopick.star``, with
          rlnMicrographCoordinates), the coordinates of one micrograph, or a table with
          rlnMicrographName, as of particles;
        - EMAN ``.box``, one a micrograph;
        - ``.csv``, ``.txt``, ``.tsv``: with a header, columns ``micrograph``, ``x_px``, ``y_px``,
          ``score``, or those of Topaz (``image_name``, ``x_coord``, ``y_coord``, ``score``), or
          ``x``, ``y`` of one micrograph; without one x, y (and score), with or without a name
          before them, but with a name and a score only between commas or tabs, since names may have
          spaces;
        - a folder of such files: a list of coordinate files in it, or else all files of one format
          in it and below, each for one micrograph.
    micrograph
        Name of the micrograph of a file that does not say. Without it, it is the name of the file
        without suffix, and without RELION's ``_autopick`` or ``_manualpick``.
    flip_y
        Whether y counts from the last row of the micrograph's file: it becomes height - 1 - y.
    height_px
        Height of the micrographs, px, for ``flip_y``; one number, or one for each name.

    Returns
    -------
    pandas.DataFrame
        Columns ``micrograph``, ``x_px`` to the right, ``y_px`` downwards, in pixels of the
        micrograph, the centre of the first pixel of the file at (0, 0), and ``score`` where the
        files have one; in the order of the files. Attribute ``micrographs`` has the names of all,
        those without picks as well.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a file that is listed is not there.
    FormatError
        If a file is no file of coordinates, or holds what is no finite number.
    ParameterError
        If a flip lacks the height.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "first.box"
    >>> _ = path.write_text("90 40 20 20")
    >>> open_picks(path).values.tolist()
    [['first', 100.0, 50.0]]
    """
    if isinstance(path_or_paths, str | os.PathLike):
        paths = [os.path.expanduser(os.fspath(path_or_paths))]
    else:
        paths = [os.path.expanduser(os.fspath(path)) for path in path_or_paths]
        require(len(paths) > 0, WHAT, "there must be at least one file", paths)
    found = _join(paths, [_open_one(path, micrograph) for path in paths])
    picks = build_picks(found.columns, found.micrographs)
    if not flip_y:
        return picks
    require(height_px is not None, WHAT, "flip_y needs height_px, the height of the micrographs")
    picks["y_px"] = _heights(picks["micrograph"], height_px) - 1 - picks["y_px"].to_numpy()
    return picks


def _heights(names: pd.Series, height_px: Any) -> npt.NDArray[np.float64]:
    """Height of the micrograph of each row."""
    if not isinstance(height_px, Mapping):
        check_number(WHAT, "height_px", height_px, 1)
        return np.full(len(names), float(height_px))
    pairs = pair_names(names.unique(), height_px)
    missing = [name for name in names.unique() if name not in pairs]
    require(not missing, WHAT, "height_px must have all micrographs", missing[:1])
    return names.map({name: height_px[known] for name, known in pairs.items()}).to_numpy(np.float64)


def _join(sources: Sequence[str], parts: Sequence[Rows]) -> Rows:
    """Put rows one below the other; scores must be in all that have rows, or in none."""
    filled = [(source, part.columns) for source, part in zip(sources, parts, strict=True)]
    filled = [(source, columns) for source, columns in filled if len(columns["x_px"])]
    scored = [SCORE in columns for _, columns in filled]
    if any(scored) and not all(scored):
        source = filled[scored.index(False)][0]
        rule = f"has no scores, which {filled[scored.index(True)][0]} has"
        raise FormatError(sentence(source, rule, remedy="Open files with and without them apart."))
    names = [name for part in parts for name in part.micrographs]
    if not filled:
        return _no_rows(*names)
    labels = ["micrograph", "x_px", "y_px", *([SCORE] if any(scored) else [])]
    return Rows(names, {k: np.concatenate([columns[k] for _, columns in filled]) for k in labels})


def _open_one(path: str, micrograph: str | None) -> Rows:
    if os.path.isdir(path):
        return _open_folder(path)
    suffix = Path(path).suffix.lower()
    if suffix not in READERS:
        rule = f"the suffix must be one of {', '.join(READERS)}, or the path be a folder"
        check_exists(path)
        raise FormatError(sentence(path, rule, Path(path).name))
    check_exists(path)
    return READERS[suffix](path, micrograph)


def check_exists(path: str) -> None:
    """Raise a sentence unless the path is a file; it may be empty, as where nothing was picked."""
    if not os.path.isfile(path) or not Path(path).suffix:
        check_file(path)


def _open_folder(folder: str) -> Rows:
    """Open the list of coordinate files in a folder, or else all files of one format."""
    if lists := [str(path) for path in sorted(Path(folder).glob("*.star")) if _is_list(path)]:
        if len(lists) > 1:
            rule = "must have one list of coordinate files"
            raise FormatError(sentence(folder, rule, lists, "Name one of them."))
        return _read_star(lists[0], None)
    for suffixes in FOLDER_SUFFIXES:
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in suffixes)
        if files:
            names = [_name_after(path.relative_to(folder)) for path in files]
            tables = [_open_one(str(f), name) for f, name in zip(files, names, strict=True)]
            return _join([str(path) for path in files], tables)
    rule = f"has no coordinate files, {', '.join(READERS)}"
    raise FormatError(sentence(folder, rule))


def _is_list(path: Path) -> bool:
    with path.open("rb") as file:
        return COORDINATES.encode() in file.read(4096)


def _name_after(path: str | os.PathLike[str]) -> str:
    """Name of the micrograph that a file is named after, its folders kept."""
    name = str(Path(path).with_suffix(""))
    for suffix in PICK_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _own_name(path: str, micrograph: str | None) -> str:
    return micrograph or _name_after(Path(path).name)


# STAR files


def _read_star(path: str, micrograph: str | None) -> Rows:
    tables = parse_star(Path(path).read_bytes(), path, (COORDINATES,))
    for name, table in tables.items():
        if name != "optics" and {MICROGRAPH, COORDINATES} <= table.keys():
            return _read_listed(path, table)
    for name, table in tables.items():
        if name != "optics" and {X, Y} <= table.keys():
            return _read_rows(path, table, micrograph)
    if not any(tables.values()):
        # RELION writes no labels where it picked nothing.
        return _no_rows(_own_name(path, micrograph))
    labels = sorted({label for table in tables.values() for label in table})
    rule = f"a table must have the labels {X} and {Y}, or {MICROGRAPH} and {COORDINATES}"
    raise FormatError(sentence(path, rule, remedy=f"It has {', '.join(labels)}."))


def _read_listed(path: str, table: Table) -> Rows:
    """Read the files that a list names, each for its micrograph."""
    files = _find_listed(path, [str(name) for name in table[COORDINATES].tolist()])
    names = [str(name) for name in table[MICROGRAPH].tolist()]
    read = [_open_one(file, name) for file, name in zip(files, names, strict=True)]
    return _join(files, read)


def _find_listed(star: str, names: Sequence[str]) -> list[str]:
    """Find files as RELION's project has them, or beside the list, where its folder has moved."""
    try:
        return find_named_files(star, names)
    except FileNotFoundError as error:
        found = [_find_beside(Path(star).parent, Path(name).parts) for name in names]
        if None in found:
            rule = f"it lists {names[found.index(None)]}, which is not there"
            remedy = "Work from the folder that its paths start from, or copy it beside the list."
            raise FileNotFoundError(sentence(star, rule, remedy=remedy)) from error
        return [str(path) for path in found]


def _find_beside(folder: Path, parts: Sequence[str]) -> Path | None:
    tries = (folder.joinpath(*parts[i:]) for i in range(len(parts)) if parts[i] != os.sep)
    return next((path for path in tries if path.is_file()), None)


def _read_rows(path: str, table: Table, micrograph: str | None) -> Rows:
    labels = {"x_px": X, "y_px": Y} | ({SCORE: FOM} if FOM in table else {})
    columns: dict[str, Any] = {
        name: _as_numbers(path, label, table[label]) for name, label in labels.items()
    }
    if MICROGRAPH in table:
        return _of_many(columns, table[MICROGRAPH])
    if IMAGE in table:
        rule = f"a table of particles must have the label {MICROGRAPH}"
        raise FormatError(sentence(path, rule, remedy=f"It has {', '.join(table)}."))
    return _of_one(columns, _own_name(path, micrograph))


def _of_many(columns: Mapping[str, Any], micrographs: npt.NDArray[Any]) -> Rows:
    names = [str(name) for name in micrographs.tolist()]
    return Rows([*dict.fromkeys(names)], {"micrograph": np.array(names, object), **columns})


def _of_one(columns: Mapping[str, Any], micrograph: str) -> Rows:
    names = np.full(len(columns["x_px"]), micrograph, object)
    return Rows([micrograph], {"micrograph": names, **columns})


def _no_rows(*micrographs: str) -> Rows:
    return Rows(micrographs, {k: np.empty(0) for k in ("micrograph", "x_px", "y_px")})


def _as_numbers(path: str, label: str, words: Any) -> npt.NDArray[np.float64]:
    """Finite numbers, or the sentence that names the first word that is none."""
    numbers = np.full(len(words), np.nan)
    for i, word in enumerate(words.tolist()):
        try:
            numbers[i] = float(word)
        except ValueError:
            break
        if not np.isfinite(numbers[i]):
            break
    bad = ~np.isfinite(numbers)
    if bad.any():
        row = int(bad.argmax())
        rule = f"row {row + 1}: {label} must be a finite number"
        raise FormatError(sentence(path, rule, words.tolist()[row]))
    return numbers


# Boxes and text


def _read_box(path: str, micrograph: str | None) -> Rows:
    lines = [line.split() for line in _lines(path)]
    short = [i for i, words in enumerate(lines) if len(words) < 4]
    if short:
        rule = f"row {short[0] + 1} must have x, y, width and height of a box"
        raise FormatError(sentence(path, rule, " ".join(lines[short[0]])))
    columns = zip(*(words[:4] for words in lines), strict=True) if lines else ((),) * 4
    labels = ("x", "y", "width", "height")
    x, y, width, height = (
        _as_numbers(path, label, np.array(column, object))
        for label, column in zip(labels, columns, strict=True)
    )
    return _of_one({"x_px": x + width // 2, "y_px": y + height // 2}, _own_name(path, micrograph))


def _read_text(path: str, micrograph: str | None) -> Rows:
    lines = _lines(path)
    if not lines:
        return _no_rows(_own_name(path, micrograph))
    separator = next((mark for mark in "\t," if mark in lines[0]), None)
    try:
        header, rows = _split_lines(lines, separator)
    except csv.Error as error:
        raise FormatError(sentence(path, f"must be a table of text ({error})")) from error
    names = _name_columns(path, header, rows, separator)
    for number, words in enumerate(rows, start=1):
        if len(words) != len(names):
            first = "header" if header else "first row"
            rule = f"row {number} must have {len(names)} values, as the {first} has"
            raise FormatError(sentence(path, rule, " ".join(words), SEPARATE))
    table = dict(zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True))
    columns: dict[str, Any] = {
        name: _as_numbers(path, name, np.array(table[name], object))
        for name in ("x_px", "y_px", SCORE)
        if name in table
    }
    if "micrograph" in table:
        return _of_many(columns, np.array(table["micrograph"], object))
    return _of_one(columns, _own_name(path, micrograph))


def _split_lines(
    lines: list[str], separator: str | None
) -> tuple[list[str] | None, list[list[str]]]:
    """Header, None where the first line has a number, and rows of words, quotes taken off."""
    texts = lines if separator else [line.expandtabs(1).strip() for line in lines]
    split = csv.reader(texts, delimiter=separator or " ", skipinitialspace=True)
    rows = [[word.strip() for word in words] for words in split]
    return (None, rows) if any(map(_is_number, rows[0])) else (rows[0], rows[1:])


def _name_columns(
    path: str, header: list[str] | None, rows: list[list[str]], separator: str | None
) -> list[str]:
    """Our names of the columns of a text table; what has none keeps its own."""
    if header is None:
        return _guess_columns(path, rows[0], separator)
    ours = {word: name for name, words in TEXT_COLUMNS.items() for word in words}
    names = [ours.get(word.lower(), word) for word in header]
    if not {"x_px", "y_px"} <= set(names) or len(set(names)) < len(names):
        raise FormatError(sentence(path, COLUMNS_RULE, header))
    return names


def _guess_columns(path: str, words: list[str], separator: str | None) -> list[str]:
    """Names of the columns by the first row: two or three numbers, perhaps after a name.

    Raises
    ------
    FormatError
        If it is another row, or one that might be read in two ways: where spaces separate, a name,
        x, y and score look like a name of two words, x and y.
    """
    if len(words) < 2:
        raise FormatError(sentence(path, COLUMNS_RULE, "1 column"))
    numeric = [_is_number(word) for word in words]
    named = not numeric[0]
    most = 4 if separator else 3
    if len(words) - named not in (2, 3) or len(words) > most or not all(numeric[1:]):
        rule = "without a header a row must be x, y and perhaps a score, "
        bare = "or a micrograph's name without spaces and x, y"
        rule += "with or without a micrograph's name before them" if separator else bare
        raise FormatError(sentence(path, rule, " ".join(words), SEPARATE))
    return [*(["micrograph"] if named else []), "x_px", "y_px", SCORE][: len(words)]


def _lines(path: str) -> list[str]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(sentence(path, f"must be text in UTF-8 ({error})")) from error
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


READERS = {
    ".star": _read_star,
    ".box": _read_box,
    ".csv": _read_text,
    ".txt": _read_text,
    ".tsv": _read_text,
}
