"""A stand-in for CuPy and cuCIM over NumPy, whose raw kernels run on fibres of one host thread.

What it has not is NumPy's. Memory is counted: creating an array larger than what is free on the
`Card` raises, as on a card. ``cupy.empty`` is full of NaN.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import inspect
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage

from tests.cuda_host import host

POISON = 0xFF
PINNED_UNIT_BYTES = 512
SHARED_BYTES_BY_DEFAULT = 48 * 1024
ATTRIBUTES = {
    "MaxSharedMemoryPerBlock": SHARED_BYTES_BY_DEFAULT,
    "MaxSharedMemoryPerBlockOptin": host.MAX_SHARED_BYTES,
    "MaxSharedMemoryPerMultiprocessor": 233472,
    "MaxThreadsPerBlock": host.MAX_THREADS,
    "MultiProcessorCount": 132,
    "ReservedSharedMemoryPerBlock": 1024,
    "WarpSize": 32,
}
# Of NumPy 2.5's functions, those that CuPy 14.2 has not.
NOT_IN_CUPY = (
    *("asmatrix", "block", "bmat", "einsum_path", "errstate", "frompyfunc", "geomspace", "insert"),
    *("histogram_bin_edges", "matrix", "matvec", "memmap", "nanpercentile", "nanquantile"),
    *("ndenumerate", "nditer", "polyder", "polydiv", "polyint", "spacing", "unstack", "vecdot"),
    "vecmat",
)
# Of functions of both, parameters that CuPy's do not take.
NOT_TAKEN = frozenset(("where", "initial", "workers", "orthogonalize"))
# Functions of CuPy 14.2's cupyx.scipy.ndimage by the parameters that they take: required, optional,
# and those that must be named. SciPy's have more.
FILTER = "output mode cval"
MORPHOLOGY = "structure iterations mask output border_value origin brute_force"
NDIMAGE = {
    "binary_dilation": ("input", MORPHOLOGY, "axes"),
    "binary_erosion": ("input", MORPHOLOGY, "axes"),
    "convolve": ("input weights", f"{FILTER} origin", "axes"),
    "convolve1d": ("input weights", f"axis {FILTER} origin", ""),
    "correlate": ("input weights", f"{FILTER} origin", "axes"),
    "correlate1d": ("input weights", f"axis {FILTER} origin", ""),
    "distance_transform_edt": (
        "image",
        "sampling return_distances return_indices distances indices",
        "",
    ),
    "find_objects": ("input", "max_label", ""),
    "gaussian_filter": ("input sigma", f"order {FILTER} truncate radius axes", ""),
    "gaussian_filter1d": ("input sigma", f"axis order {FILTER} truncate", ""),
    "label": ("input", "structure output", ""),
    "laplace": ("input", FILTER, "axes"),
    "maximum_filter": ("input", f"size footprint {FILTER} origin axes", ""),
    "median_filter": ("input", f"size footprint {FILTER} origin axes", ""),
    "minimum_filter": ("input", f"size footprint {FILTER} origin axes", ""),
    "percentile_filter": ("input percentile", f"size footprint {FILTER} origin axes", ""),
    "rank_filter": ("input rank", f"size footprint {FILTER} origin axes", ""),
    "sum_labels": ("input", "labels index", ""),
    "uniform_filter": ("input", f"size {FILTER} origin axes", ""),
    "uniform_filter1d": ("input size", f"axis {FILTER} origin", ""),
}
# Likewise of cuCIM 26.10's cucim.skimage.restoration.
RESTORATION = {
    "denoise_tv_chambolle": ("image", "weight eps max_num_iter", "channel_axis"),
    "richardson_lucy": ("image psf", "num_iter clip filter_epsilon", ""),
    "unsupervised_wiener": ("image psf", "reg user_params is_real clip", "rng"),
    "wiener": ("image psf balance", "reg is_real clip", ""),
}


class CUDARuntimeError(RuntimeError):
    """Error of the CUDA runtime."""


class CUDADriverError(RuntimeError):
    """Error of the CUDA driver."""


class OutOfMemoryError(MemoryError):
    """The card has not as much free memory."""

    def __init__(self, size: int, total: int) -> None:
        super().__init__(
            f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes)."
        )


@dataclass
class Card:
    """What tests choose and see of the card.

    Attributes
    ----------
    free_bytes, total_bytes
        Memory that is free before anything is created, and all memory.
    order, guarded
        How kernels are launched; see `host.Kernel.launch`.
    strict
        Whether arrays are of a class of their own, which kernels and functions insist on, as
        CuPy does. Else they are plain NumPy arrays.
    used_bytes, peak_bytes
        Of arrays that functions of ``cupy`` created: now, and at most.
    launches
        Number of launches by kernel.
    """

    free_bytes: int = 80 * 2**30
    total_bytes: int = 80 * 2**30
    order: int = 0
    guarded: bool = False
    strict: bool = False
    used_bytes: int = 0
    peak_bytes: int = 0
    launches: Counter[str] = field(default_factory=Counter)
    _lock: Any = field(default_factory=threading.RLock, repr=False)
    _roots: set[int] = field(default_factory=set, repr=False)

    def reserve(self, n_bytes: int) -> None:
        """Refuse what does not fit."""
        if self.used_bytes + n_bytes > self.free_bytes:
            raise OutOfMemoryError(n_bytes, self.used_bytes)

    def hold(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Count a new array, until it and all its views are gone."""
        n_bytes = array.nbytes
        with self._lock:
            self.reserve(n_bytes)
            self.used_bytes += n_bytes
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            self._roots.add(id(array))
        weakref.finalize(array, self._release, id(array), n_bytes).atexit = False
        return array.view(ndarray) if self.strict else array

    def _release(self, key: int, n_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= n_bytes
            self._roots.remove(key)

    def has(self, array: object) -> bool:
        """Whether an array is known to lie on the card."""
        if isinstance(array, ndarray):
            return True
        while isinstance(array, np.ndarray):
            if id(array) in self._roots:
                return True
            array = array.base
        return False


def refuse_host_arrays(values: Iterable[Any]) -> None:
    """CuPy takes scalars beside its own arrays, but no array of NumPy."""
    for value in values:
        if isinstance(value, np.ndarray) and not isinstance(value, ndarray):
            raise TypeError(f"Unsupported type {np.ndarray}")
        if isinstance(value, (list, tuple)):
            refuse_host_arrays(value)


def refuse_parameters(kwargs: Iterable[str]) -> None:
    """CuPy's functions take fewer parameters than those of NumPy and SciPy."""
    if refused := NOT_TAKEN.intersection(kwargs):
        raise TypeError(f"got an unexpected keyword argument {refused}")


def to_host(value: Any) -> Any:
    """Change arrays of the card, also inside lists and tuples, to plain views."""
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(to_host(item) for item in value)
    return value


def to_card(value: Any) -> Any:
    """Change results to arrays of the card; a number is one of no dimensions."""
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value).view(ndarray)
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(to_card(item) for item in value)
    return value


