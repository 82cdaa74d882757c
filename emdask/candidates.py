"""Which methods a comparison takes, as its users write them."""

from __future__ import annotations

import ast
import importlib.util
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from emdask.checks import require
from emdask.denoisers import FAMILY
from emdask.method import build_params, find_method, list_methods, resolve_method

NOISY, GAUSSIAN = "noisy", "best gaussian"
CONTROLS = (NOISY, GAUSSIAN)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method in a comparison.

    Parameters
    ----------
    label
        Its name in the table.
    name
        The method's name.
    records
        Instances of its parameter record; of several the best is kept.
    """

    label: str
    name: str
    records: tuple[Any, ...]


def parse_candidates(methods: Iterable[Any] | None) -> Iterator[Candidate]:
    """Turn names, names with parameters, and parameter records into candidates.

    Parameters
    ----------
    methods
        Names, as "bm3d", names with parameters, as "bm3d:threshold=2.5|3,window_px=21", or
        instances of parameter records; None takes all methods that remove noise and need nothing
        that is not here.

    Yields
    ------
    Candidate

    Raises
    ------
    UnknownMethodError, ParameterError
        Naming what is wrong; also where a method removes outliers and not noise.

    Examples
    --------
    >>> (found,) = parse_candidates(["bm3d:sigma=0.5,threshold=2.5|3"])
    >>> found.name, [record.threshold for record in found.records]
    ('bm3d', [2.5, 3])
    """
    if methods is None:
        methods = [name for name in list_methods(FAMILY) if removes_noise(name) and is_ready(name)]
    methods = [methods] if isinstance(methods, str) else methods
    seen: set[str] = set()
    for method in methods:
        found = _parse(method) if isinstance(method, str) else _from_record(method)
        rule = "each method must be there once"
        require(found.label not in {*seen, *CONTROLS}, "compare", rule, found.label)
        rule = "methods must remove noise"
        remedy = f"{found.name} removes outliers alone, which are not what is added."
        require(removes_noise(found.name), "compare", rule, found.label, remedy)
        seen.add(found.label)
        yield found


def removes_noise(name: str) -> bool:
    """Whether a method removes noise, and not outliers alone."""
    return bool(find_method(FAMILY, name).removes == "noise")


def is_ready(name: str) -> bool:
    """Whether a method works as it is, with what is installed and no model of the user's."""
    record = find_method(FAMILY, name)
    missing = [library for library in record.libraries if importlib.util.find_spec(library) is None]
    return not record.needs_model and not missing


def _from_record(params: Any) -> Candidate:
    name, _, params = resolve_method(FAMILY, params, {})
    default = asdict(type(params)())
    changed = [f"{k}={v}" for k, v in asdict(params).items() if v != default[k]]
    label = f"{name}:{','.join(changed)}" if changed else name
    return Candidate(label=label, name=name, records=(params,))


def _parse(text: str) -> Candidate:
    name, _, rest = text.partition(":")
    record = find_method(FAMILY, name)
    values: dict[str, list[Any]] = {}
    for word in filter(None, rest.split(",")):
        option, equals, given = word.partition("=")
        rule = "parameters must be given as NAME=VALUE, or NAME=VALUE|VALUE to try several"
        require(bool(equals and given), name, rule, word)
        values[option] = [_value(one) for one in given.split("|")]
    chosen = itertools.product(*values.values())
    grid = [build_params(name, record, dict(zip(values, one, strict=True))) for one in chosen]
    return Candidate(label=text, name=name, records=tuple(grid))


def _value(text: str) -> Any:
    """Number, true, false or none as such; else a word. The parameter record checks the rest."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
