"""Writing picks: RELION's coordinate files and tables, EMAN's boxes, tables of text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from emdask.checks import check_choice, check_integer, require, sentence
from emdask.io.coordinates import COORDINATES, FOM, X, Y
from emdask.io.output import remove_path, replace_file, replace_path
from emdask.io.star import MICROGRAPH
from emdask.io.star_text import format_star
from emdask.picks import NAMES, SCORE, bare_name, check_picks

WHAT = "save_picks"
SUMMARY = "autopick.star"
LONGEST_NAME = 200
# Format of a path by its suffix; one without is a folder.
FORMATS = {"": "relion", ".star": "star", ".csv": "csv", ".box": "box"}
Files = dict[str, str]


def save_picks(
    picks: Any,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    box_px: int | None = None,
    micrographs: Iterable[str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write picks where other programs read them.

    Parameters
    ----------
    picks : pandas or dask DataFrame
        Columns ``micrograph``, ``x_px`` to the right, ``y_px`` downwards, in pixels of the
        micrograph, the centre of the first pixel of the file at (0, 0), and perhaps ``score``. A
        Dask table is computed.
    path
        Target; what it is says the format, unless ``format`` does.
    format
        - "relion", a folder: ``NAME_autopick.star`` for each micrograph, and the list of them,
          ``autopick.star``, that RELION's extraction takes (``--coord_list``, or by its Import).
          rlnCoordinateX and Y are as here: the first pixel is 0. Scores become
          rlnAutopickFigureOfMerit.
        - "star", a ``.star`` file: one table with rlnMicrographName, numbers as of "relion", which
          is what cryoSPARC's import of particles goes by; micrographs without picks are not in it.
        - "box", a folder, or a ``.box`` file of one micrograph: EMAN's boxes, NAME.box: first pixel
          of the box, as here, and its sides. Places are rounded to whole pixels; no scores.
        - "csv", a ``.csv`` file: the table as it is; micrographs without picks are not in it.
    box_px
        Side of the boxes, for "box".
    micrographs
        Names of all micrographs; those without picks get a file without rows in a folder, and a
        place in the list. None takes the table's attribute ``micrographs``, which `open_picks`
        sets, and the names of its rows.
    overwrite
        Whether files of these names give way. Other files of a folder stay.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ParameterError
        If the table lacks a column or holds what is not finite, or a pick is of another micrograph.
    FileExistsError, FileNotFoundError
        If there is something of that name, or the folder around it is not there.

    Notes
    -----
    Files are named after the micrographs, without folders; those of one name lie in as many folders
    of theirs as tell them apart. The list names files from ``path`` as it was given: give it
    relative to RELION's project, and work from there.

    Examples
    --------
    >>> import tempfile
    >>> from emdask import open_picks
    >>> picks = pd.DataFrame({"micrograph": ["m.mrc"], "x_px": [10.5], "y_px": [20], "score": 0.9})
    >>> folder = save_picks(picks, tempfile.mkdtemp() + "/picked", micrographs=["m.mrc", "n.mrc"])
    >>> sorted(file.name for file in folder.iterdir())
    ['autopick.star', 'm_autopick.star', 'n_autopick.star']
    >>> open_picks(folder).values.tolist()
    [['m.mrc', 10.5, 20.0, 0.9]]
    """
    path = Path(path).expanduser()
    table = check_picks(WHAT, picks)
    names = table.attrs[NAMES] if micrographs is None else tuple(dict.fromkeys(micrographs))
    strange = set(table["micrograph"]) - set(names)
    require(not strange, WHAT, "micrographs must have those of all picks", sorted(strange)[:1])
    files = _plan(table, names, path, format, box_px, overwrite)
    if list(files) == [""]:
        _write_file(path, files[""])
    else:
        _write_folder(path, files)
    return path


