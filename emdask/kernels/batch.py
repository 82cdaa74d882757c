"""What a network that denoises is shown at a time; NumPy or CuPy arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Images to learn from, in units of the noise.

    Parameters
    ----------
    noisy : float32 array, shape (n, h, w)
        Noisy images.
    target : float32 array, shape (n, h, w)
        What they should become: clean, or other noisy images of the same; None where there are
        none.
    """

    noisy: Any
    target: Any
