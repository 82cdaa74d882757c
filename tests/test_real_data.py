"""Real micrographs and particles from file to file: opened, denoised, saved, opened again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import emdask
from emdask.kernels.noise import estimate_sigma
from emdask.metrics import low_frequency_ratio

# Name, target, and the range of the residual's low-frequency power over that of white noise.
# Where the noise is white, BM3D takes away just that: 1. The noise of the second micrograph is 2.6
# times stronger below 0.1 cycles/px than above, and some of it stays in the image: below 1. No set
# may be above: that would be contours of particles.
SETS = [
    ("micrographs/fei-extended_bin4.mrc", "out.mrc", (0.9, 1.1)),
    ("micrographs/epu2.9_example_bin4.mrc", "out.zarr", (0.4, 1.1)),
    ("particles/lsu50S_10076_cryodrgn/empiar_10076_7.star", "out.mrcs", (0.9, 1.1)),
]


@pytest.mark.parametrize(("name", "target", "bounds"), SETS)
def test_real_images_from_file_to_file(
    name: str, target: str, bounds: tuple[float, float], shared_data: Path, tmp_path: Path
) -> None:
    stack = emdask.open_stack(shared_data / name, images=slice(0, 2))
    noisy = stack.values.astype(np.float32)
    sigmas = estimate_sigma(noisy)
    assert (sigmas > 0).all()
    assert (sigmas <= noisy.std(axis=(1, 2))).all()
    saved = emdask.save_stack(emdask.denoise(stack, "bm3d"), tmp_path / target)
    again = emdask.open_stack(saved)
    assert again.attrs["pixel_size_A"] == pytest.approx(stack.attrs["pixel_size_A"], rel=1e-6)
    assert np.isfinite(again.values).all()
    low, high = bounds
    assert low < float(low_frequency_ratio(noisy - again.values).mean()) < high
