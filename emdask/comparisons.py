"""Compare denoisers on images whose truth is known."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.candidates import GAUSSIAN, NOISY, Candidate, parse_candidates
from emdask.checks import check_integer, check_number, require, sentence
from emdask.cost import Cost, many_measurements, measure, why_no_peak
from emdask.denoisers import FAMILY, denoise, learn_denoiser
from emdask.errors import StackError
from emdask.io import open_stack
from emdask.kernels.fourier import ring_frequencies
from emdask.method import learns, resolve_method
from emdask.metrics import WINDOW_PX, check_data_range, frc, mse, psnr, ssim
from emdask.simulators.demo_images import demo_particles
from emdask.stack import as_stack, build_stack, choose_chunk, image_ids

Images = npt.NDArray[Any]

SIMULATE = "simulate"
SNRS = (0.8, 0.4, 0.2, 0.1, 0.05, 0.01)
N_IMAGES = 16
PICTURE_PX = 256
WARM_UP_PX = 64
WIDTHS_PX = np.geomspace(0.4, 12.0, 29)
SIDE_TO_TUNE_PX = 2048
# Of a clean stack what its noisy copies keep. Not the CTF: the truth is the image as given, and a
# method that undid the CTF would leave it.
KEPT_ATTRS = ("kind", "pixel_size_A")
UNKNOWN = Cost(cpu_s=np.nan, peak_MB=np.nan)


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What a method made of the images at one SNR; ``images`` is None where it failed."""

    images: Images | None = None
    cost: Cost = UNKNOWN
    learning_s: float = 0.0
    parameters: str = ""
    why_not: str = ""


_Row = Callable[[xr.DataArray, Images, float | None], _Result]


def compare(
    clean: Any,
    *,
    snr: float | Iterable[float] = SNRS,
    methods: Iterable[Any] | None = None,
    n_images: int = N_IMAGES,
    data_range: float | None = None,
    seed: int = 0,
    on_progress: Callable[[str, float, int, int], None] | None = None,
) -> xr.Dataset:
    """Add white noise to clean images, denoise them by each method, and judge by the truth.

    The methods run one after another in this process, by `emdask.denoise` on the CPU, and are told
    nothing of the truth: not the noise, not the clean images. Two rows are controls: "noisy", and
    "best gaussian", blurred by the width that brings the images nearest to the clean ones, which
    is told the truth.

    Parameters
    ----------
    clean : str, path, xarray.DataArray, or array of 2 or 3 dims
        Images without noise: a stack, an array, a file that `emdask.open_stack` opens, or
        "simulate" for projections of a protein, 128 x 128 pixels of 2 Å, without CTF.
    snr
        Variance of the clean images over the full frame, averaged over the images / variance of
        the noise.
    methods
        Names of methods, or instances of their parameter records. A name may have parameters,
        as in "nl_means:strength=0.8,window_px=21"; of several values, as in "strength=0.5|1|2", the
        one with the highest mean PSNR is taken at each SNR, which is then told the truth as well.
        None takes all that remove noise, with their defaults.
    n_images
        How many images, from the first on.
    data_range
        Of `emdask.metrics.psnr` and `ssim`; None takes max - min of each clean image.
    seed
        Of the noise, which follows [seed, image_id] and is the same at each SNR but for its scale.
    on_progress
        Called before each step with (method, SNR, steps done, steps in all).

    Returns
    -------
    xarray.Dataset
        Of dims (denoiser, snr, image): ``mse``, ``psnr`` (dB), ``ssim``.
        Of dims (denoiser, snr, frequency), in cycles a pixel: ``frc`` to the clean images, which
        fall off to the edges as a cosine, mean over the images.
        Of dims (denoiser, snr): ``seconds_per_image``, and ``learning_seconds`` for all images
        together where a method learns, both CPU time after a first call that does not count;
        ``peak_memory_MB``, what learning and denoising added to the process; ``parameters``;
        ``why_not``, why a method failed, else "".
        Of dims (denoiser, snr, y, x): ``picture``, the middle 256 pixels of the first image, and of
        dims (y, x) ``clean_picture``.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError
        At once. A method that fails later has NaN for its figures, and says why.

    Examples
    --------
    >>> table = compare("simulate", snr=[0.4], methods=["bm3d"], n_images=1)
    >>> table.denoiser.values.tolist()
    ['noisy', 'best gaussian', 'bm3d']
    >>> bool(table.psnr.sel(denoiser="bm3d").mean() > table.psnr.sel(denoiser="noisy").mean() + 5)
    True
    """
    candidates = [*parse_candidates(methods)]
    rows: dict[str, _Row] = {NOISY: _leave, GAUSSIAN: _blur_best}
    rows |= {candidate.label: partial(_denoise_best, candidate) for candidate in candidates}
    snrs = _check_snrs(snr)
    if data_range is not None:
        check_data_range("compare", data_range)
    truth = _clean_stack(clean, n_images, seed)
    _check_candidates(candidates, truth)
    noise = _unit_noise(truth, seed)
    variance = float(truth.values.var(axis=(1, 2), dtype=np.float64).mean())
    steps = [*itertools.product(rows, snrs)]
    cells = []
    with many_measurements():
        for done, (label, level) in enumerate(steps):
            if on_progress is not None:
                on_progress(label, level, done, len(steps))
            noisy = _add_noise(truth, noise * np.float32(np.sqrt(variance / level)))
            result = rows[label](noisy, truth.values, data_range)
            cells.append(_judge(result, truth.values, data_range))
    table = _table(cells, [*rows], snrs, truth)
    return table.assign_attrs(_attrs(clean, truth, noisy, data_range, seed))


