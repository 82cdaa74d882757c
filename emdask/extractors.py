"""Extract particles from micrographs: from a table of picks to a stack."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.errors import StackError
from emdask.io import open_picks
from emdask.kernels.particle_boxes import (
    bin_boxes,
    box_starts,
    cut_boxes,
    fits_inside,
    normalise_boxes,
)
from emdask.lazy import BAD_PIXELS, map_parts
from emdask.picks import SCORE, check_picks, pair_names
from emdask.stack import (
    FLIPPED_FLAG,
    PREMULTIPLIED_FLAG,
    add_provenance,
    as_micrographs,
    build_stack,
    image_ids,
    micrograph_names,
)

NAME = "extract"
EDGES = ("drop", "fill")
# RELION's default: the background is what is beyond three quarters of the box.
BACKGROUND_SHARE = 0.375
LEAST_SIDE_PX = 4
# Boxes cut, made smaller and normalised at once: what they take before is more than they are.
BATCH_PIXELS = 1 << 22
# Of RELION's labels of micrographs without a variable, those that its own extraction passes on.
PASSED_ON = (
    *("rlnCtfMaxResolution", "rlnCtfFigureOfMerit", "rlnCtfScalefactor"),
    *("rlnBeamTiltX", "rlnBeamTiltY", "rlnBeamTiltClass"),
    *(FLIPPED_FLAG, PREMULTIPLIED_FLAG),
)
GROUP, MICROGRAPH_SIZE = "rlnOpticsGroup", "rlnMicrographPixelSize"


@dataclass(frozen=True, kw_only=True)
class Extract:
    """Parameters of `extract`.

    Parameters
    ----------
    box_px
        Side of the boxes in pixels of the micrographs.
    bin
        How many times smaller the particles' images become.
    edge
        What becomes of boxes that go beyond the frame: "drop" or "fill".
    normalise
        Whether the background is brought to mean 0 and deviation 1.
    invert
        Whether grey levels change their sign.
    background_radius_px
        Radius of the circle beyond which the background is, in pixels of the micrographs; None is
        0.375 boxes.

    Raises
    ------
    ParameterError
        If one is out of range, or ``box_px / bin`` is no whole number, nor even where it must be.
    """

    box_px: int
    bin: int = 1
    edge: Literal["drop", "fill"] = "drop"
    normalise: bool = True
    invert: bool = True
    background_radius_px: float | None = None

    def __post_init__(self) -> None:
        check_integer(NAME, "box_px", self.box_px, LEAST_SIDE_PX)
        check_integer(NAME, "bin", self.bin, 1)
        check_choice(NAME, "edge", self.edge, EDGES)
        if self.bin > 1:
            is_even = self.box_px % (2 * self.bin) == 0 and self.side_px >= LEAST_SIDE_PX
            rule = f"box_px must be an even multiple of bin, {self.bin}, so that the centre is kept"
            least = max(1, round(self.box_px / self.bin / 2)) * 2 * self.bin
            require(is_even, NAME, rule, self.box_px, f"Such as {max(least, 4 * self.bin)}.")
        if self.background_radius_px is not None:
            most = self.box_px / 2
            check_number(NAME, "background_radius_px", self.background_radius_px, 0, most)

    @property
    def side_px(self) -> int:
        """Side of the particles' images."""
        return self.box_px // self.bin

    @property
    def radius_px(self) -> int:
        """Radius of the background in pixels of the particles' images."""
        given = self.background_radius_px
        return int((self.box_px * BACKGROUND_SHARE if given is None else given) / self.bin)


