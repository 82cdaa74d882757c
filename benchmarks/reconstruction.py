"""Reconstruction: resolution against the truth and CPU time, beside other libraries in one run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/reconstruction.py
        [--volume FILE] [--pixel-size-A A] [--rnap FOLDER] [--images N] [--stream N]
        [--quick] [--out FILE]

Images are simulated of a volume (.mrc, .npy, or a phantom where none is given) with known poses.
``--rnap`` is what ``make_images.py --sphere 5000`` of the RNAP conformations has written: five
conformations in equal parts, whose mean is the truth. ``--stream`` reconstructs so many images of
64 px, and a tenth of them, each in a process of its own, and tells the peak of its memory.

ducc0 and torch-projectors are peers where they can be imported: a type 1 transform of the images
times the length of the frequency, and slices added up by linear interpolation in a box twice as
large, divided by their weights. Neither corrects for a CTF or cuts off anything, so beside the
whole of each map stands the FSC within one and the same soft ball.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import scipy.fft
import xarray as xr
from arguments import QUICK, errors_as_sentences, parse_count
from tables import describe_machine, table, write_lines

import emdask
from emdask.errors import MissingLibraryError
from emdask.kernels.masks import spherical_mask
from emdask.kernels.projections import rotation_matrices
from emdask.metrics import frc_resolution, fsc
from emdask.stack import build_stack
from emdask.volumes import build_volume

SNR = 0.1
CTF = {"defocus_A": (10_000.0, 25_000.0), "astigmatism_A": (0.0, 300.0)}
# Noise of the RNAP images is that of their recipe.
RNAP_SEED = 20261122
# Images that a peer is given at once: with more, ducc0 takes no less time for each.
AT_ONCE = {"ducc0": 1000, "torch": 250}
STREAM_PX = 64
REFINEMENTS = (0, 1, 2)


class Case(NamedTuple):
    """Images with poses and the volume that they show."""

    name: str
    images: xr.DataArray
    truth: xr.DataArray


def main() -> None:
    """Measure and print all tables."""
    options = parse_arguments()
    if options.measure_stream:
        print(" ".join(f"{value:.3f}" for value in stream_here(options.measure_stream)))
        return
    n_images = 60 if options.quick else options.images
    lines = ["# Reconstruction", "", describe_machine("numpy", "scipy", "numba"), ""]
    lines += [QUICK, ""] if options.quick else []
    print("\n".join(lines), flush=True)
    cases = simulate_cases(load_truth(options), n_images)
    if options.rnap is not None:
        cases.append(load_rnap(options.rnap, n_images))
    stream = 200 if options.quick else options.stream
    for part in (
        lambda: noise_free_lines(cases[0]),
        *(lambda case=case: case_lines(case) for case in cases[1:]),
        lambda: stream_lines(stream),
    ):
        found = [*part(), ""]
        lines += found
        print("\n".join(found), flush=True)
    write_lines(lines, options.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Reconstruction beside other libraries")
    parser.add_argument("--volume", type=Path, help="truth: .mrc or .npy; a phantom by default")
    parser.add_argument("--pixel-size-A", type=float, default=2.0, help="of a .npy volume")
    parser.add_argument("--rnap", type=Path, help="folder that make_images.py has written")
    parser.add_argument("--images", type=parse_count, default=5000)
    parser.add_argument("--stream", type=parse_count, default=100_000)
    parser.add_argument("--measure-stream", type=parse_count, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


def load_truth(options: argparse.Namespace) -> xr.DataArray:
    """Read the volume, or make one."""
    if options.volume is None:
        box_px, n_blobs = (32, 20) if options.quick else (128, 2000)
        radius_A = 0.35 * box_px * options.pixel_size_A
        particle = emdask.phantom(n_blobs, radius_A=radius_A, width_A=(2.5, 3.0))
        return particle.volume(box_px, options.pixel_size_A)
    if options.volume.suffix == ".npy":
        return build_volume(np.load(options.volume), options.pixel_size_A)
    return emdask.open_volume(options.volume)


def simulate_cases(truth: xr.DataArray, n_images: int) -> list[Case]:
    """Images of the volume: without noise, with noise, with noise and a CTF; all in memory."""
    kinds: dict[str, dict[str, Any]] = {
        "No noise": {"snr": None},
        f"SNR {SNR:g}": {"snr": SNR},
        f"SNR {SNR:g}, CTF": {"snr": SNR, "ctf": CTF},
    }
    return [
        Case(name, emdask.simulate(truth, n_images, shifts_A=8.0, **kind).images.compute(), truth)
        for name, kind in kinds.items()
    ]


def load_rnap(folder: Path, n_images: int) -> Case:
    """RNAP images at an SNR of 0.1, with noise as their recipe makes it."""
    known = np.load(folder / "sphere.npz")
    clean = np.load(folder / "sphere_clean.npy", mmap_mode="r")
    rng = np.random.default_rng([RNAP_SEED, 0, round(1e6 * SNR)])
    scale = np.float32(np.sqrt(float(known["sigvar"]) / SNR))
    images = clean + scale * rng.standard_normal(clean.shape, dtype=np.float32)
    angles = {"rot_deg": "phi", "tilt_deg": "theta", "psi_deg": "psi"}
    coords = {name: -np.rad2deg(known[of]) for name, of in angles.items()}
    for axis, name in enumerate(("shift_x_A", "shift_y_A")):
        coords[name] = -2.0 * known["shift"][:, axis]
    stack = build_stack(dask.array.from_array(images), coords, {"pixel_size_A": 2.0})[:n_images]
    labels = known["label"][:n_images]
    parts = np.bincount(labels, minlength=5) / len(labels)
    truth = sum(p * np.load(folder / f"vol_{i}.npy") for i, p in enumerate(parts))
    return Case(f"RNAP, 5 conformations, SNR {SNR:g}", stack.compute(), build_volume(truth, 2.0))


def seconds_of(run: Callable[[], Any]) -> tuple[Any, float]:
    """Result and CPU seconds of a call."""
    start = time.process_time()
    result = run()
    return result, time.process_time() - start


def reconstruct_here(images: xr.DataArray, **parameters: Any) -> xr.Dataset:
    """Reconstruct in this thread."""
    with dask.config.set(scheduler="synchronous", num_workers=1):
        return emdask.reconstruct(images, device="cpu", **parameters).compute()


def noise_free_lines(case: Case) -> list[str]:
    """How good the inversion itself is, by the number of refinements."""
    rows = []
    for number in REFINEMENTS:
        found, seconds = seconds_of(
            lambda number=number: reconstruct_here(case.images, n_refinements=number)
        )
        volume = found.volume.values
        frequency, correlation = fsc(volume, case.truth.values)
        wanted = below_nyquist(case.truth.values)
        error = np.linalg.norm(volume - wanted) / np.linalg.norm(wanted)
        low = [correlation[frequency <= share * 0.5].min() for share in (0.8, 0.95)]
        cells = [f"{error:.4f}", *(f"{value:.4f}" for value in low), f"{seconds:.1f}"]
        rows.append([f"{number}", *cells])
    head = ["refinements", "relative error", "FSC to 0.8 Nyquist", "to 0.95", "CPU s"]
    return [title(case), "", *table(head, rows)]


def below_nyquist(volume: Any) -> Any:
    """What of a volume its projections tell: the ball of frequencies below Nyquist."""
    frequency = [np.fft.fftfreq(n) for n in volume.shape[:2]]
    axes = (*frequency, np.fft.rfftfreq(volume.shape[2]))
    radius = np.sqrt(sum(np.square(axis) for axis in np.ix_(*axes)))
    return scipy.fft.irfftn(np.where(radius < 0.5, scipy.fft.rfftn(volume), 0), s=volume.shape)


def title(case: Case) -> str:
    """What the table is of."""
    n_images, _, size = case.images.shape
    return f"{case.name}: {n_images} images of {size} px, {case.truth.attrs['pixel_size_A']:g} Å"


def case_lines(case: Case) -> list[str]:
    """Resolution and time of each library."""
    ways: dict[str, Callable[[], Any]] = {
        "emdask, half maps and Wiener": lambda: reconstruct_here(case.images),
        "emdask, one map": lambda: reconstruct_here(case.images, half_maps=False),
    }
    if "defocus_u_A" not in case.images.coords:
        ways["ducc0, type 1 and ramp"] = lambda: reconstruct_ducc0(case.images)
        ways["torch-projectors, linear"] = lambda: reconstruct_torch(case.images)
    rows = []
    for name, way in ways.items():
        try:
            found, seconds = seconds_of(way)
        except MissingLibraryError as error:
            rows.append([name, str(error), "", "", "", ""])
            continue
        halves = "resolution_A" in found
        volume = found.volume.values if isinstance(found, xr.Dataset) else found
        per_image = f"{1e3 * seconds / len(case.images):.2f}"
        claimed = f"{float(found.resolution_A[0]):.2f}" if halves else ""
        rows.append([name, *judge(volume, case.truth), claimed, f"{seconds:.1f}", per_image])
    head = ["", "FSC 0.5 to the truth, Å", "within a ball, Å", "halves 0.143, Å", "CPU s", "ms"]
    return [title(case), "", *table(head, rows)]


def judge(volume: Any, truth: xr.DataArray) -> list[str]:
    """Resolution against the truth: of the whole box, and within a ball."""
    n, pixel_size_A = len(volume), truth.attrs["pixel_size_A"]
    ball = spherical_mask(n, 0.44 * n, 0.04 * n)
    curves = [fsc(volume, truth.values, mask=mask) for mask in (None, ball)]
    return [f"{pixel_size_A / float(frc_resolution(*curve)):.2f}" for curve in curves]


def slices_of(images: xr.DataArray, box_px: int) -> Any:
    """Fourier transforms of centred images in a box of another size, and their views."""
    n = images.shape[-1]
    centre = n // 2
    padded = np.zeros((len(images), box_px, box_px), np.float32)
    padded[:, :n, :n] = images.values
    padded = np.roll(padded, (-centre, -centre), axis=(1, 2))
    angles = [images.coords[name].values for name in ("rot_deg", "tilt_deg", "psi_deg")]
    ky, kx = np.fft.fftfreq(box_px)[:, None], np.fft.rfftfreq(box_px)
    shift_px = [
        images.coords[name].values[:, None, None] / images.attrs["pixel_size_A"]
        for name in ("shift_x_A", "shift_y_A")
    ]
    phases = np.exp(-2j * np.pi * (shift_px[0] * kx + shift_px[1] * ky)).astype(np.complex64)
    return scipy.fft.rfft2(padded) * phases, rotation_matrices(np.stack(angles, axis=1))


def batches_of(images: xr.DataArray, size: int) -> list[xr.DataArray]:
    """The images, so many at a time."""
    return [images[start : start + size] for start in range(0, len(images), size)]


def reconstruct_ducc0(images: xr.DataArray) -> Any:
    """Adjoint of the projections, by ducc0, of images times the length of the frequency."""
    ducc0 = peer("ducc0")
    n = images.shape[-1]
    ky, kx = np.broadcast_arrays(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    ramp = np.hypot(kx, ky)
    # The term at 0 stands for the disc of half a frequency about it.
    ramp[0, 0] = 0.25 / n
    ramp *= np.where(kx == 0, 0.5, 1.0)
    inside = (np.hypot(kx, ky) < 0.5).ravel()
    plane = np.stack([kx.ravel(), ky.ravel()], axis=1)[inside]
    volume = np.zeros((n, n, n))
    for batch in batches_of(images, AT_ONCE["ducc0"]):
        slices, matrices = slices_of(batch, n)
        points = np.einsum("pk,nkj->npj", plane, matrices[:, :2])[..., ::-1].reshape(-1, 3)
        values = (slices * ramp).reshape(len(batch), -1)[:, inside].ravel()
        volume += ducc0.nufft.nu2u(
            points=values.astype(np.complex64),
            coord=points.astype(np.float32),
            forward=False,
            epsilon=1e-3,
            nthreads=1,
            periodicity=1.0,
            out=np.zeros((n, n, n), np.complex64),
        ).real
    return volume


def reconstruct_torch(images: xr.DataArray) -> Any:
    """Slices added up by torch-projectors in a box twice as large, over their weights."""
    torch, projectors = peer("torch"), peer("torch_projectors")
    torch.set_num_threads(1)
    n = images.shape[-1]
    data: Any = 0.0
    weight: Any = 0.0
    for batch in batches_of(images, AT_ONCE["torch"]):
        slices, matrices = slices_of(batch, 2 * n)
        ones = torch.ones((1, *slices.shape), dtype=torch.float32)
        found = projectors.backproject_2d_to_3d_forw(
            torch.from_numpy(slices)[None],
            torch.from_numpy(matrices.swapaxes(1, 2).astype(np.float32))[None],
            ones,
            fourier_radius_cutoff=float(n),
        )
        data, weight = data + found[0][0], weight + found[1][0]
    quotient = (data / torch.clamp(weight, min=1e-3)).numpy()
    volume = np.fft.fftshift(scipy.fft.irfftn(quotient, s=(2 * n,) * 3))
    return volume[n // 2 : -n // 2, n // 2 : -n // 2, n // 2 : -n // 2]


def peer(name: str) -> Any:
    """Import another library, or say why not."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise MissingLibraryError("not installed, or cannot be loaded") from error


