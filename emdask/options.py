"""Options of the command line made from the parameter records of the methods."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Annotated, Any

import typer


def add_method_options(
    command: Callable[..., None], family: str, shown: str, *, trained: bool = False
) -> Callable[..., None]:
    """Give a command an option for each parameter of each method, from the methods' records.

    Parameters
    ----------
    command
        Takes ``**parameters``.
    family
        Package of the methods, as "emdask.denoisers".
    shown
        The method that is asked for: the help shows its parameters. Those of others are taken too,
        to be refused by a sentence that names the method's own.
    trained
        As of `method_options`.

    Returns
    -------
    callable
        Its signature names the options; those that are given go into ``**parameters``.
    """
    own = inspect.signature(command).parameters
    # A name that the command has itself, as pixel_size_A, means the same and goes with the input.
    found = method_options(family, shown, trained=trained)
    options = {name: option for name, option in found.items() if name not in own}

    def run(**arguments: Any) -> None:
        left_out = [name for name in options if arguments[name] is None]
        command(**{name: value for name, value in arguments.items() if name not in left_out})

    return with_signature(run, command, options)


def with_signature(
    run: Callable[..., None], like: Callable[..., None], options: dict[str, Any]
) -> Callable[..., None]:
    """Let Typer see the signature of ``like``, its ``**parameters`` replaced by the options."""
    signature = inspect.signature(like, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in options.items()
    ]
    run.__signature__ = signature.replace(parameters=[*kept, *extra])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *extra)}
    run.__doc__ = like.__doc__
    return run


def method_options(family: str, shown: str, *, trained: bool = False) -> dict[str, Any]:
    """Make the options of all methods of a family.

    Parameters
    ----------
    family
        Package of the family, as "emdask.denoisers".
    shown
        The method whose parameters the help shows.
    trained
        Whether they are those of training, of the methods that are networks.

    Returns
    -------
    dict of str to annotated type
        Parameter to its option.

    Examples
    --------
    >>> "sigma" in method_options("emdask.denoisers", "bm3d")
    True
    """
    from emdask.method import find_method, list_methods

    options: dict[str, Any] = {}
    names = list_methods(family)
    for name in sorted(names, key=lambda name: name != shown):
        record = find_method(family, name)
        if trained and record.training is None:
            continue
        params = record.training.params if trained else record.params
        hints = typing.get_type_hints(params)
        for field in dataclasses.fields(params):
            option = _option(field, hints[field.name], name, hidden=name != shown)
            options.setdefault(field.name, option)
    return options


def _option(field: Any, hint: Any, method: str, *, hidden: bool) -> Any:
    kinds = _kinds(hint)
    unit = field.metadata.get("unit", "")
    default = "" if field.default in (None, "") else f"default {field.default}"
    about = "; ".join(filter(None, (unit, default)))
    option = typer.Option(
        f"--{field.name.replace('_', '-')}",
        parser=lambda text: parse_value(text, kinds),
        metavar="|".join(kinds),
        help=field.metadata["meaning"] + (f" ({about})" if about else ""),
        rich_help_panel=f"Parameters of {method}",
        show_default=False,
        hidden=hidden,
    )
    return Annotated[str | None, option]


def _kinds(hint: Any) -> list[str]:
    """Names of the simple types and the words that a type hint allows, narrow ones first.

    Arrays and other objects can be given from Python alone.
    """
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [
            part
            for part in typing.get_args(hint)
            if part in (bool, int, float, str) or typing.get_origin(part) is typing.Literal
        ]
        found = [kind for part in parts for kind in _kinds(part)]
    elif typing.get_origin(hint) is typing.Literal:
        found = [str(word) for word in typing.get_args(hint)]
    else:
        found = ["text" if hint is str else getattr(hint, "__name__", "text")]
    order = [*_PARSERS]
    return sorted(found, key=lambda kind: order.index(kind) if kind in order else len(order))


_PARSERS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": int,
    "float": float,
}


def parse_value(text: str, kinds: list[str]) -> Any:
    """Turn the text of an option into the first kind that it fits; the record checks the rest.

    Examples
    --------
    >>> parse_value("auto", ["float", "auto"]), parse_value("2", ["int"])
    ('auto', 2)
    """
    for kind in kinds:
        try:
            return _PARSERS[kind](text)
        except (KeyError, ValueError):
            continue
    return text


def repeat_options(words: Sequence[str], options: Collection[str]) -> list[str]:
    """Repeat an option before each of the words that follow it, as Typer wants them.

    Parameters
    ----------
    words
        Of the command line.
    options
        Those that take several words, up to the next option.

    Returns
    -------
    list of str

    Examples
    --------
    >>> repeat_options(["simulate", "--snr", "0.1", "0.2", "--out", "a"], ["--snr"])
    ['simulate', '--snr', '0.1', '--snr', '0.2', '--out', 'a']
    """
    repeated: list[str] = []
    option, n_values = "", 0
    for word in words:
        if word.startswith("--"):
            option, n_values = word if word in options else "", 0
        elif option:
            repeated += [option] if n_values else []
            n_values += 1
        repeated.append(word)
    return repeated


def split_words(words: Iterable[str]) -> list[str]:
    """Take words apart at commas, but for those between the parameters of a method.

    Examples
    --------
    >>> split_words(["bm3d,ksvd", "nl_means:strength=1,window_px=21,ddtf"])
    ['bm3d', 'ksvd', 'nl_means:strength=1,window_px=21', 'ddtf']
    """
    parts: list[str] = []
    for part in (part for word in words for part in word.split(",") if part):
        is_parameter = "=" in part and ":" not in part
        if parts and is_parameter and ":" in parts[-1]:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts
