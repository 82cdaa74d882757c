"""What the terminal sees: a bar, what workers log, interrupts."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import emdask
from emdask.console import connect_quietly
from emdask.io import save_stack
from emdask.phantoms import phantom
from emdask.simulators import simulate

PLUGIN = """
import logging
from dataclasses import dataclass
from emdask.method import Method


@dataclass(frozen=True, kw_only=True)
class Params:
    pass


def say(images, params):
    logging.getLogger("emdask").info("said by a worker")
    return images.astype("f4")


def die(images, params):
    import os

    os._exit(1)


"""
# Ctrl-C is heard even where the tests themselves run in the background, deaf to it.
COMMAND = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from emdask.cli import main; main()",
]


@pytest.fixture(scope="module")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of another package: one that logs, one that kills its worker."""
    folder = tmp_path_factory.mktemp("plugin")
    names = {"say": "saying", "die": "dying"}
    for name, module in names.items():
        method = f"METHOD = Method(params=Params, apply={{'cpu': {name}}})\n"
        (folder / f"{module}.py").write_text(PLUGIN + method)
    info = folder / "saying-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saying\nVersion: 1.0\n")
    entries = "".join(f"{name} = {module}:METHOD\n" for name, module in names.items())
    (info / "entry_points.txt").write_text(f"[emdask.denoisers]\n{entries}")
    save_stack(np.ones((4, 8, 8), "f4"), folder / "in.zarr")
    return folder


def start_in_terminal(folder: Path, words: list[str], cwd: Path) -> tuple[subprocess.Popen, int]:
    """Run a command whose stderr is a terminal."""
    ours, its = pty.openpty()
    environment = os.environ | {"PYTHONPATH": str(folder), "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(
        [*COMMAND, *words],
        env=environment,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=its,
        start_new_session=True,
    )
    os.close(its)
    return process, ours


def read_all(ours: int) -> str:
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return b"".join(parts).decode()


def test_a_terminal_shows_bar_dashboard_and_what_workers_log_once(plugin_folder, tmp_path):
    words = ["denoise", str(plugin_folder / "in.zarr"), "out.zarr", "--method", "say"]
    process, ours = start_in_terminal(plugin_folder, [*words, "--workers", "1"], tmp_path)
    seen = read_all(ours)
    assert process.wait(60) == 0, seen
    assert seen.count("said by a worker") == 1
    assert "127.0.0.1" in seen
    assert "4 of 4 images" in seen


def test_a_terminal_shows_how_many_images_are_added_up(tmp_path):
    volume = phantom(8, radius_A=20, width_A=8.0).volume(16, 4.0)
    save_stack(simulate(volume, 40, snr=1).images, tmp_path / "in.zarr")
    words = ["reconstruct", "in.zarr", "map.mrc", "--workers", "1", "--mask", "none"]
    process, ours = start_in_terminal(tmp_path, words, tmp_path)
    seen = read_all(ours)
    assert process.wait(60) == 0, seen
    assert "direct_fourier" in seen
    assert "40 of 40 images" in seen
    assert "127.0.0.1" in seen


def test_ctrl_c_while_workers_start_is_not_lost(plugin_folder, tmp_path):
    words = ["denoise", str(plugin_folder / "in.zarr"), "out.zarr", "--method", "say"]
    process, ours = start_in_terminal(plugin_folder, words, tmp_path)
    # Workers are being started as soon as there is a child process.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    tasks = children.parent.parent
    if not children.exists():
        pytest.skip("this system does not tell a process's children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any((task / "children").read_text() for task in tasks.iterdir()):
            break
    os.killpg(process.pid, signal.SIGINT)
    seen = read_all(ours)
    assert process.wait(60) == 130, seen
    assert "Traceback" not in seen
    assert f"Go on with: emdask {' '.join(words)} --resume" in " ".join(seen.split())
    assert not (tmp_path / "out.zarr").exists()


def test_a_method_that_kills_workers_is_told_in_a_sentence(plugin_folder, tmp_path):
    words = ["denoise", str(plugin_folder / "in.zarr"), "out.zarr", "--method", "die"]
    environment = os.environ | {
        "PYTHONPATH": str(plugin_folder),
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    done = subprocess.run(
        [*COMMAND, *words, "--workers", "1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "died, again and again" in done.stderr
    assert "--resume" in done.stderr


def test_a_scheduler_without_workers_is_told(capsys):
    from distributed import LocalCluster

    with (
        LocalCluster(
            n_workers=0, dashboard_address="127.0.0.1:0", processes=False, protocol="tcp"
        ) as all_,
        connect_quietly(all_.scheduler_address),
    ):
        assert "has no workers yet" in capsys.readouterr().err
        assert emdask.__version__
