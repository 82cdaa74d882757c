"""Batches to train denoisers on, read from stacks of any size a few chunks at a time.

What a batch holds follows from the seed, the epoch and its number: a training that was stopped goes
on with the very batches that it would have had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace, run_on, to_device
from emdask.blocks_cuda import working_bytes
from emdask.checks import sentence
from emdask.errors import StackError
from emdask.kernels.batch import Batch
from emdask.kernels.training_noise import NoiseToAdd, add_training_noise
from emdask.kernels.unit_noise import to_unit_noise
from emdask.lazy import clean_pixels, take_images

Array = npt.NDArray[Any]
Rng = np.random.Generator

# Of images in memory at once, with those that are read meanwhile twice as many.
BUFFER_BYTES = 256 * 2**20
# With fewer images, parts of each are held out, not whole ones.
FEW_IMAGES = 10
MOST_VALIDATION = 512
# Of a card, where noise is added to many pieces at once.
PIXELS_AT_ONCE = 1 << 22
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
    device
        Where noise is added, "cpu" or "cuda".

    Raises
    ------
    StackError
        If images are too small, or too few to hold some out.
    """

    def __init__(self, parts: Sequence[Part], drawing: Drawing, device: str = "cpu") -> None:
        self.parts = tuple(parts)
        self.drawing = drawing
        self.device = device
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
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as drawer:
            pending = reader.submit(self._load, wanted[0][0]) if wanted else None
            for k, (group, skipped) in enumerate(wanted):
                assert pending is not None
                loaded = pending.result()
                if k + 1 < len(wanted):
                    pending = reader.submit(self._load, wanted[k + 1][0])
                yield from self._draw_group(epoch, group, skipped, loaded, drawer)

    def _draw_group(
        self, epoch: int, group: int, skipped: int, loaded: _Loaded, drawer: ThreadPoolExecutor
    ) -> Iterator[Batch]:
        """Draw the batches of a group; each while those before are learnt from."""
        index, _ = self.groups[group]
        pieces = self._pieces(index, loaded.numbers, held_out=False)
        rng = np.random.default_rng([self.drawing.seed, epoch, group])
        order = rng.permutation(len(pieces))
        size = self.drawing.batch
        batches = [
            [pieces[i] for i in order[start : start + size]] for start in range(0, len(order), size)
        ]
        # The last batch may have fewer pieces than there are processes.
        mine = [b[self.drawing.rank :: self.drawing.n_ranks] or b[:1] for b in batches]
        step = self._count_at_once(index)
        sets = [mine[start : start + step] for start in range(0, len(mine), step)]
        sets, skipped = sets[skipped // step :], skipped % step
        which = (TRAINING, epoch)
        pending = drawer.submit(self._draw_set, index, sets[0], loaded, which)
        for k in range(len(sets)):
            drawn = pending.result()
            if k + 1 < len(sets):
                pending = drawer.submit(self._draw_set, index, sets[k + 1], loaded, which)
            yield from drawn[skipped if k == 0 else 0 :]

    def _count_at_once(self, index: int) -> int:
        """Return how many batches are drawn at once: a card wants many images at a time."""
        if self.device == "cpu":
            return 1
        return max(
            1, PIXELS_AT_ONCE // (self.drawing.batch * self._crop_px(self.parts[index]) ** 2)
        )

    def _draw_set(
        self,
        index: int,
        batches: Sequence[Sequence[_Piece]],
        loaded: _Loaded,
        which: tuple[int, int],
    ) -> list[Batch]:
        """Draw some batches of a stack."""
        whole = self._draw(index, list(chain.from_iterable(batches)), loaded, which)
        ends = np.cumsum([0, *map(len, batches)])
        parts = [slice(start, stop) for start, stop in pairwise(ends)]
        return [
            Batch(whole.noisy[part], None if whole.target is None else whole.target[part])
            for part in parts
        ]

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
            return self._make_noisy(target, seeds)
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

    def _make_noisy(self, clean: Array, seeds: Sequence[Sequence[int]]) -> Batch:
        """Scale clean pieces by a ratio of signal to noise, and add noise; both at unit noise."""
        what = f"a batch of {len(clean)} images to learn from"
        n_bytes = working_bytes(clean.shape)
        return run_on(self.device, self._add_noise, clean, seeds, n_bytes=n_bytes, what=what)

    def _add_noise(self, clean: Array, seeds: Sequence[Sequence[int]]) -> Batch:
        rngs = [np.random.default_rng([*seed, 1]) for seed in seeds]
        noise = NoiseToAdd(*np.transpose([self._draw_noise(rng) for rng in rngs]))
        there = to_device(clean, self.device)
        xp = array_namespace(there)
        if xp is np:
            white = np.stack([rng.standard_normal(clean[0].shape, np.float32) for rng in rngs])
        else:
            # Another noise than the host's, in a hundredth of the time.
            seed = int(np.random.SeedSequence(seeds[0]).generate_state(1, np.uint64)[0] >> 1)
            white = xp.random.default_rng(seed).standard_normal(clean.shape, np.float32)
        return Batch(*add_training_noise(there, white, noise))

    def _draw_noise(self, rng: Rng) -> tuple[float, ...]:
        """Draw how much noise a piece gets, and of which colour."""
        assert self.drawing.snr is not None
        low, high = np.log(self.drawing.snr)
        snr = np.exp(rng.uniform(low, high))
        if rng.random() >= self.drawing.coloured:
            return snr, 0.0, 1.0, 1.0
        rise, knee, left = (rng.uniform(*span) for span in (RISES, KNEES, LEFT_AT_NYQUIST))
        return snr, rise, knee, left


def _stack(arrays: Sequence[Array | None]) -> Array | None:
    known = [array for array in arrays if array is not None]
    return np.stack(known) if known else None
