"""Discriminators, which tell clean images from denoised ones, and what either side loses by them.

The losses are those of H. Gu et al., "Generative adversarial networks for robust cryo-EM image
denoising", arXiv 2008.07307 (2020). PyTorch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from emdask.checks import check_choice, check_number

__all__ = [
    "KINDS",
    "Adversary",
    "Discriminator",
    "discriminator_loss",
    "draw_discriminator",
    "generator_loss",
    "gradient_penalty",
]

Loss = Callable[[torch.Tensor], torch.Tensor]

WIDTHS: Final = (32, 64, 96, 128)
LEAK: Final = 0.2
KINDS: Final = ("vanilla", "least_squares", "wasserstein", "beta")
# Of the quadrature of scores: nodes on either side of logit 0, and the logit beyond which the
# smaller of σ and 1 - σ is an exponential and the larger is 1, to the last bit.
N_NODES: Final = 64
BEYOND: Final = 40.0


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Which loss generator and discriminator play for.

    Parameters
    ----------
    kind
        "vanilla": cross-entropy (Goodfellow et al. 2014); "least_squares" (Mao et al. 2017);
        "wasserstein": difference of means, with a gradient penalty (Gulrajani et al. 2017); "beta":
        the family of proper scoring rules of Buja, Stuetzle and Shen (2005).
    alpha, beta
        Of the family, in [-0.9, 10]: 0 and 0 are vanilla; above 0 scores are bounded, so no image
        counts for much.
    penalty
        Weight of the gradient penalty, which the caller of the losses adds.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    With t the sigmoid of a logit, the scores of the family are S(t, 1) = -∫_t^1 c^(α - 1) (1 - c)^β
    dc of clean images and S(t, 0) = -∫_0^t c^α (1 - c)^(β - 1) dc of denoised ones. α = β = 1 is
    quadratic in t, where "least_squares" is quadratic in the logit, which nothing bounds.

    Examples
    --------
    >>> Adversary(kind="wasserstein").penalty
    10.0
    """

    kind: str = "least_squares"
    alpha: float = 1.0
    beta: float = 1.0
    penalty: float = 10.0

    def __post_init__(self) -> None:
        check_choice("adversary", "kind", self.kind, KINDS)
        check_number("adversary", "alpha", self.alpha, -0.9, 10)
        check_number("adversary", "beta", self.beta, -0.9, 10)
        check_number("adversary", "penalty", self.penalty, 0)


class Discriminator(nn.Module):
    """From images (n, 1, h, w) of 16 px or more to logits (n, 1, h', w'), one for each patch.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, ... of the resolution. Of each level more, images must be twice as
        large; the 16 px are of four.

    Notes
    -----
    Kernels are divisible by their strides, so that gradients have no pattern of a chessboard, and
    nothing is normalised over the batch.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(fine, coarse, 4, stride=2, padding=1)
            for fine, coarse in pairwise((1, *widths))
        )
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            images = functional.leaky_relu(layer(images), LEAK)
        logits: torch.Tensor = self.head(images)
        return logits


def draw_discriminator(seed: int, widths: Sequence[int] = WIDTHS) -> Discriminator:
    """Draw the first weights of a discriminator.

    Parameters
    ----------
    seed
        Of the weights.
    widths
        As of `Discriminator`.

    Notes
    -----
    He et al., "Delving deep into rectifiers", ICCV 2015, for leaky rectifiers; biases are 0.

    Examples
    --------
    >>> draw_discriminator(0)(torch.ones(2, 1, 64, 48)).shape
    torch.Size([2, 1, 4, 3])
    """
    network = Discriminator(widths)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
            else:
                gain = 2 / (1 + LEAK**2)
                deviation = math.sqrt(gain / parameter[0].numel())
                parameter.normal_(0, deviation, generator=generator)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def discriminator_loss(
    adversary: Adversary, real_logits: torch.Tensor, fake_logits: torch.Tensor
) -> torch.Tensor:
    """Return what the discriminator loses, a scalar, but for the gradient penalty.

    Parameters
    ----------
    adversary
        Which loss.
    real_logits, fake_logits
        Its answers to clean images and to denoised ones, of any shape.

    Examples
    --------
    >>> logits = torch.zeros(2, 1, 4, 4)
    >>> round(float(discriminator_loss(Adversary(kind="beta"), logits, logits)), 6)
    0.25
    """
    if adversary.kind == "wasserstein":
        return fake_logits.mean() - real_logits.mean()
    if adversary.kind == "least_squares":
        return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())
    at_real, at_fake = _scores(adversary)
    return at_real(real_logits).mean() + at_fake(fake_logits).mean()


def generator_loss(adversary: Adversary, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return what the generator loses, a scalar; the less, the more its images pass for clean.

    Parameters
    ----------
    adversary
        Which loss.
    fake_logits
        The discriminator's answers to denoised images, of any shape.

    Notes
    -----
    Denoised images are scored as if they were clean, -S(t, 1), rather than by +S(t, 0), which is
    the minimax game and what the program of Gu et al. plays: so "beta" at 0 and 0 is the vanilla
    form of Goodfellow et al. 2014, section 3. Where images do not pass, t near 0, its gradient in
    the logit goes with t^α, that of minimax with t^(α + 1): it vanishes there too for α > 0, as
    what is bounded must, but later.

    Examples
    --------
    >>> float(generator_loss(Adversary(kind="least_squares"), torch.zeros(2, 1, 4, 4)))
    0.5
    """
    if adversary.kind == "wasserstein":
        return -fake_logits.mean()
    if adversary.kind == "least_squares":
        return 0.5 * (fake_logits - 1).square().mean()
    at_real, _ = _scores(adversary)
    return at_real(fake_logits).mean()


