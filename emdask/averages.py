"""Class averages: images of a class, turned and shifted onto one another, and their mean."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import (
    check_device,
    one_blas_thread,
    resolve_device,
    run_on,
    sum_batches,
    to_device,
)
from emdask.blocks_cuda import working_bytes
from emdask.checks import check_choice, check_integer, sentence
from emdask.errors import StackError
from emdask.kernels.alignment import (
    AverageSums,
    PlanePoses,
    add_sums,
    align_images,
    solve_averages,
    sum_aligned,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.directions import align_views, unit_vectors, view_of
from emdask.kernels.draws import uniform_draws
from emdask.lazy import BAD_PIXELS, clean_pixels, fold_images, label_arrays, map_signature
from emdask.method import Reconstructor
from emdask.placement import on_cards
from emdask.stack import (
    CORRECTED,
    add_provenance,
    as_stack,
    image_ids,
    one_pixel_size,
    optics_of,
)
from emdask.variables import ANGLES, SHIFTS

Array = npt.NDArray[Any]

NAME = "class_averages"
DIMS = ("class", "y", "x")
ALIGN: Final = ("auto", "poses", "images", "none")
CLASS, PSI = "class_id", "psi_deg"
# Of each class, images that are aligned by one another where the user does not say: more than
# enough for an average to look at, in ten seconds at 128 px.
MOST_ALIGNED = 500
# Length of the mean of directions of view, from which on they are near one direction.
LEAST_GATHERED = 0.7
# Of what is drawn for an image: which images are taken; and with which seed.
STREAM, SEED = 43, 0
# Images that are added up at once; memory of a card that aligning takes beside that of images.
AT_ONCE, ALIGNING_BYTES = 256, 2**30


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Parameters of averages of known poses.

    Parameters
    ----------
    n_classes
        Number of classes.
    """

    n_classes: int


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of the images.

    Parameters
    ----------
    class_index : int64 array, shape (n,)
        Class of each image, from 0; -1 for images that are left out.
    n_classes
        Number of classes.
    psi_deg : float64 array, shape (n,), or None
        Turn of each; None where it is not known.
    shift_A : float64 array, shape (n, 2)
        Translation (x, y) that centres the particle; 0 where it is not known.
    """

    class_index: Array
    n_classes: int
    psi_deg: Array | None
    shift_A: Array

    @property
    def counts(self) -> Array:
        """Number of images of each class."""
        return np.bincount(self.class_index[self.class_index >= 0], minlength=self.n_classes)


def class_averages(
    stack: Any,
    table: xr.Dataset | None = None,
    *,
    align: str = "auto",
    n_iterations: int = 5,
    max_images: int | None = None,
    device: str | None = None,
    bad_pixels: str = "raise",
) -> xr.DataArray:
    """Average the images of each class, turned and shifted onto one another, lazily.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Square particle images. Where the stack knows a defocus, averages are corrected for the CTF.
    table
        What `emdask.classify` returned for these images: their ``class_id``, and their poses where
        its method finds some. None takes the coordinate ``class_id`` of the stack; without one all
        images are of class 1. Images of class 0 are left out. Of a table that is not computed, what
        is needed is computed by this call, and images are classified for it; pass
        ``table.compute()`` where it is needed more than once.
    align
        How images come to lie on one another: "poses", by ``psi_deg``, ``shift_x_A`` and
        ``shift_y_A`` of the table, or else of the stack, and where ``rot_deg`` and ``tilt_deg`` are
        near one direction by these too: each view is as if tipped from it by the least rotation;
        "images", by themselves, class by class; "none", as they are. "auto": by poses where
        ``psi_deg`` is known, else by images.
    n_iterations
        Steps at full resolution of aligning images by themselves.
    max_images
        Most images of a class that are averaged, chosen by ``image_id``. None takes all, but where
        they are aligned by themselves 500.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.

    Returns
    -------
    xarray.DataArray, dims (class, y, x), float32
        Lazy: call ``.compute()``. Coordinates: ``class``, from 1, and ``n_images`` (class), how
        many images each is the average of; where there are none, it is 0.

    Raises
    ------
    ParameterError, StackError, DeviceError
        At once: if a parameter is out of range, the table is not of these images, no image is of a
        class, or poses are asked for and not known.

    Notes
    -----
    With poses, or none, images are read once, and memory does not grow with their number: it holds
    sums of 8 bytes a pixel and class, 12 with CTFs, twice for each thread. An average is the sum of
    CTF times image over that of CTF² plus a small number, term by term of Fourier transforms
    (`emdask.kernels.alignment`); its mean stays that of the images. Only turns in the plane are
    made up for: images of a class that are seen from other sides are averaged over these.

    Aligning images by themselves goes through the images of a class many times, in memory: 30 bytes
    a pixel of those chosen. It takes 2 ms an image and step at 128 px, on one core, and a class is
    a task. It finds how images lie to each other, but not how the particle does: each class comes
    out turned as it happens to, and centred where its images are on average. Averages of noise
    alone look like what they began with: be suspicious of classes of few images.

    Examples
    --------
    >>> from emdask import phantom, simulate
    >>> shapes = [phantom(8, radius_A=20, seed=seed).volume(24, 3.0) for seed in (0, 1)]
    >>> images = simulate(shapes, 40, snr=1, shifts_A=6.0).images
    >>> averages = class_averages(images).compute()
    >>> averages.shape, int(averages.n_images.sum())
    ((2, 24, 24), 40)
    """
    check_choice(NAME, "align", align, ALIGN)
    check_integer(NAME, "n_iterations", n_iterations, 1, 1000)
    if max_images is not None:
        check_integer(NAME, "max_images", max_images, 1)
    check_choice(NAME, "bad_pixels", bad_pixels, BAD_PIXELS)
    device = check_device(device, NAME, RECORD.insert)
    source = as_stack(stack)
    _check_square(source)
    size_A = _pixel_size(source, table)
    known = _gather_known(source, table)
    how = _choose_alignment(align, known)
    most = MOST_ALIGNED if how == "images" and max_images is None else max_images
    known = replace(known, class_index=_choose_images(known, image_ids(source), most))
    optics = optics_of(source if size_A is None else source.assign_attrs(pixel_size_A=size_A))
    options: dict[str, Any] = {"optics": optics, "device": device, "bad_pixels": bad_pixels}
    if how == "images":
        images = _align_classes(source.data, known, n_iterations, **options)
    else:
        poses = _plane_poses(known, how, size_A)
        images = _fold_classes(source.data, known, poses, **options)
    parameters = {"align": how, "n_iterations": n_iterations, "max_images": most}
    history = {"provenance": source.attrs.get("provenance", ())}
    attrs = add_provenance(history, NAME, parameters)
    attrs |= {} if size_A is None else {"pixel_size_A": size_A}
    attrs |= {} if optics is None else {"ctf_state": CORRECTED}
    numbers = np.arange(1, known.n_classes + 1)
    coords = {"class": numbers, "n_images": ("class", known.counts)}
    return xr.DataArray(images, coords, DIMS, NAME, attrs)


def _check_square(stack: xr.DataArray) -> None:
    if stack.shape[1] != stack.shape[2]:
        rule = "images must be square, with the particle near the middle"
        raise StackError(sentence(NAME, rule, stack.shape[1:], "Pad or crop them."))


def _pixel_size(stack: xr.DataArray, table: xr.Dataset | None) -> float | None:
    size_A = one_pixel_size(stack, NAME, "Average the images of each size by themselves.")
    if size_A is None and isinstance(table, xr.Dataset):
        size_A = table.attrs.get("pixel_size_A")
    return size_A


# --- What is known of the images ------------------------------------------------------------------


def _gather_known(stack: xr.DataArray, table: xr.Dataset | None) -> _Known:
    """Classes and poses of the images, of the table where it has them, else of the stack."""
    sources: list[Any] = [stack.coords]
    n_classes = 0
    if table is not None:
        _check_table(table, stack)
        wanted = [name for name in (CLASS, *ANGLES, *SHIFTS) if name in table]
        sources.insert(0, table[wanted].compute())
        n_classes = table.sizes.get("class", 0)
    with_class = next((source for source in sources if CLASS in source), None)
    class_id = _class_ids(with_class, len(stack))
    n_classes = max(n_classes, int(class_id.max(initial=0)))
    if n_classes == 0:
        rule = "an image must be of a class; class_id is 0 for all"
        raise StackError(sentence(NAME, rule))
    with_psi = next((source for source in sources if PSI in source), None)
    psi_deg = None if with_psi is None else _plane_angles(with_psi, class_id > 0)
    shift_A = np.zeros((len(stack), 2))
    for axis, name in enumerate(SHIFTS):
        if with_psi is not None and name in with_psi:
            shift_A[:, axis] = _one_an_image(with_psi[name], len(stack))
    return _Known(class_index=class_id - 1, n_classes=n_classes, psi_deg=psi_deg, shift_A=shift_A)


def _plane_angles(poses: Any, used: npt.NDArray[np.bool_]) -> Array:
    """Turn of each image in its plane, such that images of neighbouring views look alike.

    Where views are near one direction, as those of a cone, it is what is left of psi when the
    particle is tipped from that direction by the least rotation: near tilt 0 it is rot + psi.
    """
    psi_deg = _one_an_image(poses[PSI], len(used))
    if not all(name in poses for name in ANGLES):
        return psi_deg
    views = np.stack([_one_an_image(poses[name], len(used)) for name in ANGLES[:2]], axis=1)
    used = used & np.isfinite(views).all(axis=1)
    middle = unit_vectors(views[used]).sum(axis=0)
    if np.linalg.norm(middle) < LEAST_GATHERED * max(used.sum(), 1):
        return psi_deg
    # The middle itself is turned as if tipped from the z axis: where it is near that, its rot is
    # chance.
    axis = view_of(middle)
    turn_deg = align_views(axis[None], (0.0, 0.0))[0, 2]
    untwisted = psi_deg.copy()
    untwisted[used] -= align_views(views[used], axis)[:, 2] + turn_deg
    return untwisted


def _check_table(table: Any, stack: xr.DataArray) -> None:
    remedy = "Pass what emdask.classify returned for this stack."
    if not isinstance(table, xr.Dataset) or CLASS not in table:
        got = sorted(map(str, table)) if isinstance(table, xr.Dataset) else type(table).__name__
        rule = "table must be a dataset with class_id of each image"
        raise StackError(sentence(NAME, rule, got, remedy))
    if table[CLASS].dims != ("image",) or len(table[CLASS]) != len(stack):
        rule = f"table must have a row for each of the {len(stack)} images"
        raise StackError(sentence(NAME, rule, dict(table[CLASS].sizes), remedy))
    if "image_id" in table.coords and (table.image_id.values != image_ids(stack)).any():
        rule = "table must have the image_id of the stack, in their order"
        raise StackError(sentence(NAME, rule, remedy=remedy))


def _class_ids(source: Any, n_images: int) -> Array:
    """Class of each image, from 1; 0 for none."""
    if source is None:
        return np.ones(n_images, np.int64)
    class_id = _one_an_image(source[CLASS], n_images).astype(np.int64)
    if (class_id < 0).any():
        rule = "class_id must be a number from 1, or 0 for none"
        raise StackError(sentence(NAME, rule, int(class_id.min())))
    return class_id


def _one_an_image(values: Any, n_images: int) -> Array:
    """Numbers of a column; one that holds for all, as of a selected image, is for all."""
    return np.broadcast_to(np.asarray(values.values, np.float64), n_images)


def _choose_alignment(align: str, known: _Known) -> str:
    if align == "poses" and known.psi_deg is None:
        rule = 'align="poses" needs psi_deg of each image, of the table or the stack'
        remedy = 'Pass align="images".'
        raise StackError(sentence(NAME, rule, remedy=remedy))
    if align == "auto":
        return "images" if known.psi_deg is None else "poses"
    return align


def _choose_images(known: _Known, ids: Array, most: int | None) -> Array:
    """Classes of the images that are taken: of each class those of the smallest random numbers."""
    if most is None or known.counts.max() <= most:
        return known.class_index
    draws = uniform_draws(SEED, ids, 1, stream=STREAM)[:, 0]
    order = np.lexsort((draws, known.class_index))
    own = known.class_index[order]
    rank = np.arange(len(own)) - np.searchsorted(own, own)
    chosen = np.full_like(known.class_index, -1)
    chosen[order[rank < most]] = own[rank < most]
    return chosen


def _plane_poses(known: _Known, how: str, size_A: float | None) -> PlanePoses:
    """Poses by which images are moved back; those of images that are left out are 0."""
    n = len(known.class_index)
    if how == "none" or known.psi_deg is None:
        return PlanePoses(np.zeros(n), np.zeros((n, 2)))
    table = np.where(
        known.class_index[:, None] < 0, 0, np.column_stack([known.psi_deg, known.shift_A])
    )
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        rule = f"the pose of image {bad[0]} must be finite, since it is of a class"
        raise StackError(sentence(NAME, rule, table[bad[0]].tolist(), "Give it class 0."))
    if size_A is None and table[:, 1:].any():
        rule = "the pixel size must be known where images are shifted"
        remedy = "Set it: stack.attrs['pixel_size_A'] = ..."
        raise StackError(sentence(NAME, rule, remedy=remedy))
    return PlanePoses(table[:, 0], table[:, 1:] / (size_A or 1.0))


# --- Known poses ----------------------------------------------------------------------------------


def _fold_classes(
    images: da.Array,
    known: _Known,
    poses: PlanePoses,
    *,
    optics: Optics | None,
    device: str,
    bad_pixels: str,
) -> da.Array:
    along = {"class_index": known.class_index, **poses._asdict()}
    params = Averages(n_classes=known.n_classes)
    found = fold_images(
        images,
        RECORD,
        params,
        name=NAME,
        device=device,
        along=along,
        optics=optics,
        bad_pixels=bad_pixels,
    )
    like = np.broadcast_to(np.float32(0), (known.n_classes, *images.shape[1:]))
    return label_arrays(found, {"average": xr.Variable(DIMS, like)}).average.data


def insert(
    sums: AverageSums | None,
    images: Any,
    params: Averages,
    *,
    class_index: Array,
    psi_deg: Array,
    shift_px: Array,
    optics: Optics | None,
    device: str = "cpu",
) -> AverageSums:
    """Add a block of images to the sums of their classes.

    Parameters
    ----------
    sums
        Of the images before, left as they are; None begins.
    images
        (n, h, w).
    params
        Parameters.
    class_index, psi_deg, shift_px
        As of `emdask.kernels.alignment.sum_aligned`.
    optics
        Of the images; None where they have no CTF.
    device
        "cpu" or "cuda".

    Returns
    -------
    AverageSums
    """
    made: AverageSums = sum_batches(
        partial(_sum_batch, n_classes=params.n_classes),
        images,
        along={
            "class_index": class_index,
            "psi_deg": psi_deg,
            "shift_px": shift_px,
            "optics": optics,
        },
        combine=add_sums,
        device=device,
        n_images=AT_ONCE,
        what=f"averaging images of {images.shape[-1]} px",
    )
    return made if sums is None else add_sums(sums, made)


def _sum_batch(
    images: Any,
    *,
    n_classes: int,
    class_index: Array,
    psi_deg: Array,
    shift_px: Array,
    optics: Optics | None,
) -> AverageSums:
    return sum_aligned(images, class_index, n_classes, PlanePoses(psi_deg, shift_px), optics)


def _finalize(sums: AverageSums, params: Averages) -> xr.Dataset:
    return xr.Dataset({"average": (DIMS, solve_averages(sums))})


RECORD = Reconstructor(
    params=Averages,
    insert={"cpu": insert, "cuda": partial(insert, device="cuda")},
    combine=add_sums,
    finalize=_finalize,
)


# --- Poses by the images --------------------------------------------------------------------------


def _align_classes(
    images: da.Array,
    known: _Known,
    n_iterations: int,
    *,
    optics: Optics | None,
    device: str,
    bad_pixels: str,
) -> da.Array:
    """Average each class in a task of its own, which has its images."""
    averages = []
    for number in range(known.n_classes):
        position = np.flatnonzero(known.class_index == number)
        if len(position) == 0:
            averages.append(da.zeros(images.shape[1:], np.float32))
            continue
        average = partial(
            _average_class,
            position=position,
            optics=optics and optics[position],
            n_iterations=n_iterations,
            device=device,
            bad_pixels=bad_pixels,
        )
        own = images if len(position) == len(images) else images[position]
        with on_cards(device):
            averages.append(map_signature(average, "(n,h,w)->(h,w)", own).astype(np.float32))
    return da.stack(averages)


def _average_class(
    images: Array,
    *,
    position: Array,
    optics: Optics | None,
    n_iterations: int,
    device: str,
    bad_pixels: str,
) -> Array:
    """Align the images of a class and average them; (n, h, w) to (h, w)."""
    parts = [
        clean_pixels(images[i : i + 1], int(number), bad_pixels)
        for i, number in enumerate(position)
    ]
    where = resolve_device(device, RECORD.insert)
    n_bytes = working_bytes(images.shape) + ALIGNING_BYTES
    what = f"aligning {len(images)} images of {images.shape[-1]} px"
    given = (np.concatenate(parts), optics, n_iterations, where)
    with one_blas_thread:
        sums: AverageSums = run_on(where, _align_there, *given, n_bytes=n_bytes, what=what)
        average: Array = solve_averages(sums)[0]
    return average


def _align_there(
    images: Array, optics: Optics | None, n_iterations: int, device: str
) -> AverageSums:
    there = to_device(images, device)
    poses = align_images(there, optics, n_iterations=n_iterations, seed=SEED)
    return sum_aligned(there, np.zeros(len(images), np.int64), 1, poses, optics)
