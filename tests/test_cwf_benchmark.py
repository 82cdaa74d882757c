"""The benchmark of covariance Wiener filtering runs; what it computes is checked."""

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

from emdask.errors import MissingLibraryError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
# Stands for ASPIRE: gives back what it was given, and the defoci by their sign.
PEER = """#!{python}
import json, sys
import numpy as np
command, source, target = sys.argv[2:]
given = np.load(source)
assert command == "denoise" and given["noisy"].dtype == np.float32
assert np.isclose(given["noisy"].var(), given["noise_variance"], rtol=0.5)
np.save(target, given["noisy"] * (2 if "defocus_A" in given else 1))
print("what a library may print")
print(json.dumps({{"setup": 1.0, "learn": 2.0, "apply": 3.0}}))
"""


@pytest.fixture
def cwf(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("benchmark_cwf", BENCHMARKS / "cwf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """A Python that runs the peer."""
    path = tmp_path / "python"
    path.write_text(PEER.format(python=sys.executable))
    path.chmod(0o755)
    return path


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_errors_are_those_of_less_noise_and_of_the_truth(cwf: ModuleType) -> None:
    lines = cwf.error_lines(cwf.parse_arguments(["--quick"]))
    assert lines[0] == "relMSE, projections of a phantom, 32 px"
    head, rows = cells(lines[2]), [cells(line) for line in lines[4:]]
    assert [row[:3] for row in rows] == [
        [ctf, "40", snr] for ctf in ("no", "yes") for snr in ("1", "0.2")
    ]
    ours, told, peers = (head.index(name) for name in ("emdask", "told the truth", "ASPIRE"))
    for row in rows:
        assert float(row[told]) < float(row[ours]) < 0.2
        assert row[peers] == ""
    for one, noisier in zip(rows[::2], rows[1::2], strict=True):
        assert float(one[ours]) < float(noisier[ours])


def test_times_of_ours_and_of_a_peer(cwf: ModuleType, peer: Path) -> None:
    options = cwf.parse_arguments(["--quick", "--peer", str(peer)])
    lines = cwf.time_lines(options, (1, True))
    assert lines[0] == "40 images of 32 px, CTF, SNR 0.1, one thread"
    ours, theirs = (cells(line) for line in lines[4:6])
    assert ours[0] == "emdask"
    assert float(ours[4]) > 0
    assert theirs[:5] == ["ASPIRE", "1.00", "2.00", "3.00", "5.00"]
    assert lines[7].startswith("ASPIRE / emdask, learn and apply: ")
    stages = {row[0]: float(row[1]) for row in map(cells, lines[11:])}
    assert [*stages] == [*cwf.STAGES, "all else"]
    assert sum(stages.values()) > 0


def test_times_on_the_stand_in_for_a_card(cwf: ModuleType, cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    lines = cwf.time_lines(cwf.parse_arguments(["--quick", "--device", "cuda"]), (1, True))
    on_card = cells(lines[4])
    options = cwf.parse_arguments(["--quick"])
    assert cells(lines[2])[1] == "setup, s"
    assert float(on_card[-1]) == pytest.approx(
        float(cells(cwf.time_lines(options, (1, True))[4])[-1]), abs=2e-4
    )


@pytest.mark.parametrize("with_ctf", [False, True])
def test_a_peer_gets_the_same_images_under_its_own_sign(
    cwf: ModuleType, peer: Path, with_ctf: bool
) -> None:
    noisy = cwf.add_noise(cwf.project_phantom(16, 5, with_ctf), 0.1)
    found, seconds = cwf.filter_by_peer(noisy, peer)
    np.testing.assert_array_equal(found, noisy.images * (-2 if with_ctf else 1))
    assert seconds.whole == 5


def test_a_peer_that_is_not_there_is_a_sentence(cwf: ModuleType) -> None:
    noisy = cwf.add_noise(cwf.project_phantom(16, 2, with_ctf=False), 1.0)
    with pytest.raises(MissingLibraryError, match=r"ASPIRE cannot be run by .*aspire"):
        cwf.filter_by_peer(noisy, Path(sys.executable))


def test_prepared_projections_are_white_on_dark(cwf: ModuleType, tmp_path: Path) -> None:
    made = cwf.project_phantom(16, 6, with_ctf=True)
    given = made._asdict() | {"seen": -made.seen}
    np.savez(tmp_path / "projections_ctf_n6.npz", **given)
    options = cwf.parse_arguments([str(tmp_path)])
    read = cwf.load_sample(options, 6, with_ctf=True)
    for name, value in made._asdict().items():
        np.testing.assert_array_equal(getattr(read, name), value)


def test_noise_has_the_variance_that_is_told(cwf: ModuleType) -> None:
    sample = cwf.project_phantom(32, 40, with_ctf=False)
    noisy = cwf.add_noise(sample, 0.2)
    assert noisy.noise_variance == pytest.approx(5 * np.mean(sample.seen**2), rel=1e-5)
    assert np.var(noisy.images - sample.seen) == pytest.approx(noisy.noise_variance, rel=0.02)


def test_streaming_tells_memory_time_and_error(cwf: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "cwf.py"), "--quick", "--measure-stream", "60"]
    command += ["--folder", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    found = cwf.Streamed(**json.loads(run.stdout))
    assert 50 < found.memory_before <= found.memory_learn <= found.memory_apply < 2000
    assert min(found.simulate, found.learn, found.apply, found.clock) > 0
    assert 0.01 < found.error < 0.5
    assert not list(tmp_path.iterdir())
