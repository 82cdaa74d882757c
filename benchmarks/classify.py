"""Conformations: what two stages tell, CPU time and memory, beside NumPy and SciPy in one run.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/classify.py [--images FOLDER]
        [--tables screen states mixed denoised contours blind memory] [--snrs 1 0.4 0.1 0.05]
        [--ctf no yes] [--cone N] [--sphere N] [--folder FOLDER] [--quick] [--out FILE]

FOLDER is what ``python make_images.py --out FOLDER`` of the RNAP conformations has written: five
states of a clamp, 5 degrees apart; 2,000 images within 10 degrees of the view along the clamp's
hinge, and 10,000 from all sides; shifts of up to 4 px. Without it a phantom of 64 px is seen in the
same way, whose arm turns by 8 degrees a state. Noise is white, of one variance for all images: that
of the images of the cone over the SNR, both as seen through the CTF where there is one. References
are the volumes that were projected. The peer (``classify_peer.py``) and ours get the same blocks of
images in turn, one thread; ours measures noise and contrast, the peer is told them.

- screen: of the images of the sphere that are more than 10, 20 and 30 degrees away, the share that
  is removed when 95 % of those of the cone are kept.
- states: accuracy among the images of the cone, and proportions.
- mixed: both stages on all images.
- denoised: both stages after denoising of 500 images of the cone and 1,500 of the sphere;
  contours: features of outlines, which are for denoised images.
- blind: methods without references, on the images of the cone.
- memory: the peak of a process that runs both stages on images of a store.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import classify_peer as peer
import dask
import numpy as np
import xarray as xr
from arguments import QUICK, errors_as_sentences, parse_count
from classify_images import (
    CONE_DEG,
    VIEW,
    Pile,
    Sample,
    load_sample,
    make_pile,
    project_phantom,
    transfer,
)
from cwf import peak_memory
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax
from tables import describe_machine, table, write_lines
from threadpoolctl import threadpool_limits

import emdask
from emdask import screeners
from emdask.classifiers import estimate_shares, template, two_stage
from emdask.errors import EmdaskError
from emdask.kernels.directions import angles_between, cone_views
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.references import References
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.kernels.templates import sphere_views
from emdask.volumes import build_volume

SNRS = (1.0, 0.4, 0.1, 0.05)
MIXED_SNRS, DENOISED_SNRS, BLIND_SNRS, MEMORY_SNR = (0.1, 0.05), (1.0, 0.1, 0.05), (1.0, 0.1), 0.1
RECALL = 0.95
BEYOND_DEG = (10, 20, 30)
# Where kept images come from.
RINGS_DEG = (0, 10, 13, 20, 180)
PHANTOM_PX, QUICK_PX, QUICK_SNR = 64, 32, 1.0
PHANTOM_COUNTS, QUICK_COUNTS = (400, 1200), (60, 120)
# Views of the peer: in the cone and on the whole sphere, of each class; how far from the cone it
# takes a view to be outside; largest shift, pixels of 128.
PEER_CONE, PEER_SPHERE, PEER_GAP_DEG, PEER_SHIFT = 20, 240, 2.0, 4
DENOISED = (500, 1500)
# What images are made of before they are classified.
FILTERS: dict[str, dict[str, Any] | None] = {
    "noisy": None,
    "BM3D": {"method": "bm3d"},
    "CWF": {"method": "cwf"},
}
LIKELIHOODS = ("marginal", "maximum")
PROPORTIONS = ("proportion", "proportion_error", "proportion_low", "proportion_high")

Array = Any
Way = Callable[[Pile], Array]
Part = Callable[[Sample], list[str]]


class Scored(NamedTuple):
    """What a way made of all images, and its CPU seconds for each block."""

    values: Array
    seconds: list[float]

    @property
    def per_image(self) -> str:
        """CPU ms an image."""
        return f"{1e3 * sum(self.seconds) / len(self.values):.2f}"


class Prepared(NamedTuple):
    """A method of ours with its references; and the CPU seconds that these took."""

    record: Any
    params: Any
    model: Any
    seconds: float

    def score(self, block: Pile) -> Array:
        """Score images."""
        run = self.record.score["cpu"]
        return run(block.images, self.params, self.model, optics=block.optics)


def main() -> None:
    """Measure and print all tables."""
    options = parse_arguments()
    if options.measure_memory is not None:
        print(json.dumps(memory_here(options.measure_memory)))
        return
    lines = ["# Conformations", "", describe_machine("numpy", "scipy", "numba"), ""]
    lines += [QUICK, ""] if options.quick else []
    sample = find_sample(options)
    print("\n".join(lines), flush=True)
    with threadpool_limits(1), dask.config.set(scheduler="synchronous"):
        for name in options.tables:
            for part in TABLES[name](options):
                found = [*part(sample), ""]
                lines += found
                print("\n".join(found), flush=True)
    write_lines(lines, options.out)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="conformations beside NumPy and SciPy")
    parser.add_argument("--images", type=Path, help="folder that make_images.py has written")
    parser.add_argument("--tables", nargs="+", choices=[*TABLES], default=[*TABLES], help="which")
    parser.add_argument("--snrs", nargs="+", type=float, help="instead of those of each table")
    parser.add_argument("--ctf", nargs="+", choices=("no", "yes"), default=("no", "yes"))
    parser.add_argument("--cone", type=parse_count, help="images of the cone; default: all")
    parser.add_argument("--sphere", type=parse_count, help="images of the sphere; default: all")
    parser.add_argument("--folder", type=Path, help="for the store of the table of memory")
    parser.add_argument("--measure-memory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="few small images: seconds")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    options = parser.parse_args(arguments)
    if options.quick:
        options.images, options.snrs = None, options.snrs or [QUICK_SNR]
    return options


def find_sample(options: argparse.Namespace) -> Sample:
    """Images that were prepared, or else those of a phantom."""
    if options.images is not None:
        return load_sample(options.images, options.cone, options.sphere)
    counts = QUICK_COUNTS if options.quick else PHANTOM_COUNTS
    box_px = QUICK_PX if options.quick else PHANTOM_PX
    return project_phantom(box_px, options.cone or counts[0], options.sphere or counts[1])


def describe(sample: Sample, *, cone_only: bool = False, with_ctf: bool = False) -> str:
    """Say in a few words which images there are."""
    counts = f"{len(sample.cone.label):,} images of the cone"
    counts += "" if cone_only else f" and {len(sample.sphere.label):,} of the sphere"
    ctf = "each its own CTF" if with_ctf else "no CTF"
    return f"{counts}, {sample.cone.images.shape[-1]} px, {ctf}, one thread"


# Ways


def prepare_ours(sample: Sample, record: Any, params: Any, pile: Pile) -> Prepared:
    """Let a method measure the images and make its references."""
    if record.complete is not None:
        attrs = {"pixel_size_A": pile.pixel_size_A}
        params = record.complete(params, attrs, pile.images.shape)
    start, sums = time.process_time(), None
    for ids, block in pile.blocks():
        own = record.chunk["cpu"](block.images, ids, params, len(pile.images), optics=block.optics)
        sums = own if sums is None else record.combine(sums, own)
    references = References(volumes=sample.volumes, pixel_size_A=sample.pixel_size_A)
    model = record.prepare(sums, params, references)
    return Prepared(record, params, model, time.process_time() - start)


def prepare_screen(sample: Sample, pile: Pile) -> Prepared:
    """The first stage of ours."""
    params = screeners.Screen(view=VIEW, cone_deg=CONE_DEG, keep=RECALL)
    return prepare_ours(sample, screeners.METHOD, params, pile)


def prepare_template(sample: Sample, pile: Pile) -> Prepared:
    """The second stage of ours."""
    params = template.Template(view=VIEW, cone_deg=CONE_DEG)
    return prepare_ours(sample, template.METHOD, params, pile)


def project(volume: Array, views_deg: Array) -> Array:
    """Views of a volume."""
    angles = np.column_stack([views_deg, np.zeros(len(views_deg))])
    return project_volume(prepare_volume(volume), rotation_matrices(angles))


def spread_in_cone(n_views: int) -> Array:
    """Directions along a spiral about the pole, of equal areas; (n_views, 2)."""
    share = (np.arange(n_views) + 0.5) / n_views
    tilt = np.rad2deg(np.arccos(1 - share * (1 - np.cos(np.deg2rad(CONE_DEG)))))
    return np.column_stack([np.rad2deg(np.pi * (3 - 5**0.5)) * np.arange(n_views) % 360, tilt])


def prepare_peer_screen(
    sample: Sample, pile: Pile, *, amplitudes: bool = False, denoised: bool = False
) -> Way:
    """The first stage of the peer; of denoised images the noise is taken to be gone."""
    sphere = sphere_views(PEER_SPHERE)
    beyond = sphere[angles_between(sphere, VIEW) > CONE_DEG + PEER_GAP_DEG]
    inside, outside = (
        np.concatenate([project(volume, views) for volume in sample.volumes])
        for views in (spread_in_cone(PEER_CONE), beyond)
    )
    spectra = peer.prepare_spectra(inside, outside, pile.noise_variance, amplitudes=amplitudes)
    if denoised:
        spectra = spectra._replace(ground=0.0)
    return lambda block: peer.screen(block.images, spectra, peer_transfer(block, spectra.radii))


def prepare_peer_search(sample: Sample, pile: Pile) -> Way:
    """The second stage of the peer: marginal and maximum likelihood, and correlation; (n, 3, k)."""
    box_px = sample.cone.images.shape[-1]
    views = np.stack([project(volume, spread_in_cone(PEER_CONE)) for volume in sample.volumes])
    shift_px = max(1, round(PEER_SHIFT * box_px / 128))
    poses = peer.prepare_poses(views, shift_px, pile.noise_variance)
    return lambda block: np.stack(
        peer.search(block.images, poses, peer_transfer(block, poses.radii)), 1
    )


def peer_transfer(block: Pile, radii: Array) -> Array | None:
    """CTFs at Fourier pixels."""
    if block.defocus_A is None:
        return None
    return transfer(radii / block.images.shape[-1], block.defocus_A[:, None], block.pixel_size_A)


def run_ways(pile: Pile, ways: Mapping[str, Way]) -> dict[str, Scored]:
    """Give each block to all ways in turn, after a warm-up."""
    values: dict[str, list[Array]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(pile.some(slice(4)))
    for _, block in pile.blocks():
        for name, way in ways.items():
            start = time.process_time()
            values[name].append(way(block))
            seconds[name].append(time.process_time() - start)
    return {name: Scored(np.concatenate(values[name]), seconds[name]) for name in ways}


def ratio(theirs: Scored, ours: Scored) -> str:
    """CPU time over that of ours, block by block."""
    ratios = [a / max(b, 1e-9) for a, b in zip(theirs.seconds, ours.seconds, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


# Screening


def screen_lines(options: argparse.Namespace, with_ctf: bool, sample: Sample) -> list[str]:
    """What is removed, by SNR and way."""
    rows = []
    for snr in options.snrs or SNRS:
        pile = make_pile(sample, snr, with_ctf=with_ctf)
        ours = prepare_screen(sample, pile)
        scored = run_ways(
            pile,
            {
                "emdask": ours.score,
                "peer, powers": prepare_peer_screen(sample, pile),
                "peer, amplitudes": prepare_peer_screen(sample, pile, amplitudes=True),
            },
        )
        for name, own in scored.items():
            scores = own.values[:, 0] if name == "emdask" else own.values
            kept = scores >= np.quantile(scores[pile.in_cone], 1 - RECALL)
            times = "" if name == "emdask" else ratio(own, scored["emdask"])
            rows.append([f"{snr:g}", name, *screen_cells(kept, pile), own.per_image, times])
        kept = scored["emdask"].values[:, 1] > 0
        note = f"prepared in {ours.seconds:.1f} s"
        rows.append([f"{snr:g}", f"emdask, keep={RECALL:g}", *screen_cells(kept, pile), "", note])
    head = ["SNR", "", "cone kept", *(f"beyond {deg}° removed" for deg in BEYOND_DEG)]
    head += ["CPU ms an image", "times that of emdask"]
    title = f"Screening: {describe(sample, with_ctf=with_ctf)}"
    return [title, "", *table(head, rows)]


def screen_cells(kept: Array, pile: Pile) -> list[str]:
    """Share of the cone's images that are kept, and of those far away that are removed."""
    far = [~kept[~pile.in_cone & (pile.angle_deg > deg)] for deg in BEYOND_DEG]
    return [f"{kept[pile.in_cone].mean():.3f}", *(f"{removed.mean():.4f}" for removed in far)]


