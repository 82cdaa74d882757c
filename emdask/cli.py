"""The command line: parses arguments and calls `emdask.commands`, imported when it is needed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from emdask import __version__, classify_arguments, pick_arguments, train_arguments
from emdask import simulate_arguments as given
from emdask.errors import EmdaskError
from emdask.options import add_method_options, repeat_options, split_words, with_signature

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
RESUMABLE = ("denoise", "phase-flip", "convert", "simulate", "extract", "train-denoiser")
DEFAULT_DENOISER, DEFAULT_RECONSTRUCTOR, DEFAULT_PICKER = "bm3d", "direct_fourier", "cnn"
DEFAULT_CLASSIFIER, DEFAULT_NETWORK = "two_stage", "unet"


class _Group(TyperGroup):
    """Turns what goes wrong into a sentence on stderr and an exit code."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the methods' records for the command that runs, and not for ``emdask --help``."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in WITH_METHODS:
            run, family, default = WITH_METHODS[name]
            method = named_method(rest, default)
            command = method_command(run, family, method, trained=name in TRAINING)
        return name, command, rest

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
    if not arguments or arguments[0] not in RESUMABLE:
        return ""
    kept = [word for word in arguments if word not in ("--overwrite", "--resume")]
    return f"Go on with: {shlex.join(['emdask', *kept, '--resume'])}"


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
# --window_px is as good as --window-px: the parameter has the former name in Python.
UNDERSCORES: dict[str, Any] = {"token_normalize_func": lambda word: word.replace("_", "-")}

app = typer.Typer(
    cls=_Group,
    help="Lazy, distributed processing of cryo-EM micrographs and particle images.",
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
        help="Worker processes (default: one a core, or one a card).",
        metavar="N",
        show_default=False,
    ),
]
Scheduler = Annotated[
    str,
    typer.Option(
        help="cuda: a worker for each NVIDIA card; local: for each core; or the address of a "
        "running Dask scheduler, as tcp://host:8786 (default: cuda where the device is).",
        metavar="WORD|ADDRESS",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="auto, cpu or cuda (default: auto).", show_default=False),
]
BadPixels = Annotated[
    str,
    typer.Option(metavar="WORD", help="NaN and infinite pixels: raise an error, or replace them."),
]
Preview = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Draw the first images.", show_default=False),
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
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Write a page of pictures of a model, kept by emdask denoise --save-model.",
            show_default=False,
        ),
    ] = None,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Say what a stack, a volume, a model or a network holds: shape, pixel size, CTF, history."""
    from emdask.commands import show_info
    from emdask.jobs import Source

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    show_info(source, report)


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
    from emdask.commands import convert_files
    from emdask.jobs import Source

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    convert_files(source, out, dtype=dtype, resume=resume, overwrite=overwrite)


@app.command()
def phase_flip(
    inputs: Inputs,
    out: Output,
    workers: Workers = None,
    scheduler: Scheduler = "",
    device: Device = None,
    bad_pixels: BadPixels = "raise",
    resume: Resume = False,
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Multiply images by the sign of their CTF, and flag them as RELION does."""
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where
    from emdask.phase_flip_command import phase_flip_files

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    phase_flip_files(
        source,
        out,
        device=device,
        bad_pixels=bad_pixels,
        workers=Where(n_workers=workers, scheduler=scheduler),
        resume=resume,
        overwrite=overwrite,
    )


