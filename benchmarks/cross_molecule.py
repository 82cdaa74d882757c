"""Networks trained on some molecules and tested on others: the original method's table, real data.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/cross_molecule.py DATA_FOLDER
        [--start FILE] [--keep FOLDER] [--n-steps N] [--iterate-steps N] [--quick] [--out FILE]

DATA_FOLDER holds ``picking/`` (see real_picks.py). Each network starts from the one that is trained
on simulated micrographs alone and is trained further, half on simulated ones and half on labelled
ones of one, two or three molecules. There are two for each choice of molecules: one has seen every
other micrograph of them, the second the rest. A molecule that was trained on is tested on those
micrographs that the network has not seen; one that was left out on all, and figures are means over
both networks.

"Iterated" is what ``emdask.train_picker`` does without labels: the network picks the micrographs
that it is tested on, trains further on the picks that it is surest of, and picks again. Of the two
networks the first alone is iterated.

With --keep, networks are kept in that folder, and those that are there are not trained again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import dask
import numpy as np
from arguments import QUICK, errors_as_sentences, parse_count
from kept_networks import train_once
from pick_real import RADII, default_threshold, judge, pick_all
from real_picks import RealMicrograph, RealSet, build_micrographs, find_sets
from tables import describe_machine, print_lines, table

import emdask
from emdask.errors import ParameterError
from emdask.io.weights import Weights
from emdask.kernels.picker_training import Example, train_network
from emdask.pick_metrics import PickMatches
from emdask.pickers.cnn import CNN, load
from emdask.trainers import LABELLED_THRESHOLD

TRAINING = Path(__file__).resolve().parents[1] / "examples" / "training"
# How many, seed, and edge in px.
SIMULATED_SEED = 2
SIMULATED = (120, SIMULATED_SEED, 640)
N_HALVES = 2
SHARE = 0.5
BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How much is trained, on what, and where networks are kept.

    Parameters
    ----------
    sets
        Molecules to their micrographs.
    simulated
        Examples that all training is mixed with.
    start
        Network that all others start from.
    n_steps, batch
        Steps of training on labels, and pieces of micrographs in each.
    iterate_steps
        Steps of an iteration.
    keep
        Folder of networks, or None.
    """

    sets: dict[RealSet, list[RealMicrograph]]
    simulated: list[Example]
    start: Weights
    n_steps: int
    batch: int
    iterate_steps: int
    keep: Path | None

    def train(self, chosen: Sequence[RealSet], half: int) -> Weights:
        """Return the network that has seen one half of the micrographs of some molecules."""
        if not chosen:
            return self.start
        name = f"{_name(chosen)}-{half}"
        return train_once(self.keep, name, lambda: self._train(chosen, half))

    def iterate(self, start: Weights, name: str, tested: RealSet) -> Weights:
        """Return a network after it has picked a molecule and learnt from what it picked."""
        name = f"{name}-on-{tested.folder}"
        return train_once(self.keep, name, lambda: self._iterate(start, tested))

    def _train(self, chosen: Sequence[RealSet], half: int) -> Weights:
        trainer = _import_trainer()
        examples = list(self.simulated)
        for of in chosen:
            seen = [
                trainer.build_example(one.image, one.centres, of.diameter_px, int(of.border_px))
                for one in self.sets[of][half::N_HALVES]
            ]
            share = SHARE / (1 - SHARE) / len(chosen)
            weight = share * len(self.simulated) / len(seen)
            examples += [example._replace(weight=weight) for example in seen]
        arrays = train_network(
            examples, start=self.start.arrays, n_steps=self.n_steps, batch=self.batch, seed=half
        )
        return Weights(arrays, {"method": "cnn", "data": _name(chosen)})

    def _iterate(self, start: Weights, tested: RealSet) -> Weights:
        try:
            return emdask.train_picker(
                build_micrographs(self.sets[tested]),
                diameter_px=tested.diameter_px,
                start=start,
                n_steps=self.iterate_steps,
            )
        except ParameterError as error:
            # It finds nothing to learn from, and stays as it is.
            print(error, file=sys.stderr)
            return start


