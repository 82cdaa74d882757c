"""``emdask simulate``: particle images or micrographs, written with all that is true of them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emdask.checks import require, sentence
from emdask.console import Stopwatch, count_text, follow_images, rate_text, say
from emdask.io import check_target, save_stack
from emdask.io.mrc_output import name_micrographs
from emdask.io.star_text import format_star
from emdask.jobs import IMAGES_SHOWN, PREVIEW_SUFFIXES, Workers, check_picture_path
from emdask.simulate_options import Subjects
from emdask.simulators import simulate
from emdask.simulators.micrographs import simulate_micrographs
from emdask.simulators.scene import DEVICES

N_PARTICLE_IMAGES = 1000
N_MICROGRAPHS = 10
# Columns of the picks, as RELION names them.
PICK_LABELS = {
    "micrograph": "rlnMicrographName",
    "x_px": "rlnCoordinateX",
    "y_px": "rlnCoordinateY",
    "class_id": "rlnClassNumber",
    "rot_deg": "rlnAngleRot",
    "tilt_deg": "rlnAngleTilt",
    "psi_deg": "rlnAnglePsi",
}


def simulate_files(
    subjects: Subjects,
    out: str,
    *,
    n_images: int | None,
    parameters: Mapping[str, Any],
    frame: Mapping[str, Any] | None,
    clean: str | None,
    preview: Path | None,
    workers: Workers,
    resume: bool,
    overwrite: bool,
) -> None:
    """Simulate particle images, or micrographs and their picks, into files.

    Parameters
    ----------
    subjects
        What the images are made of.
    out
        Target of the images; its ending says the format.
    n_images
        Of either kind; None for 1000 particle images or 10 micrographs.
    parameters
        Of `emdask.simulate` and `emdask.simulate_micrographs`.
    frame
        What else the latter takes; None for particle images.
    clean
        Target of the images without noise; None for none.
    preview
        Picture of the first images, where asked for.
    workers
        Where the work runs.
    resume, overwrite
        As of `emdask.save_stack`.
    """
    check_picture_path(preview, PREVIEW_SUFFIXES)
    made, picks = _make(subjects, n_images, parameters, frame)
    targets = {out: made.images} | ({} if clean is None else {clean: made.clean})
    different = clean is None or Path(clean).absolute() != Path(out).absolute()
    require(different, "--clean", "must be another place than OUT", clean)
    for path, stack in targets.items():
        check_target(stack, path, resume=resume, overwrite=overwrite)
    picks_path = name_picks(Path(out))
    if picks is not None and picks_path.exists() and not (overwrite or resume):
        remedy = "Name another OUT, or replace both by --overwrite."
        raise FileExistsError(sentence(str(picks_path), "exists already", remedy=remedy))
    with workers.connect(DEVICES, parameters["device"]) as client:
        for path, stack in targets.items():
            _save(stack, path, path == clean, client.dashboard_link, resume, overwrite)
    if picks is not None:
        write_picks(picks, picks_path, name_saved(made.images, out))
        say(f"picks of {len(picks):,} particles -> {picks_path}")
    if preview is not None:
        save_simulated(made, preview, f"{', '.join(subjects.words)}, {_noise_text(parameters)}")
        say(f"picture -> {preview}")


def _make(
    subjects: Subjects,
    n_images: int | None,
    parameters: Mapping[str, Any],
    frame: Mapping[str, Any] | None,
) -> tuple[xr.Dataset, pd.DataFrame | None]:
    """Describe the images, and list the particles of micrographs."""
    if frame is None:
        n_images = N_PARTICLE_IMAGES if n_images is None else n_images
        return simulate(subjects.open(), n_images, **parameters), None
    n_images = N_MICROGRAPHS if n_images is None else n_images
    shared = {name: value for name, value in parameters.items() if name != "shifts_A"}
    return simulate_micrographs(subjects.open(), n_images, **shared, **frame)


def _save(
    stack: xr.DataArray,
    path: str,
    is_clean: bool,
    dashboard: str | None,
    resume: bool,
    overwrite: bool,
) -> None:
    n_images, h, w = stack.shape
    watch = Stopwatch()
    with follow_images("clean" if is_clean else "simulate", n_images, dashboard) as on_progress:
        written = save_stack(
            stack, path, resume=resume, overwrite=overwrite, on_progress=on_progress
        )
    what = f"{count_text(n_images)} of {w} x {h} pixels of {stack.attrs['pixel_size_A']:g} Å"
    what += ", without noise" if is_clean else ""
    say(f"{what} ({rate_text(n_images, watch.seconds)}) -> {written}")


def name_picks(out: Path) -> Path:
    """Return where the picks of micrographs go: beside them.

    Examples
    --------
    >>> str(name_picks(Path("made/micrographs.zarr")))
    'made/micrographs_picks.star'
    """
    return out.with_name(f"{out.stem}_picks.star")


def name_saved(micrographs: xr.DataArray, out: str) -> list[str]:
    """Return by what a STAR file names each micrograph that was saved.

    Parameters
    ----------
    micrographs : xarray.DataArray, dims (image, y, x)
        The stack.
    out
        Where `emdask.save_stack` put it.

    Returns
    -------
    list of str
        Paths from the working directory, which is the folder of a RELION project, or from that of
        ``out`` where it lies elsewhere. A Zarr store has no files: the names within it.
    """
    path = Path(os.path.abspath(out))
    if path.suffix.lower() == ".zarr":
        return [str(name) for name in micrographs.micrograph.values]
    here = Path.cwd()
    path = path.relative_to(here if path.is_relative_to(here) else path.parent)
    if not path.suffix or out.endswith(os.sep):
        return [(path / name).as_posix() for name in name_micrographs(micrographs)]
    if path.suffix.lower() == ".mrc":
        return [path.as_posix()]
    file = path.with_suffix(".mrcs").as_posix()
    return [f"{number + 1:06d}@{file}" for number in range(len(micrographs))]


def write_picks(picks: pd.DataFrame, path: Path, names: Sequence[str]) -> None:
    """Write a STAR file of particles in micrographs, whole or not at all.

    Parameters
    ----------
    picks
        What `emdask.simulate_micrographs` returned.
    path
        An existing file is replaced.
    names
        By what each micrograph is named.
    """
    table = {label: picks[name].to_numpy() for name, label in PICK_LABELS.items()}
    table["rlnMicrographName"] = np.array(names, object)[picks.image_id.to_numpy()]
    draft = path.with_name(f"{path.name}.partial")
    with draft.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(format_star({"particles": table}))
    os.replace(draft, path)


def _noise_text(parameters: Mapping[str, Any]) -> str:
    return "no noise" if parameters["snr"] is None else f"SNR {parameters['snr']:g}"


def save_simulated(made: xr.Dataset, picture: Path, title: str) -> None:
    """Draw some particle images, or one micrograph, with noise and without.

    Parameters
    ----------
    made
        What `emdask.simulate` or `emdask.simulate_micrographs` returned.
    picture
        The file.
    title
        Written above.
    """
    from emdask.plots import draw_images, save_figure

    is_micrograph = made.images.attrs["kind"] == "micrographs"
    first = made.isel(image=slice(1 if is_micrograph else IMAGES_SHOWN))
    pictures = {"images": first.images.values, "without noise": first.clean.values}
    pixel_size_A = made.images.attrs["pixel_size_A"]
    save_figure(draw_images(pictures, pixel_size_A=pixel_size_A, title=title), picture)
