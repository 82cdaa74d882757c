"""Simulate micrographs, pick, judge and extract: ``python examples/picking.py [OUT]``.

Because the micrographs are simulated, all particles are known, and the picks can be judged. Where
PyTorch is installed, the network that comes with the package picks as well.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import emdask
from emdask.metrics import match_picks
from emdask.plots import montage, png_bytes

METHODS = ("log", "cnn") if find_spec("torch") and find_spec("safetensors") else ("log",)
RADIUS_A, PIXEL_SIZE_A = 75.0, 3.0
DIAMETER_A = 2 * RADIUS_A


def main(
    out: str = "picked.mrcs",
    *,
    n_micrographs: int = 3,
    size_px: int = 1024,
    snr: float = 0.1,
    methods: tuple[str, ...] = METHODS,
) -> Path:
    """Simulate, pick by each method, judge, extract; return the path of a picture."""
    particle = emdask.phantom(200, radius_A=RADIUS_A, width_A=(5, 8)).volume(64, PIXEL_SIZE_A)
    made, truth = emdask.simulate_micrographs(
        particle,
        n_micrographs,
        snr=snr,
        snr_in="particles",
        size_px=size_px,
        ctf={"defocus_A": (10_000, 20_000)},
        n_crystals=2,
    )
    micrographs = made.images  # lazy
    print(f"{n_micrographs} micrographs of {size_px} x {size_px} pixels, {len(truth)} particles")
    print("method    picks  precision  recall     F1     AP")
    for method in methods:
        picks = emdask.pick(micrographs, method, diameter_A=DIAMETER_A).compute()
        found = match_picks(picks, truth, radius_px=0.2 * DIAMETER_A / PIXEL_SIZE_A)
        figures = (found.precision, found.recall, found.f1, found.average_precision)
        print(f"{method:8} {len(picks):6} ", "  ".join(f"{figure:7.3f}" for figure in figures))

    particles = emdask.extract(micrographs, picks, box_px=80)  # lazy, of the last method
    path = emdask.save_stack(particles, out, overwrite=True)
    print(f"saved {len(particles)} particles of {particles.shape[1:]} pixels -> {path}")

    images = particles.values
    mean = images.mean(axis=0)
    mean *= images.std() / mean.std()
    picture = Path(out).with_suffix(".png")
    picture.write_bytes(png_bytes(montage(np.stack([*images[:7], mean]))))
    print(f"some of them, and the mean of all -> {picture}")
    return picture


if __name__ == "__main__":
    main(*sys.argv[1:])
