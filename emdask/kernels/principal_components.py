"""Principal components of images in a steerable basis: what a covariance says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.steerable import SteerableBasis, evaluate
from emdask.kernels.transforms import to_images

__all__ = ["draw_components", "leading", "pad_rows", "principal_components"]

Doubles = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.intp]

# Components of less variance than this part of the strongest one are nothing.
LEAST_VARIANCE = 1e-7


def principal_components(blocks: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
    """Return eigenvalues and -vectors of the covariance of each order, descending.

    Parameters
    ----------
    blocks
        For each order, float64 (n_q, n_q), symmetric.

    Returns
    -------
    variance : float64 array, shape (order, rank)
    vectors : float64 array, shape (order, n_q, rank)
        Where an order has fewer of them, and where all is nothing, 0.

    Examples
    --------
    >>> principal_components([np.diag([1.0, 4.0]), np.eye(1)])[0]
    array([[4., 1.],
           [1., 0.]])
    """
    pairs = [np.linalg.eigh(block) for block in blocks]
    variance = pad_rows([values[::-1] for values, _ in pairs])
    variance[variance < LEAST_VARIANCE * variance.max(initial=0)] = 0
    n_ranks = max(1, int((variance > 0).sum(axis=1).max(initial=0)))
    vectors = np.zeros((*variance.shape, n_ranks))
    for own, (_, columns) in zip(vectors, pairs, strict=True):
        own[: len(columns), : len(columns)] = columns[:, ::-1][:, :n_ranks]
    return variance[:, :n_ranks], vectors


def pad_rows(rows: Sequence[npt.NDArray[Any]], filler: float = 0.0) -> Doubles:
    """Stack rows of different lengths.

    Examples
    --------
    >>> pad_rows([np.ones(1), np.ones(2)])
    array([[1., 0.],
           [1., 1.]])
    """
    table = np.full((len(rows), max(map(len, rows))), filler)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = row
    return table


def leading(variance: Doubles, n_components: int) -> tuple[Numbers, Numbers]:
    """Return order and rank of the components of most variance, descending, without empty ones.

    Examples
    --------
    >>> leading(np.array([[4.0, 1.0], [2.0, 0.0]]), 2)
    (array([0, 1]), array([0, 0]))
    """
    order, rank = np.unravel_index(np.argsort(-variance, axis=None), variance.shape)
    n_shown = min(n_components, int((variance > 0).sum()))
    return order[:n_shown], rank[:n_shown]


def draw_components(
    basis: SteerableBasis, components: Sequence[tuple[int, Doubles]]
) -> npt.NDArray[np.float32]:
    """Return the images of coefficients.

    Parameters
    ----------
    basis
        Of the coefficients.
    components
        For each, its order and the coefficients of this order, zeros behind them.

    Returns
    -------
    float32 array, shape (n, box_px, box_px)
        Of the norm of the coefficients.

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> image = draw_components(steerable_basis(32), [(2, np.array([1.0]))])[0]
    >>> bool(abs(np.linalg.norm(image) - 1) < 0.02)
    True
    """
    coefs = np.zeros((len(components), len(basis.orders)), np.complex64)
    for own, (k, values) in zip(coefs, components, strict=True):
        place = basis.slices[k]
        n = min(len(values), place.stop - place.start)
        own[place][:n] = values[:n] / np.sqrt(2 if k else 1)
    drawn: npt.NDArray[np.float32] = to_images(evaluate(coefs, basis), (basis.box_px, basis.box_px))
    return drawn