# States


def state_lines(options: argparse.Namespace, with_ctf: bool, sample: Sample) -> list[str]:
    """Accuracy and proportions, by SNR and way."""
    n_classes = len(sample.volumes)
    rows, shares = [], []
    for snr in options.snrs or SNRS:
        pile = make_pile(sample, snr, with_ctf=with_ctf, cone_only=True)
        ours = prepare_template(sample, pile)
        ways = {
            f"emdask, {name}": ours._replace(
                params=ours.params.__class__(**vars(ours.params) | {"likelihood": name})
            ).score
            for name in LIKELIHOODS
        }
        scored = run_ways(pile, {**ways, "peer": prepare_peer_search(sample, pile)})
        first, found = scored["emdask, marginal"], scored["peer"]
        for name in ways:
            likely = scored[name].values[:, :n_classes]
            estimated = estimate(likely)
            cells = state_cells(likely, estimated[0], pile)
            times = "" if scored[name] is first else ratio(scored[name], first)
            rows.append([f"{snr:g}", name, *cells, scored[name].per_image, times])
            if name == "emdask, marginal":
                shares.append([f"{snr:g}", *share_cells(estimated), inside_text(estimated, pile)])
        for name, likely in zip(LIKELIHOODS, found.values.transpose(1, 0, 2), strict=False):
            counts = np.bincount(likely.argmax(1), minlength=n_classes) / len(likely)
            cells = state_cells(likely, counts, pile)
            rows.append([f"{snr:g}", f"peer, {name}", *cells, found.per_image, ratio(found, first)])
    head = ["SNR", "", "accuracy", "proportions off by at most", "CPU ms an image"]
    head += ["times that of emdask, marginal"]
    title = f"States: {describe(sample, cone_only=True, with_ctf=with_ctf)}"
    names = [f"class {i + 1}" for i in range(n_classes)]
    lines = [title, "", *table(head, rows), "", "Proportions by emdask, 95 % intervals", ""]
    return [*lines, *table(["SNR", *names, "true ones inside"], shares)]


