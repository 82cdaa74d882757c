"""Files of coordinates: each format there and back, the origin, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import starfile
from pandas.testing import assert_frame_equal

from emdask import open_picks, save_picks
from emdask.errors import FormatError, ParameterError

NAMES = ["raw a/m 1.mrc", "raw b/m 1.mrc", "empty.mrc", "007.mrc"]


@pytest.fixture
def picks(rng: np.random.Generator) -> pd.DataFrame:
    """Picks of three of four micrographs; two of them share their name."""
    table = pd.DataFrame(
        {
            "micrograph": [NAMES[i] for i in (0, 0, 1, 3, 3, 3)],
            "x_px": rng.uniform(0, 4000, 6),
            "y_px": rng.uniform(0, 4000, 6),
            "score": rng.normal(size=6),
        }
    )
    table.attrs["micrographs"] = tuple(NAMES)
    return table


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert_frame_equal(found, expected.astype({"micrograph": str}), check_exact=True)
    assert found.attrs["micrographs"] == tuple(expected.attrs["micrographs"])


def test_relion_folder_comes_back(picks: pd.DataFrame, tmp_path: Path) -> None:
    folder = save_picks(picks, tmp_path / "Auto Pick")
    assert_same(open_picks(folder), picks)
    assert_same(open_picks(folder / "autopick.star"), picks)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*.star")}
    assert files == {
        "autopick.star",
        "raw a/m 1_autopick.star",
        "raw b/m 1_autopick.star",
        "empty_autopick.star",
        "007_autopick.star",
    }


def test_relion_files_are_what_relion_writes(picks: pd.DataFrame, tmp_path: Path) -> None:
    folder = save_picks(picks, tmp_path / "picked")
    listed = starfile.read(folder / "autopick.star", always_dict=True)["coordinate_files"]
    assert listed.columns.tolist() == ["rlnMicrographName", "rlnMicrographCoordinates"]
    assert listed["rlnMicrographName"].tolist() == NAMES
    assert listed["rlnMicrographCoordinates"][3] == str(folder / "007_autopick.star")
    one = starfile.read(folder / "007_autopick.star")
    assert one.columns.tolist() == [
        "rlnCoordinateX",
        "rlnCoordinateY",
        "rlnClassNumber",
        "rlnAutopickFigureOfMerit",
        "rlnAnglePsi",
    ]
    np.testing.assert_allclose(one["rlnCoordinateX"], picks["x_px"][3:])
    labels = [f"_{label} #{i}" for i, label in enumerate(one.columns, start=1)]
    lines = (folder / "empty_autopick.star").read_text().split("\n")
    assert [line for line in lines if line][1:] == ["data_", "loop_", *labels]


def test_list_finds_files_from_project_and_where_they_moved(
    picks: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "AutoPick").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    save_picks(picks, "AutoPick/job003")
    star = Path("AutoPick/job003/autopick.star")
    assert "AutoPick/job003/007_autopick.star" in star.read_text()
    assert_same(open_picks(star), picks)
    monkeypatch.chdir(tmp_path)
    assert_same(open_picks("project" / star), picks)
    (tmp_path / "project" / "AutoPick" / "job003").rename(tmp_path / "moved")
    assert_same(open_picks("moved/autopick.star"), picks)
    (tmp_path / "moved" / "007_autopick.star").unlink()
    with pytest.raises(FileNotFoundError, match="007_autopick"):
        open_picks("moved")


def test_one_star_file_comes_back(picks: pd.DataFrame, tmp_path: Path) -> None:
    path = save_picks(picks, tmp_path / "picks.star")
    picks.attrs["micrographs"] = (NAMES[0], NAMES[1], NAMES[3])
    assert_same(open_picks(path), picks)
    table = starfile.read(path)
    assert table["rlnMicrographName"].tolist() == picks["micrograph"].tolist()


def test_csv_comes_back(picks: pd.DataFrame, tmp_path: Path) -> None:
    picks["micrograph"] = picks["micrograph"].str.replace("007.mrc", 'a, "b"')
    picks.attrs["micrographs"] = (NAMES[0], NAMES[1], 'a, "b"')
    assert_same(open_picks(save_picks(picks, tmp_path / "picks.csv")), picks)


@pytest.mark.parametrize("box_px", [100, 101])
def test_boxes_come_back_in_whole_pixels(picks: pd.DataFrame, box_px: int, tmp_path: Path) -> None:
    folder = save_picks(picks, tmp_path / "boxes", format="box", box_px=box_px)
    found = open_picks(folder)
    places = np.floor(picks[["x_px", "y_px"]] + 0.5)
    assert sorted(found.attrs["micrographs"]) == ["007", "empty", "raw a/m 1", "raw b/m 1"]
    assert "score" not in found
    for name in NAMES:
        own = found[found["micrograph"] == name[:-4]][["x_px", "y_px"]].to_numpy()
        np.testing.assert_array_equal(own, places[picks["micrograph"] == name])


def test_box_is_its_first_pixel_and_its_sides(tmp_path: Path) -> None:
    """What RELION reads of it: x + width / 2, in whole numbers."""
    picks = pd.DataFrame({"micrograph": ["m.mrc"], "x_px": [100.4], "y_px": [49.5]})
    path = save_picks(picks, tmp_path / "m.box", box_px=21)
    assert path.read_text() == "90\t40\t21\t21\n"
    assert open_picks(path).values.tolist() == [["m", 100, 50]]


def test_picks_without_scores(picks: pd.DataFrame, tmp_path: Path) -> None:
    bare = picks.drop(columns="score")
    for name in ("folder", "one.star", "one.csv"):
        found = open_picks(save_picks(bare, tmp_path / name))
        assert found.columns.tolist() == ["micrograph", "x_px", "y_px"]


def test_no_picks_at_all(picks: pd.DataFrame, tmp_path: Path) -> None:
    nothing = picks[:0]
    for name in ("folder", "one.star", "one.csv", "boxes"):
        options = {"format": "box", "box_px": 8} if name == "boxes" else {}
        found = open_picks(save_picks(nothing, tmp_path / name, **options))
        assert len(found) == 0
        assert found["x_px"].dtype == np.float64
    assert open_picks(tmp_path / "folder").attrs["micrographs"] == tuple(NAMES)


def test_dask_tables_are_saved(picks: pd.DataFrame, tmp_path: Path) -> None:
    dd = pytest.importorskip("dask.dataframe")
    lazy = dd.from_pandas(picks, npartitions=2)
    assert_same(open_picks(save_picks(lazy, tmp_path / "a", micrographs=NAMES)), picks)


def test_y_from_the_last_row(tmp_path: Path) -> None:
    path = tmp_path / "m.txt"
    path.write_text("x\ty\n3\t0\n4\t9.5\n")
    assert open_picks(path)["y_px"].tolist() == [0, 9.5]
    assert open_picks(path, flip_y=True, height_px=100)["y_px"].tolist() == [99, 89.5]
    heights = {"folder/m.mrc": 50, "n.mrc": 8}
    assert open_picks(path, flip_y=True, height_px=heights)["y_px"].tolist() == [49, 39.5]
    with pytest.raises(ParameterError, match="flip_y needs height_px"):
        open_picks(path, flip_y=True)
    with pytest.raises(ParameterError, match=r"height_px must have all micrographs; got \['m'\]"):
        open_picks(path, flip_y=True, height_px={"n.mrc": 8})


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("m.txt", "x\ty\n1\t2\n", ["m", 1, 2]),
        ("m.txt", "1 2\n", ["m", 1, 2]),
        ("m.tsv", "1\t2\t-0.5\n", ["m", 1, 2, -0.5]),
        ("m.txt", "a b\t1\t2\t0.5\n", ["a b", 1, 2, 0.5]),
        ("m.csv", "y,x\n2,1\n", ["m", 1, 2]),
        ("t.txt", "a   1 2\n", ["a", 1, 2]),
        ("t.txt", 'micrograph  x  y\n"a b"  1 \t2 \n', ["a b", 1, 2]),
        ("t.csv", 'micrograph, x, y\n"a, b", 1, 2\n', ["a, b", 1, 2]),
        ("m.csv", "\ufeffmicrograph,x_px,y_px,note\r\n001,1,2,hm\r\n", ["001", 1, 2]),
        ("t.txt", "image_name\tx_coord\ty_coord\tscore\na b\t1\t2\t-3.5\n", ["a b", 1, 2, -3.5]),
        ("m_autopick.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 2\n", ["m", 1, 2]),
        ("m_manualpick.star", "data_\nloop_\n_rlnCoordinateY\n_rlnCoordinateX\n2 1\n", ["m", 1, 2]),
        ("m.box", "-1 0 4 4 -3\n", ["m", 1, 2]),
    ],
)
def test_files_of_other_programs(name: str, text: str, expected: list[Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert open_picks(tmp_path / name).values.tolist() == [expected]
    assert open_picks(tmp_path).values.tolist() == [expected]


def test_particles_star(tmp_path: Path) -> None:
    path = tmp_path / "particles.star"
    path.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n1\n\ndata_particles\n\nloop_\n_rlnImageName\n"
        "_rlnMicrographName\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnAutopickFigureOfMerit\n"
        "1@a.mrcs mics/m.mrc 10.5 20 0.25\n"
    )
    assert open_picks(path).values.tolist() == [["mics/m.mrc", 10.5, 20, 0.25]]


def test_relion_file_without_labels(tmp_path: Path) -> None:
    (tmp_path / "m_autopick.star").write_text("# version 50001\n\ndata_\n\nloop_\n\n")
    found = open_picks(tmp_path / "m_autopick.star")
    assert len(found) == 0
    assert found.attrs["micrographs"] == ("m",)


def test_many_files_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2\n")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.box").write_text("0 0 2 2\n")
    found = open_picks([tmp_path / name for name in ("a.txt", "b.txt", "c.box")])
    assert found.values.tolist() == [["a", 1, 2], ["c", 1, 1]]
    assert found.attrs["micrographs"] == ("a", "b", "c")
    named = open_picks(tmp_path / "a.txt", micrograph="mics/a.mrc")
    assert named["micrograph"].tolist() == ["mics/a.mrc"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "x y\n1 nan\n", "row 1: y_px must be a finite number; got 'nan'"),
        ("m.csv", "x,y\n1,2\n1,b\n", "row 2: y_px must be a finite number; got 'b'"),
        ("m.csv", "a,b\n1,2\n", "must have one column x and one y"),
        ("m.txt", "1\n2\n", "must have one column x and one y"),
        ("m.box", "1 2 3\n", "row 1 must have x, y, width and height of a box; got '1 2 3'"),
        ("m.box", "1 2 a 4\n", "row 1: width must be a finite number"),
        ("m.star", "data_\nloop_\n_rlnVoltage\n300\n", "must have the labels rlnCoordinateX"),
        ("m.star", "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n1 inf\n", "row 1: rlnCoo"),
        (
            "m.star",
            "data_\nloop_\n_rlnImageName\n_rlnCoordinateX\n_rlnCoordinateY\n1@a 1 2\n",
            "particles must have the label rlnMicrographName",
        ),
        ("m.json", "{}", r"suffix must be one of \.star, .*; got 'm\.json'"),
        ("m.csv", "\x00\xff", "must"),
        (
            "m.txt",
            "micrograph x y\nimg 1 10 20\n",
            r"row 1 must have 3 values, as the header has; got 'img 1 10 20'\. Separate .* commas",
        ),
        ("m.csv", "x,y\n1," + "2" * 200_000, r"must be a table of text \(field larger"),
        ("m.csv", "x,y,score\n1,2,3\n1,2\n", "row 2 must have 3 values, as the header has"),
        ("m.txt", "1 2\n1 2 3\n", "row 2 must have 2 values, as the first row has"),
        ("m.txt", "img 1 10 20\n", "name without spaces and x, y; got 'img 1 10 20'"),
        ("m.txt", "1 10 20 0.5\n", "a row must be x, y and perhaps a score, .*got '1 10 20 0.5'"),
        ("m.txt", "an img 10 20\n", "name without spaces and x, y; got 'an img 10 20'"),
        ("m.csv", "m,1,2,3,4\n", "with or without a micrograph's name before them; got 'm 1 2 3 4"),
        ("m.csv", "1,10,20,0.5\n", "with or without a micrograph's name before them"),
    ],
)
def test_bad_files(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=message):
        open_picks(tmp_path / name)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no coordinate files"):
        open_picks(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_picks(tmp_path / "none.star")
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_picks(tmp_path / "none")
    for name in ("one", "two"):
        (tmp_path / f"{name}.star").write_text(
            "data_coordinate_files\nloop_\n_rlnMicrographName\n_rlnMicrographCoordinates\n"
        )
    with pytest.raises(FormatError, match="must have one list of coordinate files"):
        open_picks(tmp_path)
    assert len(open_picks(tmp_path / "one.star")) == 0


def test_scores_in_some_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 0.5\n")
    (tmp_path / "b.txt").write_text("1 2\n")
    with pytest.raises(FormatError, match=r"b\.txt: has no scores, which .*a\.txt has"):
        open_picks(tmp_path)


def test_files_are_not_lost(picks: pd.DataFrame, tmp_path: Path) -> None:
    folder = save_picks(picks, tmp_path / "job")
    (folder / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        save_picks(picks, folder)
    fewer = picks[:2]
    fewer.attrs["micrographs"] = (NAMES[0],)
    save_picks(fewer, folder, overwrite=True)
    assert_same(open_picks(folder), fewer)
    assert (folder / "note.txt").read_text() == "mine"
    assert not list(tmp_path.rglob("*partial*"))
    for name in ("one.star", "one.csv"):
        path = save_picks(picks, tmp_path / name)
        with pytest.raises(FileExistsError, match="exists already"):
            save_picks(picks, path)
        assert save_picks(fewer, path, overwrite=True) == path
        assert len(open_picks(path)) == 2


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["/d/a/m.mrc", "/d/b/m.mrc"], ["a/m", "b/m"]),
        (["/d/a/x/m.mrc", "/d/b/x/m.mrc", "m.mrc"], ["a/x/m", "b/x/m", "m"]),
        (["A/m.mrc", "a/M.mrc"], ["A/m_000001", "a/M_000002"]),
        (["../m.mrc", "..", "\n"], ["m", "image", "_"]),
        (["m.mrc", "m.tif", "m_000001"], ["m_000001", "m_000002", "m_000001_000003"]),
    ],
)
def test_names_of_files(names: list[str], stems: list[str], tmp_path: Path) -> None:
    picks = pd.DataFrame({"micrograph": names, "x_px": range(len(names)), "y_px": 0.0})
    save_picks(picks, tmp_path / "boxes", format="box", box_px=2)
    found = open_picks(tmp_path / "boxes").sort_values("x_px")
    assert found["x_px"].tolist() == [*range(len(names))]
    assert found["micrograph"].tolist() == stems


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("p.mrc", {}, r"must be a folder, or end in \.star, \.csv or \.box; got 'p\.mrc'"),
        ("p.csv", {"format": "xml"}, "format must be one of relion, star, csv, box"),
        ("p", {"format": "box"}, "boxes need box_px"),
        ("p", {"format": "box", "box_px": 0}, "box_px must be an integer of at least 1"),
        ("p.box", {"box_px": 4}, "holds the picks of one micrograph; got '4 micrographs'"),
        ("p", {"micrographs": ["m.mrc"]}, "micrographs must have those of all picks"),
    ],
)
def test_bad_targets(
    target: str, options: dict[str, Any], message: str, picks: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=message):
        save_picks(picks, tmp_path / target, **options)
    assert not list(tmp_path.iterdir())


def test_bad_tables(picks: pd.DataFrame, tmp_path: Path) -> None:
    picks.loc[2, "x_px"] = np.nan
    with pytest.raises(ParameterError, match="row 2 has not"):
        save_picks(picks, tmp_path / "p")
    with pytest.raises(ParameterError, match="It lacks y_px"):
        save_picks(picks.drop(columns="y_px"), tmp_path / "p")
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        save_picks(picks[:2], tmp_path / "no" / "p")


def test_labels_of_real_micrographs(shared_data: Path) -> None:
    labels = open_picks(shared_data / "picking" / "ribosome_10028")
    assert labels.attrs["micrographs"] == tuple(f"{i:03d}_10028" for i in range(61, 66))
    assert labels.columns.tolist() == ["micrograph", "x_px", "y_px"]
    assert labels.iloc[0].tolist() == ["061_10028", 148.0, 52.0]
    assert labels[["x_px", "y_px"]].to_numpy().max() < 1024
