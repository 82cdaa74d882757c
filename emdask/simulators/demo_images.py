"""The images of ``emdask demo``: a protein of our own making, as particles and as a micrograph."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import check_integer, check_number
from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.kernels.projections import project_blobs
from emdask.kernels.proteins import grow_protein
from emdask.stack import add_provenance, build_stack, choose_chunk

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
        **dict(zip(("rot_deg", "tilt_deg", "psi_deg"), rotation_deg.T, strict=True)),
        **dict(zip(("shift_x_A", "shift_y_A"), shift_A.T, strict=True)),
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
    rng = np.random.default_rng([seed, 2**31])
    defocus = _draw_defocus(rng)
    field, margin_px = _scatter_particles(rng, size_px, pixel_size_A, grow_protein(seed))
    ctf = ctf_2d(field.shape, pixel_size_A=pixel_size_A, **defocus, **OPTICS)
    # Cropped after the CTF: a particle that the edge cuts must not ring at the opposite edge.
    field = apply_ctf(field, ctf)[margin_px:-margin_px, margin_px:-margin_px]
    particles = -_scale_to_snr(field, snr)
    clean = (particles + _ice(rng, size_px))[None].astype(np.float32)
    noise = rng.standard_normal(clean.shape, np.float32)
    coords = {"image_id": [0], **{name: [value] for name, value in defocus.items()}}
    attrs = _attrs("micrographs", pixel_size_A, {"size_px": size_px, "snr": snr, "seed": seed})
    return _lazy_stack(clean + noise, coords, attrs), clean


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


def _scatter_particles(
    rng: np.random.Generator, size_px: int, pixel_size_A: float, points_A: Array
) -> tuple[Array, int]:
    """Put as many particles as fit at random places, no two nearer than their diameter.

    Returns a field larger than the micrograph, and its margin in pixels.
    """
    distance_px = PARTICLE_DISTANCE_A / pixel_size_A
    box_px = 2 * int(np.ceil(0.6 * distance_px))
    centres = _random_places(rng, size_px, distance_px)
    images = project_blobs(
        points_A,
        BLOB_WIDTH_A,
        rotation_deg=[random_rotation_deg(rng) for _ in centres],
        box_px=box_px,
        pixel_size_A=pixel_size_A,
    )
    field = np.zeros((size_px + 2 * box_px,) * 2, np.float32)
    for image, (y, x) in zip(images, centres + box_px // 2, strict=True):
        field[y : y + box_px, x : x + box_px] += image
    return field, box_px


def _random_places(rng: np.random.Generator, size_px: int, distance_px: float) -> Array:
    tried = rng.integers(0, size_px, (20 * int((size_px / distance_px) ** 2) + 20, 2))
    kept = tried[:1]
    for place in tried[1:]:
        if np.hypot(*(kept - place).T).min() >= distance_px:
            kept = np.concatenate([kept, place[None]])
    return kept


def _ice(rng: np.random.Generator, size_px: int) -> Array:
    """Grey level of ice that grows thicker towards one side, with a slow wave; about ±0.7."""
    y, x = np.mgrid[-1 : 1 : size_px * 1j, -1 : 1 : size_px * 1j]
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    return np.asarray(0.5 * along + 0.15 * np.cos(2.5 * across + phase))


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
