"""Data-driven tight frames: how they are learnt, and how they denoise; for NumPy and CuPy arrays.

A frame is an orthogonal matrix whose rows, the atoms, are patches: the first is constant, the
others are learnt. All overlapping patches of an image are analysed, which makes a tight frame of
the image, and each coefficient is that of one atom at one place.

Cai, Ji, Shen and Ye, "Data-driven tight frame construction and image denoising", Applied and
Computational Harmonic Analysis 37 (2014) 89-105; for cryo-EM images Xian et al., "Data-driven
tight frame for cryo-EM image denoising and conformational classification", IEEE GlobalSIP 2018.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft

from emdask.backend import array_namespace
from emdask.kernels.scales import halve, has_coarser_scale, merge_scales

__all__ = [
    "LearntFrame",
    "cosine_frame",
    "denoise_images",
    "learn_frame",
    "threshold_images",
    "wiener_images",
]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Coefficients below this many deviations of the noise are set to zero: when a frame is learnt, and
# when an image is denoised.
LEARNING_THRESHOLD = 3.5
THRESHOLD = 2.7
# Wiener filters at the coarsest resolution, each guided by the last.
N_WIENER = 2
# Learning ends when the objective of a step falls by less than this share of what patches hold.
LEAST_PROGRESS = 1e-6
# The first frame counts as much as if each of its atoms had been found in so many patches, just
# above the threshold: an atom found in one or two would be their noise.
PRIOR_COEFFICIENTS = 4
# Coefficients of the patches in work at once: what a core's cache holds, and what fills a card.
COEFFICIENTS_AT_ONCE = 1 << 18
COEFFICIENTS_ON_CARD = 1 << 24


# --- Learning -------------------------------------------------------------------------------------


class LearntFrame(NamedTuple):
    """A frame and how learning went.

    Parameters
    ----------
    atoms
        Rows are atoms, pixels row by row; (d, d) float32. The first is constant.
    objective
        Before each step, per patch: what `learn_frame` minimises; falls.
    """

    atoms: Floats
    objective: Doubles


def cosine_frame(patch_px: int) -> Doubles:
    """Return the frame that learning starts from: the cosine transform of a patch.

    Parameters
    ----------
    patch_px
        Side of a patch, px.

    Returns
    -------
    (patch_px**2, patch_px**2) float64
        Rows are atoms; the first is constant.

    Examples
    --------
    >>> cosine_frame(2)
    array([[ 0.5,  0.5,  0.5,  0.5],
           [ 0.5, -0.5,  0.5, -0.5],
           [ 0.5,  0.5, -0.5, -0.5],
           [ 0.5, -0.5, -0.5,  0.5]])
    """
    wave = scipy.fft.dct(np.eye(patch_px), norm="ortho", axis=0)
    return np.asarray(np.kron(wave, wave))


def learn_frame(patches: Floats, *, threshold: float, n_iterations: int) -> LearntFrame:
    """Learn the frame in which patches are sparse.

    Minimises ``sum |g - D v|^2 + t^2 |v|_0 + c t^2 |D - D_0|^2`` over the sparse coefficients v of
    each patch g and the orthogonal D, in turn: v are the coefficients above the threshold t, D
    follows from the singular vectors of ``sum g v^T + c t^2 D_0``, where D_0 is the cosine frame
    and c is `PRIOR_COEFFICIENTS`. Steps are prolonged as in Nesterov's method; if that raises the
    objective, the next step starts from the last frame itself.

    Parameters
    ----------
    patches
        In units of the noise, (m, d), d a square.
    threshold
        Least size of a coefficient that is kept, in units of the noise.
    n_iterations
        Most steps; ends before when progress ends.

    Returns
    -------
    LearntFrame

    Notes
    -----
    Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k^2)",
    Soviet Mathematics Doklady 27 (1983) 372-376.

    Examples
    --------
    >>> patches = np.random.default_rng(0).normal(size=(50, 16)).astype("f4")
    >>> atoms = learn_frame(patches, threshold=2.0, n_iterations=5).atoms
    >>> bool(np.allclose(atoms @ atoms.T, np.eye(16), atol=1e-5))
    True
    """
    start = cosine_frame(math.isqrt(patches.shape[1]))
    # Without their means patches have one coordinate less, and no atom can leave that space.
    signals = patches @ start[1:].T.astype(np.float32)
    power = float(np.einsum("ij,ij->", signals, signals, dtype=np.float64))
    turn, objective = np.eye(len(start) - 1), [np.inf]
    ahead, momentum = turn, 0
    for _ in range(n_iterations):
        value, moments = _take_step(signals, ahead, threshold, power)
        if value > objective[-1] and momentum:
            ahead, momentum = turn, 0
            value, moments = _take_step(signals, ahead, threshold, power)
        progress = objective[-1] - value
        # At the end rounding may raise it.
        objective.append(min(value, objective[-1]))
        if power == 0 or progress <= LEAST_PROGRESS * power:
            break
        last, turn = turn, nearest_rotation(moments)
        ahead = nearest_rotation(turn + momentum / (momentum + 3) * (turn - last))
        momentum += 1
    atoms = np.concatenate([start[:1], turn @ start[1:]])
    return LearntFrame(atoms.astype(np.float32), np.array(objective[1:]) / max(1, len(signals)))


def nearest_rotation(matrix: Doubles) -> Doubles:
    """Return the orthogonal matrix R of the largest trace of ``matrix @ R.T``.

    Examples
    --------
    >>> nearest_rotation(np.diag([3.0, -2.0]))
    array([[ 1.,  0.],
           [ 0., -1.]])
    """
    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right)


def _take_step(
    signals: Floats, rotation: Doubles, threshold: float, power: float
) -> tuple[float, Doubles]:
    """Sparse coefficients in a frame: the objective, and what the next frame follows from."""
    coefficients = signals @ rotation.T.astype(np.float32)
    kept = np.abs(coefficients) >= threshold
    coefficients *= kept
    some = np.flatnonzero(kept.any(axis=1))
    coefficients = coefficients[some]
    explained = float(np.einsum("ij,ij->", coefficients, coefficients, dtype=np.float64))
    first, prior = np.eye(len(rotation)), PRIOR_COEFFICIENTS * threshold**2
    penalty = threshold**2 * np.count_nonzero(kept) + prior * np.sum((rotation - first) ** 2)
    return power - explained + penalty, coefficients.T @ signals[some] + prior * first


# --- Denoising ------------------------------------------------------------------------------------


def denoise_images(
    noisy: Any, frames: Any, *, detail_threshold: float = THRESHOLD, strength: float = 1.0
) -> Any:
    """Denoise images at several resolutions, from coarse to fine.

    At each one coefficients are thresholded, and that estimate is the pilot of a Wiener filter in
    the same frame; at the coarsest one the result is the pilot of a second one. At the finer ones
    the low frequencies of pilot and result are those of the coarser one.

    Parameters
    ----------
    noisy
        Images of unit noise, (n, h, w) float32.
    frames
        Frame of each resolution, the finest first, (n_scales, d, d) float32. Resolutions at which
        an image has less than two patches a side are left out.
    detail_threshold
        Least size of a coefficient of the pilots at the finer resolutions, in units of the noise
        that is assumed; at the coarsest one it is `THRESHOLD`.
    strength
        Noise that is assumed, relative to that of the images.

    Returns
    -------
    (n, h, w) float32
        An image does not depend on those beside it.

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(size=(1, 32, 32)).astype("f4")
    >>> frame = cosine_frame(8).astype("f4")
    >>> bool(denoise_images(noisy, frame[None]).std() < 0.3)
    True
    """
    xp = array_namespace(noisy)
    frames = xp.asarray(frames)
    if xp is not np:
        return _refine(noisy, frames, detail_threshold, strength)
    # One by one, an image stays in the processor's cache, and its rounding is its own.
    result = np.empty(noisy.shape, np.float32)
    for i in range(len(noisy)):
        result[i] = _refine(noisy[i : i + 1], frames, detail_threshold, strength)[0]
    return result


def _refine(noisy: Any, frames: Any, detail_threshold: float, strength: float) -> Any:
    """Denoise at half the resolution first, and then with its help."""
    atoms = frames[0]
    if len(frames) == 1 or not has_coarser_scale(noisy.shape[1:], math.isqrt(len(atoms))):
        estimate = threshold_images(noisy, atoms, threshold=THRESHOLD * strength)
        for _ in range(N_WIENER):
            estimate = wiener_images(noisy, estimate, atoms, noise=strength)
        return estimate
    coarse = _refine(halve(noisy), frames[1:], detail_threshold, strength)
    detail = threshold_images(noisy, atoms, threshold=detail_threshold * strength)
    pilots = merge_scales(detail, coarse)
    return merge_scales(wiener_images(noisy, pilots, atoms, noise=strength), coarse)


def threshold_images(noisy: Any, atoms: Any, *, threshold: float) -> Any:
    """Set small coefficients of all overlapping patches to zero.

    Patches are averaged with weights inverse to the number of coefficients that they keep, which is
    the variance of what noise is left in them. The constant atom keeps its coefficient.

    Parameters
    ----------
    noisy
        Images, (n, h, w) float32.
    atoms
        Frame, (d, d) float32; rows are atoms, the first is constant.
    threshold
        Least size of a coefficient that is kept, in grey levels.

    Returns
    -------
    (n, h, w) float32

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(1, 5, 9)).astype("f4")
    >>> same = threshold_images(image, cosine_frame(4).astype("f4"), threshold=0.0)
    >>> bool(np.allclose(same, image, atol=1e-5))
    True
    """
    return _filter(noisy, None, atoms, threshold)


def wiener_images(noisy: Any, pilots: Any, atoms: Any, *, noise: float) -> Any:
    """Scale the coefficients of all overlapping patches by the Wiener gain of a pilot estimate.

    The gain is ``p^2 / (p^2 + noise^2)`` where the pilot has the coefficient p; that of the
    constant atom is 1. Patches are averaged with weights inverse to the sum of the squared gains.

    Parameters
    ----------
    noisy
        Images, (n, h, w) float32.
    pilots
        Estimates of them, likewise.
    atoms
        Frame, (d, d) float32; rows are atoms, the first is constant.
    noise
        Standard deviation of the noise in grey levels, above 0.

    Returns
    -------
    (n, h, w) float32

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(1, 5, 9)).astype("f4")
    >>> same = wiener_images(image, image, cosine_frame(4).astype("f4"), noise=1e-9)
    >>> bool(np.allclose(same, image, atol=1e-5))
    True
    """
    return _filter(noisy, pilots, atoms, noise)


class _Layout(NamedTuple):
    """How images are cut into bands of equal size; it follows from the shape of an image alone.

    Parameters
    ----------
    shape
        Of the image.
    patch_px
        Side of a patch, px.
    width
        Of the mirrored image, px; also the number of places in a row, of which the last ones are
        none: patches there would go on in the next row.
    n_down, n_across
        Places of patches.
    band_rows
        Rows of places in a band.
    n_bands
        Bands of an image.
    batch
        Images whose bands are in work at once.
    """

    shape: tuple[int, int]
    patch_px: int
    width: int
    n_down: int
    n_across: int
    band_rows: int
    n_bands: int
    batch: int

    @property
    def band(self) -> int:
        """Places in a band."""
        return self.band_rows * self.width

    @property
    def length(self) -> int:
        """Pixels of a flat mirrored image, with what the last band reads beyond its end."""
        return (self.n_bands * self.band_rows + self.patch_px) * self.width


def _lay_out(shape: tuple[int, int], patch_px: int, at_once: int, *, one_by_one: bool) -> _Layout:
    n_down, n_across = (n + patch_px - 1 for n in shape)
    width = n_across + patch_px - 1
    places = max(1, at_once // patch_px**2)
    n_bands = -(-n_down // max(1, places // width))
    band_rows = -(-n_down // n_bands)
    batch = 1 if one_by_one or n_bands > 1 else max(1, places // (band_rows * width))
    return _Layout(shape, patch_px, width, n_down, n_across, band_rows, n_bands, batch)


def _filter(noisy: Any, pilots: Any | None, atoms: Any, level: float) -> Any:
    """Analyse, shrink and put back all overlapping patches of images that are mirrored at the edge.

    For images of one shape products of matrices always have the same number of rows and columns,
    one product an image, and sums are taken in the same order, so that an image does not depend on
    those beside it.
    """
    xp = array_namespace(noisy)
    at_once = COEFFICIENTS_AT_ONCE if xp is np else COEFFICIENTS_ON_CARD
    patch_px = math.isqrt(len(atoms))
    layout = _lay_out(noisy.shape[1:], patch_px, at_once, one_by_one=xp is np)
    size = layout.batch, len(atoms), layout.band
    work = [xp.empty(size, np.float32) for _ in range(3)]
    result = xp.empty(noisy.shape, np.float32)
    for start in range(0, len(noisy), layout.batch):
        part = slice(start, start + layout.batch)
        given = _mirror(noisy[part], layout)
        pilot = None if pilots is None else _mirror(pilots[part], layout)
        result[part] = _filter_batch(given, pilot, atoms, level, layout, work)[: len(noisy[part])]
    return result


def _mirror(images: Any, layout: _Layout) -> Any:
    """Mirror images at their edges: (n, h, w) -> (batch, length), with zeros to spare."""
    xp = array_namespace(images)
    margin = layout.patch_px - 1
    flat = xp.zeros((layout.batch, layout.length), np.float32)
    mirrored = xp.pad(images, ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
    flat[: len(images), : mirrored[0].size] = mirrored.reshape(len(images), -1)
    return flat


def _filter_batch(
    noisy: Any, pilot: Any | None, atoms: Any, level: float, layout: _Layout, work: list[Any]
) -> Any:
    """Filter flat images band by band: (batch, length) -> (batch, h, w)."""
    xp = array_namespace(noisy)
    patches, coefficients, gains = work
    sums, weights = xp.zeros(noisy.shape, np.float32), xp.zeros(noisy.shape, np.float32)
    inside = _inside(xp, layout)
    for number in range(layout.n_bands):
        first = number * layout.band
        if pilot is None:
            xp.matmul(atoms, _gather(noisy, first, layout, patches), out=coefficients)
            _threshold_gains(coefficients, level, gains)
        else:
            xp.matmul(atoms, _gather(pilot, first, layout, patches), out=gains)
            _wiener_gains(gains, level)
            xp.matmul(atoms, _gather(noisy, first, layout, patches), out=coefficients)
        coefficients *= gains
        # A gain of nothing but 0 and 1 is its own square.
        shares = inside / xp.multiply(gains, gains, out=patches).sum(axis=1)
        coefficients *= shares[:, None]
        xp.matmul(atoms.T, coefficients, out=patches)
        _scatter(patches, first, layout, sums)
        weights[:, first : first + layout.band] = shares
    return _crop(sums, layout) / _crop(_sum_over_patches(weights, layout), layout)


def _threshold_gains(coefficients: Any, threshold: float, gains: Any) -> None:
    xp = array_namespace(coefficients)
    xp.abs(coefficients, out=gains)
    xp.greater_equal(gains, np.float32(threshold), out=gains)
    gains[:, 0] = 1


def _wiener_gains(pilot: Any, noise: float) -> None:
    """Change the pilot's coefficients to gains, in place."""
    pilot *= pilot
    pilot /= pilot + np.float32(noise**2)
    pilot[:, 0] = 1


