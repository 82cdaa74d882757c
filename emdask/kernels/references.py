"""What images are compared with: volumes, of which views can be made, or images; plain arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import require

__all__ = ["References", "even_priors"]

WHAT = "references"


@dataclass(frozen=True, eq=False, kw_only=True)
class References:
    """Volumes, one a class, or images, each of some class. Particles are light on dark.

    Parameters
    ----------
    volumes : tuple of float32 arrays, shape (n, n, n)
        Mass in each voxel (z, y, x), centre at voxel ``n // 2``; None where images are given.
    images : float32 array, shape (v, n, n)
        Centre at pixel ``n // 2``; None where volumes are given.
    class_index : int64 array, shape (v,)
        Class of each of the images, from 0; each class has one at least. None where volumes are
        given.
    angles_deg : float64 array, shape (v, 3)
        rot, tilt and psi of each of the images, RELION's; None where they are not known.
    pixel_size_A
        Edge of a pixel or voxel in Å; None where it is not known.

    Raises
    ------
    ParameterError
        If there are neither or both, or sizes do not go together.

    Examples
    --------
    >>> two = References(volumes=(np.ones((8, 8, 8), "f4"), np.zeros((8, 8, 8), "f4")))
    >>> two.n_classes, two.box_px
    (2, 8)
    """

    volumes: tuple[npt.NDArray[np.float32], ...] | None = field(default=None, repr=False)
    images: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    class_index: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    angles_deg: npt.NDArray[np.float64] | None = field(default=None, repr=False)
    pixel_size_A: float | None = None

    def __post_init__(self) -> None:
        rule = "there must be volumes, or else images with the class of each"
        given = [name for name in ("volumes", "images", "class_index") if self._has(name)]
        require(given in (["volumes"], ["images", "class_index"]), WHAT, rule, given)
        shapes = {np.shape(array) for array in self._arrays}
        edges = {edge for shape in shapes for edge in shape}
        n_dims = 2 if self.volumes is None else 3
        ok = len(shapes) == len(edges) == 1 and len(next(iter(shapes))) == n_dims
        require(ok, WHAT, "they must be squares or cubes of one size", sorted(shapes))
        if self.class_index is not None:
            self._check_classes(self.class_index)
        if self.angles_deg is not None:
            rule = "there must be three angles for each image"
            expected = (len(self._arrays), 3) if self.volumes is None else None
            require(self.angles_deg.shape == expected, WHAT, rule, self.angles_deg.shape)

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def _check_classes(self, class_index: npt.NDArray[np.int64]) -> None:
        rule = "there must be a class for each image"
        require(class_index.shape == (len(self._arrays),), WHAT, rule, class_index.shape)
        found = np.unique(class_index).tolist()
        rule = "classes must be numbered from 0, and each must have an image"
        require(found == list(range(len(found))), WHAT, rule, found)

    @property
    def _arrays(self) -> Any:
        return self.images if self.volumes is None else self.volumes

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        if self.class_index is not None:
            return int(self.class_index.max()) + 1
        return len(self._arrays)

    @property
    def box_px(self) -> int:
        """Edge of the volumes or images."""
        return len(self._arrays[0])


def even_priors(group_sizes: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return natural logarithms of the priors of references that are alike within their group.

    Examples
    --------
    >>> np.exp(even_priors((1, 2))).round(2).tolist()
    [1.0, 0.5, 0.5]
    """
    return np.repeat([-np.log(max(n, 1)) for n in group_sizes], group_sizes).astype(np.float32)
