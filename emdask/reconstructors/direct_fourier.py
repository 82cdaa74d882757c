"""Direct Fourier inversion: images are added up as slices of the volume's Fourier transform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import array_namespace, run_on, to_device, to_host
from emdask.blocks_cuda import batch_size, working_bytes
from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.errors import StackError
from emdask.kernels.ctf import Optics
from emdask.kernels.gridding import shell_weights, solve_volume, symmetrise
from emdask.kernels.masks import spherical_mask
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.resolutions import check_pixel_size
from emdask.kernels.shells import shell_correlation
from emdask.kernels.slices import (
    GridPlan,
    SliceSums,
    add_sums,
    empty_sums,
    fold_sums,
    insert_slices,
)
from emdask.kernels.symmetry import symmetry_matrices
from emdask.kernels.transforms import to_half_planes
from emdask.method import Reconstructor, parameter
from emdask.volumes import VOLUME_DIMS

Array = npt.NDArray[Any]

WHAT = "direct_fourier"
SYMMETRISED = ("views", "sums")
# Projections of 5e-3 are good enough: what is left of the error is refined away (benchmarks).
ACCURACY = "rough"
IMAGES_AT_ONCE = 32
# Of a cell: real part, imaginary part and weight.
SUM_BYTES = 12
# Edge of the ball, and the most that it takes of a small box.
SOFT_PX, SOFT_SHARE = 5.0, 1 / 12
# Share of a shell's mean weight that half maps are regularised by: only cells that few images
# reach feel it.
LEAST_SHARE = 1e-3
# What half maps correlate by counts as within these: below it is chance.
LEAST_CORRELATION, MOST_CORRELATION = 1e-3, 1 - 1e-6
# Up to so many views a pixel of the edge, those by symmetry counted, each image is added under all
# rotations of the group. Beyond, rotating the sums takes less time, and their weights are smooth
# enough for it: where few views cross, what is interpolated between them can be below 0.
MOST_VIEWS = 200
SMOOTHING = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9


@dataclass(frozen=True, kw_only=True)
class DirectFourier:
    """Parameters of direct Fourier inversion.

    Parameters
    ----------
    symmetry
        Point group of the particle, oriented as RELION has it: "C1", "C4", "D7", "T", "O", "I".
    half_maps
        Whether to reconstruct each half of the images as well.
    wiener
        What is added to the weights of each shell, as a share of their mean: the more, the smoother
        the map. "auto": noise over signal, from the correlation of the half maps; without half maps
        0.001.
    diameter_A
        Of the ball that the particle lies in, Å: beyond it the map is 0. "auto" takes the largest.
    n_refinements
        How often the solution is refined by what it leaves unexplained, 0 to 10.
    symmetrise
        What is rotated by the group: "views", each image is added under all rotations, or "sums",
        once. "auto": views where they are few.
    pixel_size_A
        Edge of a pixel, Å; None takes that of the stack.

    Raises
    ------
    ParameterError
        If a parameter is out of range, or the group unknown.

    Notes
    -----
    Images are multiplied by their CTF and added to the Fourier transform of the volume on a grid of
    1.5 cells a frequency, weights CTF² beside them, which takes one pass and any order. What
    follows is told in `emdask.kernels.gridding`. The regularisation is that of Scheres, "RELION:
    implementation of a Bayesian approach to cryo-EM structure determination", Journal of Structural
    Biology 180 (2012) 519-530: with the FSC of the half maps, noise over signal is (1 - FSC) / FSC
    of the weight of a half.

    Examples
    --------
    >>> DirectFourier(symmetry="D7", diameter_A=160).symmetry
    'D7'
    """

    symmetry: str = parameter("C1", "point group of the particle, oriented as RELION has it")
    half_maps: bool = parameter(True, "reconstruct each half of the images as well")
    wiener: Literal["auto"] | float = parameter(
        "auto", "added to the weights, as a share of their mean; auto: from the half maps"
    )
    diameter_A: Literal["auto"] | float = parameter(
        "auto", "of the ball that the particle lies in; auto: the largest", "Å"
    )
    n_refinements: int = parameter(1, "refinements by what is left unexplained")
    symmetrise: Literal["auto", "views", "sums"] = parameter(
        "auto", "rotate views or sums by the group; auto: views where they are few"
    )
    pixel_size_A: float | None = parameter(None, "edge of a pixel; that of the stack if none", "Å")

    def __post_init__(self) -> None:
        symmetry_matrices(self.symmetry)
        require(isinstance(self.half_maps, bool), WHAT, "half_maps must be a bool", self.half_maps)
        if self.wiener != "auto":
            check_number(WHAT, "wiener", self.wiener, 1e-6, 1e6)
        if self.diameter_A != "auto":
            check_number(WHAT, "diameter_A", self.diameter_A, 1)
        check_integer(WHAT, "n_refinements", self.n_refinements, 0, 10)
        check_choice(WHAT, "symmetrise", self.symmetrise, ("auto", *SYMMETRISED))
        check_pixel_size(WHAT, self.pixel_size_A)


@dataclass(frozen=True)
class HalfSums:
    """Sums of each half of the images, or one of all."""

    halves: tuple[SliceSums, ...]


def complete(
    params: DirectFourier, attrs: Mapping[str, Any], shape: tuple[int, ...]
) -> DirectFourier:
    """Take what depends on the stack from it, and check what depends on the images' size."""
    pixel_size_A = attrs.get("pixel_size_A") if params.pixel_size_A is None else params.pixel_size_A
    if pixel_size_A is None:
        rule = "the pixel size of the stack must be known"
        remedy = "Pass pixel_size_A=, or set stack.attrs['pixel_size_A']."
        raise StackError(sentence(WHAT, rule, remedy=remedy))
    if params.diameter_A != "auto":
        box_A = shape[-1] * pixel_size_A
        rule = f"diameter_A must be at most the edge of the images, {box_A:g} Å"
        require(params.diameter_A <= box_A, WHAT, rule, params.diameter_A)
    symmetrised = params.symmetrise
    if symmetrised == "auto":
        n_views = shape[0] * len(symmetry_matrices(params.symmetry))
        symmetrised = "views" if n_views <= MOST_VIEWS * shape[-1] else "sums"
    return replace(params, pixel_size_A=float(pixel_size_A), symmetrise=symmetrised)


