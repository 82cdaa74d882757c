"""Micrographs to train a general picker on: each of another structure, under other conditions.

Micrograph i follows from the seed and i alone. Nothing is downloaded: structures are random
(`structures.py`), images are by `emdask.simulate_micrographs`, at a pixel size at which the
particle's diameter is 24 to 48 pixels, because pickers see them at that scale anyhow.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.ndimage import gaussian_filter
from skimage.exposure import equalize_adapthist
from structures import draw_structure

import emdask
from emdask.kernels.ice import add_crystal

Array = npt.NDArray[Any]
Rng = np.random.Generator

DIAMETERS_PX = (24.0, 48.0)
# Variance of the particles in their discs over that of the noise, at this scale: pixels are 2 to 6
# times as wide as those of the camera, so this is 0.02 to 0.3 there.
SNRS = (0.045, 2.5)
DEFOCUS_UM = (0.5, 3.5)
# Shares of the micrographs.
WITHOUT_CTF, DENOISED, EMPTY, WITH_CARBON, COLOURED = 0.12, 0.3, 0.06, 0.2, 0.5
WITH_DIRT, WITH_FRAGMENTS, WITH_LUMPS, EIGHT_BIT, SMEARED = 0.55, 0.5, 0.3, 0.3, 0.15
BY_PATCHES, EQUALISED = 0.1, 0.15
# What people say the diameter is, relative to what it is: they leave out more than they add.
STATED = (0.75, 1.2)


@dataclass(frozen=True, kw_only=True)
class TrainingMicrograph:
    """A simulated micrograph, dark particles, and what is known of it.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Grey levels; the noise had variance 1 when it was made.
    centres : float64 array, shape (n, 2)
        Centres (x, y) of all particles in pixels, that of the first pixel being 0.
    diameter_px
        As it is stated, which is not quite what it is.
    conditions
        What was drawn.
    """

    image: Array
    centres: Array
    diameter_px: float
    conditions: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a micrograph is of, drawn from the seed and its number."""

    structure_seed: int
    diameter_px: float
    stated: float
    snr: float
    noise: str
    ctf: dict[str, Any] | None
    cover: float
    min_distance: float
    crowding: float
    ice: float
    carbon: bool
    hole: float
    n_crystals: int
    n_lumps: int
    fragments: float
    denoised_to: float
    by_patches: bool
    equalised: float
    smeared_px: int
    eight_bit: bool


def draw_conditions(rng: Rng) -> Conditions:
    """Draw the conditions of a micrograph."""
    happens = lambda share: bool(rng.random() < share)  # noqa: E731
    empty = happens(EMPTY)
    ctf = {
        "defocus_A": float(1e4 * rng.uniform(*DEFOCUS_UM)),
        "astigmatism_A": float(rng.uniform(0, 400)),
        "voltage_kV": float(rng.choice([200.0, 300.0])),
        "amplitude_contrast": float(rng.uniform(0.07, 0.12)),
    }
    return Conditions(
        structure_seed=int(rng.integers(2**31)),
        diameter_px=float(rng.uniform(*DIAMETERS_PX)),
        stated=float(rng.uniform(*STATED)),
        snr=float(np.exp(rng.uniform(*np.log(SNRS)))),
        noise="coloured" if happens(COLOURED) else "white",
        ctf=None if happens(WITHOUT_CTF) else ctf,
        cover=0.0 if empty else float(rng.choice([0.05, 0.15, 0.25, 0.35]) * rng.uniform(0.7, 1.1)),
        min_distance=float(rng.uniform(0.55, 1.2)),
        crowding=float(rng.uniform(0, 0.9) * happens(0.7)),
        ice=float(rng.exponential(1.0)),
        carbon=happens(0.5 if empty else WITH_CARBON),
        # In diameters.
        hole=float(rng.uniform(3, 10) if empty else rng.uniform(25, 120)),
        n_crystals=int(rng.integers(1, 15)) if happens(WITH_DIRT) else 0,
        n_lumps=int(rng.integers(1, 6)) if happens(WITH_LUMPS) else 0,
        fragments=float(rng.uniform(0.1, 0.5)) if happens(WITH_FRAGMENTS) else 0.0,
        denoised_to=float(rng.uniform(1.8, 7)) if happens(DENOISED) else 0.0,
        by_patches=happens(BY_PATCHES),
        # Part of the grey levels that a level may take up at most.
        equalised=float(np.exp(rng.uniform(*np.log([0.003, 0.03])))) if happens(EQUALISED) else 0.0,
        smeared_px=int(rng.integers(8, 32)) if happens(SMEARED) else 0,
        eight_bit=happens(EIGHT_BIT),
    )


