"""Learned denoisers beside the others: particles of one kind, structures never seen, micrographs.

    python benchmarks/learned.py --images FOLDER [--tables plain ctf unseen noise] [--work FOLDER]
        [--maps FILE...] [--quick] [--out FILE]

`plain` and `ctf` are the experiment of Gu et al. (2020): projections of an RNA polymerase, 9,500 to
learn from and 500 to judge by, without CTF and through one of each image. FOLDER holds
``sphere_clean.npy``, 10,000 projections (n, 128, 128) without noise.
Networks learn from them with noise of SNR 0.02 to 0.1 that is drawn anew in each epoch (those that
learn without clean images, from one set of noisy images of SNR 0.1, 0.05 and 0.02 each); trainings
and rows are kept in ``--work``, and go on where they stopped. Images are scaled to [0, 1] by the
range of each clean one, so that MSE and PSNR are those of that paper.

`unseen` judges the U-net that ships on structures that it has not seen: ``--maps`` of them. CWF
learns from 1000 images of each.

`noise` shows what the U-net makes of noise alone, and to which frequency it can be trusted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from arguments import QUICK, errors_as_sentences
from tables import describe_machine, table, write_lines

import emdask
from emdask.io.weights import Weights, open_weights, save_weights
from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.metrics import frc, mse, psnr, ssim
from emdask.stack import build_stack

Array = npt.NDArray[Any]

TABLES = ("plain", "ctf", "unseen", "noise")
SNRS = (0.1, 0.05, 0.02)
N_JUDGED = 500
PIXEL_A = 2.0
OPTICS = {"voltage_kV": 300.0, "spherical_aberration_mm": 2.7, "amplitude_contrast": 0.1}
DEFOCI_A = (10_000.0, 30_000.0)
SEED = 20261124
CLASSICAL = ("gaussian", "ksvd", "ddtf", "bm3d")
CHUNK = 50


@dataclass(frozen=True, kw_only=True)
class Network:
    """How a network of the table is trained."""

    label: str
    method: str
    epochs: int
    options: Mapping[str, Any]

    @property
    def file(self) -> str:
        """Name of its files."""
        return "".join(c if c.isalnum() else "_" for c in self.label)

    @property
    def is_supervised(self) -> bool:
        """Whether it learns from clean images."""
        return not self.method.startswith("noise2")


NETWORKS = (
    Network(label="unet", method="unet", epochs=10, options={}),
    Network(label="autoencoder", method="autoencoder", epochs=10, options={}),
    Network(label="vae", method="vae", epochs=10, options={}),
    Network(label="gan, least squares", method="gan", epochs=10, options={}),
    Network(label="gan, Wasserstein", method="gan", epochs=10, options={"loss": "wasserstein"}),
    Network(
        label="gan, beta (0.5, 0.5)",
        method="gan",
        epochs=10,
        options={"loss": "beta", "alpha": 0.5, "beta": 0.5},
    ),
    Network(label="noise2noise, no pairs", method="noise2noise", epochs=3, options={}),
    Network(label="noise2void", method="noise2void", epochs=3, options={}),
)


# --- Particles of one kind ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Projections, to learn from and to judge by, and the defocus of each."""

    images: Array
    defocus_A: Array | None
    n_judged: int

    @property
    def judged(self) -> slice:
        """Which are judged by: the last."""
        return slice(len(self.images) - self.n_judged, None)

    @property
    def learnt(self) -> slice:
        """Which are learnt from."""
        return slice(0, len(self.images) - self.n_judged)

    def stack(self, images: Array, which: slice) -> Any:
        """Label some images, with their optics where they have any."""
        chunked = da.from_array(images, chunks=(CHUNK, -1, -1))
        if self.defocus_A is None:
            return build_stack(chunked, {}, {"kind": "particles", "pixel_size_A": PIXEL_A})
        known = {"kind": "particles", "pixel_size_A": PIXEL_A, **OPTICS}
        return build_stack(chunked, {"defocus_u_A": self.defocus_A[which]}, known)


def open_sample(folder: Path, with_ctf: bool, quick: bool) -> Sample:
    """Read the projections in an order drawn at random; through a CTF each, where asked for."""
    images = np.load(folder / "sphere_clean.npy", mmap_mode="r")
    order = np.random.default_rng(SEED).permutation(len(images))[: 80 if quick else None]
    images = np.asarray(images[np.sort(order)], np.float32)[np.argsort(np.argsort(order))]
    n_judged = 8 if quick else N_JUDGED
    if not with_ctf:
        return Sample(images=images, defocus_A=None, n_judged=n_judged)
    defocus_A = np.random.default_rng(SEED + 1).uniform(*DEFOCI_A, len(images))
    for i, defocus in enumerate(defocus_A):
        ctf = ctf_2d(images.shape[1:], pixel_size_A=PIXEL_A, defocus_u_A=defocus, **OPTICS)
        images[i] = apply_ctf(images[i : i + 1], ctf[None])[0]
    return Sample(images=images, defocus_A=defocus_A, n_judged=n_judged)


