"""The method of CONTRIBUTING.md is a method: its file and its test are all that it takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"`([\w/]+\.py)`[^`]*?```python\n(.*?)```", re.DOTALL)
# Where the file would lie beside the others.
PLUGIN = """
import emdask.denoisers

emdask.denoisers.__path__.append({folder!r})
"""


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    """Folder of the two files as they are printed."""
    found = dict(CODE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert list(found) == ["emdask/denoisers/diffusion.py", "tests/denoisers/test_diffusion.py"]
    for name, code in found.items():
        (tmp_path / Path(name).parent).mkdir(parents=True)
        (tmp_path / name).write_text(code, encoding="utf-8")
    folder = str(tmp_path / "emdask" / "denoisers")
    (tmp_path / "one_more_method.py").write_text(PLUGIN.format(folder=folder), encoding="utf-8")
    # The fixtures that tests of the project share.
    (tmp_path / "tests" / "conftest.py").symlink_to(ROOT / "tests" / "conftest.py")
    return tmp_path


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    environment = {"PYTHONPATH": f"{folder}:{ROOT}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_printed_method_passes_the_contract_and_its_test(printed: Path) -> None:
    options = ["-q", "-p", "one_more_method", "-p", "no:cacheprovider", "-c", "pyproject.toml"]
    contract = "tests/denoisers/test_contract.py"
    own = str(printed / "tests" / "denoisers" / "test_diffusion.py")
    done = python(printed, "-m", "pytest", *options, "-k", "diffusion", contract, own)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= 25  # type: ignore[union-attr]


def test_the_printed_method_is_listed(printed: Path) -> None:
    code = "import one_more_method; from emdask.cli import main; main()"
    listed = python(printed, "-c", code, "methods").stdout
    assert "diffusion" in listed
    assert "Anisotropic diffusion: grey levels flow" in listed
    options = python(printed, "-c", code, "denoise", "--method", "diffusion", "--help").stdout
    assert "--edge" in options


def test_the_printed_files_keep_the_style(printed: Path) -> None:
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for words in (["check"], ["format", "--check"]):
        done = python(printed, "-m", "ruff", *words, *settings, str(printed / "emdask"))
        assert done.returncode == 0, done.stdout