def training_micrograph(seed: int, index: int, size_px: int = 768) -> TrainingMicrograph:
    """Make a micrograph.

    Examples
    --------
    >>> made = training_micrograph(0, 5, size_px=128)
    >>> made.image.shape, made.centres.shape[1]
    ((128, 128), 2)
    """
    rng = np.random.default_rng([seed, index])
    drawn = draw_conditions(rng)
    structure = draw_structure(drawn.structure_seed)
    volume, diameter_A = structure.volume(drawn.diameter_px)
    pixel_A = float(volume.attrs["pixel_size_A"])
    diameter_px = diameter_A / pixel_A
    of_one = np.pi / 4 * diameter_px**2 / size_px**2
    # The simulator places at most discs of two fifths of the frame.
    most = 0.42 / (of_one * drawn.min_distance**2)
    n_particles = min(round(drawn.cover / of_one), int(most))
    made, picks = emdask.simulate_micrographs(
        [volume, _fragment(volume, rng)] if drawn.fragments else volume,
        1,
        snr=drawn.snr,
        snr_in="particles",
        size_px=size_px,
        n_particles=n_particles,
        diameter_A=diameter_A,
        min_distance_A=drawn.min_distance * diameter_A,
        crowding=drawn.crowding,
        ctf=drawn.ctf,
        proportions=[1 - drawn.fragments, drawn.fragments] if drawn.fragments else None,
        ice=drawn.ice,
        carbon=float(drawn.carbon),
        hole_A=drawn.hole * diameter_A,
        n_crystals=drawn.n_crystals,
        noise=drawn.noise,
        seed=int(rng.integers(2**31)),
        accuracy="rough",
        device="cpu",
    )
    image = np.array(made.images[0].compute(scheduler="synchronous").values)
    picks = picks[picks.class_id == 1]
    centres = picks[["x_px", "y_px"]].to_numpy(np.float64)
    covered = _add_lumps(rng, image, drawn.n_lumps, diameter_px)
    if drawn.denoised_to:
        image = _denoise(rng, image, diameter_px, drawn.denoised_to)
    if drawn.by_patches:
        image = emdask.denoise(image, "nl_means", device="cpu").compute(scheduler="synchronous")
    if drawn.equalised:
        window_px = round(diameter_px * rng.uniform(2, 8))
        image = _equalise(image, window_px, drawn.equalised)
    centres = centres[~covered[tuple(_cells(centres, image.shape))]]
    if drawn.smeared_px:
        centres = _smear(rng, image, centres, drawn.smeared_px)
    if drawn.eight_bit:
        low, high = np.percentile(image, [rng.uniform(0, 0.5), rng.uniform(99.5, 100)])
        image = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255)
    conditions = {**asdict(drawn), "kind": structure.kind, "diameter_A": diameter_A}
    return TrainingMicrograph(
        image=image.astype(np.float32),
        centres=centres,
        diameter_px=diameter_px * drawn.stated,
        conditions={**conditions, "pixel_size_A": pixel_A, "n_particles": len(centres)},
    )