def add_noise(clean: Array, snr: float, seed: int) -> Array:
    """Add white noise; SNR is the mean variance of the images over that of the noise."""
    sigma = np.sqrt(clean.var(axis=(1, 2)).mean() / snr)
    noise = np.random.default_rng([SEED, seed]).standard_normal(clean.shape, np.float32)
    return clean + np.float32(sigma) * noise


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How far images are from the truth, scaled to [0, 1] by the range of each clean one."""

    mse: float
    psnr: float
    ssim: float

    @classmethod
    def of(cls, found: Array, clean: Array) -> Figures:
        """Judge some images."""
        errors = mse(found, clean) / np.ptp(clean, axis=(1, 2)) ** 2
        return cls(
            mse=float(errors.mean()),
            psnr=float(psnr(found, clean).mean()),
            ssim=float(ssim(found, clean).mean()),
        )

    @property
    def cell(self) -> str:
        """As a cell of the table."""
        return f"{self.mse:.4f}; {self.psnr:.2f}; {self.ssim:.3f}"


def train(network: Network, sample: Sample, work: Path, name: str, quick: bool) -> Weights:
    """Train a network, or open what was trained before."""
    path = work / f"{name}.safetensors"
    if path.exists():
        return open_weights(path)
    clean = sample.images[sample.learnt]
    given: dict[str, Any] = {
        "clean": sample.stack(clean, sample.learnt),
        "snr": (SNRS[-1], SNRS[0]),
    }
    if not network.is_supervised:
        noisy = [add_noise(clean, snr, i) for i, snr in enumerate(SNRS)]
        given = {"stack": [sample.stack(images, sample.learnt) for images in noisy]}
    weights = emdask.train_denoiser(
        **given,
        method=network.method,
        epochs=1 if quick else network.epochs,
        batch=32,
        validation=0.02 if not quick else 0.2,
        patience=None,
        checkpoint=work / f"{name}_checkpoint.safetensors",
        resume=True,
        log=work / f"{name}.csv",
        **({"width": 4} if quick else {}),
        **network.options,
    )
    save_weights(weights, path)
    return weights


class Rows:
    """Rows of a table, each kept in a file as soon as it is there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.known: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, label: str, make: Callable[[], Iterable[str]]) -> None:
        """Make a row that is not there yet."""
        if label not in self.known:
            began = time.monotonic()
            self.known[label] = list(make())
            self._path.write_text(json.dumps(self.known))
            print(label, *self.known[label], f"{time.monotonic() - began:.0f} s", file=sys.stderr)


def one_kind(folder: Path, work: Path, name: str, quick: bool) -> Iterator[str]:
    """Print the table of the experiment, without CTF or through one each."""
    sample = open_sample(folder, name == "ctf", quick)
    clean = sample.images[sample.judged]
    noisy = [add_noise(clean, snr, 100 + i) for i, snr in enumerate(SNRS)]
    rows = Rows(work / f"{name}.json")
    rows.add("noisy", lambda: (Figures.of(images, clean).cell for images in noisy))

    def judge(method: str, model: Any = None) -> Iterator[str]:
        for images in noisy:
            found = emdask.denoise(sample.stack(images, sample.judged), method, model=model)
            yield Figures.of(found.values, clean).cell

    for network in NETWORKS[:2] if quick else NETWORKS:
        rows.add(
            network.label,
            lambda network=network: judge(
                network.method, train(network, sample, work, f"{network.file}_{name}", quick)
            ),
        )
    rows.add("unet as it ships", lambda: judge("unet"))
    for method in CLASSICAL:
        rows.add(method, partial(judge, method))
    rows.add("cwf, of all noisy images", lambda: judge_cwf(sample, clean, noisy))
    yield from ("", f"## {'Through a CTF each' if name == 'ctf' else 'Without CTF'}", "")
    yield from table(
        ["MSE; PSNR, dB; SSIM", *(f"SNR {snr:g}" for snr in SNRS)],
        [[label, *cells] for label, cells in rows.known.items()],
    )


def judge_cwf(sample: Sample, clean: Array, noisy: Sequence[Array]) -> Iterator[str]:
    """Cells of CWF, which learns from the noisy images of each SNR."""
    for i, images in enumerate(noisy):
        learnt = add_noise(sample.images[sample.learnt], SNRS[i], i)
        stacks = (sample.stack(images, sample.judged), sample.stack(learnt, sample.learnt))
        yield Figures.of(denoise_cwf(*stacks, with_ctf=sample.defocus_A is not None), clean).cell


