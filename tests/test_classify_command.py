"""``emdask classify`` writes what `emdask.classify` finds, and says how far to trust it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emdask import classify_command
from emdask.classifiers import classify
from emdask.classify_command import compute_table, open_known, own_classes, parse_view
from emdask.errors import EmdaskError, ParameterError
from emdask.io import open_stack, save_stack, save_volume
from emdask.volumes import build_volume
from tests.command_line import call
from tests.fake_classes import (
    POSES,
    conformations,
    fake_averages,
    fake_table,
    known_images,
)

pytestmark = pytest.mark.usefixtures("no_workers")

KMEANS = ("--method", "kmeans", "--n-classes", 3)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    save_stack(known_images(60), folder / "in.mrcs")
    for letter, volume in zip("abc", conformations(3), strict=True):
        save_volume(volume, folder / f"{letter}.mrc")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What `emdask.classify` was called with; it answers with 40 images in classes, 6 wrong."""
    seen: dict[str, object] = {}

    def answer(stack: xr.DataArray, references: object, method: str, **options: object) -> object:
        seen.update(options, references=references, method=method)
        return fake_table(stack, n_dropped=20, n_wrong=6).chunk()

    monkeypatch.setattr(classify_command, "classify", answer)
    return seen


@pytest.fixture
def averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averages that are not aligned, which are tested elsewhere."""

    def answer(stack: xr.DataArray, table: xr.Dataset, **_: object) -> xr.DataArray:
        return fake_averages(stack.compute(), table).chunk()

    monkeypatch.setattr(classify_command, "class_averages", answer)


def words_of(*names: str) -> list[str]:
    return [word for name in names for word in ("--reference", name)]


def test_classes_are_those_of_the_function(folder):
    code, out, err = call(
        "classify", "in.star", *KMEANS, "--out", "c.csv", "--proportions", "p.csv"
    )
    assert (code, err) == (0, "")
    expected = classify(open_stack("in.star"), method="kmeans", n_classes=3).compute()
    found = pd.read_csv("c.csv")
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_array_equal(found.image_id, np.arange(60))
    shares = pd.read_csv("p.csv", dtype={"class": str}, keep_default_na=False, na_values=[""])
    assert shares["class"].tolist() == ["1", "2", "3", "none"]
    np.testing.assert_allclose(shares.proportion[:3], expected.proportion, atol=1e-6)
    np.testing.assert_allclose(shares.low[:3], expected.proportion_low, atol=1e-6)
    assert shares.n_images.tolist() == [*np.bincount(expected.class_id)[1:], 0]
    lines = [line for line in out.splitlines() if line.strip()]
    assert lines[0].startswith("60 images, kmeans (")
    assert lines[0].endswith("-> c.csv")
    assert lines[1] == "all of them are in one of 3 classes"
    assert lines[2].split() == ["class", "images", "proportion", "error", "95", "%", "interval"]
    assert lines[3].split()[0] == "1"
    assert "for 2" in out
    assert "the best match." in out
    assert lines[-1] == "proportions -> p.csv"


def test_star_file_has_those_in_classes(folder, given):
    words = [*words_of("a.mrc", "b.mrc", "c.mrc"), "--view", "-10,90", "--cone-deg", 12]
    code, out, err = call("classify", "in.star", *words, "--out", "c.star")
    assert (code, err) == (0, "")
    assert given["references"] == ["a.mrc", "b.mrc", "c.mrc"]
    assert (given["method"], given["view"], given["cone_deg"]) == ("two_stage", (-10.0, 90.0), 12.0)
    stack = open_stack("in.star")
    expected = fake_table(stack, n_dropped=20, n_wrong=6)
    kept = np.flatnonzero(expected.class_id.values)
    found = open_stack("c.star")
    np.testing.assert_array_equal(found.image_id, kept)
    np.testing.assert_array_equal(found.class_id, expected.class_id.values[kept])
    np.testing.assert_array_equal(found.values, stack.values[kept])
    for name in POSES:
        np.testing.assert_allclose(found[name], expected[name].values[kept], atol=1e-5)
    lines = out.splitlines()
    said = "40 are in one of 3 classes, 20 in none: c.star leaves those out; --all writes them as"
    assert lines[1] == f"{said} class 0"
    # Six of the forty are wrong, as the classes that the images came with say.
    assert "Class k is taken for the one known by the number k." in out
    plain = [" ".join(line.split()) for line in lines]
    assert "in the right class 85.0 % of 40 images" in plain
    assert "none 20 33.3 % of all" in plain


def test_all_images_go_into_the_star_file_where_asked_for(folder, given):
    code, out, _ = call("classify", "in.star", *words_of("a.mrc"), "--out", "c.star", "--all")
    assert code == 0
    assert out.splitlines()[1].endswith("c.star has all images; those have rlnClassNumber 0")
    found = open_stack("c.star")
    assert (found.class_id.values == 0).sum() == 20
    assert len(found) == 60


def test_some_of_the_images(folder, given):
    code, _, err = call("classify", "in.star", "--images", "7:57", "--out", "c.star")
    assert (code, err) == (0, "")
    found, stack = open_stack("c.star"), open_stack("in.star", images=slice(7, 57))
    kept = np.flatnonzero(fake_table(stack, n_dropped=20, n_wrong=6).class_id.values)
    np.testing.assert_array_equal(found.image_id, kept + 7)
    np.testing.assert_array_equal(found.values, stack.values[kept])


def test_table_of_all_goes_into_a_store(folder, given):
    code, out, err = call("classify", "in.star", "--out", "c.zarr")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].endswith("c.zarr has all images; those have class_id 0")
    expected = fake_table(open_stack("in.star"), n_dropped=20, n_wrong=6)
    with xr.open_zarr("c.zarr", consolidated=False, chunks=None) as found:
        xr.testing.assert_equal(found.load(), expected)


def test_page_shows_images_and_classes(folder, given):
    words = ["in.star", "--out", "c.star", "--report", "r.html", "--bad-pixels", "replace"]
    code, out, err = call("classify", *words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "report -> r.html"
    page = Path("r.html").read_text("utf-8")
    for title in ("Class averages", "Classes found and known", "Images kept and left out"):
        assert f"<h2>{title}</h2>" in page
    assert "principal component 1" in page
    assert "60 images, spread over the stack" in page
    # Poses are known, so that images are averaged by them: all that are in a class.
    counts = np.bincount(fake_table(open_stack("in.star"), n_dropped=20, n_wrong=6).class_id)
    for k in (1, 2, 3):
        assert f"<b>Class {k}</b> {counts[k]} images</figcaption>" in page


def test_page_of_images_that_are_averaged_by_themselves(folder):
    """Neither the method nor the images know poses."""
    stack = open_stack("in.star").drop_vars(POSES)
    pixels = stack.values.copy()
    pixels[7, 3, 2] = np.nan
    save_stack(stack.copy(data=pixels), "plain.mrcs", overwrite=True)
    words = ["plain.star", *KMEANS, "--out", "c.csv", "--report", "r.html"]
    code, out, err = call("classify", *words, "--bad-pixels", "replace")
    assert (code, err) == (0, "")
    page = Path("r.html").read_text("utf-8")
    counts = pd.read_csv("c.csv").class_id.value_counts()
    assert all(f"<b>Class {k}</b> {counts[k]} images</figcaption>" in page for k in (1, 2, 3))
    assert out.splitlines()[-1] == "report -> r.html"


def test_page_where_no_image_is_in_a_class(folder, monkeypatch):
    def answer(stack: xr.DataArray, *_: object, **__: object) -> xr.Dataset:
        table = fake_table(stack, n_dropped=1)
        table["class_id"] = xr.zeros_like(table.class_id)
        return table.chunk()

    monkeypatch.setattr(classify_command, "classify", answer)
    code, out, err = call("classify", "in.star", "--out", "c.csv", "--report", "r.html")
    assert (code, err) == (0, "")
    assert "0 are in one of 3 classes, 60 in none" in out
    assert "No class has an image." in Path("r.html").read_text("utf-8")


@pytest.mark.usefixtures("averaged")
def test_umap_is_asked_for_its_map(folder, given, monkeypatch):
    words = ["in.star", "--out", "c.star", "--report", "r.html", "--embedding", "umap"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, out, err = call("classify", *words)
    assert (code, out) == (2, "")
    assert "needs umap-learn" in err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    answer = SimpleNamespace(fit_transform=lambda components: components[:, :2])
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=lambda **options: answer))
    assert call("classify", *words)[0] == 0
    assert "UMAP coordinate 1" in Path("r.html").read_text("utf-8")


# Known classes


@pytest.fixture(scope="module")
def stack() -> xr.DataArray:
    return known_images(6)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_known_classes_of_a_row_an_image(tmp_path, stack):
    path = write(tmp_path / "t.csv", "class_id,x\n1,9\n2,9\n0,9\n2,9\n1,9\n-1,9\n")
    known = open_known(path, stack)
    assert known.names == ("1", "2")
    assert known.number.tolist() == [1, 2, 0, 2, 1, -1]
    path = write(tmp_path / "t.tsv", "image\tconformation\n" + "1\tb\n2\ta\n" * 3)
    assert open_known(path, stack).number.tolist() == [2, 1] * 3
    text = "data_particles\nloop_\n_rlnImageName\n_rlnClassNumber\n"
    rows = "".join(f"{i}@a.mrcs {i}\n" for i in (3, 1, 2, 3, 3, 3))
    known = open_known(write(tmp_path / "t.star", text + rows), stack)
    assert known.number.tolist() == [3, 1, 2, 3, 3, 3]


def test_known_classes_by_number_of_the_image(tmp_path, stack):
    path = write(tmp_path / "t.csv", "class_id,image_id\n2,5\n1,0\n2,99\n")
    assert open_known(path, stack).number.tolist() == [1, -1, -1, -1, -1, 2]
    path = write(tmp_path / "w.csv", "class,image_id\nopen,5\nnone,0\n")
    known = open_known(path, stack)
    assert known.names == ("open",)
    assert known.number.tolist() == [0, -1, -1, -1, -1, 1]
    text = "data_particles\nloop_\n_rlnParticleId\n_rlnClassNumber\n4 7\n2 3\n"
    known = open_known(write(tmp_path / "t.star", text), stack)
    assert known.number.tolist() == [-1, -1, 1, -1, 2, -1]
    assert known.names == ("3", "7")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", "class_id\n1\n2\n", "must have a row for each of the 6 images; got '2 rows'"),
        ("t.csv", "klass\n1\n", "must have a column class_id or .*; got 'klass'"),
        ("t.csv", "", "the file is empty"),
        ("t.csv", 'class_id\n"1\n2\n', "is no table"),
        ("t.csv", "class_id,image_id\n1,2\n1,2\n", "must have one row an image; got 'several for"),
        ("t.csv", "class_id,image_id\n1,70\n", "has none of these images; got 'image_id 70"),
        ("t.star", "data_a\nloop_\n_rlnVoltage\n300\n", "must have the label rlnClassNumber"),
        ("t.txt", "1\n", r"must end in .star, .csv or .tsv; got '.txt'"),
    ],
)
def test_known_classes_that_do_not_fit_are_refused(tmp_path, stack, name, text, said):
    with pytest.raises(EmdaskError, match=said):
        open_known(write(tmp_path / name, text), stack)


def test_classes_that_images_came_with_are_known(stack):
    assert own_classes(stack).number.tolist() == stack.class_id.values.tolist()
    assert own_classes(stack.drop_vars("class_id")) is None
    same = stack.assign_coords(class_id=("image", [1] * 6))
    assert own_classes(same) is None


def test_truth_of_a_file_goes_before_that_of_the_images(folder, given):
    text = "".join(f"{k}\n" for k in ["x"] * 30 + ["y"] * 30)
    write(folder / "t.csv", f"class\n{text}")
    code, out, _ = call("classify", "in.star", "--out", "c.star", "--truth", "t.csv")
    assert code == 0
    assert "Known classes: t.csv. x is taken for class " in out


# What goes wrong


@pytest.mark.parametrize("text", ["10", "10,", "a,b", "1,2,3", "nan,0", "0,inf", ""])
def test_view_is_two_angles(text):
    with pytest.raises(ParameterError, match="must be ROT,TILT: two angles in degrees, as 0,90"):
        parse_view(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.star"], "none.star"),
        (["in.star", "--view", "10"], "--view: must be ROT,TILT: two angles in degrees"),
        (["in.star", "--view", "0,0"], "references must be given"),
        (["in.star", *KMEANS, "--view", "0,0"], "kmeans: no parameter of this name; got 'view'"),
        (["in.star", *KMEANS, "--reference", "a.mrc"], "takes no references"),
        (["in.star", "--reference", "no.mrc"], "no.mrc: no such file"),
        (["in.star", "--reference", "big.mrc"], "references must have the box of the images"),
        (["in.star", *words_of("a.mrc", "in.mrcs")], "references must be a volume, a list of"),
        (["in.star", *KMEANS, "--n-classes", "0"], "n_classes must be an integer"),
        (["in.star", "--method", "kmean"], "no method of this name; got 'kmean'"),
        (["in.star", *KMEANS, "--n-clases", "2"], "--n-clases"),
        (["in.star", *KMEANS, "--truth", "no.csv"], "no.csv: no such file"),
        (["in.star", *KMEANS, "--truth", "short.csv"], "must have a row for each of the 60 images"),
        (["in.star", *KMEANS, "--proportions", "p.txt"], "p.txt: the name must end in .csv"),
        (["in.star", *KMEANS, "--proportions", "short.csv"], "short.csv: exists already"),
        (["in.star", *KMEANS, "--report", "r.pdf"], "r.pdf: the name must end in .html"),
        (["in.star", *KMEANS, "--report", "no/r.html"], "its folder does not exist"),
        (["in.star", *KMEANS, "--embedding", "tsne"], "must be one of pca, umap; got 'tsne'"),
        (["in.star", *KMEANS, "--device", "gpu"], "device must be one of"),
        (["in.zarr", *KMEANS], "emdask convert in.zarr particles.mrcs"),
        (["tall.mrcs", *KMEANS], "images must be square"),
        (["in.star", *KMEANS, "--out", "c.png"], "c.png: the name must end in .star, .csv or"),
        (["in.star", *KMEANS, "--out", "in.star"], "in.star: is what the images are read from"),
        (["in.star", *KMEANS, "--out", "old.star"], "old.star: exists already"),
        (["in.star", *KMEANS, "--out", "c.csv", "--all"], "only a STAR file can leave images out"),
        (["in.star", *KMEANS, "--out", "c.csv", "--proportions", "c.csv"], "than --out"),
    ],
)
def test_wrong_input_is_a_sentence_and_leaves_nothing(folder, words, said):
    save_volume(build_volume(np.ones((8, 8, 8)), 3.0), "big.mrc")
    save_stack(open_stack("in.star"), "in.zarr")
    save_stack(open_stack("in.star")[:, :20], "tall.mrcs")
    write(folder / "short.csv", "class_id\n1\n")
    write(folder / "old.star", "mine")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    out_word = [] if "--out" in words else ["--out", "c.star"]
    code, out, err = call("classify", *words, *out_word)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_inputs_never_give_way(folder):
    for name in ("in.star", "a.csv"):
        write(folder / "a.csv", "class_id\n" + "1\n2\n" * 30)
        words = ["--truth", "a.csv", "--out", name, "--overwrite"]
        code, _, err = call("classify", "in.star", *KMEANS, *words)
        assert code == 2
        assert f"{name}: is what the images are read from" in " ".join(err.split())
    assert len(open_stack("in.star")) == 60


def test_nan_pixels_name_the_image_and_leave_nothing(folder):
    pixels = open_stack("in.star").values.copy()
    pixels[7, 3, 2] = np.nan
    save_stack(open_stack("in.star").copy(data=pixels), "bad.mrcs")
    words = ["bad.star", *KMEANS, "--out", "c.star"]
    code, out, err = call("classify", *words)
    assert (code, out) == (2, "")
    assert "image 7 has 1 NaN" in err
    assert not (folder / "c.star").exists()
    assert call("classify", *words, "--bad-pixels", "replace")[0] == 0


def test_workers_that_die_are_a_sentence(monkeypatch):
    from distributed import KilledWorker

    def die(*_: object) -> None:
        raise KilledWorker("task", None, 3)

    monkeypatch.setattr(classify_command, "compute_and_follow", die)
    with pytest.raises(EmdaskError, match="worker processes that took it up died"):
        compute_table(xr.Dataset(), None, "kmeans", 5)


def test_help_has_the_options_of_the_method():
    code, out, _ = call("classify", "--help")
    text = " ".join(out.replace("│", " ").split())
    assert code == 0
    for option in ("--reference", "--view ROT,TILT", "--proportions", "--truth", "--all"):
        assert option in text
    assert "Parameters of two_stage" in text
    text = call("classify", "--method", "kmeans", "--help")[1]
    assert "Parameters of kmeans" in text
    assert "--n-classes" in text
