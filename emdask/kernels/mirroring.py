"""Images that go on mirrored beyond their borders."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["mirror_places"]


def mirror_places(places: npt.NDArray[np.int64], length: int) -> npt.NDArray[Any]:
    """Fold places on a line back into 0 .. length - 1, the border's pixel twice.

    Parameters
    ----------
    places : int64 array
        Anywhere, also many lengths away.
    length
        Pixels of the line.

    Returns
    -------
    int64 array

    Examples
    --------
    >>> mirror_places(np.arange(-4, 7), 3).tolist()
    [2, 2, 1, 0, 0, 1, 2, 2, 1, 0, 0]
    """
    folded = places % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)
