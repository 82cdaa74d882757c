"""Projections and sums of slices on one card, beside the CPU twin and cufinufft.

    python benchmarks/projection_gpu.py [--boxes 128,256] [--images N] [--quick] [--out FILE]

Times of the card are those of CUDA events around calls on arrays that are on the card already,
after a warm-up; those from host to host are of the clock, with drawing poses and the way over the
bus. Last comes the whole way: images simulated into a store, and reconstructed from it. Errors are
relative L2 errors of images against the closed form of a phantom. cufinufft is optional: it is
given the points of the same half discs, float32, and its best plan for all views at once; setting
the points is part of its time, as the views of every batch are others.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
from arguments import QUICK, parse_count
from bm3d_gpu import card_line, copy_bandwidth, describe_card, time_calls
from tables import describe_machine, table, write_lines

from emdask import open_stack, reconstruct, save_stack
from emdask.backend import why_no_cuda
from emdask.kernels import slices
from emdask.kernels.ctf import Optics
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.shells import shell_correlation
from emdask.lazy import FOLD_BYTES, FOLD_VOLUMES
from emdask.phantoms import phantom
from emdask.reconstructors.direct_fourier import METHOD, DirectFourier
from emdask.simulators import simulate

PIXEL_A = 2.0
# Images by which errors are measured.
N_CHECKED = 8
TOLERANCES = (1e-2, 1e-3, 1e-4)
ANGLES = ("rot", "tilt", "psi")
# That share a card.
THREADS = 4
HEAD = ("µs an image", "images/s", "floor, µs", "error")


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    if (reason := why_no_cuda()) is not None:
        print(f"projection_gpu.py: an NVIDIA card is needed; {reason}.", file=sys.stderr)
        sys.exit(2)
    limits = Limits(describe_card().operations_per_s, copy_bandwidth())
    lines = [describe_machine("emdask", "numpy", "numba"), "", card_line(describe_card()), ""]
    lines += [f"Copying on the card: {limits.bytes_per_s / 1e9:,.0f} GB/s, read and written.", ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    boxes = [int(box) for box in arguments.boxes.split(",")]
    for box_px in [32] if arguments.quick else boxes:
        n = 16 if arguments.quick else max(16, arguments.images * 128**2 // box_px**2)
        scene = Scene(box_px, n)
        block = scene if arguments.quick else Scene(box_px, images_a_task(box_px))
        for rows in (
            slice_table(scene, limits, arguments.seconds),
            sum_table(scene, limits, arguments.seconds),
            host_table(block, 1 if arguments.quick else 64),
        ):
            lines += [*rows, ""]
            print("\n".join([*rows, ""]), flush=True)
    rows = (
        whole_table(Scene(32, 64), 16) if arguments.quick else whole_table(Scene(128, 20480), 1024)
    )
    print("\n".join(rows), flush=True)
    write_lines([*lines, *rows], arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="projections on one card beside its peers")
    parser.add_argument("--boxes", default="128,256", help="edges of volumes, px, with commas")
    parser.add_argument("--images", type=parse_count, default=1024, help="of 128 px; fewer larger")
    parser.add_argument("--seconds", type=float, default=1, help="for each figure, at least once")
    parser.add_argument("--quick", action="store_true", help="small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


class Limits(NamedTuple):
    """What the card can do at most."""

    operations_per_s: float
    bytes_per_s: float

    def floor_us(self, n_operations: float, n_bytes: float) -> str:
        """The longer of arithmetic and memory, in microseconds."""
        longest = max(n_operations / self.operations_per_s, n_bytes / self.bytes_per_s)
        return f"{1e6 * longest:.2f}"


class Scene:
    """A phantom and views of it."""

    def __init__(self, box_px: int, n_images: int) -> None:
        rng = np.random.default_rng(20261123)
        self.box_px, self.n_images = box_px, n_images
        # What lies beyond the box would count as error.
        radius_A = PIXEL_A * min(0.33 * box_px, box_px / 2 - 11)
        self.particle = phantom(40, radius_A=radius_A, width_A=(3.4, 4.0), seed=1)
        self.volume = self.particle.volume(box_px, PIXEL_A)
        self.rotation_deg = rng.uniform(0, 360, (n_images, 3))
        self.shift_A = rng.uniform(-5, 5, (n_images, 2))
        self.matrices = rotation_matrices(self.rotation_deg)
        self.shifts_px = self.shift_A / PIXEL_A
        self.views = self.matrices, self.shifts_px

    def error(self, images: Any) -> str:
        """Relative L2 error of the first images against the closed form."""
        found = images[:N_CHECKED].get()
        expected = self.particle.project(
            self.rotation_deg[: len(found)],
            shift_A=self.shift_A[: len(found)],
            box_px=self.box_px,
            pixel_size_A=PIXEL_A,
        )
        return f"{np.linalg.norm(found - expected) / np.linalg.norm(expected):.1e}"

    def disc(self) -> tuple[Any, Any]:
        """Frequencies of the half disc that slices have: x and y, in steps."""
        n = self.box_px
        ky, kx = np.meshgrid(np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1), indexing="ij")
        inside = 4 * (kx**2 + ky**2) < n**2
        return kx[inside], ky[inside]


def images_a_task(box_px: int) -> int:
    """How many images a task of `emdask.reconstruct` takes on a card."""
    pixels = max(FOLD_BYTES // 4, FOLD_VOLUMES["cuda"] * box_px**3)
    return pixels // box_px**2


def median_us(call: Callable[[], Any], scene: Scene, seconds: float) -> float:
    """Microseconds an image, by CUDA events, after a warm-up."""
    call()
    return 1e3 * statistics.median(time_calls(call, seconds)) / scene.n_images


def figures(name: str, image_us: float, floor_us: str = "", error: str = "") -> list[str]:
    """Cells of a row."""
    return [name, f"{image_us:.2f}", f"{1e6 / image_us:,.0f}", floor_us, error]


# Volumes to images


def slice_table(scene: Scene, limits: Limits, seconds: float) -> list[str]:
    """Time and error of projections: ours at each accuracy, and the peer.

    The floor: two products a cell that a point reads; slices are written once.
    """
    import cupy

    n_points = len(scene.disc()[0])
    slice_bytes = 8 * scene.box_px * (scene.box_px // 2 + 1)

    volume = cupy.asarray(scene.volume.values)
    rows = []
    for accuracy in slices.ACCURACIES:
        spectrum = slices.prepare_volume(volume, accuracy)
        runs = time_calls(lambda a=accuracy: slices.prepare_volume(volume, a), seconds)
        name = f"emdask {accuracy}, width {spectrum.plan.width}"
        slice_us, image_us = (
            median_us(lambda f=f, s=spectrum: f(s, *scene.views), scene, seconds)
            for f in (slices.slice_volume, slices.project_volume)
        )
        error = scene.error(slices.project_volume(spectrum, *scene.views))
        floor_us = limits.floor_us(2 * spectrum.plan.width**3 * n_points, slice_bytes)
        rows.append(figures(f"{name}: slices", slice_us, floor_us))
        rows.append(figures(f"{name}: images", image_us, "", error))
        prepared_ms = statistics.median(runs)
        rows.append([f"{name}: the volume, once, ms", f"{prepared_ms:.2f}", "", "", ""])
    rows += peer_rows(scene, seconds, project_by_peer)
    title = f"## {scene.n_images} projections of {scene.box_px} px"
    return [title, "", *table(["volume to images", *HEAD], rows)]


def peer_rows(
    scene: Scene, seconds: float, prepare: Callable[[Scene, float], tuple[Any, Any]]
) -> list[list[str]]:
    """Rows of cufinufft at several tolerances; one that says so where it cannot be used."""
    try:
        importlib.import_module("cufinufft")
    except ImportError as error:
        return [["cufinufft", f"cannot be imported: {error}", "", "", ""]]
    rows = []
    for tolerance in TOLERANCES:
        call, finish = prepare(scene, tolerance)
        image_us = median_us(call, scene, seconds)
        error = scene.error(finish(call())) if finish else ""
        rows.append(figures(f"cufinufft, eps {tolerance:g}", image_us, "", error))
    return rows


def peer_points(scene: Scene) -> tuple[Any, ...]:
    """Points of all views as cufinufft has them: radians a voxel along z, y and x."""
    import cupy

    kx, ky = scene.disc()
    step = 2 * np.pi / scene.box_px
    planes = [kx * scene.matrices[:, :1, i] + ky * scene.matrices[:, 1:2, i] for i in range(3)]
    return tuple(cupy.asarray(step * planes[i].ravel(), np.float32) for i in (2, 1, 0))


def project_by_peer(scene: Scene, tolerance: float) -> tuple[Any, Any]:
    """Transform of type 2: the volume at all points; and what makes images of it."""
    import cufinufft
    import cupy

    n = scene.box_px
    points = peer_points(scene)
    volume = cupy.asarray(scene.volume.values, np.complex64)
    plan = cufinufft.Plan(2, (n, n, n), eps=tolerance, isign=-1, dtype="complex64")

    def call() -> Any:
        plan.setpts(*points)
        return plan.execute(volume)

    def finish(values: Any) -> Any:
        kx, ky = (cupy.asarray(part.astype(np.int64)) for part in scene.disc())
        slices_ft = cupy.zeros((scene.n_images, n, n // 2 + 1), np.complex64)
        shifts = cupy.asarray(scene.shifts_px - n // 2)
        turns = (kx * shifts[:, :1] + ky * shifts[:, 1:]) / n
        phases = cupy.exp(2j * np.pi * turns).astype(np.complex64)
        slices_ft[:, ky % n, kx] = values.reshape(scene.n_images, -1) * phases
        return cupy.fft.irfft2(slices_ft, s=(n, n))

    return call, finish


# Images to sums


def sum_table(scene: Scene, limits: Limits, seconds: float) -> list[str]:
    """Time of adding up slices: ours at each accuracy, and the peer.

    The floor: three products a cell that a point reaches; slices and weights are read once, and
    sums read and written.
    """
    import cupy

    n = scene.box_px
    rng = np.random.default_rng(1)
    shape = (scene.n_images, n, n // 2 + 1)
    values = cupy.asarray(rng.normal(size=shape) + 1j * rng.normal(size=shape), np.complex64)
    weights = cupy.ones(shape, np.float32)
    rows = []
    for accuracy in slices.ACCURACIES:
        sums = slices.empty_sums(n, accuracy, cupy)

        def call(sums: Any = sums) -> None:
            slices.insert_slices(sums, values, weights, *scene.views)

        n_operations = 3 * sums.plan.width**3 * len(scene.disc()[0])
        n_bytes = values[0].nbytes + weights[0].nbytes + 2 * sums.cells.nbytes / scene.n_images
        name = f"emdask {accuracy}, width {sums.plan.width}, data and weights"
        floor_us = limits.floor_us(n_operations, n_bytes)
        rows.append(figures(name, median_us(call, scene, seconds), floor_us)[:4])
    rows += [row[:4] for row in peer_rows(scene, seconds, sum_by_peer)]
    return table(["images to sums", *HEAD[:3]], rows)


def sum_by_peer(scene: Scene, tolerance: float) -> tuple[Any, Any]:
    """Transform of type 1: data alone, back to a volume."""
    import cufinufft
    import cupy

    n = scene.box_px
    points = peer_points(scene)
    values = cupy.ones(points[0].shape, np.complex64)
    plan = cufinufft.Plan(1, (n, n, n), eps=tolerance, isign=1, dtype="complex64")

    def call() -> Any:
        plan.setpts(*points)
        return plan.execute(values)

    return call, None


# From host to host


def host_table(scene: Scene, part: int) -> list[str]:
    """What a task does with its images, on the card and, with a part of them, on one core."""
    n, rows = scene.n_images, []
    few = max(4, n // part)
    ctf = {"defocus_A": (10_000, 20_000)}
    made = {
        device: simulate(scene.volume, n, snr=0.1, ctf=ctf, chunks=n, device=device)
        for device in ("cuda", "cpu")
    }
    for name in ("clean", "images"):
        card_us = clock_us(lambda name=name: made["cuda"][name].data.compute(scheduler="sync"), n)
        some = made["cpu"][name][:few].data
        cpu_us = clock_us(lambda some=some: some.compute(scheduler="sync"), few)
        what = "simulate, with CTF" + (
            ", with noise (drawn on the host)" if name == "images" else ""
        )
        rows.append([what, f"{card_us:.1f}", f"{cpu_us:.0f}", f"{cpu_us / card_us:.0f}"])
    stack = made["cuda"].images.compute(scheduler="sync")
    card_us = clock_us(lambda: insert("cuda", stack), n)
    cpu_us = clock_us(lambda: insert("cpu", stack[:few]), few)
    title = "add up a block of images, with CTF, both halves"
    rows.append([title, f"{card_us:.1f}", f"{cpu_us:.0f}", f"{cpu_us / card_us:.0f}"])
    title = f"host to host, {n} images, µs an image"
    return table([title, "card", "CPU, one core", "ratio"], rows)


def whole_table(scene: Scene, chunk: int) -> list[str]:
    """Simulate to Zarr and reconstruct from it; noise is drawn and maps are solved on the host."""
    n, ctf = scene.n_images, {"defocus_A": (10_000, 20_000)}
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(scheduler="threads", num_workers=THREADS),
    ):
        for snr in (None, 0.1):
            options = {"ctf": ctf, "shifts_A": 5.0, "chunks": chunk, "device": "cuda"}
            made = simulate(scene.volume, n, snr=snr, **options).images
            path = Path(folder) / f"{snr}.zarr"
            noise = "without noise" if snr is None else f"SNR {snr}"
            simulated = timed(lambda made=made, path=path: save_stack(made, path))
            rows.append([f"simulate to Zarr, {noise}", *rates(simulated, made)])
            maps: list[Any] = []
            stack = open_stack(path)
            found = timed(
                lambda stack=stack, maps=maps: maps.append(
                    reconstruct(stack, device="cuda").compute()
                )
            )
            rows.append([f"reconstruct from it, {noise}", *rates(found, made)])
            curve = shell_correlation(maps[0].volume.values, scene.volume.values)
            rows[-1].append(f"{curve[len(curve) // 2]:.4f}")
            rows[-2].append("")
    size, title = scene.box_px, f"{n} images of {scene.box_px} px, {THREADS} threads"
    head = [title, "wall s", "CPU s", "images/s", "MB/s", "FSC with the truth, half of Nyquist"]
    return [f"## The whole way, {size} px", "", *table(head, rows)]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call by the clock, and of the processor."""
    clock, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - clock, time.process_time() - cpu


