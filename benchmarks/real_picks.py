"""Real micrographs with labelled particles, for the benchmarks of this folder.

DATA_FOLDER holds ``picking/``: folders of micrographs (8-bit or 16-bit images) and beside each a
table ``x<TAB>y`` of the centres of its particles, px from the centre of the first pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr
from PIL import Image

from emdask.errors import FormatError

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class RealSet:
    """Micrographs of one molecule.

    Parameters
    ----------
    name
        What it is called in tables.
    folder
        Within ``picking/``.
    pixel_size_A
        Of the images as they are here, Å.
    diameter_px
        Of a particle, as it is usually stated.
    border_px
        Nobody labelled particles nearer to the edges of the micrographs than that.
    least_radius_px
        Labels are off by that much, so it is the least radius to match with.
    """

    name: str
    folder: str
    pixel_size_A: float
    diameter_px: float
    border_px: float
    least_radius_px: float = 0.0

    def radius_px(self, diameters: float) -> float:
        """Return the radius to match with."""
        return max(diameters * self.diameter_px, self.least_radius_px)

    def files(self, data: Path) -> list[Path]:
        """Return the micrographs, in the order of their names; none where they are not there."""
        found = sorted((data / "picking" / self.folder).glob("*"))
        return [path for path in found if path.suffix in (".png", ".jpg")]

    def open(self, data: Path, most: int | None = None) -> list[RealMicrograph]:
        """Read the micrographs and what is known of them."""
        return [self._read(path) for path in self.files(data)[:most]]

    def _read(self, path: Path) -> RealMicrograph:
        with Image.open(path) as opened:
            image = np.asarray(opened)
        if image.ndim != 2:
            raise FormatError(f"{path}: must be grey; got an image of shape {image.shape}.")
        labels = pd.read_csv(path.with_suffix(".txt"), sep="\t")[["x", "y"]].to_numpy(np.float64)
        return RealMicrograph(of=self, name=path.stem, image=image, centres=labels)


@dataclass(frozen=True, kw_only=True)
class RealMicrograph:
    """A micrograph and the centres (x, y) of its particles in px."""

    of: RealSet
    name: str
    image: Array
    centres: Array

    def truth(self) -> pd.DataFrame:
        """Return the table that `emdask.metrics.match_picks` takes."""
        x_px, y_px = self.centres.T
        return pd.DataFrame({"micrograph": self.name, "x_px": x_px, "y_px": y_px})


def build_micrographs(micrographs: Sequence[RealMicrograph], border_px: int = 0) -> xr.DataArray:
    """Return micrographs of one molecule, without their borders, as `emdask.pick` takes them."""
    within = slice(border_px, -border_px or None)
    return xr.DataArray(
        np.stack([one.image[within, within] for one in micrographs]),
        dims=("image", "y", "x"),
        coords={"micrograph": ("image", [one.name for one in micrographs])},
        attrs={"pixel_size_A": micrographs[0].of.pixel_size_A},
    )


# Of apoferritin all labels of a micrograph are off by up to 10 px together.
SETS = (
    RealSet(
        name="β-galactosidase",
        folder="betagal_10017",
        pixel_size_A=1.77,
        diameter_px=108.0,
        border_px=131.0,
    ),
    RealSet(
        name="ribosome",
        folder="ribosome_10028",
        pixel_size_A=5.36,
        diameter_px=56.0,
        border_px=32.0,
    ),
    RealSet(
        name="apoferritin",
        folder="apoferritin_10146",
        pixel_size_A=1.5,
        diameter_px=62.0,
        border_px=0.0,
        least_radius_px=20.0,
    ),
)


def find_sets(data: Path) -> tuple[list[RealSet], list[str]]:
    """Return the sets that are there, and a sentence on each that is not."""
    there = [of for of in SETS if of.files(data)]
    absent = [
        f"{of.name} is left out: no micrographs in {data / 'picking' / of.folder}."
        for of in SETS
        if of not in there
    ]
    return there, absent
