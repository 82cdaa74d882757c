"""BM3D: similar blocks of an image are stacked, transformed, shrunk and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.backend import array_namespace
from emdask.checks import check_choice, check_integer, check_number, check_sigma, require
from emdask.kernels.bm3d_plan import FAST, HIGH_NOISE, NORMAL, WIDEST_WINDOW, Profile
from emdask.kernels.noise import estimate_snr, known_sigmas
from emdask.method import Method, noise_parameter, parameter

PROFILES = {"normal": NORMAL, "fast": FAST, "high_noise": HIGH_NOISE}
# Below this SNR the profile "high_noise" was ahead on every simulated particle; above 2 it falls
# behind.
HIGH_NOISE_SNR = 1.0
WINDOW_PX = (3, WIDEST_WINDOW)
GROUP_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class BM3D:
    """Parameters of BM3D; None takes the profile's value.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    profile
        Set of defaults: "normal" is that of Dabov et al. 2007, "fast" searches less, "high_noise"
        guides fine scales by coarse ones; "auto" takes "high_noise" for images of SNR below 1.
    window_px
        Side of the square that is searched for similar blocks, px; odd, 3 to 99. Above 95 a card
        needs more shared memory than those of compute capability 7.5 have.
    group_size
        Most blocks in a group, in both steps; a power of two up to 64.
    threshold
        Coefficients below this many sigma are set to zero in the first step.
    n_scales
        Resolutions, each half of the last, of which the coarser guide the finer ones; 1 to 5.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Dabov, Foi, Katkovnik and Egiazarian, "Image denoising by sparse 3-D transform-domain
    collaborative filtering", IEEE Transactions on Image Processing 16 (2007) 2080-2095.

    Examples
    --------
    >>> BM3D(sigma=0.5, profile="fast").profile
    'fast'
    >>> BM3D(sigma=-1)
    Traceback (most recent call last):
    emdask.errors.ParameterError: bm3d: sigma must be "auto" or a number of at least 0; got -1.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    profile: Literal["auto", "normal", "fast", "high_noise"] = parameter(
        "auto", "set of defaults; auto: normal, or high_noise for images of SNR below 1"
    )
    window_px: int | None = parameter(None, "side of the square searched for blocks; odd", "px")
    group_size: int | None = parameter(
        None, "most blocks in a group, in both steps; a power of two up to 64"
    )
    threshold: float | None = parameter(
        None, "smaller coefficients are set to zero in the first step", "sigma"
    )
    n_scales: int | None = parameter(
        None, "resolutions, each half of the last, of which the coarser guide the finer ones"
    )

    def __post_init__(self) -> None:
        check_sigma("bm3d", self.sigma)
        check_choice("bm3d", "profile", self.profile, ("auto", *PROFILES))
        if self.window_px is not None:
            check_integer("bm3d", "window_px", self.window_px, *WINDOW_PX)
            require(self.window_px % 2 == 1, "bm3d", "window_px must be odd", self.window_px)
        if self.group_size is not None:
            rule = f"group_size must be one of {', '.join(map(str, GROUP_SIZES))}"
            require(self.group_size in GROUP_SIZES, "bm3d", rule, self.group_size)
        if self.threshold is not None:
            check_number("bm3d", "threshold", self.threshold, 0, 100)
        if self.n_scales is not None:
            check_integer("bm3d", "n_scales", self.n_scales, 1, 5)


def denoise_cpu(images: npt.NDArray[Any], params: BM3D) -> npt.NDArray[np.float32]:
    """Denoise images with BM3D on one CPU core.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w).
    params
        Parameters.

    Returns
    -------
    (n, h, w) float32
    """
    from emdask.kernels import bm3d_cpu

    return _denoise(images, params, bm3d_cpu.denoise)  # type: ignore[no-any-return]


def denoise_cuda(images: Any, params: BM3D) -> Any:
    """Denoise images with BM3D on one card; see `denoise_cpu`.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); CuPy.
    params
        Parameters.

    Returns
    -------
    (n, h, w) float32
        CuPy.
    """
    from emdask.kernels import bm3d_cuda

    return _denoise(images, params, bm3d_cuda.denoise)


def _denoise(images: Any, params: BM3D, denoise: Callable[[Any, Any, Profile], Any]) -> Any:
    """Denoise images whose profiles may differ, by either twin."""
    xp = array_namespace(images)
    result = xp.empty(images.shape, np.float32)
    sigmas = known_sigmas(images, params.sigma)
    for name, chosen in choose_profiles(images, sigmas, params.profile).items():
        profile = adapt_profile(PROFILES[name], params)
        result[chosen] = denoise(images[chosen], sigmas[chosen], profile)
    return result


def choose_profiles(images: Any, sigmas: Any, profile: str) -> dict[str, Any]:
    """Which images take which profile: name to indices of the images.

    Each image is judged on its own, so that the choice does not depend on the chunks.
    """
    if profile != "auto":
        return {profile: slice(None)}
    xp = array_namespace(images)
    noisy = estimate_snr(images, sigmas) < HIGH_NOISE_SNR
    chosen = {"high_noise": xp.flatnonzero(noisy), "normal": xp.flatnonzero(~noisy)}
    return {name: which for name, which in chosen.items() if which.size}


def adapt_profile(profile: Profile, params: BM3D) -> Profile:
    """Put the parameters that were given into a profile."""
    given: dict[str, Any] = {
        "window_px": params.window_px,
        "hard_group": params.group_size,
        "wiener_group": params.group_size,
        "threshold": params.threshold,
        "n_scales": params.n_scales,
    }
    return profile._replace(**{name: value for name, value in given.items() if value is not None})


METHOD = Method(params=BM3D, apply={"cpu": denoise_cpu, "cuda": denoise_cuda})
