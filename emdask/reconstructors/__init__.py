"""Reconstructors: every other file of this package is one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.delayed import Delayed

from emdask.backend import check_device
from emdask.checks import check_choice, sentence
from emdask.errors import StackError
from emdask.kernels.resolutions import crossing
from emdask.kernels.shells import shell_frequencies
from emdask.lazy import BAD_PIXELS, fold_images, label_arrays, map_signature
from emdask.method import resolve_method
from emdask.stack import add_provenance, as_stack, image_ids, one_pixel_size, optics_of
from emdask.variables import ANGLES, SHIFTS
from emdask.volumes import VOLUME_DIMS

FAMILY = __name__
WHAT = "reconstruct"
# Of two half maps and of a map and its truth (Rosenthal and Henderson 2003).
THRESHOLDS = (0.143, 0.5)


def reconstruct(
    stack: Any,
    method: str | Any = "direct_fourier",
    *,
    symmetry: str | None = None,
    half_maps: bool | None = None,
    device: str | None = None,
    bad_pixels: str = "raise",
    **parameters: Any,
) -> xr.Dataset:
    """Reconstruct a volume from particle images whose poses are known, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x)
        Square particle images, white on dark, with coordinates ``rot_deg``, ``tilt_deg`` and
        ``psi_deg``; ``shift_x_A`` and ``shift_y_A`` where they are not centred. Where the stack
        knows a defocus, its CTF is corrected for.
    method
        Name of a method (``emdask methods`` lists them) or an instance of its parameter record.
    symmetry
        Point group of the particle, oriented as RELION has it; None is "C1".
    half_maps
        Whether to reconstruct each half of the images as well: the halves are those of ``half_set``
        where the stack knows it, else even and odd ``image_id``. None is True.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.
    **parameters
        Parameters of the method, by name.

    Returns
    -------
    xarray.Dataset
        Lazy: call ``.compute()`` on the whole of it, or the images are gone through once for each
        variable. ``volume`` (z, y, x), mass in each voxel, float32; with half maps ``half_1`` and
        ``half_2``, their Fourier shell correlation ``fsc`` over ``frequency`` (1/Å) and
        ``resolution_A`` (threshold), the resolutions where that falls below 0.143 and 0.5, or that
        of Nyquist where it never does. Maps are volumes: `emdask.save_volume` writes them.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, DeviceError
        At once, before anything is computed.

    Notes
    -----
    Images are read once, in any order, and memory does not grow with their number. In maps, that is
    4 bytes a voxel, with half maps: a thread that adds up images holds about 25, the sums that it
    was given and those that it makes, and the images of its task; once, at the end, about 36 are
    needed, a third of them the sums. For 512 px, where a map is 0.5 GB, that is 12 and 18 GB.

    Examples
    --------
    >>> from emdask import phantom, simulate
    >>> particle = phantom(8, radius_A=20).volume(24, 3.0)
    >>> images = simulate(particle, 200, snr=1).images
    >>> found = reconstruct(images).compute()
    >>> found.volume.shape, bool(found.resolution_A[0] < 12)
    ((24, 24, 24), True)
    """
    given = {"symmetry": symmetry, "half_maps": half_maps}
    options = {name: value for name, value in given.items() if value is not None} | parameters
    name, record, params = resolve_method(FAMILY, method, options)
    device = check_device(device, name, record.insert)
    check_choice(name, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_stack(stack)
    _check_square(source)
    along = _along(source, params.half_maps)
    remedy = "Reconstruct the images of each size by themselves."
    size_A = one_pixel_size(source, WHAT, remedy)
    known = {**source.attrs, **({} if size_A is None else {"pixel_size_A": size_A})}
    params = record.complete(params, known, source.shape) if record.complete else params
    maps = fold_images(
        source.data,
        record,
        params,
        name=name,
        device=device,
        along=along,
        optics=optics_of(source.assign_attrs(known)),
        bad_pixels=bad_pixels,
    )
    attrs = {"pixel_size_A": params.pixel_size_A, "n_images": source.shape[0]}
    history = {"provenance": source.attrs.get("provenance", ())}
    attrs |= add_provenance(history, name, asdict(params))
    return _label(maps, source.shape[-1], params.half_maps, attrs)


def _check_square(stack: xr.DataArray) -> None:
    if stack.shape[1] != stack.shape[2]:
        rule = "images must be square, with the particle's centre in the middle"
        remedy = "Pad or crop them."
        raise StackError(sentence(WHAT, rule, stack.shape[1:], remedy))


def _along(stack: xr.DataArray, half_maps: bool) -> dict[str, npt.NDArray[Any]]:
    """What the stack knows of the pose and the half of each image."""
    missing = [name for name in ANGLES if name not in stack.coords]
    if missing:
        rule = f"the pose of each image must be known; the stack has no {', '.join(missing)}"
        remedy = "Open a .star file that has it, or stack.assign_coords(rot_deg=('image', ...))."
        raise StackError(sentence(WHAT, rule, remedy=remedy))
    n_images = len(stack)
    return {
        "rotation_deg": np.stack([_finite(stack, name) for name in ANGLES], axis=1),
        "shift_A": np.stack(
            [_finite(stack, n) if n in stack.coords else np.zeros(n_images) for n in SHIFTS], axis=1
        ),
        "half": _halves(stack) if half_maps else np.ones(n_images, np.int64),
    }


def _finite(stack: xr.DataArray, name: str) -> npt.NDArray[np.float64]:
    values = np.asarray(stack.coords[name].values, np.float64)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        rule = f"{name} of image {bad[0]} must be finite"
        remedy = "Leave such images out."
        raise StackError(sentence(WHAT, rule, float(values[bad[0]]), remedy))
    return values


def _halves(stack: xr.DataArray) -> npt.NDArray[np.int64]:
    """Half of each image, 1 or 2; both must have some."""
    if "half_set" in stack.coords:
        half = np.asarray(stack.coords["half_set"].values, np.int64)
        rule, remedy = "half_set must be 1 or 2", "Drop it: stack.drop_vars('half_set')."
        if not np.isin(half, (1, 2)).all():
            raise StackError(sentence(WHAT, rule, sorted(set(half.tolist()))[:5], remedy))
    else:
        half = np.asarray(image_ids(stack), np.int64) % 2 + 1
    if len(set(half.tolist())) < 2:
        rule = f"half maps need images of both halves, and all are of half {half[0]}"
        raise StackError(sentence(WHAT, rule, remedy="Pass half_maps=False (--no-half-maps)."))
    return half


def _label(maps: Delayed, box_px: int, half_maps: bool, attrs: Mapping[str, Any]) -> xr.Dataset:
    """Name what the task will return, and judge the halves."""
    names = ("volume", "half_1", "half_2") if half_maps else ("volume",)
    volume = np.broadcast_to(np.float32(0), (box_px,) * 3)
    expected = {name: xr.Variable(VOLUME_DIMS, volume, dict(attrs)) for name in names}
    frequency = shell_frequencies(box_px) / attrs["pixel_size_A"]
    if half_maps:
        expected["fsc"] = xr.Variable("frequency", np.zeros(len(frequency)))
    dataset = label_arrays(maps, expected).assign_attrs(attrs)
    if not half_maps:
        return dataset
    signature = "(frequency),(frequency)->(threshold)"
    sizes = {"threshold": len(THRESHOLDS)}
    resolution_A = map_signature(_resolutions, signature, frequency, dataset.fsc.data, **sizes)
    return dataset.assign(resolution_A=("threshold", resolution_A, {"units": "Å"})).assign_coords(
        frequency=("frequency", frequency, {"units": "1/Å"}), threshold=list(THRESHOLDS)
    )


def _resolutions(frequency: Any, correlation: Any) -> Any:
    with np.errstate(divide="ignore"):
        return 1 / np.stack([crossing(frequency, correlation, t) for t in THRESHOLDS], axis=-1)
