"""Training of networks that denoise, step by step, so that it can go on where it stopped.

What a step does follows from the weights, the batch and the number of the step alone: there is no
other state than what `DenoiserTraining.state` tells. PyTorch.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from emdask.backend import array_namespace
from emdask.kernels.batch import Batch
from emdask.kernels.denoising_network import build_unet, draw_unet, state_arrays
from emdask.kernels.encoder_decoder import kl_divergence, sample_latent
from emdask.kernels.self_supervision import hide_pixels, recorrupt
from emdask.kernels.torch_arrays import follow_mean, repeatable

__all__ = [
    "DenoiserTraining",
    "Objective",
    "absolute_errors",
    "blind_spot_errors",
    "pair_errors",
    "relative_errors",
    "unet_objective",
    "variational_errors",
]

Array = npt.NDArray[Any]

WEIGHT_DECAY: Final = 1e-4
LONGEST_GRADIENT: Final = 1.0
# How much of the mean of the weights stays from one step to the next, once it has begun.
MEMORY: Final = 0.999
# Share of the signal's variance below which an error is as good as none.
LEAST_ERROR: Final = 1e-3
LEAST_ABSOLUTE_ERROR: Final = 1e-2
MOMENTS: Final = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a network is to become good at.

    Parameters
    ----------
    draw
        ``(seed) -> network`` to begin with.
    build
        ``(arrays) -> network`` of given weights.
    errors
        ``(network, noisy, target, generator) -> (n,)``: how bad the network is at each image, the
        mean of which a step lowers; tensors (n, 1, h, w), random numbers from the generator alone.
    """

    draw: Callable[[int], nn.Module]
    build: Callable[[Mapping[str, Array]], nn.Module]
    errors: Callable[..., torch.Tensor]


