"""Brute-force matching of images with views of conformations: classes, and poses.

An image is compared with each conformation seen from each direction, turned by all angles and
shifted, under the noise's spectrum and the image's CTF: the log-likelihood of a reference R is
``<Y, R> - sum CTF² |R|² / 2``, where Y is the image times its CTF, both divided by the amplitude of
the noise. It is found in three steps.

- Coarse: few views of each conformation, low frequencies, all turns and shifts. In a steerable
  basis a turn is a phase for each angular order, so all turns are one product of matrices.
- Middle: the same views about the best of these turns and shifts, to more frequencies.
- Fine: an image is turned and shifted back by the best turn and shift, and compared with the
  enhanced basis set: every conformation from every direction at small turns and shifts.

These are tens of thousands of references that differ little. Some hundred components hold them; in
these, all are matched by one product of matrices.

Likelihoods add up over all poses, or the best counts (Sigworth, "A maximum-likelihood approach to
single-particle image refinement", Journal of Structural Biology 122 (1998) 328-339).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.kernels.ctf import Optics
from emdask.kernels.fourier import half_plane_weights
from emdask.kernels.reductions import over_pixels
from emdask.kernels.references import even_priors
from emdask.kernels.row_products import PackedMatrix, move_matrix, multiply_rows, pack_matrix
from emdask.kernels.steerable import SteerableBasis, evaluate, expand, rotate, steerable_basis
from emdask.kernels.transforms import to_half_planes

__all__ = ["Found", "NearbySet", "PoseBank", "PosePlan", "prepare_poses", "search_poses"]

Array = npt.NDArray[Any]

# Components are found from so many references, drawn with a seed of their own.
N_DRAWN: Final = 1500
# What components may leave out of a reference, in units of the noise.
LEFT_OUT: Final = 0.1
# Of the strongest component: weaker ones may be rounding.
ROUNDING: Final = 1e-9
# In which squares of references are kept: where a CTF turns fast, wider ones tell wrong sums.
RINGS_A_PIXEL: Final = 16
IMAGES_AT_ONCE: Final = {"numpy": 8, "cupy": 64}


class PosePlan(NamedTuple):
    """Sizes of the search.

    Parameters
    ----------
    shift_px
        Largest shift along x or y.
    radius_px
        Of the disc that holds the particle.
    bands
        Highest frequencies of the three steps, cycles a pixel.
    shift_steps_px, turn_steps_deg
        Steps of shifts and of turns.
    shift_reach_px, turn_reach_deg
        How far from the best of the step before the middle and the fine step look.
    n_peaks
        How many places of the coarse map are looked at more finely.
    """

    shift_px: float
    radius_px: float
    bands: tuple[float, float, float]
    shift_steps_px: tuple[float, float, float] = (1.5, 0.5, 0.25)
    turn_steps_deg: tuple[float, float, float] = (5.0, 2.0, 1.0)
    shift_reach_px: tuple[float, float] = (1.0, 0.5)
    turn_reach_deg: tuple[float, float] = (4.0, 2.0)
    n_peaks: int = 2

    @property
    def coarse_shifts(self) -> Array:
        """Shifts (x, y) of the coarse map; (s, 2)."""
        return _square(self.shift_px, self.shift_steps_px[0])

    @property
    def n_turns(self) -> int:
        """Turns of the coarse map, over 360 degrees."""
        return round(360 / self.turn_steps_deg[0])


class NearbySet(NamedTuple):
    """References at small turns and shifts, in components.

    Parameters
    ----------
    basis
        In which images are expanded.
    turns : float64 array, shape (t,)
        Degrees, from the x towards the y axis.
    shifts : float64 array, shape (s, 2)
        Pixels (x, y), along the reference's own axes: before the turn.
    components : float32 array, shape (2 coefs, k)
        For coefficients as pairs of real numbers.
    values : PackedMatrix, shape (k, r t s)
        The set in the components, references, turns and shifts, packed for the CPU: it is large,
        and so is made once and not for each block of images.
    held : float32 array, shape (r, t s)
        Share of each one's square that the components hold.
    power : float32 array, shape (f, r)
        Half the squares of the references on rings of frequencies.
    """

    basis: SteerableBasis
    turns: Array
    shifts: Array
    components: Array
    values: PackedMatrix
    held: Array
    power: Array


class PoseBank(NamedTuple):
    """References as `search_poses` wants them; arrays of the host.

    Parameters
    ----------
    plan
        Sizes of the search.
    whitening : float32 array, shape (n, n // 2 + 1)
        One over the amplitude of the noise, 0 at frequency 0.
    frequency : float64 array, shape (f,)
        Of rings, in cycles a pixel.
    basis
        Of the coarse step.
    coarse : complex64 array, shape (v, coefs)
        Views of all conformations: the mean of those that differ much is turned unlike any.
    coarse_power : float32 array, shape (f, v)
        Half their squares on the rings.
    middle, fine
        Those views, and the enhanced basis set.
    group_ends : tuple of int
        Where the references of each group end.
    log_prior : float32 array, shape (r,)
        Of each reference in its group.
    """

    plan: PosePlan
    whitening: Array
    frequency: Array
    basis: SteerableBasis
    coarse: Array
    coarse_power: Array
    middle: NearbySet
    fine: NearbySet
    group_ends: tuple[int, ...]
    log_prior: Array


class Found(NamedTuple):
    """Where images were found; arrays of the library of the images.

    Parameters
    ----------
    log_likelihood : float32 array, shape (n, g)
        Of each group, relative to noise alone; of all poses, or the best.
    reference : int64 array, shape (n, g)
        The most likely reference of each group: its place among all.
    turn_deg : float32 array, shape (n, g)
        By which it is turned from the x towards the y axis.
    shift_px : float32 array, shape (n, g, 2)
        By which it is then shifted (x, y).
    """

    log_likelihood: Any
    reference: Any
    turn_deg: Any
    shift_px: Any


def _line(reach: float, step: float) -> Array:
    n = max(1, round(reach / step)) if reach > 0 else 0
    return np.linspace(-reach, reach, 2 * n + 1)


def _square(reach: float, step: float) -> Array:
    along = _line(reach, step)
    y, x = np.meshgrid(along, along, indexing="ij")
    return np.column_stack([x.ravel(), y.ravel()])


# --- References -----------------------------------------------------------------------------------


def prepare_poses(
    references: Array,
    group_sizes: tuple[int, ...],
    coarse: Array,
    plan: PosePlan,
    noise_amplitude: Array,
) -> PoseBank:
    """Prepare references for `search_poses`.

    Parameters
    ----------
    references : array, shape (r, n, n)
        Images of them in the grey levels that they have in the stack, group after group.
    group_sizes
        Number of references in each group.
    coarse : array, shape (v, n, n)
        Views for the coarse step.
    plan
        Sizes of the search.
    noise_amplitude : array, shape (n, n // 2 + 1)
        Root of the noise's power: white noise of variance v has the root of v.

    Returns
    -------
    PoseBank
    """
    box_px = references.shape[-1]
    bases = [steerable_basis(box_px, radius_px=plan.radius_px, band=band) for band in plan.bands]
    whitening = (1 / noise_amplitude).astype(np.float32)
    whitening[0, 0] = 0
    views = to_half_planes(coarse) * whitening
    few = expand(views, bases[0])
    rings, frequency = _rings(box_px, max(plan.bands))
    return PoseBank(
        plan,
        whitening,
        frequency,
        bases[0],
        few,
        _ring_power(few, bases[0], rings, len(frequency)),
        _gather(views, bases[1], plan, 0, rings, len(frequency)),
        _gather(to_half_planes(references) * whitening, bases[2], plan, 1, rings, len(frequency)),
        tuple(int(end) for end in np.cumsum(group_sizes)),
        even_priors(group_sizes),
    )


def _rings(box_px: int, band: float) -> tuple[Array, Array]:
    """Number of each Fourier term's ring, and frequencies of the rings."""
    y = np.fft.fftfreq(box_px)[:, None]
    x = np.fft.rfftfreq(box_px)
    a_cycle = RINGS_A_PIXEL * box_px
    rings = np.rint(np.hypot(y, x) * a_cycle).astype(np.int64)
    n_rings = int(a_cycle * band) + 2
    return np.minimum(rings, n_rings - 1), np.arange(n_rings) / a_cycle


def _ring_power(coefs: Any, basis: SteerableBasis, rings: Array, n_rings: int) -> Array:
    """Half the sum of squares on rings of the images that have these coefficients; (rings, v)."""
    n = basis.box_px
    weight = np.broadcast_to(half_plane_weights((n, n)), rings.shape) / 2
    power = np.empty((n_rings, len(coefs)), np.float32)
    for i in range(len(coefs)):
        squares = weight * np.square(np.abs(evaluate(coefs[i : i + 1], basis)[0]) / n)
        power[:, i] = np.bincount(rings.ravel(), squares.ravel(), n_rings)
    return power


def _gather(
    terms: Any, basis: SteerableBasis, plan: PosePlan, step: int, rings: Array, n_rings: int
) -> NearbySet:
    """Find components of references at small turns and shifts, and all of these in them."""
    turns = _line(plan.turn_reach_deg[step], plan.turn_steps_deg[step + 1])
    shifts = _square(plan.shift_reach_px[step], plan.shift_steps_px[step + 1])
    moved = [expand(terms * wave, basis) for wave in _waves(-shifts, terms.shape[-2])]
    rng = np.random.default_rng(0)
    drawn = [rng.integers(n, size=N_DRAWN) for n in (len(shifts), len(terms), len(turns))]
    sample = np.stack([moved[s][r] for s, r, _ in zip(*drawn, strict=True)])
    # A turn of the reference comes before its shift: that of the shifted one has it turned, too,
    # so shifts are those of the turned frame.
    components = _principal_axes(_pairs(rotate(sample, basis, turns[drawn[2]]), basis))
    shape = (len(terms), len(turns), len(shifts))
    values = np.empty((components.shape[1], *shape), np.float32)
    held = np.empty(shape, np.float32)
    matrix = pack_matrix(components)
    for s, coefs in enumerate(moved):
        for t, turn in enumerate(turns):
            pairs = _pairs(rotate(coefs, basis, turn), basis)
            values[:, :, t, s] = multiply_rows(pairs, matrix).T
            held[:, t, s] = np.square(values[:, :, t, s]).sum(0) / np.square(pairs).sum(1)
    still = moved[len(shifts) // 2]
    return NearbySet(
        basis,
        turns,
        shifts,
        components,
        pack_matrix(values.reshape(len(values), -1)),
        held.reshape(len(terms), -1),
        _ring_power(still, basis, rings, n_rings),
    )


def _principal_axes(sample: Array) -> Array:
    """Orthonormal axes that hold rows but for a mean square of LEFT_OUT; (columns, k)."""
    gram = sample.astype(np.float64) @ sample.T
    strengths, vectors = np.linalg.eigh(gram)
    left_out = np.cumsum(strengths.clip(0)) / len(sample)
    first = min(int(np.searchsorted(left_out, LEFT_OUT)), len(sample) - 1)
    # Directions that rounding alone has filled are none, however strong the references are.
    first = max(first, int(np.searchsorted(strengths, ROUNDING * strengths[-1])))
    axes = (sample.T @ vectors[:, first:]) / np.sqrt(strengths[first:])
    return np.ascontiguousarray(axes[:, ::-1], np.float32)


def _pairs(coefs: Any, basis: SteerableBasis) -> Any:
    """Coefficients as real numbers whose products sum to those of images."""
    xp = array_namespace(coefs)
    root = xp.asarray(np.where(basis.orders == 0, 1, np.sqrt(2)).astype(np.float32))
    return xp.ascontiguousarray(coefs * root).view(np.float32)


def _waves(shifts_px: Array, box_px: int, xp: Any = np) -> Any:
    """What shifts multiply a half plane by: minus a shift moves there and back; (s, n, n//2+1)."""
    shifts = xp.asarray(shifts_px, np.float32)
    y, x = xp.asarray(np.fft.fftfreq(box_px)), xp.asarray(np.fft.rfftfreq(box_px))
    turn = 2j * np.pi
    down = xp.exp(turn * shifts[:, 1:] * y).astype(np.complex64)
    right = xp.exp(turn * shifts[:, :1] * x).astype(np.complex64)
    return down[:, :, None] * right[:, None, :]


# --- Images ---------------------------------------------------------------------------------------


def search_poses(
    images: Any, bank: PoseBank, optics: Optics | None = None, *, best_only: bool = False
) -> Found:
    """Find the poses of images, and how likely each group of references is.

    Parameters
    ----------
    images : array, shape (n, box_px, box_px)
        NumPy or CuPy.
    bank
        Of `prepare_poses`.
    optics
        Of the images; None where they have no CTF.
    best_only
        Whether the likelihood of a group is that of its best pose, and not of all.

    Returns
    -------
    Found
        What an image gives does not depend on those beside it.
    """
    xp = array_namespace(images)
    tables = _Tables(bank, xp)
    step = IMAGES_AT_ONCE[xp.__name__]
    found = []
    for start in range(0, len(images), step):
        some = slice(start, start + step)
        terms, square = _weigh(images[some], bank, optics and optics[some], xp)
        places = _find_peaks(_coarse_map(terms, square, tables), bank.plan, xp)
        best = _match(terms, square, *places, tables.middle).best_place()
        found.append(_match(terms, square, *best, tables.fine).judge(bank, best_only))
    if not found:
        n_groups = len(bank.group_ends)
        empty = xp.empty((0, n_groups), np.float32)
        return Found(empty, empty.astype(np.int64), empty, xp.empty((0, n_groups, 2), np.float32))
    return Found(*(xp.concatenate(parts) for parts in zip(*found, strict=True)))


class _Tables:
    """The bank in the array library of the images."""

    def __init__(self, bank: PoseBank, xp: Any) -> None:
        self.bank, self.xp = bank, xp
        self.coarse_power = pack_matrix(bank.coarse_power, xp)
        self.coarse_waves = _waves(bank.plan.coarse_shifts, len(bank.whitening), xp)
        self.views, self.synthesis = self._prepare_turns(xp)
        self.middle, self.fine = _Nearby(bank.middle, xp), _Nearby(bank.fine, xp)

    def _prepare_turns(self, xp: Any) -> tuple[list[Any], Any]:
        """Views of each angular order as real matrices, and the waves of the orders over turns."""
        basis, coarse = self.bank.basis, self.bank.coarse
        views = []
        for part in basis.slices:
            own = coarse[:, part].T
            # Real and imaginary part of conj(image) times view, of pairs (re, im) of the image.
            rows = np.stack(
                [np.concatenate([own.real, own.imag], 1), np.concatenate([own.imag, -own.real], 1)],
                1,
            )
            views.append(pack_matrix(rows.reshape(2 * len(own), -1), xp))
        orders = np.arange(len(basis.slices))
        n_turns = self.bank.plan.n_turns
        angle = 2 * np.pi * orders[:, None] * np.arange(n_turns) / n_turns
        weight = np.where(orders == 0, 1, 2)[:, None, None]
        waves = (weight * np.stack([np.cos(angle), np.sin(angle)], 1)).reshape(-1, n_turns)
        return views, xp.asarray(waves, np.float32)


def _weigh(images: Any, bank: PoseBank, optics: Optics | None, xp: Any) -> tuple[Any, Any]:
    """Whitened transforms times CTFs, (n, h, w); and the squared CTFs on the rings, (n, f)."""
    pixels = images.astype(np.result_type(images.dtype, np.float32), copy=False)
    terms = to_half_planes(pixels - over_pixels("mean", pixels)[:, None, None])
    terms *= xp.asarray(bank.whitening)
    shape = (len(images), len(bank.frequency))
    if optics is None:
        return terms, xp.ones(shape, np.float32)
    for which, ctf in optics.each(images.shape[1:], len(images), xp):
        terms[which] *= ctf
    square = xp.asarray(optics.power(bank.frequency), np.float32)
    return terms, xp.ascontiguousarray(xp.broadcast_to(square, shape))


def _coarse_map(terms: Any, square: Any, tables: _Tables) -> Any:
    """Highest log-likelihood of the views at all shifts and turns; (n, s, turns)."""
    xp, basis = tables.xp, tables.bank.basis
    n, n_shifts = len(terms), len(tables.coarse_waves)
    norm = multiply_rows(square, tables.coarse_power)
    n_views = norm.shape[1]
    highest = []
    for image, own in zip(terms, norm, strict=True):
        coefs = expand(image * tables.coarse_waves, basis).view(np.float32)
        orders = xp.empty((n_shifts, len(basis.slices), 2 * n_views), np.float32)
        for order, part in enumerate(basis.slices):
            rows = xp.ascontiguousarray(coefs[:, 2 * part.start : 2 * part.stop])
            orders[:, order] = multiply_rows(rows, tables.views[order])
        waves = tables.synthesis.T @ orders.reshape(n_shifts, -1, n_views)
        highest.append((waves - own).max(-1))
    return xp.stack(highest) if n else xp.empty((0, n_shifts, tables.synthesis.shape[1]))


def _find_peaks(values: Any, plan: PosePlan, xp: Any) -> tuple[Any, Any]:
    """Turns (n, p), degrees, and shifts (n, p, 2) of the highest peaks, best first."""
    n, _, n_turns = values.shape
    values = values.copy()
    shifts = plan.coarse_shifts
    step_deg = 360 / n_turns
    near_shift = np.abs(shifts[:, None] - shifts).max(-1) <= plan.shift_reach_px[0]
    gap = np.abs(np.arange(n_turns)[:, None] - np.arange(n_turns))
    near_turn = np.minimum(gap, n_turns - gap) * step_deg <= plan.turn_reach_deg[0] + step_deg
    near_shift, near_turn = xp.asarray(near_shift), xp.asarray(near_turn)
    turns, places = [], []
    for _ in range(plan.n_peaks):
        best = values.reshape(n, -1).argmax(1)
        place, turn = best // n_turns, best % n_turns
        turns.append(turn * step_deg)
        places.append(place)
        values[near_shift[place][:, :, None] & near_turn[turn][:, None]] = -np.inf
    return xp.stack(turns, 1), xp.asarray(shifts)[xp.stack(places, 1)]


class _Nearby:
    """A set of references nearby, in the array library of the images."""

    def __init__(self, nearby: NearbySet, xp: Any) -> None:
        self.basis = nearby.basis
        self.turns, self.shifts = xp.asarray(nearby.turns), xp.asarray(nearby.shifts)
        self.components = pack_matrix(nearby.components, xp)
        self.values = move_matrix(nearby.values, xp)
        self.held = xp.asarray(nearby.held)
        self.power = pack_matrix(nearby.power, xp)


class _Comparison(NamedTuple):
    """Log-likelihoods (n, peaks, references, turns and shifts), and where they are counted from."""

    values: Any
    turn_deg: Any
    shift_px: Any
    nearby: _Nearby

    def best_place(self) -> tuple[Any, Any]:
        """Turn (n, 1) and shift (n, 1, 2) of the most likely reference."""
        n, _, n_refs, n_local = self.values.shape
        best = self.values.reshape(n, -1).argmax(1)
        which, local = best // (n_refs * n_local), best % n_local
        n_shifts = len(self.nearby.shifts)
        turn = self.nearby.turns[local // n_shifts]
        shift = self.nearby.shifts[local % n_shifts]
        turn_deg, shift_px = self._move(which, turn, shift)
        return turn_deg[:, None], shift_px[:, None]

    def judge(self, bank: PoseBank, best_only: bool) -> tuple[Any, ...]:
        """Likelihood, reference, turn and shift of each group."""
        xp = array_namespace(self.values)
        n, n_peaks, _, n_local = self.values.shape
        rows = xp.arange(n)
        log_prior = xp.asarray(bank.log_prior)
        found = []
        for start, end in pairwise((0, *bank.group_ends)):
            own = self.values[:, :, start:end] + log_prior[start:end, None]
            own = own.reshape(n, -1)
            best = own.argmax(1)
            peak = own[rows, best]
            spread = xp.exp(own - peak[:, None])
            total = peak if best_only else peak + xp.log(spread.sum(1) / n_local)
            which = best // ((end - start) * n_local)
            reference = best // n_local % (end - start)
            # The pose is the mean over what is likely of the best view.
            weight = spread.reshape(n, n_peaks, end - start, n_local)[rows, which, reference]
            weight = (weight / weight.sum(1, keepdims=True)).reshape(n, len(self.nearby.turns), -1)
            # Sums, not products of matrices, whose bits depend on the number of images.
            turn = (weight.sum(2) * self.nearby.turns).sum(1)
            shift = (weight.sum(1)[..., None] * self.nearby.shifts).sum(1)
            place = self._move(which, turn, shift)
            found.append((total, reference + start, *place))
        total, reference, turn, shift = (xp.stack(p, 1) for p in zip(*found, strict=True))
        numbers = (each.astype(np.float32) for each in (total, turn % 360, shift))
        total, turn, shift = numbers
        return total, reference, turn, shift

    def _move(self, which: Any, turn: Any, shift: Any) -> tuple[Any, Any]:
        """Turn and shift of images that lie so beside peaks."""
        xp = array_namespace(self.values)
        rows = xp.arange(len(which))
        peak_deg = self.turn_deg[rows, which]
        angle = xp.deg2rad(peak_deg + turn)
        c, s = xp.cos(angle), xp.sin(angle)
        x, y = shift[:, 0], shift[:, 1]
        offset = xp.stack([c * x - s * y, s * x + c * y], 1)
        return peak_deg + turn, self.shift_px[rows, which] + offset


def _match(terms: Any, square: Any, turn_deg: Any, shift_px: Any, nearby: _Nearby) -> _Comparison:
    """Compare images with references at turns and shifts about some places."""
    xp = array_namespace(terms)
    n, n_peaks = turn_deg.shape
    waves = _waves(shift_px.reshape(-1, 2), terms.shape[1], xp)
    coefs = expand(xp.repeat(terms, n_peaks, axis=0) * waves, nearby.basis)
    coefs = rotate(coefs, nearby.basis, -turn_deg.reshape(-1))
    features = multiply_rows(_pairs(coefs, nearby.basis), nearby.components)
    norm = multiply_rows(square, nearby.power)
    values = multiply_rows(features, nearby.values).reshape(n, n_peaks, *nearby.held.shape)
    values = values - norm[:, None, :, None] * nearby.held
    return _Comparison(values, turn_deg, shift_px, nearby)
