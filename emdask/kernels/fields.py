"""Optics of a whole field, larger than a particle image; NumPy and CuPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from emdask.backend import array_namespace, fourier_namespace
from emdask.kernels.ctf import ctf_2d, electron_wavelength

__all__ = ["blur_px", "image_field"]

# Rows of the CTF that are computed together: they stay in the processor's cache, which is six times
# as quick. A card wants more at a time.
ROWS = 8
ROWS_OF_A_CARD = 1024


def image_field(field: Any, optics: Mapping[str, Any]) -> Any:
    """Multiply the Fourier transform of a field by a CTF.

    Parameters
    ----------
    field : float32 array, shape (h, w)
        What the microscope sees; it goes on at the opposite side.
    optics
        Arguments of `emdask.kernels.ctf.ctf_2d`, numbers.

    Returns
    -------
    float32 array, shape (h, w)

    Examples
    --------
    >>> field = np.zeros((16, 16), np.float32)
    >>> field[8, 8] = 1
    >>> image = image_field(field, {"pixel_size_A": 2.0, "defocus_u_A": 5000.0})
    >>> round(float(image.sum()), 2)
    0.1
    """
    xp, fft = array_namespace(field), fourier_namespace(field)
    terms = fft.rfft2(field)
    n_rows = ROWS if xp is np else ROWS_OF_A_CARD
    for start in range(0, len(terms), n_rows):
        rows = slice(start, start + n_rows)
        terms[rows] *= ctf_2d(field.shape, **optics, rows=rows, xp=xp).astype(np.float32)
    return fft.irfft2(terms, s=field.shape, overwrite_x=True)


def blur_px(optics: Mapping[str, Any]) -> float:
    """Return how far the microscope spreads a point, at any frequency up to Nyquist.

    Parameters
    ----------
    optics
        Arguments of `emdask.kernels.ctf.ctf_2d`, numbers.

    Returns
    -------
    float
        In pixels: the largest of |λ Δf k - Cs λ³ k³|, the slope of the phase of the CTF.

    Examples
    --------
    >>> round(blur_px({"pixel_size_A": 2.0, "defocus_u_A": 15000.0}))
    35
    """
    pixel_A = float(optics["pixel_size_A"])
    k = np.linspace(0, 0.5 / pixel_A, 65)
    wavelength_A = float(electron_wavelength(optics.get("voltage_kV", 300.0)))
    cs_A = 1e7 * float(optics.get("spherical_aberration_mm", 2.7))
    defocus_A = max(
        (float(optics[name]) for name in ("defocus_u_A", "defocus_v_A") if name in optics), key=abs
    )
    slope = wavelength_A * defocus_A * k - cs_A * wavelength_A**3 * k**3
    return float(np.abs(slope).max()) / pixel_A
