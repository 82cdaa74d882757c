"""Sparse coding of patches on one CPU core: the compiled twin of `pursuit_cuda`.

Orthogonal matching pursuit in the batch form of Rubinstein, Zibulevsky and Elad, "Efficient
implementation of the K-SVD algorithm using batch orthogonal matching pursuit", technical report
CS-2008-08, Technion (2008): residuals are never formed; the products of all atoms with the residual
follow from those with the patch, which one matrix product gives for many patches, and from the
products of the atoms with one another.

The chosen atoms are orthonormalised one after the other (a Cholesky factor that grows), and the
products of each with all atoms are kept. A step then subtracts one multiple of them, and the
squared norm of the residual falls by the square of that multiple.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.kernels.lanes_cpu import (
    N_LANES,
    broadcast,
    compiled,
    lanes_at_most,
    load,
    maximum,
    multiply_add,
    store,
    total,
    trailing_zeros,
)

__all__ = ["LEAST_NEW", "code_patches", "denoise_images", "improve_atoms"]

Floats = npt.NDArray[np.float32]

# Products of so many patches with all atoms stay in the second-level cache.
PATCHES_AT_ONCE = 512
# An atom whose squared distance from the span of the chosen ones is less adds nothing but rounding.
LEAST_NEW = 1e-4


def code_patches(
    patches: Floats, atoms: Floats, *, tolerance: float, max_atoms: int
) -> tuple[npt.NDArray[np.int16], Floats, npt.NDArray[np.int32]]:
    """Approximate each patch by few atoms: orthogonal matching pursuit.

    Each step takes the atom whose product with the residual has the largest square (the first of
    equals), and fits all chosen atoms anew.

    Parameters
    ----------
    patches
        One a row, (m, d) float32.
    atoms
        One a row, of unit norm, (k, d) float32.
    tolerance
        A patch is done when the squared norm of its residual is at most this.
    max_atoms
        Most atoms of a patch.

    Returns
    -------
    indices : (m, max_atoms) int16
        Atoms in the order of their choice; zeros beyond the count.
    values : (m, max_atoms) float32
        Their coefficients; zeros beyond the count.
    counts : (m,) int32
        How many there are.

    Examples
    --------
    >>> atoms = np.eye(4, dtype=np.float32)
    >>> patches = np.array([[0, 3, 0.1, -2]], np.float32)
    >>> indices, values, counts = code_patches(patches, atoms, tolerance=0.5, max_atoms=4)
    >>> indices[0, : counts[0]].tolist(), values[0, : counts[0]].tolist()
    ([1, 3], [3.0, -2.0])
    """
    n_patches = len(patches)
    patches, atoms = _in_lanes(patches), _in_lanes(atoms)
    transposed, gram = _products(atoms)
    indices = np.zeros((n_patches, max_atoms), np.int16)
    values = np.zeros((n_patches, max_atoms), np.float32)
    counts = np.zeros(n_patches, np.int32)
    scratch = _scratch(max_atoms, gram)
    for start in range(0, n_patches, PATCHES_AT_ONCE):
        part = slice(start, start + PATCHES_AT_ONCE)
        products = patches[part] @ transposed
        code_band(
            patches[part],
            products,
            gram,
            np.float32(tolerance),
            scratch,
            indices[part],
            values[part],
            counts[part],
        )
    return indices, values, counts


def denoise_images(
    images: Floats, atoms: Floats, *, gain: float, blend: float, max_atoms: int
) -> Floats:
    """Denoise images by sparse approximations of all their overlapping patches.

    The mean of each patch is taken away, the rest is coded until the norm of the residual is at
    most ``gain * sqrt(d)``, and the mean is added again. A pixel is the average of what all patches
    say of it and, with the weight ``blend``, of its noisy value.

    Parameters
    ----------
    images
        Images of unit noise, (n, h, w) float32; at least as large as a patch.
    atoms
        Square patches, one a row, of unit norm, (k, d) float32.
    gain
        Allowed root mean square of the residual, in units of the noise.
    blend
        Weight of the noisy image; each patch has weight 1.
    max_atoms
        Most atoms of a patch.

    Returns
    -------
    (n, h, w) float32

    Notes
    -----
    Elad and Aharon, "Image denoising via sparse and redundant representations over learned
    dictionaries", IEEE Transactions on Image Processing 15 (2006) 3736-3745, section III.

    Examples
    --------
    >>> noisy = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32)
    >>> flat = denoise_images(noisy, np.eye(64, dtype="f4"), gain=4.0, blend=0.0, max_atoms=2)
    >>> bool(flat.std() < 0.2)
    True
    """
    patch_px = _side(atoms)
    tolerance = np.float32(gain**2 * atoms.shape[1])
    atoms = _in_lanes(atoms)
    transposed, gram = _products(atoms)
    scratch = _scratch(max_atoms, gram)
    return np.array(
        [
            _denoise_image(image, patch_px, atoms, transposed, gram, tolerance, blend, scratch)
            for image in np.ascontiguousarray(images, np.float32)
        ]
    ).reshape(images.shape)


def improve_atoms(
    patches: Floats,
    atoms: Floats,
    codes: tuple[npt.NDArray[np.int16], Floats, npt.NDArray[np.int32]],
    *,
    n_powers: int,
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Update the atoms one after the other, as K-SVD does, for codes that keep their atoms.

    An atom becomes the first left singular vector of what the patches that use it lack without it,
    found by power iteration from the atom as it was, and their coefficients the products with it.

    Parameters
    ----------
    patches, atoms
        As in `code_patches`.
    codes
        What it returned. The values are updated in place.
    n_powers
        Power iterations, at least 1: the approximate K-SVD of Rubinstein et al. 2008.

    Returns
    -------
    atoms : (k, d) float32
        New atoms of unit norm; those that no patch uses stay as they were.
    uses : (k,) int64
        How many patches use each.
    errors : (m,) float32
        Squared norms of what is left of the patches.
    """
    indices, values, counts = codes
    n_pixels = atoms.shape[1]
    patches, atoms = _in_lanes(patches), _in_lanes(atoms.copy())
    rest = np.empty_like(patches)
    subtract_codes(patches, atoms, indices, values, counts, rest)
    used = np.arange(indices.shape[1]) < counts[:, None]
    entries = np.flatnonzero(used)
    users = indices.ravel()[entries]
    order = np.argsort(users, kind="stable")
    uses = np.bincount(users, minlength=len(atoms))
    ends = np.cumsum(uses)
    sweep_atoms(rest, atoms, entries[order], ends, indices.shape[1], n_powers, values)
    errors = np.einsum("md,md->m", rest, rest)
    return atoms[:, :n_pixels], uses, errors


