"""The benchmark of picking runs; what it computes is checked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import MissingLibraryError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# Stands for Topaz: shrinks micrographs by taking every so manieth pixel, and finds the darkest.
PEER = """#!{python}
import sys
from pathlib import Path
import mrcfile, numpy as np
command, *rest = sys.argv[1:]
options = dict(zip(rest[: rest.index("-o") + 2 : 2], rest[1 : rest.index("-o") + 2 : 2]))
files = [Path(path) for path in rest[rest.index("-o") + 2 :]]
assert options["-d"] == "-1" and options["-j"] == "2"
if command == "preprocess":
    step = int(options["-s"])
    Path(options["-o"]).mkdir(exist_ok=True)
    for path in files:
        small = mrcfile.read(path).reshape(mrcfile.read(path).shape[-2:])[::step, ::step]
        mrcfile.write(Path(options["-o"]) / path.name, np.ascontiguousarray(small), overwrite=True)
else:
    assert options["-m"].startswith("resnet")
    lines = ["image_name\\tx_coord\\ty_coord\\tscore"]
    for path in files:
        image = mrcfile.read(path)
        y, x = np.unravel_index(image.argmin(), image.shape)
        scale = int(options["-x"])
        lines.append(f"{{path.stem}}\\t{{x * scale}}\\t{{y * scale}}\\t1.5")
    Path(options["-o"]).write_text("\\n".join(lines) + "\\n")
