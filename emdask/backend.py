"""Devices and array libraries; besides ``*_cuda.py`` the one place that knows CuPy."""

from __future__ import annotations

import functools
import importlib.util
import socket
import threading
from collections.abc import Callable, Collection, Mapping
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from emdask.checks import require, sentence
from emdask.config import setting
from emdask.errors import DeviceError, MissingLibraryError

DEVICES = ("auto", "cpu", "cuda")
# What a Dask worker with a card declares, as much of it as it runs tasks at once.
CARD_RESOURCE = "GPU"

Result = TypeVar("Result")


def array_namespace(array: Any) -> ModuleType:
    """Return the library that ``array`` belongs to: ``numpy`` or ``cupy``.

    Examples
    --------
    >>> array_namespace(np.zeros(3)).__name__
    'numpy'
    """
    if type(array).__module__.partition(".")[0] == "cupy":
        import cupy

        return cupy  # type: ignore[no-any-return]
    return np


def fourier_namespace(array: Any) -> ModuleType:
    """Return the Fourier transforms for ``array``: ``scipy.fft`` or ``cupyx.scipy.fft``.

    Examples
    --------
    >>> fourier_namespace(np.zeros(3)).__name__
    'scipy.fft'
    """
    library = "scipy" if array_namespace(array) is np else "cupyx.scipy"
    return importlib.import_module(f"{library}.fft")


def filter_namespace(array: Any) -> ModuleType:
    """Return the filters for ``array``: ``scipy.ndimage`` or ``cupyx.scipy.ndimage``.

    Examples
    --------
    >>> filter_namespace(np.zeros(3)).__name__
    'scipy.ndimage'
    """
    library = "scipy" if array_namespace(array) is np else "cupyx.scipy"
    return importlib.import_module(f"{library}.ndimage")


def restoration_namespace(array: Any) -> ModuleType:
    """Return the restoration of ``array``: scikit-image's, or that of cuCIM for CuPy arrays.

    Raises
    ------
    MissingLibraryError
        If the array is on a card and cuCIM is not installed.

    Examples
    --------
    >>> restoration_namespace(np.zeros(3)).__name__
    'skimage.restoration'
    """
    if array_namespace(array) is np:
        return importlib.import_module("skimage.restoration")
    try:
        return importlib.import_module("cucim.skimage.restoration")
    except ImportError as error:
        remedy = (
            "pip install 'emdask[cuda13]' or 'emdask[cuda12]' brings it, or choose device=\"cpu\"."
        )
        rule = f"cuCIM is needed on a card and cannot be imported on {socket.gethostname()}"
        raise MissingLibraryError(sentence("device", rule, str(error), remedy)) from error


@functools.cache
def why_no_cuda() -> str | None:
    """Say why CUDA cannot be used in this process; None where it can.

    Examples
    --------
    >>> why_no_cuda() is None or "cuda" in why_no_cuda().lower()
    True
    """
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed: pip install 'emdask[cuda13]' or 'emdask[cuda12]'"
    import cupy

    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        if "InsufficientDriver" in str(error):
            return "the NVIDIA driver is missing or older than CuPy's CUDA: nvidia-smi shows it"
        return f"the CUDA runtime answers: {error}"
    return None if found else "the CUDA runtime finds no card"


def check_device(device: str | None, method: str, supported: Collection[str]) -> str:
    """Check what the user named, before any graph is built.

    Parameters
    ----------
    device
        "auto", "cpu", "cuda", or None for the setting ``emdask.device``.
    method
        Name of the method, for the message.
    supported
        Devices that the method has code for.

    Returns
    -------
    str
        "auto", "cpu" or "cuda".

    Raises
    ------
    ParameterError
        If ``device`` is not one of the three words.
    DeviceError
        If the method has no code for the device that was named.

    Examples
    --------
    >>> check_device(None, "bm3d", {"cpu"})
    'auto'
    """
    device = setting("device") if device is None else device
    is_numbered = isinstance(device, str) and device.startswith("cuda:")
    remedy = "Choose cards by CUDA_VISIBLE_DEVICES." if is_numbered else ""
    rule = f"device must be one of {', '.join(DEVICES)}"
    require(device in DEVICES, method, rule, device, remedy)
    if device != "auto" and device not in supported:
        raise DeviceError(
            sentence(
                method, f"runs on {' and '.join(sorted(supported))}", device, 'Use device="auto".'
            )
        )
    return device


