"""K-SVD: patches are sums of few atoms of a dictionary that is learnt from the noisy images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer, check_number, check_sigma, require
from emdask.kernels.noise import estimate_snr
from emdask.kernels.patches import (
    ScaleSamples,
    merge_samples,
    merge_scale_samples,
    sample_patches,
)
from emdask.kernels.unit_noise import denoise_at_unit_noise, to_unit_noise
from emdask.method import Learn, Method, noise_parameter, parameter

# Most scales of images of an SNR below these; measured in benchmarks/ksvd.py.
SCALES_BELOW_SNR = ((0.25, 3), (1.5, 2))
MOST_SCALES = 5
MOST_AUTO_SCALES = SCALES_BELOW_SNR[0][1]
# Size of the sample: samples of chunks of a stack wait to be merged, all of an image are there.
N_PATCHES = {"stack": 1 << 15, "image": 1 << 18}

Floats = npt.NDArray[np.float32]
Images = Any


@dataclass(frozen=True, kw_only=True)
class Ksvd:
    """Parameters of K-SVD.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Noise that is assumed, relative to ``sigma``: more removes more noise and more detail.
    scope
        "stack" learns one dictionary for all images, "image" one for each image when it is
        denoised.
    n_scales
        Resolutions, each half of the last, of which the coarser are denoised first and subtracted
        from the finer, 1 to 5; "auto" takes 3 for images of SNR below 0.25, 2 below 1.5, else
        1, as in the paper. Scales of less than two patches across are left out.
    patch_px
        Side of a patch, px; 4 to 16.
    n_atoms
        Size of the dictionary of each scale; 16 to 512. Few patches teach fewer atoms, one for 16
        patches, or none: then it is the overcomplete cosine transform.
    n_iterations
        Iterations of learning; 0 keeps the overcomplete cosine transform.
    n_patches
        Most patches of the sample that the dictionary of a scale is learnt from; None takes 32768
        of a stack, or 262144 of an image. Those that are no more than noise teach nothing.
    seed
        Of the choice of patches.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Elad and Aharon, "Image denoising via sparse and redundant representations over learned
    dictionaries", IEEE Transactions on Image Processing 15 (2006) 3736-3745.

    The model is an `xarray.Dataset`: ``atoms (scale, atom, pixel)`` float32, the finest scale
    first, pixels row by row, of unit norm or, beyond those that were learnt, zero; and ``n_patches
    (scale)``, how many patches each was learnt from. It suits images of any size and noise. Where a
    model is given, ``patch_px`` must be its own, and the parameters of learning below it have no
    effect. ``scope="image"`` takes none.

    Beyond the paper are scales, and the smaller residual of 1.1 instead of 1.15 times the noise,
    which is 0.08 dB better on a photograph; see ``benchmarks/results/ksvd.md``.

    Examples
    --------
    >>> Ksvd(sigma=0.5, scope="image").n_atoms
    256
    >>> Ksvd(patch_px=3)
    Traceback (most recent call last):
    emdask.errors.ParameterError: ksvd: patch_px must be an integer in [4, 16]; got 3.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "noise that is assumed, relative to sigma")
    scope: Literal["stack", "image"] = parameter(
        "stack", "learn from patches of all images, or from those of each image alone"
    )
    n_scales: Literal["auto"] | int = parameter(
        "auto", "resolutions, each half of the last; auto: 3, 2 or 1 by the image's SNR"
    )
    patch_px: int = parameter(8, "side of a patch", "px")
    n_atoms: int = parameter(256, "size of the dictionary of each scale")
    n_iterations: int = parameter(10, "iterations of learning")
    n_patches: int | None = parameter(None, "most patches that are learnt from")
    seed: int = parameter(0, "seed of the choice of patches")

    def __post_init__(self) -> None:
        check_sigma("ksvd", self.sigma)
        check_number("ksvd", "strength", self.strength, 0.01, 100)
        check_choice("ksvd", "scope", self.scope, N_PATCHES)
        if self.n_scales != "auto":
            check_integer("ksvd", "n_scales", self.n_scales, 1, MOST_SCALES)
        check_integer("ksvd", "patch_px", self.patch_px, 4, 16)
        check_integer("ksvd", "n_atoms", self.n_atoms, 16, 512)
        check_integer("ksvd", "n_iterations", self.n_iterations, 0, 1000)
        if self.n_patches is not None:
            check_integer("ksvd", "n_patches", self.n_patches, 1, 1 << 24)
        check_integer("ksvd", "seed", self.seed, 0)