class Losses(nn.Module):
    """A loss as a module that holds the network whose weights it is to change.

    Processes that learn together average the gradients of what such a module returns.
    """

    def __init__(self, network: nn.Module, loss: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.network = network
        self._loss = loss

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self._loss(*arguments)


class DenoiserTraining:
    """A network in training.

    Parameters
    ----------
    objective
        What it is to become good at.
    start
        Weights to start from; None draws them.
    seed
        On one machine, with the same device, number of threads and libraries, the same seed and
        batches give the same weights.
    device
        "cpu" or "cuda".
    short
        Whether to compute in 16 bits where that does no harm (bfloat16; on cards that lack it
        float32 stays).

    Notes
    -----
    AdamW (Loshchilov and Hutter, ICLR 2019). What counts in the end is the mean of the weights over
    the last thousand steps (Polyak and Juditsky 1992).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        start: Mapping[str, Array] | None = None,
        seed: int = 0,
        device: str = "cpu",
        short: bool = False,
    ) -> None:
        self._objective = objective
        self._seed = seed
        self._device = torch.device(device)
        self._short = short
        network = objective.draw(seed) if start is None else objective.build(start)
        self.network = network.to(self._device).train()
        self._mean = copy.deepcopy(network).eval()
        self._optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        self._losses: nn.Module = Losses(network, self._loss)
        self._rank = 0
        self.n_done = 0

    def join(self, rank: int) -> None:
        """Learn together with other processes, each from its share of a batch, by PyTorch's DDP.

        Parameters
        ----------
        rank
            Number of this process in the default group of `torch.distributed`, which must be there.

        Notes
        -----
        Li et al., "PyTorch distributed: experiences on accelerating data parallel training", VLDB
        2020: gradients are averaged, so weights stay the same in all processes.
        """
        self._rank = rank
        self._losses = self._together(self._losses)

    def agree(self, value: float) -> float:
        """Return what the first of the processes that learn together has found."""
        if isinstance(self._losses, Losses):
            return value
        told = [value]
        torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def _together(self, losses: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(losses)

    def learn(self, batch: Batch, rate: float) -> float:
        """Change the weights by a step at a learning rate; returns the loss."""
        noisy, target = self._tensors(batch)
        with repeatable():
            with self._precision():
                loss = self._losses(noisy, target, self._generator())
            self._take_step(self.network, self._optimiser, loss, rate)
        follow_mean(self._mean, self.network, self.n_done, MEMORY)
        self.n_done += 1
        return float(loss.detach())

    def _loss(
        self, noisy: torch.Tensor, target: torch.Tensor | None, generator: torch.Generator
    ) -> torch.Tensor:
        """Return what a step lowers."""
        errors: torch.Tensor = self._objective.errors(self.network, noisy, target, generator)
        return errors.mean()

    def _take_step(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, loss: torch.Tensor, rate: float
    ) -> None:
        """Change the weights of a network to lower a loss."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), LONGEST_GRADIENT)
        optimiser.step()

    def judge(self, batch: Batch, number: int = 0) -> Array:
        """Return the error of each image, (n,) float64, by the mean of the weights.

        ``number`` tells batches apart where the error needs random numbers.
        """
        noisy, target = self._tensors(batch)
        generator = torch.Generator(self._device).manual_seed(_mix(self._seed + 1, number))
        with torch.inference_mode(), repeatable(), self._precision():
            errors = self._objective.errors(self._mean, noisy, target, generator)
        found: Array = errors.double().cpu().numpy()
        return found

    @property
    def weights(self) -> dict[str, Array]:
        """The mean of the weights of the last steps, float32."""
        return {name: array.copy() for name, array in state_arrays(self._mean).items()}

    def state(self) -> dict[str, Array]:
        """Return all that it takes to go on, by name."""
        arrays = {f"network.{name}": array for name, array in state_arrays(self.network).items()}
        arrays |= {f"mean.{name}": array for name, array in state_arrays(self._mean).items()}
        arrays |= moments_of(self._optimiser, "adam.")
        arrays["n_done"] = np.array(self.n_done)
        return {name: np.array(array) for name, array in arrays.items()}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        """Go on where a state was told.

        Raises
        ------
        KeyError, RuntimeError
            If it is that of another network.
        """
        restore_weights(self.network, arrays, "network.")
        restore_weights(self._mean, arrays, "mean.")
        restore_moments(self._optimiser, arrays, "adam.")
        self.n_done = int(arrays["n_done"])

    def _tensors(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _to_tensor(batch.noisy, self._device), (
            None if batch.target is None else _to_tensor(batch.target, self._device)
        )

    def _generator(self) -> torch.Generator:
        """Random numbers of this step."""
        seed = _mix(self._seed, self.n_done) + self._rank
        return torch.Generator(self._device).manual_seed(seed)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        on_card = self._device.type == "cuda"
        if not self._short or (on_card and not torch.cuda.is_bf16_supported()):
            return contextlib.nullcontext()
        autocast: contextlib.AbstractContextManager[Any] = torch.autocast(
            self._device.type, dtype=torch.bfloat16
        )
        return autocast


def moments_of(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Array]:
    """Return what an optimiser remembers, by name; nothing before the first step."""
    return {
        f"{prefix}{i}.{moment}": of_parameter[moment].cpu().numpy()
        for i, of_parameter in optimiser.state_dict()["state"].items()
        for moment in MOMENTS
    }


def restore_moments(
    optimiser: torch.optim.Optimizer, arrays: Mapping[str, Array], prefix: str
) -> None:
    """Let an optimiser remember what `moments_of` told."""
    told = optimiser.state_dict()
    if f"{prefix}0.step" in arrays:
        told["state"] = {
            i: {moment: torch.tensor(arrays[f"{prefix}{i}.{moment}"]) for moment in MOMENTS}
            for i in range(len(told["param_groups"][0]["params"]))
        }
    optimiser.load_state_dict(told)


def restore_weights(network: nn.Module, arrays: Mapping[str, Array], prefix: str) -> None:
    """Give a network the weights of a state, whose names begin with a word of its own."""
    network.load_state_dict(
        {
            name.removeprefix(prefix): torch.tensor(array)
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
    )


def unet_objective(widths: Sequence[int], errors: Callable[..., torch.Tensor]) -> Objective:
    """Train a `emdask.kernels.denoising_network.UNet` of these widths to lower some errors."""
    return Objective(draw=partial(draw_unet, widths=tuple(widths)), build=build_unet, errors=errors)


def relative_errors(
    network: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the logarithm of each image's squared error as a share of its signal, (n,).

    That is the PSNR, but for its unit. In its mean images of much signal and of little count alike,
    as they do not in the mean squared error.

    Parameters
    ----------
    network
        (n, 1, h, w) to the same.
    noisy, target
        Noisy and clean images, (n, 1, h, w).
    generator
        Plays no part.
    """
    error = (network(noisy).float() - target).square().mean((1, 2, 3))
    return torch.log(error / signal_variance(target) + LEAST_ERROR)


def variational_errors(
    network: Any,
    noisy: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator,
    *,
    kl_weight: float,
) -> torch.Tensor:
    """Return what a variational autoencoder loses at each image, (n,).

    The squared error as a share of the signal, and some of the divergence of the latent variables
    from a standard normal distribution, in nats a pixel. In training latent variables are drawn, to
    judge by they are the means.
    """
    mean, log_variance = network.encode(noisy)
    mean, log_variance = mean.float(), log_variance.float()
    latent = sample_latent(mean, log_variance, generator) if network.training else mean
    decoded: torch.Tensor = network.decode(latent).float()
    error = (decoded - target).square().mean((1, 2, 3))
    divergence = kl_divergence(mean, log_variance) / target[0].numel()
    return error / signal_variance(target) + kl_weight * divergence


def absolute_errors(
    network: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Return the logarithm of each mean absolute error, in deviations of the signal, (n,)."""
    error = (network(noisy).float() - target).abs().mean((1, 2, 3))
    return torch.log(error / signal_variance(target).sqrt() + LEAST_ABSOLUTE_ERROR)


def pair_errors(
    network: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor | None,
    generator: torch.Generator,
    *,
    strength: float,
) -> torch.Tensor:
    """Return the squared error of each image against another of the same, (n,), in noise variances.

    Where there is no other, two are made of it, by `emdask.kernels.self_supervision.recorrupt` at
    some strength: that takes the noise to be white and Gaussian.
    """
    if target is None:
        noisy, target = recorrupt(noisy, generator, strength=strength)
        deviation = math.sqrt(1 + strength**2)
        noisy, target = noisy / deviation, target / deviation
    return (network(noisy).float() - target).square().mean((1, 2, 3))


def blind_spot_errors(
    network: Callable[[torch.Tensor], torch.Tensor],
    noisy: torch.Tensor,
    target: torch.Tensor | None,
    generator: torch.Generator,
    *,
    share: float,
    reach_px: int,
) -> torch.Tensor:
    """Return the squared error at pixels of each image that the network does not see, (n,)."""
    given, hidden = hide_pixels(noisy, generator, share=share, reach=reach_px)
    square = (network(given).float() - noisy).square() * hidden
    return square.sum((1, 2, 3)) / hidden.sum((1, 2, 3)).clamp(min=1)


def signal_variance(target: torch.Tensor) -> torch.Tensor:
    """Return the variance of each image, (n,); that of the noise where there is no signal."""
    signal = (target - target.mean((1, 2, 3), keepdim=True)).square().mean((1, 2, 3))
    return torch.where(signal > 0, signal, 1.0)


def _to_tensor(images: Any, device: torch.device) -> torch.Tensor:
    if array_namespace(images) is np:
        tensor = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    else:
        tensor = torch.utils.dlpack.from_dlpack(images)
    return tensor[:, None].to(device, memory_format=torch.channels_last)


def _mix(seed: int, number: int) -> int:
    """One seed of two numbers."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
