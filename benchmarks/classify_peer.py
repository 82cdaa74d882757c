"""What one would write with NumPy and SciPy to tell conformations apart: the peer of classify.py.

Images are sampled on polar rings of Fourier space (by finufft where it is installed, else by cubic
splines in a padded transform), and turns in the plane are correlated by FFTs along the rings.

- `screen`: the best correlation with a view in the cone less the best with one outside, of squared
  amplitudes less those of the noise, or of amplitudes.
- `search`: likelihoods of all conformations from some views of the cone at all turns and shifts, of
  all poses or the best, under white noise. Shifts are those of a square of 1 px, then of half
  pixels about the best of them: without these the accuracy is 0.02 lower at an SNR of 0.1.

It is told the variance of the noise, and that references have the images' grey levels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from scipy.ndimage import map_coordinates
from scipy.special import ive

try:
    import finufft
except ImportError:
    finufft = None

Array = Any

# Highest frequencies, cycles a pixel: of spectra, and of the search.
SPECTRUM_BAND, SEARCH_BAND = 14 / 128, 40 / 128
# Turns over 360 degrees, for each pixel of the box. An autocorrelation is twice as wide as the
# image, so rings of spectra lie half a Fourier pixel apart.
SPECTRUM_ANGLES, SPECTRUM_STEP = 1.0, 0.5
SEARCH_ANGLES = 2.0
# Shifts of the second square, pixels.
NEAR_PX = np.linspace(-1, 1, 5)


def sample_polar(images: Array, radii: Array, n_angles: int) -> Array:
    """Sample Fourier transforms on half circles; complex64 (n, radii, n_angles / 2).

    ``radii`` are Fourier pixels; the centre of the images is at pixel ``box // 2``.
    """
    angle = 2 * np.pi * np.arange(n_angles // 2) / n_angles
    y, x = (np.outer(radii, turn(angle)) for turn in (np.sin, np.cos))
    if finufft is None:
        return np.stack([_sample_by_splines(image, y, x) for image in images])
    scale = 2 * np.pi / images.shape[-1]
    at = [(scale * each).ravel().astype(np.float32) for each in (y, x)]
    given = np.ascontiguousarray(images, np.complex64)
    terms = finufft.nufft2d2(*at, given, eps=1e-4, isign=-1, nthreads=1)
    return terms.reshape(len(images), *y.shape)


def _sample_by_splines(image: Array, y: Array, x: Array) -> Array:
    n = image.shape[-1]
    padded = np.pad(image, n // 2)
    terms = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(padded)))
    at = [2 * y + n, 2 * x + n]
    real, imaginary = (map_coordinates(p, at, order=3) for p in (terms.real, terms.imag))
    return (real + 1j * imaginary).astype(np.complex64)


# Screening


class Spectra(NamedTuple):
    """References for `screen`; of rings (k) and angular orders (m).

    ``ground`` is what noise alone shows. Values, less the references' mean, are weighted by the
    inverse variance of the noise. That the square of a CTF scales them is true of squared
    amplitudes, and of amplitudes as long as noise prevails.
    """

    radii: Array
    n_angles: int
    n_inside: int
    amplitudes: bool
    ground: float
    mean: Array
    weight: Array
    orders: Array
    power: Array


def prepare_spectra(
    inside: Array, outside: Array, noise_variance: float, *, amplitudes: bool = False
) -> Spectra:
    """Prepare views within the cone and outside of it, (v, n, n) each."""
    references = np.concatenate([inside, outside])
    box_px = references.shape[-1]
    radii = np.arange(1, SPECTRUM_BAND * box_px + 1e-9, SPECTRUM_STEP)
    n_angles = _even(SPECTRUM_ANGLES * box_px)
    power = np.square(np.abs(sample_polar(references, radii, n_angles))) / box_px**2
    signal = power.mean((0, 2))
    if amplitudes:
        expected = rice_mean(power, noise_variance)
        ground = float(rice_mean(0.0, noise_variance))
        seen = expected - ground
        spread = signal + noise_variance - np.square(expected).mean((0, 2))
    else:
        ground, seen, spread = noise_variance, power, np.square(signal + noise_variance)
    mean = seen.mean((0, 2))[:, None]
    seen = seen - mean
    orders = scipy.fft.rfft(seen, axis=-1).conj().transpose(2, 1, 0)
    return Spectra(
        radii,
        n_angles,
        len(inside),
        amplitudes,
        ground,
        mean.astype(np.float32),
        (radii / spread).astype(np.float32),
        np.ascontiguousarray(orders, np.complex64),
        np.square(seen).sum(-1).T.astype(np.float32),
    )


def rice_mean(power: Array, noise_variance: float) -> Array:
    """Mean of an amplitude in complex noise of this variance, whose square is ``power`` without."""
    x = power / noise_variance / 2
    return np.sqrt(np.pi * noise_variance) / 2 * ((1 + 2 * x) * ive(0, x) + 2 * x * ive(1, x))


def screen(images: Array, spectra: Spectra, transfer: Array | None = None) -> Array:
    """Score images; ``transfer`` is their CTF at the radii, (n, k)."""
    terms = np.abs(sample_polar(images, spectra.radii, spectra.n_angles)) / images.shape[-1]
    square = np.ones((len(images), len(spectra.radii)), np.float32)
    if transfer is not None:
        square = np.square(transfer).astype(np.float32)
    values = (terms if spectra.amplitudes else np.square(terms)) - np.float32(spectra.ground)
    values -= square[:, :, None] * spectra.mean
    own = np.sqrt(np.square(values).sum(-1) @ spectra.weight)
    norm = own[:, None] * np.sqrt((spectra.weight * square**2) @ spectra.power)
    weighted = values * (spectra.weight * square)[:, :, None]
    orders = scipy.fft.rfft(weighted, axis=-1).transpose(2, 0, 1)
    products = np.matmul(np.ascontiguousarray(orders), spectra.orders)
    scores = np.empty(len(images))
    for i in range(len(images)):
        turned = scipy.fft.irfft(products[:, i].T, spectra.n_angles // 2, axis=-1)
        best = turned.max(-1) / norm[i]
        scores[i] = best[: spectra.n_inside].max() - best[spectra.n_inside :].max()
    return scores


# Search


class Poses(NamedTuple):
    """References for `search`; of rings (k), angular orders (m), classes times views (r)."""

    radii: Array
    n_angles: int
    n_classes: int
    waves: Array
    near_waves: Array
    orders: Array
    half_power: Array


class Found(NamedTuple):
    """Log-likelihoods (n, classes) of all poses and the best; and the best normalised product."""

    marginal: Array
    maximum: Array
    correlation: Array


def prepare_poses(views: Array, shift_px: int, noise_variance: float) -> Poses:
    """Prepare views of all classes, (classes, v, n, n)."""
    n_classes, box_px = len(views), views.shape[-1]
    radii = np.arange(1, SEARCH_BAND * box_px + 1e-9)
    n_angles = _even(SEARCH_ANGLES * box_px)
    half = sample_polar(views.reshape(-1, box_px, box_px), radii, n_angles)
    # Sums over rings stand for those over pixels.
    weight = 2 * np.pi * radii / n_angles / box_px**2 / noise_variance
    orders = _ring_orders(half).conj() * weight[:, None]
    along = np.arange(-shift_px, shift_px + 1)
    return Poses(
        radii,
        n_angles,
        n_classes,
        *(_waves(shifts, radii / box_px, n_angles) for shifts in (along, NEAR_PX)),
        np.ascontiguousarray(orders.transpose(2, 1, 0), np.complex64),
        (weight[:, None] * np.square(np.abs(half)).sum(-1).T).astype(np.float32),
    )


def _waves(along: Array, frequency: Array, n_angles: int) -> Array:
    """What moves images back by the shifts of a square; (s, k, n_angles / 2)."""
    angle = 2 * np.pi * np.arange(n_angles // 2) / n_angles
    shifts = np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)
    paths = shifts @ np.stack([np.cos(angle), np.sin(angle)])
    return np.exp(2j * np.pi * frequency[:, None] * paths[:, None]).astype(np.complex64)


def search(images: Array, poses: Poses, transfer: Array | None = None) -> Found:
    """Compare images with all references; ``transfer`` is their CTF at the radii, (n, k)."""
    centred = images - images.mean((1, 2), keepdims=True)
    found = []
    for i, image in enumerate(centred):
        half = sample_polar(image[None], poses.radii, poses.n_angles)[0]
        power = poses.half_power.sum(0)[:, None]
        if transfer is not None:
            ctf = transfer[i].astype(np.float32)
            half *= ctf[:, None]
            power = (np.square(ctf) @ poses.half_power)[:, None]
        likely = _compare(half * poses.waves, poses) - power
        best = likely.max((1, 2)).argmax()
        products = _compare(half * poses.waves[best] * poses.near_waves, poses)
        found.append(_judge(products, power, poses.n_classes))
    return Found(*(np.stack(parts) for parts in zip(*found, strict=True)))


def _compare(half: Array, poses: Poses) -> Array:
    """Products of shifted images with the references at all turns; (s, r, angles)."""
    orders = _ring_orders(half).transpose(2, 0, 1)
    products = np.matmul(orders, poses.orders).transpose(1, 2, 0)
    return scipy.fft.irfft(np.ascontiguousarray(products), poses.n_angles, axis=-1)


def _ring_orders(half: Array) -> Array:
    """Angular orders from 0 on: the other half circle is the complex conjugate."""
    n_angles = 2 * half.shape[-1]
    orders = scipy.fft.fft(np.concatenate([half, half.conj()], -1), axis=-1)
    return orders[..., : n_angles // 2 + 1]


def _judge(products: Array, power: Array, n_classes: int) -> tuple[Array, ...]:
    likely = (products - power).reshape(len(products), n_classes, -1)
    peak = likely.max((0, 2))
    total = peak + np.log(np.exp(likely - peak[:, None]).sum((0, 2)))
    correlation = products.max((0, 2)) / np.sqrt(power[:, 0])
    return total, peak, correlation.reshape(n_classes, -1).max(-1)


def _even(number: float) -> int:
    return 2 * round(number / 2)