"""


@pytest.fixture
def pick(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_pick", BENCHMARKS / "pick.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A command that stands for the peer's."""
    path = tmp_path / "topaz"
    path.write_text(PEER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_quality_falls_with_noise_and_is_told_for_a_peer(
    pick: ModuleType, peer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "SNRS", (0.1, 0.02))
    options = pick.parse_arguments(["--quick", "--pickers", "log", "--peer", str(peer)])
    lines = pick.quality_lines(options, "CTF")
    assert lines[0] == "Series 'CTF': a phantom, micrographs for each SNR: 1"
    head, rows = cells(lines[2]), [cells(line) for line in lines[4:]]
    names = [f"Topaz {network}, binned by 8" for network in pick.NETWORKS]
    assert [row[0] for row in rows] == ["log", *names]
    precision = [float(rows[0][head.index(f"SNR {snr:g}: AP")]) for snr in pick.SNRS]
    assert precision[0] > 0.2
    assert precision[0] > precision[-1]
    # One pick of twelve particles at most.
    assert all(float(cell) <= 2 / 13 + 1e-3 for cell in rows[1][1:])


def test_quality_on_the_stand_in_for_a_card(
    pick: ModuleType, cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pick, "SNRS", (0.1,))
    cuda_on_host.strict = True
    here, there = (
        pick.quality_lines(
            pick.parse_arguments(["--quick", "--pickers", "log", "--device", device]), "ice"
        )
        for device in ("cpu", "cuda")
    )
    assert here == there


def test_micrographs_hold_what_they_say(pick: ModuleType) -> None:
    options = pick.parse_arguments(["--quick"])
    plain = pick.simulate(options, pick.Series(None, 0, 0), 0.1, 2)
    faint = pick.simulate(options, pick.Series(None, 0, 90), 0.1, 2)
    assert len(plain.truth) == 2 * pick.QUICK_PARTICLES
    assert plain.diameter_px == pytest.approx(pick.QUICK_DIAMETER_PX, rel=0.1)
    # Lumps are dark, and those of one micrograph are not those of another.
    lumps = plain.stack.values - faint.stack.values
    assert lumps.min() >= -1e-5
    assert lumps.max() > pick.FAINT_DARKNESS
    assert np.abs(lumps[0] - lumps[1]).max() > pick.FAINT_DARKNESS
    # None covers a particle.
    x, y, owner = (faint.truth[name].to_numpy() for name in ("x_px", "y_px", "image_id"))
    assert np.abs(lumps[owner, y.round().astype(int), x.round().astype(int)]).max() < 1e-5


def test_a_map_is_brought_to_the_diameter(pick: ModuleType, tmp_path: Path) -> None:
    volume = emdask.phantom(60, radius_A=70, width_A=(8.0, 12.0)).volume(33, 7.0)
    emdask.save_volume(volume, tmp_path / "map.mrc")
    options = pick.parse_arguments([str(tmp_path / "map.mrc"), "--voxel-A", "7"])
    found = pick.make_volume(options)
    assert pick.measure_diameter(found.values) == pytest.approx(pick.DIAMETER_PX, rel=0.05)
    size_A = found.shape[0] * found.attrs["pixel_size_A"]
    assert size_A == pytest.approx(33 * 7.0)
    # The centre stays: so does the centre of mass about it.
    np.testing.assert_allclose(measure_centre(found), measure_centre(volume), atol=0.3)


def measure_centre(volume: xr.DataArray) -> list[float]:
    """Centre of mass from the centre of the volume, in Å."""
    mass = np.clip(volume.values, 0, None).astype(np.float64)
    voxels = np.arange(len(mass)) - len(mass) // 2
    along = [mass.sum(axes) for axes in ((1, 2), (0, 2), (0, 1))]
    return [float(np.average(voxels, weights=w) * volume.attrs["pixel_size_A"]) for w in along]


def test_times_of_ours_and_of_a_peer(pick: ModuleType, peer: Path) -> None:
    options = pick.parse_arguments(["--quick", "--pickers", "log", "--peer", str(peer)])
    lines = pick.time_lines(options)
    assert lines[0] == "One micrograph of 512 x 512 float32, MRC to coordinates, threads: 2"
    rows = {row[0]: row[1:] for row in map(cells, lines[4:8])}
    peers = "Topaz resnet16_u64, binned by 8"
    assert [*rows] == ["log", *(f"{peers}: {what}" for what in ("preprocess", "extract", "both"))]
    assert all(float(row[0]) > 0.05 and 5 < float(row[3]) < 2000 for row in rows.values())
    both, *apart = (
        float(rows[f"{peers}: {what}"][0]) for what in ("both", "preprocess", "extract")
    )
    assert both == pytest.approx(sum(apart), abs=0.02)
    assert lines[9].startswith(f"{peers} / emdask log: ")
    parts = {row[0]: float(row[1]) for row in map(cells, lines[13:])}
    assert {"import", "standardise", "score", "clean and filter", "write"} < parts.keys()
    assert sum(parts.values()) == pytest.approx(float(rows["log"][0]), abs=0.05)


def test_a_peer_that_is_not_there_is_a_sentence(pick: ModuleType, tmp_path: Path) -> None:
    for command in (["/no/such/topaz"], [sys.executable, "-c", "import sys; sys.exit('broken')"]):
        with pytest.raises(MissingLibraryError, match=r"(topaz|python).* cannot be run: .+"):
            pick.run_process(command)


def test_memory_is_that_of_the_process(pick: ModuleType) -> None:
    held = np.ones(40_000_000)
    command = [sys.executable, "-c", "print(len(b'x' * 50_000_000))"]
    spent, printed = pick.run_process(command)
    assert printed == "50000000"
    assert 50 < spent.memory_MB < 0.5e-6 * held.nbytes


def test_rate_counts_micrographs_of_both_stores(
    pick: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["pick.py", "--quick", "--pickers", "log", "--tables", "rate"]
    command += ["--folder", str(tmp_path), "--out", str(tmp_path / "rate.md")]
    monkeypatch.setattr(sys, "argv", command)
    pick.main()
    lines = (tmp_path / "rate.md").read_text().splitlines()
    at = lines.index("End to end on cpu, log, 512 x 512 float32, workers: 1")
    rows = [cells(line) for line in lines[at + 4 : at + 6]]
    assert [row[:2] for row in rows] == [["Zarr", "2"], ["MRC files", "2"]]
    assert rows[0][-1] == rows[1][-1]
    assert int(rows[0][-1]) > 12
    assert [path.name for path in tmp_path.iterdir()] == ["rate.md"]


def test_parts_that_call_each_other_count_once(pick: ModuleType, tmp_path: Path) -> None:
    sample = pick.simulate(pick.parse_arguments(["--quick"]), pick.SERIES["ice"], 0.1, 1)
    (source,) = pick.write_micrographs(sample.stack, tmp_path / "in")
    target = tmp_path / "picks.csv"
    script = [sys.executable, str(BENCHMARKS / "pick_once.py"), source, target, "log", "48"]
    run = subprocess.run([*map(str, script)], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["cpu_s"].keys() == told["memory_MB"].keys()
    assert min(told["memory_MB"].values()) > 20
    expected = emdask.pick(emdask.open_stack(source), "log", diameter_px=48).compute()
    found = emdask.open_picks(target)
    np.testing.assert_allclose(found["x_px"], expected["x_px"], atol=1e-3)
