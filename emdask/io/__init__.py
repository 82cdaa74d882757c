"""Files: open and save stacks; every other file of this package is one format or one verb."""

from emdask.io.models import check_model_target, open_model, save_model
from emdask.io.reading import open_stack
from emdask.io.writing import check_target, save_stack

__all__ = [
    "check_model_target",
    "check_target",
    "open_model",
    "open_stack",
    "save_model",
    "save_stack",
]
