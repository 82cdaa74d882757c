"""Train the networks that `emdask.pick` ships with, from nothing.

    python examples/training/train_general_picker.py --out FOLDER --betagal FOLDER
    python examples/training/train_general_picker.py --out FOLDER --quick     shows that it runs

Writes simulated.safetensors, trained on simulated micrographs of structures that never were, and,
with --betagal, general.safetensors, which saw labelled micrographs of β-galactosidase as well while
the learning rate fell: that FOLDER holds micrographs of EMPIAR-10017 as the CryoSegNet repository
(MIT) has them (8-bit, 4096 x 4096), each with a table ``x<TAB>y`` of its particles beside it.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from training_micrographs import training_micrograph

import emdask
from emdask.io.weights import Weights, save_weights
from emdask.kernels.picker_training import Example, NetworkTraining
from emdask.kernels.schedules import fall, rise_and_stay
from emdask.kernels.standard_micrographs import STANDARD_PX, standardise

Array = npt.NDArray[Any]

BETAGAL_DIAMETER_PX = 108.0
# Nearer to the edges these micrographs are smeared, and nothing is labelled.
BETAGAL_BORDER_PX = 131
# Particles for each that is labelled: those of use for a map were. A micrograph with far fewer
# labels than the others is taken to have as many particles.
EXPECTED = 1.1
# How often labelled micrographs are drawn, relative to simulated ones.
BETAGAL_SHARE = 0.25
LEARNING_RATE = 2.5e-3
# Of scores, for the network that has seen labels: between what is best for these molecules and for
# others.
THRESHOLD = 0.25
# Of training; that of the micrographs is given.
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is simulated and how long is trained.

    Parameters
    ----------
    n_micrographs, size_px
        Simulated micrographs and their edge.
    n_steps, n_falling_steps
        Steps of training that both networks share, and those of each while the rate falls.
    batch
        Pieces of micrographs in a step.
    """

    n_micrographs: int
    size_px: int
    n_steps: int
    n_falling_steps: int
    batch: int


FULL = Effort(n_micrographs=3300, size_px=768, n_steps=6250, n_falling_steps=1300, batch=8)
QUICK = Effort(n_micrographs=3, size_px=160, n_steps=2, n_falling_steps=2, batch=2)


def simulate_examples(n: int, seed: int, size_px: int) -> list[Example]:
    """Simulate micrographs and bring them to the standard."""
    made = (training_micrograph(seed, index, size_px) for index in range(n))
    return [build_example(one.image, one.centres, one.diameter_px) for one in made]


def open_examples(folder: Path) -> list[Example]:
    """Read labelled micrographs of β-galactosidase and bring them to the standard."""
    examples = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as opened:
            image = np.asarray(opened)
        centres = pd.read_csv(path.with_suffix(".txt"), sep="\t")[["x", "y"]].to_numpy(float)
        example = build_example(image, centres, BETAGAL_DIAMETER_PX, BETAGAL_BORDER_PX)
        examples.append(example._replace(fully_labelled=False))
    if not examples:
        raise SystemExit(f"{folder} has no micrographs (.jpg, with tables .txt beside them).")
    usual = float(np.median([len(example.centres) for example in examples]))
    return [
        example._replace(expected=EXPECTED * max(len(example.centres), usual))
        for example in examples
    ]


def build_example(image: Array, centres: Array, diameter_px: float, border_px: int = 0) -> Example:
    """Bring a micrograph and the centres (x, y) of its particles to the standard."""
    standard, scale = standardise(image, diameter_px, STANDARD_PX)
    places = np.column_stack(scale.to_standard(*centres.T))
    border = round(border_px * scale.factor_x)
    h, w = standard.shape
    inner = standard[border : h - border, border : w - border]
    # Grey levels lie within 5: half the memory will do.
    return Example(inner.astype(np.float16), places - border)


def mix(simulated: Sequence[Example], labelled: Sequence[Example], share: float) -> list[Example]:
    """Let labelled examples be drawn as a share of all."""
    weight = share / (1 - share) * len(simulated) / len(labelled)
    return [*simulated, *(example._replace(weight=weight) for example in labelled)]


def finish(
    training: NetworkTraining, examples: Sequence[Example], effort: Effort, data: str
) -> Weights:
    """Train a copy on while the rate falls, and say what it was made of."""
    training = copy.deepcopy(training)
    n_steps, batch = effort.n_falling_steps, effort.batch
    training.learn(examples, n_steps, batch=batch, schedule=fall, on_progress=_show)
    about = {
        "method": "cnn",
        "data": data,
        "seed": f"{SEED}",
        "steps": f"{effort.n_steps + n_steps} of {batch} pieces",
        "emdask": emdask.__version__,
        "licence": "BSD-3-Clause",
    }
    return Weights(training.weights, about)


def _show(what: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{done} of {total}, {what}", end=end, file=sys.stderr, flush=True)


def main(out: Path, betagal: Path | None, seed: int, effort: Effort) -> list[Path]:
    """Train and write; return what was written."""
    start = time.process_time()
    simulated = simulate_examples(effort.n_micrographs, seed, effort.size_px)
    print(f"{len(simulated)} micrographs simulated: {time.process_time() - start:.0f} CPU s")
    data = f"{len(simulated)} simulated micrographs of {effort.size_px} px, seed {seed}"
    training = NetworkTraining(learning_rate=LEARNING_RATE, seed=SEED)
    training.learn(
        simulated,
        effort.n_steps,
        batch=effort.batch,
        schedule=rise_and_stay,
        on_progress=_show,
    )
    out.mkdir(parents=True, exist_ok=True)
    weights = finish(training, simulated, effort, data)
    written = [save_weights(weights, out / "simulated.safetensors", overwrite=True)]
    if betagal is not None:
        labelled = open_examples(betagal)
        data += f", and {len(labelled)} of EMPIAR-10017 labelled by CryoSegNet (MIT)"
        general = finish(training, mix(simulated, labelled, BETAGAL_SHARE), effort, data)
        general = replace(general, about={**general.about, "threshold": f"{THRESHOLD}"})
        written.append(save_weights(general, out / "general.safetensors", overwrite=True))
    print(f"{time.process_time() - start:.0f} CPU s in all: {', '.join(map(str, written))}")
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--betagal", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="of the simulated micrographs")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    main(given.out, given.betagal, given.seed, QUICK if given.quick else FULL)