def gradient_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the mean squared difference of the gradient's norm from 1, between real and fake.

    Images are as far apart as the root mean square of their difference, whatever their size; by the
    sum of squares an opinion on large images would outweigh all else that a generator learns from.

    Parameters
    ----------
    discriminator
        (n, 1, h, w) to logits; the mean of an image's logits counts.
    real, fake : tensor, shape (n, 1, h, w)
        Images.
    generator
        Of the places between them, one for each pair; on the device of the images.

    Notes
    -----
    I. Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017, equation 3.

    Examples
    --------
    >>> images = torch.zeros(2, 1, 4, 4)
    >>> threefold = lambda images: 3 * images.mean((2, 3))
    >>> float(gradient_penalty(threefold, images, images, torch.Generator()).detach())
    4.0
    """
    share = torch.rand(len(real), 1, 1, 1, generator=generator, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    logits = discriminator(between).flatten(1).mean(dim=1)
    (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    off: torch.Tensor = math.sqrt(real[0].numel()) * gradient.flatten(1).norm(dim=1) - 1
    return off.square().mean()


def _scores(adversary: Adversary) -> tuple[Loss, Loss]:
    """Return the losses at clean images and at denoised ones, functions of logits."""
    if adversary.kind == "vanilla":
        return lambda logits: functional.softplus(-logits), functional.softplus
    a, b = adversary.alpha, adversary.beta
    # What is lost at a denoised image is what is lost at a clean one, the other way round.
    return (
        lambda logits: _Score.apply(logits, a, b),  # type: ignore[no-any-return, no-untyped-call]
        lambda logits: _Score.apply(-logits, b, a),  # type: ignore[no-any-return, no-untyped-call]
    )


class _Score(torch.autograd.Function):
    """Integral from t to 1 of c^(α - 1) (1 - c)^β dc, t the sigmoid of a logit.

    Over logits that is the integral of σ^α (1 - σ)^(β + 1), whose derivative is closed, and whose
    value, which nothing depends on but what is told, is by quadrature.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
        ctx.save_for_backward(logits)
        ctx.powers = (alpha, beta)
        near = logits.clamp(-BEYOND, BEYOND)
        middle = _integral(near.clamp(max=0), 0.0, alpha, beta)
        middle = middle + _integral(near.clamp(min=0), BEYOND, alpha, beta)
        return _tails(logits, alpha, beta) + middle

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (logits,) = ctx.saved_tensors
        return -gradients[0] * _density(logits, *ctx.powers), None, None


def _density(logits: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """σ^α (1 - σ)^(β + 1), by logarithms, so that nothing overflows on the way."""
    return torch.exp(
        alpha * functional.logsigmoid(logits) + (beta + 1) * functional.logsigmoid(-logits)
    )


def _integral(starts: torch.Tensor, end: float, alpha: float, beta: float) -> torch.Tensor:
    """Integrate the density from each start to the end."""
    nodes, weights = (
        torch.as_tensor(part, dtype=starts.dtype, device=starts.device) for part in _rule()
    )
    half = (end - starts)[..., None] / 2
    places = starts[..., None] + half * (nodes + 1)
    return (half * weights * _density(places, alpha, beta)).sum(dim=-1)


def _tails(logits: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """Integrate the density over what is after each logit and beyond ±BEYOND."""
    before = (-BEYOND - logits).clamp(min=0)
    if alpha != 0:
        before = math.exp(-BEYOND * alpha) * -torch.expm1(-alpha * before) / alpha
    return before + torch.exp(-(beta + 1) * logits.clamp(min=BEYOND)) / (beta + 1)


@functools.cache
def _rule() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Nodes and weights of Gauss and Legendre in [-1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(N_NODES)
    return nodes, weights
