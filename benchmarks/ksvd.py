"""K-SVD of emdask beside SPAMS and dictlearn: CPU seconds and PSNR on the same inputs.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/ksvd.py [INPUTS] [--images N]
        [--quick] [--out FILE]

INPUTS is a folder with ``camera512_clean.npy``, ``camera512_s25.npy``, ``particles_clean.npy``,
``particles_snr0.1.npy`` and so on, and ``sigmas.json``; without it a photograph and simulated
particles are made here. The peers are optional (``pip install spams-bin dictlearn numba``; SPAMS is
under the GPL, and nothing of emdask imports it). All start from the same cosine transform, learn
in 10 iterations from patches of the image, stop at the same residual and average alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import QUICK, errors_as_sentences, parse_count
from inputs import Floats, Input, psnr, simulate_particles, with_noise
from scipy.ndimage import gaussian_filter
from tables import describe_machine, table, write_lines

from emdask.denoisers import bm3d
from emdask.denoisers.ksvd import Ksvd, denoise_cpu, learn_dictionaries, sample_scales
from emdask.kernels import ksvd, pursuit_cpu
from emdask.kernels.patches import sample_patches

N_ITERATIONS = 10
N_PEER_PATCHES = 60_000
PEER_ATOMS_IN_USE = 3
# Allowed residual of the peers' codes: of Elad and Aharon, and ours.
GAINS = (ksvd.LEARN_GAIN, ksvd.CODE_GAIN)
PATCH_PX = 8
PIXELS = PATCH_PX**2
N_ATOMS = 256
CROP = np.s_[1024:2048, 1024:2048]
WIDTHS_PX = np.arange(0.5, 8, 0.25)


def main() -> None:
    """Measure and print all tables."""
    arguments = parse_arguments()
    if arguments.inputs:
        photograph, stacks, crop = read_inputs(arguments.inputs, arguments.images)
    else:
        photograph, stacks, crop = make_inputs(arguments.quick, arguments.images)
    lines = [describe_machine("numpy", "numba"), "", *([QUICK, ""] if arguments.quick else [])]
    print("\n".join(lines), flush=True)
    warm_up(photograph)
    for measure in (
        lambda: photograph_table(photograph, arguments.quick),
        lambda: floor_table(photograph),
        lambda: stack_table(stacks),
        lambda: settings_table(stacks),
        lambda: crop_table(crop),
    ):
        rows = [*measure(), ""]
        lines += rows
        print("\n".join(rows), flush=True)
    write_lines(lines, arguments.out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="K-SVD beside its peers")
    parser.add_argument("inputs", nargs="?", type=Path, help="folder of inputs")
    parser.add_argument("--images", type=parse_count, default=200, help="images of each stack")
    parser.add_argument("--quick", action="store_true", help="small inputs, no peers: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    return parser.parse_args()


# --- Inputs ---------------------------------------------------------------------------------------


def read_inputs(folder: Path, n_images: int) -> tuple[Input, list[Input], Input]:
    """Read the photograph, particles at three SNRs, and the crop of a micrograph."""
    sigmas = json.loads((folder / "sigmas.json").read_text())

    def read(name: str, noise: str, part: Any, sigma: float, data_range: float) -> Input:
        clean, noisy = (
            np.array(np.load(folder / f"{name}_{kind}.npy", mmap_mode="r")[part], np.float32)
            for kind in ("clean", noise)
        )
        if clean.ndim == 2:
            clean, noisy = clean[None], noisy[None]
        title = f"{name}, {noise}"
        return Input(name=title, clean=clean, noisy=noisy, sigma=sigma, data_range=data_range)

    stacks = [
        read("particles", f"snr{snr}", np.s_[:n_images], sigmas[f"particles_snr{snr}"], 1)
        for snr in (0.4, 0.1, 0.05)
    ]
    crop = read("micro4096", "snr0.1", CROP, sigmas["micro4096_snr0.1"], 1)
    return read("camera512", "s25", np.s_[:], 25, 255), stacks, crop


def make_inputs(quick: bool, n_images: int) -> tuple[Input, list[Input], Input]:
    """Make a photograph, particles, and many particles on one image; seeded."""
    from skimage import data

    rng = np.random.default_rng(20261122)
    camera = data.camera().astype(np.float32)[None]
    camera = camera[:, 150:278, 150:278] if quick else camera
    photograph = with_noise("camera, sigma 25", camera, 25.0, 255.0, rng)
    particles = simulate_particles(4 if quick else n_images, 64 if quick else 128, rng)
    tiles = particles[rng.integers(len(particles), size=(2, 2) if quick else (8, 8))]
    field = np.block([list(row) for row in tiles])[None]
    stacks = [
        with_noise(f"particles, SNR {snr}", particles, math.sqrt(particles.var() / snr), 1.0, rng)
        for snr in ((0.1,) if quick else (0.4, 0.1, 0.05))
    ]
    crop = with_noise("field of particles, SNR 0.1", field, math.sqrt(field.var() / 0.1), 1.0, rng)
    return photograph, stacks, crop


# --- Measures -------------------------------------------------------------------------------------


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call and what it returned."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def score(images: Any, row: Input, n: int | None = None) -> str:
    """PSNR in dB, as text."""
    return f"{psnr(images[:n], row.clean[:n], row.data_range):.2f}"


def warm_up(row: Input) -> None:
    """Load the code of what is measured."""
    small = row.noisy[:1, :48, :48]
    denoise_alone(small, Ksvd(sigma=row.sigma, n_scales=1, scope="image"))
    bm3d.denoise_cpu(small, bm3d.BM3D(sigma=row.sigma))


def denoise_alone(images: Floats, params: Ksvd) -> Floats:
    """Denoise each image by its own dictionary."""
    return denoise_cpu(images, params, None)


def best_gaussian(row: Input, n: int | None = None) -> str:
    """PSNR of the best Gaussian blur, told the truth."""
    blurred = (gaussian_filter(row.noisy[:n], (0, w, w)) for w in WIDTHS_PX)
    return f"{max(psnr(x, row.clean[:n], row.data_range) for x in blurred):.2f}"


def photograph_table(row: Input, quick: bool) -> list[str]:
    """One image by its own dictionary, beside the peers."""
    rows = []
    changes: list[tuple[str, dict[str, Any]]] = [
        ("cosine transform, not learnt", {"n_iterations": 0}),
        (f"{N_PEER_PATCHES:,} patches", {"n_patches": N_PEER_PATCHES}),
        ("262,144 patches (default)", {}),
    ]
    for name, options in changes:
        params = Ksvd(sigma=row.sigma, scope="image", n_scales=1, **options)
        seconds, result = timed(lambda params=params: denoise_alone(row.noisy, params))
        rows.append([f"emdask, {name}", f"{seconds:.2f}", score(result, row)])
    for name, learn, code in [] if quick else list_peers():
        learning, atoms = timed(lambda learn=learn: learn(draw_patches(row)))
        for gain in GAINS:
            coding, result = timed(
                lambda atoms=atoms, gain=gain, code=code: code_image(row, gain, atoms, code)
            )
            rows.append(
                [f"{name}, residual {gain}", f"{learning + coding:.2f}", score(result, row)]
            )
    params = bm3d.BM3D(sigma=row.sigma)
    seconds, result = timed(lambda: bm3d.denoise_cpu(row.noisy, params))
    rows.append(["emdask BM3D", f"{seconds:.2f}", score(result, row)])
    rows.append(["best Gaussian", "", best_gaussian(row)])
    title = f"{row.name}: learning and denoising, CPU seconds, PSNR in dB"
    return [title, "", *table(["", "seconds", "PSNR"], rows)]


def floor_table(row: Input) -> list[str]:
    """Where the time of the last pass over an image goes."""
    unit = ((row.noisy - row.noisy.mean()) / row.sigma).astype(np.float32)
    sample = sample_patches(unit, [0], patch_px=PATCH_PX, n_patches=1 << 18, seed=0).patches
    sizes = {"n_atoms": N_ATOMS, "patch_px": PATCH_PX, "n_iterations": 3}
    atoms = ksvd.learn_atoms(sample, **sizes)
    centred = sample - sample.mean(axis=1, keepdims=True)
    tolerance = ksvd.CODE_GAIN**2 * PIXELS
    active = np.ascontiguousarray(centred[np.sum(centred**2, axis=1) > tolerance])
    options = {"gain": ksvd.CODE_GAIN, "blend": ksvd.BLEND, "max_atoms": ksvd.MOST_ATOMS_IN_USE}
    whole, _ = timed(lambda: pursuit_cpu.denoise_images(unit, atoms, **options))
    nothing, _ = timed(lambda: pursuit_cpu.denoise_images(unit, atoms, **{**options, "gain": 99}))
    parts = [active[i : i + 512] for i in range(0, len(active), 512)]
    transposed, product = np.ascontiguousarray(atoms.T), np.empty((512, N_ATOMS), np.float32)
    products, _ = timed(lambda: [np.matmul(p, transposed, out=product[: len(p)]) for p in parts])
    counts = pursuit_cpu.code_patches(active, atoms, tolerance=tolerance, max_atoms=32)[2]
    giga = 2e-9 * PIXELS * N_ATOMS
    lines = [
        ["patches of the image", f"{len(sample):,}", f"{whole:.3f}"],
        ["of them gathered, less their means, and averaged", f"{len(sample):,}", f"{nothing:.3f}"],
        [
            f"products with all atoms: {giga * len(active):.2f} GFLOP (of all patches "
            f"{giga * len(sample):.2f}) at {giga * len(active) / products:.0f} GFLOP/s",
            f"{len(active):,}",
            f"{products:.3f}",
        ],
        [
            f"pursuit, {counts.mean():.2f} atoms a patch, and their sums",
            f"{len(active):,}",
            f"{whole - nothing - products:.3f}",
        ],
    ]
    return [f"{row.name}: the last pass", "", *table(["", "patches", "CPU seconds"], lines)]


def stack_table(stacks: list[Input]) -> list[str]:
    """One dictionary for a stack, and its use, beside dictionaries of each image."""
    head = ["input", "learn the stack, s", "then an image, ms", "PSNR"]
    head += ["image by its own dictionary, ms", "PSNR", "times as fast"]
    head += ["BM3D, ms an image", "PSNR", "best Gaussian"]
    rows = []
    for row in stacks:
        n = len(row.noisy)
        params = Ksvd()
        learning, model = timed(
            lambda row=row, n=n, params=params: learn_dictionaries(
                sample_scales(row.noisy, np.arange(n), params), params
            )
        )
        use, result = timed(
            lambda row=row, model=model, params=params: denoise_cpu(row.noisy, params, model)
        )
        own, alone = timed(lambda row=row: denoise_alone(row.noisy, Ksvd(scope="image")))
        other, peer = timed(lambda row=row: bm3d.denoise_cpu(row.noisy, bm3d.BM3D()))
        cells = [f"{learning:.2f}", f"{1e3 * use / n:.1f}", score(result, row)]
        cells += [f"{1e3 * own / n:.1f}", score(alone, row), f"{own / use:.1f}"]
        cells += [f"{1e3 * other / n:.1f}", score(peer, row), best_gaussian(row)]
        rows.append([f"{n} {row.name}", *cells])
    return ["Stacks, everything at its defaults, sigma estimated", "", *table(head, rows)]


def settings_table(stacks: list[Input]) -> list[str]:
    """What scales, patches and atoms give on the first images."""
    changes: list[dict[str, Any]] = [
        {},
        *({"n_scales": n} for n in (1, 2, 3, 4)),
        *({"n_scales": 3, "patch_px": px} for px in (6, 10)),
        *({"n_atoms": n} for n in (64, 128, 512)),
        *({"n_iterations": n} for n in (0, 3, 30)),
        *({"strength": s} for s in (0.9, 0.95, 1.05, 1.1)),
    ]
    rows = []
    for change in changes:
        params = dataclasses.replace(Ksvd(), **change)
        name = ", ".join(f"{name} {value}" for name, value in change.items())
        rows.append([name or "defaults", *(stack_score(row, params) for row in stacks)])
    title = "What settings give: PSNR of the first 40 images, one dictionary for the stack"
    return [title, "", *table(["", *(row.name for row in stacks)], rows)]


def stack_score(row: Input, params: Ksvd) -> str:
    """PSNR of the first images by a dictionary of the stack."""
    samples = sample_scales(row.noisy, np.arange(len(row.noisy)), params)
    model = learn_dictionaries(samples, params)
    return score(denoise_cpu(row.noisy[:40], params, model), row, 40)


def crop_table(row: Input) -> list[str]:
    """A micrograph: time of a crop, and of all of it by the count of its pixels."""
    rows = []
    for name, run in (
        ("K-SVD, learning and denoising", lambda: denoise_alone(row.noisy, Ksvd(scope="image"))),
        ("BM3D", lambda: bm3d.denoise_cpu(row.noisy, bm3d.BM3D())),
    ):
        seconds, result = timed(run)
        rows.append([name, f"{seconds:.2f}", score(result, row)])
    rows.append(["best Gaussian", "", best_gaussian(row)])
    side = row.noisy.shape[-1]
    title = f"{row.name}, {side} x {side}: CPU seconds, PSNR in dB"
    return [title, "", *table(["", "seconds", "PSNR"], rows)]


# --- Peers ----------------------------------------------------------------------------------------

Learner = Callable[[Floats], Floats]
Coder = Callable[[Floats, Floats, float], Floats]


def list_peers() -> list[tuple[str, Learner, Coder]]:
    """Peers that are installed: name, how they learn and how they code."""
    peers = []
    if importlib.util.find_spec("spams") is None:
        print("SPAMS is not installed: no peer (pip install spams-bin)")
    else:
        name = f"SPAMS, {N_PEER_PATCHES:,} patches"
        peers.append((name, learn_by_spams, code_by_spams))
    if importlib.util.find_spec("dictlearn") is None:
        print("dictlearn is not installed: no peer (pip install dictlearn)")
    else:
        name = f"dictlearn, approximate K-SVD, {N_PEER_PATCHES:,} patches"
        peers.append((name, learn_by_dictlearn, code_by_dictlearn))
    return peers


def draw_patches(row: Input) -> Floats:
    """Patches of unit noise, less their means, that peers learn from."""
    sizes = {"patch_px": PATCH_PX, "n_patches": N_PEER_PATCHES, "seed": 0}
    patches = sample_patches(row.noisy.astype(np.float64) / row.sigma, [0], **sizes).patches
    return patches.astype(np.float64) - patches.mean(axis=1, keepdims=True)


def code_image(row: Input, gain: float, atoms: Floats, code: Coder) -> Floats:
    """Denoise one image as Elad and Aharon do."""
    image = row.noisy[0].astype(np.float64) / row.sigma
    places = np.lib.stride_tricks.sliding_window_view(image, (PATCH_PX, PATCH_PX))
    patches = places.reshape(-1, PIXELS)
    means = patches.mean(axis=1, keepdims=True)
    estimates = code(patches - means, atoms, gain**2 * PIXELS) + means
    sums, counts = ksvd.BLEND * image, np.full(image.shape, ksvd.BLEND)
    height, width = places.shape[:2]
    for i, part in enumerate(estimates.T.reshape(PIXELS, height, width)):
        top, left = divmod(i, PATCH_PX)
        sums[top : top + height, left : left + width] += part
        counts[top : top + height, left : left + width] += 1
    return (row.sigma * sums / counts)[None]


def learn_by_spams(patches: Floats) -> Floats:
    """Learn by SPAMS: all patches in each of the iterations, coded by its OMP."""
    import spams

    start = np.asfortranarray(ksvd.cosine_atoms(N_ATOMS, PATCH_PX).T.astype(np.float64))
    atoms = spams.trainDL(
        np.asfortranarray(patches.T),
        D=start,
        lambda1=ksvd.LEARN_GAIN**2 * PIXELS,
        mode=4,
        iter=N_ITERATIONS,
        batch=True,
        numThreads=1,
        verbose=False,
    )
    return (atoms / np.linalg.norm(atoms, axis=0)).T


def code_by_spams(patches: Floats, atoms: Floats, tolerance: float) -> Floats:
    """Code by SPAMS."""
    import spams

    columns = np.asfortranarray(atoms.T)
    values = spams.omp(np.asfortranarray(patches.T), columns, L=32, eps=tolerance, numThreads=1)
    return (columns @ values).T


def learn_by_dictlearn(patches: Floats) -> Floats:
    """Learn by dictlearn, whose sparsity while learning is a number of atoms."""
    import dictlearn

    learner = dictlearn.DictionaryLearning(
        n_components=N_ATOMS,
        fit_algorithm="aksvd",
        n_nonzero_coefs=PEER_ATOMS_IN_USE,
        max_iter=N_ITERATIONS,
        dict_init=ksvd.cosine_atoms(N_ATOMS, PATCH_PX).astype(np.float64),
        random_state=0,
    )
    return learner.fit(patches).components_


def code_by_dictlearn(patches: Floats, atoms: Floats, tolerance: float) -> Floats:
    """Code by dictlearn."""
    import dictlearn

    parts = np.array_split(patches, max(1, len(patches) // N_PEER_PATCHES))
    return np.concatenate([dictlearn.sparse_encode(p, atoms, tol=tolerance) @ atoms for p in parts])


if __name__ == "__main__":
    with errors_as_sentences():
        main()
