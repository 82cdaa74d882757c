"""How classes that were found agree with known ones: counts, which is which, and shares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

Array = npt.NDArray[Any]

# Numbers of an image that belongs to no class, and of one of which nothing is known.
NONE, UNKNOWN = 0, -1
NONE_NAME = "none"
# Words of files for no class, and for one that is not known.
NO_CLASS = ("", "0", NONE_NAME)
NOT_KNOWN = ("?", "unknown")


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownClasses:
    """Classes that images are known to have.

    Parameters
    ----------
    names
        Of the classes.
    number : int64 array, shape (n,)
        Class of each image: its place in the names, from 1; 0 for an image that belongs to none of
        them, as one of another view; -1 where nothing is known.
    whence
        Where they are from, in words.
    """

    names: tuple[str, ...]
    number: Array
    whence: str

    @property
    def is_numbered(self) -> bool:
        """Whether the names are numbers, which say which class of `emdask.classify` is meant."""
        return all(name.isdecimal() for name in self.names)


def build_known(labels: npt.ArrayLike, whence: str) -> KnownClasses:
    """Take labels of images as classes that are known.

    Parameters
    ----------
    labels : array, shape (n,)
        Whole numbers or words. 0, "none" and "" are no class; what is negative or NaN, and "?", is
        not known.
    whence
        Where they are from, in words.

    Returns
    -------
    KnownClasses
        Its classes are sorted, numbers by value.

    Examples
    --------
    >>> known = build_known([10, 2, 0, -1, 10], "a.csv")
    >>> known.names, known.number.tolist()
    (('2', '10'), [2, 1, 0, -1, 2])
    >>> build_known(["open", "none", "closed"], "a.csv").number.tolist()
    [2, 0, 1]
    """
    values = np.asarray(labels)
    there = np.ones(values.shape, bool)
    if values.dtype.kind in "iuf":
        there = np.isfinite(values) & (values >= 0)
        values = np.where(there, values, 0).astype(np.int64)
    words = values.astype(str)
    there &= ~np.isin(words, NOT_KNOWN)
    found = set(words[there & ~np.isin(words, NO_CLASS)].tolist())
    are_numbers = all(name.isdecimal() for name in found)
    names = sorted(found, key=int if are_numbers else None)
    places = {name: place for place, name in enumerate(names, start=1)}
    number = np.array([places.get(word, NONE) for word in words.tolist()], np.int64)
    return KnownClasses(names=tuple(names), number=np.where(there, number, UNKNOWN), whence=whence)


@dataclass(frozen=True, kw_only=True, eq=False)
class Agreement:
    """Images counted by the class that is known and the one that was found.

    Parameters
    ----------
    counts : int64 array, shape (k + 1, m + 1)
        Row: known class, the last those of none; column: class found, the last none.
    names
        Of the known classes.
    found_names
        Of the classes found.
    partner : int64 array, shape (k,)
        Column that is taken for each known class; -1 where there is none.
    is_matched
        Whether the partners are those that agree best, since numbers say nothing.
    whence
        Where the known classes are from.
    """

    counts: Array
    names: tuple[str, ...]
    found_names: tuple[str, ...]
    partner: Array
    is_matched: bool
    whence: str

    @cached_property
    def n_judged(self) -> int:
        """Images of a known class in a class."""
        return int(self.counts[:-1, :-1].sum())

    @cached_property
    def n_right(self) -> int:
        """Those of them that are in the right one."""
        pairs = enumerate(self.partner.tolist())
        return int(sum(self.counts[i, j] for i, j in pairs if j >= 0))

    @property
    def accuracy(self) -> float:
        """Share of the images in classes that are in the right one; NaN where there is none."""
        return _share(self.n_right, self.n_judged)

    @property
    def largest(self) -> float:
        """Accuracy of whoever says the largest class each time."""
        return _share(int(self.counts[:-1, :-1].sum(axis=1).max(initial=0)), self.n_judged)

    @property
    def kept(self) -> float:
        """Share of the images of known classes that are in any class."""
        return _share(self.n_judged, int(self.counts[:-1].sum()))

    @property
    def n_others(self) -> int:
        """Images that are known to belong to no class."""
        return int(self.counts[-1].sum())

    @property
    def left_out(self) -> float:
        """Share of these that were put in none."""
        return _share(int(self.counts[-1, -1]), self.n_others)

    @property
    def rand_index(self) -> float:
        """Adjusted Rand index: 1 where both divide the images alike, about 0 by chance.

        Notes
        -----
        Hubert and Arabie, "Comparing partitions", Journal of Classification 2 (1985) 193-218.
        """
        table = self.counts[:-1, :-1].astype(np.float64)
        both = _pairs(table).sum()
        rows, columns = _pairs(table.sum(axis=1)).sum(), _pairs(table.sum(axis=0)).sum()
        everything = float(_pairs(table.sum()))
        if not everything:
            return float("nan")
        by_chance, most = rows * columns / everything, (rows + columns) / 2
        return 1.0 if most == by_chance else float((both - by_chance) / (most - by_chance))


def compare_classes(
    known: KnownClasses, class_id: npt.ArrayLike, n_classes: int, *, numbers_mean: bool = True
) -> Agreement:
    """Count how often each class was found for each that is known.

    Parameters
    ----------
    known
        Classes that the images have.
    class_id : int array, shape (n,)
        Those that were found, from 1; 0 for none.
    n_classes
        Classes that there are.
    numbers_mean
        Whether class k is the one known by the number k, as where references were given. Otherwise,
        and where the known classes have other names, each is taken for the one that makes all of
        them agree best.

    Returns
    -------
    Agreement

    Examples
    --------
    >>> known = build_known([1, 1, 2, 2, 0], "a.csv")
    >>> compare_classes(known, [1, 1, 2, 1, 0], 2).accuracy
    0.75
    >>> compare_classes(known, [2, 2, 1, 1, 0], 2, numbers_mean=False).accuracy
    1.0
    """
    k = len(known.names)
    there = known.number != UNKNOWN
    row = np.where(known.number > 0, known.number - 1, k)[there]
    found = np.asarray(class_id)[there]
    column = np.where(found > 0, found - 1, n_classes)
    counts = np.zeros((k + 1, n_classes + 1), np.int64)
    np.add.at(counts, (row, column), 1)
    partner = np.full(k, -1)
    is_matched = not (numbers_mean and known.is_numbered)
    if is_matched:
        rows, columns = linear_sum_assignment(counts[:-1, :-1], maximize=True)
        partner[rows] = columns
    else:
        place = np.array([int(name) - 1 for name in known.names], np.int64)
        partner = np.where(place < n_classes, place, -1)
    return Agreement(
        counts=counts,
        names=known.names,
        found_names=tuple(str(number) for number in range(1, n_classes + 1)),
        partner=partner,
        is_matched=is_matched,
        whence=known.whence,
    )


def _share(n: int, n_all: int) -> float:
    return n / n_all if n_all else float("nan")


def _pairs(counts: Any) -> Any:
    return counts * (counts - 1) / 2
