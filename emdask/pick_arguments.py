"""Arguments of the command line that have to do with picks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PARTICLE, FILES = "The particle", "Files of coordinates"

Micrographs = Annotated[
    list[str],
    typer.Argument(
        metavar="MICROGRAPHS...",
        help="MRC, TIFF, RELION STAR or Zarr; several files or a pattern are joined.",
        show_default=False,
    ),
]
PicksOut = Annotated[
    str,
    typer.Argument(
        metavar="OUT",
        help="A folder/ of RELION coordinate files and autopick.star, the list of them; or one "
        ".star or .csv table.",
        show_default=False,
    ),
]
PicksIn = Annotated[
    str,
    typer.Argument(
        metavar="PICKS",
        help="What emdask pick wrote, or .star, .box, .csv, Topaz .txt; a folder of them.",
        show_default=False,
    ),
]
DiameterA = Annotated[
    float | None,
    typer.Option(
        "--diameter-A",
        metavar="FLOAT",
        help="Diameter in Å, of the smallest circle around most views.",
        rich_help_panel=PARTICLE,
        show_default=False,
    ),
]
DiameterPx = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="The same in pixels of the micrographs.",
        rich_help_panel=PARTICLE,
        show_default=False,
    ),
]
Contrast = Annotated[
    str,
    typer.Option(
        metavar="dark|light",
        help="dark: darker than the ice, as recorded in underfocus.",
        rich_help_panel=PARTICLE,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Least score; lower ones find more and err more "
        "(default: the network's or the method's own).",
        show_default=False,
    ),
]
Spacing = Annotated[
    float, typer.Option(metavar="FLOAT", help="Least distance between picks, in diameters.")
]
BorderPx = Annotated[
    float,
    typer.Option(metavar="FLOAT", help="Leave out what is nearer to an edge of the micrograph."),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="relion, star, csv; box: a folder of EMAN's boxes (default: as OUT's name says).",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
BoxesPx = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Side of EMAN's boxes (default: one and a half diameters).",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
Truth = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Known particles to judge the picks by; formats as of PICKS of emdask extract.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
FlipY = Annotated[
    bool,
    typer.Option(
        "--flip-y",
        help="y of the files that are read counts from the last row upwards.",
        rich_help_panel=FILES,
    ),
]
Report = Annotated[
    Path | None,
    typer.Option(
        metavar="HTML",
        help="Write a page of micrographs with picks, scores and particles.",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER",
        help="Particles labelled in some of the micrographs, a handful or more; formats as of "
        "PICKS of emdask extract.",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
WeightsOut = Annotated[
    Path,
    typer.Argument(metavar="OUT", help="A .safetensors file of weights.", show_default=False),
]
ExtractPx = Annotated[
    int,
    typer.Option(
        metavar="N", help="Side of the boxes in pixels of the micrographs.", show_default=False
    ),
]
Bin = Annotated[
    int,
    typer.Option(
        metavar="N", help="Times that images become smaller; --box-px is an even multiple of it."
    ),
]
Edge = Annotated[
    str,
    typer.Option(
        metavar="drop|fill",
        help="Boxes beyond the frame: leave them out, or fill them with the mirror image.",
    ),
]
Normalise = Annotated[
    bool,
    typer.Option(help="Bring the background to mean 0 and deviation 1, and take off its ramp."),
]
Invert = Annotated[bool, typer.Option(help="Change the sign: dark particles become light.")]
BackgroundRadiusPx = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="What is farther from the centre is background, in pixels of the micrographs "
        "(default: 0.375 boxes).",
        show_default=False,
    ),
]
Preview = Annotated[
    Path | None,
    typer.Option(metavar="PNG", help="Draw some particles.", show_default=False),
]
Start = Annotated[
    str,
    typer.Option(
        metavar="WORD|FILE",
        help="Network to start from: general, simulated, a file of weights; none: a new one, which "
        "needs --picks.",
    ),
]
NRounds = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="Rounds of training; after the first, what the network is surest of joins the labels.",
        min=1,
    ),
]
NSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Steps of a round, of 8 pieces each (default: 800 where most particles are labelled, "
        "300 where few are, 60 without labels).",
        min=1,
        show_default=False,
    ),
]
NMicrographs = Annotated[
    int, typer.Option(metavar="N", help="Most micrographs to learn from.", min=1)
]
Labelled = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Share of the particles that is labelled in the micrographs of --picks (default: of "
        "what the network finds that it starts from).",
        rich_help_panel=FILES,
        show_default=False,
    ),
]
Best = Annotated[
    float,
    typer.Option(metavar="FLOAT", help="Share of its own picks that the network learns from."),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the random numbers.", min=0)]