def denoise(
    inputs: Inputs,
    out: Output,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the method; see emdask methods.")
    ] = DEFAULT_DENOISER,
    workers: Workers = None,
    scheduler: Scheduler = "",
    device: Device = None,
    bad_pixels: BadPixels = "raise",
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
    whiten: Annotated[
        bool,
        typer.Option(
            "--whiten",
            help="Measure the noise between the particles and make it white first, as all methods "
            "take it to be; undone after.",
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="ZARR|FILE|WORD",
            help="Take what the method learnt before, kept by --save-model; of a network its "
            "weights, by train-denoiser, or the name of some that ship.",
            show_default=False,
        ),
    ] = None,
    save_model: Annotated[
        Path | None,
        typer.Option(
            metavar="ZARR",
            help="Keep what the method learns from these images.",
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

    The parameters of the method are below: emdask denoise --method NAME --help shows those of
    another, emdask methods lists all.
    """
    from emdask.commands import denoise_files
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where

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
        whiten_noise=whiten,
        model=model,
        keep_model=save_model,
    )


def named_method(words: list[str], default: str) -> str:
    """Return the method that the words of a command line name, before they are parsed.

    Examples
    --------
    >>> named_method(["a.mrcs", "b.zarr", "--method", "ksvd"], "bm3d")
    'ksvd'
    >>> named_method(["--method=mean"], "bm3d"), named_method(["a.mrcs"], "bm3d")
    ('mean', 'bm3d')
    """
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--method":
            return following
        if word.startswith("--method="):
            return word.partition("=")[2]
    return default


def method_command(
    run: Callable[..., None], family: str, method: str, *, trained: bool = False
) -> Any:
    """Build a command with the options of all methods of a family, and help on those of one.

    ``trained``: those of training networks.
    """
    one = typer.Typer(
        add_completion=False, pretty_exceptions_enable=False, context_settings=CONTEXT
    )
    one.command(run.__name__, context_settings=CONTEXT | UNDERSCORES)(
        add_method_options(run, family, method, trained=trained)
    )
    return typer.main.get_command(one)


def add_command(run: Callable[..., None]) -> None:
    """Add a command for the list of commands, the options of methods left out."""

    def without_options(**arguments: Any) -> None:
        run(**arguments)

    app.command(run.__name__.replace("_", "-"))(with_signature(without_options, run, {}))


add_command(denoise)


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


class _SeveralWords(TyperCommand):
    """Options that take several words: ``--snr 0.8 0.4 0.2``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_options(args, ("--snr", "--methods")))


@app.command(cls=_SeveralWords)
def compare(
    clean: Annotated[
        str,
        typer.Argument(
            metavar="CLEAN",
            help="Images without noise: a file as of emdask info, or the word simulate.",
            show_default=False,
        ),
    ],
    snr: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NUMBER...",
            help="Variance of the clean images / variance of the noise (default: 0.8 0.4 0.2 0.1 "
            "0.05 0.01).",
            show_default=False,
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME...",
            help="As bm3d ksvd ddtf; with parameters, as nl_means:strength=0.8,window_px=21; "
            "'nl_means:strength=0.5|1|2' tries each and keeps the best. (Default: all that remove "
            "noise, with their defaults.)",
            show_default=False,
        ),
    ] = None,
    n_images: Annotated[
        int, typer.Option(metavar="N", help="Take the first images of CLEAN.", min=1)
    ] = 16,
    data_range: Annotated[
        float | None,
        typer.Option(
            metavar="FLOAT",
            help="Of PSNR and SSIM (default: max - min of each clean image).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the noise.", min=0)] = 0,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="For compare.csv and compare.html.")
    ] = Path("emdask-compare"),
) -> None:
    """Add noise to clean images, denoise them by each method, and measure against the truth.

    One method after another on one core: 16 images of 128 x 128 pixels at six SNRs take all of
    them together about two minutes.
    """
    from emdask.compare_command import compare_files

    compare_files(
        clean,
        snr=None if snr is None else split_words(snr),
        methods=None if methods is None else split_words(methods),
        n_images=n_images,
        data_range=data_range,
        seed=seed,
        out=out,
    )