def resolve_device(device: str, supported: Collection[str]) -> str:
    """Choose where a block runs; called on the worker that runs it.

    Parameters
    ----------
    device
        "auto", "cpu" or "cuda"; a device that is named never falls back. "auto" takes a card where
        there is one and the setting ``emdask.cards`` lets it.
    supported
        Devices that the method has code for.

    Returns
    -------
    str
        "cpu" or "cuda".

    Raises
    ------
    DeviceError
        If "cuda" was named and cannot be used here.

    Examples
    --------
    >>> resolve_device("auto", {"cpu"})
    'cpu'
    """
    if device == "auto":
        may = "cuda" in supported and setting("cards")
        return "cuda" if may and why_no_cuda() is None else "cpu"
    if device == "cuda":
        require_card("device", 'device="cuda" needs an NVIDIA card')
    return device


def require_card(what: str, rule: str) -> None:
    """Refuse what needs a card where this process can use none.

    Parameters
    ----------
    what, rule
        What is refused, and why, for the message.

    Raises
    ------
    DeviceError
        Naming the host and what is missing there.
    """
    if (reason := why_no_cuda()) is not None:
        raise DeviceError(sentence(what, rule, remedy=f"On {socket.gethostname()} {reason}."))


def count_cards() -> int:
    """Return the number of cards that this process may use; 0 where CUDA cannot be used.

    Examples
    --------
    >>> count_cards() >= 0
    True
    """
    if why_no_cuda() is not None:
        return 0
    import cupy

    return int(cupy.cuda.runtime.getDeviceCount())