def estimate(likely: Array) -> Array:
    """Proportions, errors, and lower and upper ends of intervals; (4, k)."""
    names = [f"class_{i + 1}" for i in range(likely.shape[1])]
    return estimate_shares(likely, columns=names)[:4, : likely.shape[1]]


def true_shares(pile: Pile, n_classes: int) -> Array:
    """Shares of the classes among the images within the cone."""
    near = pile.label[pile.angle_deg <= CONE_DEG + 1e-6]
    return np.bincount(near, minlength=n_classes) / len(near)


def state_cells(likely: Array, shares: Array, pile: Pile) -> list[str]:
    """Accuracy, and the largest error of proportions, in percentage points."""
    error = np.abs(shares - true_shares(pile, len(shares))).max()
    return [f"{(likely.argmax(1) == pile.label).mean():.4f}", f"{100 * error:.2f} points"]


def share_cells(estimated: Array) -> list[str]:
    """Proportions with their intervals."""
    return [f"{p:.3f} ({low:.3f} to {high:.3f})" for p, _, low, high in estimated.T]


def inside_text(estimated: Array, pile: Pile) -> str:
    """How many intervals hold what is true."""
    true = true_shares(pile, estimated.shape[1])
    inside = (estimated[2] <= true) & (true <= estimated[3])
    return f"{inside.sum()} of {len(true)}"


