"""Compiling CUDA sources for the current card, and launching their kernels.

A kernel whose name ends in a number, as ``filter_hard_16``, is one of several that a source has for
that number: the source is compiled for it alone (``-DONLY=16``), and for all else with 0.
"""

from __future__ import annotations

import functools
import logging
import threading
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import cupy

__all__ = ["MOST_IMAGES", "OPTIONS", "Program", "launch", "most_shared_bytes"]

LOGGER = logging.getLogger("emdask")
_COMPILING = threading.Lock()

# As for NVRTC and nvcc. Denormal numbers count as zero.
OPTIONS = ("-std=c++17", "-ftz=true")
# Thread blocks along the last side of a grid.
MOST_IMAGES = 65535


class Program(NamedTuple):
    """A CUDA source beside this file.

    Parameters
    ----------
    source
        Name of the file.
    greedy
        Names, without numbers, of the kernels that may use all shared memory of the card.
    notice
        Logged before it is compiled for the first time, where that takes long.
    """

    source: str
    greedy: tuple[str, ...] = ()
    notice: str = ""


def launch(
    program: Program,
    name: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: tuple[Any, ...],
    shared_bytes: int = 0,
) -> None:
    """Launch a kernel on the current stream of the current card.

    Parameters
    ----------
    program
        Where it is written. It is compiled when it is first needed: once per card, and kept on disk
        by CuPy.
    name
        Of the kernel.
    grid, block
        Thread blocks, and threads of each, along x, y and z.
    arguments
        Arrays of the card, NumPy's numbers, and Python's integers, which are passed as 32 bits.
    shared_bytes
        Dynamic shared memory of a thread block.
    """
    import cupy

    # A bare Python number would be passed as 64 bits.
    sized = tuple(np.int32(value) if isinstance(value, int) else value for value in arguments)
    device = cupy.cuda.Device().id
    # Compiled once, whichever of a card's threads asks for it first.
    with _COMPILING:
        kernel = _load_kernel(device, program, name)
    kernel(grid, block, sized, shared_mem=shared_bytes)


def most_shared_bytes() -> int:
    """Return the shared memory that a thread block of the current card may have."""
    import cupy

    return int(cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"])


@functools.cache
def _load_kernel(device: int, program: Program, name: str) -> cupy.RawKernel:
    stem, _, number = name.rpartition("_")
    is_one_of_many = number.isdecimal()
    kernel = _module(device, program, number if is_one_of_many else "0").get_function(name)
    if (stem if is_one_of_many else name) in program.greedy:
        kernel.max_dynamic_shared_size_bytes = most_shared_bytes()
    return kernel


@functools.cache
def _module(device: int, program: Program, only: str) -> cupy.RawModule:
    import cupy

    if program.notice:
        _announce(program.notice)
    source = resources.files("emdask.kernels").joinpath(program.source).read_text("utf-8")
    return cupy.RawModule(code=source, options=(*OPTIONS, f"-DONLY={only}"))


@functools.cache
def _announce(notice: str) -> None:
    LOGGER.info(notice)