def _check_snrs(snr: Any) -> list[float]:
    several = isinstance(snr, Iterable) and not isinstance(snr, str)
    require(several or isinstance(snr, Real), "compare", "snr must be a number, or several", snr)
    snrs = [*snr] if several else [snr]
    require(len(snrs) > 0, "compare", "snr must hold at least one number")
    for value in snrs:
        check_number("compare", "snr", value, 1e-6, 1e6)
    require(len({*snrs}) == len(snrs), "compare", "each snr must be there once", snrs)
    return [float(value) for value in snrs]


def _check_candidates(candidates: Iterable[Candidate], clean: xr.DataArray) -> None:
    """Build each graph once: what is wrong with parameters for these images is told at once."""
    stack = as_stack(clean[:1])
    for candidate in candidates:
        for params in candidate.records:
            denoise(stack, params, device="cpu")


# --- Images ---------------------------------------------------------------------------------------


def _clean_stack(clean: Any, n_images: int, seed: int) -> xr.DataArray:
    """Return the clean images, read, with their numbers and pixel size."""
    check_integer("compare", "n_images", n_images, 1)
    check_integer("compare", "seed", seed, 0)
    if isinstance(clean, str) and clean == SIMULATE:
        noisy, images = demo_particles(n_images, ctf=False, seed=seed)
        stack = noisy.copy(data=images)
    else:
        stack = as_stack(open_stack(clean) if isinstance(clean, str | Path) else clean)[:n_images]
    if min(stack.shape[1:]) < WINDOW_PX:
        rule = f"clean images must have at least {WINDOW_PX} x {WINDOW_PX} pixels"
        raise StackError(sentence("compare", rule, stack.shape[1:]))
    ids = image_ids(stack)
    images = stack.values.astype(np.float32)
    if not np.isfinite(images).all():
        raise StackError(sentence("compare", "clean images must have no NaN or infinite pixels"))
    if images.var(axis=(1, 2), dtype=np.float64).min() == 0:
        raise StackError(sentence("compare", "clean images must not be constant"))
    attrs = {name: stack.attrs[name] for name in KEPT_ATTRS if name in stack.attrs}
    return xr.DataArray(
        images, dims=("image", "y", "x"), coords={"image_id": ("image", ids)}, attrs=attrs
    )


