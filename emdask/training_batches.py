"""Batches to train denoisers on, read from stacks of any size a few chunks at a time.

What a batch holds follows from the seed, the epoch and its number: a training that was stopped goes
on with the very batches that it would have had.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from emdask.checks import sentence
from emdask.errors import StackError
from emdask.kernels.batch import Batch
from emdask.kernels.coloured_noise import colour_noise, noise_gain
from emdask.kernels.unit_noise import to_unit_noise
from emdask.lazy import clean_pixels, take_images

Array = npt.NDArray[Any]
Rng = np.random.Generator

# Of images in memory at once, with those that are read meanwhile twice as many.
BUFFER_BYTES = 256 * 2**20
# With fewer images, parts of each are held out, not whole ones.
FEW_IMAGES = 10
MOST_VALIDATION = 512
# What is drawn: of training, of validation, which images are held out, how chunks are grouped.
TRAINING, VALIDATION, HELD_OUT, GROUPS = range(4)
# Of coloured noise: how much stronger it is at low frequencies, where that ends in cycles a pixel,
# and how much of its power is left at Nyquist.
RISES, KNEES, LEFT_AT_NYQUIST = (0.5, 8.0), (0.02, 0.12), (0.4, 1.0)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images of one size.

    Parameters
    ----------
    noisy : dask.array.Array, shape (n, h, w)
        Noisy images; None where noise is added to clean ones.
    target : dask.array.Array, shape (n, h, w)
        Clean images, or others of the same with other noise; None where there are none.
    target_is_clean
        Which of the two.
    """

    noisy: da.Array | None
    target: da.Array | None
    target_is_clean: bool

    @property
    def images(self) -> da.Array:
        """The images that say how many there are and how they are chunked."""
        images = self.target if self.noisy is None else self.noisy
        assert images is not None
        return images


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How pieces are drawn.

    Parameters
    ----------
    batch
        Pieces in a batch.
    crop_px
        Longest edge of a piece.
    stride
        Edges are multiples of it.
    validation
        Share that is held out.
    seed
        Of all random numbers.
    snr
        Range of signal-to-noise ratios of the noise that is added; None where images have theirs.
    coloured
        Share of the pieces whose added noise is coloured.
    either_contrast
        Whether half of the pieces are turned from light to dark.
    bad_pixels
        "raise" or "replace".
    rank, n_ranks
        Which of several processes this is, each of which takes its share of every batch.
    """

    batch: int
    crop_px: int
    stride: int
    validation: float
    seed: int
    snr: tuple[float, float] | None
    coloured: float
    either_contrast: bool
    bad_pixels: str
    rank: int = 0
    n_ranks: int = 1


class _Loaded(NamedTuple):
    """Images in memory, in units of their noise where they have any, and their numbers."""

    numbers: Array
    noisy: Array | None
    target: Array | None


class _Piece(NamedTuple):
    """One piece of an image: where that is among those in memory, its number, and the piece's."""

    place: int
    image: int
    number: int