def extract(
    micrographs: Any,
    picks: Any,
    box_px: int,
    *,
    bin: int = 1,
    edge: str = "drop",
    normalise: bool = True,
    invert: bool = True,
    background_radius_px: float | None = None,
    bad_pixels: str = "raise",
) -> xr.DataArray:
    """Cut particles out of micrographs, lazily.

    Each micrograph with picks is read once, when its particles are computed, and others are not.
    The particles of micrographs that lie side by side in a chunk are a chunk, which a micrograph
    without picks ends. They come in the order of the micrographs, and of one micrograph in that of
    the table.

    How many particles there are must be known at once. So a table of Dask, such as `emdask.pick`
    returns, is computed by this call, and micrographs are read and picked for it; keep what
    ``picks.compute()`` gives where it is needed more than once.

    Parameters
    ----------
    micrographs : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        What was picked in.
    picks
        Table of pandas or Dask with columns ``micrograph``, ``x_px``, ``y_px`` in pixels of the
        micrographs as they are, the centre of the first one at (0, 0), y downwards, and perhaps
        ``score``; or the path of a file or folder of coordinates, see `emdask.open_picks`. It names
        micrographs as their coordinate ``micrograph`` does, or by the bare name where that is one
        micrograph's alone.
    box_px
        Side of the boxes in pixels of the micrographs, before binning; even for RELION.
    bin
        How many times smaller the images become: high frequencies are left out, so that images
        without any stay what they are at every ``bin``-th pixel. ``box_px`` must be an even
        multiple of it.
    edge
        What becomes of a particle whose box goes beyond the frame: "drop" leaves it out, "fill"
        takes the mirror image of what is within. Those whose centre is outside are always left out.
        How many, the provenance says: ``n_dropped`` of ``n_picks``.
    normalise
        Whether each image has the ramp of its background, a plane fitted by least squares, taken
        off and is divided by the background's standard deviation, as RELION does.
    invert
        Whether grey levels change their sign, so that particles become white on dark.
    background_radius_px
        What is farther from the centre is background, in pixels of the micrographs; None is 0.375
        boxes, RELION's default.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`, for micrographs with picks.

    Returns
    -------
    xarray.DataArray, dims (image, y, x), float32
        Lazy, ``kind`` "particles", with ``pixel_size_A`` times ``bin``. Coordinates:
        ``micrograph``, ``micrograph_x_px``, ``micrograph_y_px``, ``pick_score``, ``image_id``, and
        what is known of each micrograph, as its defocus. `emdask.save_stack` writes ``.mrcs`` and
        ``.star`` of it.

    Raises
    ------
    ParameterError, StackError
        At once: if a parameter is out of range, boxes are larger than micrographs, picks name what
        is not in the stack, or no particle is left.
    FileNotFoundError, FormatError
        If ``picks`` is a path and there is no such file, or it is none of coordinates.

    Notes
    -----
    A box is centred on the pixel nearest to the pick, which becomes pixel ``box_px // 2`` of it, in
    RELION's way the first one right of the middle. The particle is off it by the fraction, at most
    half a pixel; ``micrograph_x_px`` and ``micrograph_y_px`` keep the pick as it was. RELION itself
    cuts the fraction off, so its box of the same coordinates may start a pixel before, and keeps
    them in its table as well.

    Examples
    --------
    >>> micrographs = np.random.default_rng(0).normal(size=(2, 64, 64))
    >>> picks = pd.DataFrame({"micrograph": "image_000001", "x_px": [30, 40, 2], "y_px": 32})
    >>> particles = extract(micrographs, picks, 16)
    >>> dict(particles.sizes), particles.attrs["provenance"][0]["parameters"]["n_dropped"]
    ({'image': 2, 'y': 16, 'x': 16}, 1)
    """
    params = Extract(
        box_px=box_px,
        bin=bin,
        edge=edge,  # type: ignore[arg-type]
        normalise=normalise,
        invert=invert,
        background_radius_px=background_radius_px,
    )
    check_choice(NAME, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_micrographs(micrographs, NAME)
    frame = source.sizes["y"], source.sizes["x"]
    rule = f"box_px must be at most {min(frame)}, the shorter side of the micrographs"
    require(box_px <= min(frame), NAME, rule, box_px)
    table = open_picks(picks) if isinstance(picks, str | os.PathLike) else picks
    chosen, n_picks = _choose(check_picks(NAME, table), source, params)
    image_of = chosen["image"].to_numpy()
    images = map_parts(
        source.data,
        image_of,
        chosen[["x_px", "y_px"]].to_numpy(),
        cut_particles,
        params,
        shape=(params.side_px, params.side_px),
        name=NAME,
        bad_pixels=bad_pixels,
    )
    known = {"n_picks": n_picks, "n_dropped": n_picks - len(chosen)}
    attrs = _attrs(source, params, {**asdict(params), **known})
    return build_stack(images, _coords(source, chosen, params), attrs)


def _choose(picks: pd.DataFrame, source: xr.DataArray, params: Extract) -> tuple[pd.DataFrame, int]:
    """Picks to be cut out with the position of their micrograph, in its order; how many there were.

    Raises
    ------
    StackError
        If they name micrographs that the stack lacks, or none is left.
    """
    if len(picks) == 0:
        remedy = "Pick with a lower threshold, or leave this out."
        raise StackError(sentence(NAME, "there must be at least one pick", 0, remedy))
    names = micrograph_names(source).tolist()
    called = picks["micrograph"].unique()
    pairs = pair_names(called, names)
    # A section that is here alone has no number in its name, but may be the one that is meant.
    numbered = dict(zip(_numbered(source, names), names, strict=True))
    others = pair_names([name for name in called if name not in pairs], numbered)
    pairs |= {name: numbered[found] for name, found in others.items()}
    missing = [name for name in called if name not in pairs]
    if missing:
        rule = f"names in picks must be those of micrographs here, as {names[0]}"
        rule += f"; {len(missing)} of {len(called)} mean none, or several"
        remedy = "Open all micrographs, or leave these picks out."
        if any("@" in name for name in [*names, *missing]):
            remedy += " Sections of a file have their numbers before its name."
        raise StackError(sentence(NAME, rule, missing[0], remedy))
    position = {name: i for i, name in enumerate(names)}
    image_of = picks["micrograph"].map({name: position[known] for name, known in pairs.items()})
    placed = picks.assign(image=image_of.to_numpy(np.int64))
    kept = placed[_is_kept(placed, source, params)].sort_values("image", kind="stable")
    if len(kept) == 0:
        rule = f"at least one box of {params.box_px} px must lie within its micrograph"
        size = f"{source.sizes['x']}x{source.sizes['y']}"
        remedy = "See that the picks are in pixels of these micrographs."
        raise StackError(sentence(NAME, f"{rule} of {size} px", 0, remedy))
    return kept, len(picks)


def _numbered(source: xr.DataArray, names: list[str]) -> list[str]:
    """Names as they would be beside other sections of their files."""
    numbers = image_ids(source)
    return [
        name if "@" in name else f"{number + 1:06d}@{name}"
        for number, name in zip(numbers.tolist(), names, strict=True)
    ]


def _is_kept(picks: pd.DataFrame, source: xr.DataArray, params: Extract) -> npt.NDArray[np.bool_]:
    frame = source.sizes["y"], source.sizes["x"]
    # A box of one pixel: the centre.
    box_px = params.box_px if params.edge == "drop" else 1
    return fits_inside(box_starts(picks[["x_px", "y_px"]].to_numpy(), box_px), box_px, frame)


def cut_particles(image: Any, centres_px: npt.NDArray[np.float64], params: Extract) -> Any:
    """Cut particles out of one micrograph, as `extract` says.

    Parameters
    ----------
    image : array, shape (h, w)
        The micrograph; NumPy or CuPy.
    centres_px : float64 array, shape (n, 2)
        x and y of each particle.
    params
        Of the boxes.

    Returns
    -------
    float32 array, shape (n, side_px, side_px)

    Examples
    --------
    >>> bare = Extract(box_px=4, normalise=False, invert=False)
    >>> cut_particles(np.eye(6), np.array([[3.0, 3.0]]), bare)[0, 2].tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    side = params.side_px
    result = array_namespace(image).empty((len(centres_px), side, side), np.float32)
    starts = box_starts(centres_px, params.box_px)
    at_once = max(1, BATCH_PIXELS // params.box_px**2)
    for first in range(0, len(starts), at_once):
        part = slice(first, first + at_once)
        boxes = bin_boxes(cut_boxes(image, starts[part], params.box_px), params.bin)
        if params.normalise:
            boxes = normalise_boxes(boxes, params.radius_px)
        result[part] = -boxes if params.invert else boxes
    return result


def _coords(source: xr.DataArray, chosen: pd.DataFrame, params: Extract) -> dict[str, Any]:
    """What is known of the particles, and what of their micrographs holds for them."""
    image_of = chosen["image"].to_numpy()
    # One micrograph, taken out of its stack, has numbers where a stack has one an image.
    coords = {
        str(name): np.broadcast_to(values.values, source.shape[:1])[image_of]
        for name, values in source.coords.items()
        if values.dims in ((), ("image",))
        and (not str(name).startswith("rln") or name in PASSED_ON)
    }
    coords |= {
        "image_id": np.arange(len(chosen)),
        "micrograph": micrograph_names(source)[image_of],
        "micrograph_x_px": chosen["x_px"].to_numpy(),
        "micrograph_y_px": chosen["y_px"].to_numpy(),
    }
    if "pixel_size_A" in coords:
        coords["pixel_size_A"] = coords["pixel_size_A"] * params.bin
    if SCORE in chosen:
        coords["pick_score"] = chosen[SCORE].to_numpy()
    return coords


def _attrs(source: xr.DataArray, params: Extract, recorded: dict[str, Any]) -> dict[str, Any]:
    """What holds for all particles; of the micrographs their pixel size is kept for RELION."""
    attrs = add_provenance(source.attrs, NAME, recorded) | {"kind": "particles"}
    size_A = source.attrs.get("pixel_size_A")
    if size_A is None:
        return attrs
    relion = dict(attrs.get("relion", {}))
    optics = dict(relion.get("optics", {}))
    own = source.coords["optics_group"].values if "optics_group" in source.coords else [1]
    groups = optics.setdefault(GROUP, np.unique(own).tolist())
    optics[MICROGRAPH_SIZE] = [float(size_A)] * len(groups)
    relion["optics"] = optics
    return attrs | {"pixel_size_A": float(size_A) * params.bin, "relion": relion}
