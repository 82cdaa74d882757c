"""Features of images that do not change when they are turned in their plane, some nor when shifted.

Images are brought to mean 0 and variance 1 first, so that no unit of grey levels shows. What the
features do not see is what tells a hand from its mirror image, and much else: they are
autocorrelations, and different particles may have the same. NumPy or CuPy.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer
from emdask.kernels.reductions import mean_of_pixels, variance_of_pixels
from emdask.kernels.row_products import multiply_rows, pack_matrix
from emdask.kernels.steerable import SteerableBasis, expand, steerable_basis
from emdask.kernels.transforms import to_half_planes

__all__ = ["FEATURES", "count_features", "image_features"]

Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

WHAT = "features"
FEATURES = ("spectrum", "steerable")
LEAST_BOX_PX = 8
# Of spectra: rings, of 1 / box each from the second on, and angular orders, of half a turn each;
# angles over half a turn, at which the outermost ring is sampled as densely as the spectrum.
MOST_RINGS, FIRST_RING = 32, 2
N_ORDERS = 16
N_ANGLES = 128
# Images are zero-padded so many times before their spectra are interpolated.
PADDING = 2
# Steerable coefficients: how many at most, and how many there are of a box of 1 px to Nyquist.
MOST_COEFS = 512
COEFS_A_PIXEL = 0.28
IMAGES_AT_ONCE = {"numpy": 32, "cupy": 256}


def image_features(images: Any, features: str) -> Any:
    """Return features of images that a turn in the plane does not change.

    Parameters
    ----------
    images : array, shape (n, box, box)
        Of any real type; NumPy or CuPy.
    features
        "spectrum": of each ring of the amplitude spectrum, which a shift does not change and a turn
        turns, the moduli of its angular Fourier coefficients of even order (odd ones are 0).
        "steerable": the moduli of coefficients of a steerable expansion
        (`emdask.kernels.steerable`) about pixel ``box // 2``; those of order 0 with their sign. A
        shift changes them.

    Returns
    -------
    float32 array, shape (n, f)
        Of the library of the images. Those of an image do not depend on what is beside it. Images
        without contrast have 0 alone.

    Raises
    ------
    ParameterError
        If there are no such features, or the box is less than 8 px.

    Notes
    -----
    Of a particle that fills two thirds of the box, turns change spectra by up to 7 % of what
    another particle does, because they are interpolated, and steerable features by 0.1 %.

    Amplitudes rather than powers, of which a few strong ones would outweigh the rest. Of a signal
    far below the noise, a mean of amplitudes tells as much as one of 91 % as many powers: their
    ratio is ``(π / 16) / (1 - π / 4)``.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(1, 32, 32))
    >>> features = image_features(image, "spectrum")
    >>> turned = image_features(np.roll(np.rot90(image, axes=(1, 2)), 1, axis=1), "spectrum")
    >>> features.shape, bool(abs(features - turned).max() < 0.2 * features.max())
    ((1, 224), True)
    """
    xp = array_namespace(images)
    box_px = check_box(images.shape[-1], features)
    parts = [xp.empty((0, count_features(box_px, features)), np.float32)]
    for some in _batches(len(images), xp):
        scaled = _standardise(images[some])
        make = _spectrum_features if features == "spectrum" else _steerable_features
        parts.append(make(scaled))
    return xp.concatenate(parts)


def count_features(box_px: int, features: str) -> int:
    """Return how many features an image has.

    Parameters
    ----------
    box_px
        Edge of the images.
    features
        As of `image_features`.

    Raises
    ------
    ParameterError
        As of `image_features`.

    Examples
    --------
    >>> count_features(64, "spectrum"), count_features(64, "steerable")
    (480, 498)
    """
    check_box(box_px, features)
    if features == "spectrum":
        return _count_rings(box_px) * N_ORDERS
    return len(_find_basis(box_px).orders)


def check_box(box_px: int, features: str) -> int:
    """Refuse unknown features, and boxes that are too small for any."""
    check_choice(WHAT, "features", features, FEATURES)
    check_integer(WHAT, "the box of images, in px,", box_px, LEAST_BOX_PX)
    return int(box_px)


def _batches(n: int, xp: Any) -> Iterator[slice]:
    step = IMAGES_AT_ONCE[xp.__name__]
    return (slice(start, start + step) for start in range(0, n, step))


def _standardise(images: Any) -> Any:
    """Images of mean 0 and variance 1, float32; 0 where there is no contrast."""
    xp = array_namespace(images)
    centred = images - mean_of_pixels(images)[:, None, None]
    variance = variance_of_pixels(images)[:, None, None]
    scale = xp.where(variance > 0, 1 / xp.sqrt(xp.maximum(variance, 1e-300)), 0.0)
    return (centred * scale).astype(np.float32)


# --- Spectra --------------------------------------------------------------------------------------


class _PolarGrid(NamedTuple):
    """Where rings are in a flat half plane: four neighbours of each point, and their weights."""

    places: Integers
    weights: npt.NDArray[np.float32]


def _spectrum_features(images: Any) -> Any:
    xp = array_namespace(images)
    n, box_px = images.shape[:2]
    edge = PADDING * box_px
    padded = xp.zeros((n, edge, edge), np.float32)
    padded[:, :box_px, :box_px] = images
    amplitudes = abs(to_half_planes(padded)).reshape(n, -1) / np.float32(box_px)
    grid = _polar_grid(box_px)
    rings = xp.zeros((n, grid.places.shape[1]), np.float32)
    for places, weights in zip(grid.places, grid.weights, strict=True):
        rings += xp.take(amplitudes, xp.asarray(places), axis=1) * xp.asarray(weights)
    rows = rings.reshape(-1, N_ANGLES)
    waves = multiply_rows(rows, pack_matrix(_angular_waves(), xp))
    moduli = xp.hypot(waves[:, :N_ORDERS], waves[:, N_ORDERS:])
    return moduli.reshape(n, -1)


def _count_rings(box_px: int) -> int:
    return min(MOST_RINGS, box_px // 2 - FIRST_RING)


@functools.lru_cache(maxsize=8)
def _polar_grid(box_px: int) -> _PolarGrid:
    """Points of rings at angles over half a turn from the y axis on, where kx is not below 0."""
    edge = PADDING * box_px
    radii = PADDING * (FIRST_RING + np.arange(_count_rings(box_px)))
    angles = np.pi * np.arange(N_ANGLES) / N_ANGLES - np.pi / 2
    x, y = (np.multiply.outer(radii, f(angles)).ravel() for f in (np.cos, np.sin))
    # By rounding, the first may lie below 0.
    x = np.maximum(x, 0)
    left, low = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    places, weights = [], []
    for right in (0, 1):
        for up in (0, 1):
            places.append((low + up) % edge * (edge // 2 + 1) + left + right)
            weights.append((1 - abs(x - left - right)) * (1 - abs(y - low - up)))
    return _PolarGrid(np.array(places), np.array(weights, np.float32))


@functools.lru_cache(maxsize=1)
def _angular_waves() -> Doubles:
    """Cosines, then sines, of each order over half a turn, (N_ANGLES, 2 * N_ORDERS)."""
    phases = 2 * np.pi * np.multiply.outer(np.arange(N_ANGLES), np.arange(N_ORDERS)) / N_ANGLES
    return np.concatenate([np.cos(phases), np.sin(phases)], axis=1) / N_ANGLES


# --- Steerable coefficients -----------------------------------------------------------------------


def _steerable_features(images: Any) -> Any:
    xp = array_namespace(images)
    basis = _find_basis(images.shape[-1])
    coefs = expand(to_half_planes(images), basis)
    is_round = xp.asarray(basis.orders == 0)
    return xp.where(is_round, coefs.real, abs(coefs)).astype(np.float32)


def _find_basis(box_px: int) -> SteerableBasis:
    """A basis of so many functions at most, of low frequencies."""
    band = 0.5 * min(1.0, (MOST_COEFS / COEFS_A_PIXEL) ** 0.5 / box_px)
    return steerable_basis(box_px, band=band)
