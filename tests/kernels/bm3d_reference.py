"""BM3D as the paper writes it, in plain NumPy and float64: slow, for small images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.bm3d_plan import Profile

Floats = npt.NDArray[np.float64]


def denoise(image: Floats, sigma: float, profile: Profile) -> Floats:
    """Both steps of BM3D on one image."""
    mean = image.mean()
    return sigma * two_steps((image - mean) / sigma, profile) + mean


def estimate(noisy: Floats, basic: Floats | None, profile: Profile) -> Floats:
    """One step of BM3D, in units of the noise."""
    window = np.kaiser(8, profile.window_beta)
    window = np.outer(window, window)
    sums, weights = np.zeros((2, *noisy.shape))
    for y in range(0, noisy.shape[0] - 7, 3):
        for x in range(0, noisy.shape[1] - 7, 3):
            places = similar_places(noisy if basic is None else basic, y, x, basic is None, profile)
            group = np.array([noisy[i : i + 8, j : j + 8] for i, j in places])
            if basic is None:
                blocks, weight = shrink_hard(group, profile.threshold)
            else:
                pilot = np.array([basic[i : i + 8, j : j + 8] for i, j in places])
                blocks, weight = shrink_wiener(group, pilot)
            for (i, j), block in zip(places, blocks, strict=True):
                sums[i : i + 8, j : j + 8] += weight * window * block
                weights[i : i + 8, j : j + 8] += weight * window
    return sums / weights


def similar_places(
    guide: Floats, y: int, x: int, hard: bool, profile: Profile
) -> list[tuple[int, int]]:
    """Top left corners of the blocks most like the one at (y, x)."""
    limit = 64 * (profile.hard_distance if hard else profile.wiener_distance)
    radius = profile.window_px // 2
    reference = guide[y : y + 8, x : x + 8]
    found = []
    for i in range(max(0, y - radius), min(guide.shape[0] - 8, y + radius) + 1):
        for j in range(max(0, x - radius), min(guide.shape[1] - 8, x + radius) + 1):
            distance = np.sum((guide[i : i + 8, j : j + 8] - reference) ** 2)
            if distance <= limit:
                found.append((distance, (i - y) ** 2 + (j - x) ** 2, i - y, j - x))
    most = min(len(found), profile.hard_group if hard else profile.wiener_group)
    return [(y + dy, x + dx) for *_, dy, dx in sorted(found)[: 1 << int(math.log2(most))]]


def shrink_hard(group: Floats, threshold: float) -> tuple[Floats, float]:
    """Set small coefficients of the wavelet and Haar transform to zero."""
    wavelet, across = wavelet_1_5(), haar(len(group))
    spectrum = np.einsum("ab,bij,ki,lj->akl", across, group, wavelet, wavelet)
    kept = np.abs(spectrum) > threshold
    inverse = np.linalg.inv(wavelet)
    blocks = np.einsum("ab,akl,ik,jl->bij", across, spectrum * kept, inverse, inverse)
    return blocks, 1 / max(int(kept.sum()), 1)


def shrink_wiener(group: Floats, pilot: Floats) -> tuple[Floats, float]:
    """Scale coefficients of the cosine and Haar transform by the pilot's Wiener gain."""
    cosine, across = cosine_2(), haar(len(group))
    power = np.einsum("ab,bij,ki,lj->akl", across, pilot, cosine, cosine) ** 2
    gain = power / (power + 1)
    spectrum = gain * np.einsum("ab,bij,ki,lj->akl", across, group, cosine, cosine)
    blocks = np.einsum("ab,akl,ki,lj->bij", across, spectrum, cosine, cosine)
    return blocks, 1 / max(float(np.sum(gain**2)), 1e-3)


def cosine_2() -> Floats:
    """Orthonormal cosine transform, from its definition."""
    matrix = np.array([[math.cos(math.pi * k * (n + 0.5) / 8) for n in range(8)] for k in range(8)])
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def haar(n: int) -> Floats:
    """Orthonormal Haar transform, from the recursion of its definition."""
    if n == 1:
        return np.ones((1, 1))
    coarse = np.kron(haar(n // 2), [1.0, 1.0])
    return np.concatenate([coarse, np.kron(np.eye(n // 2), [1.0, -1.0])]) / math.sqrt(2)


def wavelet_1_5() -> Floats:
    """Periodic biorthogonal wavelet transform 1.5 of length 8, rows of unit norm."""
    low = np.array([3, -3, -22, 22, 128, 128, 22, -22, -3, 3])

    def level(values: Any) -> tuple[Any, Any]:
        n = len(values)
        smooth = [
            sum(low[t] * values[(2 * i + t - 4) % n] for t in range(10)) for i in range(n // 2)
        ]
        return smooth, [values[2 * i + 1] - values[2 * i] for i in range(n // 2)]

    columns = []
    for unit in np.eye(8):
        rest, details = unit, []
        while len(rest) > 1:
            rest, detail = level(rest)
            details = list(detail) + details
        columns.append([*rest, *details])
    matrix = np.array(columns, float).T
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def denoise_scales(image: Floats, profile: Profile) -> Floats:
    """Unit-noise image by way of half its resolution, and that by way of a quarter."""
    mean = image.mean()
    return refine(image - mean, profile, profile.n_scales) + mean


def refine(noisy: Floats, profile: Profile, n_scales: int) -> Floats:
    """Wiener step whose pilot is the estimate at half resolution, which keeps low frequencies."""
    half = [-(-n // 2) for n in noisy.shape]
    coarse_noisy = resize(noisy, half)
    coarse = two_steps(coarse_noisy, profile)
    if n_scales > 2:
        coarse = (coarse + refine(coarse_noisy, profile, n_scales - 1)) / 2
    fine = step(noisy, resize(coarse, noisy.shape), profile)
    kept = [round(0.8 * n) for n in half]
    low = resize(resize(fine, kept), noisy.shape)
    return fine - low + resize(resize(coarse, kept), noisy.shape)


def two_steps(noisy: Floats, profile: Profile) -> Floats:
    padded = mirror_border(noisy)
    basic = estimate(padded, None, profile)
    return cut_border(estimate(padded, basic, profile), noisy.shape)


def step(noisy: Floats, basic: Floats, profile: Profile) -> Floats:
    result = estimate(mirror_border(noisy), mirror_border(basic), profile)
    return cut_border(result, noisy.shape)


def mirror_border(image: Floats) -> Floats:
    """Add to both sides what makes the grid of blocks end with the image."""
    return np.pad(image, [((n - 8) % 3,) * 2 for n in image.shape], mode="symmetric")


def cut_border(image: Floats, shape: tuple[int, ...]) -> Floats:
    top, left = ((n - 8) % 3 for n in shape)
    return image[top : top + shape[0], left : left + shape[1]]


def resize(image: Floats, shape: Any) -> Floats:
    """Cut or fill up with zeros the orthonormal cosine frequencies."""
    for axis, n in enumerate(shape):
        common = min(n, image.shape[axis])
        change = cosine(n)[:common].T @ cosine(image.shape[axis])[:common]
        image = np.moveaxis(np.tensordot(change, image, (1, axis)), 0, axis)
    return image


def cosine(n: int) -> Floats:
    matrix = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
