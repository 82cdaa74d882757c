"""Blocks of images on their way to the card and back: pinned buffers, streams, bounded memory."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from emdask.checks import sentence
from emdask.errors import DeviceError

# Threads that share a card: while one computes, one reads and one writes; the fourth is for the
# stage that is slowest.
THREADS_A_CARD = 4
# What a method works in on the card: 24 float32 images for each image, and what does not grow with
# their number. BM3D takes 64 bytes a pixel of the padded image, the image before and after, and up
# to 256 MiB for groups.
WORKING_BYTES_A_PIXEL = 96
WORKING_BYTES_FIXED = 256 * 2**20
# The rest is lost between allocations of unequal sizes, and to plans of Fourier transforms.
USABLE_SHARE = 0.9
# Of the working memory of such plans, what a thread keeps for its next piece.
PLAN_BYTES = 128 * 2**20

# Pixels of images that are worth a turn on the card: what each turn costs the host is little then.
BATCH_PIXELS = 1 << 24
# Of pinned memory by which arrays larger than it go to the card and back, a thread.
SLAB_BYTES = 64 * 2**20
REMEDY = 'End what else uses the card, take a larger one, or pass device="cpu" (--device cpu).'

Images = npt.NDArray[Any]
Result = TypeVar("Result")


def run_on_card(function: Callable[..., Result], *args: Any, n_bytes: int, what: str) -> Result:
    """Run a function that works on the card, on the stream of this thread.

    It waits until other threads leave it the memory that it needs. Where memory runs out after
    all, it runs once more, with the card to itself.

    Parameters
    ----------
    function, *args, n_bytes, what
        As of `emdask.backend.run_on`; ``function`` moves arrays by `upload` and `download`.

    Returns
    -------
    object
        What ``function`` returns.

    Raises
    ------
    DeviceError
        If the card has no room for it.
    """
    for reserved in (n_bytes, _total_bytes()):
        try:
            with _MEMORY.reserve(reserved), _stream() as stream:
                result = function(*args)
                stream.synchronize()
            _drop_plans()
            return result
        except MemoryError as error:
            # Its traceback holds the arrays for which there was no room.
            failure = error.with_traceback(None)
        _free_pool()
    raise _no_room(what, n_bytes) from failure


def upload(array: Images) -> Any:
    """Copy an array of the host to the card, through pinned memory.

    Parameters
    ----------
    array
        Of any shape and size.

    Returns
    -------
    cupy.ndarray
    """
    import cupy

    there = cupy.empty(array.shape, array.dtype.newbyteorder("="))
    source, target = np.ascontiguousarray(array).reshape(-1), there.reshape(-1)
    stream = cupy.cuda.get_current_stream()
    for part, slab in _slabs(source.size, target.dtype):
        slab[...] = source[part]
        target[part].set(slab, stream=stream)
        stream.synchronize()
    return there


def download(there: Any, out: Images | None = None) -> Images:
    """Copy an array of the card to ordinary memory of the host, through pinned memory.

    Parameters
    ----------
    there
        C-contiguous.
    out
        C-contiguous array of its shape and type; None for a new one.

    Returns
    -------
    numpy.ndarray
    """
    import cupy

    array = np.empty(there.shape, there.dtype) if out is None else out
    source, target = there.reshape(-1), array.reshape(-1)
    stream = cupy.cuda.get_current_stream()
    for part, slab in _slabs(target.size, target.dtype):
        source[part].get(stream=stream, out=slab)
        stream.synchronize()
        target[part] = slab
    return array


def _slabs(size: int, dtype: np.dtype[Any]) -> Iterator[tuple[slice, Images]]:
    """Parts of a flat array and pinned memory of their size, the same for all."""
    at_once = min(max(1, SLAB_BYTES // dtype.itemsize), max(1, size))
    pinned = _pinned((at_once,), dtype)
    for start in range(0, size, at_once):
        stop = min(start + at_once, size)
        yield slice(start, stop), pinned[: stop - start]


def run_in_pieces(
    function: Callable[..., Any], images: Images, *args: Any, along: Mapping[str, Any]
) -> Images:
    """Run a function on the card on a block of the host, in pieces that fit; see `on_device`.

    Parameters
    ----------
    function
        ``(images, *args, **along) -> images``, CuPy arrays; treats the images one by one.
    images : array, shape (n, h, w)
        Any real type; uploaded as stored, in the byte order of the machine.
    *args
        Passed on to ``function``.
    along
        Keyword arguments of ``function``; of each, a slice serves a piece.

    Returns
    -------
    array
        As many images; in ordinary memory, so that pinned memory is two buffers a thread, whatever
        becomes of the results: a piece as it was stored and what became of it.

    Raises
    ------
    DeviceError
        If the card has no room for one image.
    """
    result: Images | None = None
    start, count, alone = 0, _images_a_piece(images), False
    while result is None or start < len(images):
        piece = images[start : start + count]
        n_bytes = _total_bytes() if alone else working_bytes(piece.shape)
        try:
            with _MEMORY.reserve(n_bytes):
                parts = {name: value[start : start + count] for name, value in along.items()}
                done = _run_piece(partial(function, **parts), piece, args)
        except MemoryError as error:
            # Its traceback holds the arrays for which there was no room.
            failure = error.with_traceback(None)
            done = None
        if done is None:
            _free_pool()
            if len(piece) <= 1 and alone:
                raise _no_image_fits(piece) from failure
            count, alone = max(1, len(piece) // 2), len(piece) <= 1
            continue
        if result is None:
            result = np.empty((len(images), *done.shape[1:]), done.dtype)
        result[start : start + len(piece)] = done
        del done  # its pinned memory serves the next piece
        start += len(piece)
        alone = False
    return result


def working_bytes(shape: tuple[int, ...]) -> int:
    """Memory of the card that images of this shape are taken to need.

    Examples
    --------
    >>> working_bytes((1, 4096, 4096)) / 2**20
    1792.0
    """
    return prod(shape) * WORKING_BYTES_A_PIXEL + WORKING_BYTES_FIXED


def batch_size(shape: tuple[int, int]) -> int:
    """How many images of this shape are worth a turn on the card.

    Examples
    --------
    >>> batch_size((128, 128))
    1024
    """
    return max(1, BATCH_PIXELS // prod(shape))


def _images_a_piece(images: Images) -> int:
    share = share_bytes() - WORKING_BYTES_FIXED
    an_image = max(1, prod(images.shape[1:]) * WORKING_BYTES_A_PIXEL)
    return int(min(max(1, share // an_image), max(1, len(images))))


def share_bytes() -> int:
    """Memory of the card that one of the threads that share it may take."""
    return _usable_bytes() // THREADS_A_CARD


def _run_piece(function: Callable[..., Any], piece: Images, args: tuple[Any, ...]) -> Images:
    """Upload, compute and download on the stream of this thread; the result is in pinned memory."""
    import cupy

    sent = _pinned(piece.shape, piece.dtype.newbyteorder("="))
    sent[...] = piece
    with _stream() as stream:
        there = cupy.empty(sent.shape, sent.dtype)
        there.set(sent, stream=stream)
        result = function(there, *args)
        back = _pinned(result.shape, result.dtype)
        result.get(stream=stream, out=back)
        stream.synchronize()
    _drop_plans()
    return back


def _pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Images:
    """Host memory that the card reads and writes itself.

    Of CuPy's pool, which rounds it up to a power of two bytes and keeps it: of two buffers a
    thread, each is up to twice a piece.
    """
    import cupy

    n_bytes = max(1, prod(shape) * dtype.itemsize)
    return np.ndarray(shape, dtype, cupy.cuda.alloc_pinned_memory(n_bytes))


_thread = threading.local()


def _stream() -> Any:
    """Return this thread's stream, which waits for no other."""
    import cupy

    if not hasattr(_thread, "stream"):
        _thread.stream = cupy.cuda.Stream(non_blocking=True)
    return _thread.stream


