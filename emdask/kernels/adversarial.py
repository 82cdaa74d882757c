"""Discriminators, which tell clean images from denoised ones, and what either side loses by them.

The losses are those of H. Gu et al., "Generative adversarial networks for robust cryo-EM image
denoising", arXiv 2008.07307 (2020). PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
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
# Quadrature of scores; beyond so many units of its scale nothing of the integrand is left.
N_NODES: Final = 256
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
        Of the family: 0 and 0 are vanilla; above 0 scores are bounded, so no image counts for much.
    penalty
        Weight of the gradient penalty.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    kind: str = "least_squares"
    alpha: float = 1.0
    beta: float = 1.0
    penalty: float = 10.0

    def __post_init__(self) -> None:
        check_choice("gan", "loss", self.kind, KINDS)
        check_number("gan", "alpha", self.alpha, -0.9, 10)
        check_number("gan", "beta", self.beta, -0.9, 10)
        check_number("gan", "penalty", self.penalty, 0)


class Discriminator(nn.Module):
    """From images (n, 1, h, w) of 16 px or more to logits (n, 1, h', w'), one for each patch.

    Parameters
    ----------
    widths
        Channels at 1/2, 1/4, ... of the resolution.
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
    """Draw the first weights (He et al., "Delving deep into rectifiers", ICCV 2015)."""
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
    """
    if adversary.kind == "wasserstein":
        return fake_logits.mean() - real_logits.mean()
    if adversary.kind == "least_squares":
        return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())
    at_real, at_fake = _scores(adversary)
    return at_real(real_logits).mean() + at_fake(fake_logits).mean()


def generator_loss(adversary: Adversary, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return what the generator loses, a scalar: as little as its images are taken for clean.

    This is the form whose gradient does not vanish where they are not (Goodfellow et al. 2014,
    section 3): the score of denoised images as if they were clean.
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

    Parameters
    ----------
    discriminator
        (n, 1, h, w) to logits; the mean of an image's logits counts.
    real, fake : tensor, shape (n, 1, h, w)
        Images.
    generator
        Of the places between them.

    Notes
    -----
    I. Gulrajani et al., "Improved training of Wasserstein GANs", NeurIPS 2017, equation 3.
    """
    share = torch.rand(len(real), 1, 1, 1, generator=generator, device=real.device)
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    logits = discriminator(between).flatten(1).mean(dim=1)
    (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
    off: torch.Tensor = gradient.flatten(1).norm(dim=1) - 1
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
        nodes, weights = (
            torch.as_tensor(part, dtype=logits.dtype, device=logits.device)
            for part in np.polynomial.legendre.leggauss(N_NODES)
        )
        end = logits.clamp(min=0) + BEYOND / (beta + 1)
        half = (end - logits)[..., None] / 2
        places = logits[..., None] + half * (nodes + 1)
        return (half * weights * _density(places, alpha, beta)).sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        (logits,) = ctx.saved_tensors
        return -gradients[0] * _density(logits, *ctx.powers), None, None


def _density(logits: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """σ^α (1 - σ)^(β + 1), by logarithms, so that nothing overflows on the way."""
    return torch.exp(
        alpha * functional.logsigmoid(logits) + (beta + 1) * functional.logsigmoid(-logits)
    )
