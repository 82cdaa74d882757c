"""Maps of real particle images whose poses are known.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/real_maps.py DATA_FOLDER
        [--quick] [--out FILE]

DATA_FOLDER holds ``particles/`` and ``maps/``: stacks of a few images each, from the tests of
cryoDRGN, ASPIRE and cryojax. Each stack is reconstructed. Where a map of the particle is there, the
result is held against it. So few images may agree by chance, so every fifth is also left out, each
in its turn: the map of the others, seen at the image's pose, is correlated with it, and beside that
the same map seen at random poses. That is done on images of at most 100 px. The map that is there
is also seen with one sign or another turned: only RELION's must be right.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr
from arguments import QUICK, errors_as_sentences
from scipy.signal import resample
from scipy.spatial.transform import Rotation
from tables import describe_machine, table, write_lines

import emdask
from emdask.errors import StackError
from emdask.kernels.ctf import apply_ctf
from emdask.kernels.masks import spherical_mask
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.metrics import frc_resolution, fsc
from emdask.stack import optics_of

Floats = npt.NDArray[Any]

# Correlations of single images: coarser than a third of Nyquist is noise to them.
FINEST_A, FINEST_PX = 20.0, 0.3
COARSE_PX = 100
FOLDS = 5
RANDOM_POSES = 20


class Set(NamedTuple):
    """A stack with poses, and what its files do not tell."""

    name: str
    table: str
    diameter_A: float | str
    symmetry: str = "C1"
    pixel_size_A: float | None = None
    reference: str = ""
    series: str = ""
    links: tuple[tuple[str, str], ...] = ()


SETS = (
    Set(
        name="TRPV1",
        table="trpv1_cryojax/trpv1_small_stack.star",
        diameter_A=200.0,
        symmetry="C4",
        reference="trpv1_volume.mrc",
        links=(("trpv1_small_stack.mrcs", "batch_0_restacked.mrc"),),
    ),
    # Binned 8 times; the header still has the edge of a pixel of the camera.
    Set(
        name="ribosomes, six tilt series",
        table="ribosome_tilt_cryodrgn/sta_testing_bin8.star",
        diameter_A=440.0,
        pixel_size_A=8 * 1.96,
        series="rlnGroupName",
    ),
    Set(name="sample of ASPIRE", table="aspire_sample/sample_relion_data.star", diameter_A=180.0),
    Set(name="filament", table="relion31_cryodrgn/relion31.star", diameter_A="auto"),
)
WITHOUT_POSES = "lsu50S_10076_cryodrgn/empiar_10076_7.star"


def main() -> None:
    """Reconstruct and print all tables."""
    arguments = parse_arguments()
    lines = [describe_machine("numpy", "scipy", "numba"), ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    sets = (SETS[0]._replace(symmetry="C1"),) if arguments.quick else SETS
    stacks = [open_set(one, arguments.folder) for one in sets]
    parts = [
        maps_table(sets, stacks, arguments.folder),
        signs_table(sets[0], stacks[0], arguments.folder),
        left_out_table(sets, stacks, 1 if arguments.quick else RANDOM_POSES),
        say_without_poses(arguments.folder),
    ]
    for part in parts:
        lines += [*part, ""]
        print("\n".join([*part, ""]), flush=True)
    write_lines(lines, arguments.out)


def open_set(one: Set, folder: Path) -> xr.DataArray:
    """Open a stack in memory; where its table has other names for its files, beside links."""
    path = folder / "particles" / one.table
    with tempfile.TemporaryDirectory() as beside:
        if one.links:
            for name, link in ((path.name, path.name), *one.links):
                (Path(beside) / link).symlink_to((path.parent / name).resolve())
            path = Path(beside) / path.name
        stack = emdask.open_stack(path, pixel_size_A=one.pixel_size_A).compute()
    # Where a table has all images in one half, the halves are even and odd numbers.
    is_one = "half_set" in stack.coords and len(np.unique(stack.half_set)) < 2
    return stack.drop_vars("half_set") if is_one else stack


def maps_table(sets: Any, stacks: Any, folder: Path) -> list[str]:
    """Resolution of each map by its halves, and its likeness to the reference."""
    head = ["particle", "images", "box, px", "pixel, Å", "symmetry", "CPU s"]
    head += ["halves: FSC 0.143, Å", "FSC 0.5, Å", "reference: FSC 0.5, Å", "correlation"]
    rows = []
    for one, stack in zip(sets, stacks, strict=True):
        start = time.process_time()
        result = reconstruct(one, stack)
        seconds = time.process_time() - start
        row = [one.name, str(len(stack)), str(stack.shape[-1]), f"{stack.pixel_size_A:g}"]
        row += [one.symmetry, f"{seconds:.1f}"]
        row += [f"{resolution_A:.0f}" for resolution_A in result.resolution_A.values]
        rows.append([*row, *compare(one, result, folder)])
    return ["Maps", "", *table(head, rows)]


def reconstruct(one: Set, stack: xr.DataArray) -> xr.Dataset:
    """Reconstruct, and compute it here on one core."""
    lazy = emdask.reconstruct(stack, symmetry=one.symmetry, diameter_A=one.diameter_A)
    computed: xr.Dataset = lazy.compute(scheduler="synchronous")
    return computed


def compare(one: Set, result: xr.Dataset, folder: Path) -> list[str]:
    """Resolution against the reference and correlation with it in the ball of the particle."""
    if not one.reference:
        return ["no map", "no map"]
    reference = emdask.open_volume(folder / "maps" / one.reference)
    radius_px = float(one.diameter_A) / result.pixel_size_A / 2
    ball = spherical_mask(len(reference), radius_px)
    frequency, correlation = fsc(result.volume, reference, mask=ball)
    resolution_A = result.pixel_size_A / float(frc_resolution(frequency, correlation))
    inside = ball > 0.5
    likeness = np.corrcoef(result.volume.values[inside], reference.values[inside])[0, 1]
    return [f"{resolution_A:.0f}", f"{likeness:.2f}"]


def signs_table(one: Set, stack: xr.DataArray, folder: Path) -> list[str]:
    """Correlation of images with views of the published map, by how their table is read."""
    views = Views(emdask.open_volume(folder / "maps" / one.reference), stack)
    matrices, shifts_px = views.matrices, views.shifts_px
    readings = {
        "as RELION means it": views.correlate(matrices),
        "no shifts": views.correlate(matrices, shifts_px=0 * shifts_px),
        "shifts of the other sign": views.correlate(matrices, shifts_px=-shifts_px),
        "mirror image": views.correlate(matrices * [1, 1, -1]),
        "inverse rotations": views.correlate(matrices.transpose(0, 2, 1)),
        "no CTF": views.correlate(matrices, transfer=views.band),
    }
    head = ["poses, shifts and CTF", "correlation, mean", "least", "most"]
    rows = [
        [reading, *(f"{figure:.3f}" for figure in (found.mean(), found.min(), found.max()))]
        for reading, found in readings.items()
    ]
    return [f"Images of {one.name}, and views of the published map", "", *table(head, rows)]


def left_out_table(sets: Any, stacks: Any, n_random: int) -> list[str]:
    """Correlation of images with views of the map of the others."""
    head = ["particle", "images", "at their poses", "at random poses", "their standard deviation"]
    head += ["difference in standard deviations of the mean"]
    rows = []
    for one, stack in zip(sets, stacks, strict=True):
        right, wrong = leave_out(one, resample_images(stack, COARSE_PX), n_random)
        excess = (right.mean() - wrong.mean()) / wrong.std() * np.sqrt(len(right))
        figures = [f"{x:.3f}" for x in (right.mean(), wrong.mean(), wrong.std())]
        rows.append([one.name, str(len(stack)), *figures, f"{excess:.1f}"])
    return ["Images that were left out, and views of the map of the others", "", *table(head, rows)]


def resample_images(stack: xr.DataArray, most_px: int) -> xr.DataArray:
    """Sample images more coarsely, in Fourier space, where they are larger than need be."""
    n = stack.shape[-1]
    if n <= most_px:
        return stack
    coarse = resample(resample(stack.values, most_px, axis=1), most_px, axis=2)
    attrs = {**stack.attrs, "pixel_size_A": stack.pixel_size_A * n / most_px}
    return xr.DataArray(coarse, dims=stack.dims, coords=stack.coords, attrs=attrs)


def leave_out(one: Set, stack: xr.DataArray, n_random: int) -> tuple[Floats, Floats]:
    """Correlate each image with the map of those outside its fold, at its pose and at others."""
    numbers = np.arange(len(stack))
    if one.series:  # images of one particle are left out together
        numbers = np.unique(stack[one.series], return_inverse=True)[1]
    folds = numbers % FOLDS
    right, wrong = np.empty(len(stack)), np.empty((len(stack), n_random))
    for fold in range(FOLDS):
        out = folds == fold
        volume = reconstruct(one, stack.isel(image=~out).drop_vars("half_set", errors="ignore"))
        views = Views(volume.volume, stack.isel(image=out))
        right[out] = views.correlate(views.matrices)
        for draw in range(n_random):
            matrices = Rotation.random(out.sum(), rng=draw).as_matrix()
            wrong[out, draw] = views.correlate(matrices)
    return right, wrong


class Views:
    """A map, and images that are held against views of it."""

    def __init__(self, volume: xr.DataArray, images: xr.DataArray) -> None:
        self.spectrum = prepare_volume(volume.values)
        angles = [images[name] for name in ("rot_deg", "tilt_deg", "psi_deg")]
        self.matrices = rotation_matrices(np.stack(angles, axis=-1))
        self.shifts_px = find_shifts(images)
        n = images.shape[-1]
        k = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
        finest = min(images.pixel_size_A / FINEST_A, FINEST_PX)
        self.band = ((k > 1.5 / n) & (k < finest)).astype(np.float32)
        optics = optics_of(images)
        ctf = np.float32(1) if optics is None else optics.ctfs(images.shape[1:], len(images))
        self.transfer = ctf * self.band
        self.images = apply_ctf(images.values.astype(np.float32), self.band)

    def correlate(
        self, matrices: Floats, shifts_px: Floats | None = None, transfer: Floats | None = None
    ) -> Floats:
        """Return the correlation of each image with the map seen so, within the band."""
        shifts_px = self.shifts_px if shifts_px is None else shifts_px
        views = project_volume(self.spectrum, matrices, shifts_px)
        views = apply_ctf(views, self.transfer if transfer is None else transfer)
        product = (views * self.images).sum(axis=(1, 2))
        norms = [np.sqrt((stack * stack).sum(axis=(1, 2))) for stack in (views, self.images)]
        return np.asarray(product / (norms[0] * norms[1]))


def find_shifts(images: xr.DataArray) -> Floats:
    """Shifts in pixels; none where the table has none."""
    if "shift_x_A" not in images.coords:
        return np.zeros((len(images), 2))
    return np.stack([images.shift_x_A, images.shift_y_A], axis=-1) / images.pixel_size_A


def say_without_poses(folder: Path) -> list[str]:
    """What is said of a stack whose poses are not known."""
    try:
        emdask.reconstruct(emdask.open_stack(folder / "particles" / WITHOUT_POSES))
    except StackError as error:
        return [f"{WITHOUT_POSES} has no poses. {error}"]
    return [f"{WITHOUT_POSES} has poses."]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with particles/ and maps/")
    parser.add_argument("--quick", action="store_true", help="one stack, to see that it runs")
    parser.add_argument("--out", type=Path, help="write the tables to this file as well")
    return parser.parse_args()


if __name__ == "__main__":
    with errors_as_sentences():
        main()
