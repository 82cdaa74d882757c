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
    border = [(n - 8) % 3 for n in image.shape]
    mean = image.mean()
    padded = np.pad((image - mean) / sigma, [(b, b) for b in border], mode="symmetric")
    basic = estimate(padded, None, profile)
    final = estimate(padded, basic, profile)
    (top, left), (h, w) = border, image.shape
    return sigma * final[top : top + h, left : left + w] + mean


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
