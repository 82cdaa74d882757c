"""Memory between pages that fault: what a kernel reads or writes past an array ends the launch."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

POISON = 0xFF
GUARD_BYTES = 256 * mmap.PAGESIZE
ALIGNMENT = 16
PROTECTIONS = {"none": 0, "read": mmap.PROT_READ}


def protect(address: int, n_bytes: int, protection: str) -> None:
    """Change what whole pages allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = ctypes.c_void_p(address), ctypes.c_size_t(n_bytes)
    if libc.mprotect(*pages, PROTECTIONS[protection]):
        raise OSError(ctypes.get_errno(), "mprotect")


class GuardedCopy:
    """Copy of an array that ends, but for alignment, at pages that fault.

    The bytes before it, up to pages that fault as well, are canaries, and so are the few behind it.

    Parameters
    ----------
    array
        C-contiguous, of at least one element.
    is_const
        Whether the copy may not be written to.
    """

    def __init__(self, array: np.ndarray[Any, Any], is_const: bool) -> None:
        self._array = array
        self._is_const = is_const
        page = mmap.PAGESIZE
        n_inside = -(-array.nbytes // page) * page
        self._memory = mmap.mmap(-1, n_inside + 2 * GUARD_BYTES)
        base = np.frombuffer(self._memory, np.uint8)
        self._inside = base[GUARD_BYTES : GUARD_BYTES + n_inside]
        self._start = n_inside - -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._stop = self._start + array.nbytes
        self._inside[:] = POISON
        self._inside[self._start : self._stop] = array.reshape(-1).view(np.uint8)
        inside = base.ctypes.data + GUARD_BYTES
        self.address = inside + self._start
        protect(inside - GUARD_BYTES, GUARD_BYTES, "none")
        protect(inside + n_inside, GUARD_BYTES, "none")
        if is_const:
            protect(inside, n_inside, "read")

    def finish(self) -> int | None:
        """Copy the result back; the byte, from the array's start, of a broken canary."""
        inside = self._inside
        for part, offset in ((inside[: self._start], 0), (inside[self._stop :], self._stop)):
            broken = np.flatnonzero(part != POISON)
            if broken.size:
                return int(broken[0]) + offset - self._start
        if not self._is_const:
            flat = self._array.reshape(-1).view(np.uint8)
            flat[:] = inside[self._start : self._stop]
        return None