def stream_lines(n_images: int) -> list[str]:
    """Peak memory of many images and of a tenth of them."""
    rows = []
    for count in (n_images // 10, n_images):
        command = [sys.executable, __file__, "--measure-stream", f"{count}"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        before_MB, peak_MB, seconds, resolution_px = (float(word) for word in printed.split())
        memory = [f"{before_MB:.0f}", f"{peak_MB:.0f}"]
        cells = [*memory, f"{1e3 * seconds / count:.2f}", f"{resolution_px:.2f}"]
        rows.append([f"{count}", f"{count * 4 * STREAM_PX**2 / 1e6:.0f}", *cells])
    head = ["images", "their size, MB", "memory before, MB", "peak, MB"]
    head += ["CPU ms an image, simulated as well", "halves 0.143, px"]
    return [f"Streamed: {STREAM_PX} px, SNR {SNR:g}, CTF, one thread", "", *table(head, rows)]


def stream_here(n_images: int) -> tuple[float, float, float, float]:
    """Simulate and reconstruct chunk by chunk: memory before and at its peak, CPU, resolution."""
    particle = emdask.phantom(200, radius_A=40, width_A=(2.0, 3.0)).volume(STREAM_PX, 2.0)
    reconstruct_here(emdask.simulate(particle, 8, snr=SNR, ctf=CTF).images)
    before_MB = peak_memory()
    images = emdask.simulate(particle, n_images, snr=SNR, ctf=CTF, shifts_A=4.0).images
    found, seconds = seconds_of(lambda: reconstruct_here(images))
    return before_MB, peak_memory(), seconds, float(found.resolution_A[0]) / 2.0


def peak_memory() -> float:
    """MB that this process held at most; that of getrusage begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1e3


if __name__ == "__main__":
    with errors_as_sentences():
        main()
