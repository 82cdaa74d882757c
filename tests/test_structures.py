"""Volumes of structures: small ones written here, and the real ones where they are."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from emdask import open_volume, save_volume
from emdask.errors import FormatError, ParameterError
from emdask.kernels.atoms import sample_atoms
from emdask.structures import Motion, volume_from_structure

OPTIONS: dict[str, Any] = {"pixel_size_A": 2.0, "resolution_A": 5.0, "box_px": 32}
# Chain, residue, its name, atom, alternative, element, place: two chains of two residues, a ligand,
# a water, and an atom in two places.
ATOMS = [
    ("A", 1, "ALA", "CA", "", "C", (3.0, 1.0, 0.5)),
    ("A", 2, "GLY", "CA", "", "C", (6.0, -2.0, 1.0)),
    ("A", 2, "GLY", "N", "A", "N", (7.0, -4.0, 2.0)),
    ("A", 2, "GLY", "N", "B", "N", (7.5, -4.5, 2.5)),
    ("B", 1, "SER", "O", "", "O", (-5.0, 5.0, -3.0)),
    ("B", 2, "CYS", "SG", "", "S", (-8.0, 2.0, 4.0)),
    ("A", 90, "HEM", "FE", "", "Fe", (1.0, 9.0, 2.0)),
    ("B", 91, "HOH", "O", "", "O", (0.0, 0.0, 12.0)),
]
KEPT = [atom for atom in ATOMS if atom[2] != "HOH" and atom[4] != "B"]


def make_structure(atoms: list[Any]) -> gemmi.Structure:
    structure = gemmi.Structure()
    model = gemmi.Model(1)
    for name, number, residue_name, atom_name, alternative, element, place in atoms:
        chain = model.find_chain(name) or model.add_chain(gemmi.Chain(name))
        group = [residue for residue in chain if residue.seqid.num == number]
        if not group:
            residue = gemmi.Residue()
            residue.name, residue.seqid = residue_name, gemmi.SeqId(number, " ")
            residue.het_flag = "H" if residue_name in ("HEM", "HOH") else "A"
            group = [chain.add_residue(residue)]
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = (
            atom_name,
            gemmi.Element(element),
            gemmi.Position(*place),
        )
        atom.altloc, atom.occ, atom.b_iso = alternative or "\0", 0.5 if alternative else 1.0, 30.0
        group[0].add_atom(atom)
    structure.add_model(model)
    structure.setup_entities()
    return structure


@pytest.fixture
def pdb(tmp_path: Path) -> Path:
    path = tmp_path / "small.pdb"
    make_structure(ATOMS).write_pdb(str(path))
    return path


def expected(atoms: list[Any], centred_on: list[Any] | None = None, **options: Any) -> np.ndarray:
    """Sample atoms about the centre of mass of some."""
    middle = centred_on or atoms
    weights = [gemmi.Element(atom[5]).weight for atom in middle]
    centre = np.average([atom[6] for atom in middle], axis=0, weights=weights)
    numbers = np.array([gemmi.Element(atom[5]).atomic_number for atom in atoms])
    positions = np.array([atom[6] for atom in atoms]) - centre
    return sample_atoms(positions, numbers, **{**OPTIONS, **options})


def assert_same(volume: Any, truth: np.ndarray) -> None:
    np.testing.assert_allclose(volume, truth, atol=1e-5 * truth.max())


@pytest.mark.parametrize("density", ["electrostatic", "gaussian"])
def test_all_but_waters_and_second_places(pdb: Path, density: str) -> None:
    volume = volume_from_structure(pdb, density=density, **OPTIONS)
    assert volume.dims == ("z", "y", "x")
    assert volume.attrs["pixel_size_A"] == 2.0
    assert_same(volume, expected(KEPT, density=density))
    entry = volume.attrs["provenance"][-1]
    assert entry["step"] == "volume_from_structure"
    assert entry["parameters"]["density"] == density


def test_formats_are_alike(pdb: Path, tmp_path: Path) -> None:
    volume = volume_from_structure(pdb, **OPTIONS)
    make_structure(ATOMS).make_mmcif_document().write_file(str(tmp_path / "small.cif"))
    (tmp_path / "small.pdb.gz").write_bytes(gzip.compress(pdb.read_bytes()))
    for name in ("small.cif", "small.pdb.gz"):
        assert_same(volume_from_structure(tmp_path / name, **OPTIONS), volume.values)


@pytest.mark.parametrize(
    ("choice", "keep"),
    [
        ({"chains": "A"}, lambda atom: atom[0] == "A"),
        ({"chains": ["A", "B"]}, lambda atom: True),
        ({"chains": "B,A", "residues": "2"}, lambda atom: atom[1] == 2),
        ({"residues": "(ALA,SER)"}, lambda atom: atom[2] in ("ALA", "SER")),
        ({"residues": ["1-1", "80-99"]}, lambda atom: atom[1] in (1, 90)),
        ({"selection": "//B/2"}, lambda atom: atom[:2] == ("B", 2)),
        ({"selection": ["//B/2", "//A/1"]}, lambda atom: atom[:2] in (("B", 2), ("A", 1))),
        ({"chains": "A", "selection": "//*/*/N"}, lambda atom: atom[3] == "N"),
        ({"ligands": False}, lambda atom: atom[2] != "HEM"),
    ],
)
def test_choices(pdb: Path, choice: dict[str, Any], keep: Any) -> None:
    atoms = [atom for atom in KEPT if keep(atom)]
    assert_same(volume_from_structure(pdb, **choice, **OPTIONS), expected(atoms))


def test_a_part_turns_about_an_axis_and_the_rest_stays(pdb: Path) -> None:
    motion = Motion(
        selection="//B", axis=(0, 0, 2), angle_deg=90.0, pivot_A=(1, 2, 3), translation_A=(0, 0, 4)
    )
    volume = volume_from_structure(pdb, motion=motion, **OPTIONS)
    # A quarter turn about z takes (x, y) from the axis to (-y, x).
    moved = [
        (*atom[:6], (1 - (atom[6][1] - 2), 2 + (atom[6][0] - 1), atom[6][2] + 4))
        if atom[0] == "B"
        else atom
        for atom in KEPT
    ]
    assert_same(volume, expected(moved, centred_on=KEPT))


def test_motions_follow_one_another(pdb: Path) -> None:
    there = Motion(selection="*", axis=(1, 2, 3), angle_deg=50.0, translation_A=(1, 0, 0))
    back = Motion(selection=["//A", "//B"], axis=(1, 2, 3), angle_deg=-50.0)
    shift = Motion(selection="//*", translation_A=(-1, 0, 0))
    still = volume_from_structure(pdb, **OPTIONS)
    assert_same(volume_from_structure(pdb, motion=[there, back, shift], **OPTIONS), still.values)


def test_without_a_pivot_the_part_turns_about_its_centre_of_mass(pdb: Path) -> None:
    part = [atom for atom in KEPT if atom[0] == "A"]
    weights = [gemmi.Element(atom[5]).weight for atom in part]
    centre = tuple(np.average([atom[6] for atom in part], axis=0, weights=weights))
    volumes = [
        volume_from_structure(
            pdb, motion=Motion(selection="//A", angle_deg=40.0, pivot_A=pivot_A), **OPTIONS
        )
        for pivot_A in (None, centre)
    ]
    assert_same(*[volume.values for volume in volumes])


def test_the_map_lies_over_the_structure(pdb: Path, tmp_path: Path) -> None:
    volume = volume_from_structure(pdb, selection="//B/2", **OPTIONS)
    path = save_volume(volume, tmp_path / "b2.mrc")
    assert open_volume(path).attrs["origin_A"] == pytest.approx([-40.0, -30.0, -28.0])
    z, y, x = np.unravel_index(volume.values.argmax(), volume.shape)
    place = np.array(volume.attrs["origin_A"]) + 2.0 * np.array([x, y, z])
    np.testing.assert_allclose(place, (-8.0, 2.0, 4.0))


def test_the_box_is_chosen_or_checked(pdb: Path) -> None:
    options = {**OPTIONS, "box_px": None}
    least = volume_from_structure(pdb, **options).shape[0]
    assert least % 2 == 0
    assert volume_from_structure(pdb, **{**OPTIONS, "box_px": least}).shape == (least,) * 3
    message = f"box_px must hold a structure that reaches .* Take {least} or more"
    with pytest.raises(ParameterError, match=message):
        volume_from_structure(pdb, **{**OPTIONS, "box_px": least - 2})
    far = Motion(selection="//B", translation_A=(100, 0, 0))
    with pytest.raises(ParameterError, match="box_px must hold"):
        volume_from_structure(pdb, motion=far, **OPTIONS)


def test_an_assembly_is_built(tmp_path: Path) -> None:
    structure = make_structure([atom for atom in KEPT if atom[0] == "B"])
    assembly = gemmi.Assembly("1")
    generator = gemmi.Assembly.Gen()
    generator.chains = ["B"]
    for number, matrix in enumerate(([1, 1, 1], [-1, -1, 1])):
        operator = gemmi.Assembly.Operator()
        operator.name = str(number)
        operator.transform = gemmi.Transform(
            gemmi.Mat33(np.diag(matrix).tolist()), gemmi.Vec3(0, 0, 0)
        )
        generator.operators.append(operator)
    assembly.generators.append(generator)
    structure.assemblies.append(assembly)
    path = tmp_path / "half.pdb"
    structure.write_pdb(str(path))
    half = [atom for atom in KEPT if atom[0] == "B"]
    turned = [(*atom[:6], (-atom[6][0], -atom[6][1], atom[6][2])) for atom in half]
    volume = volume_from_structure(path, assembly="1", **OPTIONS)
    assert_same(volume, expected([*half, *turned]))
    message = r"assembly must be one that the file describes \(1\); got '2'"
    with pytest.raises(ParameterError, match=message):
        volume_from_structure(path, assembly="2", **OPTIONS)


def test_the_file_of_a_volume_says_where_it_comes_from(pdb: Path, tmp_path: Path) -> None:
    motion = Motion(selection=("//B", "//A/1"), angle_deg=10.0)
    volume = volume_from_structure(pdb, chains=("A", "B"), motion=motion, **OPTIONS)
    again = open_volume(save_volume(volume, tmp_path / "v.zarr"))
    parameters = again.attrs["provenance"][-1]["parameters"]
    assert parameters["path"] == str(pdb)
    assert parameters["motion"][0]["selection"] == ["//B", "//A/1"]
    assert parameters["motion"][0]["pivot_A"] is None


def test_atoms_of_no_known_element_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "unknown.pdb"
    make_structure([*KEPT, ("A", 3, "UNK", "XX", "", "X", (1.0, 1.0, 1.0))]).write_pdb(str(path))
    with pytest.raises(FormatError, match=r"1 of the atoms chosen are of no known element\."):
        volume_from_structure(path, **OPTIONS)
    assert_same(volume_from_structure(path, residues=["1-2", "90"], **OPTIONS), expected(KEPT))


def test_files_that_hold_no_structure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pdb: no such file"):
        volume_from_structure(tmp_path / "none.pdb", **OPTIONS)
    (tmp_path / "text.pdb").write_text("REMARK nothing\n")
    with pytest.raises(FormatError, match=r"text\.pdb: there are no atoms in it"):
        volume_from_structure(tmp_path / "text.pdb", **OPTIONS)
    (tmp_path / "text.cif").write_text("nothing\n")
    with pytest.raises(FormatError, match=r"text\.cif: not a structure that gemmi can read"):
        volume_from_structure(tmp_path / "text.cif", **OPTIONS)
    (tmp_path / "text.txt").write_text("nothing\n")
    with pytest.raises(FormatError, match="not a structure that gemmi can read"):
        volume_from_structure(tmp_path / "text.txt", **OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"chains": "Z"},
            "must leave atoms; got ['Z']. Its chains and residues are A (1-90), B",
        ),
        ({"selection": "//A/[["}, "a selection must be in gemmi's syntax"),
        ({"resolution_A": 3.9}, "resolution_A must be at least two voxels, 4 Å; got 3.9."),
        ({"pixel_size_A": 0}, "pixel_size_A must be a number of at least 0.001"),
        ({"density": "mass"}, "density must be one of electrostatic, gaussian; got 'mass'"),
        ({"motion": Motion(selection="//Z")}, "motion: selection must have atoms; got '//Z'"),
    ],
)
def test_wrong_parameters_are_named(pdb: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        volume_from_structure(pdb, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axis": (0, 0, 0)}, "motion: axis must have a direction"),
        ({"axis": (0, 1)}, "motion: axis must be (x, y, z)"),
        ({"pivot_A": (0, 0, np.nan)}, "motion: pivot_A must be a number; got nan"),
        ({"angle_deg": "90"}, "motion: angle_deg must be a number; got '90'"),
    ],
)
def test_motions_check_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(message)):
        Motion(selection="//A", **options)
