"""What the words of ``emdask simulate`` mean: volumes, ranges, CTFs, micrographs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
from scipy.fft import next_fast_len

from emdask.checks import require, sentence
from emdask.errors import ParameterError
from emdask.io import open_volume
from emdask.phantoms import phantom
from emdask.structures import volume_from_structure

PHANTOM = "phantom"
STRUCTURE = re.compile(r"\.(pdb|ent|cif|mmcif)(\.gz)?$", re.IGNORECASE)
# Box of a structure by the least that it can turn in.
ROOM = 1.5
PHANTOM_BOX_PX = 128
PHANTOM_PIXEL_A = 2.0
# Of the box: the farthest blob, so that the particle stays in the image wherever it is shifted to.
PHANTOM_RADIUS = 0.27
PHANTOM_WIDTHS_PX = (2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What images are made of.

    Parameters
    ----------
    words
        Maps, PDB or mmCIF files, or the word "phantom", one a class.
    pixel_size_A
        Edge of a voxel in Å; None for what the maps say.
    box_px
        Edge of the volumes of structures and phantoms; None for one with room around them.
    resolution_A
        Resolution of the volumes of structures in Å.
    chains
        Chains of the structures to take, as "A,B"; None for all.
    density
        Of structures, as of `emdask.volume_from_structure`.
    seed
        Of the phantoms, of which each has its own.
    """

    words: Sequence[str]
    pixel_size_A: float | None = None
    box_px: int | None = None
    resolution_A: float | None = None
    chains: str | None = None
    density: str | None = None
    seed: int = 0

    def open(self) -> list[xr.DataArray]:
        """Return the volumes.

        Raises
        ------
        ParameterError
            If an option is missing, or says something of none of them.
        """
        structures = [word for word in self.words if is_structure(word)]
        made = [word for word in self.words if word == PHANTOM or word in structures]
        for name in ("resolution_A", "chains", "density"):
            self._refuse(name, structures, "goes with structures (.pdb, .cif)")
        self._refuse("box_px", made, f"goes with structures and {PHANTOM}; a map has its own")
        for name in ("pixel_size_A", "resolution_A") if structures else ():
            given = getattr(self, name) is not None
            require(given, structures[0], f"a structure needs {option_name(name)}")
        volumes = [self._open(word, i, self.box_px) for i, word in enumerate(self.words)]
        if structures and self.box_px is None:
            # Those are the least boxes; a CTF and shifts need room, and classes must have one.
            least_px = max(volume.shape[0] for volume in volumes)
            box_px = next_fast_len(math.ceil(ROOM * least_px / 2)) * 2
            volumes = [
                self._open(word, i, box_px) if word in structures else volume
                for i, (word, volume) in enumerate(zip(self.words, volumes, strict=True))
            ]
        return volumes

    def _refuse(self, name: str, theirs: Sequence[str], rule: str) -> None:
        value = getattr(self, name)
        require(bool(theirs) or value is None, option_name(name), rule, value)

    def _open(self, word: str, number: int, box_px: int | None) -> xr.DataArray:
        if word == PHANTOM:
            return make_phantom(self.seed + number, box_px, self.pixel_size_A)
        if not is_structure(word):
            return open_volume(word, pixel_size_A=self.pixel_size_A)
        options: dict[str, Any] = {"chains": self.chains, "density": self.density}
        return volume_from_structure(
            word,
            pixel_size_A=self.pixel_size_A,  # type: ignore[arg-type]
            resolution_A=self.resolution_A,  # type: ignore[arg-type]
            box_px=box_px,
            **{name: value for name, value in options.items() if value is not None},
        )


def is_structure(word: str) -> bool:
    """Tell by its name whether a file is a structure.

    Examples
    --------
    >>> is_structure("4xyz.cif.gz"), is_structure("map.mrc")
    (True, False)
    """
    return STRUCTURE.search(word) is not None


def make_phantom(seed: int, box_px: int | None, pixel_size_A: float | None) -> xr.DataArray:
    """Make a phantom that fills half of its box.

    Parameters
    ----------
    seed
        Of the random numbers.
    box_px
        Edge of the volume; None for 128.
    pixel_size_A
        Edge of a voxel in Å; None for 2.

    Returns
    -------
    xarray.DataArray, dims (z, y, x)

    Examples
    --------
    >>> make_phantom(0, 32, None).attrs["pixel_size_A"]
    2.0
    """
    pixel_A = PHANTOM_PIXEL_A if pixel_size_A is None else pixel_size_A
    box_px = PHANTOM_BOX_PX if box_px is None else box_px
    low_px, high_px = PHANTOM_WIDTHS_PX
    particle = phantom(
        radius_A=PHANTOM_RADIUS * box_px * pixel_A,
        width_A=(low_px * pixel_A, high_px * pixel_A),
        seed=seed,
    )
    return particle.volume(box_px, pixel_A)


