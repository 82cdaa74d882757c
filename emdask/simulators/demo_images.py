"""The images of ``emdask demo``: a protein of our own making, as particles and as a micrograph."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import one_blas_thread
from emdask.checks import check_integer, check_number
from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.kernels.projections import project_blobs, sample_blobs
from emdask.kernels.proteins import grow_protein
from emdask.simulators.micrographs import simulate_micrographs
from emdask.stack import add_provenance, build_stack, choose_chunk
from emdask.variables import ANGLES, SHIFTS
from emdask.volumes import build_volume

Array = npt.NDArray[Any]

BLOB_WIDTH_A = 4.0
OPTICS: dict[str, Any] = {
    "voltage_kV": 300.0,
    "spherical_aberration_mm": 2.7,
    "amplitude_contrast": 0.1,
}
DEFOCUS_A = (15_000.0, 20_000.0)
ASTIGMATISM_A = 300.0
PARTICLE_DISTANCE_A = 210.0
# Particles in a square of that edge of a micrograph: about as many as find room.
COVER = 0.5


def demo_particles(
    n_images: int = 200,
    *,
    box_px: int = 128,
    pixel_size_A: float = 2.0,
    snr: float = 0.1,
    ctf: bool = True,
    seed: int = 0,
) -> tuple[xr.DataArray, Array]:
    """Simulate noisy particle images of a protein of our own making.

    Projections along random directions, with small shifts and a CTF of 1.5 to 2 µm underfocus at
    300 kV, particles white on dark, plus white Gaussian noise of variance 1, as in normalised
    stacks.

    Parameters
    ----------
    n_images
        Number of images.
    box_px
        Edge of an image.
    pixel_size_A
        Edge of a pixel in Å.
    snr
        Variance of the clean images (CTF applied) over the full frame / variance of the noise.
    ctf
        Whether there is a CTF; without, the images are the projected density.
    seed
        Of the random numbers; those of an image follow [seed, image_id].

    Returns
    -------
    stack : xarray.DataArray, dims (image, y, x), float32
        Noisy images with poses, CTF and optics.
    clean : float32 array, shape (n_images, box_px, box_px)
        The same without noise.

    Raises
    ------
    ParameterError
        If a number is out of range.

    Examples
    --------
    >>> stack, clean = demo_particles(3, box_px=32, pixel_size_A=8.0)
    >>> stack.shape, clean.shape, stack.attrs["pixel_size_A"]
    ((3, 32, 32), (3, 32, 32), 8.0)
    """
    check_integer("demo", "n_images", n_images, 1)
    check_number("demo", "snr", snr, 1e-6)
    draws = [np.random.default_rng([seed, image_id]) for image_id in range(n_images)]
    rotation_deg = np.array([random_rotation_deg(rng) for rng in draws])
    shift_A = np.array([rng.normal(scale=pixel_size_A, size=2) for rng in draws])
    defocus = [_draw_defocus(rng) for rng in draws]
    coords: dict[str, Any] = {name: np.array([d[name] for d in defocus]) for name in defocus[0]}
    # Its products of matrices round otherwise on another number of threads.
    with one_blas_thread:
        density = project_blobs(
            grow_protein(seed),
            BLOB_WIDTH_A,
            rotation_deg=rotation_deg,
            shift_A=shift_A,
            box_px=box_px,
            pixel_size_A=pixel_size_A,
        )
    if ctf:
        optics = {"pixel_size_A": pixel_size_A, **coords, **OPTICS}
        density = apply_ctf(density, ctf_2d((box_px, box_px), **optics))
    else:
        coords = {}
    clean = _scale_to_snr(density, snr)
    noise = np.stack([rng.standard_normal(clean.shape[1:], np.float32) for rng in draws])
    coords |= {
        "image_id": np.arange(n_images),
        **dict(zip(ANGLES, rotation_deg.T, strict=True)),
        **dict(zip(SHIFTS, shift_A.T, strict=True)),
    }
    parameters = {"n_images": n_images, "box_px": box_px, "snr": snr, "ctf": ctf, "seed": seed}
    attrs = _attrs("particles", pixel_size_A, parameters)
    return _lazy_stack(clean + noise, coords, attrs), clean


def demo_micrograph(
    size_px: int = 1024, *, pixel_size_A: float = 2.0, snr: float = 0.1, seed: int = 0
) -> tuple[xr.DataArray, Array]:
    """Simulate a micrograph: particles apart from each other, ice that thickens, white noise.

    The particles are dark, as the camera records them in underfocus.

    Parameters
    ----------
    size_px
        Edge of the micrograph.
    pixel_size_A
        Edge of a pixel in Å.
    snr
        Variance of the particles (CTF applied, without the ice) over the full frame / variance of
        the noise.
    seed
        Of the random numbers.

    Returns
    -------
    stack : xarray.DataArray, dims (image, y, x), float32
        One noisy micrograph; the noise has variance 1.
    clean : float32 array, shape (1, size_px, size_px)
        Particles and ice without noise.

    Raises
    ------
    ParameterError
        If a number is out of range.

    Examples
    --------
    >>> stack, clean = demo_micrograph(256)
    >>> stack.shape, stack.attrs["kind"]
    ((1, 256, 256), 'micrographs')
    """
    check_number("demo", "snr", snr, 1e-6)
    check_integer("demo", "size_px", size_px, 64)
    radius_A = PARTICLE_DISTANCE_A / 2 + 3 * BLOB_WIDTH_A
    box_px = 2 * int(np.ceil(radius_A / pixel_size_A))
    with one_blas_thread:
        volume = sample_blobs(
            grow_protein(seed), BLOB_WIDTH_A, box_px=box_px, pixel_size_A=pixel_size_A
        )
    made, _ = simulate_micrographs(
        build_volume(volume, pixel_size_A),
        1,
        snr=snr,
        size_px=size_px,
        n_particles=max(1, int(COVER * (size_px * pixel_size_A / PARTICLE_DISTANCE_A) ** 2)),
        diameter_A=PARTICLE_DISTANCE_A,
        ctf={"defocus_A": DEFOCUS_A, "astigmatism_A": (0.0, ASTIGMATISM_A), **OPTICS},
        seed=seed,
    )
    clean = made.clean.values
    return made.images, clean


def random_rotation_deg(rng: np.random.Generator) -> Array:
    """Draw Euler angles (rot, tilt, psi) such that every direction of view is as likely as another.

    Examples
    --------
    >>> random_rotation_deg(np.random.default_rng(0)).shape
    (3,)
    """
    rot, psi = rng.uniform(-180, 180, 2)
    tilt = np.rad2deg(np.arccos(rng.uniform(-1, 1)))
    return np.array([rot, tilt, psi])


def _draw_defocus(rng: np.random.Generator) -> dict[str, Any]:
    u = rng.uniform(*DEFOCUS_A)
    v = u - rng.uniform(0, ASTIGMATISM_A)
    return {
        "defocus_u_A": float(u),
        "defocus_v_A": float(v),
        "astigmatism_deg": float(rng.uniform(0, 180)),
    }


def _scale_to_snr(images: Array, snr: float) -> Array:
    """Scale clean images to the variance ``snr``, their SNR where the noise has variance 1."""
    variance = float(images.var(axis=(-2, -1)).mean())
    return np.asarray(images * np.sqrt(snr / variance), np.float32)


def _attrs(kind: str, pixel_size_A: float, parameters: dict[str, Any]) -> dict[str, Any]:
    attrs = {"kind": kind, "pixel_size_A": pixel_size_A, **OPTICS}
    return add_provenance(attrs, "demo", parameters)


def _lazy_stack(images: Array, coords: dict[str, Any], attrs: dict[str, Any]) -> xr.DataArray:
    chunks = (choose_chunk(images.shape, images.dtype), -1, -1)
    return build_stack(da.from_array(images, chunks=chunks), coords, attrs)