def rates(seconds: tuple[float, float], stack: Any) -> list[str]:
    """Cells of a row: seconds, images and bytes a second by the clock."""
    wall_s, cpu_s = seconds
    rate = len(stack) / wall_s
    return [f"{wall_s:.1f}", f"{cpu_s:.1f}", f"{rate:,.0f}", f"{1e-6 * stack.nbytes / wall_s:,.0f}"]


def insert(device: str, stack: Any) -> Any:
    """Sums of a block of images, as `emdask.reconstruct` makes them."""
    optics = Optics(
        pixel_size_A=PIXEL_A,
        defocus_u_A=stack.defocus_u_A.values,
        defocus_v_A=stack.defocus_v_A.values,
    )
    return METHOD.insert[device](
        None,
        stack.values,
        DirectFourier(pixel_size_A=PIXEL_A),
        rotation_deg=np.stack([stack[f"{name}_deg"].values for name in ANGLES], 1),
        shift_A=np.stack([stack.shift_x_A.values, stack.shift_y_A.values], 1),
        half=stack.image_id.values % 2 + 1,
        optics=optics,
    )


def clock_us(call: Callable[[], Any], n_images: int) -> float:
    """Microseconds an image by the clock: the best of three, after a warm-up."""
    call()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times) / n_images


if __name__ == "__main__":
    main()