def _unit_noise(clean: xr.DataArray, seed: int) -> Images:
    shape = clean.shape[1:]
    draws = (np.random.default_rng([seed, int(i)]) for i in clean.image_id.values)
    return np.stack([rng.standard_normal(shape, np.float32) for rng in draws])


def _add_noise(clean: xr.DataArray, noise: Images) -> xr.DataArray:
    """Return a stack as a user would have it, in the chunks that Emdask would choose."""
    images = clean.values + noise
    chunks = (choose_chunk(images.shape, images.dtype), -1, -1)
    lazy = da.from_array(images, chunks=chunks)
    return build_stack(lazy, {"image_id": clean.image_id.values}, clean.attrs)


# --- Denoise and measure --------------------------------------------------------------------------


def _leave(noisy: xr.DataArray, clean: Images, data_range: float | None) -> _Result:
    return _Result(images=noisy.values)


def _blur_best(noisy: xr.DataArray, clean: Images, data_range: float | None) -> _Result:
    width_px, _ = best_gaussian(noisy.values, clean)
    images, cost = measure(lambda: _blur(noisy.values, width_px))
    return _Result(images=images, cost=cost, parameters=f"width_px = {width_px:.3g}")


def _denoise_best(
    candidate: Candidate, noisy: xr.DataArray, clean: Images, data_range: float | None
) -> _Result:
    """Denoise with each set of parameters; keep the one that the truth likes best."""
    results = [_try(params, noisy) for params in candidate.records]
    worked = [result for result in results if result.images is not None]
    if not worked:
        return results[0]
    return max(worked, key=lambda r: float(psnr(r.images, clean, data_range=data_range).mean()))


def _try(params: Any, noisy: xr.DataArray) -> _Result:
    """Denoise and measure; whatever goes wrong is for the table to tell."""
    try:
        return _denoise(params, noisy)
    except Exception as error:
        logging.getLogger("emdask").debug("%r failed", params, exc_info=True)
        return _Result(why_not=str(error) or type(error).__name__)


def _denoise(params: Any, noisy: xr.DataArray) -> _Result:
    _, record, _ = resolve_method(FAMILY, params, {})
    model, learning = None, Cost(cpu_s=0.0, peak_MB=0.0)
    # What a first call compiles and loads is not to be measured.
    few = noisy[:1, :WARM_UP_PX, :WARM_UP_PX]
    _run(params, few, _learn(params, few) if learns(record, params) else None)
    if learns(record, params):
        model, learning = measure(lambda: _learn(params, noisy))
    denoised, cost = measure(lambda: _run(params, noisy, model))
    images = denoised.values
    if not np.isfinite(images).all():
        return _Result(why_not="returned NaN or infinite pixels")
    peak_MB = max(cost.peak_MB, learning.peak_MB)
    used = denoised.attrs["provenance"][-1]["parameters"]
    return _Result(
        images=images,
        cost=replace(cost, peak_MB=peak_MB),
        learning_s=learning.cpu_s,
        parameters=", ".join(f"{k} = {v}" for k, v in used.items() if v is not None),
    )


def _learn(params: Any, noisy: xr.DataArray) -> Any:
    return learn_denoiser(noisy, params).compute(scheduler="synchronous")


def _run(params: Any, noisy: xr.DataArray, model: Any) -> xr.DataArray:
    denoised: xr.DataArray = denoise(noisy, params, model=model, device="cpu")
    return denoised.compute(scheduler="synchronous")


