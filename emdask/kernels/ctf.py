"""Contrast transfer function of the microscope.

Sign: positive at low frequency for underfocus, as in RELION. A density that is positive where the
protein is, projected and multiplied by this CTF, gives particles white on dark: images whose
contrast has been inverted, as after RELION's extraction. A micrograph as the camera records it is
the negative of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special


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
    b_factor_A2
        Of the envelope.
    phase_flipped
        Whether the images have been multiplied by the sign of their CTF, of all images alike: what
        is left in them is its absolute value, and that is what `ctf` and `ctfs` return.

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
    b_factor_A2: Any = 0.0
    phase_flipped: Any = False

    def varying(self) -> dict[str, Any]:
        """Those that differ from image to image."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if np.ndim(value)}

    def __getitem__(self, images: slice | npt.NDArray[np.int64]) -> Optics:
        """Optics of some of the images."""
        return replace(self, **{name: value[images] for name, value in self.varying().items()})

    def ctf(self, shape: tuple[int, int], image: int) -> npt.NDArray[Any]:
        """Return the CTF of one image on the grid of `numpy.fft.rfft2`; (h, w // 2 + 1)."""
        one: dict[str, Any] = {name: float(value[image]) for name, value in self.varying().items()}
        return np.asarray(replace(self, **one)._transfer(shape, np))

    def ctfs(self, shape: tuple[int, int], n_images: int, xp: Any = np) -> Any:
        """Return the CTF of each of so many images; float32 (n_images, h, w // 2 + 1) of ``xp``."""
        ctf = self._transfer(shape, xp).astype(np.float32)
        return xp.broadcast_to(ctf, (n_images, *ctf.shape[-2:]))

    def _transfer(self, shape: tuple[int, int], xp: Any) -> Any:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        is_absolute = values.pop("phase_flipped")
        ctf = ctf_2d(shape, **values, xp=xp)
        return abs(ctf) if is_absolute else ctf

    def distinct(self, n_images: int) -> tuple[Optics, npt.NDArray[np.intp]]:
        """Return the optics that differ, (m,), and which of them each of so many images has, (n,).

        Examples
        --------
        >>> defocus = np.array([2e4, 1e4, 2e4])
        >>> optics = Optics(pixel_size_A=2.0, defocus_u_A=defocus, defocus_v_A=defocus)
        >>> few, which = optics.distinct(3)
        >>> few.defocus_u_A, which
        (array([10000., 20000.]), array([1, 0, 1]))
        """
        varying = self.varying()
        if "astigmatism_deg" in varying:
            # The angle of what is round plays no part.
            astigmatic = np.not_equal(self.defocus_u_A, self.defocus_v_A)
            varying["astigmatism_deg"] = np.where(astigmatic, self.astigmatism_deg, 0.0)
        if not varying:
            return self, np.zeros(n_images, np.intp)
        table = np.stack([*varying.values()], axis=1)
        rows, which = np.unique(table, axis=0, return_inverse=True)
        return replace(self, **dict(zip(varying, rows.T, strict=True))), which.reshape(-1)

    def each(
        self, shape: tuple[int, int], n_images: int, xp: Any = np
    ) -> Iterator[tuple[Any, Any]]:
        """Go through the CTFs of so many images: which images, and theirs (1 or n, h, w // 2 + 1).

        On the CPU, whose memory is small, one after another, each for all images that share it; on
        a card all at once.

        Examples
        --------
        >>> defocus = np.array([2e4, 1e4, 2e4])
        >>> optics = Optics(pixel_size_A=2.0, defocus_u_A=defocus, defocus_v_A=defocus)
        >>> [(which.tolist(), ctf.shape) for which, ctf in optics.each((8, 8), 3)]
        [([1], (1, 8, 5)), ([0, 2], (1, 8, 5))]
        """
        if xp is not np:
            yield slice(None), self.ctfs(shape, n_images, xp)
            return
        few, which = self.distinct(n_images)
        for number in range(int(which.max(initial=-1)) + 1):
            ctf = few.ctf(shape, number).astype(np.float32)
            yield np.flatnonzero(which == number), ctf[None]

    def power(self, frequency: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the mean of the squared CTF over circles of these frequencies in cycles a pixel.

        Of shape (m, r) for m images, (1, r) for numbers that are the same for all. With astigmatism
        the squared CTF over directions is ``sin²(a + d cos 2φ)``, whose mean is ``(1 - cos(2 a)
        J0(2 d)) / 2``.

        Examples
        --------
        >>> optics = Optics(pixel_size_A=2.0, defocus_u_A=1e4, defocus_v_A=1e4)
        >>> optics.power(np.array([0.0])).round(3)
        array([[0.01]])
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        v = {
            name: np.atleast_1d(np.asarray(value, np.float64))[:, None]
            for name, value in values.items()
        }
        k2 = np.square(frequency / v["pixel_size_A"])
        wavelength_A = electron_wavelength(v["voltage_kV"])
        middle = (v["defocus_u_A"] + v["defocus_v_A"]) / 2
        aberration = np.pi / 2 * 1e7 * v["spherical_aberration_mm"] * wavelength_A**3
        constant = np.deg2rad(v["phase_shift_deg"]) + np.arcsin(v["amplitude_contrast"])
        phase = (np.pi * wavelength_A * middle - aberration * k2) * k2 + constant
        swing = np.pi * wavelength_A * (v["defocus_u_A"] - v["defocus_v_A"]) / 2 * k2
        blur = special.j0(2 * swing) if swing.any() else 1.0
        power = np.exp(-v["b_factor_A2"] * k2 / 2) * (1 - np.cos(2 * phase) * blur) / 2
        n_images = max((len(value) for value in self.varying().values()), default=1)
        return np.broadcast_to(power, (n_images, power.shape[1]))


def electron_wavelength(voltage_kV: Any) -> Any:
    """Return the relativistic wavelength of an electron in Å.

    Parameters
    ----------
    voltage_kV : float or array
        Acceleration voltage.

    Returns
    -------
    float64 or array
        h / sqrt(2 m e V (1 + e V / 2 m c²)).

    Examples
    --------
    >>> round(float(electron_wavelength(300)), 5)
    0.01969
    """
    volt = 1e3 * np.asarray(voltage_kV, np.float64)
    return 12.2642598 / np.sqrt(volt * (1 + 9.7847549e-7 * volt))


def ctf_2d(
    shape: tuple[int, int],
    *,
    pixel_size_A: npt.ArrayLike,
    defocus_u_A: npt.ArrayLike,
    defocus_v_A: npt.ArrayLike | None = None,
    astigmatism_deg: npt.ArrayLike = 0.0,
    phase_shift_deg: npt.ArrayLike = 0.0,
    voltage_kV: npt.ArrayLike = 300.0,
    spherical_aberration_mm: npt.ArrayLike = 2.7,
    amplitude_contrast: npt.ArrayLike = 0.1,
    b_factor_A2: npt.ArrayLike = 0.0,
    rows: slice | None = None,
    xp: Any = np,
) -> Any:
    """Return the CTF on the grid of `numpy.fft.rfft2`, origin first.

    exp(-B k² / 4) sin(π λ Δf k² - π/2 Cs λ³ k⁴ + φ + asin A), where Δf turns between the two
    defoci with the direction of k (Rohou and Grigorieff 2015, J. Struct. Biol. 192:216, equations 2
    to 4; the envelope as in RELION).

    Parameters
    ----------
    shape : (h, w)
        Size of the images.
    pixel_size_A : array_like, shape (...)
        Edge of a pixel in Å.
    defocus_u_A, defocus_v_A : array_like, shape (...)
        Defocus along the two axes in Å, positive is underfocus; without v there is no astigmatism.
    astigmatism_deg : array_like, shape (...)
        Angle from the x axis to the axis of u.
    phase_shift_deg : array_like, shape (...)
        Phase shift of a phase plate.
    voltage_kV, spherical_aberration_mm, amplitude_contrast : array_like, shape (...)
        Of the microscope; the last is a fraction, 0 to 1.
    b_factor_A2 : array_like, shape (...)
        Of the envelope, in Å²; positive damps high frequencies.
    rows
        Rows of the grid that are wanted, h of them; None for all.
    xp
        Array library of the result, NumPy or CuPy.

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
    pixel_A, voltage_kV, cs_mm = (
        _columns(a) for a in (pixel_size_A, voltage_kV, spherical_aberration_mm)
    )
    u = _columns(defocus_u_A)
    v = u if defocus_v_A is None else _columns(defocus_v_A)
    axis = 2 * np.deg2rad(_columns(astigmatism_deg))
    wavelength_A = electron_wavelength(voltage_kV)
    # λ Δf k² is a quadratic form of kx and ky: no angle is needed at each point.
    along, across, oblique = (
        np.pi * wavelength_A / pixel_A**2 * part / 2
        for part in (u + v, (u - v) * np.cos(axis), (u - v) * np.sin(axis))
    )
    aberration = np.pi / 2 * 1e7 * cs_mm * wavelength_A**3 / pixel_A**4
    constant = np.deg2rad(_columns(phase_shift_deg)) + np.arcsin(_columns(amplitude_contrast))
    ky2, kx2, kxy = _squares(shape, rows, xp)
    k2 = ky2 + kx2
    phase = (xp.asarray(along) - xp.asarray(aberration) * k2) * k2 + xp.asarray(constant)
    if np.any(across) or np.any(oblique):
        phase = phase + xp.asarray(across) * (kx2 - ky2) + xp.asarray(oblique) * (2 * kxy)
    ctf = xp.sin(phase)
    damping = _columns(b_factor_A2) / pixel_A**2 / 4
    return ctf * xp.exp(-xp.asarray(damping) * k2) if np.any(damping) else ctf


def _squares(shape: tuple[int, int], rows: slice | None, xp: Any) -> tuple[Any, Any, Any]:
    """Return ky², kx² and kx ky in cycles a pixel."""
    ky = xp.asarray(np.fft.fftfreq(shape[0])[rows or slice(None), None])
    kx = xp.asarray(np.fft.rfftfreq(shape[1])[None, :])
    return ky * ky, kx * kx, kx * ky


def apply_ctf(images: Any, ctf: Any) -> Any:
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
