"""Matching of polar amplitude spectra: which way a particle is seen, wherever it stands.

The amplitude \\|F(k, θ)\\| of an image's Fourier transform, the transform of its autocorrelation in
another form, does not change when the particle is shifted, and turns with it. Noise makes of an
amplitude ``s`` (in units of the noise, times the CTF ``c``) one that is distributed as Rice found:
relative to noise alone the log-likelihood of an amplitude ``a`` is ``log I0(2 a c s) - c² s²``. Of
rings of equal frequency the first term is, to a few per cent, a sum of one or two products
``f(a, c) g(s)`` (the singular value decomposition of a table). So an image is turned into f once,
references into g beforehand, and all turns of all references are matched by one product of matrices
for each angular order.

Amplitudes alone lack the phases between neighbours; amplitudes in between hold these, too. So terms
are taken a quarter closer than an image of this size has them: of images from elsewhere a quarter
fewer are taken for the view, at an SNR of 0.05.

Rice, "Mathematical analysis of random noise", Bell System Technical Journal 24 (1945) 46-156.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len
from scipy.ndimage import map_coordinates
from scipy.special import ive

from emdask.backend import array_namespace
from emdask.kernels.ctf import Optics
from emdask.kernels.references import even_priors
from emdask.kernels.row_products import PackedMatrix, move_matrix, multiply_rows, pack_matrix
from emdask.kernels.transforms import to_half_planes
from emdask.kernels.whitening import corner_mask

__all__ = ["Matches", "SpectrumBank", "crop_volume", "match_spectra", "prepare_spectra"]

Array = npt.NDArray[Any]

# Angles at which references are sampled over half a turn: amplitudes repeat after it.
N_ANGLES: Final = 64
# Images are zero-padded so many times before their spectra are interpolated.
PADDING: Final = 2
# Of the tables of log-likelihoods: amplitudes, references' amplitudes, CTFs, and products kept.
N_AMPLITUDES: Final = 96
N_REFERENCE: Final = 80
N_CTF: Final = 12
N_PRODUCTS: Final = 2
# Images are padded with zeros to so many times their edge.
FINER: Final = 1.25
# Amplitudes of noise alone hardly exceed it, in units of the noise.
BEYOND: Final = 4.0
# Components of an angular order that matter less than this share of the first are left out.
LEAST_COMPONENT: Final = 0.012
IMAGES_AT_ONCE: Final = {"numpy": 48, "cupy": 128}


class SpectrumBank(NamedTuple):
    """References as `match_spectra` wants them, on the host.

    Parameters
    ----------
    box_px
        Edge of the images.
    points : int64 array, shape (p,)
        Fourier terms of padded images that are compared: places in a flat half plane.
    frequency : float64 array, shape (d,)
        The frequencies, in cycles a pixel, that the terms have.
    radius_of, table_of : int64 arrays, shape (p,)
        Which frequency, and which table, each term has.
    whitening : float32 array, shape (p,)
        One over the amplitude of the noise.
    steps : float32 array, shape (t,)
        Of the amplitudes of each table.
    tables : float32 array, shape (q, t, N_AMPLITUDES, c)
        The functions f; one CTF alone if images have none.
    basis : PackedMatrix, shape (q p, 2 j)
        Real and imaginary parts of the components at the terms.
    components : tuple of PackedMatrix, shape (2 j, 2 v)
        For each angular order the references in the components, as real matrices.
    turns : float32 array, shape (angles, 2 m)
        From real and imaginary parts of the orders to turns.
    power : PackedMatrix, shape (d, v)
        Squared amplitudes of the references, times what the terms of a frequency count.
    group_ends : tuple of int
        Where each group of references ends.
    log_prior : float32 array, shape (v,)
        Of each reference within its group.
    """

    box_px: int
    points: Array
    frequency: Array
    radius_of: Array
    table_of: Array
    whitening: Array
    steps: Array
    tables: Array
    basis: PackedMatrix
    components: tuple[PackedMatrix, ...]
    turns: Array
    power: PackedMatrix
    group_ends: tuple[int, ...]
    log_prior: Array


class Matches(NamedTuple):
    """How images match groups of references.

    Parameters
    ----------
    log_likelihood : float32 array, shape (n, g)
        Of each group, over its references and their turns, up to a number of the image.
    best : int64 array, shape (n, g)
        The most likely reference of each group: its place among all.
    turn_deg : float32 array, shape (n, g)
        By which it is turned from the x towards the y axis; 180 degrees more look the same.
    """

    log_likelihood: Any
    best: Any
    turn_deg: Any


def crop_volume(volume: Array, box_px: int) -> Array:
    """Sample a volume more coarsely, so that projections keep their low frequencies.

    Parameters
    ----------
    volume : array, shape (n, n, n)
        Mass in each voxel, centre at voxel ``n // 2``.
    box_px
        New edge, even, at most n.

    Returns
    -------
    float32 array, shape (box_px, box_px, box_px)
        Terms of the Fourier transform below ``box_px / 2`` are those of the volume.

    Examples
    --------
    >>> volume = np.zeros((16, 16, 16))
    >>> volume[8, 8, 8] = 2.0
    >>> round(float(crop_volume(volume, 8).sum()), 5)
    2.0
    """
    n, half = len(volume), box_px // 2
    kept = np.r_[0:half, n - half + 1 : n]
    places = np.r_[0:half, box_px - half + 1 : box_px]
    terms = np.fft.rfftn(np.fft.ifftshift(volume))
    cropped = np.zeros((box_px, box_px, half + 1), np.complex128)
    cropped[np.ix_(places, places, range(half))] = terms[np.ix_(kept, kept, range(half))]
    small = np.fft.irfftn(cropped, (box_px,) * 3, axes=(0, 1, 2))
    return np.asarray(np.fft.fftshift(small), np.float32)


def prepare_spectra(
    references: Array,
    group_sizes: tuple[int, ...],
    *,
    box_px: int,
    band_px: int,
    noise_power: Array,
    with_ctf: bool = False,
) -> SpectrumBank:
    """Prepare references for `match_spectra`.

    Parameters
    ----------
    references : array, shape (v, m, m)
        Images of them in the grey levels that they have in the stack, group after group; of the
        same extent as the stack's images, sampled as coarsely as ``m > 2 band_px`` allows: the sum
        over the pixels must be the same (`crop_volume`).
    group_sizes
        Number of references in each group.
    box_px
        Edge of the stack's images.
    band_px
        Highest frequency that is compared, in Fourier pixels.
    noise_power : array, shape (band_px + 1,)
        Of the noise at whole Fourier pixels; white noise of variance v has v.
    with_ctf
        Whether images have CTFs.

    Returns
    -------
    SpectrumBank
    """
    points, radii, angles, radius_of = _find_points(box_px, band_px)
    amplitudes = _sample_rings(references, radii) / box_px
    noise = np.sqrt(np.interp(radii, np.arange(len(noise_power)), noise_power))
    amplitudes /= noise[:, None]
    rings = np.rint(radii).astype(np.int64) - 1
    steps, tables, values = _make_tables(amplitudes, rings, with_ctf)
    # Terms that lie closer are not independent: together they count as those of the images.
    share = (box_px / _fine_px(box_px)) ** 2
    tables *= share
    basis, components = _find_components(values, radius_of, angles)
    orders = np.arange(len(components))
    turning = 2 * np.pi * orders[:, None] * _turns(len(components)) / 180
    factors = np.where(orders == 0, 1, 2)[:, None, None]
    turns = (factors * np.stack([np.cos(turning), np.sin(turning)], 1)).reshape(2 * len(orders), -1)
    counts = share * np.bincount(radius_of)
    power = (np.square(amplitudes).mean(-1) * counts).T
    return SpectrumBank(
        box_px,
        points,
        radii / box_px,
        radius_of,
        rings[radius_of],
        (1 / (noise * box_px))[radius_of].astype(np.float32),
        steps.astype(np.float32),
        tables.astype(np.float32),
        pack_matrix(basis),
        tuple(pack_matrix(matrix) for matrix in components),
        np.ascontiguousarray(turns.T, np.float32),
        pack_matrix(power.astype(np.float32)),
        tuple(int(end) for end in np.cumsum(group_sizes)),
        even_priors(group_sizes),
    )


def match_spectra(images: Any, bank: SpectrumBank, optics: Optics | None = None) -> Matches:
    """Match images with references at all turns.

    Parameters
    ----------
    images : array, shape (n, box_px, box_px)
        NumPy or CuPy.
    bank
        Of `prepare_spectra`, with CTF if there are ``optics``.
    optics
        Of the images.

    Returns
    -------
    Matches
        Of the library of the images. What an image gives does not depend on those beside it.
    """
    xp = array_namespace(images)
    basis, power = (move_matrix(matrix, xp) for matrix in (bank.basis, bank.power))
    components = [move_matrix(matrix, xp) for matrix in bank.components]
    turns = xp.asarray(bank.turns)
    step = IMAGES_AT_ONCE[xp.__name__]
    found = []
    for start in range(0, len(images), step):
        some = slice(start, start + step)
        features, square = _features(images[some], bank, optics and optics[some], xp)
        norm = multiply_rows(square, power) - xp.asarray(bank.log_prior)
        orders = _expand_turns(multiply_rows(features, basis), components, xp)
        together = 1 if xp is np else len(orders)
        for first in range(0, len(orders), together):
            part = slice(first, first + together)
            found.append(_reduce(orders[part], norm[part], turns, bank, xp))
    if not found:
        empty = xp.empty((0, len(bank.group_ends)), np.float32)
        return Matches(empty, empty.astype(np.int64), empty)
    return Matches(*(xp.concatenate(parts) for parts in zip(*found, strict=True)))


def _turns(n_orders: int) -> Array:
    """Degrees over half a turn: three for each wave of the highest order."""
    n = 3 * max(n_orders - 1, 1)
    return np.arange(n) * 180 / n


# --- References -----------------------------------------------------------------------------------


def _find_points(box_px: int, band_px: int) -> tuple[Array, Array, Array, Array]:
    """Half of the Fourier disc but its centre: terms, radii there are, angles, which radius.

    Radii are Fourier pixels of the images before they are padded.
    """
    fine_px = _fine_px(box_px)
    x = np.arange(fine_px // 2 + 1)
    y = np.fft.fftfreq(fine_px, 1 / fine_px).astype(np.int64)
    squares = y[:, None] ** 2 + x**2
    # At x = 0 a term and its mate are both there, and so they are where x is Nyquist's.
    inside = (
        (squares <= (band_px * fine_px / box_px) ** 2)
        & (squares > 0)
        & ~((x == 0) & (y[:, None] < 0))
    )
    points = np.flatnonzero(inside)
    angles = np.arctan2(y[:, None], x)[inside]
    distinct, radius_of = np.unique(squares[inside], return_inverse=True)
    return points, np.sqrt(distinct) * box_px / fine_px, angles, radius_of.reshape(-1)


def _fine_px(box_px: int) -> int:
    """Edge of images that are padded with zeros, so that Fourier terms lie closer."""
    return 2 * int(next_fast_len(int(np.ceil(FINER * box_px / 2)), real=True))


def _sample_rings(images: Array, radii: Array) -> Array:
    """Amplitudes of the Fourier transforms over half circles; (v, radii, N_ANGLES)."""
    m = images.shape[-1]
    size = PADDING * m
    angle = np.arange(N_ANGLES) * np.pi / N_ANGLES
    reach = min(int(np.ceil(PADDING * radii.max())) + 4, size // 2 - 1)
    y, x = (reach + PADDING * radii[:, None] * turn(angle) for turn in (np.sin, np.cos))
    rows = np.arange(-reach, reach + 1)
    sampled = np.empty((len(images), len(radii), N_ANGLES), np.float32)
    for image, ring in zip(images, sampled, strict=True):
        power = np.square(np.abs(np.fft.fft2(image, (size, size))))[np.ix_(rows, rows)]
        ring[:] = np.sqrt(np.maximum(map_coordinates(power, [y, x], order=3), 0))
    return sampled


def _make_tables(amplitudes: Array, rings: Array, with_ctf: bool) -> tuple[Array, Array, Array]:
    """Functions f of each ring in tables, and the references in g; (q, v, radii, angles)."""
    n_rings = int(rings.max()) + 1
    n_ctf = N_CTF if with_ctf else 1
    ctf = np.linspace(0, 1, N_CTF) if with_ctf else np.ones(1)
    steps = np.empty(n_rings)
    tables = np.empty((N_PRODUCTS, n_rings, N_AMPLITUDES, n_ctf))
    values = np.empty((N_PRODUCTS, *amplitudes.shape), np.float32)
    for ring in range(n_rings):
        which = rings == ring
        own = amplitudes[:, which]
        reference = np.linspace(0, float(own.max()) + 1e-6, N_REFERENCE)
        shares = np.histogram(own, N_REFERENCE, (0, reference[-1]))[0] + 1e-3
        grid = np.linspace(0, reference[-1] + BEYOND, N_AMPLITUDES)
        steps[ring] = grid[1]
        f, g = _factorise(grid, ctf, reference, shares / shares.sum())
        tables[:, ring] = f
        for q in range(N_PRODUCTS):
            values[q][:, which] = np.interp(own, reference, g[q])
    return steps, tables, values


def _factorise(grid: Array, ctf: Array, reference: Array, shares: Array) -> tuple[Array, Array]:
    """Log-likelihoods as sums of products: f (q, amplitudes, CTFs) and g (q, references)."""
    arguments = 2 * grid[:, None, None] * ctf[:, None] * reference
    values = np.log(ive(0, arguments)) + arguments
    values -= (values @ shares)[..., None]
    # How often an amplitude is seen for a CTF: Rice's density over the references.
    density = -np.square(grid[:, None, None] - ctf[:, None] * reference)
    seen = (grid[:, None, None] * np.exp(density) * ive(0, arguments)) @ shares
    seen = seen / seen.sum(0) / len(ctf) + 1e-4 / seen.size
    root = np.sqrt(seen).reshape(-1, 1)
    weighted = root * values.reshape(root.size, -1) * np.sqrt(shares)
    left, strengths, right = np.linalg.svd(weighted, full_matrices=False)
    f = left[:, :N_PRODUCTS] / root * strengths[:N_PRODUCTS]
    g = right[:N_PRODUCTS] / np.sqrt(shares)
    return f.T.reshape(N_PRODUCTS, *seen.shape), g


def _find_components(
    values: Array, radius_of: Array, angles: Array
) -> tuple[Array, tuple[Array, ...]]:
    """Components of each angular order that references have in common, and these in them."""
    q, v, d, _ = values.shape
    n_orders = N_ANGLES // 4
    orders = np.fft.rfft(values, axis=-1)[..., :n_orders] / N_ANGLES
    orders = orders.transpose(3, 1, 0, 2).reshape(n_orders, v, q * d).astype(np.complex64)
    # A frequency counts as often as there are terms of it.
    root = np.tile(np.sqrt(np.bincount(radius_of, minlength=d)), q)
    columns, components, largest = [], [], 0.0
    for order, matrix in enumerate(orders):
        left, strengths, right = np.linalg.svd(matrix * root, full_matrices=False)
        largest = max(largest, float(strengths[0]))
        kept = int((strengths > LEAST_COMPONENT * largest).sum())
        if kept == 0:
            break
        radial = (right[:kept] / root).reshape(kept, q, d)[..., radius_of]
        waves = (radial * np.exp(2j * order * angles)).reshape(kept, -1).T
        columns.append(np.stack([waves.real, waves.imag], -1).reshape(len(waves), -1))
        components.append(_real_form(left[:, :kept] * strengths[:kept]))
    return np.concatenate(columns, 1).astype(np.float32), tuple(components)


def _real_form(matrix: Array) -> Array:
    """Matrix (v, j) as a real one of pairs: rows (re, im of j) to columns (re, then im, of v)."""
    re, im = matrix.real.T, matrix.imag.T
    pairs = np.stack([np.concatenate([re, im], 1), np.concatenate([-im, re], 1)], 1)
    return pairs.reshape(2 * len(re), -1).astype(np.float32)


# --- Images ---------------------------------------------------------------------------------------


def _features(images: Any, bank: SpectrumBank, optics: Optics | None, xp: Any) -> tuple[Any, Any]:
    """Functions f of the images' amplitudes, (n, q p); and their squared CTFs, (n, d)."""
    n = len(images)
    points = xp.asarray(bank.points)
    terms = to_half_planes(_pad(images, xp)).reshape(n, -1)[:, points]
    steps = xp.asarray(bank.steps)[xp.asarray(bank.table_of)]
    place = xp.abs(terms) * xp.asarray(bank.whitening) / steps
    last = np.float32(N_AMPLITUDES - 1.001)
    place = xp.minimum(place, last)
    low = place.astype(np.int32)
    part = place - low
    tables = xp.asarray(bank.tables)
    if optics is None:
        square = xp.ones((n, len(bank.frequency)), np.float32)
        ctf_low, ctf_part = xp.zeros((), np.int32), np.float32(0)
    else:
        square = xp.asarray(optics.power(bank.frequency), np.float32)
        square = xp.broadcast_to(square, (n, len(bank.frequency)))
        ctf = xp.sqrt(square)[:, xp.asarray(bank.radius_of)] * np.float32(N_CTF - 1)
        ctf = xp.minimum(ctf, np.float32(N_CTF - 1.001))
        ctf_low = ctf.astype(np.int32)
        ctf_part = ctf - ctf_low
    ring = xp.asarray(bank.table_of)
    features = xp.empty((n, len(tables), len(bank.points)), np.float32)
    for q, table in enumerate(tables):
        flat = table.reshape(-1)
        n_ctf = table.shape[-1]
        at = (ring * N_AMPLITUDES + low) * n_ctf + ctf_low
        below = flat[at] + part * (flat[at + n_ctf] - flat[at])
        if optics is not None:
            above = flat[at + 1] + part * (flat[at + n_ctf + 1] - flat[at + 1])
            below += ctf_part * (above - below)
        features[:, q] = below
    return features.reshape(n, -1), xp.ascontiguousarray(square)


