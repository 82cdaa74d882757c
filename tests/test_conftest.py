"""A card that is there and not tested makes the run red."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.gpu
@pytest.mark.skipif(SKIPPED, reason="CuPy is not installed")
def test_on_the_card():
    assert 1 + 1 == 2

@pytest.mark.gpu
def test_that_skips_itself():
    pytest.skip("no card")

def test_of_the_host():
    assert True
"""
NVIDIA_SMI = """#!/bin/sh
[ "$1" = "-L" ] && echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)"
"""
RED = "FAILED: a card is here (GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)), but all {} gpu tests"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of tests with this project's conftest, and a machine that has a card."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a card\n")
    command = tmp_path / "bin" / "nvidia-smi"
    command.parent.mkdir()
    command.write_text(NVIDIA_SMI)
    command.chmod(0o755)
    return tmp_path


def run_tests(folder: Path, *words: str, skipped: bool, **environment: str) -> tuple[int, str]:
    (folder / "test_card.py").write_text(TESTS.replace("SKIPPED", str(skipped)))
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    inherited = {name: value for name, value in os.environ.items() if name[:6] != "PYTEST"}
    inherited.pop("CUDA_VISIBLE_DEVICES", None)
    result = subprocess.run(
        command,
        cwd=folder,
        env=inherited | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="the machine has a real card")
@pytest.mark.parametrize("words", [(), ("-n", "1")])
def test_skipping_every_test_of_the_card_is_red(folder: Path, words: tuple[str, ...]) -> None:
    code, said = run_tests(folder, *words, skipped=True)
    assert code == 1, said
    assert RED.format(2) in said
    assert "Run `make gpu`, or hide the card with CUDA_VISIBLE_DEVICES=." in said


def test_one_test_of_the_card_that_ran_is_enough(folder: Path) -> None:
    code, said = run_tests(folder, "-n", "1", skipped=False)
    assert (code, "FAILED" in said) == (0, False), said


def test_a_run_that_selects_none_is_fine(folder: Path) -> None:
    code, said = run_tests(folder, "-m", "not gpu", skipped=True)
    assert (code, "FAILED" in said) == (0, False), said


def test_a_card_can_be_hidden(folder: Path) -> None:
    code, said = run_tests(folder, skipped=True, CUDA_VISIBLE_DEVICES="")
    assert (code, "FAILED" in said) == (0, False), said


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="the machine has a real card")
def test_a_machine_without_a_card_may_skip(folder: Path) -> None:
    (folder / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho no devices; exit 9\n")
    code, said = run_tests(folder, skipped=True)
    assert (code, "FAILED" in said) == (0, False), said
