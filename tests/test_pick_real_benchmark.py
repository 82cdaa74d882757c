"""The benchmarks of pickers on real micrographs, on small ones made here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from emdask.io import save_volume
from emdask.io.weights import Weights, save_weights
from emdask.phantoms import phantom
from emdask.simulators.micrographs import simulate_micrographs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SUFFIXES = {"betagal_10017": ".jpg", "ribosome_10028": ".png", "apoferritin_10146": ".png"}


@pytest.fixture
def real_picks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS.parent / "examples" / "training"))
    return importlib.import_module("real_picks")


@pytest.fixture
def data(tmp_path: Path, real_picks: ModuleType) -> Path:
    """Micrographs of two of the molecules, and maps."""
    (tmp_path / "maps").mkdir()
    for name, pixel_A in (("betaGal.mrc", 3.54), ("clean70SRibosome_vol_65p.mrc", 5.0)):
        volume = phantom(30, radius_A=60).volume(48, pixel_A)
        save_volume(volume, tmp_path / "maps" / name)
    for of in real_picks.SETS[1:]:
        folder = tmp_path / "picking" / of.folder
        folder.mkdir(parents=True)
        pixel_A = 6.0
        volume = phantom(40, radius_A=0.4 * of.diameter_px * pixel_A, width_A=12.0)
        made, truth = simulate_micrographs(
            volume.volume(72, pixel_A), 2, snr=0.5, size_px=400, n_particles=12, seed=1
        )
        for i in range(2):
            grey = np.clip(128 + 20 * made.images[i].values, 0, 255).astype(np.uint8)
            stem = folder / f"{i}"
            Image.fromarray(grey).save(stem.with_suffix(SUFFIXES[of.folder]))
            places = truth[truth.image_id == i][["x_px", "y_px"]].rename(
                columns={"x_px": "x", "y_px": "y"}
            )
            places.to_csv(stem.with_suffix(".txt"), sep="\t", index=False)
    return tmp_path


def run(name: str, monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *args])
    importlib.import_module(name).main()


def test_sets_that_are_not_there_are_named(real_picks, data):
    there, absent = real_picks.find_sets(data)
    assert [of.name for of in there] == ["ribosome", "apoferritin"]
    assert absent == [
        f"β-galactosidase is left out: no micrographs in {data}/picking/betagal_10017."
    ]


def test_labels_that_are_off_are_matched_with_a_wider_radius(real_picks):
    betagal, ribosome, apoferritin = real_picks.SETS
    assert betagal.radius_px(0.2) == pytest.approx(21.6)
    assert ribosome.radius_px(0.5) == 28.0
    assert (apoferritin.radius_px(0.2), apoferritin.radius_px(0.5)) == (20.0, 31.0)


def test_picks_at_the_labels_are_all_right(real_picks, data):
    pick_real = importlib.import_module("pick_real")
    micrographs = real_picks.SETS[1].open(data)
    picks = micrographs[0].truth().assign(score=1.0)
    found = pick_real.judge(picks, micrographs, 0.2, 0.5)
    # The labels of the other micrograph were missed.
    assert found.precision == 1
    assert 0.3 < found.recall < 0.7
    assert pick_real.figures(found)[1] == "1.000"


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A network that has learnt nothing."""
    from emdask.kernels.picker_training import Example, train_network

    example = Example(np.zeros((64, 64), np.float32), np.array([[32.0, 32.0]]))
    weights = Weights(train_network([example], n_steps=1, batch=1))
    return save_weights(weights, tmp_path / "start.safetensors")


def test_cross_molecule_table(real_picks, data, start, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results" / "table.md"
    options = ["--quick", "--start", str(start), "--keep", str(tmp_path / "kept")]
    run("cross_molecule", monkeypatch, str(data), *options, "--out", str(out))
    printed = capsys.readouterr().out
    assert out.read_text("utf-8").splitlines() == printed.rstrip().splitlines()
    assert "| ribosome + apoferritin | apoferritin | other micrographs | no |" in printed
    assert "| ribosome | apoferritin | no | yes |" in printed
    assert "β-galactosidase is left out" in printed
    # Both radii: of no molecule four rows, of one three, of two two.
    assert sum(line.startswith("|") for line in printed.splitlines()) == 2 * (2 + 4 + 2 * 3 + 2)
    kept = {path.stem for path in (tmp_path / "kept").iterdir()}
    assert {"ribosome_10028-0", "ribosome_10028+apoferritin_10146-1"} < kept


def test_leave_one_out_table(real_picks, data, start, tmp_path, monkeypatch, capsys):
    out = tmp_path / "table.md"
    options = ["--quick", "--start", str(start), "--keep", str(tmp_path / "kept")]
    run("leave_one_out", monkeypatch, str(data), *options, "--only", "ribosome", "--out", str(out))
    printed = capsys.readouterr().out
    assert out.read_text("utf-8").splitlines() == printed.rstrip().splitlines()
    # Two methods at two radii, and on two micrographs.
    rows = [line for line in printed.splitlines() if line.startswith("| ribosome")]
    assert len(rows) == 4 + 4
    assert "| ribosome | 1 | 12 | cnn |" in printed
    kept = sorted(path.stem for path in (tmp_path / "kept").iterdir())
    assert kept == ["ribosome_10028-but-0", "ribosome_10028-but-1"]
