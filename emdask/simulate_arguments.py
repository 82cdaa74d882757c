"""Arguments and options of ``emdask simulate``: their types, and what its help says of them."""

from __future__ import annotations

from typing import Annotated

import typer

VOLUME_PANEL = "Volumes"
CTF_PANEL = "CTF"
MICROGRAPH_PANEL = "Micrographs"

Volumes = Annotated[
    list[str],
    typer.Argument(
        metavar="VOLUME...",
        help="Maps (.mrc, .map, .zarr), structures (.pdb, .cif), or the word phantom; of "
        "several, each is a class.",
        show_default=False,
    ),
]
NImages = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Number of images (default: 1000, of micrographs 10).",
        min=1,
        show_default=False,
    ),
]
Snr = Annotated[
    str,
    typer.Option(
        metavar="NUMBER|none",
        help="Variance of the images without noise, over the full frame / variance of the "
        "noise, which is 1.",
    ),
]
Noise = Annotated[
    str,
    typer.Option(metavar="WORD", help="white, or coloured: more of low frequencies, as ice."),
]
Poses = Annotated[
    str,
    typer.Option(metavar="WORD", help="uniform, or cone: views within a cone about one axis."),
]
ConeDeg = Annotated[
    float, typer.Option(metavar="FLOAT", help="Half of the cone's opening, degrees.")
]
ViewDeg = Annotated[str, typer.Option(metavar="ROT:TILT", help="Axis of the cone, degrees.")]
ShiftA = Annotated[
    float,
    typer.Option("--shift-A", metavar="FLOAT", help="Largest shift along each axis, Å."),
]
Proportions = Annotated[
    str | None,
    typer.Option(
        metavar="N,N...", help="Of the classes (default: equal ones).", show_default=False
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the random numbers.", min=0)]
Accuracy = Annotated[
    str,
    typer.Option(
        metavar="WORD",
        help="Of the projections: relative error of rough 5e-3, normal 3e-4, high 3e-5.",
    ),
]
CleanFile = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write the images without noise, too.", show_default=False),
]
VoxelSize = Annotated[
    float | None,
    typer.Option(
        "--pixel-size-A",
        metavar="FLOAT",
        help="Edge of a voxel and of a pixel in Å: for structures, and for maps that do not "
        "say (phantom: 2).",
        rich_help_panel=VOLUME_PANEL,
        show_default=False,
    ),
]
BoxPx = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Edge of the images: for structures (default: half as much again as they need to "
        "turn) and phantom (default: 128).",
        rich_help_panel=VOLUME_PANEL,
        show_default=False,
    ),
]
ResolutionA = Annotated[
    float | None,
    typer.Option(
        "--resolution-A",
        metavar="FLOAT",
        help="Of structures, Å; at least two voxels.",
        rich_help_panel=VOLUME_PANEL,
        show_default=False,
    ),
]
Chains = Annotated[
    str | None,
    typer.Option(
        metavar="A,B...",
        help="Of structures (default: all).",
        rich_help_panel=VOLUME_PANEL,
        show_default=False,
    ),
]
Density = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Of structures: electrostatic or gaussian (default: electrostatic).",
        rich_help_panel=VOLUME_PANEL,
        show_default=False,
    ),
]
DefocusA = Annotated[
    list[str] | None,
    typer.Option(
        "--defocus-A",
        metavar="LOW:HIGH",
        help="Underfocus in Å, drawn from a range, or a number (default: no CTF). Given "
        "several times, each makes an optics group.",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
AstigmatismA = Annotated[
    str | None,
    typer.Option(
        "--astigmatism-A",
        metavar="LOW:HIGH",
        help="Difference of the two defocus values in Å, its axis at random (default: 0).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
PhaseShiftDeg = Annotated[
    str | None,
    typer.Option(
        metavar="LOW:HIGH",
        help="Of a phase plate, degrees (default: 0).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
BFactorA2 = Annotated[
    str | None,
    typer.Option(
        "--b-factor-A2",
        metavar="LOW:HIGH",
        help="Of the envelope, Å² (default: 0).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
VoltageKV = Annotated[
    str | None,
    typer.Option(
        "--voltage-kV",
        metavar="NUMBER",
        help="Of the microscope (default: 300).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
SphericalAberrationMm = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER",
        help="Of the microscope (default: 2.7).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
AmplitudeContrast = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER",
        help="Share of it, 0 to 1 (default: 0.1).",
        rich_help_panel=CTF_PANEL,
        show_default=False,
    ),
]
Micrographs = Annotated[
    bool,
    typer.Option(
        "--micrographs",
        help="Make micrographs; where the particles are is written to OUT_picks.star.",
        rich_help_panel=MICROGRAPH_PANEL,
    ),
]
SizePx = Annotated[
    str | None,
    typer.Option(
        metavar="N|HEIGHT:WIDTH",
        help="Edges of a micrograph (default: 4096).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
NParticles = Annotated[
    str | None,
    typer.Option(
        metavar="N|LOW:HIGH",
        help="In a micrograph (default: as many as cover a seventh of it).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
MinDistanceA = Annotated[
    float | None,
    typer.Option(
        "--min-distance-A",
        metavar="FLOAT",
        help="Between centres of particles, Å (default: their diameter).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
Crowding = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Share of the particles that is put next to others, 0 to 1 (default: 0).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
Ice = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="How much darker the thickest ice is than the thinnest; noise is 1 (default: 1).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
Carbon = Annotated[
    float | None,
    typer.Option(
        metavar="FLOAT",
        help="Share of the micrographs that show the carbon film, 0 to 1 (default: 0).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
NCrystals = Annotated[
    str | None,
    typer.Option(
        metavar="N|LOW:HIGH",
        help="Lumps of ice and dirt in a micrograph (default: 0).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
SnrIn = Annotated[
    str | None,
    typer.Option(
        metavar="WORD",
        help="Where SNR is measured: frame, or particles, the discs of their diameter "
        "(default: frame).",
        rich_help_panel=MICROGRAPH_PANEL,
        show_default=False,
    ),
]