# --- Learning -------------------------------------------------------------------------------------


def sample_scales(
    images: npt.NDArray[Any],
    image_ids: npt.NDArray[np.integer[Any]],
    params: Ksvd,
    n_images: int = 1,
) -> ScaleSamples:
    """Draw patches at each scale; images teach the scales at which they are denoised.

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
    n_scales = MOST_AUTO_SCALES if params.n_scales == "auto" else params.n_scales
    return _sample_unit_noise(unit[noisy], image_ids[noisy], n_scales, params, n_images)


def _sample_unit_noise(
    unit: Floats,
    image_ids: npt.NDArray[np.integer[Any]],
    n_scales: int,
    params: Ksvd,
    n_images: int = 1,
) -> ScaleSamples:
    from emdask.kernels.ksvd import list_scales

    n_patches = params.n_patches or N_PATCHES[params.scope]
    sizes: dict[str, int] = {
        "patch_px": params.patch_px,
        "n_patches": n_patches,
        "seed": params.seed,
        "n_images": n_images,
    }
    samples = [sample_patches(unit[:0], [], **sizes) for _ in range(n_scales)]
    for chosen, count in choose_scales(unit, params):
        levels = list_scales(unit[chosen] / np.float32(params.strength), count, params.patch_px)
        for i, level in enumerate(levels):
            more = sample_patches(level, image_ids[chosen], **sizes)
            samples[i] = merge_samples(samples[i], more, n_patches)
    return ScaleSamples(n_patches, tuple(samples))


def learn_dictionaries(samples: ScaleSamples, params: Ksvd) -> xr.Dataset:
    """Learn a dictionary of each scale.

    Parameters
    ----------
    samples
        Patches of all images.
    params
        Parameters.

    Returns
    -------
    xarray.Dataset
        See `Ksvd`.
    """
    counts = np.array([len(sample.keys) for sample in samples.scales], np.int64)
    atoms = _learn_atoms(samples, params)
    dims = ("scale", "atom", "pixel")
    meaning = {"long_name": "how many patches they were learnt from"}
    return xr.Dataset(
        {
            "atoms": (dims, atoms, {"long_name": "patches of unit norm, row by row"}),
            "n_patches": (dims[:1], counts, meaning),
        }
    )


def _learn_atoms(samples: ScaleSamples, params: Ksvd) -> Floats:
    from emdask.kernels.ksvd import learn_atoms

    sizes: dict[str, int] = {
        "n_atoms": params.n_atoms,
        "patch_px": params.patch_px,
        "n_iterations": params.n_iterations,
    }
    return np.stack([learn_atoms(sample.patches, **sizes) for sample in samples.scales])


# --- Denoising ------------------------------------------------------------------------------------


def denoise_cpu(images: npt.NDArray[Any], params: Ksvd, model: xr.Dataset | None) -> Floats:
    """Denoise images with K-SVD on one CPU core.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    params
        Parameters.
    model
        What `learn_dictionaries` returned; None where each image has a dictionary of its own.

    Returns
    -------
    (n, h, w) float32

    Raises
    ------
    ParameterError
        If the model was learnt for fewer scales.
    """
    from emdask.kernels import pursuit_cpu

    return _denoise(images, params, model, pursuit_cpu.denoise_images)  # type: ignore[no-any-return]


def denoise_cuda(images: Any, params: Ksvd, model: xr.Dataset | None) -> Any:
    """Denoise images with K-SVD on one card; see `denoise_cpu`.

    Dictionaries of single images are learnt on the host.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); CuPy.
    params
        Parameters.
    model
        What `learn_dictionaries` returned; None where each image has a dictionary of its own.

    Returns
    -------
    (n, h, w) float32
        CuPy.
    """
    from emdask.kernels import pursuit_cuda

    return _denoise(images, params, model, pursuit_cuda.denoise_images)


def _denoise(
    images: Images, params: Ksvd, model: xr.Dataset | None, denoise_images: Callable[..., Images]
) -> Images:
    """Denoise images by either twin."""
    from emdask.kernels.ksvd import denoise_unit_noise

    if model is not None:
        check_model(model, params)
    unit_on_host = _to_unit_noise_on_host(images, params) if model is None else None

    def denoise(unit: Images) -> Images:
        result = array_namespace(unit).zeros(unit.shape, np.float32)
        strength = np.float32(params.strength)
        for chosen, n_scales in choose_scales(unit, params):
            for part, atoms in _dictionaries(chosen, n_scales, params, model, unit_on_host):
                count = min(n_scales, len(atoms))
                result[part] = strength * denoise_unit_noise(
                    unit[part] / strength, atoms, n_scales=count, denoise_images=denoise_images
                )
        return result

    return denoise_at_unit_noise(images, params.sigma, denoise)


def _to_unit_noise_on_host(images: Images, params: Ksvd) -> Floats:
    """Images that teach: learning turns another rounding into other atoms, and devices round."""
    xp = array_namespace(images)
    unit: Floats = to_unit_noise(images if xp is np else xp.asnumpy(images), params.sigma)[0]
    return unit


def _dictionaries(
    chosen: Images, n_scales: int, params: Ksvd, model: xr.Dataset | None, unit: Floats | None
) -> Iterator[tuple[Images, Floats]]:
    """Images that go together and their dictionaries; those of single images are learnt here."""
    if model is not None:
        yield chosen, model["atoms"].values
        return
    assert unit is not None
    for i in chosen.tolist():
        part = slice(i, i + 1)
        alone = _sample_unit_noise(unit[part], np.zeros(1, np.int64), n_scales, params)
        yield part, _learn_atoms(alone, params)


def check_model(model: xr.Dataset, params: Ksvd) -> None:
    """Refuse a model that was learnt for fewer scales."""
    if params.n_scales != "auto":
        n_scales = model.sizes["scale"]
        rule = f"n_scales must be at most that of the model, {n_scales}"
        require(params.n_scales <= n_scales, "ksvd", rule, params.n_scales)


def learns_from_stack(params: Ksvd) -> bool:
    """Whether dictionaries are those of the stack, and not of each image."""
    return params.scope == "stack"


def choose_scales(unit: Images, params: Ksvd) -> list[tuple[Images, int]]:
    """Say which images take how many scales, each image by itself.

    Parameters
    ----------
    unit
        Images of unit noise, (n, h, w).
    params
        Parameters.

    Returns
    -------
    list of (indices, n_scales)
    """
    xp = array_namespace(unit)
    if params.n_scales != "auto":
        return [(xp.arange(len(unit)), params.n_scales)]
    counts = xp.ones(len(unit), np.int64)
    snrs = estimate_snr(unit, xp.ones(len(unit)))
    for limit, n_scales in reversed(SCALES_BELOW_SNR):
        counts[snrs < limit] = n_scales
    groups = [(xp.flatnonzero(counts == n), n) for n in range(1, MOST_AUTO_SCALES + 1)]
    return [(chosen, n_scales) for chosen, n_scales in groups if chosen.size]


METHOD = Method(
    params=Ksvd,
    apply={"cpu": denoise_cpu, "cuda": denoise_cuda},
    learn=Learn(
        chunk={"cpu": sample_scales},
        combine=merge_scale_samples,
        finalize=learn_dictionaries,
        wanted=learns_from_stack,
        shared=("patch_px",),
    ),
)