def insert(
    sums: HalfSums | None,
    images: Any,
    params: DirectFourier,
    *,
    rotation_deg: npt.NDArray[np.float64],
    shift_A: npt.NDArray[np.float64],
    half: npt.NDArray[np.int64],
    optics: Optics | None,
    device: str = "cpu",
) -> HalfSums:
    """Add a block of images to the sums of their halves.

    On a card, the sums of the block come back and are added to those before on the host.

    Parameters
    ----------
    sums
        Of the images before; None begins.
    images
        (n, h, w), particles white on dark.
    params
        Parameters, with the pixel size.
    rotation_deg, shift_A, half
        Of each image: RELION's Euler angles (n, 3), the translation that centres it (n, 2), and 1
        or 2 (n,).
    optics
        Of the images; None where they have no CTF.
    device
        "cpu" or "cuda".

    Returns
    -------
    HalfSums
        Those given are left as they are.

    Raises
    ------
    DeviceError
        If the card has no room for the sums.
    """
    # New sums for each block, added to those before: a float32 that millions of terms were added to
    # one by one takes no more.
    box_px, n_halves = images.shape[-1], 2 if params.half_maps else 1
    plan = GridPlan(box_px=box_px, accuracy=ACCURACY)
    n_bytes = n_halves * SUM_BYTES * prod(plan.shape)
    n_bytes += working_bytes((_images_at_once(box_px, device), box_px, box_px))
    group = symmetry_matrices(params.symmetry if params.symmetrise == "views" else "C1")
    views = rotation_matrices(rotation_deg), shift_A / float(params.pixel_size_A or 0)
    member = [half == number if n_halves == 2 else half > 0 for number in range(1, n_halves + 1)]
    what = f"adding up images of {box_px} px"
    given = (images, optics, *views, group, member, device)
    made: tuple[SliceSums, ...] = run_on(device, _add_up, *given, n_bytes=n_bytes, what=what)
    if sums is not None:
        for target, before in zip(made, sums.halves, strict=True):
            target.cells[...] += before.cells
    return HalfSums(made)


def _images_at_once(box_px: int, device: str) -> int:
    return IMAGES_AT_ONCE if device == "cpu" else batch_size((box_px, box_px))


def _add_up(
    images: Any,
    optics: Optics | None,
    matrices: Array,
    shifts_px: Array,
    group: Array,
    member: list[Array],
    device: str,
) -> tuple[SliceSums, ...]:
    """Sums of the members of each half, on the host."""
    box_px = images.shape[-1]
    xp = array_namespace(to_device(images[:0], device))
    made = [empty_sums(box_px, ACCURACY, xp) for _ in member]
    at_once = _images_at_once(box_px, device)
    for start in range(0, len(images), at_once):
        some = slice(start, start + at_once)
        there = to_device(images[some], device)
        slices, weights = _weigh(there, None if optics is None else optics[some])
        for target, members in zip(made, member, strict=True):
            chosen = np.flatnonzero(members[some])
            there = xp.asarray(chosen)
            given = slices[there], weights[there]
            for rotation in group:
                views = matrices[some][chosen] @ rotation, shifts_px[some][chosen]
                insert_slices(target, *given, *views)
    return tuple(SliceSums(to_host(target.cells), target.plan) for target in made)