def check_picks_target(
    path: str | os.PathLike[str],
    micrographs: Iterable[str],
    *,
    format: str | None = None,
    box_px: int | None = None,
    overwrite: bool = False,
) -> None:
    """Refuse a target of picks as `save_picks` would, before the picks are there.

    Parameters
    ----------
    path, format, box_px, overwrite
        As of `save_picks`.
    micrographs
        Names of all micrographs.

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError

    Examples
    --------
    >>> check_picks_target("picked.txt", ["m.mrc"])
    Traceback (most recent call last):
    emdask.errors.ParameterError: save_picks: the path must be a folder, ... got 'picked.txt'. ...
    """
    names = tuple(dict.fromkeys(micrographs))
    none = check_picks(WHAT, pd.DataFrame({"micrograph": [], "x_px": [], "y_px": []}))
    _plan(none, names, Path(path).expanduser(), format, box_px, overwrite)


def _plan(
    picks: pd.DataFrame,
    names: Sequence[str],
    path: Path,
    format: str | None,
    box_px: int | None,
    overwrite: bool,
) -> Files:
    """Files to be written, by their names in a folder, or "" for one; nothing is in their way."""
    chosen = _find_format(path, format)
    if chosen == "box":
        require(box_px is not None, WHAT, "boxes need box_px, their side")
        check_integer(WHAT, "box_px", box_px, 1)
    files = WRITERS[chosen](picks, names, path, box_px or 0)
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    is_one = list(files) == [""]
    if path.is_dir() if is_one else path.is_file():
        _refuse(path)
    targets = [path] if is_one else [path / name for name in files]
    there = [target for target in targets if target.exists()]
    if there and not overwrite:
        _refuse(there[0])
    return files


def _find_format(path: Path, chosen: str | None) -> str:
    if chosen is not None:
        check_choice(WHAT, "format", chosen, FORMATS.values())
        return chosen
    if path.is_dir():
        return "relion"
    suffix = path.suffix.lower()
    rule = "the path must be a folder, or end in .star, .csv or .box"
    require(suffix in FORMATS, WHAT, rule, path.name, 'Or say format="relion".')
    return FORMATS[suffix]


# The text of files


def _relion_files(picks: pd.DataFrame, names: Sequence[str], path: Path, box_px: int) -> Files:
    """Files of coordinates, and the list of them at the end."""
    stems = file_stems(names)
    files = {
        f"{stem}_{SUMMARY}": "".join(format_star({"": _relion_table(part)}))
        for stem, part in zip(stems, _split(picks, names), strict=True)
    }
    listed = [str(path / file) for file in files]
    table = {MICROGRAPH: _objects(names), COORDINATES: _objects(listed)}
    return {**files, SUMMARY: "".join(format_star({"coordinate_files": table}))}


def _relion_table(picks: pd.DataFrame) -> dict[str, Any]:
    """Columns as of RELION's Laplacian of Gaussian, which knows neither class nor angle."""
    table: dict[str, Any] = {X: picks["x_px"].to_numpy(), Y: picks["y_px"].to_numpy()}
    table["rlnClassNumber"] = np.zeros(len(picks), np.int64)
    if SCORE in picks:
        table[FOM] = picks[SCORE].to_numpy()
    table["rlnAnglePsi"] = np.zeros(len(picks))
    return table


def _star_file(picks: pd.DataFrame, names: Sequence[str], path: Path, box_px: int) -> Files:
    table = {MICROGRAPH: picks["micrograph"].to_numpy(object), **_relion_table(picks)}
    return {"": "".join(format_star({"": table}))}


def _box_files(picks: pd.DataFrame, names: Sequence[str], path: Path, box_px: int) -> Files:
    texts = []
    for part in _split(picks, names):
        corners = np.floor(part[["x_px", "y_px"]].to_numpy() + 0.5).astype(np.int64) - box_px // 2
        texts.append("".join(f"{x}\t{y}\t{box_px}\t{box_px}\n" for x, y in corners.tolist()))
    if path.suffix.lower() == ".box":
        rule = "a .box file holds the picks of one micrograph"
        remedy = 'Name a folder and pass format="box".'
        require(len(texts) == 1, WHAT, rule, f"{len(texts)} micrographs", remedy)
        return {"": texts[0]}
    return {f"{stem}.box": text for stem, text in zip(file_stems(names), texts, strict=True)}


