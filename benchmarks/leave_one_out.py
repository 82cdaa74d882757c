"""Pickers trained on all labelled micrographs of a molecule but one, tested on that one.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/leave_one_out.py DATA_FOLDER
        [--start NAME_OR_FILE] [--n-steps N] [--only NAME] [--keep FOLDER] [--quick] [--out FILE]

DATA_FOLDER holds ``picking/`` (see real_picks.py). Training is ``emdask.train_picker`` as users
call it, from the network that has seen simulated micrographs alone, and told that what has no label
is background (``labelled=1``). Thresholds are those that `train_picker` and the method set. `log`,
which learns nothing, is judged on the same micrographs. With --keep, networks are kept in that
folder, and those that are there are not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import pandas as pd
from arguments import QUICK, errors_as_sentences, parse_count
from kept_networks import train_once
from pick_real import HEAD, RADII, default_threshold, figures, judge, pick_all
from real_picks import RealMicrograph, RealSet, build_micrographs, find_sets
from tables import describe_machine, print_lines, table

import emdask
from emdask.io.weights import Weights
from emdask.trainers import LABELLED_THRESHOLD


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long is trained, from what, and where networks are kept."""

    start: str
    n_steps: int | None
    keep: Path | None

    def leave_out(self, micrographs: Sequence[RealMicrograph], out: int) -> Weights:
        """Return the network of all but one."""
        name = f"{micrographs[0].of.folder}-but-{out}"
        return train_once(self.keep, name, lambda: self._train(micrographs, out))

    def _train(self, micrographs: Sequence[RealMicrograph], out: int) -> Weights:
        of = micrographs[0].of
        seen = [micrograph for i, micrograph in enumerate(micrographs) if i != out]
        # Beyond the border nobody labelled: it is cut off.
        border_px = int(of.border_px)
        stack = build_micrographs(seen, border_px)
        labels = pd.concat([one.truth() for one in seen], ignore_index=True)
        labels[["x_px", "y_px"]] -= border_px
        last = [n - 1 for n in stack.shape[:0:-1]]
        places = labels[["x_px", "y_px"]]
        labels = labels[((places >= 0) & (places <= last)).all(axis=1)]
        return emdask.train_picker(
            stack,
            labels,
            diameter_px=of.diameter_px,
            start=self.start,
            n_steps=self.n_steps,
            labelled=1,
        )


def rows_of(
    of: RealSet, micrographs: Sequence[RealMicrograph], training: Training
) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of all micrographs of a molecule together, and of each at the smaller radius."""
    found = pd.concat(
        pick_all([one], "cnn", model=training.leave_out(micrographs, i))
        for i, one in enumerate(micrographs)
    )
    picks = {"log": pick_all(micrographs, "log"), "cnn": found}
    pooled, single = [], []
    thresholds = {"log": default_threshold("log"), "cnn": LABELLED_THRESHOLD}
    for method, of_method in picks.items():
        threshold = thresholds[method]
        for diameters in RADII:
            of_all = judge(of_method, micrographs, diameters, threshold)
            radius = f"{of.radius_px(diameters):.0f} px"
            pooled.append([of.name, method, radius, *figures(of_all)])
        for one in micrographs:
            of_one = judge(of_method[of_method.micrograph == one.name], [one], RADII[0], threshold)
            n = str(len(one.centres))
            single.append([of.name, one.name, n, method, *figures(of_one)])
    return pooled, single


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", default="simulated", help="network that all others start from")
    parser.add_argument("--n-steps", type=parse_count, help="by default those of train_picker")
    parser.add_argument("--only", help="name of a molecule, others are left out")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    n_steps = 1 if options.quick else options.n_steps
    training = Training(start=options.start, n_steps=n_steps, keep=options.keep)
    pooled, single = [], []
    with errors_as_sentences(), dask.config.set(scheduler="synchronous"):
        there, absent = find_sets(options.data)
        for of in there:
            if options.only in (None, of.name):
                micrographs = of.open(options.data, 2 if options.quick else None)
                more = rows_of(of, micrographs, training)
                pooled += more[0]
                single += more[1]
    lines = ["# Trained on all micrographs but one", "", describe_machine("numpy", "torch"), ""]
    lines += [*table(HEAD, pooled), "", "Each micrograph, at the smaller radius:", ""]
    lines += table(["set", "micrograph", "labels", "method", *HEAD[3:]], single)
    lines += ["", *absent, "F1 is at the threshold that is set; the best F1 in hindsight."]
    print_lines(lines, options.out, QUICK if options.quick else None)


if __name__ == "__main__":
    main()
