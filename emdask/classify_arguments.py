"""Arguments and options of ``emdask classify``: their types, and what its help says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

REFERENCE_PANEL, OUTPUT_PANEL = "References", "Output"

Particles = Annotated[
    list[str],
    typer.Argument(
        metavar="PARTICLES...",
        help="RELION STAR, MRC, TIFF or Zarr; several files or a pattern are joined.",
        show_default=False,
    ),
]
References = Annotated[
    list[str] | None,
    typer.Option(
        "--reference",
        metavar="FILE",
        help="A volume of one class (.mrc, .map, .zarr), once for each class; or once a stack of "
        "reference images (.star, .mrcs, .zarr), whose class_id says the class of each.",
        rich_help_panel=REFERENCE_PANEL,
        show_default=False,
    ),
]
View = Annotated[
    str | None,
    typer.Option(
        metavar="ROT,TILT",
        help="View that is wanted, degrees: images of others are left out.",
        rich_help_panel=REFERENCE_PANEL,
        show_default=False,
    ),
]
Out = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="A .star file of the images in classes, with classes and poses; it names them where "
        "they lie. Or all that was found of each image, as .csv or .zarr.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
AllImages = Annotated[
    bool,
    typer.Option(
        "--all",
        help="Write those in no class to the .star file, too, as class 0.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
Proportions = Annotated[
    str | None,
    typer.Option(
        metavar="CSV",
        help="Write the proportion of each class, with error and 95 % interval.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="HTML",
        help="Write a page of proportions, class averages, images and how sure it is.",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
Truth = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Known classes to judge by: .star with rlnClassNumber, .csv or .tsv with class_id; a "
        "row an image, or image_id says of which (default: the classes that PARTICLES have).",
        rich_help_panel=OUTPUT_PANEL,
        show_default=False,
    ),
]
Embedding = Annotated[
    str,
    typer.Option(
        metavar="pca|umap",
        help="How the page lays images out in a plane; umap needs umap-learn.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
