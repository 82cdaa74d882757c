"""Checks of what is given on the command line, for the benchmarks of this folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emdask.cli import error_text
from emdask.errors import EmdaskError

QUICK = "--quick: shows that the benchmark runs; these figures mean nothing."


def parse_count(text: str) -> int:
    """Turn the text of an option into an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1; got {text!r}")
    return int(text)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """End with a sentence and exit code 2 where the input is wrong."""
    try:
        yield
    except (EmdaskError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error_text(error)}", file=sys.stderr)
        sys.exit(2)
