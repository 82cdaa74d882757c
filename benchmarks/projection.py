"""Projections of a volume, and their adjoint, beside other libraries: CPU time and error.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/projection.py [--images N]
        [--box-px N] [--quick] [--out FILE]

The volume is a sum of Gaussians whose projections are known in closed form. The peers are optional
(``pip install ducc0 finufft torch torch-fourier-slice``; ducc0 is under the GPL, and nothing of
emdask imports it). All run on one thread. What is done once a volume is given apart where a library
can do it once; the others do it in every call, and so share it out over the images of the call.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from arguments import QUICK, errors_as_sentences, parse_count
from tables import describe_machine, table, write_lines

from emdask.kernels.fourier import frequency_grid
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slice_grid import GridPlan
from emdask.kernels.slices import (
    ACCURACIES,
    data_to_volume,
    empty_sums,
    fold_sums,
    insert_slices,
    prepare_volume,
    project_volume,
    slice_volume,
)
from emdask.kernels.transforms import to_half_planes, to_images
from emdask.phantoms import phantom

Array = npt.NDArray[Any]

REPEATS = 5
# From the centre of a blob to where it ends, in its standard deviations.
BLOB_WIDTHS = 7 / 3
# Of the particle, shares of the box; the last of sharper blobs.
REACHES = (0.2, 0.3, 0.4, 0.44)
SHARP_PX = (1.5, 1.5)
# A cache line holds so many floats.
LINE = 16


class Task(NamedTuple):
    """A volume, views of it, and its projections in closed form."""

    volume: Array
    matrices: Array
    truth: Array


class Way(NamedTuple):
    """One way to project: what is done once, and what is done for the images."""

    name: str
    prepare: Callable[[Array], Any]
    project: Callable[[Any, Array], Array]


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    box_px = 48 if arguments.quick else arguments.box_px
    task = make_task(box_px, 6 if arguments.quick else arguments.images)
    lines = [describe_machine("numpy", "numba", "scipy"), ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    repeats = 1 if arguments.quick else REPEATS
    for measure in (projection_table, reach_table, adjoint_table, parts_table, floor_table):
        rows = [*measure(task, repeats), ""]
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Projections beside other libraries")
    parser.add_argument("--images", type=parse_count, default=100, help="images of each call")
    parser.add_argument("--box-px", type=parse_count, default=128, help="edge of the volume")
    parser.add_argument("--quick", action="store_true", help="a small volume: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


def make_task(
    box_px: int, n_images: int, reach: float = 0.4, widths_px: tuple[float, float] = (1.7, 3.0)
) -> Task:
    """A particle that reaches so far, as a share of the box, seen from anywhere."""
    radius_px = reach * box_px - BLOB_WIDTHS * widths_px[1]
    particle = phantom(200, radius_A=radius_px, width_A=widths_px, seed=1)
    rotation_deg = np.random.default_rng(2).uniform(-180, 180, (n_images, 3))
    truth = particle.project(rotation_deg, box_px=box_px, pixel_size_A=1.0)
    volume = particle.volume(box_px, 1.0).values
    return Task(volume, rotation_matrices(rotation_deg), truth)


# --- The ways to project --------------------------------------------------------------------------


def list_ways() -> list[Way]:
    """All that are installed."""
    ways = [
        Way(f"emdask, {accuracy}", functools.partial(prepare_volume, accuracy=accuracy), project)
        for accuracy in ACCURACIES
    ]
    peers = (("ducc0", ducc), ("finufft", finufft_ways), ("torch-fourier-slice", fourier_slice))
    for name, make in peers:
        try:
            ways += make()
        except ImportError:
            ways.append(Way(f"{name}: not installed", np.asarray, no_images))
    return ways


def project(spectrum: Any, matrices: Array) -> Array:
    """Project by emdask."""
    return np.asarray(project_volume(spectrum, matrices))


def no_images(prepared: Any, matrices: Array) -> Array:
    """Of a peer that is missing."""
    return np.empty(0, np.float32)


def plane_points(box_px: int, matrices: Array) -> tuple[Array, Array]:
    """Angular frequencies (z, y, x) of the points within the disc, and where they lie in slices."""
    inside = frequency_grid((box_px, box_px)) < 0.5
    row, column = np.nonzero(inside)
    ky, kx = np.fft.fftfreq(box_px)[row], np.fft.rfftfreq(box_px)[column]
    plane = np.stack([kx, ky], axis=1) * 2 * np.pi
    points = (plane @ matrices[:, :2])[..., ::-1]
    return points.reshape(-1, 3).astype(np.float32), inside


def images_of(values: Array, inside: Array, n_images: int) -> Array:
    """Images of what was found at the points within the disc."""
    box_px = len(inside)
    slices = np.zeros((n_images, *inside.shape), np.complex64)
    slices[:, inside] = values.reshape(n_images, -1)
    # From voxel (0, 0) to the middle of the image.
    waves = np.exp(-2j * np.pi * (box_px // 2) * np.fft.fftfreq(box_px)).astype(np.complex64)
    slices *= waves[:, None] * waves[: slices.shape[2]]
    return np.asarray(to_images(slices, (box_px, box_px)))


def ducc() -> list[Way]:
    """The non-uniform transform of ducc0."""
    import ducc0

    def run(epsilon: float, volume: Array, matrices: Array) -> Array:
        points, inside = plane_points(len(volume), matrices)
        values = ducc0.nufft.u2nu(
            grid=volume.astype(np.complex64),
            coord=points,
            forward=True,
            epsilon=epsilon,
            nthreads=1,
        )
        return images_of(values, inside, len(matrices))

    return [
        Way(f"ducc0, epsilon {epsilon:g}", np.asarray, functools.partial(run, epsilon))
        for epsilon in (5e-3, 3e-4, 3e-5)
    ]


def finufft_ways() -> list[Way]:
    """The non-uniform transform of finufft."""
    import finufft

    def run(epsilon: float, volume: Array, matrices: Array) -> Array:
        points, inside = plane_points(len(volume), matrices)
        values = finufft.nufft3d2(
            *np.ascontiguousarray(points.T),
            volume.astype(np.complex64),
            eps=epsilon,
            isign=-1,
            nthreads=1,
        )
        return images_of(values, inside, len(matrices))

    return [
        Way(f"finufft, epsilon {epsilon:g}", np.asarray, functools.partial(run, epsilon))
        for epsilon in (3e-4, 3e-5)
    ]


def fourier_slice() -> list[Way]:
    """Linear interpolation of a padded transform in PyTorch."""
    import torch
    from torch_fourier_slice import project_3d_to_2d

    torch.set_num_threads(1)

    def run(volume: Any, matrices: Array) -> Array:
        # It takes the planes to the volume.
        turned = torch.as_tensor(matrices.swapaxes(1, 2).copy(), dtype=torch.float32)
        return np.asarray(project_3d_to_2d(volume, turned, pad_factor=2.0))

    return [Way("torch-fourier-slice, padded twofold", torch.as_tensor, run)]


# --- Tables ---------------------------------------------------------------------------------------


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """CPU time of the fastest of some calls after the first."""
    function()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        taken.append(time.process_time() - start)
    return 1e3 * min(taken)


def projection_table(task: Task, repeats: int) -> list[str]:
    """Time and error of each way; ratios to our default."""
    measured = [(way.name, *measure_way(way, task, repeats)) for way in list_ways()]
    normal = next(each for name, _, each, _ in measured if name == "emdask, normal")
    rows = [
        [name, f"{once:.0f}", f"{each:.2f}", f"{error:.1e}", f"{each / normal:.1f}"]
        if each
        else [name, "", "", "", ""]
        for name, once, each, error in measured
    ]
    n, (h, w) = len(task.truth), task.truth.shape[1:]
    title = f"{n} projections of {h}^3 voxels to {h} x {w} pixels in one call"
    head = ["", "once a volume, ms", "CPU ms an image", "relative error", "times emdask, normal"]
    return [title, "", *table(head, rows)]


def measure_way(way: Way, task: Task, repeats: int) -> tuple[float, float, float]:
    """Milliseconds once a volume and then an image, and the error; zeros if it is missing."""
    prepared = way.prepare(task.volume)
    images = way.project(prepared, task.matrices)
    if not images.size:
        return 0.0, 0.0, 0.0
    error = float(np.linalg.norm(images - task.truth) / np.linalg.norm(task.truth))
    once = milliseconds(lambda: way.prepare(task.volume), repeats)
    all_images = milliseconds(lambda: way.project(prepared, task.matrices), repeats)
    return once, all_images / len(images), error


def reach_table(task: Task, repeats: int) -> list[str]:
    """Errors of particles that reach farther and farther."""
    n, box_px = min(len(task.truth), 20), len(task.volume)
    rows = []
    for reach in REACHES:
        sharp = {"widths_px": SHARP_PX} if reach == REACHES[-1] else {}
        other = make_task(box_px, n, reach, **sharp)
        errors = []
        for accuracy in ACCURACIES:
            spectrum = prepare_volume(other.volume, accuracy)
            images = project(spectrum, other.matrices)
            errors.append(np.linalg.norm(images - other.truth) / np.linalg.norm(other.truth))
        blobs = f", blobs of {SHARP_PX[0]:g} px" if sharp else ""
        rows.append([f"{reach:.2f}{blobs}", *(f"{error:.1e}" for error in errors)])
    head = ["radius of the particle, of the box", *ACCURACIES]
    return ["Relative errors, by how far the particle reaches", "", *table(head, rows)]


def adjoint_table(task: Task, repeats: int) -> list[str]:
    """Adding up slices, with weights; ducc0 and finufft add up points and no weights."""
    terms = to_half_planes(task.truth)
    weights = np.ones(terms.shape, np.float32)
    n = len(terms)
    rows = []
    for accuracy in ACCURACIES:
        sums = empty_sums(terms.shape[1], accuracy)
        insert = functools.partial(insert_slices, sums, terms, weights, task.matrices)
        insertion = milliseconds(insert, repeats) / n
        finish = milliseconds(
            lambda sums=sums: data_to_volume(fold_sums(sums)[0], sums.plan), repeats
        )
        rows.append([f"emdask, {accuracy}, data and weights", f"{insertion:.2f}", f"{finish:.0f}"])
    for name, run in peers_of_adjoint(task, terms):
        rows.append([f"{name}, data", f"{milliseconds(run, repeats) / n:.2f}", ""])
    head = ["", "CPU ms an image", "sums to volume, once, ms"]
    return [f"{n} slices added up", "", *table(head, rows)]


def peers_of_adjoint(task: Task, terms: Array) -> list[tuple[str, Callable[[], Any]]]:
    """Non-uniform transforms of type 1 of the same points, data alone."""
    points, inside = plane_points(terms.shape[1], task.matrices)
    values = np.ascontiguousarray(terms[:, inside]).reshape(-1)
    shape, epsilon = task.volume.shape, 3e-4
    peers: list[tuple[str, Callable[[], Any]]] = []
    if importlib.util.find_spec("ducc0"):
        import ducc0

        options: Any = {"points": values, "coord": points, "out": np.empty(shape, np.complex64)}
        options |= {"forward": False, "epsilon": epsilon, "nthreads": 1}
        peers.append((f"ducc0, epsilon {epsilon:g}", lambda: ducc0.nufft.nu2u(**options)))
    if importlib.util.find_spec("finufft"):
        import finufft

        axes = np.ascontiguousarray(points.T)
        more: Any = {"eps": epsilon, "isign": 1, "nthreads": 1}
        run = functools.partial(finufft.nufft3d1, *axes, values, shape, **more)
        peers.append((f"finufft, epsilon {epsilon:g}", run))
    return peers


def parts_table(task: Task, repeats: int) -> list[str]:
    """What a projection consists of, with the default."""
    spectrum = prepare_volume(task.volume)
    matrices, n = task.matrices, len(task.matrices)
    slices = slice_volume(spectrum, matrices)
    same = np.repeat(matrices[:1], n, axis=0)
    parts: dict[str, Callable[[], Any]] = {
        "slices": lambda: slice_volume(spectrum, matrices),
        "one slice as many times: it stays in the caches": lambda: slice_volume(spectrum, same),
        "inverse Fourier transforms": lambda: to_images(slices, task.truth.shape[1:]),
    }
    rows = [[name, f"{milliseconds(run, repeats) / n:.2f}"] for name, run in parts.items()]
    return ["Parts of a projection, normal", "", *table(["", "CPU ms an image"], rows)]


def floor_table(task: Task, repeats: int) -> list[str]:
    """Least time of a slice by memory and by arithmetic."""
    box_px = len(task.volume)
    stream = np.ones(1 << 24, np.float32)
    gigabytes = stream.nbytes / milliseconds(stream.sum, repeats) / 1e6
    rows = []
    for accuracy in ACCURACIES:
        plan = GridPlan(box_px=box_px, accuracy=accuracy)
        n_points = len(plane_points(box_px, task.matrices[:1])[0])
        lines = np.mean([count_lines(plan, matrix) for matrix in task.matrices[:5]])
        grid = 8 * np.prod(plan.shape) / 1e6
        vectors = n_points * plan.width**2 * (1 if plan.width <= 4 else 2)
        megabytes = lines * 4 * LINE / 1e6
        cells = [f"{plan.grid_px}^3 / 2, {grid:.0f} MB", f"{plan.width}^3", f"{n_points:,}"]
        cells += [f"{vectors / 1e6:.2f}", f"{megabytes:.2f}", f"{megabytes / gigabytes:.2f}"]
        rows.append([accuracy, *cells])
    head = ["", "grid", "cells a point", "points a slice", "million vector steps a slice"]
    head += ["MB of cache lines a slice", f"ms at {gigabytes:.1f} GB/s"]
    return ["Least work, and memory as it streams", "", *table(head, rows)]


def count_lines(plan: GridPlan, matrix: Array) -> int:
    """Different cache lines that a slice touches."""
    points = plane_points(plan.box_px, matrix[None])[0].astype(np.float64)
    points *= plan.grid_px / (2 * np.pi)
    points[points[:, 2] < 0] *= -1
    first = np.ceil(points - plan.width / 2).astype(np.int64) + plan.centre
    taps = np.arange(plan.width)
    z, y = first[:, 0, None, None] + taps[:, None], first[:, 1, None, None] + taps
    start = (z * plan.shape[1] + y) * plan.shape[2] + first[:, 2, None, None]
    floats = 2 * start[..., None] + np.array([0, 2 * plan.width - 1])
    return len(np.unique(floats // LINE))


if __name__ == "__main__":
    with errors_as_sentences():
        main()
