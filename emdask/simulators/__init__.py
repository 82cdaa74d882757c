"""Simulators: images whose truth is known, by the image model ``X = CTF * (P V) + N``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from emdask.backend import check_device
from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.errors import StackError
from emdask.io import open_volume
from emdask.kernels.slice_grid import ACCURACIES, LEAST_BOX_PX
from emdask.lazy import read_images
from emdask.placement import on_cards
from emdask.simulators.preparing import build_recipe
from emdask.simulators.scene import DEVICES, Scene, read_clean, read_noisy
from emdask.simulators.truth import Views
from emdask.stack import add_provenance, build_stack, choose_chunk
from emdask.variables import ANGLES, SHIFTS
from emdask.volumes import as_volume

WHAT = "simulate"
NOISES = ("white", "coloured")


def simulate(
    volumes: Any,
    n_images: int,
    *,
    snr: float | None,
    poses: Any = "uniform",
    cone_deg: float = 10.0,
    view_deg: tuple[float, float] = (0.0, 0.0),
    shifts_A: Any = 0.0,
    ctf: Any = None,
    noise: str = "white",
    proportions: Sequence[float] | None = None,
    seed: int = 0,
    pixel_size_A: float | None = None,
    accuracy: str = "normal",
    chunks: int | str = "auto",
    device: str | None = None,
) -> xr.Dataset:
    """Simulate particle images of volumes, lazily: X = CTF * (P V) + N.

    Image i depends on ``seed`` and i alone, not on how many images there are, on the chunks or the
    order: each of its random numbers follows from both, and the grey levels are scaled by the
    signal of the first 500 images of the seed.

    Parameters
    ----------
    volumes
        A volume or a list of them, one a class: what `emdask.open_volume` takes or returns, or
        arrays (z, y, x). All of one size.
    n_images
        Number of images.
    snr
        Variance of the clean image (CTF applied) over the full frame / variance of the noise, of
        the stack as a whole (see Notes). The noise has variance 1, as in normalised stacks. None
        for no noise; the images are then the projections in the unit of the volume.
    poses
        "uniform": every view is as likely as another; "cone": views within ``cone_deg`` of
        ``view_deg``; or RELION's Euler angles (rot, tilt, psi) of each image in degrees, (n, 3).
    cone_deg
        Half of the cone's opening in degrees.
    view_deg
        rot and tilt of the cone's axis in degrees.
    shifts_A
        Largest shift along each axis in Å, drawn evenly; or the shifts (x, y) of each image, (n,
        2): the translation that centres the particle, which stands at minus that.
    ctf
        None for no CTF. A dictionary with any of ``defocus_A`` (mean of both axes; by default 10000
        to 20000), ``astigmatism_A`` (their difference), ``astigmatism_deg``, ``phase_shift_deg``,
        ``b_factor_A2``, ``voltage_kV``, ``spherical_aberration_mm``, ``amplitude_contrast``: a
        number, a range (low, high) to draw from, or an array with one entry an image. A list of
        such dictionaries makes optics groups, equally likely.
    noise
        "white", or "coloured": more power at low frequencies, as of ice, and less towards Nyquist
        (`emdask.kernels.coloured_noise`).
    proportions
        Of the volumes among the images; None for equal ones.
    seed
        Of the random numbers, at least 0.
    pixel_size_A
        Edge of a voxel and of a pixel in Å, where the volumes do not say.
    accuracy
        Of the projections: relative error of "rough" 5e-3, "normal" 3e-4, "high" 3e-5.
    chunks
        Images a block, or "auto".
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.

    Returns
    -------
    xarray.Dataset
        ``images`` and ``clean``, both stacks of dims (image, y, x), float32, lazy, particles white
        on dark. The truth is in their coordinates: ``rot_deg``, ``tilt_deg``, ``psi_deg``,
        ``shift_x_A``, ``shift_y_A``, ``defocus_u_A``, ``defocus_v_A``, ``astigmatism_deg``,
        ``class_id`` (from 1), ``image_id``, ``optics_group``. The dataset itself has it as
        ``rotation_deg`` (image, 3) and ``shift_A`` (image, 2), too.

    Raises
    ------
    ParameterError, StackError
        At once, before anything is computed.

    Notes
    -----
    Projections are central slices of the volume's Fourier transform, up to Nyquist in every
    direction (`emdask.kernels.slices`). The CTF is applied to the box alone, so what it spreads
    beyond an edge comes back in at the opposite one: leave room for it
    (`emdask.simulate_micrographs` has a margin).

    The first 500 images have the SNR that was asked for, those after them up to chance: by the
    spread of the images' variances / sqrt(500), about 1 % for defoci of 10000 to 20000, and more
    where defoci differ more or one volume is rare and strong. Where an array with one entry an
    image is given, its first 500 entries stand for all.

    Examples
    --------
    >>> from emdask import phantom
    >>> particle = phantom(8, radius_A=20).volume(32, 3.0)
    >>> made = simulate(particle, 4, snr=0.5, ctf={"defocus_A": (8000, 12000)})
    >>> made.images.shape, made.class_id.values.tolist(), made.rotation_deg.shape
    ((4, 32, 32), [1, 1, 1, 1], (4, 3))
    >>> image = made.images[2].compute()
    """
    check_integer(WHAT, "n_images", n_images, 1)
    device = check_shared(WHAT, seed=seed, noise=noise, accuracy=accuracy, device=device)
    if snr is not None:
        check_number(WHAT, "snr", snr, 1e-9)
    opened = check_volumes(volumes, pixel_size_A)
    scene = build_recipe(
        Scene,
        volumes=tuple(volume.values for volume in opened),
        pixel_size_A=float(opened[0].attrs["pixel_size_A"]),
        views=Views(poses=poses, cone_deg=cone_deg, view_deg=view_deg),
        shifts_A=shifts_A,
        ctf=ctf,
        proportions=proportions,
        snr=snr,
        noise=noise,
        seed=int(seed),
        accuracy=accuracy,
        device=device,
    )
    truth = scene.draw(np.arange(n_images))
    shape = (int(n_images), *scene.shape)
    made = describe_images(
        WHAT,
        scene,
        {"images": read_noisy, "clean": read_clean},
        shape=shape,
        chunk=choose_chunk(shape, np.float32, chunks),
        coords={
            "image_id": np.arange(n_images),
            **dict(zip(ANGLES, truth.rotation_deg.T, strict=True)),
            **dict(zip(SHIFTS, truth.shift_A.T, strict=True)),
            "class_id": truth.class_index + 1,
        },
        optics=truth.optics,
        attrs={"kind": "particles", "pixel_size_A": scene.pixel_size_A},
        parameters=_record(scene, int(n_images)),
    )
    vectors = {"rotation_deg": ("image", "angle"), "shift_A": ("image", "axis")}
    return made.assign_coords(
        {name: (dims, getattr(truth, name)) for name, dims in vectors.items()}
    )


def check_shared(what: str, *, seed: Any, noise: Any, accuracy: Any, device: str | None) -> str:
    """Check what all simulated images have in common.

    Parameters
    ----------
    what
        The verb that errors name.
    seed, noise, accuracy, device
        As of `simulate`.

    Returns
    -------
    str
        The device, or "auto".

    Raises
    ------
    ParameterError

    Examples
    --------
    >>> check_shared("simulate", seed=0, noise="white", accuracy="high", device="cpu")
    'cpu'
    """
    check_integer(what, "seed", seed, 0, 2**63 - 1)
    check_choice(what, "noise", noise, NOISES)
    check_choice(what, "accuracy", accuracy, ACCURACIES)
    return check_device(device, what, DEVICES)


def check_volumes(
    volumes: Any, pixel_size_A: float | None = None, what: str = WHAT
) -> list[xr.DataArray]:
    """Open what may be given as one volume or several, and see that they can be projected.

    Parameters
    ----------
    volumes
        A volume, a path of one, an array (z, y, x), or a list of these.
    pixel_size_A
        Edge of a voxel in Å, where they do not say.
    what
        The verb that errors name.

    Returns
    -------
    list of xarray.DataArray
        Volumes, see `emdask.volumes`.

    Raises
    ------
    ParameterError, StackError
        If there is none, one cannot be read or is empty, or they differ in size.

    Examples
    --------
    >>> len(check_volumes([np.ones((8, 8, 8)), np.eye(8) * np.ones((8, 1, 1))], 2.0))
    2
    """
    several = isinstance(volumes, Sequence) and not isinstance(volumes, str)
    given = list(volumes) if several else [volumes]
    require(bool(given), what, "needs at least one volume")
    opened = [_open(volume, pixel_size_A) for volume in given]
    kinds = [(volume.shape[0], volume.attrs["pixel_size_A"]) for volume in opened]
    if len(set(kinds)) > 1:
        rule = "volumes must have one size in voxels and in Å"
        remedy = "Pad or resample them first."
        raise StackError(sentence(what, rule, sorted(set(kinds)), remedy))
    size_px = kinds[0][0]
    rule = f"volumes must have at least {LEAST_BOX_PX} voxels along each axis"
    require(size_px >= LEAST_BOX_PX, what, rule, size_px, "Pad them.")
    for volume in opened:
        require(bool(np.any(volume.values)), what, "a volume must not be 0 everywhere")
    return opened


def _open(volume: Any, pixel_size_A: float | None) -> xr.DataArray:
    if isinstance(volume, str | Path):
        return open_volume(volume, pixel_size_A=pixel_size_A)
    return as_volume(volume, pixel_size_A)


def describe_images(
    what: str,
    recipe: Any,
    readers: Mapping[str, Callable[[Any, int, int], Any]],
    *,
    shape: tuple[int, int, int],
    chunk: int,
    coords: Mapping[str, Any],
    optics: Mapping[str, Any],
    attrs: Mapping[str, Any],
    parameters: Mapping[str, Any],
) -> xr.Dataset:
    """Label images that are yet to be made.

    Parameters
    ----------
    what
        The verb, which names tasks and the step of the provenance.
    recipe
        What the images depend on, with the attribute ``device``.
    readers
        Name to ``(recipe, start, stop) -> images``, as `emdask.lazy.read_images` takes it.
    shape
        (n, h, w).
    chunk
        Images a block.
    coords, attrs
        What is true of each image, and of all.
    optics
        What `draw_optics` returned: arrays become coordinates, numbers attributes.
    parameters
        Of the step.

    Returns
    -------
    xarray.Dataset
        A stack for each of the readers.
    """
    varying = {name: value for name, value in optics.items() if np.ndim(value)}
    alike = {name: value for name, value in optics.items() if name not in varying}
    known = add_provenance({**attrs, **alike}, what, parameters)
    options: dict[str, Any] = {"shape": shape, "dtype": np.float32, "chunk": chunk, "name": what}
    with on_cards(recipe.device):
        images = {name: read_images(read, recipe, **options) for name, read in readers.items()}
    stacks = {name: build_stack(a, {**coords, **varying}, known) for name, a in images.items()}
    return xr.Dataset(stacks, attrs=known)


def _record(scene: Scene, n_images: int) -> dict[str, Any]:
    """Parameters for the provenance: what was given an image at a time is in the coordinates."""
    poses = scene.views.poses
    record: dict[str, Any] = {
        "n_images": n_images,
        "n_volumes": len(scene.volumes),
        "snr": scene.snr,
        "poses": poses if isinstance(poses, str) else "given",
        "noise": scene.noise,
        "seed": scene.seed,
        "accuracy": scene.accuracy,
    }
    if record["poses"] == "cone":
        view_deg = [float(angle) for angle in scene.views.view_deg]
        record |= {"cone_deg": scene.views.cone_deg, "view_deg": view_deg}
    return record