# Both stages


def mixed_lines(options: argparse.Namespace, sample: Sample) -> list[str]:
    """Where kept images come from, and the proportions among them."""
    rows, shares = [], []
    for snr in options.snrs or MIXED_SNRS:
        pile = make_pile(sample, snr)
        start = time.process_time()
        found = classify(pile.stack, sample.volumes, view=VIEW, cone_deg=CONE_DEG)
        seconds = time.process_time() - start
        kept, class_index = found.kept.values, found.class_id.values - 1
        estimated = np.stack([found[name].values for name in PROPORTIONS])
        rows.append(
            [f"{snr:g}", "emdask", *mixed_cells(kept, class_index, estimated[0], pile, seconds)]
        )
        shares.append([f"{snr:g}", *share_cells(estimated), inside_text(estimated, pile)])
        start = time.process_time()
        kept, class_index = both_by_peer(sample, pile)
        seconds = time.process_time() - start
        counts = np.bincount(class_index[kept], minlength=len(sample.volumes)) / kept.sum()
        rows.append([f"{snr:g}", "peer", *mixed_cells(kept, class_index, counts, pile, seconds)])
    head = ["SNR", "", "kept"]
    head += [f"{a} to {b}°" for a, b in pairwise(RINGS_DEG)]
    head += ["of the cone's, kept and right", "proportions off by at most", "CPU s"]
    title = f"Both stages: {describe(sample)}; preparing and reading included"
    names = [f"class {i + 1}" for i in range(len(sample.volumes))]
    lines = [title, "", *table(head, rows), "", "Proportions by emdask, 95 % intervals", ""]
    return [*lines, *table(["SNR", *names, "true ones inside"], shares)]


