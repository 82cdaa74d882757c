"""The pixels of simulated micrographs: what a camera records of a specimen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len

from emdask.backend import array_namespace, resolve_device, run_on, to_device, to_host
from emdask.kernels.coloured_noise import colour_noise, noise_gain
from emdask.kernels.draws import normal_images
from emdask.kernels.fields import blur_px, image_field
from emdask.kernels.ice import add_crystal, carbon_film, ice_slope
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import VolumeSpectrum, project_volume
from emdask.simulators.preparing import Once
from emdask.simulators.scene import DEVICES, transform_volume
from emdask.simulators.specimen import TEXTURE, Particles, Specimen
from emdask.simulators.truth import Draws, draw_optics

Array = npt.NDArray[Any]

SNR_PLACES = ("frame", "particles")
# Particles that are projected together: more would only take more memory.
AT_ONCE = 32
# Fields of float32 that a card is taken to need for a micrograph.
FIELDS_IN_USE = 16
# Shapes of micrographs of which the spectrum of coloured noise is kept.
N_GAINS = 2
# The film, in standard deviations of the noise: how dark it is, the steps at its edge and the grain
# that the microscope sees, and how much stronger the noise is on it.
FILM_DARKNESS = 1.5
FILM_STEP = 1.0
FILM_GRAIN = 0.6
FILM_NOISE = 0.15
FILM_EDGE_A = 15.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposure:
    """Everything that simulated micrographs depend on.

    Parameters
    ----------
    token
        Tells the exposure from others.
    volumes : float32 arrays, shape (m, m, m)
        One a class.
    pixel_size_A
        Edge of a voxel and of a pixel in Å.
    specimen
        What is where.
    ctf
        How CTFs are drawn, see `emdask.simulators.truth`.
    snr, snr_in
        See `emdask.simulate_micrographs`.
    ice
        Grey levels, in deviations of the noise, from the thinnest ice to the thickest.
    noise
        "white" or "coloured".
    accuracy
        Of the projections.
    device
        "auto", "cpu" or "cuda".
    """

    token: str
    volumes: tuple[Array, ...]
    pixel_size_A: float
    specimen: Specimen
    ctf: Any
    snr: float
    snr_in: str
    ice: float
    noise: str
    accuracy: str
    device: str

    def __dask_tokenize__(self) -> str:
        return self.token

    def lens(self, image_id: int) -> Lens:
        """Return the microscope as it was set for a micrograph."""
        draws = Draws(image_ids=np.array([image_id]), seed=self.specimen.seed)
        drawn = draw_optics(self.ctf, draws)
        numbers = {name: float(np.ravel(value)[0]) for name, value in drawn.items()}
        numbers.pop("optics_group", None)
        optics = {**numbers, "pixel_size_A": self.pixel_size_A} if numbers else None
        spread_px = 0.0 if optics is None else blur_px(optics)
        margin_px = len(self.volumes[0]) // 2 + 1 + int(np.ceil(spread_px))
        return Lens(optics=optics, margin_px=margin_px, shape=self.specimen.shape)


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What makes an image of a field that is larger than the frame.

    Parameters
    ----------
    optics
        Arguments of `emdask.kernels.ctf.ctf_2d`; None where there is no CTF.
    margin_px
        Around the frame: what ends at the edge of the field does not ring within the frame.
    shape
        (h, w) of the frame.
    """

    optics: Mapping[str, float] | None
    margin_px: int
    shape: tuple[int, int]

    @property
    def field_shape(self) -> tuple[int, int]:
        """(h, w) of the frame and its margins, quick to transform."""
        h, w = (next_fast_len(n + 2 * self.margin_px, real=True) for n in self.shape)
        return h, w

    def empty_field(self, xp: ModuleType) -> Any:
        """Return zeros for the frame and its margins; float32."""
        return xp.zeros(self.field_shape, np.float32)

    def see(self, field: Any) -> Any:
        """Image a field; float32, of the frame."""
        seen = field if self.optics is None else image_field(field, self.optics)
        return self.crop(seen)

    def crop(self, field: Any) -> Any:
        """Cut the frame out of a field."""
        (h, w), first = self.shape, self.margin_px
        return field[first : first + h, first : first + w]


def read_clean(exposure: Exposure, start: int, stop: int) -> Array:
    """Make micrographs start .. stop without noise; float32 (stop - start, h, w)."""
    return np.stack([_expose(exposure, image_id, noisy=False) for image_id in range(start, stop)])


def read_noisy(exposure: Exposure, start: int, stop: int) -> Array:
    """Make micrographs start .. stop with noise; float32 (stop - start, h, w)."""
    return np.stack([_expose(exposure, image_id, noisy=True) for image_id in range(start, stop)])


def _expose(exposure: Exposure, image_id: int, *, noisy: bool) -> Array:
    """Make one micrograph; float32 (h, w), on the host."""
    device = resolve_device(exposure.device, DEVICES)
    spectra, lens = prepare(exposure, device), exposure.lens(image_id)
    n_bytes = FIELDS_IN_USE * np.dtype(np.float32).itemsize * prod(lens.field_shape)

    def record() -> Any:
        micrograph = _see(exposure, image_id, lens, spectra)
        if noisy:
            micrograph += _noise(exposure, image_id, device)
        return to_host(micrograph)

    return np.asarray(run_on(device, record, n_bytes=n_bytes, what="a micrograph"))


