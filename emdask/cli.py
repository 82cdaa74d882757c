"""The command line: parses arguments and calls `emdask.commands`, imported when it is needed."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from emdask import __version__
from emdask.errors import EmdaskError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
FAMILY = "emdask.denoisers"


class _Group(TyperGroup):
    """Turns what goes wrong into a sentence on stderr and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the methods' records for the command that runs, and not for ``emdask --help``."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, denoise_command() if name == "denoise" else command, rest

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _say_error(f"emdask: interrupted. {resume_hint(sys.argv[1:])}".rstrip())
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (EmdaskError, OSError) as error:
            _say_error(f"emdask: {error_text(error)}")
            raise typer.Exit(EXIT_BAD_INPUT) from None


def _say_error(text: str) -> None:
    typer.echo(text, err=True)


def error_text(error: Exception) -> str:
    """Return the sentence of an error; those of the system begin with the file, not with a number.

    Examples
    --------
    >>> error_text(PermissionError(13, "Permission denied", "a.mrc"))
    'a.mrc: Permission denied.'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return str(error)


def resume_hint(arguments: list[str]) -> str:
    """Say how an interrupted command goes on; "" for those that cannot.

    Examples
    --------
    >>> resume_hint(["denoise", "a.mrcs", "b.zarr", "--overwrite"])
    'Go on with: emdask denoise a.mrcs b.zarr --resume'
    """
    if not arguments or arguments[0] not in ("denoise", "convert"):
        return ""
    kept = [word for word in arguments if word not in ("--overwrite", "--resume")]
    return f"Go on with: {shlex.join(['emdask', *kept, '--resume'])}"


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

    return _with_signature(run, command, options)


def _with_signature(
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


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
# --window_px is as good as --window-px: the parameter has the former name in Python.
UNDERSCORES: dict[str, Any] = {"token_normalize_func": lambda word: word.replace("_", "-")}

app = typer.Typer(
    cls=_Group,
    help="Lazy, distributed denoising of cryo-EM micrographs and particle images.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings=CONTEXT,
)

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IN...",
        help="MRC, TIFF, RELION STAR or Zarr; several files or a pattern are joined.",
        show_default=False,
    ),
]
INPUT_PANEL = "Input"
Images = Annotated[
    str,
    typer.Option(
        metavar="START:STOP",
        help="Take these images alone, from 0, without STOP.",
        rich_help_panel=INPUT_PANEL,
        show_default=False,
    ),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="micrographs or particles, where the files do not say.",
        rich_help_panel=INPUT_PANEL,
        show_default=False,
    ),
]
PixelSize = Annotated[
    float | None,
    typer.Option(
        "--pixel-size-A",
        metavar="FLOAT",
        help="Edge of a pixel in Å, where the files do not say or are wrong.",
        rich_help_panel=INPUT_PANEL,
        show_default=False,
    ),
]
ProjectFolder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Folder that the paths in a STAR file start from, as RELION's project folder.",
        rich_help_panel=INPUT_PANEL,
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="A .zarr store, a .mrcs file (with a .star beside it), or a folder/ of .mrc files.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Worker processes, of one thread each (default: one a core).",
        metavar="N",
        show_default=False,
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"emdask {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def info(
    inputs: Inputs,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Say what a file holds: shape, pixel size, CTF, poses, history, noise."""
    from emdask.commands import Source, show_info

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    show_info(source)


@app.command()
def convert(
    inputs: Inputs,
    out: Output,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="Type of the pixels written, as float16 or float32 (default: as stored).",
            show_default=False,
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Copy images and what is known of them into another format."""
    from emdask.commands import Source, convert_files

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    convert_files(source, out, dtype=dtype, resume=resume, overwrite=overwrite)


def denoise(
    inputs: Inputs,
    out: Output,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the method; see emdask methods.")
    ] = "bm3d",
    workers: Workers = None,
    scheduler: Annotated[
        str,
        typer.Option(
            help="Address of a running Dask scheduler, as tcp://host:8786.",
            metavar="ADDRESS",
            show_default=False,
        ),
    ] = "",
    device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE", help="auto, cpu or cuda (default: auto).", show_default=False
        ),
    ] = None,
    bad_pixels: Annotated[
        str,
        typer.Option(
            metavar="WORD", help="NaN and infinite pixels: raise an error, or replace them."
        ),
    ] = "raise",
    preview: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG",
            help="Draw the first image, or some particles, before and after.",
            show_default=False,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Write a page of pictures, spectra and figures.",
            show_default=False,
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
    **parameters: Any,
) -> None:
    """Denoise micrographs or particle images.

    The parameters of the methods are below; emdask methods lists them too.
    """
    from emdask.commands import Source, denoise_files
    from emdask.commands import Workers as Where

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    denoise_files(
        source,
        out,
        method=method,
        parameters=parameters,
        device=device,
        bad_pixels=bad_pixels,
        workers=Where(n_workers=workers, scheduler=scheduler),
        resume=resume,
        overwrite=overwrite,
        preview=preview,
        report=report,
    )


def _without_options(**arguments: Any) -> None:
    denoise(**arguments)


app.command("denoise")(_with_signature(_without_options, denoise, {}))


def denoise_command() -> Any:
    """Build the command ``denoise`` with the options of all methods."""
    one = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT
    )
    one.command("denoise", context_settings=CONTEXT | UNDERSCORES)(
        add_method_options(denoise, FAMILY)
    )
    return typer.main.get_command(one)


@app.command()
def methods(
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show this one alone.", show_default=False)
    ] = None,
) -> None:
    """List the methods and their parameters."""
    from emdask.commands import show_methods

    show_methods(method)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For the files and the report.")
    ] = Path("emdask-demo"),
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random numbers.", min=0)] = 0,
    workers: Workers = None,
) -> None:
    """Make a micrograph and particles, denoise them, and write a report; needs no file."""
    from emdask.demo import run_demo

    run_demo(out, seed=seed, n_workers=workers)


def main() -> None:
    """Entry point of the command ``emdask``."""
    app()
