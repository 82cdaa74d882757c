"""The peer of ``cwf.py``, run by a Python that has ASPIRE 0.14.3 (it needs nothing of emdask).

    python benchmarks/cwf_aspire.py project VOLUME.mrc FOLDER
    python benchmarks/cwf_aspire.py denoise IMAGES.npz DENOISED.npy

``project`` writes ``projections_{noctf,ctf}_n{N}.npz``: projections of a volume, divided by its
maximum, at 64 px, as ASPIRE's own simulation makes them (seed 0, centred, amplitudes 1), clean and
as seen through the CTF. ``denoise`` filters the images that ``cwf.py`` has written and prints the
CPU seconds of setting up the basis, of learning and of applying. Defaults of the peer throughout;
its sign of the CTF is the opposite of that of emdask.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from aspire.basis import FFBBasis2D
from aspire.denoising import DenoiserCov2D
from aspire.operators import RadialCTFFilter
from aspire.source import ArrayImageSource, Simulation
from aspire.volume import Volume

BOX_PX = 64
N_IMAGES = (100, 1000, 2000, 4000)
VOLTAGE_KV, ABERRATION_MM, AMPLITUDE_CONTRAST = 200, 2.0, 0.1
DEFOCI_A = np.linspace(15_000, 25_000, 7)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="projections and denoised images by ASPIRE")
    parser.add_argument("command", choices=("project", "denoise"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--pixel-size-A", type=float, default=5.0, help="of the volume")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.command == "project":
        project(options.source, options.target, options.pixel_size_A)
    else:
        denoise(options.source, options.target)


def filters(defoci_A: Any) -> list[RadialCTFFilter]:
    """CTFs of the defoci."""
    microscope = {"voltage": VOLTAGE_KV, "Cs": ABERRATION_MM, "alpha": AMPLITUDE_CONTRAST, "B": 0}
    return [RadialCTFFilter(defocus=float(defocus_A), **microscope) for defocus_A in defoci_A]


def project(source: Path, target: Path, pixel_size_A: float) -> None:
    """Write projections of a volume, with and without CTF."""
    import mrcfile

    density = np.asarray(mrcfile.read(source), np.float32)
    volume = Volume(density / density.max(), pixel_size=pixel_size_A).downsample(BOX_PX)
    target.mkdir(parents=True, exist_ok=True)
    for n_images in N_IMAGES:
        for kind, defoci_A in (("noctf", ()), ("ctf", DEFOCI_A)):
            made = Simulation(
                **{"L": BOX_PX, "n": n_images, "vols": volume, "C": 1, "seed": 0},
                **{"offsets": 0, "amplitudes": 1, "unique_filters": filters(defoci_A) or None},
            )
            arrays = {
                "clean": made.projections[:].asnumpy(),
                "seen": made.clean_images[:].asnumpy(),
                "pixel_size_A": made.pixel_size,
            }
            if kind == "ctf":
                arrays |= {"defocus_A": DEFOCI_A[made.filter_indices]}
            np.savez(target / f"projections_{kind}_n{n_images}.npz", **arrays)


def denoise(source: Path, target: Path) -> None:
    """Filter the images of a file, write them, and print CPU seconds as JSON."""
    given = np.load(source)
    images = ArrayImageSource(given["noisy"], pixel_size=float(given["pixel_size_A"]))
    if "defocus_A" in given:
        defoci_A, groups = np.unique(given["defocus_A"], return_inverse=True)
        images.unique_filters = filters(defoci_A)
        images.filter_indices = groups
    clock = [time.process_time()]
    basis = FFBBasis2D(given["noisy"].shape[1:], dtype=np.float32)
    clock.append(time.process_time())
    denoiser = DenoiserCov2D(images, basis, var_noise=float(given["noise_variance"]))
    denoiser.build_denoiser()
    clock.append(time.process_time())
    # In the batches in which it learns, too.
    n_images, batch = images.n, denoiser.batch_size
    parts = [
        denoiser.denoise[start : min(start + batch, n_images)].asnumpy()
        for start in range(0, n_images, batch)
    ]
    clock.append(time.process_time())
    np.save(target, np.concatenate(parts))
    seconds = dict(zip(("setup", "learn", "apply"), np.diff(clock).tolist(), strict=True))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