def _weigh(images: Any, optics: Optics | None) -> tuple[Any, Any]:
    """Fourier transforms times CTF, and CTF²: what the noise, equal everywhere, asks for."""
    xp = array_namespace(images)
    slices = to_half_planes(images)
    if optics is None:
        return slices, xp.ones(slices.shape, np.float32)
    ctf = optics.ctfs(images.shape[1:], len(images), xp)
    return slices * ctf, ctf * ctf


def combine(first: HalfSums, second: HalfSums) -> HalfSums:
    """Add the sums of two parts of a stack."""
    pairs = zip(first.halves, second.halves, strict=True)
    return HalfSums(tuple(add_sums(*pair) for pair in pairs))


def finalize(sums: HalfSums, params: DirectFourier) -> xr.Dataset:
    """Solve for the maps.

    Parameters
    ----------
    sums
        Of all images.
    params
        Parameters, with the pixel size.

    Returns
    -------
    xarray.Dataset
        ``volume`` and, with half maps, ``half_1``, ``half_2`` and ``fsc``.
    """
    plan = sums.halves[0].plan
    mask = _ball(params, plan.box_px)
    solve = partial(solve_volume, mask=mask, plan=plan, n_refinements=params.n_refinements)
    total, means, maps, found = None, [], {}, {}
    for number, half in enumerate(sums.halves, start=1):
        grids = _grids(half, params)
        means.append(shell_weights(grids[1], plan))
        if params.half_maps:
            maps[f"half_{number}"] = solve(*grids, LEAST_SHARE * means[-1])
        total = grids if total is None else _add_grids(total, grids)
        del grids
    assert total is not None
    if params.half_maps:
        found["fsc"] = shell_correlation(maps["half_1"], maps["half_2"])
    maps["volume"] = solve(*total, _prior(params, means, found.get("fsc")))
    variables = {name: (VOLUME_DIMS, volume) for name, volume in maps.items()}
    return xr.Dataset(variables | {name: ("frequency", curve) for name, curve in found.items()})


def _grids(sums: SliceSums, params: DirectFourier) -> tuple[Array, Array]:
    """Data and weights of a symmetric particle."""
    data, weights = fold_sums(sums)
    if params.symmetrise != "views":
        group = symmetry_matrices(params.symmetry)
        data, weights = (symmetrise(grid, group, sums.plan) for grid in (data, weights))
        np.maximum(weights, 0, out=weights)
    return data, weights


def _add_grids(total: tuple[Array, Array], more: tuple[Array, Array]) -> tuple[Array, Array]:
    """Add in place: grids are larger than volumes."""
    for target, grid in zip(total, more, strict=True):
        target += grid
    return total


def _ball(params: DirectFourier, box_px: int) -> Any:
    soft_px = min(SOFT_PX, SOFT_SHARE * box_px)
    radius_px = box_px / 2 - 1 - soft_px
    if params.diameter_A != "auto" and params.pixel_size_A is not None:
        radius_px = min(params.diameter_A / params.pixel_size_A / 2, radius_px)
    return spherical_mask(box_px, radius_px, soft_px)


def _prior(params: DirectFourier, means: list[Any], correlation: Any) -> Any:
    """Noise over signal of each shell, in the unit of the weights, whose means are of each half."""
    if params.wiener != "auto":
        return params.wiener * sum(means)
    if correlation is None:
        return LEAST_SHARE * sum(means)
    # From shell to shell the correlation of noise jumps, and so would the gain.
    reach = len(SMOOTHING) // 2
    smooth = np.convolve(np.pad(correlation, reach, mode="edge"), SMOOTHING, mode="valid")
    signal = np.clip(smooth, LEAST_CORRELATION, MOST_CORRELATION)
    signal = np.append(signal[:1], signal)
    # What lowers the correlation is the mean of the halves' noise, which is one over weight.
    first, second = means
    weight = 2 * first * second / np.maximum(first + second, np.finfo(np.float32).tiny)
    return weight * (1 - signal) / signal


METHOD = Reconstructor(
    params=DirectFourier,
    insert={"cpu": insert, "cuda": partial(insert, device="cuda")},
    combine=combine,
    finalize=finalize,
    complete=complete,
)