@app.command(context_settings=CONTEXT | UNDERSCORES)
def simulate(
    volumes: given.Volumes,
    out: Output,
    n_images: given.NImages = None,
    snr: given.Snr = "0.1",
    noise: given.Noise = "white",
    poses: given.Poses = "uniform",
    cone_deg: given.ConeDeg = 10.0,
    view_deg: given.ViewDeg = "0:0",
    shift_A: given.ShiftA = 0.0,
    proportions: given.Proportions = None,
    seed: given.Seed = 0,
    accuracy: given.Accuracy = "normal",
    clean: given.CleanFile = None,
    preview: Preview = None,
    device: Device = None,
    workers: Workers = None,
    scheduler: Scheduler = "",
    resume: Resume = False,
    overwrite: Overwrite = False,
    pixel_size_A: given.VoxelSize = None,
    box_px: given.BoxPx = None,
    resolution_A: given.ResolutionA = None,
    chains: given.Chains = None,
    density: given.Density = None,
    defocus_A: given.DefocusA = None,
    astigmatism_A: given.AstigmatismA = None,
    phase_shift_deg: given.PhaseShiftDeg = None,
    b_factor_A2: given.BFactorA2 = None,
    voltage_kV: given.VoltageKV = None,
    spherical_aberration_mm: given.SphericalAberrationMm = None,
    amplitude_contrast: given.AmplitudeContrast = None,
    micrographs: given.Micrographs = False,
    size_px: given.SizePx = None,
    n_particles: given.NParticles = None,
    min_distance_A: given.MinDistanceA = None,
    crowding: given.Crowding = None,
    ice: given.Ice = None,
    carbon: given.Carbon = None,
    n_crystals: given.NCrystals = None,
    snr_in: given.SnrIn = None,
) -> None:
    """Make images of volumes whose truth is known: X = CTF * (P V) + N.

    Poses, shifts, classes and defocus are written with the images. Image i of a seed is the same
    however many are made.
    """
    from emdask.jobs import Workers as Where
    from emdask.simulate_command import simulate_files
    from emdask.simulate_options import (
        Subjects,
        build_ctf,
        build_frame,
        parse_integers,
        parse_numbers,
        parse_snr,
    )

    subjects = Subjects(
        words=volumes,
        pixel_size_A=pixel_size_A,
        box_px=box_px,
        resolution_A=resolution_A,
        chains=chains,
        density=density,
        seed=seed,
    )
    optics = {
        "astigmatism_A": astigmatism_A,
        "phase_shift_deg": phase_shift_deg,
        "b_factor_A2": b_factor_A2,
        "voltage_kV": voltage_kV,
        "spherical_aberration_mm": spherical_aberration_mm,
        "amplitude_contrast": amplitude_contrast,
    }
    frame = {
        "size_px": parse_integers("--size-px", size_px),
        "n_particles": parse_integers("--n-particles", n_particles),
        "min_distance_A": min_distance_A,
        "crowding": crowding,
        "ice": ice,
        "carbon": carbon,
        "n_crystals": parse_integers("--n-crystals", n_crystals),
        "snr_in": snr_in,
    }
    simulate_files(
        subjects,
        out,
        n_images=n_images,
        frame=build_frame(micrographs, frame, shift_A),
        parameters={
            "snr": parse_snr(snr),
            "poses": poses,
            "cone_deg": cone_deg,
            "view_deg": parse_numbers("--view-deg", view_deg, ":"),
            "shifts_A": shift_A,
            "ctf": build_ctf(defocus_A or [], optics),
            "noise": noise,
            "proportions": parse_numbers("--proportions", proportions, ","),
            "seed": seed,
            "accuracy": accuracy,
            "device": device,
        },
        clean=clean,
        preview=preview,
        workers=Where(n_workers=workers, scheduler=scheduler),
        resume=resume,
        overwrite=overwrite,
    )


