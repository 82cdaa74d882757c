"""Make coloured noise white, so that methods for white noise work on it, and colour it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt
import xarray as xr
from dask.delayed import Delayed

from emdask.backend import check_device
from emdask.checks import check_choice, require
from emdask.io import open_model
from emdask.kernels.whitening import (
    NoiseSums,
    add_sums,
    colour_images,
    noise_spectrum,
    sum_noise,
    whiten_images,
)
from emdask.lazy import BAD_PIXELS, learn_model, map_images
from emdask.method import Learn, Method, parameter
from emdask.stack import add_provenance, as_stack, image_ids, like_input

LARGEST_PARTICLE_PX = 512


@dataclass(frozen=True, kw_only=True)
class NoiseParams:
    """Parameters of `learn_noise`.

    Parameters
    ----------
    background
        Where only noise is: the quieter "corners" of particle images, the quietest "tiles" of
        micrographs; "auto" takes tiles where both sides are longer than 512 px.

    Raises
    ------
    ParameterError
        If it is another word.
    """

    background: Literal["auto", "corners", "tiles"] = parameter(
        "auto", "where only noise is: in the quieter corners, or in the quietest tiles"
    )

    def __post_init__(self) -> None:
        check_choice("whiten", "background", self.background, ("auto", "corners", "tiles"))

    def takes_corners(self, shape: tuple[int, ...]) -> bool:
        """Whether images of this size are taken for particles."""
        if self.background == "auto":
            return min(shape[-2:]) <= LARGEST_PARTICLE_PX
        return self.background == "corners"


def learn_noise(stack: Any, *, background: str = "auto", bad_pixels: str = "raise") -> Delayed:
    """Measure the power spectrum of a stack's noise in one pass, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Noisy images.
    background
        Where only noise is: the quiet ones of each image's "corners", outside of the ellipse that
        touches the sides, for particles, or of its "tiles" of 64 px, for micrographs; "auto" takes
        tiles where both sides are longer than 512 px.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.

    Returns
    -------
    dask.delayed.Delayed
        ``.compute()`` gives an `xarray.Dataset`: ``power`` (white noise of variance v has power v)
        over ``frequency`` (cycles a pixel), averaged over directions and images. `save_model` keeps
        it; it serves images of any size and the same pixels.

    Raises
    ------
    ParameterError, StackError
        At once.

    Notes
    -----
    Where particles leave no gaps, as in crowded micrographs, they are taken for noise and lost by
    what follows: look at what was taken away.

    Examples
    --------
    >>> import numpy as np
    >>> noise = 3 * np.random.default_rng(0).normal(size=(20, 64, 64))
    >>> spectrum = learn_noise(noise).compute()
    >>> bool(abs(spectrum.power.mean() - 9) < 0.5)
    True
    """
    params = NoiseParams(background=background)  # type: ignore[arg-type]
    source = as_stack(stack)
    ids = image_ids(source)
    return learn_model(source.data, ids, WHITEN, params, name=NAME, bad_pixels=bad_pixels)


def whiten(
    stack: Any, noise: Any = None, *, device: str | None = None, bad_pixels: str = "raise"
) -> Any:
    """Make the noise of images white and of variance 1, lazily.

    The images are filtered by the inverse root of the noise's power spectrum, signal and noise
    alike: ratios of signal to noise stay what they are at each frequency, and methods made for
    white noise work. `unwhiten` undoes it.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Images with coloured noise.
    noise
        What `learn_noise` returned, or the path of what `save_model` wrote; None measures it on
        ``stack`` within the same graph, which suits small stacks.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.

    Returns
    -------
    xarray.DataArray or dask.array.Array
        Same dims, float32, lazy, as `emdask.denoise`.

    Raises
    ------
    ParameterError, StackError, DeviceError
        At once.

    Examples
    --------
    >>> import numpy as np
    >>> noise = 3 * np.random.default_rng(0).normal(size=(20, 64, 64))
    >>> bool(abs(whiten(noise).compute().std() - 1) < 0.02)
    True
    """
    check_choice("whiten", "bad_pixels", bad_pixels, BAD_PIXELS)
    noise = learn_noise(stack, bad_pixels=bad_pixels) if noise is None else noise
    return _filter(stack, noise, WHITEN, device, bad_pixels)


def unwhiten(stack: Any, noise: Any, *, device: str | None = None) -> Any:
    """Undo `whiten`: give images the colour that their noise had, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Whitened images, denoised or not.
    noise
        What they were whitened with.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.

    Returns
    -------
    xarray.DataArray or dask.array.Array
        Same dims, float32, lazy, as `emdask.denoise`.

    Raises
    ------
    ParameterError, StackError, DeviceError
        At once.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(size=(4, 32, 32))
    >>> noise = learn_noise(images)
    >>> same = unwhiten(whiten(images, noise), noise).compute()
    >>> bool(np.allclose(same, images, atol=1e-5))
    True
    """
    return _filter(stack, noise, COLOUR, device, "raise")


def _filter(stack: Any, noise: Any, record: Method, device: str | None, bad_pixels: str) -> Any:
    name = "whiten" if record is WHITEN else "unwhiten"
    device = check_device(device, name, record.apply)
    source = as_stack(stack)
    images = map_images(
        source.data,
        record,
        NoiseParams(),
        name=name,
        device=device,
        model=_check_noise(noise, name),
        bad_pixels=bad_pixels,
    )
    attrs = add_provenance(source.attrs, name, {})
    return like_input(source.copy(deep=False, data=images).assign_attrs(attrs), stack)


def _check_noise(noise: Any, name: str) -> Any:
    if isinstance(noise, str | Path):
        noise = open_model(noise)
    is_noise = isinstance(noise, xr.Dataset) and noise.attrs.get("method") == NAME
    rule = "noise must be what learn_noise returned, or the path of one"
    require(is_noise or isinstance(noise, Delayed), name, rule, type(noise).__name__)
    return noise.load() if is_noise else noise


NAME = "noise"


def _sum(
    images: npt.NDArray[Any], ids: npt.NDArray[Any], params: NoiseParams, n_images: int
) -> NoiseSums:
    return sum_noise(images, corners=params.takes_corners(images.shape))


def _finish(sums: NoiseSums, params: NoiseParams) -> xr.Dataset:
    frequency, power = noise_spectrum(sums)
    noise = {"long_name": "power of the noise", "units": "grey levels²"}
    place = {"long_name": "spatial frequency", "units": "cycles/px"}
    coords = {"frequency": ("frequency", frequency, place)}
    return xr.Dataset({"power": ("frequency", power, noise)}, coords)


def _whiten(images: Any, params: NoiseParams, model: xr.Dataset) -> Any:
    return whiten_images(images, model.frequency.values, model.power.values)


def _colour(images: Any, params: NoiseParams, model: xr.Dataset) -> Any:
    return colour_images(images, model.frequency.values, model.power.values)


LEARN = Learn(chunk={"cpu": _sum}, combine=add_sums, finalize=_finish)
WHITEN = Method(params=NoiseParams, apply={"cpu": _whiten, "cuda": _whiten}, learn=LEARN)
COLOUR = Method(params=NoiseParams, apply={"cpu": _colour, "cuda": _colour}, learn=LEARN)
