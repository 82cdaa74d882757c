"""Total variation along rows and columns, by split Bregman iterations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from emdask.checks import check_integer, check_number, check_sigma
from emdask.kernels.unit_noise import denoise_at_unit_noise, image_by_image
from emdask.method import Method, noise_parameter, parameter

# Of the variation in sigma, at strength 1. benchmarks/filters.py has the sweep.
WEIGHT = 1.0
# Root mean square change in sigma at which it has converged.
TOLERANCE = 1e-3
# The library spoils pixels near the border, and diverges on a single line.
MARGIN_PX = 8


@dataclass(frozen=True, kw_only=True)
class TvBregman:
    """Parameters of total variation by split Bregman iterations.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Weight of the total variation beside half the squared difference from the image, in
        sigma.
    n_iterations
        Most iterations; fewer where the image no longer changes.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Goldstein and Osher, "The split Bregman method for L1-regularized problems", SIAM Journal on
    Imaging Sciences 2 (2009) 323-343; by scikit-image. The variation is that along rows plus that
    along columns: the library's other form, the length of the gradient, shrinks it by a smooth
    approximation that hardly differs from a linear filter.

    Examples
    --------
    >>> TvBregman(strength=1.5).strength
    1.5
    >>> TvBregman(strength="much")
    Traceback (most recent call last):
    emdask.errors.ParameterError: tv_bregman: strength must be a number in [0.01, 100]; got 'much'.
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    n_iterations: int = parameter(100, "number of iterations")

    def __post_init__(self) -> None:
        check_sigma("tv_bregman", self.sigma)
        check_number("tv_bregman", "strength", self.strength, 0.01, 100)
        check_integer("tv_bregman", "n_iterations", self.n_iterations, 1, 100_000)


def denoise_cpu(images: npt.NDArray[Any], params: TvBregman) -> npt.NDArray[np.float32]:
    """Minimise the total variation of images on one CPU core.

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
    from skimage.restoration import denoise_tv_bregman

    def minimise(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        # Its weight is that of the difference from the image.
        smooth = denoise_tv_bregman(
            np.pad(image.astype(np.float64), MARGIN_PX, mode="symmetric"),
            weight=1 / (params.strength * WEIGHT),
            max_num_iter=params.n_iterations,
            eps=TOLERANCE,
            isotropic=False,
        )
        return smooth[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]  # type: ignore[no-any-return]

    denoise = image_by_image(minimise)
    return denoise_at_unit_noise(images, params.sigma, denoise)  # type: ignore[no-any-return]


METHOD = Method(params=TvBregman, apply={"cpu": denoise_cpu})
