"""Networks that a benchmark trains once and keeps, for the benchmarks of this folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from emdask.io.weights import Weights, open_weights, save_weights


def train_once(folder: Path | None, name: str, train: Callable[[], Weights]) -> Weights:
    """Return the network of this name in a folder; train it, and keep it, where there is none."""
    path = None if folder is None else folder / f"{name}.safetensors"
    if path is not None and path.exists():
        return open_weights(path)
    print(name, file=sys.stderr, flush=True)
    weights = train()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_weights(weights, path, overwrite=True)
    return weights
