"""``emdask simulate`` writes what `emdask.simulate` makes, and all that is true of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emdask.cli import resume_hint
from emdask.io import open_stack, save_volume
from emdask.io.star_text import parse_star
from emdask.phantoms import phantom
from emdask.simulate_command import PICK_LABELS
from emdask.simulate_options import build_ctf, make_phantom, parse_range
from emdask.simulators import simulate
from emdask.simulators.micrographs import simulate_micrographs
from emdask.structures import volume_from_structure
from emdask.volumes import build_volume
from tests.command_line import call

# Two atoms of carbon and one of nitrogen, 10 Å apart.
STRUCTURE = """\
ATOM      1  CA  ALA A   1      10.000  20.000  30.000  1.00  0.00           C
ATOM      2  CA  ALA A   2      20.000  20.000  30.000  1.00  0.00           C
ATOM      3  N   ALA B   1      20.000  30.000  30.000  1.00  0.00           N
"""


pytestmark = pytest.mark.usefixtures("no_workers")


@pytest.fixture
def map_path(tmp_path: Path) -> Path:
    volume = phantom(8, radius_A=20, width_A=6.0).volume(24, 3.0)
    return save_volume(volume, tmp_path / "map.mrc")


def test_options_are_those_of_the_function(map_path):
    folder = map_path.parent
    words = ["--n-images", 5, "--snr", 0.5, "--poses", "cone", "--cone-deg", 20, "--view-deg"]
    words += ["30:60", "--shift-A", 4, "--noise", "coloured", "--seed", 3, "--accuracy", "high"]
    words += ["--defocus-A", "8000:9000", "--astigmatism-A", 200, "--voltage-kV", 200]
    words += ["--clean", folder / "clean.zarr", "--preview", folder / "seen.png"]
    code, out, err = call("simulate", map_path, folder / "out.mrcs", *words)
    assert (code, err) == (0, "")
    expected = simulate(
        map_path,
        5,
        snr=0.5,
        poses="cone",
        cone_deg=20.0,
        view_deg=(30.0, 60.0),
        shifts_A=4.0,
        noise="coloured",
        seed=3,
        accuracy="high",
        ctf={"defocus_A": (8000, 9000), "astigmatism_A": 200, "voltage_kV": 200},
    )
    made = open_stack(folder / "out.star")
    np.testing.assert_array_equal(made.values, expected.images.values)
    clean = open_stack(folder / "clean.zarr")
    np.testing.assert_array_equal(clean.values, expected.clean.values)
    for name in ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "defocus_v_A", "class_id"):
        np.testing.assert_allclose(made[name], expected.images[name], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(clean[name], expected.images[name])
    assert made.attrs["voltage_kV"] == 200
    lines = out.splitlines()
    assert lines[0].startswith("5 images of 24 x 24 pixels of 3 Å (")
    assert lines[0].endswith(f"-> {folder / 'out.mrcs'}")
    assert ", without noise (" in lines[1]
    assert lines[2:] == [f"picture -> {folder / 'seen.png'}"]
    with Image.open(folder / "seen.png") as picture:
        assert picture.width > picture.height


def test_phantoms_are_classes_of_their_own(tmp_path):
    words = ["--box-px", 32, "--pixel-size-A", 4, "--n-images", 6, "--snr", "none", "--seed", 2]
    out = tmp_path / "out.zarr"
    done = call("simulate", "phantom", "phantom", out, *words, "--proportions", "1,3")
    assert done[0] == 0, done
    volumes = [make_phantom(2, 32, 4.0), make_phantom(3, 32, 4.0)]
    expected = simulate(volumes, 6, snr=None, proportions=[1, 3], seed=2).images
    made = open_stack(out)
    np.testing.assert_array_equal(made.values, expected.values)
    np.testing.assert_array_equal(made.class_id, expected.class_id)
    assert made.attrs["pixel_size_A"] == 4


def test_the_phantom_stays_in_its_box_and_is_well_sampled():
    volume = make_phantom(0, None, None)
    assert (volume.shape[0], volume.attrs["pixel_size_A"]) == (128, 2.0)
    shell = np.ones(volume.shape, bool)
    shell[16:-16, 16:-16, 16:-16] = False
    assert float(abs(volume.values[shell]).max()) < 1e-3 * float(volume.max())
    power = abs(np.fft.rfftn(volume.values)) ** 2
    assert power[64].max() < 1e-6 * power[1:].max()


def test_structures_have_the_box_that_all_of_them_need(tmp_path):
    (tmp_path / "a.pdb").write_text(STRUCTURE)
    (tmp_path / "b.ent").write_text("\n".join(STRUCTURE.splitlines()[:2]))
    words = ["--pixel-size-A", 2, "--resolution-A", 5, "--density", "gaussian", "--n-images", 4]
    files = [tmp_path / "a.pdb", tmp_path / "b.ent"]
    done = call("simulate", *files, tmp_path / "o.zarr", *words, "--snr", "none")
    assert done[0] == 0, done
    options = {"pixel_size_A": 2.0, "resolution_A": 5.0, "density": "gaussian"}
    boxes = [volume_from_structure(path, **options).shape[0] for path in files]
    assert boxes[0] > boxes[1]
    made = open_stack(tmp_path / "o.zarr")
    # Half as much again as the larger one needs, and fast to transform.
    assert 1.5 * boxes[0] <= made.shape[1] <= 1.7 * boxes[0]
    volumes = [volume_from_structure(path, box_px=made.shape[1], **options) for path in files]
    expected = simulate(volumes, 4, snr=None).images
    np.testing.assert_array_equal(made.values, expected.values)


def test_chains_and_box_of_a_structure(tmp_path):
    (tmp_path / "a.pdb").write_text(STRUCTURE)
    words = ["--pixel-size-A", 2, "--resolution-A", 5, "--n-images", 2, "--chains", "A"]
    words += ["--box-px", 30, "--snr", 1]
    done = call("simulate", tmp_path / "a.pdb", tmp_path / "o.zarr", *words)
    assert done[0] == 0, done
    options = {"pixel_size_A": 2.0, "resolution_A": 5.0, "chains": "A", "box_px": 30}
    expected = simulate(volume_from_structure(tmp_path / "a.pdb", **options), 2, snr=1).images
    np.testing.assert_array_equal(open_stack(tmp_path / "o.zarr").values, expected.values)


def test_several_ranges_of_defocus_are_groups():
    groups = build_ctf(["8000:9000", "1.5e4"], {"voltage_kV": "200", "b_factor_A2": None})
    assert groups == [
        {"defocus_A": (8000.0, 9000.0), "voltage_kV": 200.0},
        {"defocus_A": 15000.0, "voltage_kV": 200.0},
    ]
    assert build_ctf([], {"voltage_kV": None}) is None
    assert parse_range("--defocus-A", "-5:-2") == (-5.0, -2.0)


def test_micrographs_come_with_their_picks(map_path):
    folder = map_path.parent
    words = ["--micrographs", "--n-images", 2, "--size-px", "128:160", "--n-particles", "2:4"]
    words += ["--snr", 0.3, "--snr-in", "particles", "--ice", 0.5, "--crowding", 0.5, "--seed", 4]
    words += ["--carbon", 1, "--n-crystals", 1, "--min-distance-A", 70, "--defocus-A", 15000]
    words += ["--preview", folder / "seen.png", "--clean", folder / "clean.zarr"]
    code, out, err = call("simulate", map_path, folder / "mics", *words)
    assert (code, err) == (0, "")
    expected, picks = simulate_micrographs(
        map_path,
        2,
        snr=0.3,
        snr_in="particles",
        size_px=(128, 160),
        n_particles=(2, 4),
        min_distance_A=70.0,
        crowding=0.5,
        ice=0.5,
        carbon=1.0,
        n_crystals=1,
        seed=4,
        ctf={"defocus_A": 15000.0},
    )
    made = open_stack(folder / "mics" / "micrographs.star")
    np.testing.assert_array_equal(made.values, expected.images.values)
    clean = open_stack(folder / "clean.zarr")
    np.testing.assert_array_equal(clean.values, expected.clean.values)
    table = parse_star((folder / "mics_picks.star").read_bytes(), "picks")["particles"]
    assert [*table] == [*PICK_LABELS.values()]
    expected_names = [f"mics/{name}" for name in picks.micrograph]
    assert table["rlnMicrographName"].tolist() == expected_names
    assert sorted(set(picks.micrograph)) == sorted(Path(p).name for p in made.micrograph.values)
    np.testing.assert_allclose(table["rlnCoordinateX"], picks.x_px)
    np.testing.assert_allclose(table["rlnCoordinateY"], picks.y_px)
    np.testing.assert_allclose(table["rlnAngleTilt"], picks.tilt_deg)
    assert f"picks of {len(picks)} particles -> {folder / 'mics_picks.star'}" in out.splitlines()
    assert (folder / "seen.png").is_file()
    # Neither the images nor the picks of another seed go by the name of these.
    (folder / "mics_picks.star").rename(folder / "more_picks.star")
    more = ["simulate", map_path, folder / "more.zarr", *words[:9]]
    code, _, err = call(*more)
    assert code == 2
    assert "more_picks.star: exists already" in err
    assert not (folder / "more.zarr").exists()
    assert call(*more, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("out", "names"),
    [
        ("made/m.mrc", ["made/m.mrc"]),
        ("mics", ["mics/micrograph_000000.mrc", "mics/micrograph_000001.mrc"]),
        ("made/m.mrcs", ["000001@made/m.mrcs", "000002@made/m.mrcs"]),
        ("mics.1/", ["mics.1/micrograph_000000.mrc"]),
        ("m.star", ["000001@m.mrcs", "000002@m.mrcs"]),
        ("m.zarr", ["micrograph_000000.mrc", "micrograph_000001.mrc"]),
    ],
)
def test_picks_name_micrographs_as_they_are_saved(map_path, out, names, monkeypatch):
    monkeypatch.chdir(map_path.parent)
    Path("made").mkdir()
    words = ["--n-images", len(names), "--size-px", 64, "--n-particles", 1, "--micrographs"]
    done = call("simulate", map_path, out, *words)
    assert done[0] == 0, done
    path = Path(out).with_name(f"{Path(out).stem}_picks.star")
    table = parse_star(path.read_bytes(), "picks")["particles"]
    assert table["rlnMicrographName"].tolist() == names
    for name in names if not out.endswith(".zarr") else []:
        assert Path(name.rpartition("@")[2]).is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.mrc"], "none.mrc: no such file"),
        (["phantom", "--snr", "low"], "--snr: must be a number, or none for no noise; got 'low'."),
        (["phantom", "--snr", "0"], "simulate: snr must be a number of at least 1e-09"),
        (["phantom", "--poses", "spiral"], "poses must be one of uniform, cone"),
        (["phantom", "--voltage-kV", "200"], "--voltage-kV: goes with --defocus-A"),
        (["phantom", "--defocus-A", "2:1"], "--defocus-A: must be a number, or a range LOW:HIGH"),
        (["phantom", "--defocus-A", "1:2:3"], "--defocus-A: must be a number, or a range"),
        (["phantom", "--defocus-A", "nan"], "--defocus-A: must be a number, or a range"),
        (
            ["phantom", "--defocus-A", "1e4", "--amplitude-contrast", "7"],
            "simulate: amplitude_contrast must lie in [0, 1]; got 7.0.",
        ),
        (["phantom", "--defocus-A", "1e4", "--voltage-kV", "0:300"], "voltage_kV must lie in [1,"),
        (["phantom", "--proportions", "1,2"], "proportions must be 1 numbers"),
        (["phantom", "--proportions", "1;2"], "--proportions: must be numbers with , between"),
        (["phantom", "--resolution-A", "5"], "--resolution-A: goes with structures (.pdb, .cif)"),
        (["phantom", "--chains", "A"], "--chains: goes with structures"),
        (["MAP", "--box-px", "32"], "--box-px: goes with structures and phantom; a map has its"),
        (["MAP", "phantom"], "volumes must have one size"),
        (["phantom", "--box-px", "4"], "simulate: volumes must have at least 8 voxels along"),
        (["zeros.mrc"], "simulate: a volume must not be 0 everywhere."),
        (["a.pdb"], "a.pdb: a structure needs --pixel-size-A."),
        (["a.pdb", "--pixel-size-A", "2"], "a.pdb: a structure needs --resolution-A."),
        (["a.pdb", "--pixel-size-A", "2", "--resolution-A", "5"], "a.pdb: no such file"),
        (["phantom", "--ice", "1"], "--ice: goes with --micrographs; got 1.0."),
        (["phantom", "--micrographs", "--shift-A", "2"], "--shift-A: goes with particle images"),
        (["phantom", "--micrographs", "--size-px", "1:2:3"], "--size-px: must be an integer, or"),
        (["phantom", "--micrographs", "--n-particles", "few"], "--n-particles: must be an integer"),
        (["phantom", "--micrographs", "--snr", "none"], "snr must be a number"),
        (["phantom", "--clean", "OUT"], "--clean: must be another place than OUT"),
        (["phantom", "--clean", "no/such.zarr"], "there is no folder"),
        (["phantom", "--preview", "a.txt"], "a.txt: the name must end in .png"),
        (["phantom", "--device", "gpu"], "device must be one of"),
    ],
)
def test_wrong_input_is_a_sentence_and_leaves_nothing(map_path, words, said, monkeypatch):
    folder = map_path.parent
    monkeypatch.chdir(folder)
    if "zeros.mrc" in words:
        save_volume(build_volume(np.zeros((8, 8, 8)), 3.0), "zeros.mrc")
    before = sorted(folder.iterdir())
    out = "out.zarr"
    words = [{"MAP": str(map_path), "OUT": out}.get(word, word) for word in words]
    n_volumes = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    code, printed, err = call("simulate", *words[:n_volumes], out, *words[n_volumes:])
    assert (code, printed) == (2, "")
    assert said in err
    assert sorted(folder.iterdir()) == before


def test_an_existing_output_is_left_and_an_interrupted_one_can_go_on(tmp_path):
    words = ["simulate", "phantom", tmp_path / "o.zarr", "--box-px", 16, "--n-images", 3]
    assert call(*words)[0] == 0
    code, _, err = call(*words)
    assert code == 2
    assert "already exists" in err
    assert call(*words, "--resume")[0] == 0
    assert call(*words, "--seed", 1, "--overwrite")[0] == 0
    expected = simulate(make_phantom(1, 16, None), 3, snr=0.1, seed=1).images
    np.testing.assert_array_equal(open_stack(tmp_path / "o.zarr").values, expected.values)
    hint = resume_hint(["simulate", "phantom", "o.zarr", "--overwrite"])
    assert hint == "Go on with: emdask simulate phantom o.zarr --resume"


# --- info -----------------------------------------------------------------------------------------


def test_info_of_a_volume(map_path):
    volume = phantom(8, radius_A=20, width_A=6.0).volume(24, 3.0)
    for path in (map_path, save_volume(volume, map_path.with_name("v.zarr"))):
        code, out, err = call("info", path)
        assert (code, err) == (0, "")
        lines = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines() if line}
        assert lines["volume"] == "24 x 24 x 24 voxels, 72 Å on edge"
        assert lines["pixel_size_A"] == "3 Å"
        low, high, mean = float(volume.min()), float(volume.max()), float(volume.mean())
        assert lines["values"].startswith(f"{low:.4g} to {high:.4g}, mean {mean:.4g}, ")
        assert float(lines["sum"]) == pytest.approx(float(volume.sum()), rel=1e-4)


def test_info_of_a_stack_is_that_of_images(map_path):
    assert call("info", map_path, "--kind", "particles")[1].split()[2:4] == ["images", "24"]
    out = map_path.with_name("o.zarr")
    assert call("simulate", "phantom", out, "--box-px", 16, "--n-images", 16)[0] == 0
    assert "16 of 16 x 16 pixels" in call("info", out)[1]