def _csv_file(picks: pd.DataFrame, names: Sequence[str], path: Path, box_px: int) -> Files:
    return {"": picks.to_csv(index=False, lineterminator="\n")}


WRITERS: Mapping[str, Callable[[pd.DataFrame, Sequence[str], Path, int], Files]] = {
    "relion": _relion_files,
    "star": _star_file,
    "box": _box_files,
    "csv": _csv_file,
}


def _split(picks: pd.DataFrame, names: Sequence[str]) -> list[pd.DataFrame]:
    """Rows of each micrograph, in their order."""
    rows_of = picks.groupby("micrograph", sort=False).indices
    return [picks.iloc[rows_of.get(name, [])] for name in names]


def _objects(words: Sequence[str]) -> Any:
    column = np.empty(len(words), object)
    column[:] = words
    return column


def file_stems(micrographs: Sequence[str]) -> list[str]:
    """Return a name for the file of each micrograph, without suffix; all are different.

    Examples
    --------
    >>> file_stems(["/data/a/m1.mrc", "/data/b/m1.mrc", "raw/m 2.tif", "m3.mrc", "m3.tif"])
    ['a/m1', 'b/m1', 'm 2', 'm3_000004', 'm3_000005']
    """
    parts = [_clean_parts(name) for name in micrographs]
    n_parts = [1] * len(parts)
    for n in range(1, max(map(len, parts), default=0)):
        stems = ["/".join(p[-k:]) for p, k in zip(parts, n_parts, strict=True)]
        # In lower case, because some file systems do not tell the cases apart.
        counts = Counter(stem.lower() for stem in stems)
        n_parts = [
            n + 1 if counts[stem.lower()] > 1 else k for stem, k in zip(stems, n_parts, strict=True)
        ]
    stems = ["/".join(p[-k:]) for p, k in zip(parts, n_parts, strict=True)]
    counts = Counter(stem.lower() for stem in stems)
    numbered = [f"{stem}_{i + 1:06d}" for i, stem in enumerate(stems)]
    chosen = [
        number if counts[stem.lower()] > 1 else stem
        for stem, number in zip(stems, numbered, strict=True)
    ]
    return chosen if len({stem.lower() for stem in chosen}) == len(chosen) else numbered


def _clean_parts(micrograph: str) -> list[str]:
    """Folders and bare name, with nothing hidden, unprintable or leading upwards."""
    folders = PurePosixPath(micrograph.replace("\\", "/")).parts[:-1]
    words = [*folders, bare_name(micrograph)]
    printable = ("".join(c if c.isprintable() else "_" for c in word) for word in words)
    cleaned = [word.strip("/").lstrip(".")[:LONGEST_NAME] for word in printable]
    return [word for word in cleaned[:-1] if word] + [cleaned[-1] or "image"]


# Writing


def _write_file(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _write_folder(folder: Path, files: Files) -> None:
    """Write a folder that appears as a whole, or file by file into one that has others."""
    if not folder.is_dir() or not any(folder.iterdir()):
        draft = folder.with_name(f"{folder.name}.partial")
        remove_path(draft)
        for name, text in files.items():
            (draft / name).parent.mkdir(parents=True, exist_ok=True)
            (draft / name).write_text(text, encoding="utf-8")
        replace_path(draft, folder)
        return
    # The list goes first and comes last: while it is there, so is what it lists.
    if SUMMARY in files:
        (folder / SUMMARY).unlink(missing_ok=True)
    drafts = folder / ".partial"
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, [text.encode()], drafts)
    remove_path(drafts)


def _refuse(path: Path) -> None:
    remedy = "Name another one, or pass overwrite=True (--overwrite)."
    raise FileExistsError(sentence(str(path), "exists already", remedy=remedy))
