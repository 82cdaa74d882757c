"""Train the networks that `emdask.denoise` ships with, from nothing.

    python examples/training/train_denoisers.py --out FOLDER
    python examples/training/train_denoisers.py --out FOLDER --quick     shows that it runs

Writes FOLDER/particles.safetensors and micrographs.safetensors, trained on simulated images of
structures that never were (`training_images.py`), to which noise is added anew in each epoch. What
was interrupted goes on where it stopped. It takes minutes on a card and hours on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from training_images import draw_field, draw_particles

import emdask
from emdask.console import follow_steps
from emdask.io.weights import Weights, save_weights
from emdask.lazy import read_images
from emdask.stack import build_stack

Array = npt.NDArray[Any]

# Views of a structure that lie side by side.
VIEWS = 8
CHUNK = 64
SEEDS = {"particles": 1, "micrographs": 2}
SNR = {"particles": (0.015, 2.0), "micrographs": (0.005, 2.0)}
COLOURED = 0.3


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is simulated and how long is trained.

    Parameters
    ----------
    particles
        Edges of the boxes in px, and images of each.
    field_px, n_fields
        Edge of the pieces of micrographs, and how many.
    crop_px, epochs, batch, width, n_levels
        As of `emdask.train_denoiser` and "unet", of particles and of micrographs.
    """

    particles: tuple[tuple[int, int], ...]
    field_px: int
    n_fields: int
    crop_px: tuple[int, int]
    epochs: tuple[int, int]
    batch: tuple[int, int]
    width: tuple[int, int]
    n_levels: tuple[int, int]


FULL = Effort(
    particles=((64, 24_000), (128, 56_000), (224, 12_000)),
    field_px=320,
    n_fields=14_400,
    crop_px=(224, 320),
    epochs=(6, 5),
    batch=(48, 12),
    width=(32, 40),
    n_levels=(5, 4),
)
QUICK = Effort(
    particles=((32, 128), (48, 128)),
    field_px=64,
    n_fields=64,
    crop_px=(48, 64),
    epochs=(1, 1),
    batch=(16, 8),
    width=(4, 4),
    n_levels=(4, 4),
)


def read_particles(seed: int, start: int, stop: int, *, box_px: int) -> Array:
    """Draw particles; a block of a stack."""
    first, last = start // VIEWS, -(-stop // VIEWS)
    images = np.concatenate([draw_particles(seed, i, VIEWS, box_px) for i in range(first, last)])
    return images[start - first * VIEWS : stop - first * VIEWS].astype(np.float16)


def read_fields(seed: int, start: int, stop: int, *, size_px: int) -> Array:
    """Draw pieces of micrographs; a block of a stack."""
    return np.stack([draw_field(seed, i, size_px) for i in range(start, stop)]).astype(np.float16)


def make_stack(read: Any, seed: int, n_images: int, edge_px: int, path: Path) -> xr.DataArray:
    """Write images that are not there yet, and open them."""
    shape = (n_images, edge_px, edge_px)
    images = read_images(
        read, seed, shape=shape, dtype=np.float16, chunk=CHUNK, name="draw-training"
    )
    if not path.exists():
        emdask.save_stack(build_stack(images), path, resume=True)
    return emdask.open_stack(path)


def make_particles(effort: Effort, folder: Path) -> list[xr.DataArray]:
    """Particles in boxes of several sizes."""
    return [
        make_stack(
            partial(read_particles, box_px=box_px),
            SEEDS["particles"],
            n_images,
            box_px,
            folder / f"particles_{box_px}_{n_images}.zarr",
        )
        for box_px, n_images in effort.particles
    ]


def make_fields(effort: Effort, folder: Path) -> list[xr.DataArray]:
    """Pieces of micrographs."""
    edge_px = effort.field_px
    path = folder / f"fields_{edge_px}_{effort.n_fields}.zarr"
    read = partial(read_fields, size_px=edge_px)
    return [make_stack(read, SEEDS["micrographs"], effort.n_fields, edge_px, path)]


MAKE = {"particles": make_particles, "micrographs": make_fields}


def train(name: str, effort: Effort, folder: Path, precision: str) -> Weights:
    """Train one of the networks."""
    which = list(MAKE).index(name)
    # Hardly any of the drawing runs beside other threads.
    with emdask.connect("local") if effort.n_fields > CHUNK else contextlib.nullcontext():
        clean = MAKE[name](effort, folder)
    with follow_steps() as on_progress:
        return emdask.train_denoiser(
            clean=clean,
            method="unet",
            snr=SNR[name],
            coloured=COLOURED,
            either_contrast=True,
            epochs=effort.epochs[which],
            crop_px=effort.crop_px[which],
            batch=effort.batch[which],
            patience=None,
            validation=0.01,
            checkpoint=folder / f"{name}_checkpoint.safetensors",
            resume=True,
            log=folder / f"{name}.csv",
            precision=precision,
            width=effort.width[which],
            n_levels=effort.n_levels[which],
            about={
                "data": f"simulated by examples/training, structures of seed {SEEDS[name]}",
                "licence": "BSD-3-Clause",
                "name": name,
            },
            on_progress=on_progress,
        )


def shorten(weights: Weights) -> Weights:
    """Keep weights in 16 bits: half of the size, the same answer to a thousandth of the noise."""
    arrays = {name: array.astype(np.float16) for name, array in weights.arrays.items()}
    return replace(weights, arrays=arrays)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for images and networks")
    parser.add_argument("--only", choices=MAKE, help="train this one alone")
    parser.add_argument("--epochs", type=int, help="passes over the images")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16")
    parser.add_argument("--quick", action="store_true", help="show that it runs")
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    effort = QUICK if chosen.quick else FULL
    if chosen.epochs is not None:
        effort = replace(effort, epochs=(chosen.epochs, chosen.epochs))
    for name in [chosen.only] if chosen.only else MAKE:
        weights = train(name, effort, chosen.out, chosen.precision)
        path = chosen.out / f"{name}.safetensors"
        save_weights(shorten(weights), path, overwrite=True)
        print(f"{name} -> {path}, {weights.n_bytes / 2e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