class _OneBlasThread:
    """Products of matrices on one thread of the processor, while any thread wants it so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._n_inside = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_inside == 0:
                _let_any_thread_control_blas()
                self._limits = _thread_pools().limit(limits=1, user_api="blas")
            self._n_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                _let_any_thread_control_blas()
                self._limits.restore_original_limits()
                _let_any_thread_control_blas()


@functools.cache
def _thread_pools() -> Any:
    """Find the libraries with thread pools, once: that takes as long as a small task."""
    # BLAS of compiled loops; what is loaded later would not be limited.
    import scipy.linalg.cython_blas  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _let_any_thread_control_blas() -> None:
    """Take from threadpoolctl's mind which thread has set limits before.

    From 3.8 on it lets no other thread set those of OpenBLAS, silently; here the thread that is
    first in sets them and the one that is last out undoes it.
    """
    import threadpoolctl

    controller: Any = getattr(threadpoolctl, "OpenBLASController", None)
    if hasattr(controller, "clear_controlling_thread"):
        controller.clear_controlling_thread(force=True)


# For tasks: Dask owns the cores, and BLAS rounds otherwise on another number of threads.
one_blas_thread = _OneBlasThread()


def run_on(
    device: str, function: Callable[..., Result], *args: Any, n_bytes: int, what: str
) -> Result:
    """Run a function that does its own moving between host and device.

    On a card it runs on a stream of the calling thread, once other threads leave it room; so the
    threads of a worker overlap.

    Parameters
    ----------
    device
        "cpu" or "cuda".
    function
        Takes and returns what is on the host, by `to_device` and `to_host`; or leaves on the card
        what is to stay there.
    *args
        Passed on to ``function``.
    n_bytes
        Memory of the card that it is taken to need.
    what
        What needs it, for the message.

    Returns
    -------
    object
        What ``function`` returns.

    Raises
    ------
    DeviceError
        If the card has no room for it.

    Examples
    --------
    >>> run_on("cpu", abs, -3, n_bytes=0, what="a number")
    3
    """
    if device == "cpu":
        return function(*args)
    from emdask.blocks_cuda import run_on_card

    return run_on_card(function, *args, n_bytes=n_bytes, what=what)


def sum_batches(
    function: Callable[..., Result],
    images: Any,
    *,
    along: Mapping[str, Any],
    combine: Callable[[Result, Result], Result],
    device: str,
    n_images: int,
    what: str,
) -> Result:
    """Add up what a function makes of images, batch by batch, on a device.

    Parameters
    ----------
    function
        Takes images of the device's library, and returns sums of the host.
    images : array, shape (n, h, w)
        Of the host.
    along
        Keyword arguments of ``function`` that go along with the images: of each a slice serves a
        batch; None stays None.
    combine
        ``(sums, sums) -> sums``.
    device
        "cpu" or "cuda".
    n_images
        Most images of a batch.
    what
        As of `run_on`.

    Returns
    -------
    object
        Sums over all images.

    Raises
    ------
    DeviceError
        If the card has no room for a batch.

    Examples
    --------
    >>> images = np.ones((5, 2, 2))
    >>> how = {"combine": np.add, "device": "cpu", "n_images": 2, "what": "a sum"}
    >>> float(sum_batches(np.sum, images, along={}, **how))
    20.0
    """
    from emdask.blocks_cuda import working_bytes

    def add_up() -> Result:
        parts = (slice(start, start + n_images) for start in range(0, len(images), n_images))
        return functools.reduce(combine, map(add_one, parts))

    def add_one(part: slice) -> Result:
        some = {name: None if value is None else value[part] for name, value in along.items()}
        return function(to_device(images[part], device), **some)

    n_bytes = working_bytes((n_images, *images.shape[1:]))
    return run_on(device, add_up, n_bytes=n_bytes, what=what)


def to_device(array: Any, device: str) -> Any:
    """Return an array on a device, within `run_on`: itself if it is there already.

    Examples
    --------
    >>> to_device(np.ones(2), "cpu")
    array([1., 1.])
    """
    if device == "cpu" or array_namespace(array) is not np:
        return array
    from emdask.blocks_cuda import upload

    return upload(array)


def to_host(array: Any, out: Any = None) -> Any:
    """Return an array of any device on the host, within `run_on`.

    Parameters
    ----------
    array
        C-contiguous where it is on a card.
    out
        Array of the host of its shape and type that it is copied to; None for a new one, or itself
        where it is on the host.

    Examples
    --------
    >>> to_host(np.ones(2))
    array([1., 1.])
    """
    if array_namespace(array) is not np:
        from emdask.blocks_cuda import download

        return download(array, out)
    if out is None:
        return array
    out[...] = array
    return out


def on_device(
    function: Callable[..., Any],
    images: Any,
    *args: Any,
    device: str,
    along: Mapping[str, Any] | None = None,
) -> Any:
    """Move one block to the device, run ``function`` on it, and move the result back.

    A block that is on the card already stays there. Any other goes to the card as it is stored, in
    pieces that fit, by pinned memory and on a stream of the calling thread, so that the threads of
    a worker overlap.

    Parameters
    ----------
    function
        Takes an array of the device's library, returns one. On the card it treats the images one by
        one, so that the pieces do not change the answer.
    images : array, shape (n, h, w)
        NumPy or CuPy.
    *args
        Passed on to ``function``.
    device
        "cpu" or "cuda".
    along
        Keyword arguments of ``function`` that go along with the images: of each, a slice serves a
        piece.

    Returns
    -------
    array
        Of the same library as ``images``.

    Raises
    ------
    DeviceError
        If the card has no room for one image.

    Notes
    -----
    A piece is taken to need 96 bytes a pixel and 256 MiB. It takes at most a quarter of the memory
    that this process can have of the card, so that four threads work at once, but always one image,
    and waits until the pieces of the other threads leave it that much. Where the method needs more
    than that after all, the piece is halved, down to one image that has the card to itself.

    Examples
    --------
    >>> on_device(np.negative, np.ones(2), device="cpu")
    array([-1., -1.])
    """
    arrived_on_card = array_namespace(images) is not np
    along = along or {}
    if device == "cuda":
        if arrived_on_card:
            return function(images, *args, **along)
        from emdask.blocks_cuda import run_in_pieces

        return run_in_pieces(function, images, *args, along=along)
    if arrived_on_card:
        return array_namespace(images).asarray(function(images.get(), *args, **along))
    return function(images, *args, **along)
