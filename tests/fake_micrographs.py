"""Small micrographs of dark discs at known places, for tests that need no physics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from emdask.io import save_stack
from emdask.picks import build_picks
from emdask.stack import build_stack

DIAMETER_PX = 20.0
PIXEL_SIZE_A = 3.0
SHAPE = (160, 200)
# Far enough from each other and from the edges; the second micrograph has none.
CENTRES = (
    ((30.0, 40.0), (90.0, 35.5), (150.25, 60.0), (60.0, 110.0), (130.0, 120.0)),
    (),
    ((40.0, 50.0), (100.0, 100.0), (160.0, 40.0)),
)
NAMES = ("m1.mrc", "m2.mrc", "m3.mrc")


def draw_micrograph(centres: tuple[tuple[float, float], ...], seed: int) -> np.ndarray:
    """Discs of depth 3 in noise of 1."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.random.default_rng(seed).normal(size=SHAPE)
    for x_px, y_px in centres:
        image -= 3 * (np.hypot(x - x_px, y - y_px) < DIAMETER_PX / 2)
    return image.astype(np.float32)


def known_picks() -> pd.DataFrame:
    """Table of the discs."""
    rows = [(name, *c) for name, own in zip(NAMES, CENTRES, strict=True) for c in own]
    columns = zip(*rows, strict=True)
    return build_picks(dict(zip(("micrograph", "x_px", "y_px"), columns, strict=True)), NAMES)


def write_micrographs(folder: Path) -> list[Path]:
    """Write each into a file of its own; return their paths, in order."""
    for i, (name, centres) in enumerate(zip(NAMES, CENTRES, strict=True)):
        image = draw_micrograph(centres, i)[None]
        attrs = {"kind": "micrographs", "pixel_size_A": PIXEL_SIZE_A}
        save_stack(build_stack(image, {}, attrs), folder / name)
        (folder / name).with_suffix(".star").unlink(missing_ok=True)
    return [folder / name for name in NAMES]
