"""Images in a steerable basis, premultiplied by the CTF of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.ctf import Optics
from emdask.kernels.reductions import over_pixels
from emdask.kernels.steerable import SteerableBasis, expand, sample_filters
from emdask.kernels.transforms import to_half_planes

__all__ = ["Expansion", "expand_images"]


class Expansion(NamedTuple):
    """Images in a steerable basis.

    Parameters
    ----------
    coefs : complex64 array, shape (n, n_coefs)
        Of the images times the CTF of each, less their means.
    which : int array, shape (n,)
        Which of the CTFs is that of each image.
    ctfs : float32 array, shape (m, h, w // 2 + 1)
        The CTFs that differ; None where there is none.
    power : float64 array, shape (m, n_r)
        Their squares, means over directions, or ones, as `emdask.kernels.steerable.sample_filters`
        gives them.
    """

    coefs: Any
    which: npt.NDArray[np.intp]
    ctfs: Any
    power: npt.NDArray[np.float64]


def expand_images(images: Any, basis: SteerableBasis, optics: Optics | None) -> Expansion:
    """Expand images, each times its CTF, in a steerable basis.

    The CTF is exact, astigmatism included: it multiplies the Fourier transform. The mean of an
    image is taken from it first, because the background of real images has any value.

    Parameters
    ----------
    images : array, shape (n, box_px, box_px)
        Of any real type; NumPy or CuPy.
    basis
        For images of this size.
    optics
        Of the images; None where they have no CTF.

    Returns
    -------
    Expansion
    """
    xp = array_namespace(images)
    pixels = images.astype(np.result_type(images.dtype, np.float32), copy=False)
    # What rounding leaves of the mean is at frequency 0 alone.
    terms = to_half_planes(pixels - over_pixels("mean", pixels)[:, None, None])
    terms[:, 0, 0] = 0
    which, ctfs = np.zeros(len(images), np.intp), None
    power: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]] = _pass_all
    if optics is not None:
        few, which = optics.distinct(len(images))
        ctfs = few.ctfs(images.shape[1:], int(which.max(initial=0)) + 1, xp)
        terms *= ctfs[xp.asarray(which)]
        power = few.power
    return Expansion(expand(terms, basis), which, ctfs, sample_filters(power, basis))


def _pass_all(frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.ones((1, len(frequencies)))
