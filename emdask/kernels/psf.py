"""Point spread functions: what a pixel of the specimen became in the image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.fft

from emdask.backend import array_namespace
from emdask.checks import require
from emdask.kernels.ctf import Optics
from emdask.kernels.fourier import frequency_grid
from emdask.kernels.reductions import over_pixels

__all__ = ["corrects_ctf", "freeze_psf", "gaussian_psf", "transfer_function", "transfer_functions"]

Array = npt.NDArray[Any]

WORDS = ("auto", "none")
LARGEST_PX = 257
RULE = (
    'psf must be "auto", "none", a standard deviation in px of at least 0, or an array (h, w) of '
    f"up to {LARGEST_PX} px a side with a positive sum"
)
# Where a Gaussian is cut, in standard deviations.
TRUNCATE = 4.0
# Below its first maximum a CTF that is less than this counts as this.
LEAST_CTF = 0.1
# A CTF has its first maximum where it comes to this share of its largest value.
MAXIMUM = 0.9


def corrects_ctf(params: Any) -> bool:
    """Whether parameters of a deconvolution take the CTF, where it is known, for the PSF.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> corrects_ctf(SimpleNamespace(psf="auto")), corrects_ctf(SimpleNamespace(psf=1.5))
    (True, False)
    """
    return isinstance(params.psf, str) and params.psf == "auto"


def freeze_psf(what: str, psf: Any, *, signed: bool = True) -> Any:
    """Check what was given as a PSF, and make an array tuples that sum up to 1.

    Parameters
    ----------
    what
        Name of the method, for the message.
    psf
        "auto", "none", a standard deviation in px, or an array (h, w) in any form; its pixel
        (h // 2, w // 2) is the middle.
    signed
        Whether pixels of an array may be negative.

    Returns
    -------
    str, float or tuple of tuples of float
        Hashable, and JSON but for the tuples.

    Raises
    ------
    ParameterError
        If it is none of these.

    Examples
    --------
    >>> freeze_psf("wiener", np.array([[1, 2, 1]]))
    ((0.25, 0.5, 0.25),)
    """
    if isinstance(psf, str):
        require(psf in WORDS, what, RULE, psf)
        return psf
    if isinstance(psf, Real) and not isinstance(psf, bool):
        require(0 <= float(psf) < math.inf, what, RULE, psf)
        return float(psf)
    array = _as_floats(psf)
    got = type(psf).__name__ if array is None else f"an array of shape {array.shape}"
    ok = array is not None and array.ndim == 2 and 0 < max(array.shape) <= LARGEST_PX
    ok = ok and bool(np.isfinite(array).all() and array.sum() > 0)
    require(ok, what, RULE, got)
    require(
        signed or array.min() >= 0, what, "psf must not be negative anywhere", float(array.min())
    )
    return tuple(tuple(row) for row in (array / array.sum()).tolist())


def _as_floats(values: Any) -> Any:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return None


def transfer_function(
    psf: Any, shape: tuple[int, int], optics: Optics | None = None, image: int = 0
) -> Array | None:
    """Return by what each frequency of an image was multiplied, as far as it is to be undone.

    Below the first maximum of a CTF what is broad is amplified tenfold at most: more would be that
    of ice and carbon. The mean of an image, at frequency 0, is not changed.

    Parameters
    ----------
    psf
        What `freeze_psf` returned.
    shape : (h, w)
        Size of the image.
    optics
        Of the images, for "auto"; None where it is not known.
    image
        Index of the image in ``optics``.

    Returns
    -------
    array, shape (h, w // 2 + 1), or None
        On the grid of `numpy.fft.rfft2`, origin first; None where nothing was blurred. Real unless
        the PSF is an array.

    Examples
    --------
    >>> transfer_function(1.0, (4, 4))[:, 0].round(3)
    array([1.   , 0.291, 0.007, 0.291])
    >>> transfer_function("auto", (4, 4)) is None
    True
    """
    if psf == "auto" and optics is not None:
        return np.asarray(_limit_ctf(optics.ctf(shape, image), frequency_grid(shape)))
    if isinstance(psf, str) or psf == 0:
        return None
    if isinstance(psf, float):
        return np.asarray(np.exp(-2 * (np.pi * psf * frequency_grid(shape)) ** 2))
    return np.asarray(scipy.fft.rfft2(_place(np.asarray(psf), shape)))


def transfer_functions(
    psf: Any, shape: tuple[int, int], optics: Optics | None, n_images: int, xp: Any = np
) -> Iterator[tuple[Any, Any]]:
    """Go through the transfer functions of so many images, each as of `transfer_function`.

    Parameters
    ----------
    psf, shape, optics
        As of `transfer_function`.
    n_images
        Number of images.
    xp
        Array library of the result, NumPy or CuPy.

    Yields
    ------
    which
        Index of some of the images; all are in one of them.
    transfer
        Theirs, (1 or n, h, w // 2 + 1), of single precision.

    Examples
    --------
    >>> [(which, transfer.shape) for which, transfer in transfer_functions(1.0, (4, 4), None, 9)]
    [(slice(None, None, None), (1, 4, 3))]
    """
    if psf == "auto" and optics is not None:
        frequency = xp.asarray(frequency_grid(shape))
        for which, ctf in optics.each(shape, n_images, xp):
            yield which, _limit_ctf(ctf, frequency)
        return
    transfer = transfer_function(psf, shape)
    if transfer is None:
        transfer = np.ones((shape[0], shape[1] // 2 + 1))
    single = np.complex64 if np.iscomplexobj(transfer) else np.float32
    yield slice(None), xp.asarray(transfer[None].astype(single))


def _limit_ctf(ctf: Any, frequency: Any) -> Any:
    """Raise the start of CTFs to what may be divided by, and frequency 0 to 1."""
    xp = array_namespace(ctf)
    size = xp.abs(ctf)
    peak = over_pixels("max", size)[..., None, None]
    first = over_pixels("min", xp.where(size >= MAXIMUM * peak, frequency, np.inf))
    raised = xp.copysign(xp.maximum(size, LEAST_CTF), ctf)
    limited = xp.where(frequency < first[..., None, None], raised, ctf)
    limited[..., 0, 0] = 1.0
    return limited


def _place(psf: Array, shape: tuple[int, int]) -> Array:
    """Put the middle of a PSF at pixel (0, 0) of an image; what does not fit is left out."""
    wide = np.zeros([max(sides) for sides in zip(psf.shape, shape, strict=True)])
    wide[: psf.shape[0], : psf.shape[1]] = psf
    centred = np.roll(
        wide, [n // 2 - m // 2 for n, m in zip(shape, psf.shape, strict=True)], (0, 1)
    )
    return np.roll(centred[: shape[0], : shape[1]], [-(n // 2) for n in shape], (0, 1))


def gaussian_psf(width_px: float) -> Array:
    """Return a Gaussian of that standard deviation that sums up to 1; odd sides.

    Examples
    --------
    >>> gaussian_psf(0.5).round(2)[2]
    array([0.  , 0.08, 0.62, 0.08, 0.  ])
    """
    radius = int(TRUNCATE * width_px + 0.5)
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / max(width_px, 1e-9)) ** 2)
    line /= line.sum()
    return np.outer(line, line)