def classify(stack: xr.DataArray, volumes: Sequence[Array], **how: Any) -> xr.Dataset:
    """Classify by volumes."""
    size_A = stack.attrs["pixel_size_A"]
    references = [build_volume(volume, size_A) for volume in volumes]
    return emdask.classify(stack, references, **how).compute()


def both_by_peer(sample: Sample, pile: Pile) -> tuple[Array, Array]:
    """Which images the peer keeps, told the score that keeps 95 %, and the classes of these."""
    screen = prepare_peer_screen(sample, pile, amplitudes=True)
    scores = np.concatenate([screen(block) for _, block in pile.blocks()])
    kept = scores >= np.quantile(scores[pile.in_cone], 1 - RECALL)
    search = prepare_peer_search(sample, pile)
    class_index = np.full(len(kept), -1)
    class_index[kept] = np.concatenate(
        [search(block)[:, 0].argmax(1) for _, block in pile.some(kept).blocks()]
    )
    return kept, class_index


def mixed_cells(
    kept: Array, class_index: Array, shares: Array, pile: Pile, seconds: float
) -> list[str]:
    """Kept images by angle, accuracy, and the largest error of proportions."""
    edges = [*RINGS_DEG[:-1], 181]
    counts = np.histogram(pile.angle_deg[kept], edges)[0]
    all_of_them = np.histogram(pile.angle_deg, edges)[0]
    right = (class_index == pile.label)[pile.in_cone].mean()
    error = np.abs(shares - true_shares(pile, len(shares))).max()
    cells = [f"{n} of {m}" for n, m in zip(counts, all_of_them, strict=True)]
    return [f"{kept.sum()}", *cells, f"{right:.3f}", f"{100 * error:.2f} points", f"{seconds:.1f}"]


# Denoising


def denoised_lines(options: argparse.Namespace, sample: Sample) -> list[str]:
    """Both stages on noisy and denoised images."""
    rows = []
    for snr in options.snrs or DENOISED_SNRS:
        noisy = draw_few(make_pile(sample, snr))
        for name, how in FILTERS.items():
            pile = denoise(noisy, how)
            told = denoised_by_peer(sample, pile, denoised=how is not None)
            for noise, measured in {"its own": pile, "as before": noisy}.items():
                if noise == "its own" or how is not None:
                    try:
                        cells = denoised_cells(sample, pile, measured)
                    except EmdaskError:
                        cells = ["refused"] * 4
                    rows.append([f"{snr:g}", name, noise, *cells, *told])
    head = ["SNR", "images", "noise", "beyond 20° removed", f"cone kept at keep={RECALL:g}"]
    head += ["accuracy", "mean confidence", "peer: beyond 20° removed", "peer: accuracy"]
    n_cone, n_sphere = (int(noisy.in_cone.sum()), int((~noisy.in_cone).sum()))
    title = f"Denoising first: {n_cone} images of the cone and {n_sphere} of the sphere, no CTF"
    return [title, "", *table(head, rows)]


def draw_few(pile: Pile) -> Pile:
    """The first images of the cone and of the sphere."""
    of_both = (np.flatnonzero(pile.in_cone), np.flatnonzero(~pile.in_cone))
    return pile.some(np.concatenate([w[:n] for w, n in zip(of_both, DENOISED, strict=True)]))