def _inside(xp: Any, layout: _Layout) -> Any:
    """1 where a band has a place for a patch, 0 where a row ends; (band,) float32.

    Rows below the last place need no 0: what they add lies below the image.
    """
    across = xp.arange(layout.width) < layout.n_across
    return xp.tile(across.astype(np.float32), layout.band_rows)


def _offsets(layout: _Layout) -> Iterator[int]:
    """Distance of each pixel of a patch from its corner in a flat image."""
    for row in range(layout.patch_px):
        for column in range(layout.patch_px):
            yield row * layout.width + column


def _gather(images: Any, first: int, layout: _Layout, patches: Any) -> Any:
    """Copy the patches of a band: (batch, length) -> (batch, d, band)."""
    for pixel, offset in enumerate(_offsets(layout)):
        start = first + offset
        patches[:, pixel] = images[:, start : start + layout.band]
    return patches


def _scatter(patches: Any, first: int, layout: _Layout, sums: Any) -> None:
    """Add the patches of a band to images, in an order that is the same for every pixel."""
    for pixel, offset in enumerate(_offsets(layout)):
        start = first + offset
        sums[:, start : start + layout.band] += patches[:, pixel]


def _sum_over_patches(weights: Any, layout: _Layout) -> Any:
    """Add up at each pixel the weights of the patches that hold it; flat images."""
    for step in (1, layout.width):
        total = weights.copy()
        for shift in range(step, layout.patch_px * step, step):
            total[:, shift:] += weights[:, :-shift]
        weights = total
    return weights


def _crop(flat: Any, layout: _Layout) -> Any:
    """Take the image out of flat mirrored images: (batch, length) -> (batch, h, w)."""
    margin = layout.patch_px - 1
    height, width = layout.shape
    rows = flat.reshape(layout.batch, -1, layout.width)
    return rows[:, margin : margin + height, margin : margin + width]
