"""Names of micrographs, which files write with other folders and suffixes, or without."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

# What a bare name has not; other dots belong to it, as in FoilHole_1_Data_2.5.
SUFFIXES = (
    *(".mrc", ".mrcs", ".map", ".st", ".tif", ".tiff", ".eer"),
    *(".jpg", ".jpeg", ".png", ".gz", ".bz2"),
)


def bare_name(micrograph: str) -> str:
    """Return the name of a micrograph without folders and suffixes of images.

    Examples
    --------
    >>> bare_name("MotionCorr/job002/a b_1.5.mrc"), bare_name("000007@stack.mrcs")
    ('a b_1.5', '000007@stack')
    """
    number, at, file = micrograph.rpartition("@")
    name = file.replace("\\", "/").rstrip("/").rpartition("/")[2]
    while name.lower().endswith(SUFFIXES):
        name = name[: name.rindex(".")]
    return number + at + name


def pair_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """Find which of the known micrographs names mean.

    Parameters
    ----------
    names
        Names as a table of picks has them.
    known
        Names as a stack or another table has them.

    Returns
    -------
    dict of str to str
        Name to known name: the same where it is known; otherwise the one of equal bare name, where
        no other name that is left has it, on either side. Names without one are not in it.

    Examples
    --------
    >>> pair_names(["a/m1.mrc", "m2", "m3"], ["a/m1.mrc", "b/m1.mrc", "raw/m2.tif"])
    {'a/m1.mrc': 'a/m1.mrc', 'm2': 'raw/m2.tif'}
    """
    names, known = list(dict.fromkeys(names)), list(dict.fromkeys(known))
    same = set(names) & set(known)
    bare = {name: bare_name(name) for name in (*names, *known) if name not in same}
    counts = Counter(bare[name] for name in names if name not in same)
    others = [name for name in known if name not in same]
    known_counts = Counter(bare[name] for name in others)
    by_bare = {bare[name]: name for name in others if known_counts[bare[name]] == 1}
    pairs = {name: name for name in names if name in same}
    for name in names:
        if name not in same and counts[bare[name]] == 1 and bare[name] in by_bare:
            pairs[name] = by_bare[bare[name]]
    return pairs