def denoise(pile: Pile, how: dict[str, Any] | None) -> Pile:
    """Denoise images by a method, told the noise."""
    if how is None:
        return pile
    sigma = float(np.sqrt(pile.noise_variance))
    return pile._replace(images=emdask.denoise(pile.stack, **how, sigma=sigma).values)


def denoised_cells(sample: Sample, pile: Pile, measured: Pile) -> list[str]:
    """Removed and kept, accuracy, and how sure it is; noise and contrast are of other images."""
    rows = run_ways(pile, {"": prepare_screen(sample, measured).score})[""].values
    scores, cone = rows[:, 0], pile.in_cone
    at_recall = screen_cells(scores >= np.quantile(scores[cone], 1 - RECALL), pile)[2]
    own = prepare_template(sample, measured.some(measured.in_cone))
    near = pile.some(cone)
    likely = run_ways(near, {"": own.score})[""].values[:, : len(sample.volumes)]
    right = (likely.argmax(1) == near.label).mean()
    sure = softmax(likely.astype(np.float64), axis=1).max(1).mean()
    return [at_recall, f"{rows[cone, 1].mean():.3f}", f"{right:.3f}", f"{sure:.3f}"]


def denoised_by_peer(sample: Sample, pile: Pile, *, denoised: bool) -> list[str]:
    """Removed by correlated powers, and accuracy by the best correlation."""
    screen = prepare_peer_screen(sample, pile, denoised=denoised)
    scores = run_ways(pile, {"": screen})[""].values
    removed = screen_cells(scores >= np.quantile(scores[pile.in_cone], 1 - RECALL), pile)[2]
    near = pile.some(pile.in_cone)
    found = run_ways(near, {"": prepare_peer_search(sample, pile)})[""].values[:, 2]
    return [removed, f"{(found.argmax(1) == near.label).mean():.3f}"]


# Outlines


def contour_lines(options: argparse.Namespace, sample: Sample) -> list[str]:
    """Classes by the nearest outline and by spectra, and screening by outlines."""
    cone = {"view": VIEW, "cone_deg": CONE_DEG}
    rows = []
    for snr in options.snrs or DENOISED_SNRS:
        noisy = draw_few(make_pile(sample, snr))
        for name, how in FILTERS.items():
            pile = denoise(noisy, how)
            near = pile.some(pile.in_cone)
            start = time.process_time()
            found = classify_acf(pile, sample.volumes, features="contour", **cone)
            per_image = 1e3 * (time.process_time() - start) / len(pile.images)
            kept = found.kept.values
            cells = screen_cells(kept, pile)
            nearest = classify_acf(near, reference_stack(sample), features="contour")
            right = (nearest.class_id.values - 1 == near.label).mean()
            rows.append([f"{snr:g}", name, f"{right:.3f}", by_spectra(near, sample, cone)])
            rows[-1] += [cells[0], cells[2], f"{per_image:.1f}"]
    head = ["SNR", "images", "accuracy, contour", "spectrum", "contour: cone kept"]
    head += ["beyond 20° removed", "CPU ms an image, references included"]
    return ['Features for denoised images, method="acf"', "", *table(head, rows)]


def by_spectra(pile: Pile, sample: Sample, cone: dict[str, Any]) -> str:
    """Accuracy by amplitude spectra; these refuse images whose noise cannot be measured."""
    try:
        likely = classify_acf(pile, sample.volumes, **cone).log_likelihood.values
    except EmdaskError:
        return "refused"
    return f"{(likely.argmax(1) == pile.label).mean():.3f}"


def classify_acf(pile: Pile, references: Any, **how: Any) -> xr.Dataset:
    """Classify by autocorrelation features."""
    if isinstance(references, tuple):
        return classify(pile.stack, references, method="acf", **how)
    return emdask.classify(pile.stack, references, method="acf", **how).compute()


def reference_stack(sample: Sample) -> xr.DataArray:
    """Views of the cone, of each class as many."""
    views = cone_views(VIEW, CONE_DEG, 3.0)
    images = np.concatenate([project(volume, views) for volume in sample.volumes])
    class_id = np.repeat(np.arange(1, len(sample.volumes) + 1), len(views))
    coords = {"class_id": ("image", class_id)}
    attrs = {"pixel_size_A": sample.pixel_size_A}
    return xr.DataArray(images, coords, ("image", "y", "x"), attrs=attrs)


