"""What simulated particle images are made of, and how a block of them makes itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import fourier_namespace
from emdask.kernels.coloured_noise import colour_noise, noise_gain
from emdask.kernels.draws import normal_images
from emdask.kernels.fourier import half_plane_weights
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, slice_volume
from emdask.simulators.truth import (
    Views,
    draw_classes,
    draw_optics,
    draw_shifts,
    optics_record,
)

Array = npt.NDArray[Any]

DEVICES = ("cpu", "cuda")
# Images that are transformed together: more would only take more memory.
AT_ONCE = 32
# Images of which the variance of the signal is measured: the first of the seed, however many are
# made, so that an image does not depend on how many others there are.
N_SAMPLE = 512
# Scenes that a process keeps ready.
N_READY = 2
_PREPARING = threading.Lock()


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything that simulated particle images depend on.

    Parameters
    ----------
    token
        Tells the scene from others.
    volumes : float32 arrays, shape (m, m, m)
        One a class.
    pixel_size_A
        Edge of a voxel and of a pixel in Å.
    views, shifts_A, ctf, proportions
        How poses, shifts, CTFs and classes are drawn, see `emdask.simulators.truth`.
    n_sample
        Images of which the variance of the signal is measured.
    snr
        See `emdask.simulate`.
    noise
        "white" or "coloured".
    seed
        Of the random numbers.
    accuracy
        Of the projections.
    device
        "auto", "cpu" or "cuda".
    """

    token: str
    volumes: tuple[Array, ...]
    pixel_size_A: float
    views: Views
    shifts_A: Any
    ctf: Any
    proportions: Sequence[float] | None
    n_sample: int
    snr: float | None
    noise: str
    seed: int
    accuracy: str
    device: str

    def __hash__(self) -> int:
        return hash(self.token)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scene) and other.token == self.token

    def __dask_tokenize__(self) -> str:
        return self.token

    def draw(self, image_ids: Array) -> Truth:
        """Draw what is true of these images."""
        n_volumes = len(self.volumes)
        return Truth(
            rotation_deg=self.views.draw(image_ids, self.seed),
            shift_A=draw_shifts(self.shifts_A, image_ids, self.seed),
            class_index=draw_classes(self.proportions, n_volumes, image_ids, self.seed),
            optics=draw_optics(self.ctf, image_ids, self.seed),
        )


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is true of some images.

    Parameters
    ----------
    rotation_deg : float64 array, shape (n, 3)
        RELION's Euler angles.
    shift_A : float64 array, shape (n, 2)
        Translation (x, y) that would centre the particle.
    class_index : int64 array, shape (n,)
        Number of the volume, from 0.
    optics
        What the CTF depends on, as `draw_optics` returns it.
    """

    rotation_deg: Array
    shift_A: Array
    class_index: Array
    optics: dict[str, Array | float]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A scene ready to be seen: transforms of the volumes, and what grey levels are scaled by."""

    spectra: tuple[Any, ...]
    scale: float
    gain: Array | None


def read_clean(scene: Scene, start: int, stop: int) -> Array:
    """Make images start .. stop without noise; float32 (stop - start, h, w).

    An image is the same bit by bit, whatever others are made with it.
    """
    size_px = scene.volumes[0].shape[0]
    images = np.empty((stop - start, size_px, size_px), np.float32)
    for ids in _batches(start, stop):
        images[ids - start] = _see(scene, prepare(scene), ids)
    return images


def read_noisy(scene: Scene, start: int, stop: int) -> Array:
    """Make images start .. stop with noise; float32 (stop - start, h, w)."""
    images = read_clean(scene, start, stop)
    if scene.snr is None:
        return images
    gain = prepare(scene).gain
    for ids in _batches(start, stop):
        noise = normal_images(scene.seed, ids, images.shape[1:])
        images[ids - start] += noise if gain is None else colour_noise(noise, gain)
    return images


def _batches(start: int, stop: int) -> list[Array]:
    return [np.arange(first, min(first + AT_ONCE, stop)) for first in range(start, stop, AT_ONCE)]


def prepare(scene: Scene) -> Prepared:
    """Return the scene ready to be seen; a process does the work once."""
    with _PREPARING:
        return _prepare(scene)


@lru_cache(maxsize=N_READY)
def _prepare(scene: Scene) -> Prepared:
    spectra = tuple(prepare_volume(volume, scene.accuracy) for volume in scene.volumes)
    size_px = scene.volumes[0].shape[0]
    coloured = scene.noise == "coloured" and scene.snr is not None
    scale = 1.0
    if scene.snr is not None:
        scale = float(np.sqrt(scene.snr / _signal_variance(scene, spectra)))
    gain = noise_gain((size_px, size_px)) if coloured else None
    return Prepared(spectra=spectra, scale=scale, gain=gain)


def _signal_variance(scene: Scene, spectra: tuple[Any, ...]) -> float:
    """Mean variance of the first clean images, from their Fourier terms."""
    size_px = scene.volumes[0].shape[0]
    weights = half_plane_weights((size_px, size_px))
    weights[0, 0] = 0.0
    total = 0.0
    for ids in _batches(0, scene.n_sample):
        terms = _transforms(scene, spectra, scene.draw(ids))
        total += float((np.abs(terms) ** 2 * weights).sum(dtype=np.float64))
    return float(total / scene.n_sample / size_px**4)


def _see(scene: Scene, prepared: Prepared, image_ids: Array) -> Array:
    """Clean images; one by one transformed back, because a batch may round otherwise."""
    terms = _transforms(scene, prepared.spectra, scene.draw(image_ids))
    terms *= np.float32(prepared.scale)
    size_px = scene.volumes[0].shape[0]
    images = np.empty((len(terms), size_px, size_px), np.float32)
    fft = fourier_namespace(images)
    for term, image in zip(terms, images, strict=True):
        image[:] = fft.irfft2(term, s=image.shape)
    return images


def _transforms(scene: Scene, spectra: tuple[Any, ...], truth: Truth) -> Array:
    """Fourier transforms of the images, CTF applied, in the unit of the volumes."""
    size_px = scene.volumes[0].shape[0]
    matrices = rotation_matrices(truth.rotation_deg)
    shifts_px = truth.shift_A / scene.pixel_size_A
    terms = np.empty((len(matrices), size_px, size_px // 2 + 1), np.complex64)
    for index, spectrum in enumerate(spectra):
        chosen = truth.class_index == index
        if chosen.any():
            terms[chosen] = slice_volume(spectrum, matrices[chosen], shifts_px[chosen])
    optics = optics_record(truth.optics, scene.pixel_size_A)
    if optics is not None:
        terms *= optics.ctfs((size_px, size_px), len(terms))
    return terms