def _pad(images: Any, xp: Any) -> Any:
    """Pad images, less the level of their corners, with zeros."""
    n, box_px, _ = images.shape
    images = images.astype(np.float32, copy=False)
    corners = xp.asarray(np.flatnonzero(corner_mask((box_px, box_px))))
    # Row by row, so that rounding does not depend on how many there are.
    level = xp.ascontiguousarray(images.reshape(n, -1)[:, corners]).mean(1)
    padded = xp.zeros((n, *[_fine_px(box_px)] * 2), np.float32)
    padded[:, :box_px, :box_px] = images - level[:, None, None]
    return padded


def _expand_turns(coefs: Any, components: list[Any], xp: Any) -> Any:
    """References' angular orders times those of images; (n, 2 orders, v)."""
    n, v = len(coefs), components[0].n_columns // 2
    orders = xp.empty((n, len(components), 2 * v), np.float32)
    start = 0
    for order, matrix in enumerate(components):
        width = matrix.values.shape[-2]
        rows = xp.ascontiguousarray(coefs[:, start : start + width])
        orders[:, order] = multiply_rows(rows, matrix)
        start += width
    return orders.reshape(n, -1, v)


def _synthesise(orders: Any, turns: Any, xp: Any) -> Any:
    """Products for each image, always of one size: its bits are the same wherever it is."""
    if xp is np:
        return turns @ orders
    batch = xp.zeros((IMAGES_AT_ONCE["cupy"], *orders.shape[1:]), np.float32)
    batch[: len(orders)] = orders
    return (turns @ batch)[: len(orders)]


def _reduce(orders: Any, norm: Any, turns: Any, bank: SpectrumBank, xp: Any) -> tuple[Any, ...]:
    values = _synthesise(orders, turns, xp)
    n_turns = len(turns)
    highest = values.max(1)
    highest -= norm
    found = []
    for start, end in pairwise((0, *bank.group_ends)):
        best = highest[:, start:end].argmax(1) + start
        peak = xp.take_along_axis(highest, best[:, None], 1)
        beyond = (norm[:, start:end] + peak)[:, None]
        total = xp.exp(values[:, :, start:end] - beyond).sum((1, 2))
        turn = xp.take_along_axis(values, best[:, None, None], 2)[..., 0].argmax(1)
        degrees = turn.astype(np.float32) * np.float32(180 / n_turns)
        found.append((peak[:, 0] + xp.log(total / n_turns), best, degrees))
    return tuple(xp.stack(parts, 1) for parts in zip(*found, strict=True))
