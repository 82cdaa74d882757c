"""Volumes of atomic structures: PDB and mmCIF files, read and sampled by gemmi."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.errors import FormatError, ParameterError
from emdask.io.files import check_file
from emdask.kernels.atoms import DENSITIES, gaussian_width, sample_atoms
from emdask.stack import add_provenance
from emdask.volumes import build_volume

Array = npt.NDArray[Any]
Selections = str | Sequence[str]

WHAT = "volume_from_structure"


@dataclass(frozen=True, kw_only=True)
class Motion:
    """A rigid motion of a part of a structure: a rotation about an axis, then a translation.

    Parameters
    ----------
    selection
        Atoms that move, in gemmi's syntax, as ``"//D/3-417"`` (chain D, residues 3 to 417); of
        several selections all atoms.
    axis
        Direction (x, y, z) of the axis, of any length.
    angle_deg
        Angle of the rotation; counterclockwise where the axis points at the viewer.
    pivot_A
        A point (x, y, z) of the axis in Å, in the frame of the file; None is the centre of mass of
        the atoms that move.
    translation_A
        Translation (x, y, z) in Å after the rotation.
    """

    selection: Selections
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    angle_deg: float = 0.0
    pivot_A: tuple[float, float, float] | None = None
    translation_A: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_number("motion", "angle_deg", self.angle_deg)
        for name in ("axis", "pivot_A", "translation_A"):
            value = getattr(self, name)
            if value is None and name == "pivot_A":
                continue
            require(np.shape(value) == (3,), "motion", f"{name} must be (x, y, z)", value)
            for number in value:
                check_number("motion", name, number)
        require(any(self.axis), "motion", "axis must have a direction", self.axis)


def volume_from_structure(
    path: str | os.PathLike[str],
    *,
    pixel_size_A: float,
    resolution_A: float,
    box_px: int | None = None,
    chains: Selections | None = None,
    residues: Selections | None = None,
    selection: Selections | None = None,
    ligands: bool = True,
    assembly: str | None = None,
    density: str = "electrostatic",
    motion: Motion | Sequence[Motion] | None = None,
) -> xr.DataArray:
    """Sample the density of an atomic structure.

    The first model of the file without waters; of alternative conformations the first, at full
    occupancy. The centre of mass of what is selected, before any motion, comes to the centre of the
    box, so that conformations of one structure stay aligned.

    Parameters
    ----------
    path
        PDB or mmCIF file, also ``.gz``.
    pixel_size_A
        Edge of a voxel in Å.
    resolution_A
        Resolution of the map in Å, at least two voxels. Every atom has the B factor ``4
        resolution_A**2``, which lowers amplitudes to 1 / e at it; those of the file are left out.
    box_px
        Edge of the volume; by default the least even one in which the structure can turn.
    chains
        Names of the chains to take, as ``"A,B"`` or ``["A", "B"]``; all by default.
    residues
        Residues to take of these chains in gemmi's syntax, as ``"10-90"`` or ``"(ALA,GLY)"``; of
        several, all that one of them means.
    selection
        Atoms to take, of these chains and residues, in gemmi's syntax, as ``"//A,B/10-90"``; of
        several, all that one of them means.
    ligands
        Whether to take what is no polymer.
    assembly
        Name of the biological assembly to build, as ``"1"``; by default the atoms of the file.
        Copies of a chain get names as ``A1``.
    density
        "electrostatic": what scatters electrons, by the factors of International Tables C, table
        4.3.2.2; a voxel holds a scattering length in Å. "gaussian": one Gaussian an atom; a voxel
        holds an atomic number.
    motion
        Motions of parts, one after the other.

    Returns
    -------
    xarray.DataArray, dims (z, y, x), float32
        With ``origin_A``, the place of its first voxel in the frame of the file: written to a map,
        it lies over the structure.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FormatError
        If it is no structure.
    ParameterError
        If no atom is selected, the box is too small, or a number is out of range.

    Notes
    -----
    The Gaussian has the width ``sqrt(2) / (2 pi) resolution_A`` of molmap in ChimeraX. Atoms are
    sampled so finely that aliasing adds less than 1e-4, and resampled to the voxels in Fourier
    space.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "one.pdb"
    >>> line = "ATOM      1  CA  ALA A   1      10.000  20.000  30.000  1.00  0.00           C"
    >>> _ = path.write_text(line)
    >>> volume = volume_from_structure(
    ...     path, pixel_size_A=2.0, resolution_A=6.0, box_px=16, density="gaussian"
    ... )
    >>> round(float(volume.sum()), 2), [int(i) for i in volume.argmax(...).values()]
    (6.0, [8, 8, 8])
    >>> volume.attrs["origin_A"]
    [-6.0, 4.0, 14.0]
    """
    _check_sizes(pixel_size_A, resolution_A)
    check_choice(WHAT, "density", density, DENSITIES)
    motions = [motion] if isinstance(motion, Motion) else list(motion or ())
    model = _read_model(os.path.expanduser(os.fspath(path)), assembly, ligands)
    chosen = _choose_atoms(model, chains, residues, selection)
    placed_A, numbers, centre_A = _place_atoms(model, chosen, motions)
    if not numbers.all():
        rule = f"{(numbers == 0).sum()} of the atoms chosen are of no known element"
        remedy = "Choose others by chains=, residues= or selection=."
        raise FormatError(sentence(str(path), rule, remedy=remedy))
    box_px = _check_box(box_px, placed_A, pixel_size_A, resolution_A)
    sampled = sample_atoms(
        placed_A,
        numbers,
        resolution_A=resolution_A,
        box_px=box_px,
        pixel_size_A=pixel_size_A,
        density=density,
    )
    origin_A = [float(round(x, 4)) for x in centre_A - box_px // 2 * pixel_size_A]
    parameters = {
        "path": str(path),
        "resolution_A": resolution_A,
        "chains": chains,
        "residues": residues,
        "selection": selection,
        "ligands": ligands,
        "assembly": assembly,
        "density": density,
        "motion": [asdict(one) for one in motions],
    }
    attrs = add_provenance({"origin_A": origin_A}, WHAT, parameters)
    return build_volume(sampled, pixel_size_A, attrs)


def _check_sizes(pixel_size_A: float, resolution_A: float) -> None:
    check_number(WHAT, "pixel_size_A", pixel_size_A, 1e-3)
    check_number(WHAT, "resolution_A", resolution_A, 0)
    rule = f"resolution_A must be at least two voxels, {2 * pixel_size_A:g} Å"
    remedy = "Take smaller voxels, or a coarser resolution."
    require(resolution_A >= 2 * pixel_size_A, WHAT, rule, resolution_A, remedy)


def _read_model(path: str, assembly: str | None, ligands: bool) -> gemmi.Model:
    check_file(path)
    try:
        structure = gemmi.read_structure(path)
    except (RuntimeError, ValueError) as error:
        rule = "not a structure that gemmi can read (PDB or mmCIF)"
        raise FormatError(sentence(path, rule, str(error))) from error
    if not len(structure) or not structure[0].count_atom_sites():
        raise FormatError(sentence(path, "there are no atoms in it"))
    structure.setup_entities()
    model = structure[0]
    if assembly is not None:
        model = _build_assembly(path, structure, assembly)
    if ligands:
        model.remove_waters()
    else:
        model.remove_ligands_and_waters()
    model.remove_alternative_conformations()
    # Selections copy atoms; by their serial numbers they are known again.
    for serial, site in enumerate(model.all()):
        site.atom.serial = serial
    return model


def _build_assembly(path: str, structure: gemmi.Structure, name: str) -> gemmi.Model:
    known = {assembly.name: assembly for assembly in structure.assemblies}
    rule = f"assembly must be one that the file describes ({', '.join(known) or 'none'})"
    require(name in known, path, rule, name)
    naming = gemmi.HowToNameCopiedChain.AddNumber
    return gemmi.make_assembly(known[name], structure[0], naming)


def _choose_atoms(
    model: gemmi.Model,
    chains: Selections | None,
    residues: Selections | None,
    selection: Selections | None,
) -> Array:
    """Mark the atoms that are taken."""
    names = chains if isinstance(chains, str) or chains is None else ",".join(chains)
    parts = [residues] if isinstance(residues, str) or residues is None else residues
    chosen = _find_atoms(model, [f"//{names or '*'}/{part or '*'}" for part in parts])
    if selection is not None:
        chosen &= _find_atoms(model, selection)
    there = ", ".join(f"{chain.name} ({_range(chain)})" for chain in model)
    got = [given for given in (chains, residues, selection) if given is not None]
    remedy = f"Its chains and residues are {there}."
    rule = "chains, residues and selection must leave atoms"
    require(bool(chosen.any()), WHAT, rule, got, remedy)
    return chosen


def _range(chain: gemmi.Chain) -> str:
    numbers = [residue.seqid.num or 0 for residue in chain]
    return f"{min(numbers)}-{max(numbers)}"


def _find_atoms(model: gemmi.Model, selection: Selections) -> Array:
    """Mark the atoms that one of the selections means."""
    found = np.zeros(model.count_atom_sites(), bool)
    for text in [selection] if isinstance(selection, str) else selection:
        try:
            part = gemmi.Selection(text).copy_model_selection(model)
        except RuntimeError as error:
            rule = 'a selection must be in gemmi\'s syntax, as "//A,B/10-90"'
            raise ParameterError(sentence(WHAT, rule, text)) from error
        found[[site.atom.serial for site in part.all()]] = True
    return found


def _place_atoms(
    model: gemmi.Model, chosen: Array, motions: Sequence[Motion]
) -> tuple[Array, Array, Array]:
    """Return positions about the centre of mass at rest, atomic numbers, and that centre; in Å."""
    positions_A, numbers, masses = _list_atoms(model)
    centre_A = np.average(positions_A[chosen], axis=0, weights=masses[chosen])
    for motion in motions:
        moved = _find_atoms(model, motion.selection) & chosen
        require(bool(moved.any()), "motion", "selection must have atoms", motion.selection)
        positions_A[moved] = _move(motion, positions_A[moved], masses[moved])
    return positions_A[chosen] - centre_A, numbers[chosen], centre_A


def _list_atoms(model: gemmi.Model) -> tuple[Array, Array, Array]:
    """Return positions in Å, atomic numbers and masses."""
    atoms = [site.atom for site in model.all()]
    positions_A = np.array([atom.pos.tolist() for atom in atoms])
    numbers = np.array([atom.element.atomic_number for atom in atoms])
    masses = np.array([atom.element.weight for atom in atoms])
    return positions_A, numbers, masses


def _move(motion: Motion, positions_A: Array, masses: Array) -> Array:
    middle_A = np.average(positions_A, axis=0, weights=masses)
    pivot_A = middle_A if motion.pivot_A is None else np.array(motion.pivot_A, np.float64)
    about = positions_A - pivot_A
    axis = np.array(motion.axis, np.float64) / np.linalg.norm(motion.axis)
    angle = math.radians(motion.angle_deg)
    # Rodrigues' formula.
    along = (about @ axis)[:, None] * axis
    turned = along + math.cos(angle) * (about - along) + math.sin(angle) * np.cross(axis, about)
    return np.asarray(turned + pivot_A + np.array(motion.translation_A))


def _check_box(
    box_px: int | None, placed_A: Array, pixel_size_A: float, resolution_A: float
) -> int:
    """Return the edge of the box, in which the structure must be able to turn."""
    radius_A = float(np.linalg.norm(placed_A, axis=1).max())
    reach_A = radius_A + 3 * gaussian_width(resolution_A)
    needed_px = 2 * (math.ceil(reach_A / pixel_size_A) + 1)
    if box_px is None:
        return needed_px
    check_integer(WHAT, "box_px", box_px, 2)
    rule = f"box_px must hold a structure that reaches {radius_A:.0f} Å from its centre as it turns"
    remedy = f"Take {needed_px} or more."
    fits = (box_px - 1) // 2 * pixel_size_A >= reach_A
    require(fits, WHAT, rule, box_px, remedy)
    return int(box_px)