class ndarray(np.ndarray):  # type: ignore[type-arg]  # noqa: N801
    """An array of the card, where the stand-in is strict."""

    __module__ = "cupy"

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute with arrays of the card and scalars alone."""
        refuse_host_arrays([*inputs, *options.get("out", ())])
        plain = {name: to_host(value) for name, value in options.items()}
        result = getattr(ufunc, method)(*to_host(inputs), **plain)
        return options["out"][0] if options.get("out") else to_card(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Compute NumPy's functions of arrays of the card on the card."""
        refuse_host_arrays([*args, *kwargs.values()])
        plain = {name: to_host(value) for name, value in kwargs.items()}
        return to_card(function(*to_host(args), **plain))

    def __getitem__(self, key: Any) -> Any:
        return to_card(super().__getitem__(to_host(key)))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __setitem__(self, key: Any, value: Any) -> None:
        refuse_host_arrays([value])
        super().__setitem__(to_host(key), to_host(value))

    def var(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        """Variance, whose mean and differences are of the array's own type, whatever is asked."""
        own = None if self.dtype.kind in "biu" else self.dtype
        differences = self - self.mean(axis=axis, dtype=own, keepdims=True)
        return (differences * differences).mean(axis=axis, dtype=dtype or own, keepdims=keepdims)

    def std(self, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Any:  # type: ignore[override]
        """Root of `var`."""
        return np.sqrt(self.var(axis, dtype, keepdims))

    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> Any:
        """Copy to the host."""
        return copy_to_host(self, order, out)

    def set(self, arr: np.ndarray[Any, Any], stream: Any = None) -> None:
        """Copy from an array of the host, of the same shape and type."""
        if not isinstance(arr, np.ndarray) or isinstance(arr, ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.dtype != self.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if arr.shape != self.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.c_contiguous:
            raise RuntimeError("Cannot set to non-contiguous array")
        self.view(np.ndarray)[...] = arr


def copy_to_host(array: Any, order: str, out: Any) -> np.ndarray[Any, Any]:
    """``cupy.ndarray.get``."""
    plain = np.asarray(array).view(np.ndarray)
    if out is None:
        return np.array(plain, order=order if order in "CFA" else "C")  # type: ignore[arg-type]
    if not isinstance(out, np.ndarray) or isinstance(out, ndarray):
        raise TypeError(f"Only numpy.ndarray can be obtained from cupy.ndarray; got {type(out)}")
    if out.dtype != plain.dtype:
        raise TypeError(f"{out.dtype} array cannot be obtained from {plain.dtype} array")
    if out.shape != plain.shape:
        raise ValueError(
            f"Shape mismatch. Expected shape: {plain.shape}, actual shape: {out.shape}"
        )
    if not (out.flags.c_contiguous or out.flags.f_contiguous):
        raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
    out[...] = plain
    return out


# --- Arrays ---------------------------------------------------------------------------------------


class Creation:
    """Functions of ``cupy`` that take memory of the card, or copy to the host.

    Parameters
    ----------
    card
        Whose memory they take.
    """

    NAMES = (
        *("empty", "full", "zeros", "ones", "empty_like", "zeros_like", "array", "asarray"),
        *("ascontiguousarray", "asnumpy", "get_array_module"),
    )

    def __init__(self, card: Card) -> None:
        self._card = card

    def empty(self, shape: Any, dtype: Any = float, order: Any = "C") -> Any:
        """Array of NaN."""
        self._card.reserve(int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize)
        array: np.ndarray[Any, Any] = np.empty(shape, dtype, order)
        array.ravel("K").view(np.uint8)[...] = POISON
        return self._card.hold(array)

    def full(self, shape: Any, fill_value: Any, dtype: Any = None, order: Any = "C") -> Any:
        """Array of one value."""
        array = self.empty(shape, np.asarray(fill_value).dtype if dtype is None else dtype, order)
        array[...] = fill_value
        return array

    def zeros(self, shape: Any, dtype: Any = float, order: Any = "C") -> Any:
        """Array of zeros."""
        return self.full(shape, 0, dtype, order)

    def ones(self, shape: Any, dtype: Any = float, order: Any = "C") -> Any:
        """Array of ones."""
        return self.full(shape, 1, dtype, order)

    def empty_like(self, prototype: Any, dtype: Any = None) -> Any:
        """Array of NaN of another's shape."""
        return self.empty(prototype.shape, dtype or prototype.dtype)

    def zeros_like(self, prototype: Any, dtype: Any = None) -> Any:
        """Array of zeros of another's shape."""
        return self.zeros(prototype.shape, dtype or prototype.dtype)

    def array(self, obj: Any, dtype: Any = None, copy: bool = True, order: Any = "K") -> Any:
        """Copy of an array of the host or the card."""
        plain = np.asarray(obj).view(np.ndarray)
        return self._card.hold(np.array(plain, dtype, order=order))

    def asarray(self, a: Any, dtype: Any = None, order: Any = None, **_: Any) -> Any:
        """The array itself if it is on the card; else a copy."""
        if self._card.has(a):
            plain = a.view(np.ndarray)
            changed = np.asarray(plain, dtype, order)
            if changed.size == 0 or np.shares_memory(changed, plain):
                return changed.view(type(a))
        return self.array(a, dtype, order=order or "K")

    def ascontiguousarray(self, a: Any, dtype: Any = None) -> Any:
        """As `asarray`, in C order."""
        return self.asarray(a, dtype, "C")

    def asnumpy(
        self,
        a: Any,
        stream: Any = None,
        order: str = "C",
        out: Any = None,
        *,
        blocking: bool = True,
    ) -> Any:
        """Copy to the host."""
        return copy_to_host(a, order, out)

    def get_array_module(self, *args: Any) -> ModuleType:
        """The stand-in, if an array is of the card's class; else NumPy."""
        return sys.modules["cupy"] if any(isinstance(a, ndarray) for a in args) else np


def numpy_attribute(card: Card, name: str) -> Any:
    """What the stand-in has not itself: NumPy's, which takes and returns what the card's does."""
    if name in NOT_IN_CUPY:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    found = getattr(np, name)
    if isinstance(found, type) or not callable(found) or not card.strict:
        return found

    @functools.wraps(found)
    def on_card(*args: Any, **kwargs: Any) -> Any:
        refuse_parameters(kwargs)
        refuse_host_arrays([*args, *kwargs.values()])
        plain = {key: to_host(value) for key, value in kwargs.items()}
        result = to_card(found(*to_host(args), **plain))
        return kwargs["out"] if kwargs.get("out") is not None else result

    return on_card


# --- Raw kernels ----------------------------------------------------------------------------------


class RawKernel:
    """A kernel of a `RawModule`."""

    def __init__(self, card: Card, kernel: host.Kernel) -> None:
        self._card = card
        self._kernel = kernel
        self._shared_bytes = SHARED_BYTES_BY_DEFAULT
        self.name = kernel.name
        self.max_threads_per_block = kernel.max_threads

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        """Most dynamic shared memory that a launch may ask for."""
        return self._shared_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, n_bytes: int) -> None:
        if not 0 <= n_bytes <= ATTRIBUTES["MaxSharedMemoryPerBlockOptin"]:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._shared_bytes = n_bytes

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        if not isinstance(grid, tuple) or not isinstance(block, tuple):
            raise TypeError(f"grid and block must be tuples; got {grid!r} and {block!r}")
        if shared_mem > self._shared_bytes:
            raise CUDADriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        if self._card.strict and any(type(value) is np.ndarray for value in args):
            raise TypeError("You are trying to pass a numpy.ndarray as a kernel parameter.")
        self._card.launches[self.name] += 1
        self._kernel.launch(
            [max(1, size) for size in grid],
            [max(1, size) for size in block],
            args,
            shared_bytes=shared_mem,
            order=self._card.order,
            guarded=self._card.guarded,
        )


class RawModule:
    """CUDA source that is compiled when a kernel is taken from it."""

    def __init__(
        self, card: Card, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc"
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError(f"options must be a tuple; got {options!r}")
        self._card = card
        self._code = code
        self._options = options

    def compile(self) -> None:
        """Compile now."""
        host.build(self._code, self._options)

    def get_function(self, name: str) -> RawKernel:
        """One of its kernels."""
        kernels = host.build(self._code, self._options)
        if name not in kernels:
            raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(self._card, kernels[name])


# --- Devices, streams, pinned memory --------------------------------------------------------------


class Event:
    """A time that a stream has reached."""

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self.seconds: float | None = None

    done = True

    def record(self, stream: Any = None) -> None:
        """Everything before it is done already."""
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing to wait for."""


class Stream:
    """Work is done at once, whatever the stream; only which one is current is kept."""

    null: Stream
    _of_thread = threading.local()

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.done = True

    @classmethod
    def entered(cls) -> list[Stream]:
        """Streams that this thread is inside of."""
        if not hasattr(cls._of_thread, "streams"):
            cls._of_thread.streams = [cls.null]
        streams: list[Stream] = cls._of_thread.streams
        return streams

    def __enter__(self) -> Stream:
        self.entered().append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.entered().pop()

    def use(self) -> Stream:
        """Make it current in this thread."""
        self.entered()[-1] = self
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Event) -> None:
        """Nothing to wait for."""

    def record(self, event: Event | None = None) -> Event:
        """Record an event."""
        event = event or Event()
        event.record(self)
        return event


Stream.null = Stream(null=True)


def get_current_stream(device_id: int = -1) -> Stream:
    """The stream of the innermost ``with``."""
    return Stream.entered()[-1]


def alloc_pinned_memory(size: int) -> memoryview:
    """Buffer of at least ``size`` bytes: as CuPy's, in whole units."""
    n_units = max(1, -(-size // PINNED_UNIT_BYTES))
    return np.full(n_units * PINNED_UNIT_BYTES, POISON, np.uint8).data


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray[Any, Any]:
    """Array of the host in pinned memory."""
    n_bytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, alloc_pinned_memory(n_bytes), order=order)  # type: ignore[call-overload]


def zeros_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray[Any, Any]:
    """Array of zeros of the host in pinned memory."""
    array = empty_pinned(shape, dtype, order)
    array[...] = 0
    return array


class Device:
    """The one card."""

    compute_capability = "90"
    attributes = ATTRIBUTES
    pci_bus_id = "0000:00:00.0"

    def __init__(self, card: Card, device: int | None = None) -> None:
        if device not in (None, 0):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self._card = card
        self.id = 0

    def __int__(self) -> int:
        return 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def use(self) -> Device:
        """Make it current: it is."""
        return self

    def synchronize(self) -> None:
        """Nothing to wait for."""

    @property
    def mem_info(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._card.free_bytes - self._card.used_bytes, self._card.total_bytes


class MemoryPool:
    """The pool of the card: it keeps nothing that is not in use."""

    def __init__(self, card: Card) -> None:
        self._card = card

    def free_all_blocks(self, stream: Any = None) -> None:
        """Nothing to free."""

    def used_bytes(self) -> int:
        """Bytes in use."""
        return self._card.used_bytes

    def total_bytes(self) -> int:
        """Bytes in use."""
        return self._card.used_bytes

    def free_bytes(self) -> int:
        """Bytes that it keeps."""
        return 0

    def get_limit(self) -> int:
        """No limit."""
        return 0


class PinnedMemoryPool:
    """The pool of pinned memory: it keeps nothing."""

    def free_all_blocks(self) -> None:
        """Nothing to free."""

    def n_free_blocks(self) -> int:
        """Blocks that it keeps."""
        return 0


class PlanCache:
    """Plans of Fourier transforms, those used last at the end, as CuPy keeps them for a thread.

    The transforms of the stand-in need no plans: tests put them here.
    """

    _of_thread = threading.local()

    def __init__(self, size: int = 16, memsize: int = -1) -> None:
        self._size = size
        self._memsize = memsize
        self._plans: dict[tuple[Any, ...], Any] = {}

    @classmethod
    def of_thread(cls) -> PlanCache:
        """The cache of this thread."""
        if not hasattr(cls._of_thread, "cache"):
            cls._of_thread.cache = cls()
        cache: PlanCache = cls._of_thread.cache
        return cache

    def __setitem__(self, key: tuple[Any, ...], plan: Any) -> None:
        if not self._size or not self._memsize:
            return
        n_bytes = plan.work_area.nbytes
        if n_bytes > self._memsize > 0:
            raise RuntimeError("the plan memsize is too large")
        self._plans.pop(key, None)
        self._eject(self._size - 1, -1 if self._memsize == -1 else self._memsize - n_bytes)
        self._plans[key] = plan

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        """A plan, which then is the last used."""
        if key not in self._plans:
            return default
        self._plans[key] = self._plans.pop(key)
        return self._plans[key]

    def _eject(self, size: int, memsize: int) -> None:
        while self._plans and (
            self.get_curr_size() > size or (memsize != -1 and self.get_curr_memsize() > memsize)
        ):
            del self._plans[next(iter(self._plans))]

    def get_memsize(self) -> int:
        """Most bytes of work areas; -1 without limit."""
        return self._memsize

    def set_memsize(self, memsize: int) -> None:
        """Limit the bytes of work areas."""
        self._eject(self._size, memsize)
        self._memsize = memsize

    def get_curr_size(self) -> int:
        """Number of plans."""
        return len(self._plans)

    def get_curr_memsize(self) -> int:
        """Bytes of their work areas."""
        return sum(plan.work_area.nbytes for plan in self._plans.values())

    def clear(self) -> None:
        """Forget all."""
        self._plans.clear()


# --- Modules --------------------------------------------------------------------------------------


def make_module(name: str, **attributes: Any) -> ModuleType:
    """A module of these attributes."""
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    vars(module).update(attributes)
    return module


def make_cuda(card: Card) -> dict[str, ModuleType]:
    """``cupy.cuda`` and its modules."""
    runtime = make_module(
        "cupy.cuda.runtime",
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDevice=lambda: 0,
        deviceSynchronize=lambda: None,
        memGetInfo=lambda: Device(card).mem_info,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        getDeviceProperties=lambda device: {"name": b"the host"},
    )
    memory = make_module("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError)
    driver = make_module("cupy.cuda.driver", CUDADriverError=CUDADriverError)
    cuda = make_module(
        "cupy.cuda",
        runtime=runtime,
        memory=memory,
        driver=driver,
        Device=functools.partial(Device, card),
        Event=Event,
        Stream=Stream,
        alloc_pinned_memory=alloc_pinned_memory,
        get_current_stream=get_current_stream,
        get_elapsed_time=lambda start, stop: 1e3 * (stop.seconds - start.seconds),
        is_available=lambda: True,
    )
    return {module.__name__: module for module in (runtime, memory, driver, cuda)}


def make_fourier(card: Card) -> dict[str, ModuleType]:
    """``cupyx.scipy.fft`` and ``cupy.fft``."""

    def find(library: ModuleType, name: str) -> Any:
        found = getattr(library, name)
        if not callable(found):
            return found

        def on_card(*args: Any, **kwargs: Any) -> Any:
            refuse_parameters(kwargs)
            if card.strict:
                refuse_host_arrays(args)
            result = found(*to_host(args), **kwargs)
            return to_card(result) if card.strict else result

        return on_card

    fft = make_module("cupyx.scipy.fft", __getattr__=functools.partial(find, scipy.fft))
    scipy_on_card = make_module("cupyx.scipy", fft=fft)
    config = SimpleNamespace(get_plan_cache=PlanCache.of_thread)
    numpy_on_card = make_module(
        "cupy.fft", __getattr__=functools.partial(find, np.fft), config=config
    )
    return {"cupyx.scipy": scipy_on_card, "cupyx.scipy.fft": fft, "cupy.fft": numpy_on_card}


# --- Functions of SciPy and scikit-image ----------------------------------------------------------


def make_signature(required: str, optional: str, named: str) -> inspect.Signature:
    """What a function takes, from lists of names."""
    kinds = inspect.Parameter
    some = [kinds(name, kinds.POSITIONAL_OR_KEYWORD) for name in required.split()]
    some += [kinds(name, kinds.POSITIONAL_OR_KEYWORD, default=None) for name in optional.split()]
    some += [kinds(name, kinds.KEYWORD_ONLY, default=None) for name in named.split()]
    return inspect.Signature(some)


def take_from(
    card: Card, library: ModuleType, functions: Mapping[str, tuple[str, str, str]]
) -> dict[str, Callable[..., Any]]:
    """Functions of a library of the host that take and return what the card's do."""

    def take(function: Any, signature: inspect.Signature) -> Callable[..., Any]:
        # By their place: what must be given may have another name on the host.
        required = [name for name, p in signature.parameters.items() if p.default is p.empty]

        @functools.wraps(function)
        def on_card(*args: Any, **kwargs: Any) -> Any:
            taken = signature.bind(*args, **kwargs).arguments
            if card.strict:
                refuse_host_arrays(taken.values())
            there = {name: to_host(value) for name, value in taken.items()}
            first = [there.pop(name) for name in required]
            result = function(*first, **there)
            if taken.get("output") is not None and isinstance(taken["output"], np.ndarray):
                return taken["output"]
            return to_card(result) if card.strict else result

        return on_card

    return {
        name: take(getattr(library, name), make_signature(*names))
        for name, names in functions.items()
    }


def make_random(card: Card) -> ModuleType:
    """``cupy.random``, as far as its generators go; their numbers are not those of NumPy."""

    class XORWOW:
        """A source of random bits."""

        def __init__(self, seed: Any = None) -> None:
            self.host = np.random.MT19937(seed)

    class Generator:
        """Random numbers on the card."""

        def __init__(self, bit_generator: XORWOW) -> None:
            self._host = np.random.Generator(bit_generator.host)

        def standard_normal(
            self, size: Any = None, dtype: Any = np.float64, out: Any = None
        ) -> Any:
            """Normal numbers."""
            return to_card(np.asarray(self._host.standard_normal(size, dtype)))

        def gamma(self, shape: Any, scale: Any = 1.0, size: Any = None) -> Any:
            """Numbers of the gamma distribution."""
            return to_card(np.asarray(self._host.gamma(shape, to_host(scale), size)))

    def default_rng(seed: Any = None) -> Generator:
        if isinstance(seed, Generator):
            return seed
        return Generator(seed if isinstance(seed, XORWOW) else XORWOW(seed))

    return make_module("cupy.random", Generator=Generator, XORWOW=XORWOW, default_rng=default_rng)


class DrawsOfCard(np.random.Generator):
    """Random numbers of a generator of the card, for a function of the host."""

    def __new__(cls, generator: Any) -> DrawsOfCard:
        """Made as NumPy makes its own."""
        return super().__new__(cls, np.random.PCG64(0))

    def __init__(self, generator: Any) -> None:
        super().__init__(np.random.PCG64(0))
        self._generator = generator

    def standard_normal(self, size: Any = None) -> Any:  # type: ignore[override]
        """Normal numbers."""
        return to_host(self._generator.standard_normal(size))

    def gamma(self, shape: Any, scale: Any) -> Any:  # type: ignore[override]
        """Numbers of the gamma distribution."""
        return to_host(self._generator.gamma(shape, to_card(scale)))


def make_restoration(card: Card, random: ModuleType) -> dict[str, ModuleType]:
    """``cucim.skimage.restoration``; its random numbers are those of ``cupy.random``."""
    from skimage import restoration

    functions = take_from(card, restoration, RESTORATION)
    sample = functions["unsupervised_wiener"]

    @functools.wraps(sample)
    def unsupervised_wiener(*args: Any, rng: Any = None, **kwargs: Any) -> Any:
        return sample(*args, **kwargs, rng=DrawsOfCard(random.default_rng(rng)))

    functions["unsupervised_wiener"] = unsupervised_wiener
    module = make_module("cucim.skimage.restoration", **functions)
    skimage = make_module("cucim.skimage", restoration=module)
    cucim = make_module("cucim", __version__="26.10.0", skimage=skimage)
    return {made.__name__: made for made in (cucim, skimage, module)}


def make_modules(card: Card) -> dict[str, ModuleType]:
    """All modules of the stand-in by name."""
    cuda, fourier, random = make_cuda(card), make_fourier(card), make_random(card)
    ndimage = make_module("cupyx.scipy.ndimage", **take_from(card, scipy.ndimage, NDIMAGE))
    fourier["cupyx.scipy"].ndimage = ndimage  # type: ignore[attr-defined]
    pinned = PinnedMemoryPool()
    pool = MemoryPool(card)
    creation = Creation(card)
    cupy = make_module(
        "cupy",
        __version__="14.2.0",
        __getattr__=functools.partial(numpy_attribute, card),
        cuda=cuda["cupy.cuda"],
        fft=fourier["cupy.fft"],
        random=random,
        ndarray=ndarray,
        RawModule=functools.partial(RawModule, card),
        get_default_memory_pool=lambda: pool,
        get_default_pinned_memory_pool=lambda: pinned,
        **{name: getattr(creation, name) for name in Creation.NAMES},
    )
    cupyx = make_module(
        "cupyx", scipy=fourier["cupyx.scipy"], empty_pinned=empty_pinned, zeros_pinned=zeros_pinned
    )
    modules = {"cupy": cupy, "cupyx": cupyx, "cupy.random": random, ndimage.__name__: ndimage}
    return {**modules, **cuda, **fourier, **make_restoration(card, random)}


def is_replaced(name: str) -> bool:
    """Whether a module is CuPy, or of the package and keeps references to CuPy."""
    return name.partition(".")[0] in ("cupy", "cupyx", "cucim") or (
        name.startswith("emdask.") and name.endswith("_cuda")
    )


def forget() -> dict[str, ModuleType]:
    """Take CuPy and all that remembers it out of ``sys.modules``."""
    from emdask import backend

    backend.why_no_cuda.cache_clear()
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if is_replaced(name)}
    for name in taken:
        package, _, module = name.rpartition(".")
        if package.startswith("emdask"):
            vars(sys.modules[package]).pop(module, None)
    return taken


@contextlib.contextmanager
def installed(card: Card) -> Iterator[Card]:
    """Put the stand-in in CuPy's place; modules ``emdask.*_cuda`` are imported anew inside."""
    before = forget()
    sys.modules.update(make_modules(card))
    try:
        yield card
    finally:
        forget()
        sys.modules.update(before)
        for name, module in before.items():
            package, _, short = name.rpartition(".")
            if package.startswith("emdask"):
                setattr(sys.modules[package], short, module)
