"""PyTorch beside NumPy and CuPy: arrays lent to it, its threads and memory, its networks."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from emdask.backend import array_namespace

__all__ = [
    "NamedArrays",
    "fill_network",
    "follow_mean",
    "kept_network",
    "one_torch_thread",
    "precision_of",
    "repeatable",
    "to_library",
    "torch_for",
    "within_memory",
]

Array = npt.NDArray[Any]
Net = TypeVar("Net", bound=nn.Module)

# Networks that a process keeps.
N_KEPT: Final = 4


class NamedArrays(Protocol):
    """Weights of a network, as `emdask.io.weights.Weights` are."""

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The name of each parameter to its values."""
        ...

    @property
    def digest(self) -> str:
        """Text that tells them from all others."""
        ...


_kept: OrderedDict[tuple[str, str], nn.Module] = OrderedDict()
_lock = threading.Lock()


def kept_network(
    weights: NamedArrays, device: torch.device, build: Callable[[Mapping[str, Array]], Any]
) -> Any:
    """Return the network of these weights on a device, made once in a process.

    Parameters
    ----------
    weights
        Of the network.
    device
        Where it is to be.
    build
        Makes it of named arrays.
    """
    key = (weights.digest, str(device))
    with _lock:
        if key not in _kept:
            _kept[key] = build(weights.arrays).to(device).eval()
        _kept.move_to_end(key)
        while len(_kept) > N_KEPT:
            _kept.popitem(last=False)
        return _kept[key]


def fill_network(network: Net, arrays: Mapping[str, Array]) -> Net:
    """Give a network its weights, by name, and make it ready to be applied.

    Raises
    ------
    RuntimeError
        If they are not those of such a network.
    """
    network.load_state_dict(
        {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    )
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def follow_mean(mean: nn.Module, network: nn.Module, n_done: int, most: float) -> None:
    """Move the mean of a network's weights over its last steps towards the present ones.

    Parameters
    ----------
    mean, network
        The mean, which is changed, and the network in training.
    n_done
        Steps before this one.
    most
        Share of the mean that stays at a step once it has begun; at first less does.

    Notes
    -----
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
    Control and Optimization 30 (1992).
    """
    memory = min(most, (1 + n_done) / (10 + n_done))
    with torch.no_grad():
        for old, new in zip(mean.parameters(), network.parameters(), strict=True):
            old.lerp_(new, 1 - memory)
        for statistic, present in zip(mean.buffers(), network.buffers(), strict=True):
            statistic.copy_(present)


def within_memory(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function; where a card has no room for it raise what CuPy would.

    Raises
    ------
    MemoryError
        If the card has no room, after PyTorch has given back what it keeps.
    """
    try:
        return function(*arguments)
    except torch.OutOfMemoryError as error:
        # Its traceback holds the tensors, so what they took is given back after it is gone.
        told = str(error)
    torch.cuda.empty_cache()
    raise MemoryError(told)


@contextlib.contextmanager
def torch_for(array: Any) -> Iterator[torch.Tensor]:
    """Lend an array to PyTorch: on the host to one thread, on a card on the array's stream."""
    if array_namespace(array) is np:
        with one_torch_thread:
            yield torch.from_numpy(array)
        return
    tensor = torch.utils.dlpack.from_dlpack(array)
    with contextlib.ExitStack() as stack:
        if tensor.is_cuda:
            stream = array_namespace(array).cuda.get_current_stream()
            of_array = torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]
                stream.ptr, device=tensor.device
            )
            stack.enter_context(torch.cuda.stream(of_array))
        else:
            stack.enter_context(one_torch_thread)
        yield tensor


class _OneTorchThread:
    """Lets the threads within compute alone, as tasks must: Dask owns the cores.

    A thread has its own number of threads to compute with, and a new one takes that which any
    thread has set last. So all leave with the number of the first: else, of threads that overlap,
    one would take the 1 of another for what the user wants, and leave it behind.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._n_before = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                self._n_before = torch.get_num_threads()
            self._n_inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            torch.set_num_threads(self._n_before)


one_torch_thread = _OneTorchThread()


def precision_of(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Compute in 16 bits on a card, the kind that it is fast in."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    autocast: contextlib.AbstractContextManager[Any] = torch.autocast(
        device.type, dtype=_short_float()
    )
    return autocast


@functools.cache
def _short_float() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def to_library(tensor: torch.Tensor, image: Any) -> Any:
    """Give a tensor back as an array of the image's library."""
    xp = array_namespace(image)
    return tensor.numpy() if xp is np else xp.from_dlpack(tensor)


def repeatable() -> contextlib.AbstractContextManager[None]:
    """Let a card convolve by algorithms that add up in one order, not by those fastest today."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, deterministic=True, benchmark=False
    )
    return flags
