"""DDTF: patches are sparse in a frame that is learnt from the noisy images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer, check_number, check_sigma, require
from emdask.kernels.noise import estimate_snr
from emdask.kernels.patches import (
    PatchSample,
    ScaleSamples,
    merge_scale_samples,
    sample_patches,
)
from emdask.kernels.scales import halve
from emdask.kernels.tight_frame import (
    LEARNING_THRESHOLD,
    LearntFrame,
    denoise_images,
    learn_frame,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise, to_unit_noise
from emdask.method import Learn, Method, noise_parameter, parameter

PATCH_PX = (4, 16)
MOST_SCALES = 5
# What was best on simulated particles and on photographs; see benchmarks/results/ddtf.md.
PREVAILING_NOISE_SNR = 1.0
# Side of what a patch of the coarsest resolution shows, in px of the image; threshold of detail.
NOISY_VIEW_PX, NOISY_DETAIL = 32, 3.3
CLEAR_VIEW_PX, CLEAR_DETAIL = 16, 2.7


@dataclass(frozen=True, kw_only=True)
class Ddtf:
    """Parameters of DDTF, the data-driven tight frame.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Noise that is assumed, relative to sigma: more removes more noise and more detail.
    patch_px
        Side of a patch, px; 4 to 16. The paper has 16; 8 with several resolutions reaches as far,
        at a sixteenth of the operations.
    n_scales
        Resolutions, each half of the last and with a frame of its own, of which the coarser guide
        the finer ones; 1 to 5. "auto": the coarsest patches show 32 px for images of SNR below 1,
        which takes 3 resolutions with patches of 8 px, else 16 px.
    scope
        "stack" learns from patches of all images, "image" from those of each image alone.
    n_patches
        Most patches that are learnt from at each resolution, drawn at random.
    n_iterations
        Most steps of learning; it ends before when nothing changes.
    seed
        Of the choice of patches.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Cai, Ji, Shen and Ye, "Data-driven tight frame construction and image denoising", Applied and
    Computational Harmonic Analysis 37 (2014) 89-105; Xian, Gu, Wang, Cai and others, "Data-driven
    tight frame for cryo-EM image denoising and conformational classification", IEEE GlobalSIP 2018.
    Beyond the papers are resolutions, weights of patches, a Wiener filter as second step, and a
    prior that keeps atoms which few patches show near the cosine transform.

    A model is a dataset of ``atoms (scale, atom, pixel)``, the finest resolution first, pixels row
    by row; ``n_learnt (scale)``, the number of patches learnt from; and ``objective (scale,
    step)``, what each step of learning reached. ``scope="image"`` takes none.

    Examples
    --------
    >>> Ddtf(patch_px=16, n_scales=1).scope
    'stack'
    >>> Ddtf(patch_px=3)
    Traceback (most recent call last):
    emdask.errors.ParameterError: ddtf: patch_px must be an integer in [4, 16]; got 3.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "noise that is assumed, relative to sigma")
    patch_px: int = parameter(8, "side of a patch", "px")
    n_scales: Literal["auto"] | int = parameter(
        "auto", "resolutions, each half of the last, of which the coarser guide the finer ones"
    )
    scope: Literal["stack", "image"] = parameter(
        "stack", "learn from patches of all images, or from those of each image alone"
    )
    n_patches: int = parameter(30_000, "most patches that are learnt from")
    n_iterations: int = parameter(30, "most steps of learning")
    seed: int = parameter(0, "seed of the choice of patches")

    def __post_init__(self) -> None:
        check_sigma("ddtf", self.sigma)
        check_number("ddtf", "strength", self.strength, 0.01, 100)
        check_integer("ddtf", "patch_px", self.patch_px, *PATCH_PX)
        if self.n_scales != "auto":
            check_integer("ddtf", "n_scales", self.n_scales, 1, MOST_SCALES)
        check_choice("ddtf", "scope", self.scope, ("stack", "image"))
        check_integer("ddtf", "n_patches", self.n_patches, 1)
        check_integer("ddtf", "n_iterations", self.n_iterations, 1, 10_000)
        check_integer("ddtf", "seed", self.seed, 0)


# --- Learning -------------------------------------------------------------------------------------


def sample_scales(
    images: npt.NDArray[Any],
    image_ids: npt.NDArray[np.integer[Any]],
    params: Ddtf,
    n_images: int = 1,
) -> ScaleSamples:
    """Draw patches at each resolution.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    image_ids
        Their numbers, (n,).
    params
        Parameters.
    n_images
        Size of the stack.

    Returns
    -------
    ScaleSamples
    """
    unit, _, _, noisy = to_unit_noise(images, params.sigma)
    noisy = noisy.ravel()
    return _sample_unit_noise(unit[noisy], image_ids[noisy], params, n_images)


def _sample_unit_noise(
    images: npt.NDArray[np.float32],
    image_ids: npt.NDArray[np.integer[Any]],
    params: Ddtf,
    n_images: int = 1,
) -> ScaleSamples:
    """Draw patches at each resolution from images that will be denoised at it."""
    wanted = np.zeros(len(images), np.int64)
    for chosen, n_scales, _ in choose_scales(images, params):
        wanted[chosen] = n_scales
    scales = []
    for scale in range(count_scales(params, NOISY_VIEW_PX)):
        chosen = wanted > scale
        images, image_ids, wanted = images[chosen], image_ids[chosen], wanted[chosen]
        images = images if scale == 0 else _halve_each(images)
        scales.append(
            sample_patches(
                images,
                image_ids,
                patch_px=params.patch_px,
                n_patches=params.n_patches,
                seed=params.seed,
                n_images=n_images,
            )
        )
    return ScaleSamples(params.n_patches, tuple(scales))


