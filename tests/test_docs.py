"""The documentation builds without a warning, and its pages come from the records."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from emdask import classifiers, denoisers, pickers, reconstructors
from emdask.method import about, find_method, list_methods

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_methods_has_them_all(tmp_path: Path) -> None:
    source = tmp_path / "docs"
    shutil.copytree(DOCS, source, ignore=shutil.ignore_patterns("_build"))
    words = ["-q", "-W", "-b", "text", str(source), str(tmp_path / "built")]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    page = " ".join((tmp_path / "built" / "methods.txt").read_text(encoding="utf-8").split())
    functions = {
        classifiers: "score",
        denoisers: "apply",
        pickers: "score",
        reconstructors: "insert",
    }
    for package, by_device in functions.items():
        family = package.FAMILY
        for name in list_methods(family):
            record = find_method(family, name)
            devices = ", ".join(getattr(record, by_device))
            assert f"{about(record)} Runs on {devices}." in page
            assert f"{family}.{name}.{record.params.__name__}" in page
