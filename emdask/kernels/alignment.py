"""Averages of particle images, turned and shifted onto one another; poses by images alone.

Where poses are known, each image is shifted and turned back and added to the sums of its class. A
turn is three shears, each a shift of rows or columns by phases of their Fourier transforms, so that
white noise stays white and of its variance. With CTFs, the average of a class is

    sum of (CTF · image) / (sum of CTF² + a small number),

term by term of Fourier transforms: the least-squares solution for an image whose views through
the CTFs are what was recorded, regularised by a constant where RELION has the ratio of noise and
signal (Scheres, "RELION: implementation of a Bayesian approach to cryo-EM structure determination",
Journal of Structural Biology 180 (2012) 519-530).

Where they are not, `align_images` finds them by maximum likelihood: an average is compared with
every image at all turns and shifts, and the next average is the mean over all of these, weighted by
how probable they are (Sigworth, "A maximum-likelihood approach to single-particle image
refinement", Journal of Structural Biology 122 (1998) 328-339). In a steerable basis a turn is a
phase for each angular order, and it is the average that is shifted: so the coefficients of an image
are worked out once, and matched by one product of matrices for each order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, fourier_namespace, to_host
from emdask.kernels.ctf import Optics
from emdask.kernels.fourier import frequency_grid, half_plane_weights
from emdask.kernels.reductions import over_pixels
from emdask.kernels.steerable import SteerableBasis, evaluate, expand, steerable_basis
from emdask.kernels.transforms import to_half_planes, to_images

__all__ = [
    "AverageSums",
    "PlanePoses",
    "add_sums",
    "align_images",
    "solve_averages",
    "sum_aligned",
    "turn_images",
]

Array = npt.NDArray[Any]

IMAGES_AT_ONCE: Final = {"numpy": 16, "cupy": 256}
# Of the number of images, what is added to sums of squared CTFs: where all CTFs are near 0, noise
# is at most 5 times as strong as where half of the signal comes through.
LEAST_SQUARE: Final = 0.005
# Alignment: radius of the disc that is compared, and largest shift along an axis, in edges.
RADIUS, REACH = 0.42, 0.1
# Highest frequencies of its two steps, in Fourier pixels; shifts are a quarter of the shortest wave
# apart, and turns a third of that of the highest angular order.
COARSE_BAND_PX, FINE_BAND_PX = 10, 24
SHIFT_STEP, TURN_STEP = 0.25, 3
# Of the coarse step: images that averages begin with, of which the best is kept; how many images
# they are compared on; steps, and how many more with all images.
N_STARTS, STARTS_ON, N_COARSE, N_MORE = 4, 200, 12, 3
# What of an image counts as signal at the start; least noise, in powers of the images.
FIRST_SHARE, LEAST_NOISE = 0.3, 0.1


class PlanePoses(NamedTuple):
    """How images lie in their plane, in RELION's sense.

    Parameters
    ----------
    psi_deg : float64 array, shape (n,)
        By which an image is turned back, from the x towards the y axis, after its shift.
    shift_px : float64 array, shape (n, 2)
        Translation (x, y) that centres the particle.
    """

    psi_deg: Array
    shift_px: Array


class AverageSums(NamedTuple):
    """What adds up over images, class by class; on the host.

    Parameters
    ----------
    images : float64 array, shape (k, n, n)
        Sums of the images, turned and shifted back, times their CTFs.
    squares : float64 array, shape (k, n, n // 2 + 1)
        Sums of the squared CTFs, turned back; None where there are none.
    counts : int64 array, shape (k,)
        Numbers of images.
    """

    images: Array
    squares: Array | None
    counts: Array


# --- Averages of known poses ----------------------------------------------------------------------


def turn_images(images: Any, turn_deg: Any) -> Any:
    """Turn images about pixel ``n // 2``.

    Parameters
    ----------
    images : array, shape (m, n, n)
        NumPy or CuPy. They are taken to go on as themselves beyond their borders.
    turn_deg : float or array, shape (m,)
        Of the host. Positive turns the x axis towards the y axis: as y points down, clockwise on a
        screen.

    Returns
    -------
    float32 array, shape (m, n, n)

    Notes
    -----
    Right angles, then three shears by at most 45 degrees in all: Unser, Thévenaz and Yaroslavsky,
    "Convolution-based interpolation for fast, high-quality rotation of images", IEEE Transactions
    on Image Processing 4 (1995) 1371-1381. What is within 0.45 of the edge about the centre, and of
    frequencies below 0.45 cycles a pixel, is turned exactly; what is beyond is mixed with itself,
    and no noise is lost.

    Examples
    --------
    >>> image = np.zeros((1, 8, 8))
    >>> image[0, 4, 6] = 1
    >>> [int(i) for i in np.argwhere(turn_images(image, 90.0)[0] > 0.5)[0]]
    [6, 4]
    """
    xp = array_namespace(images)
    angles = np.broadcast_to(np.asarray(turn_deg, np.float64), (len(images),))
    quarters = np.rint(angles / 90)
    turned = _turn_quarters(images.astype(np.float32), quarters.astype(np.int64) % 4)
    rest = np.deg2rad(angles - 90 * quarters)
    along_x, along_y = (xp.asarray(part) for part in (-np.tan(rest / 2), np.sin(rest)))
    turned = _shear(turned, along_x, xp)
    turned = _shear(turned.swapaxes(1, 2), along_y, xp).swapaxes(1, 2)
    return xp.ascontiguousarray(_shear(turned, along_x, xp))


def _turn_quarters(images: Any, quarters: Array) -> Any:
    """Turn each image by so many right angles about pixel n // 2."""
    xp = array_namespace(images)
    turned = xp.empty_like(images)
    for number in range(4):
        which = xp.asarray(np.flatnonzero(quarters == number))
        part = images[which]
        for _ in range(number):
            part = part[:, ::-1].swapaxes(1, 2)
            # In an even image pixel n // 2 is not the middle.
            part = xp.roll(part, 1, axis=2) if images.shape[-1] % 2 == 0 else part
        turned[which] = part
    return turned


def _shear(images: Any, slope: Any, xp: Any) -> Any:
    """Move each row to the right by the slope times its height above the middle row."""
    fft, n = fourier_namespace(images), images.shape[-1]
    height = xp.asarray(np.arange(n) - n // 2, np.float32)
    frequency = xp.asarray(np.fft.rfftfreq(n), np.float32)
    moved = slope.astype(np.float32)[:, None, None] * height[:, None]
    waves = xp.exp(np.complex64(-2j * np.pi) * moved * frequency)
    if n % 2 == 0:
        # Nyquist's wave has no phase: it stays or changes its sign, and loses nothing.
        waves[:, :, -1] = xp.where(waves[:, :, -1].real < 0, -1, 1)
    return fft.irfft(fft.rfft(images, axis=2) * waves, n, axis=2)


def sum_aligned(
    images: Any,
    class_index: Array,
    n_classes: int,
    poses: PlanePoses,
    optics: Optics | None = None,
) -> AverageSums:
    """Shift and turn images back and add them up, class by class.

    Parameters
    ----------
    images : array, shape (m, n, n)
        Of any real type; NumPy or CuPy.
    class_index : int array, shape (m,)
        From 0; below 0 an image is left out, whatever its pose.
    n_classes
        Number of classes.
    poses
        Of the images, on the host.
    optics
        Of the images; None where they have no CTF.

    Returns
    -------
    AverageSums

    Examples
    --------
    >>> images = np.ones((3, 8, 8))
    >>> poses = PlanePoses(np.zeros(3), np.zeros((3, 2)))
    >>> sums = sum_aligned(images, np.array([0, 1, 1]), 2, poses)
    >>> sums.counts, sums.images[:, 4, 4].round(6)
    (array([1, 2]), array([1., 2.]))
    """
    xp, shape = array_namespace(images), (int(images.shape[1]), int(images.shape[2]))
    total = xp.zeros((n_classes, *shape))
    squares = None if optics is None else xp.zeros((n_classes, shape[0], shape[1] // 2 + 1))
    kept = np.flatnonzero(np.asarray(class_index) >= 0)
    for some in _batches(kept, xp):
        own, own_optics = np.asarray(class_index)[some], optics and optics[some]
        psi_deg, shift_px = poses.psi_deg[some], poses.shift_px[some]
        back = _move_back(images[xp.asarray(some)], shift_px, own_optics)
        turned = turn_images(back, psi_deg)
        for number in np.unique(own):
            total[number] += turned[xp.asarray(own == number)].sum(0, dtype=np.float64)
        if own_optics is not None:
            _add_squares(squares, own, _turn_optics(own_optics, psi_deg))
    counts = np.bincount(np.asarray(class_index)[kept], minlength=n_classes)
    return AverageSums(to_host(total), None if squares is None else to_host(squares), counts)


def _batches(numbers: Array, xp: Any) -> Iterator[Array]:
    step = IMAGES_AT_ONCE[xp.__name__]
    return (numbers[start : start + step] for start in range(0, len(numbers), step))


def _move_back(images: Any, shift_px: Array, optics: Optics | None) -> Any:
    """Shift images, and multiply them by their CTFs."""
    xp, shape = array_namespace(images), images.shape[1:]
    if optics is None and not shift_px.any():
        return images
    terms = to_half_planes(images)
    if optics is not None:
        for which, ctf in optics.each(shape, len(images), xp):
            terms[which] *= _keep_mean(ctf)
    return to_images(terms * _waves(shift_px, shape[-1], xp), shape)


def _keep_mean(ctf: Any) -> Any:
    """CTFs with 1 at frequency 0: the background of real images has not come through them."""
    kept = ctf.copy()
    kept[:, 0, 0] = 1
    return kept


def _turn_optics(optics: Optics, psi_deg: Array) -> Optics:
    """Optics of images that are turned: the axes of the astigmatism turn with them."""
    if np.array_equal(optics.defocus_u_A, optics.defocus_v_A):
        return optics
    varying = {name: getattr(optics, name) for name in optics.varying()}
    varying["astigmatism_deg"] = optics.astigmatism_deg + psi_deg
    own = {field: getattr(optics, field) for field in optics.__dataclass_fields__}
    return Optics(**{**own, **varying})


def _add_squares(squares: Any, class_index: Array, optics: Optics) -> None:
    """Add the squared CTF of each image to those of its class."""
    xp, n = array_namespace(squares), squares.shape[1]
    for which, ctf in optics.each((n, n), len(class_index), xp):
        square = xp.square(_keep_mean(ctf))
        own = class_index[which]
        for number in np.unique(own):
            if len(square) == 1:
                squares[number] += square[0] * int((own == number).sum())
            else:
                squares[number] += square[xp.asarray(own == number)].sum(0, dtype=np.float64)


def _waves(shift_px: Any, n: int, xp: Any) -> Any:
    """What shifts (x, y) multiply half planes by; complex64 (m, n, n // 2 + 1)."""
    shifts = np.asarray(shift_px, np.float64)
    turn = -2j * np.pi
    down = np.exp(turn * shifts[:, 1:] * np.fft.fftfreq(n)).astype(np.complex64)
    right = np.exp(turn * shifts[:, :1] * np.fft.rfftfreq(n)).astype(np.complex64)
    return xp.asarray(down)[:, :, None] * xp.asarray(right)[:, None, :]


def add_sums(first: AverageSums, second: AverageSums) -> AverageSums:
    """Add the sums of two parts of a stack."""
    squares = None
    if first.squares is not None and second.squares is not None:
        squares = first.squares + second.squares
    return AverageSums(first.images + second.images, squares, first.counts + second.counts)


def solve_averages(sums: AverageSums) -> npt.NDArray[np.float32]:
    """Return the averages of classes.

    Parameters
    ----------
    sums
        Over all images.

    Returns
    -------
    float32 array, shape (k, n, n)
        Means of the images; with CTFs, corrected for them but for the mean of each, which stays
        that of the images. Of classes without images, 0.

    Examples
    --------
    >>> solve_averages(AverageSums(np.full((1, 2, 2), 6.0), None, np.array([3])))[0, 0]
    array([2., 2.], dtype=float32)
    """
    counts = np.maximum(sums.counts, 1)[:, None, None]
    if sums.squares is None:
        return (sums.images / counts).astype(np.float32)
    weights = sums.squares + LEAST_SQUARE * counts
    weights[:, 0, 0] = counts[:, 0, 0]
    terms = np.fft.rfft2(sums.images) / weights
    return np.fft.irfft2(terms, sums.images.shape[1:]).astype(np.float32)


# --- Poses by the images alone --------------------------------------------------------------------


class _Images(NamedTuple):
    """Images as they are compared: by their power in rings of frequencies, which is then 1.

    Parameters
    ----------
    terms : complex64 array, shape (n, box, box // 2 + 1)
        Divided by roots of the mean power, times the CTFs.
    square : float64 array, shape (rings,)
        Mean of the squared CTFs.
    """

    terms: Any
    square: Array


class _Scale(NamedTuple):
    """What images are compared at: a basis, and shifts and turns.

    Parameters
    ----------
    basis
        Of the images' coefficients.
    shifts : float64 array, shape (side, side, 2)
        Of the average (x, y), in pixels.
    waves : complex64 array, shape (side * side, box, box // 2 + 1)
        What they multiply the average by.
    log_prior : float32 array, shape (side * side, 1)
        Of the shifts: Gaussian.
    n_turns
        Number of turns.
    """

    basis: SteerableBasis
    shifts: Array
    waves: Any
    log_prior: Any
    n_turns: int


class _Average(NamedTuple):
    """An average, in the unit of the images' power.

    Parameters
    ----------
    terms : complex64 array, shape (box, box // 2 + 1)
        Shrunk by what of it is noise.
    noise : float64 array, shape (rings,)
        Power of the noise in an image.
    log_likelihood
        Mean over the images of that of the average before.
    """

    terms: Any
    noise: Array
    log_likelihood: float = -np.inf


def align_images(
    images: Any,
    optics: Optics | None = None,
    *,
    n_iterations: int = 5,
    shift_px: float | None = None,
    seed: int = 0,
) -> PlanePoses:
    """Find how images of one view lie in their plane, by one another alone.

    Parameters
    ----------
    images : array, shape (n, box, box)
        Of any real type; NumPy or CuPy. They are compared within 0.42 of the edge about the centre,
        up to 24 Fourier pixels.
    optics
        Of the images; None where they have no CTF.
    n_iterations
        Steps at full resolution, after those at low.
    shift_px
        How far along an axis a particle may be off the centre; a tenth of the edge by default.
    seed
        Of which images averages begin with.

    Returns
    -------
    PlanePoses
        On the host. All may be turned and shifted together: there is nothing to tell how the
        particle itself lies.

    Notes
    -----
    Averages begin with one image each, at frequencies up to 10 Fourier pixels; that which explains
    the images best goes on. Noise and signal are estimated ring by ring at each step: noise by what
    an average leaves unexplained, signal by the power of the average less that of the noise in it.

    Images are taken to show one particle from one side. Of several, the average is a compromise.

    Examples
    --------
    >>> image = np.zeros((32, 32))
    >>> image[16, 12:24], image[12:16, 12] = 1, 2
    >>> turned = turn_images(np.stack([image] * 8), 45.0 * np.arange(8))
    >>> psi_deg = align_images(turned).psi_deg
    >>> off = (psi_deg + 45 * np.arange(8) - psi_deg[0] + 180) % 360 - 180
    >>> bool(abs(off).max() < 2)
    True
    """
    xp, (n, box_px) = array_namespace(images), images.shape[:2]
    if n < 2:
        return PlanePoses(np.zeros(n), np.zeros((n, 2)))
    reach = REACH * box_px if shift_px is None else shift_px
    prepared = _prepare(images, optics)
    coarse = _make_scale(box_px, min(COARSE_BAND_PX, box_px / 2), reach, xp)
    average = _begin(prepared, coarse, seed)
    average = _iterate(prepared, coarse, average, N_MORE)
    fine = _make_scale(box_px, min(FINE_BAND_PX, box_px / 2), reach, xp)
    average = _iterate(prepared, fine, average, n_iterations)
    return _centre(_read_poses(prepared, average, fine))


def _rings(box_px: int) -> tuple[Array, Array]:
    """Ring of each term of a half plane, and how often it counts."""
    ring = np.rint(frequency_grid((box_px, box_px)) * box_px).astype(np.int64)
    return ring, half_plane_weights((box_px, box_px))


def _ring_means(values: Any) -> Array:
    """Mean of real terms of a half plane over rings; on the host."""
    ring, weight = _rings(len(values))
    sums = np.bincount(ring.ravel(), (to_host(values) * weight).ravel())
    return np.asarray(sums / np.bincount(ring.ravel(), weight.ravel()))


def _prepare(images: Any, optics: Optics | None) -> _Images:
    xp, (n, box_px) = array_namespace(images), images.shape[:2]
    pixels = images.astype(np.float32)
    terms = to_half_planes(pixels - over_pixels("mean", pixels)[:, None, None])
    power = _ring_means(xp.square(xp.abs(terms)).mean(0, dtype=np.float64)) / box_px**2
    scale = np.divide(1, np.sqrt(power), out=np.zeros(len(power)), where=power > 0)
    scale[0] = 0
    ring, _ = _rings(box_px)
    terms *= xp.asarray(scale[ring], np.float32)
    square = np.ones(len(power))
    if optics is not None:
        for which, ctf in optics.each((box_px, box_px), n, xp):
            terms[which] *= ctf
        frequency = np.arange(len(power)) / box_px
        square = optics.power(frequency).mean(0)
    return _Images(terms, square)


def _make_scale(box_px: int, band_px: float, reach: float, xp: Any) -> _Scale:
    band = band_px / box_px
    basis = steerable_basis(box_px, radius_px=RADIUS * box_px, band=band)
    step = SHIFT_STEP / band
    n_steps = int(np.ceil(reach / step - 1e-6))
    along = np.linspace(-reach, reach, 2 * n_steps + 1)
    shifts = np.stack(np.meshgrid(along, along, indexing="xy"), -1)
    flat = shifts.reshape(-1, 2)
    log_prior = -2 * np.square(flat).sum(1) / max(reach, 1e-6) ** 2
    return _Scale(
        basis,
        shifts,
        _waves(flat, box_px, xp),
        xp.asarray(log_prior[:, None], np.float32),
        TURN_STEP * len(basis.slices),
    )


def _begin(images: _Images, scale: _Scale, seed: int) -> _Average:
    """Let averages begin with a few images, and return that which explains most."""
    xp, n = array_namespace(images.terms), len(images.terms)
    drawn = np.random.default_rng(seed).permutation(n)
    few = _Images(images.terms[xp.asarray(np.sort(drawn[:STARTS_ON]))], images.square)
    best = None
    for number in drawn[:N_STARTS]:
        first = _Average(FIRST_SHARE * images.terms[int(number)], np.ones(len(images.square)))
        found = _iterate(few, scale, first, N_COARSE)
        if best is None or found.log_likelihood > best.log_likelihood:
            best = found
    assert best is not None
    return best


def _iterate(images: _Images, scale: _Scale, average: _Average, n_steps: int) -> _Average:
    """Make averages of the images, each by how they lie under the one before."""
    coefs = expand(images.terms, scale.basis)
    for _ in range(n_steps):
        average = _improve(images, coefs, scale, average)
    return average


def _improve(images: _Images, coefs: Any, scale: _Scale, average: _Average) -> _Average:
    xp, n = array_namespace(coefs), len(coefs)
    shifted = _shift_average(average, scale)
    sums = xp.zeros((len(scale.waves), coefs.shape[1]), np.complex64)
    times = xp.zeros(len(scale.waves))
    log_likelihood = 0.0
    for some in _batches(np.arange(n), xp):
        own = coefs[some[0] : some[-1] + 1]
        values = _compare(own, shifted, scale)
        highest = values.max((1, 2))
        weights = xp.exp(values - highest[:, None, None])
        total = weights.sum((1, 2))
        log_likelihood += float((highest + xp.log(total)).sum())
        weights /= total[:, None, None]
        times += weights.sum((0, 2))
        sums += _turn_back(own, weights, scale)
    terms = (evaluate(sums, scale.basis) * scale.waves.conj()).sum(0) / n
    # The first average is as far off the centre as its image: it moves to where images are.
    centre = to_host(times) @ scale.shifts.reshape(-1, 2) / n
    terms *= _waves(centre[None], len(terms), xp)[0]
    return _shrink(terms, images.square, n)._replace(
        log_likelihood=log_likelihood / n - _half_square(average, images.square, scale)
    )


def _shift_average(average: _Average, scale: _Scale) -> Any:
    """Coefficients of the average at all shifts, over the power of the noise."""
    xp = array_namespace(average.terms)
    ring, _ = _rings(scale.basis.box_px)
    weighted = average.terms / xp.asarray(average.noise[ring], np.float32)
    return expand(weighted * scale.waves, scale.basis)


def _compare(coefs: Any, shifted: Any, scale: _Scale) -> Any:
    """Log-likelihoods of images at all shifts and turns of the average, but for a number of each.

    Returns
    -------
    float32 array, shape (m, shifts, turns)
    """
    xp, fft = array_namespace(coefs), fourier_namespace(coefs)
    shape = (len(coefs), len(shifted), scale.n_turns // 2 + 1)
    orders = xp.zeros(shape, np.complex64)
    for order, part in enumerate(scale.basis.slices):
        orders[:, :, order] = coefs[:, part] @ shifted[:, part].conj().T
    # Real images: order k stands for -k as well.
    values = fft.irfft(orders, scale.n_turns, axis=2)
    values *= np.float32(scale.n_turns)
    values += scale.log_prior
    return values


def _turn_back(coefs: Any, weights: Any, scale: _Scale) -> Any:
    """Sums over images, turned back by all turns with their weights, for each shift."""
    xp, fft = array_namespace(coefs), fourier_namespace(coefs)
    orders = fft.rfft(weights, axis=2).conj()
    sums = xp.empty((orders.shape[1], coefs.shape[1]), np.complex64)
    for order, part in enumerate(scale.basis.slices):
        sums[:, part] = orders[:, :, order].T @ coefs[:, part]
    return sums


def _shrink(terms: Any, square: Array, n: int) -> _Average:
    """Solve for the average and its noise, ring by ring.

    The mean of images times CTFs is ``terms``: over that of the squared CTFs it explains its own
    power of each image, the rest is noise. Of the average's power, noise has its share of an image
    over so many images.
    """
    xp, box_px = array_namespace(terms), len(terms)
    power = _ring_means(xp.square(xp.abs(terms))) / box_px**2
    seen = np.maximum(square, 1e-3)
    noise = np.clip(1 - power / seen, LEAST_NOISE, 1)
    signal = np.maximum(power / seen**2 - noise / (n * seen), 0)
    gain = signal / (signal * seen + noise / n)
    ring, _ = _rings(box_px)
    return _Average(terms * xp.asarray(gain[ring], np.float32), noise)


def _half_square(average: _Average, square: Array, scale: _Scale) -> float:
    """Half the square of the average as images have it, over the noise."""
    xp, box_px = array_namespace(average.terms), scale.basis.box_px
    ring, weight = _rings(box_px)
    inside = frequency_grid((box_px, box_px)) <= scale.basis.band
    counted = xp.asarray(inside * weight * (square / average.noise)[ring])
    return float((xp.square(xp.abs(average.terms)) * counted).sum()) / box_px**2 / 2


def _read_poses(images: _Images, average: _Average, scale: _Scale) -> PlanePoses:
    """The likeliest turn and shift of each image, between those that were compared."""
    coefs = expand(images.terms, scale.basis)
    xp = array_namespace(coefs)
    shifted = _shift_average(average, scale)
    side = len(scale.shifts)
    places = []
    for some in _batches(np.arange(len(coefs)), xp):
        values = _compare(coefs[some[0] : some[-1] + 1], shifted, scale)
        places.append(_find_peaks(to_host(values).reshape(-1, side, side, scale.n_turns)))
    y, x, turn = np.concatenate(places).T
    step = float(scale.shifts[0, 1, 0] - scale.shifts[0, 0, 0]) if side > 1 else 0.0
    turn_deg = 360 / scale.n_turns * turn
    # The average is shifted, then turned; an image goes the other way.
    offset_px = step * (np.stack([x, y], 1) - side // 2)
    return PlanePoses(-turn_deg, -_turn_points(offset_px, turn_deg))


def _turn_points(points: Array, angle_deg: Array) -> Array:
    """Turn points (x, y) from the x towards the y axis."""
    (x, y), angle = points.T, np.deg2rad(angle_deg)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([c * x - s * y, s * x + c * y], 1)


def _centre(poses: PlanePoses) -> PlanePoses:
    """Centre the average where the images are shifted least."""
    off_px = _turn_points(poses.shift_px, poses.psi_deg).mean(0)
    back = _turn_points(np.broadcast_to(off_px, poses.shift_px.shape), -poses.psi_deg)
    return poses._replace(shift_px=poses.shift_px - back)


def _find_peaks(values: Array) -> Array:
    """Places of the highest of values (m, y, x, turns), by parabolas through it; (m, 3)."""
    m, shape = len(values), values.shape[1:]
    best = values.reshape(m, -1).argmax(1)
    place = np.stack(np.unravel_index(best, shape), 1)
    found = place.astype(np.float64)
    for axis, length in enumerate(shape):
        sides = []
        for step in (-1, 1):
            beside = place.copy()
            beside[:, axis] += step
            # Turns go round; shifts end, and their last is not between two.
            beside[:, axis] = beside[:, axis] % length
            sides.append(values[np.arange(m), *beside.T].astype(np.float64))
        peak = values[np.arange(m), *place.T].astype(np.float64)
        bend = sides[0] + sides[1] - 2 * peak
        at_end = (place[:, axis] % (length - 1 or 1) == 0) & (axis < len(shape) - 1)
        ok = (bend < 0) & ~at_end
        offset = np.divide(sides[0] - sides[1], 2 * bend, out=np.zeros(m), where=ok)
        found[:, axis] += np.clip(offset, -0.5, 0.5)
    return found