class Batches:
    """Batches of some stacks, for training and for validation.

    Parameters
    ----------
    parts
        The stacks; a batch is of one of them.
    drawing
        How pieces are drawn.
    n_ahead
        Batches that are drawn at once, each by a thread, while one is learnt from; which they are
        does not depend on it.

    Raises
    ------
    StackError
        If images are too small, or too few to hold some out.
    """

    def __init__(self, parts: Sequence[Part], drawing: Drawing, n_ahead: int = 1) -> None:
        self.parts = tuple(parts)
        self.drawing = drawing
        self.n_ahead = n_ahead
        for part in self.parts:
            self._check(part)

    def _check(self, part: Part) -> None:
        if self._crop_px(part) >= self.drawing.stride:
            return
        n, height, width = part.images.shape
        least = self.drawing.stride
        rule = f"images must be of at least {least} x {least} pixels to train on"
        few = n < FEW_IMAGES and self.drawing.validation > 0
        if few:
            rule += f", {FEW_IMAGES} or more of them, or twice as high, since some are held out"
        remedy = "Or pass validation=0." if few else ""
        raise StackError(sentence("train_denoiser", rule, (n, height, width), remedy))

    def _crop_px(self, part: Part) -> int:
        """Edge of the square pieces of a stack."""
        n, height, width = part.images.shape
        if n < FEW_IMAGES and self.drawing.validation > 0:
            # Two pieces must lie above one another: one to learn from, one that is held out.
            height //= 2
        edge = min(height, width, self.drawing.crop_px)
        return int(edge // self.drawing.stride * self.drawing.stride)

    # --- What is held out -------------------------------------------------------------------------

    @cached_property
    def _held_out(self) -> tuple[Array, ...]:
        """Numbers of the images of each stack that are held out as wholes, rising."""
        return tuple(self._hold_out(index) for index in range(len(self.parts)))

    def _hold_out(self, index: int) -> Array:
        n = self.parts[index].images.shape[0]
        if n < FEW_IMAGES or self.drawing.validation == 0:
            return np.arange(0)
        n_held = min(max(1, round(self.drawing.validation * n)), MOST_VALIDATION)
        rng = np.random.default_rng([self.drawing.seed, HELD_OUT, index])
        return np.sort(rng.choice(n, n_held, replace=False))

    def _rows(self, index: int, held_out: bool) -> tuple[int, int]:
        """Return the rows of each image from which pieces come."""
        n, height, _ = self.parts[index].images.shape
        if n >= FEW_IMAGES or self.drawing.validation == 0:
            return 0, height
        crop_px = self._crop_px(self.parts[index])
        n_held = min(max(round(self.drawing.validation * height), crop_px), height - crop_px)
        return (height - n_held, height) if held_out else (0, height - n_held)

    def _count_pieces(self, index: int, held_out: bool) -> int:
        """Return how many pieces of an image cover it once."""
        first, last = self._rows(index, held_out)
        width: int = self.parts[index].images.shape[2]
        area = self._crop_px(self.parts[index]) ** 2
        return max(1, round((last - first) * width / area))

    def _pieces(self, index: int, numbers: Array, held_out: bool) -> list[_Piece]:
        """List the pieces of some images."""
        each = range(self._count_pieces(index, held_out))
        return [_Piece(i, int(number), k) for i, number in enumerate(numbers) for k in each]

    # --- Groups of chunks -------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Stack and chunks of what is in memory at once; chunks of a group are from all over it."""
        found = []
        for index, part in enumerate(self.parts):
            sizes = part.images.chunks[0]
            n_bytes = 4 * math.prod(part.images.shape) * (2 if part.target is not None else 1)
            n_groups = min(len(sizes), max(1, -(-n_bytes // BUFFER_BYTES)))
            rng = np.random.default_rng([self.drawing.seed, GROUPS, index])
            order = rng.permutation(len(sizes))
            found += [(index, tuple(map(int, order[k::n_groups]))) for k in range(n_groups)]
        return tuple(found)

    def _numbers_of(self, group: int) -> tuple[Array, Array]:
        """Return the numbers of the images of a group, and which of them are learnt from."""
        index, chunks = self.groups[group]
        starts = np.cumsum([0, *self.parts[index].images.chunks[0]])
        numbers: Array = np.concatenate([np.arange(starts[c], starts[c + 1]) for c in chunks])
        return numbers, ~np.isin(numbers, self._held_out[index])

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Batches of each group."""
        counts = []
        for group, (index, _) in enumerate(self.groups):
            _, learnt = self._numbers_of(group)
            n = int(learnt.sum()) * self._count_pieces(index, held_out=False)
            counts.append(-(-n // self.drawing.batch))
        return tuple(counts)

    @property
    def n_steps(self) -> int:
        """Batches of an epoch."""
        return sum(self.steps)

    # --- Batches ----------------------------------------------------------------------------------

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Draw the batches of an epoch, from one on; the next group is read meanwhile."""
        order = np.random.default_rng([self.drawing.seed, epoch]).permutation(len(self.groups))
        ends = np.cumsum([self.steps[group] for group in order])
        wanted = [
            (int(group), max(0, first - int(end) + self.steps[group]))
            for group, end in zip(order, ends, strict=True)
            if end > first
        ]
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self.n_ahead) as drawers:
            pending = reader.submit(self._load, wanted[0][0]) if wanted else None
            for k, (group, skipped) in enumerate(wanted):
                assert pending is not None
                loaded = pending.result()
                if k + 1 < len(wanted):
                    pending = reader.submit(self._load, wanted[k + 1][0])
                yield from self._draw_group(epoch, group, skipped, loaded, drawers)

    def _draw_group(
        self, epoch: int, group: int, skipped: int, loaded: _Loaded, drawers: ThreadPoolExecutor
    ) -> Iterator[Batch]:
        """Draw the batches of a group; each while those before are learnt from."""
        index, _ = self.groups[group]
        pieces = self._pieces(index, loaded.numbers, held_out=False)
        rng = np.random.default_rng([self.drawing.seed, epoch, group])
        order = rng.permutation(len(pieces))
        size = self.drawing.batch
        batches = [
            [pieces[i] for i in order[start : start + size]] for start in range(0, len(order), size)
        ][skipped:]
        # The last batch may have fewer pieces than there are processes.
        mine = [b[self.drawing.rank :: self.drawing.n_ranks] or b[:1] for b in batches]
        which = (TRAINING, epoch)
        pending: deque[Future[Batch]] = deque()
        for k in range(len(mine) + self.n_ahead):
            if k < len(mine):
                pending.append(drawers.submit(self._draw, index, mine[k], loaded, which))
            if k >= self.n_ahead:
                yield pending.popleft().result()

    def validation(self) -> Iterator[Batch]:
        """Draw the batches that are held out: the same each time."""
        if self.drawing.validation == 0:
            return
        for index, part in enumerate(self.parts):
            n = part.images.shape[0]
            numbers = np.arange(n) if n < FEW_IMAGES else self._held_out[index]
            for start in range(0, len(numbers), self.drawing.batch):
                some = numbers[start : start + self.drawing.batch]
                loaded = self._load_held_out(index, some)
                pieces = self._pieces(index, some, held_out=True)
                for at in range(0, len(pieces), self.drawing.batch):
                    chosen = pieces[at : at + self.drawing.batch]
                    yield self._draw(index, chosen, loaded, (VALIDATION, 0))

    def _load(self, group: int) -> _Loaded:
        """Read the images of a group that are learnt from, by whole chunks."""
        index, chunks = self.groups[group]
        numbers, learnt = self._numbers_of(group)
        return self._load_images(
            index,
            numbers[learnt],
            lambda images: da.concatenate([images.blocks[c] for c in chunks]),
            learnt,
        )

    def _load_held_out(self, index: int, numbers: Array) -> _Loaded:
        """Read some images alone, by rising numbers."""
        return self._load_images(index, numbers, lambda images: take_images(images, numbers))

    def _load_images(
        self,
        index: int,
        numbers: Array,
        take: Callable[[da.Array], da.Array],
        wanted: Any = slice(None),
    ) -> _Loaded:
        """Read images and bring them to unit noise, where they have noise of their own."""
        part = self.parts[index]
        arrays = dask.compute(*(take(a) for a in (part.noisy, part.target) if a is not None))
        read = [self._clean(np.asarray(a)[wanted], numbers) for a in arrays]
        if part.noisy is None:
            return _Loaded(numbers, None, read[0])
        unit, scales, means, _ = to_unit_noise(read[0], "auto")
        if part.target is None:
            return _Loaded(numbers, unit, None)
        if not part.target_is_clean:
            means = read[1].mean(axis=(1, 2), dtype=np.float64, keepdims=True)
        return _Loaded(numbers, unit, ((read[1] - means) / scales).astype(np.float32))

    def _clean(self, images: Array, numbers: Array) -> Array:
        """Refuse or replace bad pixels; images are named by their numbers in the stack."""
        how = self.drawing.bad_pixels
        checked = [clean_pixels(images[i : i + 1], int(k), how) for i, k in enumerate(numbers)]
        found: Array = np.concatenate([images[:0], *checked]).astype(np.float32, copy=False)
        return found

    def _draw(
        self, index: int, pieces: Sequence[_Piece], loaded: _Loaded, which: tuple[int, int]
    ) -> Batch:
        """Draw a batch of pieces."""
        crop_px = self._crop_px(self.parts[index])
        rows = self._rows(index, held_out=which[0] == VALIDATION)
        seeds = [[self.drawing.seed, *which, index, p.image, p.number] for p in pieces]
        drawn = []
        for piece, seed in zip(pieces, seeds, strict=True):
            both = (loaded.noisy, loaded.target)
            arrays = [None if array is None else array[piece.place] for array in both]
            drawn.append(self._draw_piece(arrays, rows, crop_px, np.random.default_rng(seed)))
        noisy, target = (_stack([pair[k] for pair in drawn]) for k in (0, 1))
        if noisy is None:
            assert target is not None
            return self._make_noisy(target, [np.random.default_rng([*seed, 1]) for seed in seeds])
        return Batch(noisy, target)

    def _draw_piece(
        self, arrays: Sequence[Array | None], rows: tuple[int, int], crop_px: int, rng: Rng
    ) -> tuple[Array | None, ...]:
        """Cut a square out of an image, and out of what it should become; turned anyhow."""
        known = next(array for array in arrays if array is not None)
        top = int(rng.integers(rows[0], rows[1] - crop_px + 1))
        left = int(rng.integers(0, known.shape[1] - crop_px + 1))
        turn, flip = int(rng.integers(4)), bool(rng.integers(2))
        sign = np.float32(-1 if self.drawing.either_contrast and rng.random() < 0.5 else 1)

        def cut(array: Array) -> Array:
            square = np.rot90(array[top : top + crop_px, left : left + crop_px], turn)
            return np.asarray(sign * (square[:, ::-1] if flip else square))

        return tuple(None if array is None else cut(array) for array in arrays)

    def _make_noisy(self, clean: Array, rngs: Sequence[Rng]) -> Batch:
        """Scale clean pieces by a ratio of signal to noise, and add noise; both at unit noise."""
        assert self.drawing.snr is not None
        low, high = np.log(self.drawing.snr)
        clean = clean - clean.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        deviations = clean.std(axis=(1, 2), dtype=np.float64)
        noisy = np.empty_like(clean)
        for i, rng in enumerate(rngs):
            gain = np.exp(rng.uniform(low, high) / 2) / (deviations[i] or 1.0)
            clean[i] *= np.float32(gain)
            noisy[i] = clean[i] + self._draw_noise(clean[i].shape, rng)
        unit, scales, means, _ = to_unit_noise(noisy, "auto")
        return Batch(unit, ((clean - means) / scales).astype(np.float32))

    def _draw_noise(self, shape: tuple[int, ...], rng: Rng) -> Array:
        white = rng.standard_normal(shape, np.float32)
        if rng.random() >= self.drawing.coloured:
            return white
        rise, knee, left = (rng.uniform(*span) for span in (RISES, KNEES, LEFT_AT_NYQUIST))
        gain = noise_gain((shape[0], shape[1]), rise=rise, knee=knee, power_at_nyquist=left)
        coloured: Array = colour_noise(white[None], gain)[0]
        return coloured


def _stack(arrays: Sequence[Array | None]) -> Array | None:
    known = [array for array in arrays if array is not None]
    return np.stack(known) if known else None
