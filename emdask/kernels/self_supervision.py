"""How a denoiser is trained without clean images: pairs made of one image, and hidden pixels.

PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from emdask.checks import check_integer, check_number

__all__ = ["hide_pixels", "recorrupt"]


def recorrupt(
    noisy: torch.Tensor, generator: torch.Generator, *, strength: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make two images of one, with the same signal and independent noise.

    Parameters
    ----------
    noisy : tensor, shape (n, 1, h, w)
        Images whose noise is white and Gaussian, of deviation 1.
    generator
        Of the random numbers.
    strength
        Of the noise that is added to the first and, divided by its square, taken off the second.

    Returns
    -------
    given, target : tensors, shape (n, 1, h, w)
        Noise of variance 1 + strength², and 1 + 1 / strength².

    Raises
    ------
    ParameterError
        If the strength is not above 0.

    Notes
    -----
    ``noisy + s z`` and ``noisy - z / s``, with z of the distribution of the noise: the covariance
    of their noise is 1 - 1 = 0, and Gaussian variables that do not correlate are independent (Pang
    et al., "Recorrupted-to-recorrupted: unsupervised deep learning for image denoising", CVPR
    2021).

    Examples
    --------
    >>> given, target = recorrupt(torch.zeros(1, 1, 2, 2), torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(given, -target / 4))
    True
    """
    check_number("recorrupt", "strength", strength, 1e-6)
    noise = torch.empty_like(noisy).normal_(generator=generator)
    return noisy + strength * noise, noisy - noise / strength


def hide_pixels(
    noisy: torch.Tensor, generator: torch.Generator, *, share: float = 0.015, reach: int = 2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put neighbours in the place of some pixels.

    Parameters
    ----------
    noisy : tensor, shape (n, 1, h, w)
        Images of at least 2 pixels.
    generator
        Of the random numbers.
    share
        Share of the pixels that are hidden: one in each square of about 1 / share pixels.
    reach
        How far from a pixel, along each axis, the one may be that is put there, in px.

    Returns
    -------
    given : tensor, shape (n, 1, h, w)
        Images with others' values in hidden pixels; never their own.
    hidden : bool tensor, shape (n, 1, h, w)

    Raises
    ------
    ParameterError
        If share or reach are out of range.

    Notes
    -----
    A. Krull, T.-O. Buchholz, F. Jug, "Noise2Void: learning denoising from single noisy images",
    CVPR 2019, section 3.3.

    Examples
    --------
    >>> given, hidden = hide_pixels(torch.rand(1, 1, 16, 16), torch.Generator().manual_seed(0))
    >>> int(hidden.sum())
    4
    """
    check_number("hide_pixels", "share", share, 1e-6, 1)
    check_integer("hide_pixels", "reach", reach, 1)
    n, _, height, width = noisy.shape
    side = max(1, round(share**-0.5))
    rows, columns = (torch.arange(0, k, side, device=noisy.device) for k in (height, width))
    shape = (n, len(rows), len(columns))

    def draw(n_choices: torch.Tensor) -> torch.Tensor:
        # Of so many that the remainder favours none.
        drawn = torch.randint(1 << 30, shape, generator=generator, device=noisy.device)
        return drawn % n_choices

    # In squares that the border cuts, places are drawn among the pixels that are there.
    at_row = rows[:, None] + draw((height - rows).clamp(max=side)[:, None])
    at_column = columns + draw((width - columns).clamp(max=side))
    from_row, from_column = _neighbour(at_row, at_column, draw, reach, height, width)
    image = torch.arange(n, device=noisy.device)[:, None, None]
    given, hidden = noisy.clone(), torch.zeros_like(noisy, dtype=torch.bool)
    given[image, 0, at_row, at_column] = noisy[image, 0, from_row, from_column]
    hidden[image, 0, at_row, at_column] = True
    return given, hidden


def _neighbour(
    row: torch.Tensor,
    column: torch.Tensor,
    draw: Callable[[torch.Tensor], torch.Tensor],
    reach: int,
    height: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw another pixel of each one's surroundings, as far as they lie in the image."""
    low_row, low_column = (row - reach).clamp(min=0), (column - reach).clamp(min=0)
    n_rows = (row + reach).clamp(max=height - 1) - low_row + 1
    n_columns = (column + reach).clamp(max=width - 1) - low_column + 1
    own = (row - low_row) * n_columns + column - low_column
    # One of all but its own, which are counted on beyond it.
    drawn = draw((n_rows * n_columns - 1).clamp(min=1))
    drawn = drawn + (drawn >= own)
    return low_row + drawn // n_columns, low_column + drawn % n_columns
