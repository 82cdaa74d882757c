"""Simulated micrographs: particles at known places among all that makes finding them hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emdask.checks import check_choice, check_integer, check_number, require
from emdask.simulators import check_shared, check_volumes, describe_images
from emdask.simulators.exposure import SNR_PLACES, Exposure, read_clean, read_noisy
from emdask.simulators.preparing import build_recipe
from emdask.simulators.specimen import MOST_PARTICLES, Specimen, measure_diameter
from emdask.simulators.truth import POSES, Draws, Views, class_ends, draw_optics
from emdask.variables import ANGLES

WHAT = "simulate_micrographs"
# Of the frame, by the discs of the particles: what is wanted where no number is, and the most that
# still finds room at random places.
USUAL_COVER = 0.15
MOST_COVER = 0.42


def simulate_micrographs(
    volumes: Any,
    n_micrographs: int,
    *,
    snr: float,
    snr_in: str = "frame",
    size_px: int | tuple[int, int] = 4096,
    n_particles: int | tuple[int, int] | None = None,
    diameter_A: float | None = None,
    min_distance_A: float | None = None,
    crowding: float = 0.0,
    poses: str = "uniform",
    cone_deg: float = 10.0,
    view_deg: tuple[float, float] = (0.0, 0.0),
    ctf: Any = None,
    proportions: Sequence[float] | None = None,
    ice: float = 1.0,
    carbon: float = 0.0,
    hole_A: float = 12_000.0,
    n_crystals: int | tuple[int, int] = 0,
    noise: str = "white",
    seed: int = 0,
    pixel_size_A: float | None = None,
    accuracy: str = "normal",
    device: str | None = None,
) -> tuple[xr.Dataset, pd.DataFrame]:
    """Simulate micrographs of particles, lazily, and tell where the particles are.

    Micrograph i depends on ``seed`` and i alone, not on how many there are. The particles are dark,
    as the camera records them in underfocus, and the CTF is that of the whole field, beyond its
    edges too.

    Parameters
    ----------
    volumes
        As of `emdask.simulate`; a pixel of the micrographs is as large as a voxel.
    n_micrographs
        Number of micrographs.
    snr
        Variance of the particles (CTF applied, without ice and film) / variance of the noise, which
        is 1, in each micrograph.
    snr_in
        Where the variance of the particles is taken: "frame", all of it, or "particles", the discs
        of their diameter.
    size_px
        Edge of a micrograph, or (height, width).
    n_particles
        Particles in a micrograph, or the fewest and the most to draw from; None for as many as
        cover about a seventh of it. Where the film covers a part, as many fewer. Their centres are
        within the frame and off the film.
    diameter_A
        Of a particle; None measures the ball that holds 99 % of the squares of the volumes.
    min_distance_A
        Least distance between the centres of two particles; None for their diameter, so that none
        overlap.
    crowding
        Share of the particles, 0 to 1, that is put next to others and not anywhere.
    poses, cone_deg, view_deg, ctf, proportions
        As of `emdask.simulate`; poses a word, and values of ``ctf`` one a micrograph.
    ice
        Grey levels, in standard deviations of the noise, by which the thickest ice is darker than
        the thinnest, across the frame.
    carbon
        Share of the micrographs, 0 to 1, that show the edge of the carbon film: dark, with grain
        that the CTF shows, and noise that is 15 % stronger.
    hole_A
        Diameter of the holes in the film.
    n_crystals
        Lumps of ice and dirt in a micrograph, or the fewest and the most: darker than particles,
        0.5 to 2.5 of their diameters, not in the picks.
    noise
        "white", or "coloured" as of `emdask.simulate`.
    seed
        Of the random numbers, at least 0.
    pixel_size_A, accuracy
        As of `emdask.simulate`.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.

    Returns
    -------
    made : xarray.Dataset
        ``images`` and ``clean``, both stacks of dims (image, y, x), float32, lazy, a micrograph a
        block; ``clean`` is all but the noise. Coordinates ``image_id``, ``micrograph`` and those of
        the CTF.
    picks : pandas.DataFrame
        A row for each particle: ``micrograph``, ``image_id`` (of the micrograph), ``x_px`` and
        ``y_px`` (its centre, that of the first pixel being 0), ``class_id`` (from 1), ``rot_deg``,
        ``tilt_deg``, ``psi_deg``.

    Raises
    ------
    ParameterError, StackError
        At once, before anything is computed.

    Examples
    --------
    >>> from emdask import phantom
    >>> particle = phantom(8, radius_A=20).volume(32, 3.0)
    >>> made, picks = simulate_micrographs(particle, 2, snr=0.1, size_px=256, n_particles=9)
    >>> made.images.shape, len(picks), picks.columns[2:4].tolist()
    ((2, 256, 256), 18, ['x_px', 'y_px'])
    """
    check_integer(WHAT, "n_micrographs", n_micrographs, 1)
    device = check_shared(WHAT, seed=seed, noise=noise, accuracy=accuracy, device=device)
    check_number(WHAT, "snr", snr, 1e-9)
    check_choice(WHAT, "snr_in", snr_in, SNR_PLACES)
    check_number(WHAT, "ice", ice, 0)
    require(isinstance(poses, str), WHAT, f"poses must be one of {', '.join(POSES)}", "an array")
    opened = check_volumes(volumes, pixel_size_A, WHAT)
    specimen = _lay_out(
        opened,
        size_px=size_px,
        n_particles=n_particles,
        diameter_A=diameter_A,
        min_distance_A=min_distance_A,
        crowding=crowding,
        carbon=carbon,
        hole_A=hole_A,
        n_crystals=n_crystals,
        views=Views(poses=poses, cone_deg=cone_deg, view_deg=view_deg, what=WHAT),
        proportions=proportions,
        seed=int(seed),
    )
    exposure = build_recipe(
        Exposure,
        volumes=tuple(volume.values for volume in opened),
        pixel_size_A=float(opened[0].attrs["pixel_size_A"]),
        specimen=specimen,
        ctf=ctf,
        snr=float(snr),
        snr_in=snr_in,
        ice=float(ice),
        noise=noise,
        accuracy=accuracy,
        device=device,
    )
    return _describe(exposure, np.arange(int(n_micrographs)))


def _lay_out(
    volumes: Sequence[xr.DataArray],
    *,
    size_px: Any,
    n_particles: Any,
    diameter_A: float | None,
    min_distance_A: float | None,
    n_crystals: Any,
    hole_A: float,
    **shares: Any,
) -> Specimen:
    """Check what is to be where, and put it in pixels."""
    shape, pixel_A = _frame(size_px), float(volumes[0].attrs["pixel_size_A"])
    if diameter_A is None:
        diameter_A = pixel_A * max(measure_diameter(volume.values) for volume in volumes)
    check_number(WHAT, "diameter_A", diameter_A, pixel_A)
    distance_A = diameter_A if min_distance_A is None else min_distance_A
    check_number(WHAT, "min_distance_A", distance_A, 0.1 * diameter_A)
    check_number(WHAT, "hole_A", hole_A, 2 * diameter_A)
    for name in ("crowding", "carbon"):
        check_number(WHAT, name, shares[name], 0, 1)
    class_ends(shares["proportions"], len(volumes), WHAT)
    distance_px = distance_A / pixel_A
    return Specimen(
        shape=shape,
        n_particles=_count_particles(n_particles, shape, distance_px, diameter_A / pixel_A),
        diameter_px=diameter_A / pixel_A,
        distance_px=distance_px,
        hole_px=hole_A / pixel_A,
        n_crystals=_range("n_crystals", n_crystals, 10_000),
        n_volumes=len(volumes),
        **shares,
    )


def _describe(exposure: Exposure, ids: Any) -> tuple[xr.Dataset, pd.DataFrame]:
    """Label micrographs that are yet to be made, and list their particles."""
    draws = Draws(image_ids=ids, seed=exposure.specimen.seed, what=WHAT)
    made = describe_images(
        WHAT,
        exposure,
        {"images": read_noisy, "clean": read_clean},
        shape=(len(ids), *exposure.specimen.shape),
        chunk=1,
        coords={"image_id": ids, "micrograph": _names(ids)},
        optics=draw_optics(exposure.ctf, draws),
        attrs={"kind": "micrographs", "pixel_size_A": exposure.pixel_size_A},
        parameters=_record(exposure),
    )
    return made, _picks(exposure.specimen, ids)


def _frame(size_px: Any) -> tuple[int, int]:
    pair = list(size_px) if np.ndim(size_px) else [size_px, size_px]
    require(len(pair) == 2, WHAT, "size_px must be an integer or (height, width)", size_px)
    for edge in pair:
        check_integer(WHAT, "size_px", edge, 16)
    return int(pair[0]), int(pair[1])


def _range(name: str, value: Any, most: int) -> tuple[int, int]:
    """Take a number for a range from it to itself."""
    pair = list(value) if np.ndim(value) else [value, value]
    require(len(pair) == 2, WHAT, f"{name} must be an integer or (fewest, most)", value)
    for end in pair:
        check_integer(WHAT, name, end, 0, most)
    require(pair[0] <= pair[1], WHAT, f"{name} must be (fewest, most)", value)
    return int(pair[0]), int(pair[1])


def _count_particles(
    wanted: Any, shape: tuple[int, int], distance_px: float, diameter_px: float
) -> tuple[int, int]:
    """Return the fewest and the most particles; refuse what finds no room."""
    of_one = np.pi / 4 / (shape[0] * shape[1])
    fit = int(MOST_COVER / (of_one * distance_px**2))
    if wanted is None:
        wanted = min(max(1, round(USUAL_COVER / (of_one * diameter_px**2))), max(fit, 1))
    low, high = _range("n_particles", wanted, MOST_PARTICLES - 1)
    rule = f"n_particles must find room at min_distance_A from each other: at most {fit} do"
    # One finds room in any frame.
    require(high <= max(fit, 1), WHAT, rule, wanted, "Take fewer, or a shorter distance.")
    return low, high


def _names(ids: Any) -> Any:
    return np.array([f"micrograph_{image_id:06d}.mrc" for image_id in ids])


def _record(exposure: Exposure) -> dict[str, Any]:
    """Parameters for the provenance."""
    specimen, pixel_A = exposure.specimen, exposure.pixel_size_A
    return {
        "n_volumes": len(exposure.volumes),
        "snr": exposure.snr,
        "snr_in": exposure.snr_in,
        "n_particles": list(specimen.n_particles),
        "diameter_A": specimen.diameter_px * pixel_A,
        "min_distance_A": specimen.distance_px * pixel_A,
        "crowding": specimen.crowding,
        "poses": specimen.views.poses,
        "ice": exposure.ice,
        "carbon": specimen.carbon,
        "n_crystals": list(specimen.n_crystals),
        "noise": exposure.noise,
        "seed": specimen.seed,
        "accuracy": exposure.accuracy,
    }


def _picks(specimen: Specimen, ids: Any) -> pd.DataFrame:
    particles = specimen.particles(ids)
    columns = {
        "micrograph": _names(ids)[particles.image_id - ids[0]],
        "image_id": particles.image_id,
        **dict(zip(("x_px", "y_px"), particles.place_px.T, strict=True)),
        "class_id": particles.class_index + 1,
        **dict(zip(ANGLES, particles.rotation_deg.T, strict=True)),
    }
    return pd.DataFrame(columns)
