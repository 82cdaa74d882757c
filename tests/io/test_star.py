"""RELION STAR files: text, meaning, and the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import starfile
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import emdask
from emdask import open_stack
from emdask.errors import FormatError, StackError
from emdask.io.mrc import build_header
from emdask.io.star import find_groups
from emdask.io.star_output import write_star
from emdask.io.star_text import format_star, parse_star
from emdask.stack import FLIPPED_FLAG, build_stack, optics_of


def write_mrcs(path: Path, n: int, first: int = 0, edge: int = 6, size_A: float = 9.0) -> Path:
    """Images whose pixels are all ``first + i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = np.arange(first, first + n, dtype="f4")[:, None, None] * np.ones((edge, edge), "f4")
    path.write_bytes(build_header(images.shape, "f4", size_A) + images.tobytes())
    return path


def numbers(stack: xr.DataArray) -> list[int]:
    return [int(value) for value in stack.compute().values[:, 0, 0]]


NEW = """
# version 30001

data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnImagePixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnImageSize #7
_rlnImageDimensionality #8
_rlnEvenZernike #9
1 first 1.5 300.0 2.7 0.1 6 2 [1.5,2,-3]
2 second 2.5 300.0 2.7 0.1 6 2 [0,0,1]

# version 30001

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnAnglePsi #5
_rlnOriginXAngst #6
_rlnOriginYAngst #7
_rlnClassNumber #8
_rlnNobodyKnows #9
_rlnSerial #10
000003@Extract/a.mrcs m1.mrc 1 10000.1 -30.073301 -8.149219 1.0 2 0.1 007
000001@Extract/b.mrcs m2.mrc 2 0.1e5 0.30000000000000004 1.5 2 3 1e-300 008
000001@Extract/a.mrcs m1.mrc 1 12000 5 0 0 1 -5 009
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_mrcs(tmp_path / "Extract" / "a.mrcs", 4)
    write_mrcs(tmp_path / "Extract" / "b.mrcs", 2, first=10)
    (tmp_path / "Class2D" / "job005").mkdir(parents=True)
    return tmp_path


def test_optics_groups(project: Path) -> None:
    star = project / "Class2D" / "job005" / "run_data.star"
    star.write_text(NEW)
    stack = open_stack(star)
    assert numbers(stack) == [2, 10, 0]
    assert stack.attrs["kind"] == "particles"
    assert stack.attrs["voltage_kV"] == 300.0
    np.testing.assert_array_equal(stack.pixel_size_A, [1.5, 2.5, 1.5])
    np.testing.assert_array_equal(stack.psi_deg, [-30.073301, 0.30000000000000004, 5.0])
    np.testing.assert_array_equal(stack.shift_x_A, [-8.149219, 1.5, 0.0])
    np.testing.assert_array_equal(stack.defocus_u_A, [10000.1, 1e4, 12000.0])
    assert list(stack.micrograph.values) == ["m1.mrc", "m2.mrc", "m1.mrc"]
    assert stack.class_id.dtype == np.int64
    np.testing.assert_array_equal(stack.rlnNobodyKnows, [0.1, 1e-300, -5.0])
    assert list(stack.rlnSerial.values) == ["007", "008", "009"]
    assert stack.rlnImageOriginalName.values[0] == "000003@Extract/a.mrcs"
    json.dumps(stack.attrs)


def test_the_way_back(project: Path) -> None:
    """Nothing is lost or changed, also after a selection, and RELION's own reader agrees."""
    star = project / "particles.star"
    star.write_text(NEW)
    stack = open_stack(star).assign_attrs(provenance=[{"step": "it's", "parameters": {"a": 0.1}}])
    stack = stack.assign_coords(snr=("image", [0.1, 0.2, 0.3]))
    write_mrcs(project / "clean.mrcs", 3)
    write_star(stack, project / "clean.star", [f"{i:06d}@clean.mrcs" for i in (1, 2, 3)])
    again = open_stack(project / "clean.star")
    xr.testing.assert_identical(again.compute(), stack.compute().copy(data=again.values))
    tables = starfile.read(project / "clean.star", always_dict=True)
    assert list(tables["optics"]["rlnOpticsGroupName"]) == ["first", "second"]
    assert list(tables["optics"]["rlnEvenZernike"]) == ["[1.5,2,-3]", "[0,0,1]"]
    assert list(tables["particles"]["rlnImageName"]) == [f"00000{i}@clean.mrcs" for i in (1, 2, 3)]
    assert list(tables["particles"]["rlnAnglePsi"]) == [-30.073301, 0.30000000000000004, 5.0]

    write_star(stack[1:2], project / "one.star", ["000002@clean.mrcs"])
    one = open_stack(project / "one.star")
    assert one.attrs["pixel_size_A"] == 2.5
    assert one.attrs["relion"]["optics"]["rlnOpticsGroup"] == [2]
    assert one.image_id.values.tolist() == [1]


