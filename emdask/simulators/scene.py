"""What simulated particle images are made of, and how a block of them makes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, resolve_device, run_on, to_device, to_host
from emdask.blocks_cuda import batch_size, working_bytes
from emdask.checks import require
from emdask.kernels.coloured_noise import colour_noise, noise_gain
from emdask.kernels.draws import normal_images
from emdask.kernels.fourier import half_plane_weights
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import (
    GridPlan,
    VolumeSpectrum,
    prepare_volume,
    slice_volume,
)
from emdask.kernels.transforms import to_images
from emdask.simulators.preparing import Once
from emdask.simulators.truth import (
    WHAT,
    Draws,
    Views,
    draw_classes,
    draw_optics,
    draw_shifts,
    optics_record,
)

Array = npt.NDArray[Any]

DEVICES = ("cpu", "cuda")
# Images that the CPU makes together: more would only take more memory.
AT_ONCE = 32
# Grids that a volume is transformed in, and the transforms' own memory.
GRIDS_IN_USE = 5
# Images of which the variance of the signal is measured: the first of the seed, however many are
# made, so that an image does not depend on how many others there are.
N_SAMPLE = 500
PAIRS = (tuple, list)


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
    snr: float | None
    noise: str
    seed: int
    accuracy: str
    device: str

    def __dask_tokenize__(self) -> str:
        return self.token

    @property
    def shape(self) -> tuple[int, int]:
        """Size of the images."""
        _, h, w = self.volumes[0].shape
        return h, w

    def draw(self, image_ids: Array) -> Truth:
        """Draw what is true of these images."""
        draws = Draws(image_ids=image_ids, seed=self.seed)
        return Truth(
            rotation_deg=self.views.draw(draws),
            shift_A=draw_shifts(self.shifts_A, draws),
            class_index=draw_classes(self.proportions, len(self.volumes), draws),
            optics=draw_optics(self.ctf, draws),
        )

    @property
    def n_sample(self) -> int:
        """How many images tell the variance: fewer where an array with one entry an image ends."""
        groups = [self.ctf] if isinstance(self.ctf, Mapping) else self.ctf or []
        values = [value for group in groups for value in group.values()]
        # Pairs in the dictionaries are ranges.
        arrays = [value for value in values if np.ndim(value) and not isinstance(value, PAIRS)]
        arrays += [] if isinstance(self.views.poses, str) else [self.views.poses]
        arrays += [self.shifts_A] if np.ndim(self.shifts_A) else []
        return min(N_SAMPLE, *map(len, arrays)) if arrays else N_SAMPLE


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

    spectra: tuple[VolumeSpectrum, ...]
    scale: float
    gain: Array | None


def read_clean(scene: Scene, start: int, stop: int) -> Array:
    """Make images start .. stop without noise; float32 (stop - start, h, w).

    An image is the same bit by bit, whatever others are made with it.
    """
    device = resolve_device(scene.device, DEVICES)
    images = np.empty((stop - start, *scene.shape), np.float32)
    for ids in _batches(scene, device, start, stop):
        part = images[ids[0] - start : ids[-1] + 1 - start]
        _run(device, _see, scene, prepare(scene, device), ids, part)
    return images


def read_noisy(scene: Scene, start: int, stop: int) -> Array:
    """Make images start .. stop with noise; float32 (stop - start, h, w).

    Noise is drawn on the host, so that it is the same on all devices.
    """
    images = read_clean(scene, start, stop)
    if scene.snr is None:
        return images
    gain = prepare(scene, resolve_device(scene.device, DEVICES)).gain
    for ids in _batches(scene, "cpu", start, stop):
        noise = normal_images(scene.seed, ids, scene.shape)
        images[ids - start] += noise if gain is None else colour_noise(noise, gain)
    return images


def _batches(scene: Scene, device: str, start: int, stop: int) -> list[Array]:
    """Numbers of the images that are made together."""
    at_once = AT_ONCE if device == "cpu" else batch_size(scene.shape)
    return [np.arange(first, min(first + at_once, stop)) for first in range(start, stop, at_once)]


def _run(device: str, function: Callable[..., Any], scene: Scene, *args: Any) -> Any:
    """Run a function that makes a batch of images."""
    n_bytes = working_bytes((batch_size(scene.shape), *scene.shape))
    return run_on(device, function, scene, *args, n_bytes=n_bytes, what="a batch of images")


def _prepare(scene: Scene, device: str) -> Prepared:
    spectra = tuple(transform_volume(volume, scene.accuracy, device) for volume in scene.volumes)
    scale = 1.0
    if scene.snr is not None:
        variance = _signal_variance(scene, spectra, device)
        rule = "images must have a finite signal, which an SNR is of; their variance"
        require(0 < variance < np.inf, WHAT, rule, variance, "Look at the volumes' grey levels.")
        scale = float(np.sqrt(scene.snr / variance))
    coloured = scene.noise == "coloured" and scene.snr is not None
    gain = noise_gain(scene.shape) if coloured else None
    return Prepared(spectra=spectra, scale=scale, gain=gain)


# The scene ready to be seen on a device.
prepare = Once(_prepare)


def transform_volume(volume: Array, accuracy: str, device: str) -> VolumeSpectrum:
    """Transform a volume; what it becomes stays on the device."""
    plan = GridPlan(box_px=len(volume), accuracy=accuracy)
    return run_on(
        device,
        lambda: prepare_volume(to_device(volume, device), accuracy),
        n_bytes=GRIDS_IN_USE * np.dtype(np.complex64).itemsize * prod(plan.shape),
        what=f"the transform of a volume of {len(volume)} voxels along each axis",
    )


def _signal_variance(scene: Scene, spectra: tuple[VolumeSpectrum, ...], device: str) -> float:
    """Mean variance of the first clean images, from their Fourier terms."""
    batches = _batches(scene, device, 0, scene.n_sample)
    total = sum(_run(device, _sum_variances, scene, spectra, ids) for ids in batches)
    return float(total / scene.n_sample)


def _sum_variances(scene: Scene, spectra: tuple[VolumeSpectrum, ...], image_ids: Array) -> float:
    terms = _transforms(scene, spectra, scene.draw(image_ids))
    xp = array_namespace(terms)
    # Of the whole plane, but for the mean.
    weights = half_plane_weights(scene.shape) / prod(scene.shape) ** 2
    weights[0, 0] = 0.0
    power = xp.square(terms.real) + xp.square(terms.imag)
    return float((power * xp.asarray(weights)).sum(dtype=np.float64))


def _see(scene: Scene, prepared: Prepared, image_ids: Array, images: Array) -> None:
    """Make clean images, in the place of those given."""
    terms = _transforms(scene, prepared.spectra, scene.draw(image_ids))
    terms *= np.float32(prepared.scale)
    to_host(to_images(terms, scene.shape), images)


def _transforms(scene: Scene, spectra: tuple[VolumeSpectrum, ...], truth: Truth) -> Any:
    """Fourier transforms of the images, CTF applied, in the unit of the volumes."""
    xp = array_namespace(spectra[0].cells)
    matrices = rotation_matrices(truth.rotation_deg)
    shifts_px = truth.shift_A / scene.pixel_size_A
    h, w = scene.shape
    terms = xp.empty((len(matrices), h, w // 2 + 1), np.complex64)
    for index, spectrum in enumerate(spectra):
        chosen = np.flatnonzero(truth.class_index == index)
        if chosen.size:
            slices = slice_volume(spectrum, matrices[chosen], shifts_px[chosen])
            terms[xp.asarray(chosen)] = slices
    optics = optics_record(truth.optics, scene.pixel_size_A)
    if optics is not None:
        terms *= optics.ctfs(scene.shape, len(terms), xp)
    return terms