def _fragment(volume: Any, rng: Rng) -> Any:
    """Keep a part of a particle about one of its points: a subunit, what fell apart.

    It looks like a particle, but for its size beside its neighbours'.
    """
    n = len(volume)
    z, y, x = np.mgrid[:n, :n, :n] - n // 2
    away = rng.normal(size=3)
    away *= n / 7 / np.linalg.norm(away)
    distance = np.sqrt((x - away[0]) ** 2 + (y - away[1]) ** 2 + (z - away[2]) ** 2)
    kept = 1 / (1 + np.exp((distance - n * rng.uniform(0.12, 0.3)) / 1.5))
    return volume * kept.astype(np.float32)


def _add_lumps(rng: Rng, image: Array, n: int, diameter_px: float) -> Array:
    """Add lumps far darker than particles, with bright rims; return where they lie."""
    h, w = image.shape
    covered = np.zeros((h, w), bool)
    for _ in range(n):
        lump = np.zeros((h, w), np.float32)
        radius_px = diameter_px * np.exp(rng.uniform(np.log(0.3), np.log(2.5)))
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        for _ in range(int(rng.integers(1, 5))):
            place = (x + radius_px * rng.normal(), y + radius_px * rng.normal())
            place = (float(np.clip(place[0], 0, w - 1)), float(np.clip(place[1], 0, h - 1)))
            add_crystal(lump, *place, radius_px * rng.uniform(0.4, 1), 1.0, int(rng.integers(2, 7)))
        covered |= lump > 0.2
        rim = gaussian_filter(lump, diameter_px * rng.uniform(0.05, 0.3))
        strength = image.std() * np.exp(rng.uniform(0, np.log(12)))
        image -= np.float32(strength) * (lump + rng.uniform(0, 1.5) * (lump - rim))
    return covered


def _denoise(rng: Rng, image: Array, diameter_px: float, finest: float) -> Array:
    """Leave out detail finer than a part of the diameter, as denoised and binned images do."""
    h, w = image.shape
    terms = scipy.fft.dctn(image, norm="ortho")
    v, u = np.arange(h)[:, None] / (2 * h), np.arange(w) / (2 * w)
    frequency = np.hypot(v, u) * diameter_px
    steepness = rng.uniform(1, 6)
    gain = 1 / (1 + (frequency / finest) ** (2 * steepness))
    if rng.random() < 0.5:
        # Backgrounds are taken away along with noise.
        gain *= 1 - np.exp(-((frequency / rng.uniform(0.1, 0.5)) ** 2))
    smooth = scipy.fft.idctn(terms * gain, norm="ortho")
    left = rng.uniform(0, 0.3) * smooth.std() if rng.random() < 0.5 else 0.0
    return np.asarray(smooth + left * rng.standard_normal(image.shape), np.float32)


def _equalise(image: Array, window_px: int, most: float) -> Array:
    """Make use of the grey levels alike in all parts of a micrograph (CLAHE), as people do to look.

    What is bright or dark as a whole is lost, and so is part of the noise's distribution.
    """
    low, high = np.percentile(image, [0.1, 99.9])
    levels = np.clip((image - low) / (high - low), 0, 1)
    return np.asarray(equalize_adapthist(levels, window_px, clip_limit=most), np.float32)


def _cells(centres: Array, shape: tuple[int, ...]) -> Array:
    h, w = shape
    return np.clip(np.rint(centres[:, ::-1]).astype(int), 0, [h - 1, w - 1]).T


def _smear(rng: Rng, image: Array, centres: Array, width_px: int) -> Array:
    """Repeat the pixels of a line over the edges of the frame; return the centres that are left."""
    h, w = image.shape
    edges = rng.random(4) < 0.6
    top, bottom, left, right = (width_px if edge else 0 for edge in edges)
    image[:top] = image[top]
    image[h - bottom :] = image[h - bottom - 1]
    image[:, :left] = image[:, left : left + 1]
    image[:, w - right :] = image[:, w - right - 1 : w - right]
    x, y = centres.T
    kept = (x >= left) & (x < w - right) & (y >= top) & (y < h - bottom)
    return np.asarray(centres[kept])
