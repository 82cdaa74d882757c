"""Arguments of the command line that have to do with the training of denoisers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

IMAGES, EFFORT = "What it learns from", "How it learns"

TrainingImages = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGES...",
        help="Noisy images, or with --snr clean ones: MRC, TIFF, RELION STAR or Zarr; several "
        "files or a pattern are joined.",
        show_default=False,
    ),
]
NetworkOut = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="A .safetensors file of weights.", show_default=False),
]
TrainedMethod = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="unet learns from noisy images and clean ones, noise2noise from pairs of noisy ones, "
        "noise2void from noisy ones alone; emdask methods lists all.",
    ),
]
Clean = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PATTERN",
        help="The same images without noise.",
        rich_help_panel=IMAGES,
        show_default=False,
    ),
]
Pair = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|PATTERN",
        help="Others of the same images with noise of their own, as sums of even and odd frames.",
        rich_help_panel=IMAGES,
        show_default=False,
    ),
]
Snr = Annotated[
    str | None,
    typer.Option(
        metavar="FLOAT|LOW:HIGH",
        help="IMAGES are clean; add noise to them at this signal-to-noise ratio, or between two.",
        rich_help_panel=IMAGES,
        show_default=False,
    ),
]
Coloured = Annotated[
    float,
    typer.Option(
        metavar="FLOAT",
        help="Share of the images whose added noise is stronger at low frequencies.",
        rich_help_panel=IMAGES,
    ),
]
EitherContrast = Annotated[
    bool,
    typer.Option(
        "--either-contrast",
        help="Show images dark on light as well as light on dark.",
        rich_help_panel=IMAGES,
    ),
]
Epochs = Annotated[
    int,
    typer.Option(
        metavar="N", help="Passes over the images, at most.", min=1, rich_help_panel=EFFORT
    ),
]
Batch = Annotated[
    int,
    typer.Option(metavar="N", help="Pieces of images in a step.", min=1, rich_help_panel=EFFORT),
]
CropPx = Annotated[
    int,
    typer.Option(
        metavar="N", help="Longest edge of a piece in pixels.", min=1, rich_help_panel=EFFORT
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="The highest (default: 0.002, after --start 0.0005).",
        rich_help_panel=EFFORT,
        show_default=False,
    ),
]
StartModel = Annotated[
    str | None,
    typer.Option(
        metavar="WORD|FILE",
        help="Network to start from: one that ships, or a file of weights (default: a new one).",
        rich_help_panel=EFFORT,
        show_default=False,
    ),
]
Validation = Annotated[
    float,
    typer.Option(
        metavar="FLOAT",
        help="Share of the images that it is judged by and does not learn from; 0 for none.",
        rich_help_panel=EFFORT,
    ),
]
Patience = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Epochs without a lower error after which it ends; 0 for never.",
        min=0,
        rich_help_panel=EFFORT,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        metavar="auto|float32|bfloat16",
        help="bfloat16 computes in 16 bits; auto does so on a card.",
        rich_help_panel=EFFORT,
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Processes that share each batch (default: one for each card, or one).",
        rich_help_panel=EFFORT,
        show_default=False,
    ),
]
Log = Annotated[
    Path | None,
    typer.Option(
        metavar="CSV", help="Write a table with a row for each epoch.", show_default=False
    ),
]
TrainingReport = Annotated[
    Path | None,
    typer.Option(metavar="HTML", help="Write a page of curves and pictures.", show_default=False),
]
ResumeTraining = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on where an interrupted training stopped, by the checkpoint beside OUT.",
    ),
]
