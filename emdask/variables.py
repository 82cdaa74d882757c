"""The table of everything that may be known of the images of a stack.

One frozen record for each variable. A variable whose value differs from image to image is a
coordinate along ``image``; one that holds for all is in ``attrs``. The table checks inputs, labels
outputs, reads and writes RELION STAR files, and generates the documentation page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable of a stack.

    Parameters
    ----------
    name
        Name of the coordinate or attribute, with its unit.
    dtype
        NumPy dtype character code of the coordinate; "U" for text.
    unit
        Unit, or "" where there is none.
    meaning
        What it is, and which sign is positive.
    relion
        RELION labels without the leading underscore: the first is written, all are read.
    optics
        True where RELION 3.1 and later keep it in the optics table.
    """

    name: str
    dtype: str
    unit: str
    meaning: str
    relion: tuple[str, ...] = ()
    optics: bool = False


VARIABLES: tuple[Variable, ...] = (
    Variable(
        name="image_id",
        dtype="i8",
        unit="",
        meaning="number of the image, kept through selections; seeds follow it",
        relion=("rlnParticleId",),
    ),
    Variable(
        name="micrograph",
        dtype="U",
        unit="",
        meaning="micrograph that the image comes from",
        relion=("rlnMicrographName",),
    ),
    Variable(
        name="micrograph_x_px",
        dtype="f8",
        unit="px",
        meaning="centre of the particle in its micrograph, to the right, first pixel 0",
        relion=("rlnCoordinateX",),
    ),
    Variable(
        name="micrograph_y_px",
        dtype="f8",
        unit="px",
        meaning="centre of the particle in its micrograph, downwards, first pixel 0",
        relion=("rlnCoordinateY",),
    ),
    Variable(
        name="pick_score",
        dtype="f8",
        unit="",
        meaning="figure of merit of the pick, higher is surer",
        relion=("rlnAutopickFigureOfMerit",),
    ),
    Variable(
        name="defocus_u_A",
        dtype="f8",
        unit="Å",
        meaning="defocus along the major axis, positive is underfocus",
        relion=("rlnDefocusU",),
    ),
    Variable(
        name="defocus_v_A",
        dtype="f8",
        unit="Å",
        meaning="defocus along the minor axis, positive is underfocus",
        relion=("rlnDefocusV",),
    ),
    Variable(
        name="astigmatism_deg",
        dtype="f8",
        unit="deg",
        meaning="angle from the x axis to the major axis, counter-clockwise positive",
        relion=("rlnDefocusAngle",),
    ),
    Variable(
        name="phase_shift_deg",
        dtype="f8",
        unit="deg",
        meaning="phase shift of a phase plate, positive delays the scattered wave",
        relion=("rlnPhaseShift",),
    ),
    Variable(
        name="b_factor_A2",
        dtype="f8",
        unit="Å²",
        meaning="B of the CTF's envelope exp(-B k² / 4), positive damps high frequencies",
        relion=("rlnCtfBfactor",),
    ),
    Variable(
        name="rot_deg",
        dtype="f8",
        unit="deg",
        meaning="first of RELION's ZYZ Euler angles, about z",
        relion=("rlnAngleRot",),
    ),
    Variable(
        name="tilt_deg",
        dtype="f8",
        unit="deg",
        meaning="second of RELION's ZYZ Euler angles, about the new y",
        relion=("rlnAngleTilt",),
    ),
    Variable(
        name="psi_deg",
        dtype="f8",
        unit="deg",
        meaning="third of RELION's ZYZ Euler angles, about the new z: in the plane",
        relion=("rlnAnglePsi",),
    ),
    Variable(
        name="shift_x_A",
        dtype="f8",
        unit="Å",
        meaning="translation that centres the particle, positive to the right",
        relion=("rlnOriginXAngst",),
    ),
    Variable(
        name="shift_y_A",
        dtype="f8",
        unit="Å",
        meaning="translation that centres the particle, positive downwards",
        relion=("rlnOriginYAngst",),
    ),
    Variable(
        name="class_id",
        dtype="i8",
        unit="",
        meaning="number of the class, from 1 as in RELION",
        relion=("rlnClassNumber",),
    ),
    Variable(
        name="half_set",
        dtype="i8",
        unit="",
        meaning="random half, 1 or 2",
        relion=("rlnRandomSubset",),
    ),
    Variable(
        name="optics_group",
        dtype="i8",
        unit="",
        meaning="number of the optics group",
        relion=("rlnOpticsGroup",),
    ),
    Variable(
        name="pixel_size_A",
        dtype="f8",
        unit="Å",
        meaning="edge of a pixel of the images",
        relion=("rlnImagePixelSize",),
        optics=True,
    ),
    Variable(
        name="voltage_kV",
        dtype="f8",
        unit="kV",
        meaning="acceleration voltage",
        relion=("rlnVoltage",),
        optics=True,
    ),
    Variable(
        name="spherical_aberration_mm",
        dtype="f8",
        unit="mm",
        meaning="spherical aberration, positive for a round lens",
        relion=("rlnSphericalAberration",),
        optics=True,
    ),
    Variable(
        name="amplitude_contrast",
        dtype="f8",
        unit="",
        meaning="fraction of amplitude contrast, 0 to 1",
        relion=("rlnAmplitudeContrast",),
        optics=True,
    ),
)

# Variables that belong together: the Euler angles of a pose, and the components of a shift.
ANGLES = ("rot_deg", "tilt_deg", "psi_deg")
SHIFTS = ("shift_x_A", "shift_y_A")

BY_NAME: dict[str, Variable] = {v.name: v for v in VARIABLES}


def table() -> str:
    """Return the table as reStructuredText for the documentation page.

    Examples
    --------
    >>> print(table().splitlines()[3].split("|")[1].strip())
    ``image_id``
    """
    rows = [("name", "unit", "meaning", "RELION labels")]
    rows += [(f"``{v.name}``", v.unit, v.meaning, ", ".join(v.relion)) for v in VARIABLES]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    rule = "+" + "+".join("-" * (w + 2) for w in widths) + "+"
    lines = [rule]
    for row in rows:
        lines.append("| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |")
        lines.append(rule.replace("-", "=") if row is rows[0] else rule)
    return "\n".join(lines)
