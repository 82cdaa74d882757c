"""Micrographs brought to one size of particle, a flat background and one scale of grey levels.

What picks particles then works alike on any camera, pixel size and kind of grey levels; one
function for NumPy and CuPy arrays.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from emdask.backend import array_namespace, fourier_namespace

__all__ = ["CONTRASTS", "STANDARD_PX", "Scale", "mend_edges", "resize", "standardise"]

# Diameter of a particle in the micrographs that the network scores.
STANDARD_PX: Final = 32.0
CONTRASTS: Final = ("dark", "light")
# Width of what counts as background, in diameters: standard deviation of the Gaussian.
BACKGROUND_WIDTH: Final = 1.5
# Deviations, robust ones, beyond which grey levels say nothing more: hot pixels as recorded, and
# crystals of ice on the standard image, which would bend the background around them.
RAW_LIMIT: Final = 10.0
LIMIT: Final = 5.0
# Deviations that stand out of the background, how much they count for in it, and how often it is
# found.
OUTSTANDING: Final = 4.0
LEAST_WEIGHT: Final = 0.05
N_PASSES: Final = 3
# Outermost lines that may be bad, and the ratio of deviations from which on they are.
EDGE_LINES: Final = 8
BAD_LINE: Final = 1.35
# Grey levels that robust measures are taken from, and pixels that are resized at once.
SAMPLE_PIXELS: Final = 1 << 18
BAND_PIXELS: Final = 1 << 21


# Share of an image from which on blocks of one value are no specimen, and their side: electrons
# that are rare leave single pixels at 0, but hardly blocks.
PADDED: Final = 0.2
PADDED_BLOCK_PX: Final = 16


class Scale(NamedTuple):
    """Pixels of a standard image for each pixel of the original, along x and y."""

    factor_x: float
    factor_y: float

    def to_original(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return points of the standard image in px of the original; pixel centres are integers.

        Examples
        --------
        >>> Scale(0.5, 0.5).to_original(0.0, 1.0)
        (0.5, 2.5)
        """
        return (x + 0.5) / self.factor_x - 0.5, (y + 0.5) / self.factor_y - 0.5

    def to_standard(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Inverse of `to_original`.

        Examples
        --------
        >>> Scale(0.5, 0.5).to_standard(0.5, 2.5)
        (0.0, 1.0)
        """
        return (x + 0.5) * self.factor_x - 0.5, (y + 0.5) * self.factor_y - 0.5


def standardise(
    image: Any, diameter_px: float, standard_px: float = STANDARD_PX, contrast: str = "dark"
) -> tuple[Any, Scale]:
    """Bring a micrograph to the standard: particles of one size, light, on flat ground, noise of 1.

    Parameters
    ----------
    image : array, shape (h, w)
        NumPy or CuPy, of any type; finite.
    diameter_px
        Diameter of a particle in px of the image.
    standard_px
        Diameter that it is to have.
    contrast
        "dark" where particles are darker than the ice, as recorded in underfocus, or "light".

    Returns
    -------
    standard : array, shape (h', w')
        float32, within -5 and 5; 0 where the image is constant, and where it is padded or masked by
        one value in a fifth of it and more.
    scale : Scale
        From px of the image to those of the standard image.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(100, 20, (90, 120))
    >>> standard, scale = standardise(image, diameter_px=48)
    >>> standard.shape, scale.factor_x
    ((60, 80), 0.6666666666666666)
    """
    height, width = image.shape
    factor = standard_px / diameter_px
    shape = (max(1, round(height * factor)), max(1, round(width * factor)))
    scale = Scale(shape[1] / width, shape[0] / height)
    image = mend_edges(image)
    padded = find_padding(image)
    middle, spread = _measure(image, padded)
    xp = array_namespace(image)
    if spread == 0:
        return xp.zeros(shape, np.float32), scale
    if padded is not None:
        image = xp.where(padded, np.float32(middle), image)
        padded = resize(padded, shape) > 0.5
    sign = -1 if contrast == "dark" else 1
    small = resize(image, shape, (middle - RAW_LIMIT * spread, middle + RAW_LIMIT * spread))
    small = sign * (small - np.float32(middle))
    return _flatten(small, BACKGROUND_WIDTH * standard_px, padded), scale


def find_padding(image: Any) -> Any | None:
    """Find what is of one value in large areas: padding, masks, and no specimen.

    Parameters
    ----------
    image : array, shape (h, w)
        NumPy or CuPy, of any type.

    Returns
    -------
    bool array, shape (h, w)
        Pixels of that value; None where its areas are less than a fifth of the image, or all.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(64, 64))
    >>> image[:32] = 7
    >>> int(find_padding(image).sum())
    2048
    """
    xp = array_namespace(image)
    # One value of more than a fifth of the pixels is two of the tenths: there is none in most.
    tenths = xp.percentile(_sample(image).astype(np.float32), xp.arange(0, 101, 10))
    if not bool((tenths[1:] == tenths[:-1]).any()):
        return None
    low, high = (_over_blocks(image, extreme) for extreme in ("min", "max"))
    values = xp.sort(low[low == high])
    if len(values) <= PADDED * low.size:
        return None
    padded = image == values[len(values) // 2]
    return None if bool(padded.all()) else padded


def _over_blocks(image: Any, extreme: str) -> Any:
    """Return the least or greatest value of each whole block."""
    n_rows, n_columns = (n // PADDED_BLOCK_PX for n in image.shape)
    strips = image[: n_rows * PADDED_BLOCK_PX].reshape(n_rows, PADDED_BLOCK_PX, image.shape[1])
    lines = getattr(strips, extreme)(axis=1)[:, : n_columns * PADDED_BLOCK_PX]
    return getattr(lines.reshape(n_rows, n_columns, PADDED_BLOCK_PX), extreme)(axis=2)


def mend_edges(image: Any) -> Any:
    """Replace what is not of the specimen in the outermost lines, by the mirrored lines inside.

    Cameras, sums of frames and filters leave a few lines that are noisier than others, or empty.

    Parameters
    ----------
    image : array, shape (h, w)
        NumPy or CuPy, of any type.

    Returns
    -------
    array, shape (h, w)
        The image itself where its outermost lines are like those inside.

    Examples
    --------
    >>> image = np.random.default_rng(0).normal(size=(64, 64))
    >>> mend_edges(image) is image
    True
    """
    mended = image
    for turn in range(4):
        n_bad = _count_bad_lines(_turn(image, turn))
        if n_bad:
            mended = mended.copy() if mended is image else mended
            view = _turn(mended, turn)
            view[:n_bad] = view[n_bad : 2 * n_bad][::-1]
    return mended


def _turn(image: Any, turn: int) -> Any:
    """Return a view whose first lines are those along one of the four edges."""
    return (image, image[::-1], image.T, image.T[::-1])[turn]


def _count_bad_lines(image: Any) -> int:
    """Return how many of the first lines of an image deviate from their mean unlike the next."""
    if min(image.shape) < 8 * EDGE_LINES:
        return 0
    lines = image[: 4 * EDGE_LINES].astype(np.float32)
    spreads = [float(spread) for spread in lines.std(axis=1)]
    usual = float(np.median(spreads[EDGE_LINES:]))
    bad = [not usual / BAD_LINE <= spread <= usual * BAD_LINE for spread in spreads[:EDGE_LINES]]
    return EDGE_LINES - bad[::-1].index(True) if any(bad) else 0


def resize(image: Any, shape: tuple[int, int], limits: tuple[float, float] | None = None) -> Any:
    """Resize an image by its cosine transform, which mirrors it at its borders.

    Parameters
    ----------
    image : array, shape (h, w)
        NumPy or CuPy, of any type.
    shape
        Height and width to be had.
    limits
        Least and greatest grey level; those beyond are taken for these.

    Returns
    -------
    array, shape ``shape``
        float32, of the same grey levels; frequencies that it has no room for are left out, so that
        white noise stays white.

    Examples
    --------
    >>> resize(np.full((5, 8), 3), (2, 3)).round(5).tolist()
    [[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]]
    """
    narrow = _resize_rows(image, shape[1], limits)
    return array_namespace(image).ascontiguousarray(_resize_rows(narrow.T, shape[0], None).T)


def _resize_rows(image: Any, length: int, limits: tuple[float, float] | None) -> Any:
    """Resize along the last axis, band by band: the whole image is never held as float32."""
    xp, fourier = array_namespace(image), fourier_namespace(image)
    height, width = image.shape
    kept = min(length, width)
    gain = np.float32(np.sqrt(length / width))
    result = xp.empty((height, length), np.float32)
    n_rows = max(1, BAND_PIXELS // max(width, length))
    for start in range(0, height, n_rows):
        band = xp.ascontiguousarray(image[start : start + n_rows], dtype=np.float32)
        if limits is not None:
            band = band.clip(*map(np.float32, limits))
        frequencies = xp.zeros((len(band), length), np.float32)
        frequencies[:, :kept] = fourier.dct(band, norm="ortho", axis=-1)[:, :kept] * gain
        result[start : start + n_rows] = fourier.idct(frequencies, norm="ortho", axis=-1)
    return result


def _flatten(image: Any, width_px: float, padded: Any | None) -> Any:
    """Take the background from an image and divide by the deviation of the rest.

    The background is a weighted mean, in which what stands out counts for little the next time:
    else a lump of ice would leave a trench around it. All of the film stands out, and so has a
    background after all. What is padded counts as little, and becomes 0.
    """
    xp = array_namespace(image)
    weights = xp.ones(image.shape, np.float32)
    if padded is not None:
        weights[padded] = LEAST_WEIGHT
    rest = image
    for _ in range(N_PASSES):
        rest = rest - _blur(rest * weights, width_px) / _blur(weights, width_px)
        middle, spread = _measure(rest, padded)
        if spread == 0:
            return xp.zeros(image.shape, np.float32)
        rest = ((rest - np.float32(middle)) / np.float32(spread)).clip(-LIMIT, LIMIT)
        weights = xp.where(abs(rest) < OUTSTANDING, np.float32(1), np.float32(LEAST_WEIGHT))
        if padded is not None:
            rest[padded], weights[padded] = 0, LEAST_WEIGHT
    return rest.astype(np.float32, copy=False)


def _blur(image: Any, width_px: float) -> Any:
    """Blur an image by a Gaussian, mirrored at its borders.

    What is so wide is known from few pixels: of an image four times smaller, if it can be.
    """
    height, width = image.shape
    coarse = min(4, height, width)
    small = resize(image, (-(-height // coarse), -(-width // coarse)))
    xp, fourier = array_namespace(image), fourier_namespace(image)
    for _ in range(2):
        length = small.shape[1]
        cycles = xp.arange(length, dtype=np.float32) / (2 * length * coarse)
        gain = xp.exp(-2 * (np.pi * width_px * cycles) ** 2).astype(np.float32)
        frequencies = fourier.dct(small, norm="ortho", axis=-1) * gain
        small = xp.ascontiguousarray(fourier.idct(frequencies, norm="ortho", axis=-1).T)
    return resize(small, (height, width))


def _measure(image: Any, padded: Any | None) -> tuple[float, float]:
    """Return the median of an image and its deviation, by the quantiles of a normal one."""
    xp = array_namespace(image)
    sample = _sample(image).astype(np.float32)
    if padded is not None:
        sample = sample[~_sample(padded)]
        if not sample.size:
            return 0.0, 0.0
    low, middle, high = (float(q) for q in xp.percentile(sample, xp.asarray([15.87, 50, 84.13])))
    # Counts of electrons may be 0 almost everywhere.
    return middle, (high - low) / 2 or float(sample.std())


def _sample(image: Any) -> Any:
    """Return a view of some pixels of an image, evenly from all over it."""
    step = max(1, round((image.size / SAMPLE_PIXELS) ** 0.5))
    return image[::step, ::step]