def _side(atoms: Floats) -> int:
    return round(atoms.shape[1] ** 0.5)  # type: ignore[no-any-return]


def _in_lanes(rows: Floats) -> Floats:
    """Rows that are filled up with zeros to whole vectors; those given, where they are."""
    length = -(-rows.shape[1] // N_LANES) * N_LANES
    if length == rows.shape[1]:
        return np.ascontiguousarray(rows, np.float32)
    result = np.zeros((len(rows), length), np.float32)
    result[:, : rows.shape[1]] = rows
    return result


def _products(atoms: Floats) -> tuple[Floats, Floats]:
    """Atoms as columns, and their products with one another; atoms of zero fill up vectors."""
    n_atoms = -(-len(atoms) // N_LANES) * N_LANES
    padded = np.zeros((n_atoms, atoms.shape[1]), np.float32)
    padded[: len(atoms)] = atoms
    exact = padded.astype(np.float64)
    gram = (exact @ exact.T).astype(np.float32)
    return np.ascontiguousarray(padded.T), gram


def _scratch(max_atoms: int, gram: Floats) -> tuple[Any, ...]:
    """Working memory of a pursuit: products of orthonormal atoms, their triangle, two rows."""
    return (
        np.zeros(max_atoms * len(gram), np.float32),
        np.zeros((max_atoms, max_atoms), np.float32),
        np.zeros(max_atoms, np.float32),
        np.zeros(N_LANES, np.float32),
    )


def _denoise_image(
    image: Floats,
    patch_px: int,
    atoms: Floats,
    transposed: Floats,
    gram: Floats,
    tolerance: np.float32,
    blend: float,
    scratch: tuple[Any, ...],
) -> Floats:
    """Denoise one image, some patches at a time; those that need no atoms pass by."""
    height, width = image.shape
    n_down, n_across = height - patch_px + 1, width - patch_px + 1
    patches = np.zeros((PATCHES_AT_ONCE, atoms.shape[1]), np.float32)
    products = np.empty((PATCHES_AT_ONCE, len(gram)), np.float32)
    means = np.empty(PATCHES_AT_ONCE, np.float32)
    corners = np.empty(PATCHES_AT_ONCE, np.int64)
    sums = np.zeros(height * width, np.float32)
    place = 0
    while place < n_down * n_across:
        place, count = gather_patches(
            image, patch_px, place, tolerance, patches, means, corners, sums
        )
        np.matmul(patches[:count], transposed, out=products[:count])
        add_estimates(
            patches[:count],
            products[:count],
            means,
            corners,
            patch_px,
            width,
            atoms,
            gram,
            tolerance,
            scratch,
            sums,
        )
    counts = np.outer(_cover(height, patch_px), _cover(width, patch_px))
    mixed: Floats = (sums.reshape(image.shape) + np.float32(blend) * image) / (counts + blend)
    return mixed.astype(np.float32)


def _cover(length: int, patch_px: int) -> Floats:
    """How many patches cover each pixel along one side of an image."""
    place = np.arange(length)
    last = np.minimum(place, length - patch_px)
    first = np.maximum(place - patch_px + 1, 0)
    return (last - first + 1).astype(np.float32)


@compiled
def gather_patches(
    image: Floats,
    patch_px: int,
    place: int,
    tolerance: np.float32,
    patches: Floats,
    means: Floats,
    corners: npt.NDArray[np.int64],
    sums: Floats,
) -> tuple[int, int]:
    """Collect the next patches that need atoms, less their means.

    Of those that need none the mean is added to the sums.

    Parameters
    ----------
    image
        Image, (h, w).
    patch_px
        Side of a patch.
    place
        Number of the first patch to look at.
    tolerance
        Squared norm up to which a patch needs no atoms.
    patches, means, corners
        Written: pixels, means, and offsets in the flat image.
    sums
        Flat image, added to.

    Returns
    -------
    place : int
        Number of the next patch.
    count : int
        How many were collected.
    """
    n_down = image.shape[0] - patch_px + 1
    width = image.shape[1]
    n_across = width - patch_px + 1
    n_pixels = patch_px * patch_px
    count = 0
    while place < n_down * n_across and count < len(patches):
        top, left = place // n_across, place % n_across
        patch = patches[count]
        for row in range(patch_px):
            for column in range(patch_px):
                patch[row * patch_px + column] = image[top + row, left + column]
        sum_of = broadcast(np.float32(0))
        for at in range(0, len(patch), N_LANES):
            sum_of = sum_of + load(patch, at)
        mean = total(sum_of) / np.float32(n_pixels)
        for at in range(n_pixels):
            patch[at] -= mean
        if squared_norm(patch) > tolerance:
            means[count] = mean
            corners[count] = top * width + left
            count += 1
        else:
            for row in range(patch_px):
                at = (top + row) * width + left
                for column in range(patch_px):
                    sums[at + column] += mean
        place += 1
    return place, count


@compiled
def squared_norm(row: Floats) -> np.float32:
    """Squared norm of a row of whole vectors."""
    energy = broadcast(np.float32(0))
    for at in range(0, len(row), N_LANES):
        value = load(row, at)
        energy = multiply_add(value, value, energy)
    return total(energy)  # type: ignore[no-any-return]


@compiled
def largest_square(products: Floats, lanes: Floats) -> np.float32:
    """Largest square in a row."""
    best = broadcast(np.float32(0))
    for at in range(0, len(products), N_LANES):
        value = load(products, at)
        best = maximum(best, value * value)
    store(lanes, 0, best)
    return lanes.max()  # type: ignore[no-any-return]


@compiled
def find_square(products: Floats, square: np.float32) -> int:
    """Place of the first value whose square is at least this; there must be one."""
    least = broadcast(square)
    at = 0
    while True:
        value = load(products, at)
        mask = lanes_at_most(least, value * value)
        if mask:
            return at + trailing_zeros(mask)  # type: ignore[no-any-return]
        at += N_LANES


@compiled
def pursue(
    products: Floats,
    energy: np.float32,
    gram: Floats,
    tolerance: np.float32,
    scratch: tuple[Any, ...],
    chosen: npt.NDArray[np.int16],
    coefficients: Floats,
) -> int:
    """Code one patch.

    Parameters
    ----------
    products
        Of the patch with each atom; overwritten by those of the residual.
    energy
        Squared norm of the patch.
    gram
        Products of the atoms with one another.
    tolerance
        Squared norm of the residual at which to stop.
    scratch
        From `_scratch`.
    chosen, coefficients
        Written: atoms and their coefficients.

    Returns
    -------
    int
        How many atoms were chosen.
    """
    basis, triangle, shares, lanes = scratch
    n_atoms = len(products)
    square = largest_square(products, lanes)
    count = 0
    while count < len(chosen) and energy > tolerance and square > 0:
        atom = find_square(products, square)
        new = gram[atom, atom]
        for i in range(count):
            overlap = basis[i * n_atoms + atom]
            triangle[count, i] = overlap
            new -= overlap * overlap
        if new < np.float32(LEAST_NEW):
            break
        length = np.sqrt(new)
        share = products[atom] / length
        square = take_step(gram[atom], count, triangle, basis, length, share, products, lanes)
        triangle[count, count] = length
        shares[count] = share
        chosen[count] = atom
        energy -= share * share
        count += 1
    for i in range(count - 1, -1, -1):
        rest = shares[i]
        for later in range(i + 1, count):
            rest -= coefficients[later] * triangle[later, i]
        coefficients[i] = rest / triangle[i, i]
    return count


@compiled
def take_step(
    row: Floats,
    count: int,
    triangle: Floats,
    basis: Floats,
    length: np.float32,
    share: np.float32,
    products: Floats,
    lanes: Floats,
) -> np.float32:
    """Orthonormalise an atom and take its share from all products; the largest square left."""
    n_atoms = len(products)
    scale = broadcast(np.float32(1) / length)
    minus = broadcast(-share)
    best = broadcast(np.float32(0))
    for at in range(0, n_atoms, N_LANES):
        value = load(row, at)
        for i in range(count):
            value = value - broadcast(triangle[count, i]) * load(basis, i * n_atoms + at)
        value = value * scale
        store(basis, count * n_atoms + at, value)
        left = multiply_add(minus, value, load(products, at))
        store(products, at, left)
        best = maximum(best, left * left)
    store(lanes, 0, best)
    return lanes.max()  # type: ignore[no-any-return]


@compiled
def code_band(
    patches: Floats,
    products: Floats,
    gram: Floats,
    tolerance: np.float32,
    scratch: tuple[Any, ...],
    indices: npt.NDArray[np.int16],
    values: Floats,
    counts: npt.NDArray[np.int32],
) -> None:
    """Code some patches; the arguments are those of `pursue`, a patch a row."""
    for i in range(len(patches)):
        energy = squared_norm(patches[i])
        counts[i] = pursue(products[i], energy, gram, tolerance, scratch, indices[i], values[i])


@compiled
def add_estimates(
    patches: Floats,
    products: Floats,
    means: Floats,
    corners: npt.NDArray[np.int64],
    patch_px: int,
    width: int,
    atoms: Floats,
    gram: Floats,
    tolerance: np.float32,
    scratch: tuple[Any, ...],
    sums: Floats,
) -> None:
    """Code some patches of an image and add what they say to the sums."""
    max_atoms = len(scratch[2])
    chosen = np.empty(max_atoms, np.int16)
    coefficients = np.empty(max_atoms, np.float32)
    estimate = np.empty(atoms.shape[1], np.float32)
    for i in range(len(patches)):
        energy = squared_norm(patches[i])
        count = pursue(products[i], energy, gram, tolerance, scratch, chosen, coefficients)
        for at in range(0, atoms.shape[1], N_LANES):
            value = broadcast(means[i])
            for k in range(count):
                value = multiply_add(broadcast(coefficients[k]), load(atoms[chosen[k]], at), value)
            store(estimate, at, value)
        for row in range(patch_px):
            at = corners[i] + row * width
            for column in range(patch_px):
                sums[at + column] += estimate[row * patch_px + column]


@compiled
def subtract_codes(
    patches: Floats,
    atoms: Floats,
    indices: npt.NDArray[np.int16],
    values: Floats,
    counts: npt.NDArray[np.int32],
    rest: Floats,
) -> None:
    """What the codes leave of the patches."""
    for i in range(len(patches)):
        for at in range(0, patches.shape[1], N_LANES):
            value = load(patches[i], at)
            for k in range(counts[i]):
                value = multiply_add(
                    broadcast(-values[i, k]), load(atoms[indices[i, k]], at), value
                )
            store(rest[i], at, value)


@compiled
def sweep_atoms(
    rest: Floats,
    atoms: Floats,
    entries: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    max_atoms: int,
    n_powers: int,
    values: Floats,
) -> None:
    """Update atoms, values and rest in place.

    Parameters
    ----------
    rest
        What the codes leave of the patches, (m, d).
    atoms
        Atoms, (k, d).
    entries
        Places in the flat values, sorted by atom.
    ends
        Where the entries of each atom end.
    max_atoms
        Values of each patch.
    n_powers
        Power iterations of each atom, at least 1.
    values
        Coefficients, (m, max_atoms).
    """
    flat = values.ravel()
    direction = np.empty(atoms.shape[1], np.float32)
    for k in range(len(atoms)):
        users = entries[ends[k - 1] if k else 0 : ends[k]]
        atom = atoms[k]
        direction[:] = 0
        for entry in users:
            lack = rest[entry // max_atoms]
            add_multiple(lack, flat[entry], atom)
            add_multiple(direction, flat[entry], lack)
        for power in range(n_powers):
            energy = squared_norm(direction)
            if energy > 0:
                atom[:] = direction / np.sqrt(energy)
            direction[:] = 0
            for entry in users:
                lack = rest[entry // max_atoms]
                share = dot(lack, atom)
                flat[entry] = share
                if power + 1 < n_powers:
                    add_multiple(direction, share, lack)
                else:
                    add_multiple(lack, -share, atom)


@compiled
def add_multiple(target: Floats, factor: np.float32, row: Floats) -> None:
    """Add a multiple of a row to another."""
    factors = broadcast(factor)
    for at in range(0, len(row), N_LANES):
        store(target, at, multiply_add(factors, load(row, at), load(target, at)))


@compiled
def dot(a: Floats, b: Floats) -> np.float32:
    """Product of two rows."""
    products = broadcast(np.float32(0))
    for at in range(0, len(a), N_LANES):
        products = multiply_add(load(a, at), load(b, at), products)
    return total(products)  # type: ignore[no-any-return]