def reconstruct(
    inputs: Inputs,
    out: Annotated[
        str,
        typer.Argument(
            metavar="OUT",
            help="The map: .mrc, .map or .zarr; OUT_half1 and OUT_half2 are written beside it.",
            show_default=False,
        ),
    ],
    symmetry: Annotated[
        str,
        typer.Option(
            metavar="GROUP", help="Point group, oriented as RELION has it: C4, D7, T, O, I."
        ),
    ] = "C1",
    half_maps: Annotated[
        bool,
        typer.Option(
            help="Reconstruct each half of the images, too: those of rlnRandomSubset, else odd and "
            "even ones.",
        ),
    ] = True,
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE|auto|none",
            help="For the resolution: a volume from 0 to 1, auto for one made from the map, or "
            "none. The map itself is not masked.",
        ),
    ] = "auto",
    reference: Annotated[
        Path | None,
        typer.Option(metavar="MAP", help="Volume to compare the map with.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="HTML",
            help="Write a page of pictures, resolution and views.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the method; see emdask methods.")
    ] = DEFAULT_RECONSTRUCTOR,
    workers: Workers = None,
    scheduler: Scheduler = "",
    device: Device = None,
    bad_pixels: BadPixels = "raise",
    overwrite: Overwrite = False,
    images: Images = "",
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
    **parameters: Any,
) -> None:
    """Reconstruct a map from particle images whose poses are known, and say its resolution."""
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where
    from emdask.reconstruct_command import reconstruct_files

    source = Source(
        paths=inputs,
        images=images,
        kind="particles",
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    reconstruct_files(
        source,
        out,
        method=method,
        parameters={"symmetry": symmetry, **parameters},
        half_maps=half_maps,
        mask=mask,
        reference=reference,
        report=report,
        device=device,
        bad_pixels=bad_pixels,
        workers=Where(n_workers=workers, scheduler=scheduler),
        overwrite=overwrite,
    )


add_command(reconstruct)


def classify(
    particles: classify_arguments.Particles,
    out: classify_arguments.Out,
    reference: classify_arguments.References = None,
    view: classify_arguments.View = None,
    all_images: classify_arguments.AllImages = False,
    proportions: classify_arguments.Proportions = None,
    report: classify_arguments.Report = None,
    truth: classify_arguments.Truth = None,
    embedding: classify_arguments.Embedding = "pca",
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the method; see emdask methods.")
    ] = DEFAULT_CLASSIFIER,
    workers: Workers = None,
    scheduler: Scheduler = "",
    device: Device = None,
    bad_pixels: BadPixels = "raise",
    overwrite: Overwrite = False,
    images: Images = "",
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
    **parameters: Any,
) -> None:
    """Tell conformations apart in particle images, and say their proportions.

    With references, images far from --view are left out, and the others go to
    the class that they are most like. Without, --method kmeans or gmm.
    """
    from emdask.classify_command import Output as Target
    from emdask.classify_command import classify_files, parse_view
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where

    source = Source(
        paths=particles,
        images=images,
        kind="particles",
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    target = Target(
        path=out,
        all_images=all_images,
        proportions=proportions,
        report=report,
        overwrite=overwrite,
    )
    wanted = {} if view is None else {"view": parse_view(view)}
    classify_files(
        source,
        target,
        references=reference or [],
        method=method,
        parameters=wanted | parameters,
        device=device,
        bad_pixels=bad_pixels,
        workers=Where(n_workers=workers, scheduler=scheduler),
        truth=truth,
        embedding=embedding,
    )


add_command(classify)


def pick(
    micrographs: pick_arguments.Micrographs,
    out: pick_arguments.PicksOut,
    diameter_A: pick_arguments.DiameterA = None,
    diameter_px: pick_arguments.DiameterPx = None,
    contrast: pick_arguments.Contrast = "dark",
    threshold: pick_arguments.Threshold = None,
    spacing: pick_arguments.Spacing = 0.5,
    border_px: pick_arguments.BorderPx = 0.0,
    report: pick_arguments.Report = None,
    truth: pick_arguments.Truth = None,
    flip_y: pick_arguments.FlipY = False,
    format: pick_arguments.Format = None,
    box_px: pick_arguments.BoxesPx = None,
    method: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the method; see emdask methods.")
    ] = DEFAULT_PICKER,
    workers: Workers = None,
    scheduler: Scheduler = "",
    device: Device = None,
    bad_pixels: BadPixels = "raise",
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
    **parameters: Any,
) -> None:
    """Find particles in micrographs: --diameter-A (or --diameter-px) is all it must know.

    Coordinates are of the particle's centre in pixels of the micrograph, x to the right and y
    downwards, the centre of the first pixel being 0.
    """
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where
    from emdask.pick_command import Output as Target
    from emdask.pick_command import pick_files

    source = Source(
        paths=micrographs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    search = {
        "diameter_A": diameter_A,
        "diameter_px": diameter_px,
        "contrast": contrast,
        "threshold": threshold,
        "spacing": spacing,
        "border_px": border_px,
    }
    pick_files(
        source,
        Target(path=out, format=format, box_px=box_px, overwrite=overwrite),
        method=method,
        parameters=parameters,
        search=search,
        device=device,
        bad_pixels=bad_pixels,
        workers=Where(n_workers=workers, scheduler=scheduler),
        truth=truth,
        flip_y=flip_y,
        report=report,
    )


add_command(pick)


@app.command(context_settings=CONTEXT | UNDERSCORES)
def extract(
    micrographs: pick_arguments.Micrographs,
    picks: pick_arguments.PicksIn,
    out: Output,
    box_px: pick_arguments.ExtractPx,
    bin: pick_arguments.Bin = 1,
    edge: pick_arguments.Edge = "drop",
    normalise: pick_arguments.Normalise = True,
    invert: pick_arguments.Invert = True,
    background_radius_px: pick_arguments.BackgroundRadiusPx = None,
    flip_y: pick_arguments.FlipY = False,
    preview: pick_arguments.Preview = None,
    workers: Workers = None,
    scheduler: Scheduler = "",
    bad_pixels: BadPixels = "raise",
    resume: Resume = False,
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Cut particles out of micrographs, with all that is known of their micrographs."""
    from emdask.extract_command import extract_files
    from emdask.jobs import Source
    from emdask.jobs import Workers as Where

    source = Source(
        paths=micrographs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    extract_files(
        source,
        picks,
        out,
        parameters={
            "box_px": box_px,
            "bin": bin,
            "edge": edge,
            "normalise": normalise,
            "invert": invert,
            "background_radius_px": background_radius_px,
            "bad_pixels": bad_pixels,
        },
        flip_y=flip_y,
        workers=Where(n_workers=workers, scheduler=scheduler),
        resume=resume,
        overwrite=overwrite,
        preview=preview,
    )


@app.command(context_settings=CONTEXT | UNDERSCORES)
def train_picker(
    micrographs: pick_arguments.Micrographs,
    out: pick_arguments.WeightsOut,
    diameter_A: pick_arguments.DiameterA = None,
    diameter_px: pick_arguments.DiameterPx = None,
    contrast: pick_arguments.Contrast = "dark",
    picks: pick_arguments.Labels = None,
    flip_y: pick_arguments.FlipY = False,
    start: pick_arguments.Start = "general",
    n_rounds: pick_arguments.NRounds = 1,
    n_steps: pick_arguments.NSteps = None,
    n_micrographs: pick_arguments.NMicrographs = 40,
    labelled: pick_arguments.Labelled = None,
    best: pick_arguments.Best = 0.7,
    seed: pick_arguments.Seed = 0,
    device: Device = None,
    bad_pixels: BadPixels = "raise",
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
) -> None:
    """Train the network of emdask pick on one's own particles: from some labels, or from none.

    Without labels the network picks, and learns from those picks that it is surest of.
    """
    from emdask.jobs import Source
    from emdask.train_picker_command import train_picker_files

    source = Source(
        paths=micrographs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    train_picker_files(
        source,
        out,
        picks=picks,
        flip_y=flip_y,
        start=start,
        parameters={
            "diameter_A": diameter_A,
            "diameter_px": diameter_px,
            "contrast": contrast,
            "n_rounds": n_rounds,
            "n_steps": n_steps,
            "n_micrographs": n_micrographs,
            "labelled": labelled,
            "best": best,
            "seed": seed,
            "device": device,
            "bad_pixels": bad_pixels,
        },
        overwrite=overwrite,
    )


def train_denoiser(
    inputs: train_arguments.TrainingImages,
    out: train_arguments.NetworkOut,
    method: train_arguments.TrainedMethod = DEFAULT_NETWORK,
    clean: train_arguments.Clean = None,
    pair: train_arguments.Pair = None,
    snr: train_arguments.Snr = None,
    coloured: train_arguments.Coloured = 0.0,
    either_contrast: train_arguments.EitherContrast = False,
    epochs: train_arguments.Epochs = 20,
    batch: train_arguments.Batch = 16,
    crop_px: train_arguments.CropPx = 128,
    learning_rate: train_arguments.LearningRate = None,
    start: train_arguments.StartModel = None,
    validation: train_arguments.Validation = 0.1,
    patience: train_arguments.Patience = 5,
    precision: train_arguments.Precision = "auto",
    seed: pick_arguments.Seed = 0,
    device: Device = None,
    processes: train_arguments.Processes = None,
    bad_pixels: BadPixels = "raise",
    log: train_arguments.Log = None,
    report: train_arguments.TrainingReport = None,
    resume: train_arguments.ResumeTraining = False,
    overwrite: Overwrite = False,
    images: Images = "",
    kind: Kind = None,
    pixel_size_A: PixelSize = None,
    project_folder: ProjectFolder = None,
    **parameters: Any,
) -> None:
    """Train a network to denoise: on clean images, on pairs of noisy ones, or on noisy ones alone.

    The parameters of the network are below: emdask train-denoiser --method NAME --help shows those
    of another.
    """
    from emdask.jobs import Source
    from emdask.train_denoiser_command import train_denoiser_files

    source = Source(
        paths=inputs,
        images=images,
        kind=kind,
        pixel_size_A=pixel_size_A,
        project_folder=project_folder,
    )
    train_denoiser_files(
        source,
        out,
        method=method,
        clean=clean,
        pair=pair,
        snr=snr,
        patience=patience,
        parameters={
            "coloured": coloured,
            "either_contrast": either_contrast,
            "epochs": epochs,
            "batch": batch,
            "crop_px": crop_px,
            "learning_rate": learning_rate,
            "model": start,
            "validation": validation,
            "precision": precision,
            "seed": seed,
            "device": device,
            "n_processes": processes,
            "bad_pixels": bad_pixels,
            "log": log,
            **parameters,
        },
        resume=resume,
        overwrite=overwrite,
        report=report,
    )


add_command(train_denoiser)


# Command to what it runs, the family of its methods, and the one that is taken unless named.
WITH_METHODS: dict[str, tuple[Callable[..., None], str, str]] = {
    "classify": (classify, "emdask.classifiers", DEFAULT_CLASSIFIER),
    "denoise": (denoise, "emdask.denoisers", DEFAULT_DENOISER),
    "pick": (pick, "emdask.pickers", DEFAULT_PICKER),
    "reconstruct": (reconstruct, "emdask.reconstructors", DEFAULT_RECONSTRUCTOR),
    "train-denoiser": (train_denoiser, "emdask.denoisers", DEFAULT_NETWORK),
}
# Those whose options are of training.
TRAINING = ("train-denoiser",)


def main() -> None:
    """Entry point of the command ``emdask``."""
    app()