def _import_trainer() -> Any:
    sys.path.insert(0, str(TRAINING))
    import train_general_picker

    return train_general_picker


def _name(chosen: Sequence[RealSet]) -> str:
    return "+".join(of.folder for of in chosen) or "simulation"


# --- Figures -------------------------------------------------------------------------------------


def test_on(
    trial: Trial, chosen: Sequence[RealSet], tested: RealSet, iterated: bool
) -> list[list[PickMatches]]:
    """Return what is found at each radius, by the network of each half."""
    threshold = LABELLED_THRESHOLD if tested in chosen else default_threshold("cnn")
    found: list[list[PickMatches]] = [[] for _ in RADII]
    # Without molecules both would be the same; to iterate takes as long as to train.
    for half in range(N_HALVES if chosen and not iterated else 1):
        model = trial.train(chosen, half)
        if iterated:
            model = trial.iterate(model, f"{_name(chosen)}-{half}", tested)
        micrographs = trial.sets[tested]
        if tested in chosen:
            micrographs = [m for i, m in enumerate(micrographs) if i % N_HALVES != half]
        picks = pick_all(micrographs, "cnn", model=model)
        for of_radius, diameters in zip(found, RADII, strict=True):
            of_radius.append(judge(picks, micrographs, diameters, threshold))
    return found


def mean_figures(found: Sequence[PickMatches]) -> list[str]:
    """Return precision, recall, F1 and AP, each the mean over networks."""
    names = ("precision", "recall", "f1", "average_precision")
    return [f"{np.mean([getattr(one, name) for one in found]):.3f}" for name in names]


def rows(trial: Trial) -> Iterator[tuple[float, list[str]]]:
    """Rows of the tables, each with its radius in diameters."""
    known = tuple(trial.sets)
    for size in range(len(known) + 1):
        for chosen in combinations(known, size):
            for tested in known:
                for iterated in (False,) if tested in chosen else (False, True):
                    found = test_on(trial, chosen, tested, iterated)
                    for diameters, of_radius in zip(RADII, found, strict=True):
                        seen = "other micrographs" if tested in chosen else "no"
                        trained = " + ".join(of.name for of in chosen) or "simulation alone"
                        turns = "yes" if iterated else "no"
                        row = [trained, tested.name, seen, turns, *mean_figures(of_radius)]
                        yield diameters, row
                    print(*row, file=sys.stderr, flush=True)


HEAD = ("trained on", "tested on", "seen in training", "iterated")
HEAD += ("precision", "recall", "F1", "AP")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", default="simulated", help="network that all others start from")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--n-steps", type=parse_count, default=100)
    parser.add_argument("--iterate-steps", type=parse_count, default=60)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = ["# Networks on molecules that they have not seen", ""]
    lines += [describe_machine("numpy", "torch"), ""]
    with errors_as_sentences(), dask.config.set(scheduler="synchronous"):
        there, absent = find_sets(options.data)
        trial = Trial(
            sets={of: of.open(options.data, N_HALVES if options.quick else None) for of in there},
            simulated=_import_trainer().simulate_examples(
                *((2, SIMULATED_SEED, 160) if options.quick else SIMULATED)
            ),
            start=load(CNN(model=options.start), None),
            n_steps=1 if options.quick else options.n_steps,
            batch=1 if options.quick else BATCH,
            iterate_steps=1 if options.quick else options.iterate_steps,
            keep=options.keep,
        )
        made = list(rows(trial))
    for diameters in RADII:
        radii = ", ".join(f"{of.name} {of.radius_px(diameters):.0f} px" for of in there)
        lines += [f"Radius {diameters} diameters ({radii}):", ""]
        lines += [*table(HEAD, [row for of, row in made if of == diameters]), ""]
    told = (
        f"Threshold {default_threshold('cnn'):g}, that of the method, and {LABELLED_THRESHOLD:g},"
    )
    lines += [*absent, f"{told} that of `train_picker`, on molecules whose labels were seen."]
    print_lines(lines, options.out, QUICK if options.quick else None)


if __name__ == "__main__":
    main()
