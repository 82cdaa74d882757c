"""Banks of references for telling conformations apart, made of volumes or of images.

`emdask.kernels.polar` and `emdask.kernels.pose_search` compare images with references in the grey
levels and the noise of a stack. Here the directions are chosen from which volumes are seen, and
what a stack tells of itself is brought together with them.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from emdask.checks import require
from emdask.kernels.contrast import (
    SpectrumSums,
    add_spectra,
    find_contrast,
    find_noise,
    mean_light,
    measure_light,
    noise_at,
    sum_spectra,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.directions import (
    align_views,
    angles_between,
    cone_views,
    sphere_grid,
    turn_pole,
)
from emdask.kernels.fourier import frequency_grid, half_plane_weights, radial_power
from emdask.kernels.polar import SpectrumBank, crop_volume, match_spectra, prepare_spectra
from emdask.kernels.pose_search import PoseBank, PosePlan, prepare_poses
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.references import References
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.kernels.transforms import to_half_planes, to_images

__all__ = [
    "PoseSet",
    "SpectrumSet",
    "StackSums",
    "View",
    "add_stacks",
    "find_radius",
    "find_threshold",
    "prepare_pose_set",
    "prepare_spectrum_set",
    "reference_images",
    "sum_stack",
]

Array = npt.NDArray[Any]

# Images whose noise and contrast are measured, and whose CTFs are kept.
N_MEASURED: Final = 2000
N_OPTICS: Final = 500
# Of a particle's projections: share of their squares within its radius.
WITHIN: Final = 0.9999
# Of the disc that is compared, to the radius of the particle: shifts leave its edge blurred.
MARGIN: Final = 1.1
# Highest frequencies times the radius of the particle: of spectra, and of the coarse and the middle
# step of the search. Beyond, images of an SNR of 0.1 or less hold more noise than signal.
SPECTRUM_BAND: Final = 5.2
SEARCH_BANDS: Final = (6.0, 9.0)
# Of what tells conformations apart, the share below the highest frequency of the fine step.
SHARE_OF_DIFFERENCE: Final = 0.995
HIGHEST_BAND: Final = 0.45
# Conformations of which views outside of the cone are made, at most: more cost time and are alike.
N_OUTSIDE: Final = 3
# Distance of views within the cone, of spectra, in steps of those outside.
DENSER_INSIDE: Final = 0.55
# A gap between views in and outside of the cone, in steps.
GAP: Final = 0.25
N_CALIBRATION: Final = 400
N_CALIBRATED_AT_ONCE: Final = 50
# Standard errors that the squared contrast must be above 0, and that light may be below.
LEAST_ERRORS: Final = 4.0
MOST_ERRORS: Final = 5.0
# Images of which light is compared: at least, and of the references at most about so many.
LEAST_LIT: Final = 10
N_TYPICAL: Final = 200


class View(NamedTuple):
    """The direction that is wanted, and how far from it is still near.

    Parameters
    ----------
    view_deg : (float, float)
        rot and tilt.
    cone_deg
        Half the opening angle of the cone about it.
    """

    view_deg: tuple[float, float]
    cone_deg: float

    def holds(self, views_deg: Array) -> Array:
        """Whether directions (v, 2) are near."""
        near: Array = angles_between(views_deg, self.view_deg) <= self.cone_deg + 1e-6
        return near


class StackSums(NamedTuple):
    """What a stack tells of itself; adds up over images.

    Parameters
    ----------
    spectra
        Of the images measured; None if there are none.
    order : int64 array, shape (m,)
        A number of each image whose optics are kept, by which they are chosen.
    optics
        Of these images; None where there is no CTF.
    """

    spectra: SpectrumSums | None
    order: Array
    optics: Optics | None


# --- The stack ------------------------------------------------------------------------------------


def sum_stack(images: Array, ids: Array, n_images: int, optics: Optics | None) -> StackSums:
    """Measure some images of a block: which, follows from their numbers and the stack's size.

    Parameters
    ----------
    images : array, shape (m, n, n)
        A block of the stack.
    ids : int64 array, shape (m,)
        Their numbers.
    n_images
        Of the whole stack; up to 2000 are all measured, of more about 2000.
    optics
        Of the block; None where there is no CTF.

    Returns
    -------
    StackSums
    """
    order = _shuffle(ids)
    chosen = np.flatnonzero(order < N_MEASURED / max(n_images, 1) * 2**32)
    if len(chosen) == 0:
        return StackSums(None, order[chosen], None)
    few = optics and optics[chosen]
    spectra = sum_spectra(np.asarray(images)[chosen], few)
    return _thin(StackSums(spectra, order[chosen], few))


def add_stacks(a: StackSums, b: StackSums) -> StackSums:
    """Combine the sums of two blocks."""
    if a.spectra is None or b.spectra is None:
        return b if a.spectra is None else a
    optics = None
    if a.optics is not None and b.optics is not None:
        optics = _join_optics(a.optics, b.optics, (len(a.order), len(b.order)))
    order = np.concatenate([a.order, b.order])
    return _thin(StackSums(add_spectra(a.spectra, b.spectra), order, optics))


def _shuffle(ids: Array) -> Array:
    """Numbers below 2**32 that look random, each of one id (Knuth's multiplicative hash)."""
    mixed = np.asarray(ids, np.uint64) * np.uint64(2654435761) & np.uint64(2**32 - 1)
    mixed ^= mixed >> np.uint64(15)
    mixed = mixed * np.uint64(2246822519) & np.uint64(2**32 - 1)
    return (mixed ^ (mixed >> np.uint64(13))).astype(np.int64)


def _thin(sums: StackSums) -> StackSums:
    first = np.sort(np.argsort(sums.order, kind="stable")[:N_OPTICS])
    return StackSums(sums.spectra, sums.order[first], sums.optics and sums.optics[first])


def _join_optics(a: Optics, b: Optics, sizes: tuple[int, int]) -> Optics:
    joined = {}
    for name in vars(a):
        parts = [np.broadcast_to(getattr(o, name), n) for o, n in zip((a, b), sizes, strict=True)]
        same = np.ndim(getattr(a, name)) == np.ndim(getattr(b, name)) == 0
        joined[name] = getattr(a, name) if same else np.concatenate(parts)
    return Optics(**joined)


# --- Spectra --------------------------------------------------------------------------------------


class SpectrumSet(NamedTuple):
    """References for `emdask.kernels.polar.match_spectra`.

    Parameters
    ----------
    bank
        As it wants them.
    angles_deg : float64 array, shape (v, 3)
        rot, tilt and psi of each; NaN where they are not known.
    class_index : int64 array, shape (v,)
        Class of each.
    contrast
        How strongly the images show the references: they are multiplied by it.
    """

    bank: SpectrumBank
    angles_deg: Array
    class_index: Array
    contrast: float


def prepare_spectrum_set(
    references: References,
    sums: StackSums,
    *,
    spacing_deg: float,
    view: View | None,
    by_class: bool,
) -> SpectrumSet:
    """Prepare references over the whole sphere, in groups.

    Parameters
    ----------
    references
        Volumes or images.
    sums
        Of the stack.
    spacing_deg
        Distance of the directions from which volumes are seen.
    view
        What is wanted; None for the whole sphere.
    by_class
        Whether each class is a group, or all are one. With a view, these are within the cone, and
        one more group is all that is outside.

    Returns
    -------
    SpectrumSet
    """
    groups = _choose_views(references, spacing_deg, view)
    if not by_class:
        groups = _join_classes(groups, view is not None)
    spectra = _measured(sums)
    box_px = references.box_px
    typical = _typical_images(references)
    contrast = _contrast(sums, typical)
    radius_px = find_radius(typical)
    band_px = int(np.clip(SPECTRUM_BAND * box_px / radius_px, 6, box_px // 2 - 2))
    # Sampled no finer than these frequencies need.
    small_px = min(2 * band_px + 8, box_px)
    images = _project(references, groups, small_px) * np.float32(contrast)
    frequency = np.arange(band_px + 1) / box_px
    bank = prepare_spectra(
        images,
        tuple(len(group.angles_deg) for group in groups),
        box_px=box_px,
        band_px=band_px,
        noise_power=noise_at(frequency, find_noise(spectra)),
        with_ctf=sums.optics is not None,
    )
    angles = np.concatenate([group.angles_deg for group in groups])
    class_index = np.concatenate([group.class_index for group in groups])
    return SpectrumSet(bank, angles, class_index, contrast)


class _Group(NamedTuple):
    """References that count as one: views of volumes, or places among images."""

    angles_deg: Array
    class_index: Array
    places: Array


def _choose_views(references: References, spacing_deg: float, view: View | None) -> list[_Group]:
    n_classes = references.n_classes
    if references.volumes is None:
        return _choose_images(references, view)
    if view is None:
        views = _with_psi(sphere_grid(spacing_deg))
        return [_views_of(views, [i]) for i in range(n_classes)]
    inside = _with_psi(cone_views(view.view_deg, view.cone_deg, DENSER_INSIDE * spacing_deg))
    groups = [_views_of(inside, [i]) for i in range(n_classes)]
    sphere = sphere_grid(spacing_deg)
    beyond = angles_between(sphere, view.view_deg) > view.cone_deg + GAP * spacing_deg
    few = np.unique(np.linspace(0, n_classes - 1, min(n_classes, N_OUTSIDE)).round().astype(int))
    return [*groups, _views_of(_with_psi(sphere[beyond]), few.tolist())]


def _with_psi(views_deg: Array) -> Array:
    return np.column_stack([views_deg, np.zeros(len(views_deg))])


def _views_of(angles_deg: Array, classes: list[int]) -> _Group:
    class_index = np.repeat(np.array(classes, np.int64), len(angles_deg))
    return _Group(np.tile(angles_deg, (len(classes), 1)), class_index, np.zeros(0, np.int64))


def _choose_images(references: References, view: View | None) -> list[_Group]:
    class_index = references.class_index
    assert class_index is not None
    angles = references.angles_deg
    if angles is None:
        angles = np.full((len(class_index), 3), np.nan)
    outside = np.zeros(len(angles), bool)
    if view is not None:
        outside = ~view.holds(angles[:, :2])
    chosen = [np.flatnonzero((class_index == i) & ~outside) for i in range(references.n_classes)]
    if view is not None:
        chosen.append(np.flatnonzero(outside))
    return [_Group(angles[which], class_index[which], which) for which in chosen]


def _join_classes(groups: list[_Group], with_outside: bool) -> list[_Group]:
    inside = groups[:-1] if with_outside else groups
    joined = _Group(*(np.concatenate(parts) for parts in zip(*inside, strict=True)))
    return [joined, *groups[len(inside) :]]


def reference_images(
    references: References, *, spacing_deg: float, view: View | None
) -> tuple[Array, Array]:
    """Make the references of `prepare_spectrum_set`, by class, as images.

    Parameters
    ----------
    references, spacing_deg, view
        As there.

    Returns
    -------
    images : float32 array, shape (v, n, n)
    group : int64 array, shape (v,)
        Class of each, from 0; with a view, those outside of the cone come after all classes.
    """
    groups = _choose_views(references, spacing_deg, view)
    sizes = [len(group.angles_deg) for group in groups]
    images = _project(references, groups, references.box_px)
    return images, np.repeat(np.arange(len(groups)), sizes)


def _project(references: References, groups: list[_Group], size_px: int) -> Array:
    """References of all groups, as images of so many pixels; those given as images as they are."""
    if references.volumes is None:
        assert references.images is not None
        images = references.images[np.concatenate([group.places for group in groups])]
        return _without_ground(images)
    spectra: dict[int, Any] = {}
    parts = []
    for group in groups:
        for index in dict.fromkeys(group.class_index.tolist()):
            if index not in spectra:
                volume = references.volumes[index]
                small = crop_volume(volume, size_px) if size_px < len(volume) else volume
                spectra[index] = prepare_volume(small, "rough")
            own = group.angles_deg[group.class_index == index]
            parts.append(project_volume(spectra[index], rotation_matrices(own)))
    return np.concatenate(parts)


def _without_ground(images: Array) -> Array:
    """Images less the mean over their edge, the level of their ground."""
    edges = np.concatenate(
        [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1
    )
    level = edges.mean(axis=1, dtype=np.float64).astype(np.float32)
    return np.asarray(images - level[:, None, None])


def _typical_images(references: References) -> Array:
    """Some images of the references, from everywhere."""
    if references.volumes is None:
        assert references.images is not None
        return _without_ground(references.images)
    matrices = rotation_matrices(_with_psi(sphere_grid(35.0)))
    return np.concatenate(
        [project_volume(prepare_volume(volume, "rough"), matrices) for volume in references.volumes]
    )


def find_radius(images: Array) -> float:
    """Return the radius in pixels of the disc that holds what is not ground; at most half the edge.

    Parameters
    ----------
    images : array, shape (v, n, n)
        Views of a particle.

    Examples
    --------
    >>> find_radius(np.pad(np.ones((1, 5, 5)), ((0, 0), (10, 10), (10, 10))))
    5.0
    """
    n = images.shape[-1]
    y, x = np.indices((n, n)) - n // 2
    ring = np.rint(np.hypot(x, y)).astype(np.int64)
    square = np.square(images).mean(0)
    # Of maps, that of their solvent: as much in each pixel of the edge.
    edge = np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]])
    ground = edge.mean()
    scatter = edge.std()
    counts = np.bincount(ring.ravel())[: n // 2 + 1]
    held = np.bincount(ring.ravel(), (square - ground).ravel())[: n // 2 + 1]
    held = np.cumsum(np.where(held > 3 * scatter * np.sqrt(counts), held, 0))
    return float(min(int(np.searchsorted(held, WITHIN * held[-1])) + 2, n / 2))


def _contrast(sums: StackSums, typical: Array) -> float:
    """How strongly the images show the references; refuses images that do not show them."""
    spectra = _measured(sums)
    square, error = find_contrast(spectra, radial_power(typical)[1].mean(0), typical.shape[-1])
    rule = (
        "images must show more power than their corners, of which the noise is measured: "
        f"{LEAST_ERRORS:g} standard errors at least; theirs is {square / error:.1f}"
    )
    remedy = (
        "Take images as they were recorded: neither denoised nor masked, particles included; "
        "of few or faint images, take more."
    )
    require(bool(square > LEAST_ERRORS * error), "stack", rule, remedy=remedy)
    _check_light(sums, typical[:: max(1, len(typical) // N_TYPICAL)])
    return float(np.sqrt(square))


def _check_light(sums: StackSums, typical: Array) -> None:
    """Refuse images that are darker where references are lighter; of a few, none can be sure."""
    spectra, n = _measured(sums), len(typical)
    if min(spectra.n_images, n) < LEAST_LIT:
        return
    if sums.optics is not None:
        optics = sums.optics[np.random.default_rng(0).integers(len(sums.order), size=n)]
        terms = to_half_planes(typical) * optics.ctfs(typical.shape[1:], n)
        typical = to_images(terms, typical.shape[1:])
    expected = measure_light(typical)
    light, error = mean_light(spectra)
    sure = abs(expected.mean()) > expected.std() and abs(light) > MOST_ERRORS * error
    rule = "particles must be light on dark, as the references are; these are the other way about"
    remedy = "Turn their sign: -stack, or emdask extract with --invert."
    ok = not sure or light * expected.mean() > 0
    require(bool(ok), "stack", rule, remedy=remedy)


def _measured(sums: StackSums) -> SpectrumSums:
    assert sums.spectra is not None
    return sums.spectra


def find_threshold(
    spectra: SpectrumSet, references: References, sums: StackSums, view: View, keep: float
) -> float:
    """Find the score above which a share of the images of the cone lies, by simulating some.

    Parameters
    ----------
    spectra
        Of `prepare_spectrum_set`, with a view and in two groups.
    references
        Volumes: they are seen from anywhere within the cone. Or images.
    sums
        Of the stack: noise, contrast and CTFs are its own.
    view
        What is wanted.
    keep
        The share, 0 to 1.

    Returns
    -------
    float
        Of the difference between the log-likelihoods of the two groups.
    """
    rng = np.random.default_rng(0)
    images = _draw_images(references, view, rng)
    measured = _measured(sums)
    shape = images.shape[1:]
    contrast = np.float32(spectra.contrast)
    noise = find_noise(measured)
    amplitude = np.sqrt(noise_at(frequency_grid(shape), noise)).astype(np.float32)
    scores = []
    for start in range(0, len(images), N_CALIBRATED_AT_ONCE):
        few = images[start : start + N_CALIBRATED_AT_ONCE]
        terms = to_half_planes(few) * contrast
        optics = None
        if sums.optics is not None:
            optics = sums.optics[rng.integers(len(sums.order), size=len(few))]
            terms *= optics.ctfs(shape, len(few))
        white = rng.standard_normal(few.shape, dtype=np.float32)
        noisy = to_images(terms + to_half_planes(white) * amplitude, shape)
        likely = match_spectra(noisy, spectra.bank, optics).log_likelihood
        scores.append(likely[:, 0] - likely[:, 1])
    return float(np.quantile(np.concatenate(scores), 1 - keep))


def _draw_images(references: References, view: View, rng: np.random.Generator) -> Array:
    """Clean images of the cone, of all classes alike."""
    if references.volumes is None:
        assert references.images is not None
        (group,) = _join_classes(_choose_images(references, view), True)[:1]
        return np.asarray(references.images[rng.choice(group.places, N_CALIBRATION)])
    cosine = 1 - (1 - np.cos(np.deg2rad(view.cone_deg))) * rng.random(N_CALIBRATION)
    about = 360 * rng.random(N_CALIBRATION)
    pole = np.column_stack([about, np.rad2deg(np.arccos(cosine))])
    views = turn_pole(pole, view.view_deg)
    angles = np.column_stack([views, 360 * rng.random(N_CALIBRATION)])
    per_class = np.array_split(rotation_matrices(angles), references.n_classes)
    return np.concatenate(
        [
            project_volume(prepare_volume(volume, "rough"), own)
            for volume, own in zip(references.volumes, per_class, strict=True)
        ]
    )


# --- Poses ----------------------------------------------------------------------------------------


class PoseSet(NamedTuple):
    """References for `emdask.kernels.pose_search.search_poses`.

    Parameters
    ----------
    bank
        As it wants them.
    angles_deg : float64 array, shape (r, 3)
        rot, tilt and psi of each; NaN where they are not known.
    n_classes
        Groups that are classes; one more is the rim, if there is one.
    """

    bank: PoseBank
    angles_deg: Array
    n_classes: int


def prepare_pose_set(
    references: References,
    sums: StackSums,
    *,
    view: View | None,
    step_deg: float,
    rim_deg: float,
    shift_px: float,
    band: float | None,
    everywhere: bool = False,
) -> PoseSet:
    """Prepare the enhanced basis set: every conformation from all directions of a cone.

    Parameters
    ----------
    references
        Volumes; or images, all, or those of the cone and its rim if directions are known.
    sums
        Of the stack.
    view
        Axis and angle of the cone; None only with images.
    step_deg
        Distance of directions.
    rim_deg
        Width of the rim outside of the cone whose views are one more group, the last.
    shift_px
        Largest shift.
    band
        Highest frequency, cycles a pixel; None for what holds 99.5 % of what tells classes apart.
    everywhere
        Whether the images of the stack are seen from all sides, and not from the cone alone.

    Returns
    -------
    PoseSet
    """
    images, coarse, angles, sizes = _pose_images(references, view, step_deg, rim_deg)
    measured, box_px = _measured(sums), references.box_px
    typical = images
    if everywhere and references.volumes is not None:
        typical = _typical_images(references)
    contrast = _contrast(sums, typical)
    radius_px = find_radius(images)
    if band is None:
        band = _find_band(images, sizes[: references.n_classes], radius_px)
    amplitude = np.sqrt(noise_at(frequency_grid((box_px, box_px)), find_noise(measured)))
    plan = plan_search(radius_px, band, shift_px)
    bank = prepare_poses(
        images * np.float32(contrast),
        sizes,
        coarse * np.float32(contrast),
        plan._replace(radius_px=min(MARGIN * radius_px, box_px / 2)),
        amplitude,
    )
    return PoseSet(bank, angles, references.n_classes)


def _pose_images(
    references: References, view: View | None, step_deg: float, rim_deg: float
) -> tuple[Array, Array, Array, tuple[int, ...]]:
    """References group after group, views for the coarse step, angles, and sizes of groups."""
    if references.volumes is None:
        groups = _choose_rim(references, view, rim_deg)
        assert references.images is not None
        images = references.images[np.concatenate([group.places for group in groups])]
        images = _without_ground(images)
        angles = np.concatenate([group.angles_deg for group in groups])
        return images, images, angles, tuple(len(group.places) for group in groups)
    assert view is not None
    views = cone_views(view.view_deg, view.cone_deg, step_deg, rim_deg)
    angles = align_views(views, view.view_deg)
    inside = view.holds(views)
    coarse_views = cone_views(view.view_deg, view.cone_deg + rim_deg, 5 / 3 * step_deg)
    coarse_angles = align_views(coarse_views, view.view_deg)
    seen, coarse = [], []
    for volume in references.volumes:
        spectrum = prepare_volume(volume)
        seen.append(project_volume(spectrum, rotation_matrices(angles)))
        coarse.append(project_volume(spectrum, rotation_matrices(coarse_angles)))
    n_classes, n_inside = len(seen), int(inside.sum())
    parts, sizes = [own[inside] for own in seen], [n_inside] * n_classes
    order = [angles[inside]] * n_classes
    if not inside.all():
        parts += [own[~inside] for own in seen]
        order += [angles[~inside]] * n_classes
        sizes.append(n_classes * int((~inside).sum()))
    return np.concatenate(parts), np.concatenate(coarse), np.concatenate(order), tuple(sizes)


def _choose_rim(references: References, view: View | None, rim_deg: float) -> list[_Group]:
    """Images of the cone by class, and those of the rim, if there are; all if there is no cone."""
    if view is None or references.angles_deg is None:
        return _choose_images(references, None)
    *classes, outside = _choose_images(references, view)
    near = View(view.view_deg, view.cone_deg + rim_deg).holds(outside.angles_deg[:, :2])
    rim = _Group(*(each[near] for each in outside))
    return [*classes, rim] if near.any() else classes


def _find_band(images: Array, sizes: tuple[int, ...], radius_px: float) -> float:
    """Frequency below which most of what tells the classes apart lies; cycles a pixel."""
    n = images.shape[-1]
    lowest = min(1.5 * SEARCH_BANDS[1] / radius_px, HIGHEST_BAND)
    if len(set(sizes)) > 1 or len(sizes) < 2:
        return lowest
    stacked = images[: sum(sizes)].reshape(len(sizes), -1, n, n)
    terms = to_half_planes((stacked - stacked.mean(0)).reshape(-1, n, n))
    power = half_plane_weights((n, n)) * np.square(np.abs(terms)).sum(0)
    frequency = frequency_grid((n, n))
    order = np.argsort(frequency, axis=None)
    held = np.cumsum(power.ravel()[order])
    last = min(int(np.searchsorted(held, SHARE_OF_DIFFERENCE * held[-1])), len(order) - 1)
    return float(np.clip(frequency.ravel()[order[last]], lowest, HIGHEST_BAND))


def plan_search(radius_px: float, band: float, shift_px: float) -> PosePlan:
    """Choose steps of turns and shifts by the highest frequencies and the radius of the particle.

    Parameters
    ----------
    radius_px
        Of the particle.
    band
        Highest frequency of the fine step, cycles a pixel.
    shift_px
        Largest shift.

    Returns
    -------
    PosePlan

    Examples
    --------
    >>> [round(band, 2) for band in plan_search(50.0, 0.36, 4.0).bands]
    [0.12, 0.18, 0.36]
    """
    coarse, middle = (min(each / radius_px, band) for each in SEARCH_BANDS)
    bands = (coarse, middle, band)
    shifts = [c / b for c, b in zip((0.19, 0.095, 0.09), bands, strict=True)]
    turns = [
        float(np.rad2deg(c / (b * radius_px)))
        for c, b in zip((0.52, 0.32, 0.31), bands, strict=True)
    ]
    return PosePlan(
        shift_px=shift_px,
        radius_px=radius_px,
        bands=bands,
        shift_steps_px=(round(shifts[0], 2), round(shifts[1], 2), round(shifts[2], 2)),
        turn_steps_deg=(360 / max(8, round(360 / turns[0])), turns[1], turns[2]),
        shift_reach_px=(0.67 * shifts[0], 1.5 * shifts[1]),
        turn_reach_deg=(0.8 * turns[0], 2 * turns[1]),
    )
