"""Files: open and save stacks; every other file of this package is one format or one verb."""

from emdask.io.reading import open_stack
from emdask.io.writing import check_target, save_stack

__all__ = ["check_target", "open_stack", "save_stack"]
