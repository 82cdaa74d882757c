"""Phases that the CTF has turned by half, turned back; NumPy and CuPy arrays."""

from __future__ import annotations

from typing import Any

from emdask.backend import array_namespace
from emdask.kernels.ctf import Optics
from emdask.kernels.transforms import to_half_planes, to_images

__all__ = ["flip_phases"]


def flip_phases(images: Any, optics: Optics) -> Any:
    """Multiply images by the sign of their CTF in Fourier space.

    Parameters
    ----------
    images
        (n, h, w); NumPy or CuPy.
    optics
        Of the images.

    Returns
    -------
    (n, h, w) float32
        Of the same library; an image goes on as itself beyond its borders. Where the CTF is 0
        nothing is changed.

    Examples
    --------
    >>> import numpy as np
    >>> optics = Optics(pixel_size_A=2.0, defocus_u_A=1e4, defocus_v_A=1e4)
    >>> image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype("f4")
    >>> flipped = flip_phases(image, optics)
    >>> again = flip_phases(flipped, optics)
    >>> [bool(np.allclose(images, image, atol=1e-5)) for images in (flipped, again)]
    [False, True]
    """
    xp = array_namespace(images)
    shape = images.shape[1:]
    terms = to_half_planes(images)
    for which, ctf in optics.each(shape, len(images), xp):
        terms[which] = xp.where(ctf < 0, -terms[which], terms[which])
    return to_images(terms, shape)
