"""``emdask reconstruct``: a map of particle images, its half maps, and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import sentence
from emdask.console import Stopwatch, compute_and_follow, count_text, rate_text, say, say_table
from emdask.errors import StackError
from emdask.io import open_volume, save_volume
from emdask.io.volumes import check_volume_target
from emdask.jobs import Source, Workers, check_picture_path
from emdask.kernels.masks import mask_from_volume
from emdask.method import find_denoiser, resolve_method
from emdask.metrics import fsc
from emdask.reconstruction_report import Curve, resolution_table, write_reconstruction
from emdask.reconstructors import FAMILY, reconstruct

Array = npt.NDArray[Any]

AUTO, NONE = "auto", "none"
# Of pixel sizes that count as one: programs round them.
SAME_PIXEL_SIZE = 5e-3
TRUTH = 0.5
# By which masks go beyond 0 and 1 where programs have resampled them.
MASK_TOLERANCE = 0.01


def reconstruct_files(
    source: Source,
    out: str,
    *,
    method: str,
    parameters: Mapping[str, Any],
    half_maps: bool,
    mask: str,
    reference: Path | None,
    report: Path | None,
    device: str | None,
    bad_pixels: str,
    workers: Workers,
    overwrite: bool,
) -> None:
    """Reconstruct a map from files to files, and say its resolution.

    Parameters
    ----------
    source
        The images, with poses.
    out
        Target of the map; half maps are written beside it.
    method, parameters, half_maps, device, bad_pixels
        As of `emdask.reconstruct`.
    mask
        A file, "auto" for one made from the map, or "none".
    reference
        Volume that the map is compared with.
    report
        HTML page, where asked for.
    workers
        Where the work runs.
    overwrite
        Whether existing volumes give way.
    """
    check_picture_path(report, (".html",))
    targets = name_targets(Path(out), half_maps)
    for target in targets.values():
        check_volume_target(target, overwrite=overwrite)
    stack = source.open()
    options: dict[str, Any] = {"half_maps": half_maps, "device": device, "bad_pixels": bad_pixels}
    # Before workers start: a wrong parameter or file is to be told at once.
    lazy = reconstruct(stack, method, **options, **parameters)
    known = None
    if reference is not None:
        known = f"with {reference.name}", open_like("--reference", reference, lazy)
    given = None if mask in (AUTO, NONE) else open_mask(Path(mask), lazy)
    name, record, params = resolve_method(FAMILY, method, parameters)
    if (denoiser := find_denoiser(stack.attrs)) is not None:
        say(f"These images were denoised ({denoiser}), which makes noise depend on the signal.")
        say("Half maps then agree for the wrong reason: their FSC and resolution mean nothing.")
    with workers.connect(record.insert, device) as client:
        say(f"Reconstructing from {count_text(len(stack))} ...")
        watch = Stopwatch()
        # Anew: chains of tasks are as many as the workers have threads.
        lazy = reconstruct(stack, method, **options, **parameters)
        found = compute_and_follow(lazy, client, name, f"{name}-insert", len(stack))
        seconds = watch.seconds
    for name, target in targets.items():
        save_volume(found[name], target, overwrite=overwrite)
    say(f"{count_text(len(stack))} ({rate_text(len(stack), seconds)}) -> {targets['volume']}")
    if half_maps:
        say(f"half maps -> {targets['half_1']}, {targets['half_2']}")
    if mask == AUTO and (half_maps or known is not None):
        given = mask_from_volume(found.volume.values)
    curves = judge(found, given, known)
    if curves:
        say()
        say_table(*resolution_table(curves))
        say()
    if report is not None:
        write_reconstruction(
            report,
            found=found,
            stack=stack,
            curves=curves,
            seconds=seconds,
            symmetry=params.symmetry,
            mask=describe_mask(mask, given),
        )
        say(f"report -> {report}")


def name_targets(out: Path, half_maps: bool) -> dict[str, Path]:
    """Return where each volume goes.

    Examples
    --------
    >>> [str(path) for path in name_targets(Path("a/map.mrc"), True).values()]
    ['a/map.mrc', 'a/map_half1.mrc', 'a/map_half2.mrc']
    """
    halves = {
        f"half_{number}": out.with_name(f"{out.stem}_half{number}{out.suffix}") for number in (1, 2)
    }
    return {"volume": out} | (halves if half_maps else {})


def open_like(option: str, path: Path, found: xr.Dataset) -> xr.DataArray:
    """Open a volume that must lie on the voxels of the map.

    Parameters
    ----------
    option
        That names it, for the message.
    path
        The file.
    found
        What `emdask.reconstruct` returned; nothing is computed.

    Returns
    -------
    xarray.DataArray, dims (z, y, x)

    Raises
    ------
    StackError
        If its size or its pixel size is another.
    """
    pixel_size_A = float(found.attrs["pixel_size_A"])
    volume = open_volume(path)
    n, own_A = volume.shape[0], float(volume.attrs["pixel_size_A"])
    if n != found.volume.shape[0] or abs(own_A / pixel_size_A - 1) > SAME_PIXEL_SIZE:
        rule = f"must have {found.volume.shape[0]} voxels of {pixel_size_A:g} Å on edge, as the map"
        remedy = "Pad or resample it first."
        raise StackError(sentence(f"{option} {path}", rule, f"{n} of {own_A:g} Å", remedy))
    return volume


def open_mask(path: Path, found: xr.Dataset) -> Array:
    """Open a mask that must lie on the voxels of the map.

    Parameters
    ----------
    path
        The file.
    found
        What `emdask.reconstruct` returned; nothing is computed.

    Returns
    -------
    array, shape (n, n, n)

    Raises
    ------
    StackError
        If its size or its pixel size is another, or it is no mask but a map.
    """
    values = np.asarray(open_like("--mask", path, found).values)
    low, high = float(values.min()), float(values.max())
    if low < -MASK_TOLERANCE or high > 1 + MASK_TOLERANCE or high <= 0:
        rule = "a mask must lie between 0 and 1, and not be 0 everywhere"
        remedy = "Make one from a map, or pass --mask auto."
        raise StackError(sentence(f"--mask {path}", rule, f"{low:.3g} to {high:.3g}", remedy))
    return values


def judge(
    found: xr.Dataset, mask: Array | None, reference: tuple[str, xr.DataArray] | None
) -> list[Curve]:
    """Correlate the half maps, and the map with a reference.

    Parameters
    ----------
    found
        What `emdask.reconstruct` returned, computed.
    mask
        Soft mask; None for none.
    reference
        Name and volume; None for none.

    Returns
    -------
    list of Curve
    """
    curves = []
    if "half_1" in found:
        halves = found.half_1.values, found.half_2.values
        curves.append(_curve(found, "half maps", *fsc(*halves)))
        if mask is not None:
            name = "half maps in the mask, corrected for it"
            curves.append(_curve(found, name, *fsc(*halves, mask=mask, corrected=True)))
    if reference is not None:
        name, volume = reference
        pair = found.volume.values, volume.values
        curves.append(_curve(found, name, *fsc(*pair), threshold=TRUTH))
        if mask is not None:
            within = fsc(*pair, mask=mask)
            curves.append(_curve(found, f"{name}, in the mask", *within, threshold=TRUTH))
    return curves


def _curve(
    found: xr.Dataset, name: str, frequency: Array, correlation: Array, **more: float
) -> Curve:
    per_A = np.asarray(frequency) / float(found.attrs["pixel_size_A"])
    return Curve(name=name, frequency_per_A=per_A, correlation=np.asarray(correlation), **more)


def describe_mask(mask: str, values: Array | None) -> str:
    """Say in a sentence which mask there was.

    Examples
    --------
    >>> describe_mask("auto", np.ones((2, 2, 2)))
    'The mask is made from the map: 100 % of the box.'
    """
    if values is None:
        return "There is no mask."
    whence = "made from the map" if mask == AUTO else Path(mask).name
    return f"The mask is {whence}: {100 * values.mean():.3g} % of the box."