def _noise(exposure: Exposure, image_id: int, device: str) -> Any:
    """Noise of variance 1, more on the film; drawn on the host, so the same on all devices."""
    specimen = exposure.specimen
    noise = to_device(normal_images(specimen.seed, [image_id], specimen.shape), device)
    if exposure.noise == "coloured":
        noise = colour_noise(noise, _noise_gain(specimen.shape))
    hole = specimen.hole(image_id)
    if hole is not None:
        edge_px = FILM_EDGE_A / exposure.pixel_size_A
        film = carbon_film(specimen.shape, hole, edge_px, array_namespace(noise))
        film *= np.float32(FILM_NOISE)
        film += np.float32(1)
        noise *= film
    return noise[0]


@lru_cache(maxsize=N_GAINS)
def _noise_gain(shape: tuple[int, int]) -> Array:
    return np.asarray(noise_gain(shape))


def _see(exposure: Exposure, image_id: int, lens: Lens, spectra: tuple[VolumeSpectrum, ...]) -> Any:
    """Make one micrograph without noise: what is thick is dark."""
    specimen = exposure.specimen
    particles = specimen.particles([image_id])
    seen = lens.see(_particle_field(particles, lens, spectra))
    micrograph = seen * -np.float32(_contrast(exposure, seen, particles.place_px))
    angle_deg, phase_deg = specimen.ice_angles_deg(image_id)
    slope = ice_slope(specimen.shape, angle_deg, phase_deg, array_namespace(seen))
    slope *= np.float32(exposure.ice)
    micrograph -= slope
    _add_surroundings(exposure, image_id, lens, micrograph)
    return micrograph


def _particle_field(particles: Particles, lens: Lens, spectra: tuple[VolumeSpectrum, ...]) -> Any:
    """Project the particles to where they are, in the unit of the volumes."""
    field = lens.empty_field(array_namespace(spectra[0].cells))
    size_px = spectra[0].plan.box_px
    corners = np.rint(particles.place_px).astype(np.int64)
    # A particle stands at minus its shift.
    shifts_px = corners - particles.place_px
    corners += lens.margin_px - size_px // 2
    matrices = rotation_matrices(particles.rotation_deg)
    for index, spectrum in enumerate(spectra):
        chosen = np.flatnonzero(particles.class_index == index)
        for start in range(0, len(chosen), AT_ONCE):
            some = chosen[start : start + AT_ONCE]
            images = project_volume(spectrum, matrices[some], shifts_px[some])
            for (x, y), image in zip(corners[some], images, strict=True):
                field[y : y + size_px, x : x + size_px] += image
    return field


def _contrast(exposure: Exposure, seen: Any, places_px: Array) -> float:
    """Return by what to multiply the particles for their SNR, where the noise has variance 1."""
    if exposure.snr_in == "particles":
        within = within_discs(seen.shape, places_px, exposure.specimen.diameter_px)
        seen = seen[array_namespace(seen).asarray(within)]
    variance = float(seen.var(dtype=np.float64)) if seen.size else 0.0
    return float(np.sqrt(exposure.snr / variance)) if variance > 0 else 0.0


def within_discs(shape: tuple[int, ...], places_px: Array, diameter_px: float) -> Array:
    """Return which pixels lie within a radius of any place; bool (h, w).

    Examples
    --------
    >>> within_discs((5, 5), np.array([[1.0, 2.0]]), 2.0).astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 1, 0, 0, 0],
           [1, 1, 1, 0, 0],
           [0, 1, 0, 0, 0],
           [0, 0, 0, 0, 0]])
    """
    within = np.zeros(shape, bool)
    radius_px = diameter_px / 2
    for x, y in places_px:
        rows, columns = (
            slice(max(int(np.ceil(c - radius_px)), 0), int(np.floor(c + radius_px)) + 1)
            for c in (y, x)
        )
        part = within[rows, columns]
        dy = np.arange(rows.start, rows.start + part.shape[0])[:, None] - y
        dx = np.arange(columns.start, columns.start + part.shape[1])[None, :] - x
        part |= dy**2 + dx**2 <= radius_px**2
    return within


def _add_surroundings(exposure: Exposure, image_id: int, lens: Lens, micrograph: Any) -> None:
    """Add the film and the crystals: they absorb, and the microscope shows edges and grain."""
    specimen, xp = exposure.specimen, array_namespace(micrograph)
    hole, crystals = specimen.hole(image_id), specimen.crystals(image_id)
    if hole is None and not len(crystals):
        return
    absorbing, scattering = lens.empty_field(xp), lens.empty_field(xp)
    if hole is not None:
        moved = hole + np.array([lens.margin_px, lens.margin_px, 0.0])
        edge_px = FILM_EDGE_A / exposure.pixel_size_A
        film = carbon_film(lens.field_shape, moved, edge_px, xp)
        rng = np.random.default_rng([specimen.seed, image_id, TEXTURE])
        scattering = xp.asarray(rng.standard_normal(lens.field_shape, np.float32))
        # In place: a field of a large micrograph takes longer to allocate than to fill.
        scattering *= np.float32(FILM_GRAIN)
        scattering += np.float32(FILM_STEP)
        scattering *= film
        absorbing = film
        absorbing *= np.float32(FILM_DARKNESS)
    for x, y, radius_px, height, lobes in crystals:
        place = (x + lens.margin_px, y + lens.margin_px)
        for field in (absorbing, scattering):
            add_crystal(field, *place, radius_px, height, int(lobes))
    micrograph -= lens.crop(absorbing)
    micrograph -= lens.see(scattering)


def _prepare(exposure: Exposure, device: str) -> tuple[VolumeSpectrum, ...]:
    volumes, accuracy = exposure.volumes, exposure.accuracy
    return tuple(transform_volume(volume, accuracy, device) for volume in volumes)


# The volumes ready to be projected on a device.
prepare = Once(_prepare)
