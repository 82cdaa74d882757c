"""DDTF of emdask beside a plain port of the paper: CPU seconds and PSNR, and what helped.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/ddtf.py [INPUTS] [--paper FOLDER]
        [--images N] [--quick] [--out FILE]

INPUTS is a folder with ``camera512_clean.npy``, ``camera512_s25.npy``, ``particles_clean.npy``,
``particles_snr0.1.npy`` and so on; without it a photograph and simulated particles are made here.
The folder of ``--paper`` has ``noisy_01.png`` to ``noisy_20.png`` and ``clean_01.png``; each image
was scaled on its own, so that its PSNR is taken after a least-squares fit of scale and offset.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from arguments import QUICK, errors_as_sentences, parse_count
from inputs import Floats, psnr, simulate_particles, with_noise
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter
from tables import describe_machine, table, write_lines

from emdask.denoisers.ddtf import (
    METHOD,
    Ddtf,
    choose_scales,
    learn_frames,
    learns_from_stack,
    sample_scales,
)
from emdask.kernels import tight_frame
from emdask.kernels.patches import PatchSample, ScaleSamples
from emdask.kernels.scales import halve, merge_scales
from emdask.kernels.tight_frame import (
    cosine_frame,
    denoise_images,
    nearest_rotation,
    threshold_images,
    wiener_images,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise, to_unit_noise

SNRS = (0.4, 0.1, 0.05)
N_PAPER = 20
# Particles that frames are learnt from, at each SNR.
N_LEARNT = 40
# Patches that the plain port learns from: more changed its PSNR by less than 0.1 dB.
N_PLAIN = 60_000
N_STEPS = 30
Denoise = Callable[[Floats], Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Noisy images to learn from, and clean ones of the first of them."""

    name: str
    noisy: Floats
    clean: Floats
    data_range: float
    affine: bool = False

    def judge(self, images: Any) -> float:
        """PSNR in dB."""
        if not self.affine:
            return psnr(images, self.clean, self.data_range)
        columns = np.stack([np.ravel(images), np.ones(self.clean.size)], axis=1)
        fit = np.linalg.lstsq(columns, np.asarray(self.clean, float).ravel(), rcond=None)[0]
        return psnr((columns @ fit).reshape(self.clean.shape), self.clean, self.data_range)


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    with errors_as_sentences():
        cases = list_cases(arguments)
    lines = [describe_machine("numpy"), ""]
    lines += [QUICK, ""] if arguments.quick else []
    print("\n".join(lines), flush=True)
    for measure in (
        lambda: peer_table(cases, arguments.quick),
        lambda: ablation_table(cases, arguments.quick),
        lambda: parameter_table(cases, arguments.quick),
        lambda: cost_table(arguments.quick),
        lambda: memory_lines(128 if arguments.quick else 4096),
    ):
        rows = [*measure(), ""]
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="DDTF beside a plain port of the paper")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of inputs")
    parser.add_argument("--paper", type=Path, help="folder of the images of the 2018 paper")
    parser.add_argument(
        "--images", type=parse_count, default=40, help="particles of each SNR that are denoised"
    )
    parser.add_argument("--quick", action="store_true", help="small inputs: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# Inputs


def list_cases(arguments: argparse.Namespace) -> list[Case]:
    """List what is measured on."""
    n_images = 3 if arguments.quick else min(arguments.images, N_LEARNT)
    if arguments.inputs:
        cases = read_cases(arguments.inputs, n_images)
    else:
        cases = make_cases(n_images, arguments.quick)
    if arguments.paper:
        cases.append(read_paper(arguments.paper))
    return cases


def read_cases(folder: Path, n_images: int) -> list[Case]:
    """Read a photograph and particles."""

    def read(name: str, clean: str, data_range: float) -> Case:
        noisy, truth = (np.load(folder / f"{file}.npy") for file in (name, clean))
        noisy, truth = (np.atleast_3d(x.T).T for x in (noisy, truth))
        judged = truth[:n_images]
        return Case(name=name, noisy=noisy[:N_LEARNT], clean=judged, data_range=data_range)

    particles = [read(f"particles_snr{snr}", "particles_clean", 1.0) for snr in SNRS]
    return [read("camera512_s25", "camera512_clean", 255.0), *particles]


def make_cases(n_images: int, quick: bool) -> list[Case]:
    """Make a photograph and particles with noise; seeded."""
    from skimage import data

    rng = np.random.default_rng(20261122)
    camera = data.camera().astype(np.float32)[None]
    camera = camera[:, 150:214, 150:214] if quick else camera
    clean = simulate_particles(n_images, 48 if quick else 128, rng)
    inputs = [with_noise("camera, sigma 25", camera, 25.0, 255.0, rng)]
    for snr in SNRS[1:2] if quick else SNRS:
        sigma = float(np.sqrt(clean.var() / snr))
        inputs.append(with_noise(f"particles, SNR {snr}", clean, sigma, 1.0, rng))
    return [
        Case(name=x.name, noisy=x.noisy, clean=x.clean, data_range=x.data_range) for x in inputs
    ]


def read_paper(folder: Path) -> Case:
    """Read the images of the paper."""
    noisy = np.stack([imread(folder / f"noisy_{i:02d}.png") for i in range(1, N_PAPER + 1)])
    clean = imread(folder / "clean_01.png")[None]
    return Case(name="paper", noisy=noisy, clean=clean, data_range=np.ptp(clean), affine=True)


# The peer


def learn_plain(images: Floats, patch_px: int) -> Floats:
    """Learn a frame as the paper does; images of unit noise; columns are atoms."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (patch_px, patch_px), axis=(1, 2))
    places = np.random.default_rng(0).permutation(windows[..., 0, 0].size)[:N_PLAIN]
    signals = windows[np.unravel_index(places, windows.shape[:3])].reshape(len(places), -1)
    atoms = cosine_frame(patch_px).T.astype(np.float32)
    # Within what has no mean, so that atoms stay so where some are never used.
    meanless = atoms[:, 1:].copy()
    signals = signals @ meanless
    for _ in range(N_STEPS):
        sparse = signals @ (meanless.T @ atoms[:, 1:])
        sparse[np.abs(sparse) < 3.5] = 0
        left, _, right = np.linalg.svd(signals.T @ sparse)
        atoms[:, 1:] = meanless @ left @ right
    return atoms


def denoise_plain(image: Floats, atoms: Floats) -> Floats:
    """Threshold all patches of an image of unit noise, and average them."""
    side = int(np.sqrt(len(atoms)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    coefficients = windows.reshape(-1, side * side) @ atoms
    coefficients[:, 1:][np.abs(coefficients[:, 1:]) < 2.7] = 0
    estimates = (coefficients @ atoms.T).reshape(windows.shape)
    sums, counts = np.zeros_like(image), np.zeros_like(image)
    for y, x in np.ndindex(side, side):
        place = np.s_[y : y + windows.shape[0], x : x + windows.shape[1]]
        sums[place] += estimates[:, :, y, x]
        counts[place] += 1
    return np.asarray(sums / counts)


# Measures


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def at_unit_noise(case: Case, denoise: Denoise) -> float:
    """PSNR of what denoises images of unit noise."""
    noisy = case.noisy[: len(case.clean)]
    return case.judge(denoise_at_unit_noise(noisy, "auto", denoise))


def learn_units(case: Case) -> Floats:
    """Images of a case at unit noise."""
    return np.asarray(to_unit_noise(case.noisy, "auto")[0])


def run_plain(case: Case, patch_px: int) -> str:
    """Learn and denoise by the plain port."""
    learning, atoms = timed(lambda: learn_plain(learn_units(case), patch_px))
    each = image_by_image(lambda image: denoise_plain(image, atoms))
    denoising, value = timed(lambda: at_unit_noise(case, each))
    return cell(value, learning, denoising / len(case.clean))


def image_by_image(denoise: Denoise) -> Denoise:
    """Make a function of one image one of many."""
    return lambda images: np.stack([denoise(image) for image in images])


def run_ours(case: Case, params: Ddtf) -> str:
    """Learn and denoise by emdask."""
    learning, model = timed(lambda: learn_from(case, params))
    noisy = case.noisy[: len(case.clean)]
    denoising, result = timed(lambda: METHOD.apply["cpu"](noisy, params, model))
    return cell(case.judge(result), learning, denoising / len(noisy))


def learn_from(case: Case, params: Ddtf) -> Any:
    """Frames of all images; None where each image is learnt from alone."""
    if not learns_from_stack(params):
        return None
    return learn_frames(sample_scales(case.noisy, np.arange(len(case.noisy)), params), params)


def cell(value: float, learning: float, denoising: float) -> str:
    """PSNR, CPU seconds of learning, and of one image."""
    return f"{value:.2f} ({learning:.1f} s, {denoising:.3f} s)"


def best_gaussian(case: Case) -> float:
    """PSNR of the best Gaussian blur, told the truth: the control."""
    noisy = case.noisy[: len(case.clean)]
    widths = np.arange(0.5, 8, 0.25)
    return max(case.judge(gaussian_filter(noisy, (0, width, width))) for width in widths)


def peer_table(cases: Sequence[Case], quick: bool) -> list[str]:
    """PSNR and CPU seconds beside the plain port."""
    runs: dict[str, Callable[[Case], str]] = {
        "plain port, 8 px": lambda case: run_plain(case, 8),
        "plain port, 16 px": lambda case: run_plain(case, 16),
        "emdask": lambda case: run_ours(case, Ddtf()),
        "emdask, 16 px": lambda case: run_ours(case, Ddtf(patch_px=16)),
        "emdask, each image alone": lambda case: run_ours(case, Ddtf(scope="image")),
        "best Gaussian": lambda case: f"{best_gaussian(case):.2f}",
    }
    if quick:
        runs = {name: run for name, run in runs.items() if "16 px" not in name}
    rows = [[case.name, *(run(case) for run in runs.values())] for case in cases]
    title = "PSNR in dB (CPU seconds of learning, of denoising one image); sigma estimated"
    return [title, "", *table(["input", *runs], rows)]


# What helped


def ablation_table(cases: Sequence[Case], quick: bool) -> list[str]:
    """PSNR as the parts come together, and of what was tried beside them."""
    rows: dict[str, list[str]] = {}
    for case in cases:
        for name, value in ablate(case, quick):
            rows.setdefault(name, []).append(f"{value:.2f}")
    head = ["PSNR in dB", *(case.name for case in cases)]
    lines = ["What helped; 8 px, from the paper's method on", ""]
    return [*lines, *table(head, [[name, *cells] for name, cells in rows.items()])]


def ablate(case: Case, quick: bool) -> list[tuple[str, float]]:
    """Rows of one input: what, PSNR."""
    params = Ddtf()
    samples = sample_scales(case.noisy, np.arange(len(case.noisy)), params)
    frames = learn_frames(samples, params)["atoms"].values
    ((_, n_scales, detail), *_) = choose_scales(learn_units(case), params)
    frames = frames[:n_scales]

    def judge(denoise: Denoise, frames: Floats = frames) -> float:
        return at_unit_noise(case, image_by_image(lambda x: denoise(x[None], frames)[0]))

    def whole(x: Floats, frames: Floats) -> Any:
        return denoise_images(x, frames, detail_threshold=detail)

    plain = learn_plain(learn_units(case), 8)
    rows = [
        (
            "the paper's method",
            at_unit_noise(case, image_by_image(lambda x: denoise_plain(x, plain))),
        ),
        ("+ mirrored edges, patches weighted by 1 / coefficients", judge(hard)),
        ("+ Wiener filter", judge(hard_and_wiener)),
        ("+ resolutions", judge(lambda x, f: pyramid(x, f, 2.7, 1))),
        ("+ Wiener filter twice at the coarsest", judge(lambda x, f: pyramid(x, f, 2.7, 2))),
        ("+ threshold of detail by the SNR: emdask", judge(whole)),
        ("emdask, no detail of its own", judge(lambda x, f: pyramid(x, f, np.inf, 2))),
        ("emdask, cosine frames", judge(whole, cosine_frames(n_scales))),
        ("emdask, learnt without prior", judge(whole, without_prior(samples)[:n_scales])),
        ("emdask, learnt without momentum", judge(whole, plain_steps(samples, N_STEPS)[:n_scales])),
        (
            "emdask, turned and mirrored patches too",
            judge(whole, turned_frames(samples)[:n_scales]),
        ),
    ]
    if not quick:
        more = plain_steps(samples, 3 * N_STEPS)[:n_scales]
        rows.append(("emdask, without momentum, 90 steps", judge(whole, more)))
    spun = ("emdask, cycle-spun over 8 symmetries", judge(lambda x, f: spin(x, f, whole)))
    return [*rows, spun]


def hard(image: Floats, frames: Floats) -> Any:
    """Threshold at one resolution."""
    return threshold_images(image, frames[0], threshold=tight_frame.THRESHOLD)


def hard_and_wiener(image: Floats, frames: Floats) -> Any:
    """Both steps at one resolution."""
    return wiener_images(image, hard(image, frames), frames[0], noise=1.0)


def pyramid(image: Floats, frames: Floats, detail: float, n_wiener: int) -> Any:
    """As `denoise_images`, in parts; infinite `detail` leaves all detail to the coarser one."""
    if len(frames) == 1:
        estimate = hard(image, frames)
        for _ in range(n_wiener):
            estimate = wiener_images(image, estimate, frames[0], noise=1.0)
        return estimate
    coarse = pyramid(halve(image), frames[1:], detail, n_wiener)
    pilot = threshold_images(image, frames[0], threshold=detail)
    pilot = merge_scales(np.zeros_like(image) if np.isinf(detail) else pilot, coarse)
    return merge_scales(wiener_images(image, pilot, frames[0], noise=1.0), coarse)


def cosine_frames(n_scales: int) -> Floats:
    """Frames that nothing was learnt for."""
    return np.repeat(cosine_frame(8).astype(np.float32)[None], n_scales, axis=0)


def plain_steps(samples: ScaleSamples, n_steps: int) -> Floats:
    """Learn frames by the steps of the paper alone."""
    frames = []
    for sample in samples.scales:
        start = cosine_frame(8)
        signals = sample.patches @ start[1:].T.astype(np.float32)
        turn = np.eye(len(start) - 1)
        for _ in range(n_steps):
            sparse = signals @ turn.T.astype(np.float32)
            sparse *= np.abs(sparse) >= tight_frame.LEARNING_THRESHOLD
            prior = tight_frame.PRIOR_COEFFICIENTS * tight_frame.LEARNING_THRESHOLD**2
            turn = nearest_rotation(sparse.T @ signals + prior * np.eye(len(turn)))
        frames.append(np.concatenate([start[:1], turn @ start[1:]]))
    return np.asarray(frames, np.float32)


def without_prior(samples: ScaleSamples) -> Floats:
    """Learn frames from the patches alone; where they do not decide, rounding does."""
    prior, tight_frame.PRIOR_COEFFICIENTS = tight_frame.PRIOR_COEFFICIENTS, 0
    try:
        return np.asarray(learn_frames(samples, Ddtf())["atoms"].values)
    finally:
        tight_frame.PRIOR_COEFFICIENTS = prior


def turned_frames(samples: ScaleSamples) -> Floats:
    """Learn from each patch in one of eight positions drawn at random."""
    rng = np.random.default_rng(1)
    scales = []
    for sample in samples.scales:
        patches = sample.patches.reshape(-1, 8, 8).copy()
        which = rng.integers(8, size=len(patches))
        for symmetry in range(8):
            chosen = which == symmetry
            patches[chosen] = turn_images(patches[chosen], symmetry)
        scales.append(PatchSample(sample.keys, patches.reshape(sample.patches.shape)))
    turned = samples._replace(scales=tuple(scales))
    return np.asarray(learn_frames(turned, Ddtf())["atoms"].values)


def turn_images(images: Floats, symmetry: int) -> Floats:
    """One of the eight symmetries of the square: 4 and more mirror first."""
    mirrored = images[:, :, ::-1] if symmetry >= 4 else images
    return np.ascontiguousarray(np.rot90(mirrored, symmetry % 4, axes=(1, 2)))


def turn_back(images: Floats, symmetry: int) -> Floats:
    """Undo `turn_images`."""
    turned = np.rot90(images, -(symmetry % 4), axes=(1, 2))
    return turned[:, :, ::-1] if symmetry >= 4 else turned


def spin(image: Floats, frames: Floats, denoise: Callable[[Floats, Floats], Any]) -> Any:
    """Average over the eight symmetries of the square."""
    spun = [turn_back(denoise(turn_images(image, k), frames), k) for k in range(8)]
    return np.mean(spun, axis=0)


def parameter_table(cases: Sequence[Case], quick: bool) -> list[str]:
    """PSNR where one parameter differs from its default."""
    sweeps: dict[str, tuple[Any, ...]] = {
        "strength": (0.8, 0.9, 1.1, 1.2),
        "n_scales": (1, 2, 3, 4),
        "patch_px": (6, 10),
        "n_patches": (3_000, 100_000),
        "n_iterations": (5, 60),
        "seed": (1,),
    }
    rows = [["defaults", *(psnr_of(case, Ddtf()) for case in cases)]]
    for name, values in sweeps.items():
        for value in values[:1] if quick and name == "strength" else () if quick else values:
            params = replace(Ddtf(), **{name: value})
            rows.append([f"{name} = {value}", *(psnr_of(case, params) for case in cases)])
    head = ["PSNR in dB", *(case.name for case in cases)]
    return ["One parameter away from the defaults", "", *table(head, rows)]


def psnr_of(case: Case, params: Ddtf) -> str:
    """PSNR alone."""
    return run_ours(case, params).partition(" ")[0]


# Cost


def cost_table(quick: bool) -> list[str]:
    """Where the time of one image goes, beside what its products of matrices take."""
    size = 64 if quick else 512
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, size, size)).astype(np.float32)
    rows = []
    for patch_px in (8,) if quick else (8, 16):
        atoms = cosine_frame(patch_px).astype(np.float32)
        n_places = (size + patch_px - 1) ** 2
        columns = tight_frame.COEFFICIENTS_AT_ONCE // len(atoms)
        patches = rng.normal(size=(len(atoms), columns)).astype(np.float32)
        n_products = max(1, n_places // columns)
        product, _ = timed(lambda a=atoms, p=patches, n=n_products: [a @ p for _ in range(n)])
        product /= n_products * columns
        speed = 2 * len(atoms) ** 2 / product / 1e9
        steps = {
            "threshold": (2, lambda a=atoms: threshold_images(image, a, threshold=2.7)),
            "Wiener": (3, lambda a=atoms: wiener_images(image, image, a, noise=1.0)),
        }
        for name, (n, step) in steps.items():
            spent = timed(step)[0] / n_places
            floor = f"{1e6 * n * product:.2f} ({speed:.0f} Gflop/s)"
            parts = [f"{name}, {patch_px} px", f"{n * 2 * len(atoms) ** 2:,}"]
            rows.append([*parts, floor, f"{1e6 * spent:.2f}", f"{n * product / spent:.0%}"])
    head = ["step", "operations", "of them alone, µs", "whole step, µs", "share"]
    title = f"One place of a patch, image of {size} x {size}: products of matrices and the rest"
    return [title, "", *table(head, rows)]


def memory_lines(size: int) -> list[str]:
    """CPU seconds and memory of one micrograph in a process of its own."""
    code = f"""
import time, numpy as np
from emdask.denoisers.ddtf import METHOD, Ddtf
rng = np.random.default_rng(0)
image = rng.standard_normal((1, {size}, {size}), "f4")
params = Ddtf()
def peak():
    # Unlike ru_maxrss it does not begin with that of the parent; in KiB.
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
def spent(f):
    start = time.process_time(); result = f(); return time.process_time() - start, result
before = peak()
drawing, sums = spent(lambda: METHOD.learn.chunk["cpu"](image, np.arange(1), params))
learning, model = spent(lambda: METHOD.learn.finalize(sums, params))
denoising, _ = spent(lambda: METHOD.apply["cpu"](image, params, model))
print(drawing, learning, denoising, peak() - before)
"""
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    drawing, learning, denoising, mebibytes = map(float, printed.split())
    image_mebibytes = size * size * 4 / 2**20
    return [
        f"A micrograph of {size} x {size}: {drawing:.1f} CPU s to draw patches, {learning:.1f} s "
        f"to learn, {denoising:.1f} s to denoise; {mebibytes:.0f} MiB beside the image, which has "
        f"{image_mebibytes:.0f} MiB."
    ]


if __name__ == "__main__":
    main()
