"""Simulate, reconstruct and judge: ``python examples/reconstruct.py [MAP] [OUT]``.

Without a map, a phantom is taken. Because the images are simulated, what their half maps say can be
compared with the truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import emdask
from emdask.metrics import frc_resolution, fsc
from emdask.plots import save_figure
from emdask.volume_plots import draw_fsc, draw_volume


def main(
    source: str = "", out: str = "reconstructed.mrc", *, n_images: int = 2000, box_px: int = 64
) -> Path:
    """Simulate, reconstruct, compare; return the path of the curves."""
    if source:
        truth = emdask.open_volume(source)
    else:
        truth = emdask.phantom(200, radius_A=0.9 * box_px, width_A=(5, 8)).volume(box_px, 3.0)
    pixel_size_A = truth.attrs["pixel_size_A"]
    ctf = {"defocus_A": (10_000, 20_000)}
    stack = emdask.simulate(truth, n_images, snr=0.1, shifts_A=5, ctf=ctf).images  # lazy
    print(f"{len(stack)} images of {stack.shape[1:]} pixels, {pixel_size_A} Å")

    found = emdask.reconstruct(stack).compute()
    path = emdask.save_volume(found.volume, out, overwrite=True)
    print(f"saved {path}; half maps agree to {found.resolution_A[0]:.1f} Å (FSC 0.143)")

    frequency, correlation = fsc(found.volume, truth)
    resolution_A = pixel_size_A / float(frc_resolution(frequency, correlation, threshold=0.5))
    print(f"the map and the truth agree to {resolution_A:.1f} Å (FSC 0.5)")

    save_figure(draw_volume(found.volume, pixel_size_A=pixel_size_A), path.with_suffix(".png"))
    curves = {"half maps": found.fsc, "map and truth": correlation}
    thresholds = {"half maps": 0.143, "map and truth": 0.5}
    figure = draw_fsc(frequency / pixel_size_A, curves, thresholds)
    return save_figure(figure, path.with_name(f"{path.stem}_fsc.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