def _drop_plans() -> None:
    """Of this thread's plans of Fourier transforms keep those used last, up to `PLAN_BYTES`."""
    import cupy

    plans = cupy.fft.config.get_plan_cache()
    limit = plans.get_memsize()
    plans.set_memsize(PLAN_BYTES)
    # While it holds, transforming with a plan that alone is larger is an error.
    plans.set_memsize(limit)


class _Memory:
    """What the pieces on the card may need together; a piece waits until there is room for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken_bytes = 0
        self._waiting: deque[object] = deque()

    @contextmanager
    def reserve(self, n_bytes: int) -> Iterator[None]:
        """Take so much, first come, first served; where nothing is taken, however much it is."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            try:
                # Else small pieces would keep out a large one for as long as there are any.
                self._changed.wait_for(lambda: self._waiting[0] is ticket and self._fits(n_bytes))
                self._taken_bytes += n_bytes
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken_bytes -= n_bytes
                self._changed.notify_all()

    def _fits(self, n_bytes: int) -> bool:
        return self._taken_bytes == 0 or self._taken_bytes + n_bytes <= _usable_bytes()


_MEMORY = _Memory()


def _usable_bytes() -> int:
    """Memory that this process can have: what is free, and what its pools hold already."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    held = cupy.get_default_memory_pool().total_bytes() + _rmm_pool_bytes()
    pytorch = _pytorch()
    # Each gives back what it keeps where another finds no room.
    held += pytorch.memory_reserved() if pytorch else 0
    return int(USABLE_SHARE * (free + held))


def _pytorch() -> Any:
    """PyTorch's side of the card, where a network has used it; None else."""
    side = sys.modules.get("torch.cuda")
    # Another thread may be importing it just now.
    is_used = getattr(side, "is_initialized", None)
    return side if is_used is not None and is_used() else None


def _rmm_pool_bytes() -> int:
    """Size of the RMM pool that `emdask.connect` asked for; 0 where there is none."""
    rmm = sys.modules.get("rmm")
    size = rmm and getattr(rmm.mr.get_current_device_resource(), "pool_size", None)
    return int(size()) if size else 0


def _total_bytes() -> int:
    import cupy

    return int(cupy.cuda.runtime.memGetInfo()[1])


def _free_pool() -> None:
    """Give back what CuPy and PyTorch keep, and this thread's plans of Fourier transforms."""
    import cupy

    cupy.fft.config.get_plan_cache().clear()
    cupy.get_default_memory_pool().free_all_blocks()
    if (pytorch := _pytorch()) is not None:
        pytorch.empty_cache()


def _no_image_fits(images: Images) -> DeviceError:
    h, w = images.shape[1:]
    return _no_room(f"one image of {w} x {h} pixels", working_bytes((1, h, w)))


def _no_room(what: str, n_bytes: int) -> DeviceError:
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    rule = f"{what} needs about {n_bytes:,} bytes of the card's memory, and {free:,} are free"
    return DeviceError(sentence("device", rule, remedy=REMEDY))