def best_gaussian(noisy: Images, clean: Images) -> tuple[float, Images]:
    """Blur with the Gaussian whose width brings the images nearest to the clean ones.

    An honest control: it is told the truth, which no denoiser knows.

    Parameters
    ----------
    noisy, clean : array, shape (n, h, w)
        Images; the width is tuned on at most 4 million pixels: the first images, of each the first
        2048 rows and columns.

    Returns
    -------
    width_px : float
        Standard deviation of the Gaussian.
    blurred : array, shape (n, h, w)

    Examples
    --------
    >>> clean = np.zeros((1, 16, 16))
    >>> width_px, blurred = best_gaussian(clean + np.eye(16), clean)
    >>> width_px > 3
    True
    """
    few, truth = (images[:, :SIDE_TO_TUNE_PX, :SIDE_TO_TUNE_PX] for images in (noisy, clean))
    n = max(1, SIDE_TO_TUNE_PX**2 // few[0].size)
    errors = [mse(_blur(few[:n], width_px), truth[:n]).mean() for width_px in WIDTHS_PX]
    width_px = float(WIDTHS_PX[int(np.argmin(errors))])
    return width_px, _blur(noisy, width_px)


def _blur(images: Images, width_px: float) -> Images:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(images, (0, width_px, width_px)))


# --- Judge and tabulate ---------------------------------------------------------------------------


def _judge(result: _Result, clean: Images, data_range: float | None) -> dict[str, Any]:
    """Figures of one method at one SNR, by the names of the variables."""
    failed = result.images is None
    images = np.full_like(clean, np.nan) if failed else np.asarray(result.images, np.float32)
    return {
        "mse": mse(images, clean),
        "psnr": psnr(images, clean, data_range=data_range),
        "ssim": ssim(images, clean, data_range=data_range),
        "frc": frc(images, clean, taper=1.0)[1].mean(axis=0),
        "picture": middle(images[0]),
        "seconds_per_image": result.cost.cpu_s / len(clean),
        "learning_seconds": result.learning_s,
        "peak_memory_MB": result.cost.peak_MB,
        "parameters": result.parameters,
        "why_not": result.why_not,
    }


def middle(image: Images, size_px: int = PICTURE_PX) -> Images:
    """Cut out the middle of an image."""
    y, x = (max(0, (length - size_px) // 2) for length in image.shape)
    return image[y : y + size_px, x : x + size_px]


DIMS = {
    "mse": ("image",),
    "psnr": ("image",),
    "ssim": ("image",),
    "frc": ("frequency",),
    "picture": ("y", "x"),
}
UNITS = {
    "psnr": "dB",
    "seconds_per_image": "s",
    "learning_seconds": "s",
    "peak_memory_MB": "MB",
}


def _table(
    cells: Sequence[dict[str, Any]],
    labels: Sequence[str],
    snrs: Sequence[float],
    clean: xr.DataArray,
) -> xr.Dataset:
    variables: dict[str, Any] = {}
    for name in cells[0]:
        values = np.array([cell[name] for cell in cells])
        values = values.reshape(len(labels), len(snrs), *values.shape[1:])
        attrs = {"units": UNITS[name]} if name in UNITS else {}
        variables[name] = (("denoiser", "snr", *DIMS.get(name, ())), values, attrs)
    variables["clean_picture"] = (("y", "x"), middle(clean.values[0]))
    frequency = ring_frequencies((clean.sizes["y"], clean.sizes["x"]))
    coords = {
        "denoiser": [*labels],
        "snr": [*snrs],
        "image_id": clean.image_id,
        "frequency": ("frequency", frequency, {"units": "cycles/px"}),
    }
    return xr.Dataset(variables, coords)


def _attrs(
    clean: Any, truth: xr.DataArray, noisy: xr.DataArray, data_range: float | None, seed: int
) -> dict[str, Any]:
    named = isinstance(clean, str | Path)
    return truth.attrs | {
        "clean": str(clean) if named else type(clean).__name__,
        "n_images": truth.shape[0],
        "shape_px": list(truth.shape[1:]),
        "images_per_block": noisy.data.chunks[0][0],
        "seed": seed,
        "data_range": "max - min of each clean image" if data_range is None else float(data_range),
        "memory_missing": why_no_peak() or "",
    }
