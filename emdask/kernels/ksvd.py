"""K-SVD, told once for all processors: how a dictionary starts and learns, and how scales combine.

Aharon, Elad and Bruckstein, "K-SVD: an algorithm for designing overcomplete dictionaries for sparse
representation", IEEE Transactions on Signal Processing 54 (2006) 4311-4322; for denoising Elad and
Aharon, "Image denoising via sparse and redundant representations over learned dictionaries", IEEE
Transactions on Image Processing 15 (2006) 3736-3745.

Dictionaries are learnt on the host, by `pursuit_cpu`; images are denoised by a twin's
`denoise_images`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.pursuit_cpu import code_patches, improve_atoms
from emdask.kernels.scales import double, halve, has_coarser_scale, merge_scales

__all__ = [
    "MOST_ATOMS_IN_USE",
    "cosine_atoms",
    "denoise_unit_noise",
    "learn_atoms",
    "list_scales",
    "replace_atoms",
]

Floats = npt.NDArray[np.float32]
Array = Any

# Allowed root mean square of what is left of a patch, in units of the noise: while learning (the C
# of Elad and Aharon), in images, and in what coarser scales leave of images, which is mostly noise.
LEARN_GAIN = 1.15
CODE_GAIN = 1.1
REFINE_GAIN = 1.25
# Weight of the noisy image beside patches of weight 1: the lambda of Elad and Aharon, who took
# 30 / sigma for grey levels of 0 to 255.
BLEND = 0.3
MOST_ATOMS_IN_USE = 32
# One iteration is the approximate K-SVD; more than two gain nothing.
N_POWERS = 2
# Atoms that so few patches use, or that are so near to another one, are replaced.
FEWEST_USES = 3
LARGEST_PRODUCT = 0.99
# Fewer patches for each atom, and atoms learn the noise of their patches: the dictionary is smaller
# then, and below the fewest atoms cosines are better.
PATCHES_PER_ATOM = 16
FEWEST_ATOMS = 24
# A coarser scale has at least so many patches side by side. With fewer than enough its estimate is
# poor, but does for one half.
LEAST_PATCHES_ACROSS = 2
ENOUGH_PATCHES_ACROSS = 4


def cosine_atoms(n_atoms: int, patch_px: int) -> Floats:
    """Overcomplete cosine transform: products of cosines of ``ceil(sqrt(n_atoms))`` frequencies.

    Parameters
    ----------
    n_atoms
        How many atoms; of the products the first, coarse ones first, are taken.
    patch_px
        Side of a patch, px.

    Returns
    -------
    (n_atoms, patch_px**2) float32
        Of unit norm, and of zero mean but for the first.

    Examples
    --------
    >>> atoms = cosine_atoms(4, 2)
    >>> bool(np.allclose(atoms @ atoms.T, np.eye(4), atol=1e-6))
    True
    """
    n_frequencies = math.isqrt(n_atoms - 1) + 1
    orders = np.arange(n_frequencies)
    waves = np.cos(np.pi / n_frequencies * orders[:, None] * (np.arange(patch_px) + 0.5))
    waves[1:] -= waves[1:].mean(axis=1, keepdims=True)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    coarseness = np.add.outer(orders, orders).ravel()
    chosen = np.sort(np.argsort(coarseness, kind="stable")[:n_atoms])
    atoms: Floats = np.kron(waves, waves)[chosen].astype(np.float32)
    return atoms


def learn_atoms(patches: Floats, *, n_atoms: int, patch_px: int, n_iterations: int) -> Floats:
    """Learn a dictionary from noisy patches.

    Parameters
    ----------
    patches
        Square patches of unit noise, one a row, (m, patch_px**2). Their means are taken away; those
        that are then no more than noise teach nothing.
    n_atoms
        Size of the dictionary, where there are enough patches.
    patch_px
        Side of a patch, px.
    n_iterations
        How often all patches are coded and all atoms updated.

    Returns
    -------
    (n_atoms, patch_px**2) float32
        Atoms of unit norm; zeros beyond one atom for `PATCHES_PER_ATOM` patches that teach.

    Examples
    --------
    >>> learn_atoms(np.zeros((0, 16)), n_atoms=25, patch_px=4, n_iterations=10).shape
    (25, 16)
    """
    patches = patches - patches.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    tolerance = LEARN_GAIN**2 * patch_px**2
    patches = patches[np.einsum("md,md->m", patches, patches) > tolerance]
    n_learnt = min(n_atoms, len(patches) // PATCHES_PER_ATOM)
    if n_learnt < min(n_atoms, FEWEST_ATOMS) or n_iterations == 0:
        return cosine_atoms(n_atoms, patch_px)
    atoms = cosine_atoms(n_learnt, patch_px)
    for _ in range(n_iterations):
        codes = code_patches(patches, atoms, tolerance=tolerance, max_atoms=MOST_ATOMS_IN_USE)
        atoms, uses, errors = improve_atoms(patches, atoms, codes, n_powers=N_POWERS)
        atoms = replace_atoms(atoms, patches, uses, errors)
    return np.pad(atoms, [(0, n_atoms - n_learnt), (0, 0)])


def replace_atoms(
    atoms: Floats, patches: Floats, uses: npt.NDArray[np.int64], errors: Floats
) -> Floats:
    """Put the patches that are told worst in the place of atoms that are unused or there twice.

    Parameters
    ----------
    atoms
        Dictionary, (k, d).
    patches
        Patches, (m, d).
    uses
        How many patches use each atom, (k,). Of two that are alike the first stays.
    errors
        Squared norms of what is left of the patches, (m,).

    Returns
    -------
    (k, d) float32
        Atoms of unit norm.

    Examples
    --------
    >>> atoms, patches = np.eye(2, dtype="f4"), np.array([[3.0, 4.0]], "f4")
    >>> replace_atoms(atoms, patches, np.array([9, 0]), np.ones(1)).tolist()
    [[1.0, 0.0], [0.6000000238418579, 0.800000011920929]]
    """
    alike = np.tril(np.abs(atoms @ atoms.T), -1) > LARGEST_PRODUCT
    poor = np.flatnonzero((uses < FEWEST_USES) | alike.any(axis=1))[: len(patches)]
    if len(poor) == 0:
        return atoms
    worst = np.argsort(-errors, kind="stable")[: len(poor)]
    replaced = atoms.copy()
    replaced[poor] = patches[worst] / np.linalg.norm(patches[worst], axis=1, keepdims=True)
    return replaced


def list_scales(images: Array, n_scales: int, patch_px: int) -> list[Array]:
    """Images at up to so many resolutions, each half of the last, as long as there is room.

    Parameters
    ----------
    images
        Images of unit noise, (n, h, w).
    n_scales
        Most resolutions.
    patch_px
        Side of a patch, px.

    Returns
    -------
    list of (n, h, w) arrays
        The images themselves first.

    Examples
    --------
    >>> [scale.shape[1] for scale in list_scales(np.zeros((1, 128, 128)), 5, 8)]
    [128, 64, 32, 16]
    """
    scales = [images]
    room = LEAST_PATCHES_ACROSS * patch_px
    while len(scales) < n_scales and has_coarser_scale(scales[-1].shape[1:], room):
        scales.append(_each(halve, scales[-1]))
    return scales


def _each(function: Callable[..., Array], *stacks: Array) -> Array:
    """Transform images one by one, as NumPy's rounding depends on how many there are.

    Those of a card are transformed together.
    """
    if array_namespace(stacks[0]) is not np:
        return function(*stacks)
    return np.stack([function(*images) for images in zip(*stacks, strict=True)])


def denoise_unit_noise(
    images: Array,
    atoms: Floats,
    *,
    n_scales: int,
    denoise_images: Callable[..., Array],
) -> Array:
    """Denoise images from coarse to fine.

    The coarsest scale is denoised as Elad and Aharon do. At each finer scale the estimate of the
    coarser one is subtracted first: what is left is weak but at fine detail, and needs few atoms.
    Where the coarser one is but a few patches across, the result is averaged with an estimate of
    the finer scale by itself.

    Parameters
    ----------
    images
        Images of unit noise and zero mean, (n, h, w) float32.
    atoms
        A dictionary for each scale, the finest first, (scale, atom, pixel).
    n_scales
        Most scales; small images have fewer.
    denoise_images
        That of `pursuit_cpu` or `pursuit_cuda`.

    Returns
    -------
    (n, h, w) float32
    """
    patch_px = math.isqrt(atoms.shape[2])
    scales = list_scales(_enlarge(images, patch_px), n_scales, patch_px)
    code = functools.partial(denoise_images, blend=BLEND, max_atoms=MOST_ATOMS_IN_USE)
    last = len(scales) - 1
    estimate = code(scales[last], atoms[last], gain=CODE_GAIN)
    for noisy, dictionary in reversed(list(zip(scales[:last], atoms, strict=False))):
        is_small = min(estimate.shape[1:]) < ENOUGH_PATCHES_ACROSS * patch_px
        smooth = _each(functools.partial(double, shape=noisy.shape[1:]), estimate)
        detail = code(noisy - smooth, dictionary, gain=REFINE_GAIN)
        estimate = _each(merge_scales, smooth + detail, estimate)
        if is_small:
            estimate = (estimate + code(noisy, dictionary, gain=CODE_GAIN)) / 2
    return estimate[:, : images.shape[1], : images.shape[2]]


def _enlarge(images: Array, least_px: int) -> Array:
    """Mirror what is beyond the last row and column until a patch fits."""
    missing = [(0, max(0, least_px - n)) for n in images.shape[1:]]
    return array_namespace(images).pad(images, [(0, 0), *missing], mode="symmetric")
