"""Pickers on real micrographs with labelled particles, as they ship, nothing tuned to them.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/pick_real.py DATA_FOLDER
        [--quick] [--out FILE]

DATA_FOLDER holds ``picking/`` (see real_picks.py) and ``maps/``. Precision, recall and F1 are at
the threshold of each method or network, which does not know these micrographs; the best F1 is for
reference: its threshold is the best one in hindsight. Only the diameter is given.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import xarray as xr
from arguments import QUICK, errors_as_sentences
from real_picks import RealMicrograph, RealSet, build_micrographs, find_sets
from tables import describe_machine, print_lines, table

import emdask
from emdask.method import find_method
from emdask.pick_metrics import PickMatches, match_picks
from emdask.pickers import FAMILY
from emdask.pickers.cnn import CNN, load, threshold_of
from emdask.volumes import build_volume

# Lower than any score.
ALL = -1e9
RADII = (0.2, 0.5)
HEAD = ("set", "method", "radius", "AP", "precision", "recall", "F1", "best F1")
# Maps of the same molecule, or of its like, in ``maps/``, and their pixel sizes.
MAPS = {
    "β-galactosidase": ("betaGal.mrc", 3.54),
    "ribosome": ("clean70SRibosome_vol_65p.mrc", 5.0),
}


def pick_all(micrographs: Sequence[RealMicrograph], method: Any, **options: Any) -> pd.DataFrame:
    """Pick each micrograph, however low the score."""
    tables = []
    for micrograph in micrographs:
        stack = build_micrographs([micrograph])
        diameter_A = micrograph.of.diameter_px * micrograph.of.pixel_size_A
        picks = emdask.pick(stack, method, diameter_A=diameter_A, threshold=ALL, **options)
        tables.append(picks.compute(scheduler="synchronous"))
    return pd.concat(tables, ignore_index=True)


def judge(
    picks: pd.DataFrame,
    micrographs: Sequence[RealMicrograph],
    diameters: float,
    threshold: float,
) -> PickMatches:
    """Match picks with labels."""
    of = micrographs[0].of
    return match_picks(
        picks,
        pd.concat([micrograph.truth() for micrograph in micrographs], ignore_index=True),
        radius_px=of.radius_px(diameters),
        threshold=threshold,
        border_px=of.border_px,
        shapes={micrograph.name: micrograph.image.shape for micrograph in micrographs},
        micrographs=[micrograph.name for micrograph in micrographs],
    )


def figures(found: PickMatches) -> list[str]:
    """Return the columns of a table after the radius."""
    numbers = (found.average_precision, found.precision, found.recall, found.f1, found.best.f1)
    return [f"{number:.3f}" for number in numbers]


def default_threshold(method: str, model: str | None = None) -> float:
    """Return the threshold that a method, or a network by its name, ships with."""
    if model is not None:
        return threshold_of(load(CNN(model=model), None))
    return float(find_method(FAMILY, method).threshold)


def templates(of: RealSet, data: Path) -> xr.DataArray:
    """Return a map to make templates of: of the molecule, or a hollow ball for apoferritin."""
    if of.name in MAPS:
        name, pixel_A = MAPS[of.name]
        return emdask.open_volume(data / "maps" / name, pixel_size_A=pixel_A)
    # Ferritin's shell, 120 and 80 Å wide.
    pixel_A, box_px = 3.0, 48
    grid = np.indices((box_px,) * 3) - box_px // 2
    radius_A = pixel_A * np.sqrt((grid**2).sum(axis=0))
    return build_volume(((radius_A > 40) & (radius_A < 60)).astype(np.float32), pixel_A)


def methods(of: RealSet, data: Path) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Title of a row to the method and its options."""
    general = "cnn, general"
    if of.folder == "betagal_10017":
        general += " (trained on these)"
    return {
        "log": ("log", {}),
        "template": ("template", {"template": templates(of, data)}),
        "cnn, simulated": ("cnn", {"model": "simulated"}),
        general: ("cnn", {"model": "general"}),
    }


def rows_of(of: RealSet, data: Path, most: int | None) -> list[list[str]]:
    """Rows of one set."""
    micrographs = of.open(data, most)
    rows = []
    for title, (method, options) in methods(of, data).items():
        start = time.process_time()
        picks = pick_all(micrographs, method, **options)
        seconds = (time.process_time() - start) / len(micrographs)
        threshold = default_threshold(method, options.get("model"))
        for diameters in RADII:
            found = judge(picks, micrographs, diameters, threshold)
            radius = f"{of.radius_px(diameters):.0f} px"
            rows.append([of.name, title, radius, *figures(found), f"{seconds:.1f}"])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = ["# Pickers on real micrographs", "", describe_machine("numpy", "torch"), ""]
    with errors_as_sentences(), dask.config.set(scheduler="synchronous"):
        there, absent = find_sets(options.data)
        most = 1 if options.quick else None
        rows = [row for of in there for row in rows_of(of, options.data, most)]
    lines += table([*HEAD, "CPU s a micrograph"], rows)
    lines += ["", *absent, "F1 is at the method's own threshold; the best F1 in hindsight."]
    print_lines(lines, options.out, QUICK if options.quick else None)


if __name__ == "__main__":
    main()
