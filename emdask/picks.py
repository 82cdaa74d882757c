"""A table of picks: what it must have, and which micrographs its names mean.

A pick is where a particle is taken to be: a row of ``micrograph``, ``x_px`` to the right and
``y_px`` downwards, in pixels of the micrograph as it is stored, the centre of the first pixel at
(0, 0), and ``score``, where there is one: the higher, the surer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from emdask.checks import require, sentence
from emdask.errors import ParameterError

PLACE = ("x_px", "y_px")
SCORE = "score"
# Attribute of a table: names of all its micrographs, those without picks as well.
NAMES = "micrographs"
# What a bare name has not; other dots belong to it, as in FoilHole_1_Data_2.5.
SUFFIXES = (
    *(".mrc", ".mrcs", ".map", ".st", ".tif", ".tiff", ".eer"),
    *(".jpg", ".jpeg", ".png", ".gz", ".bz2"),
)


class MicrographNames(tuple[str, ...]):
    """Names of micrographs that copies of a table share: pandas copies attributes at every step."""

    __slots__ = ()

    def __deepcopy__(self, memo: Any) -> MicrographNames:
        return self


def build_picks(columns: Any, micrographs: Iterable[str] | None = None) -> pd.DataFrame:
    """Make a table of picks.

    Parameters
    ----------
    columns
        Mapping or table with ``micrograph``, ``x_px``, ``y_px`` and perhaps ``score``.
    micrographs
        Names of all micrographs, kept in its attribute ``micrographs`` with those of the rows.

    Returns
    -------
    pandas.DataFrame

    Examples
    --------
    >>> build_picks({"micrograph": ["a"], "x_px": [1], "y_px": [2]}, ["a", "b"]).attrs
    {'micrographs': ('a', 'b')}
    """
    names = [name for name in ("micrograph", *PLACE, SCORE) if name in columns]
    table = pd.DataFrame({name: np.asarray(columns[name]) for name in names})
    table = table.astype(dict.fromkeys(names[1:], np.float64) | {"micrograph": str})
    known = [*(micrographs or ()), *table["micrograph"].unique()]
    table.attrs[NAMES] = MicrographNames(dict.fromkeys(map(str, known)))
    return table


def check_picks(what: str, picks: Any, name: str = "picks") -> pd.DataFrame:
    """Take a table of picks, of pandas or Dask, and return what is needed of it.

    Parameters
    ----------
    what
        Who asks, for messages.
    picks
        Table with columns ``micrograph``, ``x_px``, ``y_px`` and perhaps ``score``; others are left
        out.
    name
        What the table is called in messages.

    Returns
    -------
    pandas.DataFrame
        In memory; the index is the number of the row. Attribute ``micrographs`` as of the table,
        and the names of its rows where it has none.

    Raises
    ------
    ParameterError
        If it is no such table, or a place or a score is no number, or not finite.

    Examples
    --------
    >>> check_picks("extract", pd.DataFrame({"micrograph": ["a"], "x_px": [1], "y_px": [np.nan]}))
    Traceback (most recent call last):
    emdask.errors.ParameterError: extract: picks must have finite x_px, y_px; row 0 has not. ...
    """
    table = picks.compute() if hasattr(picks, "compute") else picks
    rule = f"{name} must be a table with columns micrograph, x_px, y_px"
    require(isinstance(table, pd.DataFrame), what, rule, type(table).__name__)
    missing = [column for column in ("micrograph", *PLACE) if column not in table]
    require(not missing, what, rule, list(table.columns), f"It lacks {', '.join(missing)}.")
    _require_numbers(what, table, name)
    checked = build_picks(table, table.attrs.get(NAMES))
    numbers = checked.columns[1:]
    bad = ~np.isfinite(checked[numbers].to_numpy()).all(axis=1)
    if bad.any():
        rule = f"{name} must have finite {', '.join(numbers)}; row {int(np.argmax(bad))} has not"
        raise ParameterError(sentence(what, rule, remedy="Leave such rows out."))
    return checked


def _require_numbers(what: str, table: pd.DataFrame, name: str) -> None:
    """Refuse a column of places or scores that no numbers can be made of, naming its first word."""
    for column in (column for column in (*PLACE, SCORE) if column in table):
        try:
            table[column].astype(np.float64)
        except (TypeError, ValueError) as error:
            numbers = pd.to_numeric(table[column], errors="coerce")
            row = int(np.argmax(numbers.isna().to_numpy()))
            rule = (
                f"{name} must have numbers in {column}; row {row} has {table[column].iloc[row]!r}"
            )
            raise ParameterError(sentence(what, rule, remedy="Leave such rows out.")) from error


def bare_name(micrograph: str) -> str:
    """Return the name of a micrograph without folders and suffixes of images.

    Examples
    --------
    >>> bare_name("MotionCorr/job002/a b_1.5.mrc"), bare_name("7@stack.mrcs")
    ('a b_1.5', '7@stack')
    """
    return _parts(micrograph)[-1]


def _parts(micrograph: str) -> list[str]:
    """Folders and bare name."""
    number, at, file = micrograph.rpartition("@")
    *folders, name = file.replace("\\", "/").rstrip("/").split("/")
    while name.lower().endswith(SUFFIXES) and "." in name[1:]:
        name = name[: name.rindex(".")]
    return [folder for folder in folders if folder not in ("", ".")] + [number + at + name]


def pair_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Find which of the known micrographs names mean.

    Parameters
    ----------
    names
        Names as a table of picks has them.
    known
        Names as a stack or another table has them.

    Returns
    -------
    dict of str to str
        Name to known name: the same where it is known; otherwise the one of equal bare name that
        shares most of the folders before it. What has no such name, or more than one, or would have
        the one of another name, is not in it.

    Examples
    --------
    >>> pair_names(["m1.mrc", "b/m2", "m3"], ["m1.mrc", "raw/a/m2.tif", "raw/b/m2.tif"])
    {'m1.mrc': 'm1.mrc', 'b/m2': 'raw/b/m2.tif'}
    """
    names, known = list(dict.fromkeys(names)), list(dict.fromkeys(known))
    pairs = {name: name for name in set(names).intersection(known)}
    candidates: dict[str, list[str]] = {}
    for other in known:
        if other not in pairs:
            candidates.setdefault(bare_name(other), []).append(other)
    takers: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        found = [] if name in pairs else candidates.get(bare_name(name), [])
        shared = [_count_shared(_parts(name), _parts(other)) for other in found]
        if shared.count(max(shared, default=0)) == 1:
            takers.setdefault(found[shared.index(max(shared))], []).append((max(shared), name))
    for other, rivals in takers.items():
        most = max(rivals)[0]
        best = [name for shared, name in rivals if shared == most]
        if len(best) == 1:
            pairs[best[0]] = other
    return {name: pairs[name] for name in names if name in pairs}


def _count_shared(first: Sequence[str], second: Sequence[str]) -> int:
    """Number of parts that are the same, from the last on."""
    same = [a == b for a, b in zip(reversed(first), reversed(second), strict=False)]
    return same.index(False) if False in same else len(same)
