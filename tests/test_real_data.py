"""Real data: images from file to file, structures and maps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.kernels.ctf import apply_ctf
from emdask.kernels.masks import spherical_mask
from emdask.kernels.noise import estimate_sigma
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.metrics import low_frequency_ratio
from emdask.stack import optics_of
from emdask.structures import Motion, volume_from_structure

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


# RNA polymerase, its clamp closed and open by 10 degrees: maps that a script made of these atoms by
# gemmi alone, at a B factor of 200 Å^2, 4 resolution_A^2, turned so that z is the hinge.
CLAMP = ("//D/-10-417", "//D/1224-1250", "//C/1118-9999", "//F/-10-375")
HINGE_A, HINGE = (19.592, -16.785, 15.752), (-0.007645, -0.999966, -0.003009)
FRAME = Motion(
    selection="*",
    axis=(-90.11454, 3.56153, -2.86383),
    angle_deg=90.2303,
    pivot_A=(-1.98718, -7.34608, 12.44896),
    translation_A=(0.0043, 0.0331, -0.00557),
)


@pytest.mark.parametrize(("name", "opening_deg"), [("vol_0.npy", 0.0), ("vol_2.npy", 10.0)])
def test_conformations_are_those_made_by_gemmi_alone(
    name: str, opening_deg: float, shared_data: Path
) -> None:
    clamp = Motion(selection=CLAMP, axis=HINGE, angle_deg=-opening_deg, pivot_A=HINGE_A)
    volume = volume_from_structure(
        shared_data / "structures" / "5UH6_Mtb_RNAP.pdb",
        pixel_size_A=2.0,
        resolution_A=np.sqrt(50.0),
        box_px=128,
        chains="A,B,C,D,E,F",
        ligands=False,
        motion=[clamp, FRAME],
    )
    truth = np.load(shared_data / "conformations" / name)
    assert np.corrcoef(volume.values.ravel(), truth.ravel())[0, 1] > 0.9999


@pytest.fixture
def trpv1(shared_data: Path, tmp_path: Path) -> xr.DataArray:
    """Ten images of TRPV1 with poses and CTFs; their STAR file has another name for their stack."""
    folder = shared_data / "particles" / "trpv1_cryojax"
    (tmp_path / "trpv1.star").symlink_to(folder / "trpv1_small_stack.star")
    (tmp_path / "batch_0_restacked.mrc").symlink_to(folder / "trpv1_small_stack.mrcs")
    return emdask.open_stack(tmp_path / "trpv1.star")


def correlate(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    a, b = (stack - stack.mean(axis=(1, 2), keepdims=True) for stack in (images, others))
    norms = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    return np.asarray((a * b).sum(axis=(1, 2)) / norms)


def test_views_of_a_map_are_those_of_relion(trpv1: xr.DataArray, shared_data: Path) -> None:
    """Every sign counts: rotations, shifts and the CTF, against real images of that map."""
    reference = prepare_volume(emdask.open_volume(shared_data / "maps/trpv1_volume.mrc").values)
    rotation_deg = np.stack([trpv1.rot_deg, trpv1.tilt_deg, trpv1.psi_deg], axis=-1)
    shifts_px = np.stack([trpv1.shift_x_A, trpv1.shift_y_A], axis=-1) / trpv1.pixel_size_A
    optics, matrices = optics_of(trpv1), rotation_matrices(rotation_deg)
    assert optics is not None
    ctf = optics.ctfs(trpv1.shape[1:], len(trpv1), np)

    def match(matrices: np.ndarray, shifts_px: np.ndarray, ctf: np.ndarray) -> np.ndarray:
        views = project_volume(reference, matrices, shifts_px)
        return correlate(apply_ctf(views, ctf), trpv1.values)

    right = match(matrices, shifts_px, ctf)
    assert (right > 0.14).all()
    assert right.mean() > match(matrices, shifts_px, np.ones_like(ctf)).mean() + 0.02
    for others in (
        match(matrices.transpose(0, 2, 1), shifts_px, ctf),
        match(matrices * [1, 1, -1], shifts_px, ctf),
        match(matrices, -shifts_px, ctf),
        match(matrices, shifts_px * 0, ctf),
    ):
        assert right.mean() > others.mean() + 0.05


@pytest.mark.parametrize(("symmetry", "least"), [("C1", 0.45), ("C4", 0.55)])
def test_ten_real_images_make_a_map_like_their_reference(
    symmetry: str, least: float, trpv1: xr.DataArray, shared_data: Path
) -> None:
    """Correlation within the particle's ball; the second needs the axis where RELION has it."""
    found = emdask.reconstruct(trpv1, symmetry=symmetry, diameter_A=200.0).compute().volume
    reference = emdask.open_volume(shared_data / "maps/trpv1_volume.mrc")
    inside = spherical_mask(len(reference), 100.0 / found.pixel_size_A) > 0.5
    assert np.corrcoef(found.values[inside], reference.values[inside])[0, 1] > least


def test_halves_of_tilt_series_agree(shared_data: Path) -> None:
    """Six ribosomes, three in each half, binned eight times: they agree to about 230 Å."""
    stack = emdask.open_stack(
        shared_data / "particles/ribosome_tilt_cryodrgn/sta_testing_bin8.star",
        pixel_size_A=8 * 1.96,
    )
    result = emdask.reconstruct(stack, diameter_A=440.0).compute()
    assert 180 < result.resolution_A.values[1] < 280
    far = result.fsc.values[result.frequency.values > 1 / 60]
    assert np.abs(far).mean() < 0.05


def test_the_benchmark_of_real_maps_runs(shared_data: Path, tmp_path: Path) -> None:
    script, out = Path(__file__).parents[1] / "benchmarks" / "real_maps.py", tmp_path / "maps.md"
    command = [sys.executable, str(script), str(shared_data), "--quick", "--out", str(out)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.count("| TRPV1 | 10 |") == 2
    rows = [line.split(" | ") for line in printed.splitlines() if line.count(" | ") == 3]
    mean = {row[0].removeprefix("| "): float(row[1]) for row in rows[2:]}
    assert len(mean) == 6
    assert mean.pop("as RELION means it") > max(mean.values()) + 0.01
    assert "has no poses. reconstruct: the pose of each image must be known" in printed
    assert out.read_text().splitlines() == printed.rstrip().splitlines()
