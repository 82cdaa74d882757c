"""Training of a network against a discriminator, step by step in turns. PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from emdask.kernels.adversarial import (
    Adversary,
    discriminator_loss,
    draw_discriminator,
    generator_loss,
    gradient_penalty,
)
from emdask.kernels.batch import Batch
from emdask.kernels.denoiser_training import (
    DenoiserTraining,
    Losses,
    Objective,
    moments_of,
    relative_errors,
    restore_moments,
    restore_weights,
    signal_variance,
)
from emdask.kernels.denoising_network import state_arrays
from emdask.kernels.torch_arrays import repeatable

__all__ = ["AdversarialTraining"]

Array = npt.NDArray[Any]

# Of Adam for discriminators, whose target moves (Radford et al., ICLR 2016).
MOMENTA: Final = (0.5, 0.99)
# Its learning rate, as a share of the generator's, which it would outrun.
SHARE_OF_RATE: Final = 0.25
# Steps in which squared errors give way to absolute ones and the discriminator's opinion: at first
# these would keep an answer of nothing, which most of an image is.
RISE_STEPS: Final = 300


class AdversarialTraining(DenoiserTraining):
    """A generator in training, and the discriminator that it learns against.

    Parameters
    ----------
    objective
        What the generator is to be good at besides: the robust term, and what it is judged by.
    adversary
        What they play for.
    weight
        Of the discriminator's opinion beside the errors of the objective.
    **how
        As of `DenoiserTraining`.

    Notes
    -----
    The discriminator sees images in deviations of the clean one's signal, so that it cannot tell
    them by their contrast, which is what noise hides least.
    """

    def __init__(
        self, objective: Objective, adversary: Adversary, *, weight: float, **how: Any
    ) -> None:
        super().__init__(objective, **how)
        self._adversary = adversary
        self._weight = weight
        self._discriminator = draw_discriminator(self._seed).to(self._device)
        self._optimiser_of_discriminator = torch.optim.AdamW(
            self._discriminator.parameters(), betas=MOMENTA
        )
        self._losses_of_discriminator: nn.Module = Losses(
            self._discriminator, self._loss_of_discriminator
        )

    def join(self, rank: int) -> None:
        """Learn together with other processes."""
        super().join(rank)
        self._losses_of_discriminator = self._together(self._losses_of_discriminator)

    def learn(self, batch: Batch, rate: float) -> float:
        """Change the discriminator by a step, then the generator."""
        noisy, target = self._tensors(batch)
        assert target is not None
        deviations = signal_variance(target).sqrt()[:, None, None, None]
        real = target / deviations
        with repeatable():
            with self._precision(), torch.no_grad():
                fake = self.network(noisy).float() / deviations
            loss = self._losses_of_discriminator(real, fake, self._generator())
            share = SHARE_OF_RATE * rate
            self._take_step(self._discriminator, self._optimiser_of_discriminator, loss, share)
        return super().learn(batch, rate)

    def _loss_of_discriminator(
        self, real: torch.Tensor, fake: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        with self._precision():
            # Both at once: processes that learn together count one pass a step.
            logits = self._discriminator(torch.cat([real, fake])).float()
        loss = discriminator_loss(self._adversary, logits[: len(real)], logits[len(real) :])
        if self._adversary.kind == "wasserstein":
            penalty = gradient_penalty(self._discriminator, real, fake, generator)
            loss = loss + self._adversary.penalty * penalty
        return loss

    def _loss(
        self, noisy: torch.Tensor, target: torch.Tensor | None, generator: torch.Generator
    ) -> torch.Tensor:
        assert target is not None
        answer = self.network(noisy).float()
        squared, robust = (
            errors(lambda _: answer, noisy, target, generator).mean()
            for errors in (relative_errors, self._objective.errors)
        )
        fake = answer / signal_variance(target).sqrt()[:, None, None, None]
        # It is not its turn to learn.
        self._discriminator.requires_grad_(False)
        opinion = generator_loss(self._adversary, self._discriminator(fake).float())
        self._discriminator.requires_grad_(True)
        share = min(1.0, self.n_done / RISE_STEPS)
        loss: torch.Tensor = (1 - share) * squared + share * (robust + self._weight * opinion)
        return loss

    def state(self) -> dict[str, Array]:
        """Return all that it takes to go on, by name."""
        arrays = state_arrays(self._discriminator)
        told = {f"discriminator.{name}": np.array(array) for name, array in arrays.items()}
        told |= moments_of(self._optimiser_of_discriminator, "discriminator_adam.")
        return super().state() | told

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Go on where a state was told."""
        super().restore(arrays)
        restore_weights(self._discriminator, arrays, "discriminator.")
        restore_moments(self._optimiser_of_discriminator, arrays, "discriminator_adam.")
