"""Options of the command line made from the parameter records of the methods."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer


def add_method_options(command: Callable[..., None], family: str) -> Callable[..., None]:
    """Give a command an option for each parameter of each method, from the methods' records.

    Parameters
    ----------
    command
        Takes ``**parameters``.
    family
        Package of the methods, as "emdask.denoisers". A parameter that several methods share is one
        option.

    Returns
    -------
    callable
        Its signature names the options; those that are given go into ``**parameters``.
    """
    options = method_options(family)

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


def method_options(family: str) -> dict[str, Any]:
    """Make the options of all methods of a family.

    Parameters
    ----------
    family
        Package of the family, as "emdask.denoisers".

    Returns
    -------
    dict of str to annotated type
        Parameter to its option.

    Examples
    --------
    >>> "sigma" in method_options("emdask.denoisers")
    True
    """
    from emdask.method import find_method, list_methods

    owners: dict[str, list[str]] = {}
    fields: dict[str, tuple[Any, Any]] = {}
    for name in list_methods(family):
        params = find_method(family, name).params
        hints = typing.get_type_hints(params)
        for field in dataclasses.fields(params):
            owners.setdefault(field.name, []).append(name)
            fields.setdefault(field.name, (field, hints[field.name]))
    return {name: _option(*fields[name], owners[name]) for name in fields}


def _option(field: Any, hint: Any, methods: list[str]) -> Any:
    kinds = _kinds(hint)
    unit = field.metadata.get("unit", "")
    default = "" if field.default is None else f"default {field.default}"
    about = "; ".join(filter(None, (unit, default)))
    option = typer.Option(
        f"--{field.name.replace('_', '-')}",
        parser=lambda text: parse_value(text, kinds),
        metavar="|".join(kinds),
        help=field.metadata["meaning"] + (f" ({about})" if about else ""),
        rich_help_panel=f"Parameters of {', '.join(methods)}",
        show_default=False,
    )
    return Annotated[str | None, option]


def _kinds(hint: Any) -> list[str]:
    """Names of the simple types and the words that a type hint allows, narrow ones first."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(hint) if part is not type(None)]
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