# Without references


def blind_lines(options: argparse.Namespace, sample: Sample) -> list[str]:
    """How well classes without references agree with the states, at best."""
    n_classes = len(sample.volumes)
    rng = np.random.default_rng(0)
    rows = []
    for snr in options.snrs or BLIND_SNRS:
        pile = make_pile(sample, snr, cone_only=True)
        drawn = [
            agreement(rng.integers(n_classes, size=len(pile.label)), pile.label) for _ in range(50)
        ]
        for method in ("kmeans", "gmm"):
            for features in ("spectrum", "steerable"):
                how = {"method": method, "features": features, "n_classes": n_classes}
                found = emdask.classify(pile.stack, **how).compute()
                right = agreement(found.class_id.values - 1, pile.label)
                chance = f"{np.mean(drawn):.3f}"
                rows.append([f"{snr:g}", method, features, f"{right:.3f}", chance])
    head = ["SNR", "method", "features", "agreement with the states", "by chance"]
    title = f"Without references: {describe(sample, cone_only=True)}"
    return [title, "", *table(head, rows)]


def agreement(found: Array, label: Array) -> float:
    """Share of images whose class is theirs, classes matched with states as well as can be."""
    n = int(max(found.max(), label.max())) + 1
    counts = np.zeros((n, n), int)
    np.add.at(counts, (label, found.astype(int)), 1)
    return float(counts[linear_sum_assignment(-counts)].sum() / len(label))


# Memory


def memory_lines(options: argparse.Namespace, sample: Sample) -> list[str]:
    """Peak memory of a process that runs both stages on images of a store."""
    pile = make_pile(sample, MEMORY_SNR)
    params = two_stage.TwoStage(view=VIEW, cone_deg=CONE_DEG)
    model = prepare_ours(sample, two_stage.METHOD, params, pile).model
    size_MB = len(pickle.dumps(model, protocol=5)) / 1e6
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        volumes = Path(folder) / "volumes.npz"
        np.savez(volumes, *sample.volumes)
        order = np.random.default_rng(0).permutation(len(pile.images))
        for n in (max(len(order) // 10, 1), len(order)):
            emdask.save_stack(pile.some(order[:n]).stack, Path(folder) / f"{n}.zarr")
            command = [sys.executable, __file__, "--measure-memory", f"{folder}/{n}.zarr"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            before, peak = json.loads(run.stdout.splitlines()[-1])
            image_MB = pile.images[0].nbytes * n / 1e6
            rows.append([f"{n}", f"{image_MB:.0f}", f"{size_MB:.0f}", f"{before:.0f}"])
            rows[-1].append(f"{peak:.0f}")
    head = ["images", "MB of images", "MB of references, prepared", "peak MB before", "peak MB"]
    title = "Memory: a process that runs both stages in one thread, volumes and libraries included"
    return [title, "", *table(head, rows)]


def memory_here(store: Path) -> tuple[float, float]:
    """MB that this process held at most, before and after both stages."""
    volumes = [*np.load(store.with_name("volumes.npz")).values()]
    stack = emdask.open_stack(store)
    before = peak_memory()
    with threadpool_limits(1), dask.config.set(scheduler="synchronous"):
        classify(stack, volumes, view=VIEW, cone_deg=CONE_DEG)
    return before, peak_memory()


def by_ctf(
    lines: Callable[[argparse.Namespace, bool, Sample], list[str]],
) -> Callable[[argparse.Namespace], list[Part]]:
    """A table without and with CTF."""
    return lambda options: [partial(lines, options, ctf == "yes") for ctf in options.ctf]


def once(lines: Callable[[argparse.Namespace, Sample], list[str]]) -> Any:
    """One table."""
    return lambda options: [partial(lines, options)]


TABLES: dict[str, Callable[[argparse.Namespace], list[Part]]] = {
    "screen": by_ctf(screen_lines),
    "states": by_ctf(state_lines),
    "mixed": once(mixed_lines),
    "denoised": once(denoised_lines),
    "contours": once(contour_lines),
    "blind": once(blind_lines),
    "memory": once(memory_lines),
}


if __name__ == "__main__":
    with errors_as_sentences():
        main()
