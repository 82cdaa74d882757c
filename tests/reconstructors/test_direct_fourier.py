"""Direct Fourier inversion: symmetric particles, regularisation, memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import ParameterError
from emdask.kernels.projections import sample_blobs
from emdask.kernels.symmetry import symmetry_matrices
from emdask.metrics import fsc
from emdask.reconstructors import direct_fourier
from emdask.reconstructors.direct_fourier import DirectFourier
from emdask.volumes import build_volume

BOX, PIXEL_A = 48, 4.0
CTF = {"defocus_A": (10_000, 20_000), "astigmatism_A": (0, 300)}


def symmetric_truth(group: str) -> xr.DataArray:
    rng = np.random.default_rng(3)
    centres = rng.normal(size=(30, 3))
    centres *= rng.uniform(15, 58, (30, 1)) / np.linalg.norm(centres, axis=1, keepdims=True)
    centres = np.concatenate([centres @ matrix.T for matrix in symmetry_matrices(group)])
    return build_volume(sample_blobs(centres, 6.0, box_px=BOX, pixel_size_A=PIXEL_A), PIXEL_A)


def simulate(truth: xr.DataArray, n_images: int, **options: Any) -> tuple[xr.DataArray, float]:
    """Images, and how many grey levels they have for one of the truth."""
    options = {"snr": 0.3, "ctf": CTF, "device": "cpu", **options}
    images = emdask.simulate(truth, n_images, **options).images.compute()
    clean = emdask.simulate(truth, 200, **options).clean
    volume = emdask.reconstruct(clean, half_maps=False).volume.compute()
    return images, float((volume * truth).sum() / (truth * truth).sum())


@pytest.mark.parametrize("group", ["D2", "C3"])
@pytest.mark.parametrize("n_images", [10, 20])
def test_few_images_of_a_symmetric_particle(group: str, n_images: int) -> None:
    truth = symmetric_truth(group)
    images, level = simulate(truth, n_images)
    without, with_it = (emdask.reconstruct(images, symmetry=s).compute() for s in ("C1", group))
    agreement = [fsc(found.volume, truth)[1].values[3:12].mean() for found in (without, with_it)]
    assert agreement[1] > agreement[0] + 0.05
    largest = level * float(truth.max())
    for name in ("volume", "half_1", "half_2"):
        assert 0.5 * largest < abs(with_it[name]).max() < 2 * largest
    assert with_it.attrs["n_images"] == n_images


@pytest.mark.parametrize("group", ["D2", "T"])
def test_rotated_sums_are_the_sums_of_rotated_views(group: str) -> None:
    truth = symmetric_truth(group)
    images, _ = simulate(truth, 300)
    views, sums = (
        emdask.reconstruct(images, symmetry=group, symmetrise=way).compute()
        for way in ("views", "sums")
    )
    for name in ("volume", "half_1", "half_2"):
        difference = np.linalg.norm(views[name] - sums[name])
        assert difference < 0.03 * np.linalg.norm(views[name])
    np.testing.assert_allclose(views.fsc, sums.fsc, atol=0.02)


def given(n_images: int, box_px: int) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "images": rng.standard_normal((n_images, box_px, box_px), np.float32),
        "rotation_deg": rng.uniform(0, 360, (n_images, 3)),
        "shift_A": np.zeros((n_images, 2)),
        "half": np.arange(n_images) % 2 + 1,
        "optics": None,
    }


def test_weights_of_few_rotated_sums_are_not_below_0() -> None:
    params = DirectFourier(pixel_size_A=PIXEL_A, symmetry="D2", symmetrise="sums")
    sums = direct_fourier.insert(None, params=params, **given(6, BOX))
    for half in sums.halves:
        assert direct_fourier._grids(half, params)[1].min() >= 0


def test_views_are_rotated_where_they_are_few() -> None:
    params = DirectFourier(symmetry="D2")
    few, many = (
        direct_fourier.complete(params, {"pixel_size_A": 2.0}, (n, BOX, BOX)).symmetrise
        for n in (10, 100_000)
    )
    assert (few, many) == ("views", "sums")
    kept = direct_fourier.complete(
        replace(params, symmetrise="sums"), {"pixel_size_A": 2.0}, (10, BOX, BOX)
    )
    assert kept.symmetrise == "sums"
    with pytest.raises(ParameterError, match="symmetrise must be one of"):
        DirectFourier(symmetrise="volumes")


def test_noise_over_signal_is_told_by_halves_of_any_size() -> None:
    """Correlation of halves of weights 1 and 9: signal / sqrt of the product of their powers."""
    signal = np.geomspace(100, 10, 24)
    first, second = np.ones(25), np.full(25, 9.0)
    correlation = signal / np.sqrt((signal + 1) * (signal + 1 / 9))
    found = direct_fourier._prior(DirectFourier(), [first, second], correlation)
    np.testing.assert_allclose(found[2:-2] * signal[1:-2], 1, atol=0.05)


def test_memory_is_as_stated() -> None:
    """In maps of 4 bytes a voxel: 27 for a task that adds images, 37 at the end."""
    box_px = 96
    params = DirectFourier(pixel_size_A=PIXEL_A)
    block = given(40, box_px)
    map_bytes, images_bytes = 4 * box_px**3, block["images"].nbytes
    direct_fourier.finalize(direct_fourier.insert(None, params=params, **given(2, 16)), params)
    tracemalloc.start()
    try:
        before = direct_fourier.insert(None, params=params, **block)
        sums = direct_fourier.insert(before, params=params, **block)
        assert tracemalloc.get_traced_memory()[1] < 27 * map_bytes + 2 * images_bytes
        del before
        tracemalloc.reset_peak()
        direct_fourier.finalize(sums, params)
        assert tracemalloc.get_traced_memory()[1] < 37.5 * map_bytes
    finally:
        tracemalloc.stop()