def _halve_each(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Halve images one by one: their rounding must not depend on those beside them."""
    height, width = (-(-n // 2) for n in images.shape[1:])
    halves = np.empty((len(images), height, width), np.float32)
    for image, half in zip(images, halves, strict=True):
        half[...] = halve(image)
    return halves


def learn_frames(samples: ScaleSamples, params: Ddtf) -> xr.Dataset:
    """Learn a frame of each resolution.

    Parameters
    ----------
    samples
        Patches of all images.
    params
        Parameters.

    Returns
    -------
    xarray.Dataset
        See `Ddtf`.
    """
    learnt = [_learn_scale(sample, params) for sample in samples.scales]
    objective = np.full((len(learnt), params.n_iterations), np.nan)
    for row, frame in zip(objective, learnt, strict=True):
        row[: len(frame.objective)] = frame.objective
    atoms = np.stack([frame.atoms for frame in learnt])
    counts = np.array([len(sample.keys) for sample in samples.scales])
    return xr.Dataset(
        {
            "atoms": (("scale", "atom", "pixel"), atoms, {"long_name": "filters, row by row"}),
            "objective": (("scale", "step"), objective, {"long_name": "what learning lowers"}),
            "n_learnt": (("scale",), counts, {"long_name": "how many patches taught"}),
        },
    )


def _learn_scale(sample: PatchSample, params: Ddtf) -> LearntFrame:
    threshold = LEARNING_THRESHOLD * params.strength
    return learn_frame(sample.patches, threshold=threshold, n_iterations=params.n_iterations)


# --- Denoising ------------------------------------------------------------------------------------


def denoise(images: Any, params: Ddtf, model: xr.Dataset | None) -> Any:
    """Denoise images in learnt frames, on the processor or the card that they lie on.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    params
        Parameters; those that the model was learnt with.
    model
        What `learn_frames` returned; None where each image is learnt from alone.

    Returns
    -------
    (n, h, w) float32

    Raises
    ------
    ParameterError
        If the model was learnt for other patches or for fewer resolutions.
    """

    def denoise_all(unit: Any) -> Any:
        if model is None:
            return _denoise_by_image(unit, params)
        return _denoise_by_stack(unit, params, model)

    if model is not None:
        check_model(model, params)
    return denoise_at_unit_noise(images, params.sigma, denoise_all)


def check_model(model: xr.Dataset, params: Ddtf) -> None:
    """Refuse a model that was learnt with other parameters than those given."""
    if params.n_scales != "auto":
        most = model.sizes["scale"]
        rule = f"n_scales must be at most that of the model, {most}"
        require(params.n_scales <= most, "ddtf", rule, params.n_scales)


def _denoise_by_stack(unit: Any, params: Ddtf, model: xr.Dataset) -> Any:
    """Denoise images of unit noise in the frames of the stack."""
    result = array_namespace(unit).empty(unit.shape, np.float32)
    for chosen, n_scales, threshold in choose_scales(unit, params):
        result[chosen] = denoise_images(
            unit[chosen],
            model["atoms"].values[:n_scales],
            detail_threshold=threshold,
            strength=params.strength,
        )
    return result


def _denoise_by_image(unit: Any, params: Ddtf) -> Any:
    """Denoise each image of unit noise in frames that are learnt, on the host, from it alone."""
    result = array_namespace(unit).empty(unit.shape, np.float32)
    alone = replace(params, scope="stack")
    for i in range(len(unit)):
        image = unit[i : i + 1]
        host = image if array_namespace(image) is np else image.get()
        frames = learn_frames(_sample_unit_noise(host, np.zeros(1, np.int64), alone), alone)
        result[i] = _denoise_by_stack(image, alone, frames)[0]
    return result


def learns_from_stack(params: Ddtf) -> bool:
    """Whether frames are those of the stack, and not of each image."""
    return params.scope == "stack"


def choose_scales(unit: Any, params: Ddtf) -> list[tuple[Any, int, float]]:
    """Say at how many resolutions each image is denoised, each image judged by itself.

    Parameters
    ----------
    unit
        Images of unit noise, (n, h, w).
    params
        Parameters.

    Returns
    -------
    list of (indices, n_scales, detail_threshold)
        Each image is in one of them.
    """
    xp = array_namespace(unit)
    noisy = estimate_snr(unit, xp.ones(len(unit))) < PREVAILING_NOISE_SNR
    groups = [
        (xp.flatnonzero(noisy), count_scales(params, NOISY_VIEW_PX), NOISY_DETAIL),
        (xp.flatnonzero(~noisy), count_scales(params, CLEAR_VIEW_PX), CLEAR_DETAIL),
    ]
    return [group for group in groups if group[0].size]


def count_scales(params: Ddtf, view_px: int) -> int:
    """Return how many resolutions are given, or let patches of the coarsest one show so many px."""
    if params.n_scales != "auto":
        return params.n_scales
    return max(1, 1 + round(math.log2(view_px / params.patch_px)))


METHOD = Method(
    params=Ddtf,
    apply={"cpu": denoise, "cuda": denoise},
    learn=Learn(
        chunk={"cpu": sample_scales},
        combine=merge_scale_samples,
        finalize=learn_frames,
        wanted=learns_from_stack,
        shared=("patch_px",),
    ),
)
