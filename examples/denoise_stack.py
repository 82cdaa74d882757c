"""Denoise a stack and compare before and after: ``python examples/denoise_stack.py [FILE] [OUT]``.

Without a file, particle images are simulated, and the result is measured against the truth.
"""

from __future__ import annotations

import sys
from pathlib import Path

import emdask
from emdask.metrics import low_frequency_ratio, psnr
from emdask.plots import draw_before_after, save_figure
from emdask.simulators.demo_images import demo_particles


def main(source: str = "", out: str = "denoised.zarr") -> Path:
    """Open, denoise, save, compare; return the path of the picture."""
    clean = None
    if source:
        stack = emdask.open_stack(source)
    else:
        stack, clean = demo_particles(16, box_px=64, pixel_size_A=4.0)
    print(f"{len(stack)} images of {stack.shape[1:]} pixels, {stack.attrs.get('pixel_size_A')} Å")

    denoised = emdask.denoise(stack, method="bm3d")  # lazy: nothing is computed yet
    path = emdask.save_stack(denoised, out, overwrite=True)
    print(f"saved {path}")

    before, after = stack[:16].values, emdask.open_stack(path)[:16].values
    ratio = low_frequency_ratio(before - after).mean()
    print(f"low-frequency power of what was taken away, white noise = 1: {ratio:.2f}")
    if clean is not None:
        print(f"PSNR: {psnr(before, clean).mean():.2f} dB -> {psnr(after, clean).mean():.2f} dB")
    figure = draw_before_after(before, after, pixel_size_A=stack.attrs.get("pixel_size_A"))
    return save_figure(figure, path.with_suffix(".png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