def option_name(name: str) -> str:
    """Write the name of a parameter as that of its option.

    Examples
    --------
    >>> option_name("pixel_size_A")
    '--pixel-size-A'
    """
    return f"--{name.replace('_', '-')}"


def parse_range(option: str, text: str) -> float | tuple[float, float]:
    """Turn "LOW:HIGH" into a range, and a number into itself.

    Examples
    --------
    >>> parse_range("--defocus-A", "8000:12000"), parse_range("--defocus-A", "1e4")
    ((8000.0, 12000.0), 10000.0)
    """
    words = text.split(":")
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    ok = len(numbers) in (1, 2) and all(math.isfinite(number) for number in numbers)
    rule = "must be a number, or a range LOW:HIGH"
    require(ok and numbers[0] <= numbers[-1], option, rule, text)
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def build_ctf(defocus_A: Sequence[str], others: Mapping[str, str | None]) -> Any:
    """Build what `emdask.simulate` takes as ``ctf``.

    Parameters
    ----------
    defocus_A
        Texts of numbers or ranges, one an optics group; none for no CTF.
    others
        What all groups share: name to text, None where the default is to be taken.

    Returns
    -------
    None, dict or list of dict

    Examples
    --------
    >>> build_ctf(["1e4:2e4"], {"voltage_kV": "200", "astigmatism_A": None})
    {'defocus_A': (10000.0, 20000.0), 'voltage_kV': 200.0}
    """
    given = {name: text for name, text in others.items() if text is not None}
    for name in given:
        rule = "goes with --defocus-A; without it there is no CTF"
        require(bool(defocus_A), option_name(name), rule, given[name])
    shared = {name: parse_range(option_name(name), text) for name, text in given.items()}
    groups = [{"defocus_A": parse_range("--defocus-A", text), **shared} for text in defocus_A]
    return groups if len(groups) > 1 else groups[0] if groups else None


def parse_numbers(option: str, text: str | None, separator: str) -> tuple[float, ...] | None:
    """Turn numbers with a separator between them into a tuple; None into None.

    Examples
    --------
    >>> parse_numbers("--proportions", "2,1", ",")
    (2.0, 1.0)
    """
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(separator))
    except ValueError:
        rule = f"must be numbers with {separator} between them"
        raise ParameterError(sentence(option, rule, text)) from None


def parse_snr(text: str) -> float | None:
    """Turn a number into itself, and "none" into None.

    Examples
    --------
    >>> parse_snr("0.1"), parse_snr("none")
    (0.1, None)
    """
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        rule = "must be a number, or none for no noise"
        raise ParameterError(sentence("--snr", rule, text)) from None


def parse_integers(option: str, text: str | None) -> int | tuple[int, int] | None:
    """Turn "LOW:HIGH" into a pair of integers, an integer into itself; None into None.

    Examples
    --------
    >>> parse_integers("--n-particles", "100:200"), parse_integers("--size-px", "4096")
    ((100, 200), 4096)
    """
    if text is None:
        return None
    try:
        first, *more = (int(word) for word in text.split(":"))
    except ValueError:
        more = [0, 0]
    rule = "must be an integer, or two with : between them"
    require(len(more) < 2, option, rule, text)
    return (first, more[0]) if more else first


def build_frame(wanted: bool, options: Mapping[str, Any], shift_A: float) -> dict[str, Any] | None:
    """Build what `emdask.simulate_micrographs` takes beside what particle images have, too.

    Parameters
    ----------
    wanted
        Whether micrographs are to be made.
    options
        Name to value, None where the default is to be taken.
    shift_A
        What particle images alone have.

    Returns
    -------
    dict or None
        None for particle images.

    Examples
    --------
    >>> build_frame(True, {"ice": 0.5, "carbon": None}, 0.0)
    {'ice': 0.5}
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        require(wanted, option_name(name), "goes with --micrographs", value)
    rule = "goes with particle images; in micrographs particles are anywhere"
    require(not (wanted and shift_A), "--shift-A", rule, shift_A)
    return given if wanted else None
