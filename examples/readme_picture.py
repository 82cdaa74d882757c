"""Draw the picture of the README, of simulated images: ``python examples/readme_picture.py``.

Above, particles; below, a micrograph: noisy at SNR 0.1, denoised, and the truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import emdask
from emdask.plots import about_median, grey_limits, montage, typical_limits
from emdask.simulators.demo_images import demo_micrograph, demo_particles

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "before-after.png"
N_PARTICLES = 6
CROP_PX = 408
WIDE = (0.05, 99.95)
COLUMNS = ("noisy, SNR 0.1", "denoised, bm3d", "the truth")


def main(path: str | Path = PICTURE, *, box_px: int = 128, size_px: int = 1024) -> Path:
    """Simulate, denoise and draw."""
    particles, true_particles = demo_particles(
        N_PARTICLES, box_px=box_px, pixel_size_A=256 / box_px
    )
    micrograph, true_micrograph = demo_micrograph(size_px)
    edge = (size_px - min(CROP_PX, size_px)) // 2
    middle = np.s_[0, edge : size_px - edge, edge : size_px - edge]
    rows = []
    for stack, truth in ((particles, true_particles), (micrograph, true_micrograph)):
        rows.append((stack.values, emdask.denoise(stack, "bm3d").values, truth))

    figure = Figure(figsize=(14, 14 / 3 * 5 / 3 + 0.35), layout="constrained")
    panels = figure.subplots(2, 3, height_ratios=(2, 3))
    for row, images in enumerate(rows):
        for column, array in enumerate(images):
            # Denoised and true images share their grey scale, so that they can be compared by eye.
            scaled = images[1 if column else 0]
            if row == 0:
                picture = montage(about_median(array), n_columns=3)
                low, high = typical_limits(about_median(scaled), WIDE)
            else:
                picture, (low, high) = array[middle], grey_limits(scaled[middle], WIDE)
            axes = panels[row, column]
            axes.imshow(picture, cmap="gray", vmin=low, vmax=high)
            axes.set_axis_off()
            if row == 0:
                axes.set_title(COLUMNS[column], fontsize=17)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return _shrink_file(Path(path))


def _shrink_file(path: Path) -> Path:
    """Round grey levels: noise compresses badly, and no eye sees the difference."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L")).astype(int)
    for column, step in zip(np.array_split(grey, 3, axis=1), (28, 4, 4), strict=True):
        column[...] = np.minimum((column + step // 2) // step * step, 255)
        column[column > 250] = 255
    Image.fromarray(grey.astype(np.uint8)).save(path, optimize=True)
    return path


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
