"""Array engine for cryo-EM images: denoise, pick, classify, simulate, reconstruct; lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emdask.averages import class_averages
    from emdask.classifiers import classify
    from emdask.cluster import connect
    from emdask.comparisons import compare
    from emdask.ctf_correctors import phase_flip
    from emdask.denoiser_trainer import train_denoiser
    from emdask.denoisers import denoise, learn_denoiser
    from emdask.extractors import extract
    from emdask.io import (
        open_model,
        open_picks,
        open_stack,
        open_volume,
        save_model,
        save_picks,
        save_stack,
        save_volume,
    )
    from emdask.phantoms import phantom
    from emdask.pickers import pick
    from emdask.reconstructors import reconstruct
    from emdask.screeners import screen
    from emdask.simulators import simulate
    from emdask.simulators.micrographs import simulate_micrographs
    from emdask.structures import volume_from_structure
    from emdask.trainers import train_picker
    from emdask.whiteners import learn_noise, unwhiten, whiten

__version__ = "0.1.0"
__all__ = [
    "class_averages",
    "classify",
    "compare",
    "connect",
    "denoise",
    "extract",
    "learn_denoiser",
    "learn_noise",
    "open_model",
    "open_picks",
    "open_stack",
    "open_volume",
    "phantom",
    "phase_flip",
    "pick",
    "reconstruct",
    "save_model",
    "save_picks",
    "save_stack",
    "save_volume",
    "screen",
    "simulate",
    "simulate_micrographs",
    "train_denoiser",
    "train_picker",
    "unwhiten",
    "volume_from_structure",
    "whiten",
]

# The verbs load when used, so that ``import emdask`` costs milliseconds.
_HOMES = {
    "class_averages": "emdask.averages",
    "classify": "emdask.classifiers",
    "compare": "emdask.comparisons",
    "connect": "emdask.cluster",
    "denoise": "emdask.denoisers",
    "extract": "emdask.extractors",
    "learn_denoiser": "emdask.denoisers",
    "learn_noise": "emdask.whiteners",
    "open_model": "emdask.io",
    "open_picks": "emdask.io",
    "open_stack": "emdask.io",
    "open_volume": "emdask.io",
    "phantom": "emdask.phantoms",
    "phase_flip": "emdask.ctf_correctors",
    "pick": "emdask.pickers",
    "reconstruct": "emdask.reconstructors",
    "save_model": "emdask.io",
    "save_picks": "emdask.io",
    "save_stack": "emdask.io",
    "save_volume": "emdask.io",
    "screen": "emdask.screeners",
    "simulate": "emdask.simulators",
    "simulate_micrographs": "emdask.simulators.micrographs",
    "train_denoiser": "emdask.denoiser_trainer",
    "train_picker": "emdask.trainers",
    "unwhiten": "emdask.whiteners",
    "volume_from_structure": "emdask.structures",
    "whiten": "emdask.whiteners",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emdask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