def denoise_cwf(stack: Any, learnt: Any, *, with_ctf: bool) -> Array:
    """Denoise images by what others tell; their CTFs stay, as they do in the clean ones."""
    model = emdask.learn_denoiser(learnt, "cwf").compute()
    options = {"ctf": "keep"} if with_ctf else {}
    found: Array = emdask.denoise(stack, "cwf", model=model, **options).values
    return found


# --- Structures never seen ------------------------------------------------------------------------


def unseen(maps: Sequence[Path], quick: bool) -> Iterator[str]:
    """Print PSNR of the U-net that ships on structures that it has not seen."""
    n, n_judged = (16, 4) if quick else (1000, 100)
    head = [
        "PSNR, dB",
        "CTF",
        "SNR",
        *CLASSICAL,
        f"cwf of {n_judged}",
        f"cwf of {n}",
        "unet",
        "gain",
    ]
    rows = []
    for path in maps:
        for ctf in (None, {"defocus_A": DEFOCI_A}):
            for snr in (0.1, 0.05):
                made = emdask.simulate(path, n, snr=snr, ctf=ctf, seed=5)
                images, clean = made.images.load(), made.clean[:n_judged].values
                judged = images[:n_judged]
                found = [
                    *(emdask.denoise(judged, method).values for method in CLASSICAL),
                    *(denoise_cwf(judged, one, with_ctf=bool(ctf)) for one in (judged, images)),
                    emdask.denoise(judged, "unet").values,
                ]
                values = [Figures.of(one, clean).psnr for one in found]
                cells = [f"{value:.2f}" for value in values]
                told = [Path(path).name, "yes" if ctf else "no", f"{snr:g}"]
                rows.append([*told, *cells, f"{values[-1] - max(values[:-1]):+.2f}"])
    yield from ("", "## Structures that the U-net has not seen", "")
    yield from table(head, rows)


# --- Noise alone ----------------------------------------------------------------------------------


def noise_alone(folder: Path, quick: bool) -> Iterator[str]:
    """Print what methods leave of noise alone, and where their images stop to be true."""
    n = 4 if quick else 64
    noise = np.random.default_rng(SEED).standard_normal((n, 128, 128), np.float32)
    sample = open_sample(folder, with_ctf=False, quick=quick)
    clean = sample.images[sample.judged][:n]
    noisy = add_noise(clean, 0.1, 100)
    rows = []
    for method in ("gaussian", "bm3d", "unet"):
        left = emdask.denoise(noise, method).compute()
        deviations = left.std(axis=(1, 2))
        brightest = np.abs(left).max(axis=(1, 2))
        frequency, curves = frc(emdask.denoise(noisy, method).compute(), clean)
        below = np.flatnonzero(curves.mean(axis=0) < 0.5)
        end = "none" if len(below) == 0 else f"{frequency[below[0]]:.3f}"
        cells = (deviations.mean(), deviations.max(), brightest.mean(), brightest.max())
        rows.append([method, *(f"{cell:.3f}" for cell in cells), end])
    head = ["", "deviation left, mean", "largest", "brightest pixel, mean", "largest"]
    yield from ("", "## Noise of deviation 1 alone, 128 px", "")
    yield from table([*head, "FRC with the truth below 0.5 from, cycles a pixel (SNR 0.1)"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of sphere_clean.npy")
    parser.add_argument("--maps", type=Path, nargs="*", default=[], help="maps or structures")
    parser.add_argument("--work", type=Path, default=Path("learned"), help="where trainings are")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="show that it runs")
    parser.add_argument("--out", type=Path, help="write the tables there as well")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    lines = [f"Machine: {describe_machine('emdask', 'torch', 'numpy')}"]
    with errors_as_sentences():
        chosen.work.mkdir(parents=True, exist_ok=True)
        for name in TABLES[:2] if chosen.images is not None else ():
            if name in chosen.tables:
                lines += one_kind(chosen.images, chosen.work, name, chosen.quick)
        if "unseen" in chosen.tables and chosen.maps:
            lines += unseen(chosen.maps, chosen.quick)
        if "noise" in chosen.tables and chosen.images is not None:
            lines += noise_alone(chosen.images, chosen.quick)
    lines += ["", f"{time.monotonic() - began:.0f} s." + (f" {QUICK}" if chosen.quick else "")]
    print("\n".join(lines))
    write_lines(lines, chosen.out)


if __name__ == "__main__":
    main()