FLAT = """
data_

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnVoltage #3
_rlnMagnification #4
_rlnDetectorPixelSize #5
_rlnOriginX #6
_rlnOriginY #7
2@a.mrcs 1 300 50000 10 1.5 -2
1@a.mrcs 2 300 50000 10 0.0 3
"""


def test_flat_table(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", 2)
    star = tmp_path / "flat.star"
    star.write_text(FLAT)
    stack = open_stack(star)
    assert numbers(stack) == [1, 0]
    assert stack.attrs["pixel_size_A"] == 2.0
    assert stack.attrs["voltage_kV"] == 300.0
    assert list(stack.micrograph.values) == ["1", "2"]
    np.testing.assert_array_equal(stack.shift_x_A, [3.0, 0.0])
    np.testing.assert_array_equal(stack.shift_y_A, [-4.0, 6.0])
    assert "rlnOriginX" not in stack.coords
    write_mrcs(tmp_path / "b.mrcs", 2)
    write_star(stack, tmp_path / "new.star", ["1@b.mrcs", "2@b.mrcs"])
    again = open_stack(tmp_path / "new.star")
    xr.testing.assert_identical(again.compute(), stack.compute().copy(data=again.values))


def test_flat_table_of_two_microscopes(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", 2)
    star = tmp_path / "flat.star"
    star.write_text(FLAT.replace("2 300 50000", "2 200 25000"))
    stack = open_stack(star)
    np.testing.assert_array_equal(stack.voltage_kV, [300.0, 200.0])
    np.testing.assert_array_equal(stack.pixel_size_A, [2.0, 4.0])
    np.testing.assert_array_equal(stack.shift_y_A, [-4.0, 12.0])


def test_pixel_size_of_the_images_where_the_star_has_none(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", 2, size_A=1.25)
    star = tmp_path / "bare.star"
    star.write_text("data_\nloop_\n_rlnImageName\n2@a.mrcs\n1@a.mrcs\n")
    stack = open_stack(star)
    assert numbers(stack) == [1, 0]
    assert stack.attrs["pixel_size_A"] == 1.25
    assert open_stack(star, pixel_size_A=3.0).attrs["pixel_size_A"] == 3.0


def test_micrographs(tmp_path: Path) -> None:
    for i in range(3):
        write_mrcs(tmp_path / "MotionCorr" / f"m{i}.mrc", 1, first=i)
    star = tmp_path / "CtfFind" / "micrographs_ctf.star"
    star.parent.mkdir()
    rows = "".join(f"MotionCorr/m{i}.mrc 1 1000{i}.5\n" for i in (2, 0, 1))
    star.write_text(
        "data_optics\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n"
        "_rlnMicrographOriginalPixelSize\n_rlnMicrographPixelSize\n1 g 0.5 1.0\n\n"
        "data_micrographs\nloop_\n_rlnMicrographName\n_rlnOpticsGroup\n_rlnDefocusU\n" + rows
    )
    stack = open_stack(star)
    assert numbers(stack) == [2, 0, 1]
    assert stack.attrs["kind"] == "micrographs"
    assert stack.attrs["pixel_size_A"] == 1.0
    names = list(stack.micrograph.values)
    assert names == ["MotionCorr/m2.mrc", "MotionCorr/m0.mrc", "MotionCorr/m1.mrc"]
    write_star(stack, tmp_path / "again.star", names)
    again = open_stack(tmp_path / "again.star")
    xr.testing.assert_identical(again.compute(), stack.compute())
    # All in one stack: the names of the micrographs stay beside those of the images.
    write_mrcs(tmp_path / "all.mrcs", 3)
    write_star(stack, tmp_path / "all.star", ["1@all.mrcs", "2@all.mrcs", "3@all.mrcs"])
    again = open_stack(tmp_path / "all.star")
    xr.testing.assert_identical(again.compute(), stack.compute().copy(data=again.values))


def test_other_tables_are_kept(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", 1)
    star = tmp_path / "x.star"
    star.write_text(
        "data_general\n_rlnTomoSubTomosAre2DStacks 1\n_rlnText 'two words'\n\n"
        "data_particles\n\n_rlnImageName 1@a.mrcs\n"
    )
    stack = open_stack(star)
    assert stack.attrs["relion"]["tables"]["general"] == {
        "rlnTomoSubTomosAre2DStacks": [1],
        "rlnText": ["two words"],
    }
    write_star(stack, tmp_path / "y.star", ["1@a.mrcs"])
    assert "_rlnTomoSubTomosAre2DStacks 1\n" in (tmp_path / "y.star").read_text()
    assert open_stack(tmp_path / "y.star").attrs == stack.attrs


def test_an_image_twice_and_shuffled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        write_mrcs(tmp_path / f"{i}.mrcs", 50, first=50 * i)
    order = [int(i) for i in rng.integers(0, 150, 200)]
    rows = "".join(f"{i % 50 + 1}@{i // 50}.mrcs\n" for i in order)
    (tmp_path / "x.star").write_text("data_\nloop_\n_rlnImageName\n" + rows)
    assert numbers(open_stack(tmp_path / "x.star", chunks=64)) == order


BAD = [
    ("data_\nloop_\n_rlnVoltage\n300\n", FormatError, "rlnImageName or rlnMicrographName"),
    ("data_\nloop_\n_rlnMicrographMovieName\na.tif\n", FormatError, "lists movies"),
    ("data_\nloop_\n_rlnImageName\n", FormatError, "at least one row"),
    ("data_\nloop_\n_rlnImageName\n1@b.mrcs\n", FileNotFoundError, r"names b\.mrcs, which"),
    ("data_\nloop_\n_rlnImageName\n3@a.mrcs\n", FormatError, r"row 1 .*a\.mrcs from 1 to 2; got 3"),
    ("data_\nloop_\n_rlnImageName\n1@a.mrcs\n0@a.mrcs\n", FormatError, "row 2 .* got 0"),
    ("data_\nloop_\n_rlnImageName\nx@a.mrcs\n", FormatError, "000001@stack.mrcs"),
    ("data_\nloop_\n_rlnImageName\n1@a.mrcs\n1@big.mrcs\n", StackError, r"big\.mrcs \(8x8\)"),
    ("data_\nloop_\n_rlnImageName\n_rlnVoltage\n1@a.mrcs\n", FormatError, "row 1 must have 2"),
    ("data_\nloop_\n_rlnImageName\n1@a.mrcs 5\n", FormatError, "row 1 must have 1"),
    ("data_\nloop_\n_rlnImageName\n_rlnImageName\n1@a 2@a\n", FormatError, "stands twice"),
    (
        "data_\nloop_\n_rlnImageName\n_rlnDefocusU\n1@a.mrcs few\n",
        FormatError,
        "rlnDefocusU must hold numbers; got 'few'",
    ),
    (
        "data_\nloop_\n_rlnImageName\n_rlnClassNumber\n1@a.mrcs 1.5\n",
        FormatError,
        "rlnClassNumber must hold whole",
    ),
    (
        "data_optics\nloop_\n_rlnOpticsGroup\n1\n\n"
        "data_p\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@a.mrcs 4\n",
        FormatError,
        "rlnOpticsGroup must be one of data_optics",
    ),
    ("no star", FormatError, "not a STAR file"),
    ("data_ x\nnothing", FormatError, "not a STAR file"),
    ("data_\n_rlnImageName\n", FormatError, "one value beside each label"),
]


@pytest.mark.parametrize(("text", "error", "message"), BAD)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    write_mrcs(tmp_path / "a.mrcs", 2)
    write_mrcs(tmp_path / "big.mrcs", 2, edge=8)
    star = tmp_path / "bad.star"
    star.write_text(text)
    with pytest.raises(error, match=message):
        open_stack(star)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    star = tmp_path / "bad.star"
    star.write_bytes(b"data_\nloop_\n_rlnImageName\n\xff\xfe@a.mrcs\n")
    with pytest.raises(FormatError, match="UTF-8"):
        open_stack(star)


def test_truncated_stack(tmp_path: Path) -> None:
    path = write_mrcs(tmp_path / "a.mrcs", 3)
    path.write_bytes(path.read_bytes()[:-4])
    star = tmp_path / "x.star"
    star.write_text("data_\nloop_\n_rlnImageName\n2@a.mrcs\n1@a.mrcs\n")
    assert numbers(open_stack(star)) == [1, 0]
    star.write_text("data_\nloop_\n_rlnImageName\n2@a.mrcs\n3@a.mrcs\n")
    with pytest.raises(FormatError, match="truncated"):
        open_stack(star)


def test_project_folder(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "elsewhere" / "a.mrcs", 1)
    star = tmp_path / "star" / "x.star"
    star.parent.mkdir()
    star.write_text("data_\nloop_\n_rlnImageName\n1@Extract/a.mrcs\n")
    with pytest.raises(FileNotFoundError, match="project_folder="):
        open_stack(star)
    assert numbers(open_stack(star, project_folder=tmp_path / "elsewhere")) == [0]
    with pytest.raises(FileNotFoundError, match="which is not in"):
        open_stack(star, project_folder=tmp_path / "star")


@pytest.mark.parametrize(
    "text",
    [
        "data_p\r\n\r\nloop_\r\n_rlnName\r\n_rlnX\r\n a 1\r\n b 2\r\n",
        "# c\ndata_p # c\nloop_ \n_rlnName #1 \n_rlnX #2 \n# c\n\n a 1 # c\n b 2\n\n",
        "data_p\nloop_\n_rlnName\n_rlnX\n'a' 1\n\"b\" 2",
        "data_p\nloop_\n_rlnName\n_rlnX\n\n  a\t1  \n\t b   2\n \n",
        "data_empty\n\nloop_\n_rlnA\n_rlnB\n\ndata_p\nloop_\n_rlnName\n_rlnX\na 1\nb 2\n",
    ],
)
def test_forms_of_text(text: str) -> None:
    table = parse_star(text.encode(), "x")["p"]
    assert table["rlnName"].tolist() == ["a", "b"]
    assert table["rlnX"].tolist() == [1, 2]


@pytest.mark.parametrize("mark", ["", " # plain no more"])
def test_values_keep_their_form(mark: str) -> None:
    """The same answer from the fast parser and, after a comment, from the slow one."""
    columns = {
        "int": ["1", "-5", "0"],
        "float": ["1.0", "-5", "1e-3"],
        "zeros": ["007", "010", "1"],
        "plus": ["+1", "2", "3"],
        "huge": ["123456789012345678901234567890", "1", "2"],
        "mixed": ["1", "none", "3"],
        "words": ["True", "NA", "null"],
        "nan": ["nan", "inf", "-1.5"],
        "rlnGroupName": ["1", "2", "3"],
    }
    rows = [" ".join(row) + mark for row in zip(*columns.values(), strict=True)]
    labels = [f"_{label}" for label in columns]
    text = "\n".join(["data_p", "loop_", *labels, *rows])
    table = parse_star(text.encode(), "x")["p"]
    assert table["int"].tolist() == [1, -5, 0]
    assert table["float"].tolist() == [1.0, -5.0, 1e-3]
    np.testing.assert_array_equal(table["nan"], [np.nan, np.inf, -1.5])
    for label in ("zeros", "plus", "huge", "mixed", "words", "rlnGroupName"):
        assert table[label].tolist() == columns[label], label


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=8)


@given(
    words=st.lists(WORDS.filter(lambda w: not ("'" in w and '"' in w)), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
)
def test_text_and_numbers_come_back(words: list[str], seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**63, len(words), dtype=np.uint64)
    numbers = np.nan_to_num(bits.view(np.float64), posinf=1.0, neginf=1.0, nan=0.5)
    table: dict[str, Any] = {"aName": np.array(words, object), "number": numbers}
    text = "".join(format_star({"p": table})).encode()
    again = parse_star(text, "x")["p"]
    assert again["aName"].tolist() == words
    np.testing.assert_array_equal(again["number"], numbers)


def test_write_star_is_atomic_and_checks(tmp_path: Path) -> None:
    stack = build_stack(da.zeros((2, 4, 4)), {"micrograph": ["a\nb", "c"]})
    star = tmp_path / "x.star"
    star.write_text("old")
    with pytest.raises(FormatError, match="line break"):
        write_star(stack, star, ["1@a.mrcs", "2@a.mrcs"])
    with pytest.raises(StackError, match="needs 2 names"):
        write_star(stack, star, ["1@a.mrcs"])
    assert star.read_text() == "old"
    assert list(tmp_path.iterdir()) == [star]


def test_groups_that_come_apart_are_numbered_anew(project: Path) -> None:
    star = project / "particles.star"
    star.write_text(NEW)
    stack = open_stack(star).assign_coords(voltage_kV=("image", [300.0, 300.0, 200.0]))
    write_star(stack, project / "y.star", [f"{i}@Extract/a.mrcs" for i in (1, 2, 3)])
    again = open_stack(project / "y.star")
    np.testing.assert_array_equal(again.voltage_kV, [300.0, 300.0, 200.0])
    np.testing.assert_array_equal(again.pixel_size_A, [1.5, 2.5, 1.5])
    assert len(set(again.optics_group.values.tolist())) == 3
    assert again.attrs["relion"]["optics"]["rlnEvenZernike"].count("[1.5,2,-3]") == 2


def test_unknown_values_are_one_optics_group() -> None:
    values = np.array([np.nan, 1.5, np.nan, np.nan])
    first, group_of = find_groups([values, np.array([1, 1, 1, 2])], 4)
    assert len(first) == 3
    assert group_of[0] == group_of[2]
    assert len(set(group_of.tolist())) == 3


@pytest.mark.parametrize("numbers", [["1", "1.5"], ["1", "inf"], ["1", "nan"], ["1", "1e30"]])
def test_an_optics_group_is_a_whole_number(tmp_path: Path, numbers: list[str]) -> None:
    emdask.save_stack(np.ones((2, 4, 4), "f4"), tmp_path / "a.mrcs")
    rows = "".join(f"{i + 1}@a.mrcs {number}\n" for i, number in enumerate(numbers))
    path = tmp_path / "b.star"
    path.write_text(f"data_\nloop_\n_rlnImageName\n_rlnClassNumber\n{rows}")
    with pytest.raises(FormatError, match=r"rlnClassNumber must hold whole numbers; got"):
        emdask.open_stack(path)


def test_an_empty_optics_table_is_a_sentence(tmp_path: Path) -> None:
    emdask.save_stack(np.ones((1, 4, 4), "f4"), tmp_path / "a.mrcs")
    path = tmp_path / "b.star"
    path.write_text(
        "data_optics\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n\n"
        "data_particles\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@a.mrcs 1\n"
    )
    with pytest.raises(FormatError, match="data_optics"):
        emdask.open_stack(path)


# --- What was done about the CTF ------------------------------------------------------------------

OF_MICROSCOPE = {
    "voltage_kV": 300.0,
    "spherical_aberration_mm": 2.7,
    "amplitude_contrast": 0.1,
    "pixel_size_A": 2.0,
}


def with_defocus(**attrs: Any) -> xr.DataArray:
    coords = {
        "defocus_u_A": [1e4, 2e4],
        "defocus_v_A": [1e4, 1.9e4],
        "astigmatism_deg": [0.0, 30.0],
        "half_set": [1, 2],
    }
    return build_stack(da.zeros((2, 8, 8), dtype="f4"), coords, OF_MICROSCOPE | attrs)


def reopened(stack: xr.DataArray, folder: Path) -> xr.DataArray:
    return open_stack(emdask.save_stack(stack, folder / "saved.mrcs").with_suffix(".star"))


def test_images_whose_ctf_is_corrected_are_written_without_it(tmp_path: Path) -> None:
    again = reopened(with_defocus(ctf_state="corrected"), tmp_path)
    assert set(again.coords) & {"defocus_u_A", "defocus_v_A", "astigmatism_deg"} == set()
    assert again.half_set.values.tolist() == [1, 2]
    assert again.attrs["ctf_state"] == "corrected"
    assert again.attrs["voltage_kV"] == 300
    assert optics_of(again) is None
    assert "Defocus" not in (tmp_path / "saved.star").read_text()


@pytest.mark.parametrize("flag", [{}, {"optics": {"rlnOpticsGroup": [1], FLIPPED_FLAG: [0]}}])
def test_phase_flipped_images_are_written_with_the_flag(tmp_path: Path, flag: dict) -> None:
    stack = with_defocus(ctf_state="phase_flipped", **({"relion": flag} if flag else {}))
    stack = stack.assign_coords({FLIPPED_FLAG: ("image", [0, 0])})
    again = reopened(stack, tmp_path)
    assert (starfile.read(tmp_path / "saved.star")["optics"][FLIPPED_FLAG] == 1).all()
    assert FLIPPED_FLAG not in again.coords
    np.testing.assert_array_equal(again.defocus_v_A, stack.defocus_v_A)
    optics = optics_of(again)
    assert optics is not None
    assert optics.phase_flipped
