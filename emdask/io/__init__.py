"""Open and save stacks, volumes, models and picks; any other file is one format or one verb."""

from emdask.io.coordinates import open_picks
from emdask.io.coordinates_output import save_picks
from emdask.io.models import check_model_target, open_model, save_model
from emdask.io.reading import open_stack
from emdask.io.volumes import check_volume_target, open_volume, save_volume
from emdask.io.writing import check_target, save_stack

__all__ = [
    "check_model_target",
    "check_target",
    "check_volume_target",
    "open_model",
    "open_picks",
    "open_stack",
    "open_volume",
    "save_model",
    "save_picks",
    "save_stack",
    "save_volume",
]
