"""The STAR text format: tables of labelled columns, as RELION writes and reads them."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from emdask.errors import FormatError

Column = npt.NDArray[Any]
Table = dict[str, Column]

HEAD_ROWS = 500
# From pandas 3.1 on every number is read to its last bit, and asking for it is deprecated.
EXACT: dict[str, Any] = (
    {}
    if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1)
    else {"float_precision": "round_trip"}
)
INTEGER = re.compile(r"-?(0|[1-9]\d*)")
NUMBER = re.compile(r"-?(0|[1-9]\d*)|[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?")
BARE = re.compile(r"""[^\s#'"_;]\S*""")
NO_NUMBER = re.compile(r"[+-]?(nan|inf)", re.IGNORECASE)
TOKEN = re.compile(r"""\"([^\n]*?)\"(?=\s|$)|'([^\n]*?)'(?=\s|$)|(#.*)|(\S+)""")


def parse_star(text: bytes, what: str, text_labels: Iterable[str] = ()) -> dict[str, Table]:
    r"""Parse a STAR file.

    Parameters
    ----------
    text
        The whole file.
    what
        Its name, for messages.
    text_labels
        Labels whose values are text even where all look like numbers; those that end in "Name"
        always are.

    Returns
    -------
    dict
        Table name, without "data\_", to label, without the underscore, to column: int64 or float64
        where every value is such a number, else Python strings as they stand in the file.

    Raises
    ------
    FormatError
        If it is no STAR file, or a row has not one value a label.

    Examples
    --------
    >>> tables = parse_star(b"data_a\nloop_\n_rlnVoltage\n_rlnGroupName\n300.0 007\n", "a.star")
    >>> tables["a"]["rlnVoltage"], tables["a"]["rlnGroupName"]
    (array([300.]), array(['007'], dtype=object))
    """
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        tables = {
            name: _parse_block(text, start, stop, f"{what} (data_{name})", frozenset(text_labels))
            for name, start, stop in _split_blocks(text)
        }
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: a STAR file is text in UTF-8; got {error}.") from error
    if not tables:
        raise FormatError(f'{what}: not a STAR file: it must have a line that starts with "data_".')
    return tables


def _split_blocks(text: bytes) -> Iterator[tuple[str, int, int]]:
    """Cut at lines that hold one word, "data_..."; a row may start with such a word too."""
    blocks: list[tuple[str, int, int]] = []
    for start in _find_all(text, b"data_"):
        end = text.find(b"\n", start)
        end = len(text) if end < 0 else end
        words = text[start:end].partition(b"#")[0].split()
        if len(words) == 1:
            blocks.append((words[0][5:].decode(), start, end + 1))
    for i, (name, _, body) in enumerate(blocks):
        yield name, body, blocks[i + 1][1] if i + 1 < len(blocks) else len(text)


def _find_all(text: bytes, word: bytes) -> Iterator[int]:
    """Where lines start with a word."""
    if text.startswith(word):
        yield 0
    position = text.find(b"\n" + word)
    while position >= 0:
        yield position + 1
        position = text.find(b"\n" + word, position + 1)


def _parse_block(text: bytes, position: int, stop: int, what: str, texts: frozenset[str]) -> Table:
    """Read the labels, then the rows of a loop or the values beside the labels."""
    labels: list[str] = []
    values: list[str] = []
    is_loop = False
    while position < stop:
        end = text.find(b"\n", position, stop)
        end = stop if end < 0 else end
        line = text[position:end].strip()
        if line.startswith(b"_"):
            words = _tokens(line.decode())
            labels.append(words[0][1:])
            values.extend(words[1:] if not is_loop else [])
        elif line == b"loop_":
            is_loop = True
        elif line and not line.startswith(b"#"):
            break
        position = end + 1
    _check_labels(labels, what)
    rows = text[position:stop]
    if is_loop:
        return _parse_rows(rows, labels, what, texts)
    if (rows and not rows.isspace()) or len(values) != len(labels):
        raise FormatError(f"{what}: without loop_ there must be one value beside each label.")
    return _type_columns([values] if labels else [], labels, texts)


def _check_labels(labels: list[str], what: str) -> None:
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise FormatError(f"{what}: a label must stand once; {', '.join(twice)} stands twice.")


def _parse_rows(rows: bytes, labels: list[str], what: str, text_labels: frozenset[str]) -> Table:
    if not rows or rows.isspace():
        return {label: np.empty(0, object) for label in labels}
    if _is_plain(rows):
        table = _parse_plain(rows, labels, text_labels)
        if table is not None:
            return table
    lines = [words for line in rows.decode().split("\n") if (words := _tokens(line))]
    for number, words in enumerate(lines, start=1):
        if len(words) != len(labels):
            rule = f"row {number} must have {len(labels)} values, one a label"
            raise FormatError(f"{what}: {rule}; got {len(words)}.")
    return _type_columns(lines, labels, text_labels)


def _is_plain(rows: bytes) -> bool:
    """No comments, no single quotes around values: pandas reads it as it stands."""
    if b"#" in rows or rows.startswith(b"'"):
        return False
    return b"'" not in rows or not any(before + b"'" in rows for before in (b" ", b"\t", b"\n"))


def _parse_plain(rows: bytes, labels: list[str], text_labels: frozenset[str]) -> Table | None:
    """Parse a million rows in seconds; None where a row has not one value a label."""
    numeric = _numeric_labels(rows, labels, text_labels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.BytesIO(rows),
                sep=r"\s+",
                header=None,
                names=labels,
                index_col=False,
                dtype={label: object for label in labels if label not in numeric},
                na_filter=False,
                low_memory=False,
                encoding="utf-8",
                **EXACT,
            )
    except (pd.errors.ParserError, pd.errors.ParserWarning, ValueError):
        return None
    # A row that is too short ends in empty values; so may a whole one, in "".
    if frame[labels[-1]].dtype.kind not in "if" and (frame[labels[-1]] == "").any():
        return None
    return {label: _finish(frame[label].to_numpy(), label in numeric) for label in labels}


def _numeric_labels(rows: bytes, labels: list[str], text_labels: frozenset[str]) -> set[str]:
    """Labels whose first values are all numbers that can be written back as they came."""
    head = rows[: rows.find(b"\n", 2**20) + 1 or None].split(b"\n", HEAD_ROWS)[:HEAD_ROWS]
    lines = [words for line in head if (words := _tokens(line.decode()))]
    return {
        label
        for i, label in enumerate(labels)
        if not _is_text(label, text_labels)
        and all(i < len(words) and _looks_numeric(words[i]) for words in lines)
    }


def _is_text(label: str, text_labels: frozenset[str]) -> bool:
    return label.endswith("Name") or label in text_labels


def _looks_numeric(word: str) -> bool:
    """Whether the word is a number; "007" and "+1" are not, as they would come back changed."""
    return bool(NUMBER.fullmatch(word) or NO_NUMBER.fullmatch(word))


def _finish(column: Column, numeric: bool) -> Column:
    """Make int64, float64 or strings of what pandas made of a column."""
    if column.dtype.kind == "i" or column.dtype.kind == "f":
        return column
    words = column.astype(object)
    return _type_column([str(word) for word in words]) if numeric else words


def _type_columns(lines: list[list[str]], labels: list[str], text_labels: frozenset[str]) -> Table:
    columns = zip(*lines, strict=True)
    return {
        label: _as_objects(column) if _is_text(label, text_labels) else _type_column(column)
        for label, column in zip(labels, columns, strict=True)
    }


def _type_column(words: Iterable[str]) -> Column:
    words = list(words)
    if all(INTEGER.fullmatch(word) and len(word) < 19 for word in words):
        return np.array([int(word) for word in words], np.int64)
    if all(_looks_numeric(word) and len(word) < 30 for word in words):
        return np.array([float(word) for word in words], np.float64)
    return _as_objects(words)


def _as_objects(words: Iterable[str]) -> Column:
    words = list(words)
    column = np.empty(len(words), object)
    column[:] = words
    return column


def _tokens(line: str) -> list[str]:
    """Split a line into values, quotes taken off, up to a comment."""
    if "'" not in line and '"' not in line and "#" not in line:
        return line.split()
    words = []
    for match in TOKEN.finditer(line):
        double, single, comment, plain = match.groups()
        if comment is not None:
            break
        words.append(next(word for word in (double, single, plain) if word is not None))
    return words


def format_star(
    tables: Mapping[str, Mapping[str, Column]], lists: Collection[str] = ()
) -> Iterator[str]:
    """Write tables as the text of a STAR file, a piece at a time.

    Parameters
    ----------
    tables
        Table name to label to column, all columns of a table of one length.
    lists
        Names of tables to be written without ``loop_`` where they have one row.

    Yields
    ------
    str
        Lines, ends included.

    Raises
    ------
    FormatError
        If a text has a line break or both kinds of quotes.

    Examples
    --------
    >>> print("".join(format_star({"optics": {"rlnVoltage": np.array([300.0])}})))
    # version 30001
    <BLANKLINE>
    data_optics
    <BLANKLINE>
    loop_
    _rlnVoltage #1
    300.0
    <BLANKLINE>
    <BLANKLINE>
    """
    for name, table in tables.items():
        yield f"# version 30001\n\ndata_{name}\n\n"
        columns = [_words(column) for column in table.values()]
        if name in lists and columns and len(columns[0]) == 1:
            width = max(map(len, table)) + 1
            for label, column in zip(table, columns, strict=True):
                yield f"{'_' + label:<{width}} {column[0]}\n"
        else:
            yield "loop_\n"
            yield from (f"_{label} #{i}\n" for i, label in enumerate(table, start=1))
            yield from (" ".join(row) + "\n" for row in zip(*columns, strict=True))
        yield "\n"


def _words(column: Column) -> list[str]:
    """Values as text: the shortest digits that give the same number again."""
    column = np.asarray(column)
    if column.dtype.kind in "iub":
        return [str(int(value)) for value in column.tolist()]
    if column.dtype.kind == "f":
        return [repr(value) for value in column.astype(np.float64).tolist()]
    return [_quote(str(value)) for value in column.tolist()]


def _quote(word: str) -> str:
    if BARE.fullmatch(word):
        return word
    for mark in ('"', "'"):
        if mark not in word and "\n" not in word:
            return f"{mark}{word}{mark}"
    rule = "a text must not have a line break, nor both kinds of quotes"
    raise FormatError(f"STAR: {rule}; got {json.dumps(word)}.")
