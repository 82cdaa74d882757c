"""K-SVD of emdask on one card, beside its CPU twin and what the arithmetic allows.

    python benchmarks/ksvd_gpu.py [INPUTS] [--seconds S] [--quick] [--out FILE]

INPUTS is as for ``bm3d_gpu.py``. Dictionaries are learnt on the host, one for the images of an
input. Times of the card are those of CUDA events around calls on images that are on the card
already, after a warm-up; those of the CPU are of one core, on a part of the images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import QUICK
from bm3d_gpu import (
    Card,
    card_line,
    copy_bandwidth,
    crop_input,
    describe_card,
    make_inputs,
    read_inputs,
    time_calls,
)
from inputs import Floats, Input, psnr
from tables import describe_machine, table, write_lines

from emdask.backend import why_no_cuda
from emdask.denoisers.ksvd import (
    Ksvd,
    denoise_cpu,
    denoise_cuda,
    learn_dictionaries,
    sample_scales,
)
from emdask.kernels import ksvd

# Allows everything: patches are read, and their means written and averaged.
NO_ATOMS_GAIN = 1e9


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    if (reason := why_no_cuda()) is not None:
        print(f"ksvd_gpu.py: an NVIDIA card is needed; {reason}.", file=sys.stderr)
        sys.exit(2)
    inputs = read_inputs(arguments.inputs) if arguments.inputs else make_inputs(arguments.quick)
    card = describe_card()
    lines = [describe_machine("emdask", "numpy", "numba"), "", card_line(card), ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    bandwidth = copy_bandwidth()
    for row in inputs:
        seconds, model = timed(lambda row=row: learn(row))
        for rows in (
            whole_table(row, seconds, model, arguments.seconds),
            pass_table(row, model.atoms.values[0], card, bandwidth, arguments.seconds),
        ):
            lines += [*rows, ""]
            print("\n".join([*rows, ""]), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="K-SVD on one card beside its CPU twin")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of inputs")
    parser.add_argument("--seconds", type=float, default=5, help="for each figure, at least once")
    parser.add_argument("--quick", action="store_true", help="small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def learn(row: Input) -> Any:
    """Learn the dictionaries of an input on the host."""
    params = Ksvd(sigma=row.sigma)
    return learn_dictionaries(sample_scales(row.noisy, np.arange(len(row.noisy)), params), params)


def whole_table(row: Input, learning_s: float, model: Any, seconds: float) -> list[str]:
    """Time and PSNR of all images on the card; of a part also on the CPU, and how both agree."""
    import cupy

    params = Ksvd(sigma=row.sigma)
    noisy, part = cupy.asarray(row.noisy), crop_input(row).noisy
    result = cupy.asnumpy(denoise_cuda(noisy, params, model))
    times = time_calls(lambda: denoise_cuda(noisy, params, model), seconds)
    card_ms = statistics.median(times)
    denoise_cpu(part[:1, :64, :64], params, model)
    cpu_s, expected = timed(lambda: denoise_cpu(part, params, model))
    cpu_ms = 1e3 * cpu_s * row.noisy.size / part.size
    again = cupy.asnumpy(denoise_cuda(cupy.asarray(part), params, model))
    apart = np.abs(again - expected) / row.sigma
    cells = [
        [f"learning on the host, {model.sizes['scale']} scales, CPU s", f"{learning_s:.2f}"],
        ["card, ms (least to most)", f"{card_ms:.2f} ({min(times):.2f} to {max(times):.2f})"],
        ["card, ms an image", f"{card_ms / len(row.noisy):.3f}"],
        ["CPU, ms (by the pixels of a part)", f"{cpu_ms:.0f}"],
        ["CPU / card", f"{cpu_ms / card_ms:.0f}"],
        ["PSNR, dB", f"{psnr(result, row.clean, row.data_range):.3f}"],
        ["card - CPU, sigma: median, largest", f"{np.median(apart):.1e}, {apart.max():.1e}"],
    ]
    return [f"## {row.name}", "", *table(["whole", ""], cells)]


def pass_table(
    row: Input, atoms: Floats, card: Card, bandwidth: float, seconds: float
) -> list[str]:
    """One pass over the images at full resolution, beside floors of arithmetic and memory."""
    import cupy

    from emdask.kernels.pursuit_cuda import denoise_images

    offsets = row.noisy.mean(axis=(1, 2), keepdims=True)
    unit = cupy.asarray((row.noisy - offsets) / np.float32(row.sigma))
    settings = {"blend": ksvd.BLEND, "max_atoms": ksvd.MOST_ATOMS_IN_USE}

    def median_ms(gain: float) -> float:
        def run() -> Any:
            return denoise_images(unit, atoms, gain=gain, **settings)

        run()
        return statistics.median(time_calls(run, seconds))

    side, share = round(atoms.shape[1] ** 0.5), active_share(crop_input(row), atoms.shape[1])
    n, h, w = row.noisy.shape
    n_patches = n * (h - side + 1) * (w - side + 1)
    products_ms = 1e3 * share * n_patches * atoms.size / card.operations_per_s
    moved_ms = 1e3 * 8 * n_patches * atoms.shape[1] / bandwidth
    rows = [
        ["a pass", f"{median_ms(ksvd.CODE_GAIN):.3f}"],
        ["the same, no patch with atoms", f"{median_ms(NO_ATOMS_GAIN):.3f}"],
        [f"floor: products, {share:.0%} of patches with all atoms", f"{products_ms:.3f}"],
        ["floor: estimates written and read", f"{moved_ms:.3f}"],
    ]
    return table([f"full resolution, {n_patches:,} patches", "ms"], rows)


def active_share(row: Input, n_pixels: int) -> float:
    """Share of the patches that need atoms; of every third in either direction."""
    side = round(n_pixels**0.5)
    places = np.lib.stride_tricks.sliding_window_view(row.noisy / row.sigma, (side, side), (1, 2))
    energies = n_pixels * places[:, ::3, ::3].var(axis=(-2, -1))
    return float(np.mean(energies > ksvd.CODE_GAIN**2 * n_pixels))


if __name__ == "__main__":
    main()
