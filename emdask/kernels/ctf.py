"""Contrast transfer function of the microscope.

Sign: positive at low frequency for underfocus, as in RELION. A density that is positive where the
protein is, projected and multiplied by this CTF, gives particles white on dark: images whose
contrast has been inverted, as after RELION's extraction. A micrograph as the camera records it is
the negative of that.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Optics:
    """What the contrast transfer of some images depends on.

    Each is one number for all images, or an array with one for each, (n,).

    Parameters
    ----------
    pixel_size_A
        Edge of a pixel in Å.
    defocus_u_A, defocus_v_A
        Defocus along the two axes in Å, positive is underfocus.
    astigmatism_deg
        Angle from the x axis to the axis of u.
    phase_shift_deg
        Phase shift of a phase plate.
    voltage_kV, spherical_aberration_mm, amplitude_contrast
        Of the microscope.

    Examples
    --------
    >>> optics = Optics(pixel_size_A=2.0, defocus_u_A=np.array([1e4, 2e4]), defocus_v_A=1e4)
    >>> optics[1:].defocus_u_A, optics.ctf((8, 8), 0).shape
    (array([20000.]), (8, 5))
    """

    pixel_size_A: Any
    defocus_u_A: Any
    defocus_v_A: Any
    astigmatism_deg: Any = 0.0
    phase_shift_deg: Any = 0.0
    voltage_kV: Any = 300.0
    spherical_aberration_mm: Any = 2.7
    amplitude_contrast: Any = 0.1

    def varying(self) -> dict[str, npt.NDArray[Any]]:
        """Those that differ from image to image."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if np.ndim(value)}

    def __getitem__(self, images: slice) -> Optics:
        """Optics of some of the images."""
        return replace(self, **{name: value[images] for name, value in self.varying().items()})

    def ctf(self, shape: tuple[int, int], image: int) -> npt.NDArray[Any]:
        """Return the CTF of one image on the grid of `numpy.fft.rfft2`; (h, w // 2 + 1)."""
        one = {name: float(value[image]) for name, value in self.varying().items()}
        values = {field.name: getattr(self, field.name) for field in fields(self)} | one
        return ctf_2d(shape, **values)


def electron_wavelength(voltage_kV: float) -> float:
    """Return the relativistic wavelength of an electron in Å.

    Parameters
    ----------
    voltage_kV
        Acceleration voltage.

    Returns
    -------
    float
        h / sqrt(2 m e V (1 + e V / 2 m c²)).

    Examples
    --------
    >>> round(electron_wavelength(300), 5)
    0.01969
    """
    volt = 1e3 * voltage_kV
    return float(12.2642598 / np.sqrt(volt * (1 + 9.7847549e-7 * volt)))


def ctf_2d(
    shape: tuple[int, int],
    *,
    pixel_size_A: float,
    defocus_u_A: npt.ArrayLike,
    defocus_v_A: npt.ArrayLike | None = None,
    astigmatism_deg: npt.ArrayLike = 0.0,
    phase_shift_deg: npt.ArrayLike = 0.0,
    voltage_kV: float = 300.0,
    spherical_aberration_mm: float = 2.7,
    amplitude_contrast: float = 0.1,
) -> npt.NDArray[Any]:
    """Return the CTF on the grid of `numpy.fft.rfft2`, origin first.

    sin(π λ Δf k² - π/2 Cs λ³ k⁴ + φ + asin A), where Δf turns between the two defoci with the
    direction of k (Rohou and Grigorieff 2015, J. Struct. Biol. 192:216, equations 2 to 4).

    Parameters
    ----------
    shape : (h, w)
        Size of the images.
    pixel_size_A
        Edge of a pixel in Å.
    defocus_u_A, defocus_v_A : array_like, shape (...)
        Defocus along the two axes in Å, positive is underfocus; without v there is no astigmatism.
    astigmatism_deg : array_like, shape (...)
        Angle from the x axis to the axis of u.
    phase_shift_deg : array_like, shape (...)
        Phase shift of a phase plate.
    voltage_kV, spherical_aberration_mm, amplitude_contrast
        Of the microscope; the last is a fraction, 0 to 1.

    Returns
    -------
    float64 array, shape (..., h, w // 2 + 1)
        Between -1 and 1.

    Examples
    --------
    >>> ctf = ctf_2d((8, 8), pixel_size_A=2.0, defocus_u_A=15000.0, amplitude_contrast=0.07)
    >>> ctf.shape, round(float(ctf[0, 0]), 3)
    ((8, 5), 0.07)
    """
    ky = np.fft.fftfreq(shape[0], pixel_size_A)[:, None]
    kx = np.fft.rfftfreq(shape[1], pixel_size_A)[None, :]
    k2 = ky**2 + kx**2
    u = _columns(defocus_u_A)
    v = u if defocus_v_A is None else _columns(defocus_v_A)
    angle = np.arctan2(ky, kx) - np.deg2rad(_columns(astigmatism_deg))
    defocus_A = (u + v + (u - v) * np.cos(2 * angle)) / 2
    wavelength_A = electron_wavelength(voltage_kV)
    aberration = np.pi / 2 * 1e7 * spherical_aberration_mm * wavelength_A**3 * k2**2
    phase = np.deg2rad(_columns(phase_shift_deg)) + np.arcsin(amplitude_contrast)
    return np.asarray(np.sin(np.pi * wavelength_A * defocus_A * k2 - aberration + phase))


def apply_ctf(images: npt.NDArray[Any], ctf: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Multiply the images by a CTF in Fourier space.

    Parameters
    ----------
    images : array, shape (..., h, w)
        Real images.
    ctf : array, shape (..., h, w // 2 + 1)
        What `ctf_2d` returned.

    Returns
    -------
    float64 array, shape (..., h, w)

    Examples
    --------
    >>> flat = np.ones((4, 4))
    >>> bool(np.allclose(apply_ctf(flat, np.full((4, 3), 0.5)), 0.5))
    True
    """
    return np.fft.irfft2(np.fft.rfft2(images) * ctf, s=images.shape[-2:])


def _columns(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Append two axes, to broadcast against the grid."""
    return np.asarray(values, np.float64)[..., None, None]
