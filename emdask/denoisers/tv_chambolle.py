"""Total variation, by Chambolle's projections: the least variation that the noise allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from emdask.backend import restoration_namespace
from emdask.checks import check_integer, check_number, check_sigma
from emdask.kernels.unit_noise import denoise_at_unit_noise, image_by_image
from emdask.method import Method, noise_parameter, parameter

# Of the variation in sigma, at strength 1. benchmarks/filters.py has the sweep.
WEIGHT = 1.1


@dataclass(frozen=True, kw_only=True)
class TvChambolle:
    """Parameters of total variation by Chambolle's projections.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image.
    strength
        Weight of the total variation beside half the squared difference from the image, in 1.1
        sigma.
    n_iterations
        Iterations. Always all: the stopping rule of the libraries, a small change of the energy,
        also holds where the energy turns, long before the end.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Chambolle, "An algorithm for total variation minimization and applications", Journal of
    Mathematical Imaging and Vision 20 (2004) 89-97; by scikit-image on the CPU and cuCIM on a card.

    Examples
    --------
    >>> TvChambolle(strength=1.5).n_iterations
    150
    >>> TvChambolle(n_iterations=0)
    Traceback (most recent call last):
    emdask.errors.ParameterError: tv_chambolle: n_iterations must be an integer in [1, 100000]; ...
    """

    sigma: Literal["auto"] | float = noise_parameter()
    strength: float = parameter(1.0, "how much is removed, relative to what suits the noise")
    n_iterations: int = parameter(150, "number of iterations")

    def __post_init__(self) -> None:
        check_sigma("tv_chambolle", self.sigma)
        check_number("tv_chambolle", "strength", self.strength, 0.01, 100)
        check_integer("tv_chambolle", "n_iterations", self.n_iterations, 1, 100_000)


def denoise(images: Any, params: TvChambolle) -> Any:
    """Minimise the total variation of images; NumPy or CuPy.

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
    library = restoration_namespace(images)

    def minimise(image: Any) -> Any:
        weight = params.strength * WEIGHT
        return library.denoise_tv_chambolle(
            image, weight=weight, eps=0.0, max_num_iter=params.n_iterations
        )

    return denoise_at_unit_noise(images, params.sigma, image_by_image(minimise))


METHOD = Method(params=TvChambolle, apply={"cpu": denoise, "cuda": denoise})
