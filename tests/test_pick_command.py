"""``emdask pick`` writes what `emdask.pick` finds, where other programs read it."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from emdask.errors import EmdaskError
from emdask.io import open_picks, open_stack, save_picks, save_stack
from emdask.jobs import paths_text
from emdask.pick_command import compute_picks, describe_picks, open_known
from emdask.pickers import pick
from emdask.picks import NAMES
from emdask.stack import build_stack
from tests import fake_micrographs
from tests.command_line import call
from tests.fake_micrographs import CENTRES, DIAMETER_PX, known_picks, write_micrographs

NUMBERED = ("000001@a.mrcs", "000002@a.mrcs", "b.mrcs")


pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_micrographs(folder)
    save_picks(known_picks(), folder / "truth.csv")
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call_log(*words: object) -> tuple[int, str, str]:
    return call("pick", *fake_micrographs.NAMES, *words, "--method", "log")


def expected_picks(**options: object) -> pd.DataFrame:
    stack = open_stack([*fake_micrographs.NAMES])
    return pick(stack, "log", **({"diameter_px": DIAMETER_PX} | options)).compute()


def assert_same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert found.micrograph.tolist() == expected.micrograph.tolist()
    columns = ["x_px", "y_px", "score"]
    np.testing.assert_allclose(found[columns], expected[columns], atol=1e-4)


def test_coordinates_are_those_of_the_function(folder):
    code, _, err = call_log("picked", "--diameter-px", DIAMETER_PX)
    assert (code, err) == (0, "")
    expected = expected_picks()
    found = open_picks("picked")
    assert_same(found, expected)
    assert found.attrs[NAMES] == fake_micrographs.NAMES
    files = sorted(path.name for path in (folder / "picked").iterdir())
    assert files == ["autopick.star", *(f"m{i}_autopick.star" for i in (1, 2, 3))]
    for name, centres in zip(fake_micrographs.NAMES[::2], CENTRES[::2], strict=True):
        own = found[found.micrograph == name].iloc[: len(centres)]
        far = np.hypot(
            own.x_px.to_numpy()[:, None] - [x for x, _ in centres],
            own.y_px.to_numpy()[:, None] - [y for _, y in centres],
        )
        assert (far.min(axis=1) < 1.5).all()
        assert sorted(far.argmin(axis=1)) == list(range(len(centres)))


def test_lines_say_how_many_where_and_what_is_next(folder):
    code, out, _ = call_log("picked", "--diameter-px", DIAMETER_PX, "--threshold", 6)
    assert code == 0
    found = expected_picks(threshold=6.0)
    assert set(found.micrograph) == {"m1.mrc", "m3.mrc"}
    first, counts, empty, following = out.splitlines()
    assert first.startswith("3 micrographs, log (")
    assert first.endswith(" micrographs/s) -> picked")
    numbers = found.micrograph.value_counts().reindex(fake_micrographs.NAMES, fill_value=0)
    assert counts.startswith(f"{len(found)} particles, {numbers.median():g} a micrograph (median; ")
    assert counts.endswith("with scores of 6 and more")
    assert empty == "no particle in m2.mrc"
    assert following == "Next: emdask extract *.mrc picked particles.mrcs --box-px 30"


@pytest.mark.parametrize(
    ("out", "options"),
    [("a.star", []), ("a.csv", []), ("a", ["--format", "star"]), ("boxes", ["--format", "box"])],
)
def test_formats_hold_the_same_places(folder, out, options):
    code, _, err = call_log(out, "--diameter-px", DIAMETER_PX, *options)
    assert (code, err) == (0, "")
    if options == ["--format", "star"]:
        Path(out).rename("a.star")
        out = "a.star"
    expected, found = expected_picks(), open_picks(out)
    if out == "boxes":
        # Boxes are of one and a half diameters, and know whole pixels alone.
        assert (folder / out / "m1.box").read_text().split()[2:4] == ["30", "30"]
        assert abs(found.x_px - expected.x_px).max() <= 0.5
        assert [Path(name).stem for name in expected.micrograph] == found.micrograph.tolist()
    else:
        assert_same(found, expected)


def test_options_reach_the_function(folder):
    words = ["--diameter-A", 60, "--threshold", 4, "--spacing", 1.5, "--border-px", 45]
    code, _, err = call_log("a.csv", *words, "--contrast", "dark")
    assert (code, err) == (0, "")
    options = {"diameter_px": None, "diameter_A": 60.0, "threshold": 4.0, "spacing": 1.5}
    expected = expected_picks(border_px=45.0, **options)
    assert 0 < len(expected) < len(expected_picks(threshold=4.0))
    assert_same(open_picks("a.csv"), expected)
    assert call_log("b.csv", "--diameter-px", DIAMETER_PX, "--contrast", "light")[0] == 0
    light = open_picks("b.csv")
    assert not np.isclose(light.x_px.iloc[0], open_picks("a.csv").x_px.iloc[0])


def test_defaults_are_those_of_the_function():
    from emdask import cli

    own, verb = inspect.signature(cli.pick).parameters, inspect.signature(pick).parameters
    shared = ("threshold", "spacing", "border_px", "contrast", "device", "bad_pixels", "method")
    for name in shared:
        assert own[name].default == verb[name].default, name


def test_overwriting_is_asked_for(folder):
    words = ["picked", "--diameter-px", DIAMETER_PX]
    assert call_log(*words)[0] == 0
    code, out, err = call_log(*words)
    assert (code, out) == (2, "")
    assert "m1_autopick.star: exists already" in err
    assert call_log(*words, "--overwrite", "--threshold", 6)[0] == 0
    assert_same(open_picks("picked"), expected_picks(threshold=6.0))


def test_nothing_found_is_said_and_written(folder):
    code, out, err = call_log("picked", "--diameter-px", DIAMETER_PX, "--threshold", 1e3)
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("no particle with scores of 1000 and more: are diameter")
    assert "Next" not in out
    found = open_picks("picked")
    assert (len(found), found.attrs[NAMES]) == (0, fake_micrographs.NAMES)


def test_known_particles_judge(folder):
    words = ["--diameter-px", DIAMETER_PX, "--threshold", 6, "--truth", "truth.csv"]
    code, out, err = call_log("picked", *words, "--report", "seen.html")
    assert (code, err) == (0, "")
    header, near, far = (line.split() for line in out.splitlines()[4:7])
    assert header[:4] == ["within", "precision", "recall", "F1"]
    assert near[:2] == ["0.2", "d"]
    assert far[:5] == ["0.5", "d", "1.000", "1.000", "1.000"]
    assert "are of the picks above the threshold alone" in out
    assert "report -> seen.html" in out
    page = (folder / "seen.html").read_text(encoding="utf-8")
    assert "Picks and known particles" in page


def test_truth_that_counts_from_below(folder):
    flipped = known_picks()
    flipped["y_px"] = fake_micrographs.SHAPE[0] - 1 - flipped.y_px
    save_picks(flipped, "flipped.csv")
    words = ["--diameter-px", DIAMETER_PX, "--threshold", 6, "--truth", "flipped.csv"]
    for out, options, recall in (("a", [], "0.000"), ("b", ["--flip-y"], "1.000")):
        far = call_log(out, *words, *options)[1].splitlines()[6].split()
        assert (far[0], far[3]) == ("0.5", recall)


def test_truth_of_some_micrographs_judges_those(folder):
    known = known_picks()
    known = known[known.micrograph == "m3.mrc"].assign(micrograph="elsewhere/m3.tif")
    known.attrs[NAMES] = ("elsewhere/m3.tif", "other.mrc")
    save_picks(known, "some", format="relion")
    stack = open_stack([*fake_micrographs.NAMES])
    found = open_known("some", stack)
    assert found.attrs[NAMES] == ("m3.mrc",)
    assert found.micrograph.tolist() == ["m3.mrc"] * 3


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.mrc", "out", "--diameter-px", 20], "nowhere.mrc"),
        (["*.tif", "out", "--diameter-px", 20], "no file fits this pattern"),
        (["m1.mrc", "out"], "one of diameter_A and diameter_px must be given; got []"),
        (["m1.mrc", "out", "--diameter-px", 20, "--diameter-A", 60], "got [60.0, 20.0]"),
        (["m1.mrc", "out", "--diameter-px", 190], "fit into the micrographs"),
        (["m1.mrc", "out", "--diameter-px", 2], "5 px at least"),
        (["m1.mrc", "out", "--diameter-px", -20], "diameter_px must be a number"),
        (["m1.mrc", "out", "--diameter-px", 20, "--contrast", "grey"], "dark, light"),
        (["m1.mrc", "out", "--diameter-px", 20, "--method", "lag"], "Did you mean log?"),
        (
            ["m1.mrc", "out", "--diameter-px", 20, "--method", "cnn", "--model", "genral"],
            "model must be general, simulated, or a file of weights; got 'genral'",
        ),
        (["m1.mrc", "out.txt", "--diameter-px", 20], "end in .star, .csv or .box"),
        (["m1.mrc", "no/out", "--diameter-px", 20], "its folder does not exist"),
        (["m1.mrc", "m2.mrc", "a.box", "--diameter-px", 20], "holds the picks of one micrograph"),
        (["m1.mrc", "out", "--diameter-px", 20, "--format", "mrc"], "format must be one of"),
        (["m1.mrc", "out", "--diameter-px", 20, "--report", "a.txt"], "must end in .html"),
        (["m1.mrc", "out", "--diameter-px", 20, "--truth", "no.csv"], "no.csv"),
        (["m2.mrc", "out", "--diameter-px", 20, "--truth", "other.csv"], "is among those given"),
        (["m1.mrc", "out", "--diameter-px", 20, "--bad-pixels", "keep"], "bad_pixels"),
        (["m1.mrc", "small.mrc", "out", "--diameter-px", 20], "all images must have one size"),
        (["short.mrc", "out", "--diameter-px", 20], "truncated"),
        (["nan.mrc", "out", "--diameter-px", 20], "image 0 has 4096 NaN"),
        (["particles.mrcs", "out", "--diameter-px", 20], "picks are made in micrographs"),
        (["unknown.mrc", "out", "--diameter-A", 60], "pixel size of the micrographs is not known"),
    ],
)
def test_bad_input_is_a_sentence(folder, words, said):
    shutil.copy("m1.mrc", "short.mrc")
    truncate(folder / "short.mrc")
    micrographs = {"kind": "micrographs"}
    save_stack(build_stack(np.zeros((1, 64, 64), np.float32), {}, micrographs), "unknown.mrc")
    sized = micrographs | {"pixel_size_A": 3.0}
    save_stack(build_stack(np.zeros((1, 64, 64), np.float32), {}, sized), "small.mrc")
    save_stack(build_stack(np.full((1, 64, 64), np.nan, np.float32), {}, sized), "nan.mrc")
    save_stack(build_stack(np.zeros((9, 64, 64), np.float32), {}, {}), "particles.mrcs")
    Path("other.csv").write_text("micrograph,x_px,y_px\nelse.mrc,1,2\n")
    before = {path.name for path in folder.iterdir()}
    method = [] if "--method" in words else ["--method", "log"]
    code, out, err = call("pick", *words, *method)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert said in " ".join(err.split())
    assert {path.name for path in folder.iterdir()} == before


def test_sections_of_one_file_are_told_apart(folder):
    stack, attrs = open_stack([*fake_micrographs.NAMES]), {"pixel_size_A": 3.0}
    save_stack(build_stack(stack.values[:2], {}, attrs), "a.mrcs")
    save_stack(build_stack(stack.values[2:], {}, attrs), "b.mrcs")
    words = ["--kind", "micrographs", "--method", "log", "--diameter-px", DIAMETER_PX]
    code, _, err = call("pick", "a.mrcs", "b.mrcs", "a.csv", *words)
    assert (code, err) == (0, "")
    names = dict(zip(fake_micrographs.NAMES, NUMBERED, strict=True))
    expected = expected_picks()
    assert_same(open_picks("a.csv"), expected.assign(micrograph=expected.micrograph.map(names)))


def test_the_bar_counts_micrographs_on_a_terminal(folder, monkeypatch):
    """Picks come by partitions from a real client; an error of a task is the one raised."""
    from distributed import Client

    monkeypatch.setattr(Console, "is_terminal", True)
    options = {"diameter_px": DIAMETER_PX}
    stack = open_stack([*fake_micrographs.NAMES], chunks=2)
    seen = []
    words = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with Client(processes=False, **words) as client:
        table = pick(stack, "log", **options)
        found = compute_picks(table, client, None, lambda *counts: seen.append(counts), 3)
        assert seen == [(2, 3), (3, 3)]
        assert_same(found, expected_picks())
        assert found.index.tolist() == list(range(len(found)))
        bad = stack.where(stack.image_id != 1)
        with pytest.raises(EmdaskError, match="1"):
            compute_picks(pick(bad, "log", **options), client, None, lambda *counts: None, 3)


def test_workers_that_die_are_a_sentence():
    from distributed import KilledWorker

    def compute() -> pd.DataFrame:
        raise KilledWorker("pick-log-0", SimpleNamespace(address="tcp://a"), 3)

    table = SimpleNamespace(compute=compute)
    with pytest.raises(EmdaskError, match=r"most often for memory\. .*--workers"):
        compute_picks(table, None, "cpu", lambda *counts: None, 1)


def test_micrographs_without_picks_are_named_in_one_line():
    picks = pd.DataFrame({"micrograph": ["m0"]})
    picks.attrs[NAMES] = tuple(f"m{i}" for i in range(1000))
    *_, line = describe_picks(picks, 0.5)
    assert line == "no particle in m1, m2, m3, m4, m5 and 994 more"


def test_paths_are_named_so_that_a_shell_takes_them(folder):
    assert paths_text([*fake_micrographs.NAMES]) == "*.mrc"
    assert paths_text(["m1.mrc", "m2.mrc"]) == "m1.mrc m2.mrc"
    assert paths_text([f"{i}.mrc" for i in range(9)]) == "MICROGRAPHS..."
    (folder / "a b").mkdir()
    for name in ("1.mrc", "2.mrc"):
        (folder / "a b" / name).touch()
    assert paths_text(["a b/2.mrc", "a b/1.mrc"]) == "'a b'/*.mrc"
    assert paths_text(["*.mrc"]) == "'*.mrc'"
