"""Sparse coding of patches on one CUDA card: the twin of `pursuit_cpu`.

The loops are in ``pursuit.cu``, which is compiled when it is first needed: once per card, and kept
on disk by CuPy. Each patch is coded by itself and sums are taken in the order of the rows, so the
same images give the same bits, in any batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from emdask.blocks_cuda import share_bytes
from emdask.checks import sentence
from emdask.errors import DeviceError
from emdask.kernels.launch_cuda import MOST_IMAGES, Program, launch, most_shared_bytes
from emdask.kernels.pursuit_cpu import LEAST_NEW

__all__ = ["code_patches", "denoise_images"]

Array = Any
PROGRAM = Program("pursuit.cu", greedy=("code_patches", "estimate_patches"))

# Estimates of patches that wait to be averaged; what a card writes it soon reads again.
BAND_BYTES = 128 << 20

LANES = 32
# Of `pursuit.cu`: atoms that a lane can hold, and patches that wait for a warp.
ATOMS_A_LANE = (4, 8, 16)
MOST_ATOMS = LANES * ATOMS_A_LANE[-1]
MOST_IN_USE = LANES
MOST_WARPS = 4
QUEUE_FLOATS = 3 * (LANES + 7)
# Patches that a warp codes: fewer where there would not be work for all. Warps that a
# multiprocessor holds at once are 16; twice as many share out what takes long.
MOST_PATCHES_A_WARP = 128
WARPS_A_MULTIPROCESSOR = 32
TILE = (32, 8)

REMEDY = 'Use device="cpu".'


def code_patches(
    patches: Array, atoms: Array, *, tolerance: float, max_atoms: int
) -> tuple[Array, Array, Array]:
    """Approximate each patch by few atoms: orthogonal matching pursuit.

    Each step takes the atom whose product with the residual has the largest square (the first of
    equals), and fits all chosen atoms anew.

    Parameters
    ----------
    patches
        One a row, (m, d) float32; CuPy.
    atoms
        One a row, of unit norm, (k, d) float32; NumPy.
    tolerance
        A patch is done when the squared norm of its residual is at most this.
    max_atoms
        Most atoms of a patch, 1 to 32.

    Returns
    -------
    indices : (m, max_atoms) int16
        Atoms in the order of their choice; zeros beyond the count.
    values : (m, max_atoms) float32
        Their coefficients; zeros beyond the count.
    counts : (m,) int32
        How many there are.

    Raises
    ------
    DeviceError
        If there are more than 512 atoms, or patches are too large for shared memory.
    """
    import cupy

    dictionary = _upload_atoms(atoms)
    patches = cupy.ascontiguousarray(patches, np.float32)
    n, n_pixels = patches.shape
    indices = cupy.empty((n, max_atoms), np.int16)
    values = cupy.empty((n, max_atoms), np.float32)
    counts = cupy.empty(n, np.int32)
    if n:
        _launch_coder(
            "code_patches",
            (n, 1),
            dictionary,
            max_atoms,
            (patches, n, n_pixels),
            (np.float32(tolerance), max_atoms, np.float32(LEAST_NEW), indices, values, counts),
        )
    return indices, values, counts


def denoise_images(
    images: Array, atoms: Array, *, gain: float, blend: float, max_atoms: int
) -> Array:
    """Denoise images by sparse approximations of all their overlapping patches.

    The mean of each patch is taken away, the rest is coded until the norm of the residual is at
    most ``gain * sqrt(d)``, and the mean is added again. A pixel is the average of what all patches
    say of it and, with the weight ``blend``, of its noisy value.

    Up to 128 MiB hold estimates of patches, but at least those of one row of patches.

    Parameters
    ----------
    images
        Images of unit noise, (n, h, w) float32; at least as large as a patch; CuPy.
    atoms
        Square patches, one a row, of unit norm, (k, d) float32; NumPy.
    gain
        Allowed root mean square of the residual, in units of the noise.
    blend
        Weight of the noisy image; each patch has weight 1.
    max_atoms
        Most atoms of a patch, 1 to 32.

    Returns
    -------
    (n, h, w) float32

    Raises
    ------
    DeviceError
        If there are more than 512 atoms, or patches are too large for shared memory.

    Notes
    -----
    Elad and Aharon, "Image denoising via sparse and redundant representations over learned
    dictionaries", IEEE Transactions on Image Processing 15 (2006) 3736-3745, section III.
    """
    import cupy

    images = cupy.ascontiguousarray(images, np.float32)
    dictionary = _upload_atoms(atoms)
    limits = (np.float32(gain**2 * dictionary.n_pixels), max_atoms, np.float32(LEAST_NEW))
    plan = _plan_bands(images.shape, dictionary.side)
    estimates = cupy.empty((plan.n_images, plan.n_rows, plan.row_floats), np.float32)
    result = cupy.empty(images.shape, np.float32)
    for start in range(0, len(images), plan.n_images):
        part = images[start : start + plan.n_images]
        averages = result[start : start + plan.n_images]
        for first in range(0, plan.n_down, plan.n_rows):
            n_rows = min(plan.n_rows, plan.n_down - first)
            band = (*images.shape[1:], first, n_rows, dictionary.side)
            _launch_coder(
                "estimate_patches",
                (n_rows * plan.n_across, len(part)),
                dictionary,
                max_atoms,
                (part, *band),
                (*limits, estimates),
            )
            _launch_average(estimates, part, band, blend, averages)
    return result


class Dictionary(NamedTuple):
    """Atoms on the card, in the order in which lanes read them; zeros fill them up.

    Parameters
    ----------
    columns
        Atoms as columns, (d, quads, lanes, 4).
    gram
        Inner products of the atoms, (lanes * 4 * quads, quads, lanes, 4).
    atoms
        Atoms as rows, (lanes * 4 * quads, d).
    """

    columns: Array
    gram: Array
    atoms: Array

    @property
    def n_pixels(self) -> int:
        """Pixels of a patch."""
        return int(self.atoms.shape[1])

    @property
    def side(self) -> int:
        """Side of a patch, px."""
        return round(float(self.n_pixels**0.5))

    @property
    def atoms_a_lane(self) -> int:
        """Atoms that each lane holds."""
        return len(self.atoms) // LANES


def _upload_atoms(atoms: Array) -> Dictionary:
    """Put atoms on the card; their inner products are those of the CPU."""
    import cupy

    fitting = [number for number in ATOMS_A_LANE if LANES * number >= len(atoms)]
    if not fitting:
        rule = f"a card takes at most {MOST_ATOMS} atoms"
        raise DeviceError(sentence("ksvd", rule, len(atoms), REMEDY))
    padded = np.zeros((LANES * fitting[0], atoms.shape[1]), np.float32)
    padded[: len(atoms)] = atoms
    exact = padded.astype(np.float64)
    gram = (exact @ exact.T).astype(np.float32)
    columns, products = (cupy.asarray(_spread_over_lanes(rows)) for rows in (padded.T, gram))
    return Dictionary(columns, products, cupy.asarray(padded))


def _spread_over_lanes(rows: Array) -> Array:
    """Lanes hold atoms that follow each other, and read them as quads side by side."""
    quads = rows.reshape(len(rows), LANES, -1, 4).swapaxes(1, 2)
    return np.ascontiguousarray(quads)


class Bands(NamedTuple):
    """Patches that are coded at once: whole images, or rows of patches of one.

    Parameters
    ----------
    n_images, n_rows
        Most images, and most rows of patches of each.
    n_down, n_across
        Patches of an image.
    row_floats
        Pixels of a row of patches.
    """

    n_images: int
    n_rows: int
    n_down: int
    n_across: int
    row_floats: int


def _plan_bands(shape: tuple[int, int, int], side: int) -> Bands:
    n, h, w = shape
    n_down, n_across = h - side + 1, w - side + 1
    row_floats = n_across * side**2
    rows_at_once = max(1, min(BAND_BYTES, share_bytes()) // (4 * row_floats))
    at_once = max(1, min(rows_at_once // n_down, n, MOST_IMAGES))
    return Bands(at_once, min(rows_at_once, n_down), n_down, n_across, row_floats)


def _launch_coder(
    name: str,
    counts: tuple[int, int],
    dictionary: Dictionary,
    max_atoms: int,
    given: tuple[Any, ...],
    rest: tuple[Any, ...],
) -> None:
    """Launch a kernel that codes patches: so many of each of so many images."""
    n_patches, n_images = counts
    n_warps, warp_bytes = _fit_warps(dictionary, max_atoms)
    share = _patches_a_warp(n_patches * n_images)
    launch(
        PROGRAM,
        f"{name}_{dictionary.atoms_a_lane}",
        (-(-n_patches // (share * n_warps)), 1, n_images),
        (LANES, n_warps),
        (*given, *dictionary, *rest),
        n_warps * warp_bytes,
    )


def _patches_a_warp(n_patches: int) -> int:
    """How many of them each warp codes, one after another."""
    import cupy

    n_multiprocessors = int(cupy.cuda.Device().attributes["MultiProcessorCount"])
    share = n_patches // (WARPS_A_MULTIPROCESSOR * n_multiprocessors)
    return min(max(share, LANES), MOST_PATCHES_A_WARP)


def _fit_warps(dictionary: Dictionary, max_atoms: int) -> tuple[int, int]:
    """Warps of a thread block, and shared memory of each; see ``find_room`` of ``pursuit.cu``."""
    if not 1 <= max_atoms <= MOST_IN_USE:
        rule = f"max_atoms must lie in 1 to {MOST_IN_USE} on a card"
        raise DeviceError(sentence("ksvd", rule, max_atoms, REMEDY))
    together = 4 if dictionary.atoms_a_lane == ATOMS_A_LANE[-1] else 8
    floats = dictionary.n_pixels * together + max_atoms * (max_atoms | 1) + QUEUE_FLOATS
    warp_bytes = -(-floats // 4) * 16
    n_warps = min(MOST_WARPS, most_shared_bytes() // warp_bytes)
    if not n_warps:
        rule = f"patches of {dictionary.side} px need {warp_bytes:,} bytes of shared memory"
        raise DeviceError(sentence("ksvd", rule, remedy=REMEDY))
    return n_warps, warp_bytes


def _launch_average(
    estimates: Array, images: Array, band: tuple[int, ...], blend: float, averages: Array
) -> None:
    """Add the estimates of a band to the averages; one thread a pixel of the rows it reaches."""
    width, n_rows, side = band[1], band[3], band[4]
    launch(
        PROGRAM,
        "average_patches",
        (-(-width // TILE[0]), -(-(n_rows + side - 1) // TILE[1]), len(images)),
        TILE,
        (estimates, images, *band, np.float32(blend), averages),
    )
