"""The commands of ``emdask``, called as a terminal would, without workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

from typer.testing import CliRunner

from emdask.cli import app


@contextlib.contextmanager
def local_threads(*_: object, **__: object) -> Iterator[SimpleNamespace]:
    """Stand for a client: starting workers takes seconds and has its own tests."""
    yield SimpleNamespace(dashboard_link=None)


def call(*words: object) -> tuple[int, str, str]:
    """Return the exit status of a command and what it says on stdout and stderr."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr
