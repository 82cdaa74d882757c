"""Band-pass filter: what is finer than one resolution or coarser than another is taken away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from emdask.checks import check_number, check_sigma, require
from emdask.kernels.bands import filter_bands
from emdask.kernels.resolutions import (
    check_pixel_size,
    check_resolution,
    known_pixel_size,
    to_frequency,
)
from emdask.method import Method, noise_parameter, parameter

# Half a wave across the image is a gradient; a whole one may be a particle in its middle.
WAVES_OF_GRADIENTS = 0.75


@dataclass(frozen=True, kw_only=True)
class Bandpass:
    """Parameters of the band-pass filter.

    Parameters
    ----------
    short_A
        Finer detail is taken away: resolution at which the gain is 1/2, Å, or "auto": for each
        image that after which the least error is to be expected, which needs no pixel size.
    long_A
        Coarser detail is taken away, likewise; "auto" takes away gradients alone: waves of more
        than 4/3 of the image's longer side.
    edge
        Width of the soft edges relative to the frequency of each, 0 to 2: the gain falls from 1 to
        0 between (1 - edge / 2) and (1 + edge / 2) of it, along half a cosine.
    sigma
        Standard deviation of the white noise in grey levels, or "auto": estimated image by image;
        for ``short_A="auto"``.
    pixel_size_A
        Edge of a pixel, Å; None takes that of the stack.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    "auto" is that of the method ``lowpass``. The image continues as its mirror image, and keeps its
    mean.

    Examples
    --------
    >>> Bandpass(short_A=10, long_A=200).edge
    1.0
    >>> Bandpass(short_A=200, long_A=10)
    Traceback (most recent call last):
    emdask.errors.ParameterError: bandpass: short_A must be below long_A; got (200, 10).
    """

    short_A: Literal["auto"] | float = parameter(
        "auto", "finer detail goes: its resolution; auto: of least expected error, each image", "Å"
    )
    long_A: Literal["auto"] | float = parameter(
        "auto", "coarser detail goes: its resolution; auto: gradients alone", "Å"
    )
    edge: float = parameter(1.0, "width of the soft edges, relative to the frequency of each")
    sigma: Literal["auto"] | float = noise_parameter()
    pixel_size_A: float | None = parameter(None, "edge of a pixel; that of the stack if none", "Å")

    def __post_init__(self) -> None:
        check_resolution("bandpass", "short_A", self.short_A)
        check_resolution("bandpass", "long_A", self.long_A)
        both = (self.short_A, self.long_A)
        in_order = "auto" in both or float(self.short_A) < float(self.long_A)
        require(in_order, "bandpass", "short_A must be below long_A", both)
        check_number("bandpass", "edge", self.edge, 0, 2)
        check_sigma("bandpass", self.sigma)
        check_pixel_size("bandpass", self.pixel_size_A)


def complete(params: Bandpass, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Bandpass:
    """Take the pixel size of the stack, where a resolution in Å needs it."""
    given = {"short_A": params.short_A, "long_A": params.long_A}
    pixel_size_A = known_pixel_size("bandpass", params.pixel_size_A, attrs, given)
    return replace(params, pixel_size_A=pixel_size_A)


def denoise(images: Any, params: Bandpass) -> Any:
    """Filter images on the CPU or on a card.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, w); NumPy or CuPy.
    params
        Parameters, with the pixel size where a resolution is in Å.

    Returns
    -------
    (n, h, w) float32
        Of the same library.
    """
    high = to_frequency(params.short_A, params.pixel_size_A)
    low = to_frequency(params.long_A, params.pixel_size_A)
    if low == "auto":
        low = WAVES_OF_GRADIENTS / max(images.shape[1:])
    return filter_bands(images, low, high, params.edge, params.sigma)


METHOD = Method(params=Bandpass, apply={"cpu": denoise, "cuda": denoise}, complete=complete)
