"""Array engine for cryo-EM images: lazy, distributed denoising of micrographs and particles."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emdask.cluster import connect
    from emdask.denoisers import denoise, learn_denoiser
    from emdask.io import open_stack, save_stack

__version__ = "0.1.0"
__all__ = ["connect", "denoise", "learn_denoiser", "open_stack", "save_stack"]

# The verbs load when used, so that ``import emdask`` costs milliseconds.
_HOMES = {
    "connect": "emdask.cluster",
    "denoise": "emdask.denoisers",
    "learn_denoiser": "emdask.denoisers",
    "open_stack": "emdask.io",
    "save_stack": "emdask.io",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'emdask' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
