"""Images of conformations with noise, for classify.py: those of a folder, or of a phantom."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from cwf import Held

import emdask
from emdask.errors import EmdaskError
from emdask.kernels.ctf import Optics, electron_wavelength
from emdask.lazy import read_images
from emdask.stack import build_stack

VIEW, CONE_DEG = (0.0, 0.0), 10.0
MICROSCOPE = {"voltage_kV": 300.0, "spherical_aberration_mm": 2.7, "amplitude_contrast": 0.1}
DEFOCUS_A = (10_000.0, 30_000.0)
SEED = 20261122
BLOCK, CHUNK = 100, 250
FILES = ("meta.npz", "vol_0.npy", "cone_clean.npy", "cone.npz", "sphere_clean.npy", "sphere.npz")
# Turns of the phantom's arm, degrees, and how far particles are shifted: pixels of 128.
STATES_DEG, SHIFT_PX = (0, 8, 16, 24, 32), 4.0

Array = Any


class Shown(NamedTuple):
    """Images without noise, the classes they are of, from 0, and their angles to the view."""

    images: Array
    label: Array
    angle_deg: Array


class Sample(NamedTuple):
    """Volumes of the classes, and their images: of the cone, and of the sphere."""

    volumes: tuple[Array, ...]
    pixel_size_A: float
    cone: Shown
    sphere: Shown


class Pile(NamedTuple):
    """Images with white noise; ``in_cone``: whether they were made as images of the cone."""

    images: Array
    label: Array
    angle_deg: Array
    in_cone: Array
    defocus_A: Array | None
    noise_variance: float
    pixel_size_A: float

    def some(self, which: Array) -> Pile:
        """Some of the images."""
        columns = ("images", "label", "angle_deg", "in_cone", "defocus_A")
        values = {name: getattr(self, name) for name in columns}
        taken = {name: None if v is None else v[which] for name, v in values.items()}
        return self._replace(**taken)

    def blocks(self) -> Iterator[tuple[Array, Pile]]:
        """Go through the images: their numbers, and themselves."""
        for start in range(0, len(self.images), BLOCK):
            stop = min(start + BLOCK, len(self.images))
            yield np.arange(start, stop), self.some(slice(start, stop))

    @property
    def optics(self) -> Optics | None:
        """Of the images."""
        if self.defocus_A is None:
            return None
        defocus = {"defocus_u_A": self.defocus_A, "defocus_v_A": self.defocus_A}
        return Optics(pixel_size_A=self.pixel_size_A, **defocus, **MICROSCOPE)

    @property
    def stack(self) -> xr.DataArray:
        """The images as a user has them."""
        held = Held(self.images)
        shape, dtype = self.images.shape, self.images.dtype
        images = read_images(Held.read, held, shape=shape, dtype=dtype, chunk=CHUNK, name="held")
        coords: dict[str, Any] = {}
        if self.defocus_A is not None:
            coords = {"defocus_u_A": self.defocus_A, "defocus_v_A": self.defocus_A}
        return build_stack(images, coords, {"pixel_size_A": self.pixel_size_A} | MICROSCOPE)


def load_sample(folder: Path, n_cone: int | None, n_sphere: int | None) -> Sample:
    """The first images of those that make_images.py has written; None: all."""
    for name in FILES:
        if not (folder / name).exists():
            remedy = "Make it, from the RNAP conformations: python make_images.py --out"
            raise EmdaskError(f"{folder / name}: is not there. {remedy} {folder}")
    meta = np.load(folder / "meta.npz")
    volumes = tuple(np.load(folder / f"vol_{i}.npy") for i in range(len(meta["angles"])))
    cone, sphere = (
        load_shown(folder, name, n) for name, n in (("cone", n_cone), ("sphere", n_sphere))
    )
    return Sample(volumes, float(meta["apix"]), cone, sphere)


def load_shown(folder: Path, name: str, n: int | None) -> Shown:
    """The first images of a file."""
    truth = np.load(folder / f"{name}.npz")
    images = np.load(folder / f"{name}_clean.npy", mmap_mode="r")[:n]
    return Shown(images, truth["label"][:n], np.rad2deg(truth["theta"][:n]))


def project_phantom(box_px: int, n_cone: int, n_sphere: int) -> Sample:
    """Project a particle whose arm turns about z, exactly."""
    pixel_size_A = 256.0 / box_px
    rng = np.random.default_rng(0)
    body = rng.normal(scale=(25, 30, 35), size=(60, 3))
    arm = rng.normal(scale=(18, 8, 10), size=(25, 3)) + np.array([60, 0, 12])
    states = []
    for angle in np.deg2rad(STATES_DEG):
        c, s = np.cos(angle), np.sin(angle)
        positions = np.concatenate([body, arm @ [[c, s, 0], [-s, c, 0], [0, 0, 1]]])
        widths = np.full(len(positions), 1.7 * pixel_size_A)
        particle = emdask.phantom(len(positions))
        masses = np.ones(len(positions))
        states.append(replace(particle, positions_A=positions, widths_A=widths, masses=masses))
    volumes = tuple(state.volume(box_px, pixel_size_A).values for state in states)
    shown = [
        show(states, n, limit, rng, box_px, pixel_size_A)
        for n, limit in ((n_cone, CONE_DEG), (n_sphere, 180.0))
    ]
    return Sample(volumes, pixel_size_A, *shown)


def show(
    states: list[Any], n: int, limit_deg: float, rng: Array, box_px: int, pixel_size_A: float
) -> Shown:
    """Project states in turn, from within an angle of the pole."""
    tilt = np.rad2deg(np.arccos(1 - (1 - np.cos(np.deg2rad(limit_deg))) * rng.random(n)))
    angles = np.column_stack([360 * rng.random(n), tilt, 360 * rng.random(n)])
    reach_A = SHIFT_PX * box_px / 128 * pixel_size_A
    shifts_A = rng.uniform(-reach_A, reach_A, (n, 2))
    label = np.arange(n) % len(states)
    images = np.empty((n, box_px, box_px), np.float32)
    grid = {"box_px": box_px, "pixel_size_A": pixel_size_A}
    for i, state in enumerate(states):
        own = label == i
        images[own] = state.project(angles[own], shift_A=shifts_A[own], **grid)
    return Shown(images, label, tilt)


def make_pile(
    sample: Sample, snr: float, *, with_ctf: bool = False, cone_only: bool = False
) -> Pile:
    """Add noise to the images of the cone, and to those of the sphere."""
    parts = [sample.cone] if cone_only else [sample.cone, sample.sphere]
    counts = [len(part.label) for part in parts]
    defoci = [np.random.default_rng([SEED, i]).uniform(*DEFOCUS_A, n) for i, n in enumerate(counts)]
    seen = [
        see(part.images, defocus if with_ctf else None, sample.pixel_size_A)
        for part, defocus in zip(parts, defoci, strict=True)
    ]
    variance = float(seen[0].var(axis=(1, 2), dtype=np.float64).mean()) / snr
    for seed, images in enumerate(seen):
        # The noise of make_images.py.
        rng = np.random.default_rng([SEED, seed, round(1e6 * snr)])
        for image in images:
            image += np.float32(np.sqrt(variance)) * rng.standard_normal(image.shape, np.float32)
    return Pile(
        np.concatenate(seen),
        np.concatenate([part.label for part in parts]),
        np.concatenate([part.angle_deg for part in parts]),
        np.repeat([True, False][: len(parts)], counts),
        np.concatenate(defoci) if with_ctf else None,
        variance,
        sample.pixel_size_A,
    )


def see(clean: Array, defocus_A: Array | None, pixel_size_A: float) -> Array:
    """Copy images, as seen through their CTFs where there are such."""
    images = np.array(clean)
    if defocus_A is None:
        return images
    n = images.shape[-1]
    frequency = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    for image, defocus in zip(images, defocus_A, strict=True):
        ctf = transfer(frequency, defocus, pixel_size_A)
        image[:] = np.fft.irfft2(np.fft.rfft2(image) * ctf, s=image.shape)
    return images


def transfer(frequency: Array, defocus_A: Array, pixel_size_A: float) -> Array:
    """CTF at frequencies in cycles a pixel."""
    wavelength = electron_wavelength(MICROSCOPE["voltage_kV"])
    k2 = np.square(frequency / pixel_size_A)
    aberration = np.pi / 2 * 1e7 * MICROSCOPE["spherical_aberration_mm"] * wavelength**3 * k2**2
    constant = np.arcsin(MICROSCOPE["amplitude_contrast"])
    return np.sin(np.pi * wavelength * defocus_A * k2 - aberration + constant)
