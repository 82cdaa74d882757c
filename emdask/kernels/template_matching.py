"""Normalised cross-correlation with many templates; one function for NumPy and CuPy arrays.

Hundreds of views of a particle, turned by all angles, look much alike at the size at which
particles are looked for: a few dozen components make them all. So an image is correlated with the
components, by as many Fourier transforms, and each template's correlation is a sum of theirs.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, fourier_namespace
from emdask.checks import require

__all__ = ["Templates", "prepare_templates", "score_templates"]

Array = npt.NDArray[Any]

# Share of the templates' squares that the components hold.
KEPT: Final = 0.95
# Contrast, as a share of the image's median one, below which there is nothing to compare with.
LEAST_CONTRAST: Final = 0.5
# Edge of the pieces that are transformed, at least, and of their pixels those multiplied at once.
TILE_PX: Final = 128
PIXELS_AT_ONCE: Final = 4096


class Templates(NamedTuple):
    """Templates as sums of a few components.

    Parameters
    ----------
    components : float32 array, shape (k, t, t)
        Orthonormal, centre at pixel ``t // 2``; 0 beyond the mask.
    weights : float32 array, shape (n, k)
        Of the components in each template, of norm 1.
    mask : float32 array, shape (t, t)
        1 in the disc that is compared, else 0.
    """

    components: Array
    weights: Array
    mask: Array


def prepare_templates(images: Array, radius_px: float) -> Templates:
    """Find the components of templates.

    Parameters
    ----------
    images : array, shape (n, h, w)
        Templates, centre at pixel (h // 2, w // 2); taken to be 0 beyond.
    radius_px
        Of the disc about the centre that is compared.

    Returns
    -------
    Templates
        Of mean 0 and norm 1 in the disc; those that are constant there are left out. The components
        hold 95 % of their squares.

    Raises
    ------
    ParameterError
        If all are constant.

    Examples
    --------
    >>> y, x = np.indices((11, 11)) - 5
    >>> templates = prepare_templates(np.stack([x, y, 3 * x + 1]), 4.0)
    >>> templates.components.shape, templates.weights.shape
    ((2, 9, 9), (3, 2))
    """
    reach = int(np.floor(radius_px))
    squares = np.square(np.arange(-reach, reach + 1))
    inside = squares[:, None] + squares <= radius_px**2
    values = _crop(np.asarray(images, np.float64), reach)[:, inside]
    values = values - values.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(values, axis=1)
    values = values[norms > 1e-6 * norms.max()]
    require(len(values) > 0, "template", "templates must not be constant")
    values = values / np.linalg.norm(values, axis=1, keepdims=True)
    _, strengths, axes = np.linalg.svd(values, full_matrices=False)
    held = np.cumsum(strengths**2) / np.sum(strengths**2)
    axes = axes[: int(np.searchsorted(held, KEPT)) + 1]
    weights = values @ axes.T
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    components = np.zeros((len(axes), *inside.shape))
    components[:, inside] = axes
    return Templates(*(a.astype(np.float32) for a in (components, weights, inside)))


def score_templates(image: Any, templates: Templates) -> Any:
    """Correlate an image with templates at each place and take the best.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        NumPy or CuPy; goes on mirrored beyond its borders.
    templates
        Of the host; see `prepare_templates`.

    Returns
    -------
    float32 array, shape (h, w)
        Largest of the correlation coefficients between the templates and the image around each
        pixel, within the disc of the mask; from -1 to 1. Where the image has less than half of its
        median contrast it counts as if it had that; 0 where it is constant.

    Notes
    -----
    Roseman, "Particle finding in electron micrographs using a fast local correlation algorithm",
    Ultramicroscopy 94 (2003) 225-236: local means and deviations are correlations with the mask. A
    tile of at least 128 px takes two forward Fourier transforms and one back for each component and
    for the mask twice. Memory does not grow with the image but by what is returned.

    Examples
    --------
    >>> y, x = np.indices((9, 9)) - 4
    >>> template = np.exp(-(x**2 + y**2) / 4.0)
    >>> image = np.zeros((64, 64), np.float32)
    >>> image[20:29, 30:39] = 7 * template
    >>> scores = score_templates(image + 3, prepare_templates(template[None], 4.0))
    >>> [int(i) for i in np.unravel_index(scores.argmax(), scores.shape)]
    [24, 34]
    """
    xp = array_namespace(image)
    best, contrast = (xp.empty(image.shape, np.float32) for _ in range(2))
    reach = templates.mask.shape[0] // 2
    edge = max(TILE_PX, 4 * templates.mask.shape[0])
    hop = edge - 2 * reach
    height, width = image.shape
    margins = [(reach, reach + -n % hop) for n in image.shape]
    padded = xp.pad(image - image.mean(), margins, mode="symmetric").astype(np.float32)
    bank = _Bank(templates, edge, xp)
    for i in range(0, height, hop):
        for j in range(0, width, hop):
            here = slice(i, min(i + hop, height)), slice(j, min(j + hop, width))
            size = here[0].stop - i, here[1].stop - j
            best[here], contrast[here] = bank.compare(padded[i : i + edge, j : j + edge], size)
    least = LEAST_CONTRAST * float(xp.median(contrast))
    if least <= 0:
        return xp.zeros_like(best)
    return best / xp.maximum(contrast, np.float32(least))


class _Bank:
    """Components, ready to be compared with tiles of one size."""

    def __init__(self, templates: Templates, edge: int, xp: Any) -> None:
        self.edge = edge
        self.weights = xp.asarray(templates.weights)
        self.n_inside = float(templates.mask.sum())
        shapes = xp.asarray(np.concatenate([templates.components, templates.mask[None]]))
        padded = xp.zeros((len(shapes), edge, edge), np.float32)
        padded[:, : shapes.shape[1], : shapes.shape[2]] = shapes
        self.shapes_ft = fourier_namespace(padded).rfft2(padded, axes=(1, 2)).conj()

    def compare(self, tile: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        """Return the largest product with a template, and the norm of the tile about its mean."""
        xp, fft = array_namespace(tile), fourier_namespace(tile)
        tiles_ft = fft.rfft2(xp.stack([tile, xp.square(tile)]), axes=(1, 2))
        # Last come the sums over the mask: of the tile, and of its squares.
        products_ft = xp.concatenate(
            [self.shapes_ft * tiles_ft[0], self.shapes_ft[-1:] * tiles_ft[1]]
        )
        products = fft.irfft2(products_ft, s=(self.edge, self.edge), axes=(1, 2))
        products = xp.ascontiguousarray(products[:, : size[0], : size[1]], dtype=np.float32)
        squared = products[-1] - xp.square(products[-2]) / np.float32(self.n_inside)
        contrast = xp.sqrt(xp.maximum(squared, np.float32(0)))
        flat = products[:-2].reshape(len(products) - 2, -1)
        best = xp.empty(flat.shape[1], np.float32)
        for start in range(0, len(best), PIXELS_AT_ONCE):
            part = slice(start, start + PIXELS_AT_ONCE)
            best[part] = (self.weights @ flat[:, part]).max(axis=0)
        return best.reshape(size), contrast


def _crop(images: Array, reach: int) -> Array:
    """Return the square of that reach about the centre of images, 0 where they are smaller."""
    padded = np.pad(images, [(0, 0), (reach, reach + 1), (reach, reach + 1)])
    rows, columns = (n // 2 for n in images.shape[1:])
    edge = 2 * reach + 1
    return padded[:, rows : rows + edge, columns : columns + edge]
