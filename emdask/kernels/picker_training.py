"""Training the network of `scoring_network` on micrographs with known particles.

Crops at random, turned, resized, blurred, sharpened and made noisier, so that what it learns holds
for other cameras and programs than those that made them; PyTorch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft
import torch
from torch.nn import functional

from emdask.checks import require
from emdask.kernels.mirroring import mirror_places
from emdask.kernels.schedules import rise_and_fall
from emdask.kernels.scoring_network import (
    FIELD_PX,
    MARGIN_PX,
    STEP_PX,
    Network,
    build_network,
    fold,
)
from emdask.kernels.standard_micrographs import LIMIT, STANDARD_PX
from emdask.kernels.torch_arrays import follow_mean, repeatable

__all__ = [
    "Example",
    "NetworkTraining",
    "build_target",
    "positive_unlabelled_loss",
    "train_network",
]

Array = npt.NDArray[Any]
Rng = np.random.Generator
Schedule = Callable[[int, int], float]

STEM_WIDTH: Final = 16
WIDTH: Final = 32
# Cells along an edge of a crop's scores.
N_CELLS: Final = 44
CROP_PX: Final = STEP_PX * (N_CELLS - 1) + FIELD_PX
# How far from a label, in diameters, a cell is still of the particle; the nearer, the more.
RIM = 0.30
# Particles that are there for each that is labelled, where nobody says how many.
UNLABELLED: Final = 1.2
LEARNING_RATE: Final = 4e-3
FINE_TUNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 1e-4
LONGEST_GRADIENT: Final = 1.0
# How much of the mean of the weights stays from one step to the next, once it has begun.
MEMORY: Final = 0.995
# Share of the crops whose spectrum is changed.
CHANGED: Final = 0.6
# Share of the crops at the border of a micrograph.
WITH_BORDERS: Final = 0.3
# Share of the crops that get lumps of ice, tries to place one, and how much lighter they are than
# the ground, in deviations of the standard image.
WITH_LUMPS: Final = 0.3
N_LUMPS: Final = 5
LUMP_HEIGHTS: Final = (3.0, 25.0)
# Frequencies for which a radial filter is worked out.
N_RADIAL: Final = 1024


class Example(NamedTuple):
    """A standard micrograph and the particles known in it.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        As `emdask.kernels.standard_micrographs.standardise` makes it, with particles of 32 px.
    centres : array, shape (n, 2)
        Centres (x, y) in its pixels.
    fully_labelled
        Whether these are all that there are. Where not, what is unlabelled may be a particle.
    expected
        Number of particles that there are, where not all are labelled; None for a fifth more.
    weight
        How often it is drawn, relative to others.
    """

    image: Array
    centres: Array
    fully_labelled: bool = True
    expected: float | None = None
    weight: float = 1.0

    @property
    def share(self) -> float:
        """Labelled particles, relative to all."""
        if self.fully_labelled:
            return 1.0
        n = max(1, len(self.centres))
        return n / max(n, UNLABELLED * n if self.expected is None else self.expected)


class NetworkTraining:
    """A network in training: it learns from some examples, then from others, and can be copied.

    Parameters
    ----------
    start
        Weights to start from; None draws them.
    learning_rate
        Of which schedules take a share; None for 0.004, or 0.001 after weights to start from.
    seed
        On one machine, with the same device, number of threads and libraries, the same seed gives
        the same weights.
    device
        "cpu" or "cuda".

    Notes
    -----
    The loss is `positive_unlabelled_loss`, which is the cross-entropy where all is labelled. The
    weights are drawn after He et al., "Delving deep into rectifiers", ICCV 2015, and changed by
    AdamW (Loshchilov and Hutter, ICLR 2019). Batches are normalised (Ioffe and Szegedy, ICML 2015)
    while a network is trained from nothing; what it is started from has that folded into it.
    """

    def __init__(
        self,
        start: Mapping[str, Array] | None = None,
        *,
        learning_rate: float | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        default_rate = LEARNING_RATE if start is None else FINE_TUNING_RATE
        self._rate = default_rate if learning_rate is None else learning_rate
        self._device = device
        self._rng = np.random.default_rng([seed, 7])
        network = _draw_network(seed) if start is None else build_network(start)
        self._network = network.to(device).train()
        self._mean = copy.deepcopy(network).eval()
        self._optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
        self._n_done = 0

    def learn(
        self,
        examples: Sequence[Example],
        n_steps: int,
        *,
        batch: int = 8,
        schedule: Schedule | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Change the weights by so many steps.

        Parameters
        ----------
        examples
            Micrographs with labels.
        n_steps, batch
            Steps, and crops in each.
        schedule
            Share of the learning rate, of a step and of all steps; None for `rise_and_fall`.
        on_progress
            Called after each step with a text, the steps done and all.

        Raises
        ------
        ParameterError
            If there is no example, or no particle in any.
        """
        n_labels = sum(len(example.centres) for example in examples)
        require(n_labels > 0, "train_network", "some example must have a particle", len(examples))
        schedule = rise_and_fall if schedule is None else schedule
        weights = np.array([example.weight for example in examples])
        chances = weights / weights.sum()
        smooth_loss = math.nan
        # The next crops are drawn while the network learns from the last.
        with ThreadPoolExecutor(1) as pool:
            pending = pool.submit(self._draw, examples, chances, batch)
            for step in range(n_steps):
                drawn = pending.result()
                if step < n_steps - 1:
                    pending = pool.submit(self._draw, examples, chances, batch)
                for group in self._optimiser.param_groups:
                    group["lr"] = self._rate * schedule(step, n_steps)
                value = self._step(*drawn)
                smooth_loss = value if step == 0 else 0.98 * smooth_loss + 0.02 * value
                if on_progress is not None:
                    on_progress(f"loss {smooth_loss:.4f}", step + 1, n_steps)

    @property
    def weights(self) -> dict[str, Array]:
        """The mean of the weights of the last few hundred steps, float32."""
        return fold(self._mean)

    def _draw(
        self, examples: Sequence[Example], chances: Array, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw crops, their targets, and the shares of particles that are labelled."""
        drawn = self._rng.choice(len(examples), size=batch, p=chances)
        images, targets = zip(*(_draw_crop(examples[i], self._rng) for i in drawn), strict=True)
        return (
            torch.from_numpy(np.stack(images)[:, None]),
            torch.from_numpy(np.stack(targets)[:, None]),
            torch.tensor([examples[i].share for i in drawn]),
        )

    def _step(self, images: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor) -> float:
        images, targets, shares = (one.to(self._device) for one in (images, targets, shares))
        self._optimiser.zero_grad()
        with repeatable():
            loss = positive_unlabelled_loss(self._network(images), targets, shares)
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), LONGEST_GRADIENT)
        self._optimiser.step()
        follow_mean(self._mean, self._network, self._n_done, MEMORY)
        self._n_done += 1
        return float(loss.detach())


def train_network(
    examples: Sequence[Example],
    *,
    start: Mapping[str, Array] | None = None,
    n_steps: int = 3000,
    batch: int = 8,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Array]:
    """Train a network from nothing, or further from given weights.

    Parameters
    ----------
    examples, n_steps, batch, on_progress
        As of `NetworkTraining.learn`.
    start, learning_rate, seed, device
        As of `NetworkTraining`.

    Returns
    -------
    dict of str to float32 array
        Weights.

    Raises
    ------
    ParameterError
        If there is no example, or no particle in any.
    """
    training = NetworkTraining(start, learning_rate=learning_rate, seed=seed, device=device)
    training.learn(examples, n_steps, batch=batch, on_progress=on_progress)
    return training.weights


def positive_unlabelled_loss(
    logits: torch.Tensor, targets: torch.Tensor, shares: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of scores where only some of the particles are labelled.

    A labelled particle stands for ``1 / share`` of them, and what they would cost as background is
    taken off what all cells cost as background: the non-negative risk of Kiryo et al.,
    "Positive-unlabeled learning with non-negative risk estimator", NeurIPS 2017, equations 3 and 6.
    With all labelled (share 1) it is the plain cross-entropy.

    Parameters
    ----------
    logits, targets : tensor, shape (n, 1, h, w)
        Scores before the sigmoid; 1 at labelled particles, 0 elsewhere, or between.
    shares : tensor, shape (n,)
        Labelled particles, relative to all, of each image.

    Returns
    -------
    tensor, shape ()
    """
    standing_for = targets / shares[:, None, None, None]
    as_particle = standing_for * functional.softplus(-logits)
    as_background = (1 - standing_for) * functional.softplus(logits)
    # Where all is labelled no term is below 0; the others count together, as their sum is steadier.
    partly = shares < 1
    background = as_background[~partly].sum() + as_background[partly].sum().clamp(min=0)
    return (as_particle.sum() + background) / logits.numel()


def build_target(centres: Array, n_rows: int, n_columns: int) -> Array:
    """Return what the scores should be, (rows, columns): cones around centres, 0 away from all.

    Parameters
    ----------
    centres : array, shape (n, 2)
        Centres (x, y) in px from the place of the first cell.
    n_rows, n_columns
        Cells.
    """
    target = np.zeros((n_rows, n_columns), np.float32)
    reach = RIM * STANDARD_PX
    rows, columns = np.arange(n_rows) * STEP_PX, np.arange(n_columns) * STEP_PX
    inside = (centres > -reach) & (centres < [columns[-1] + reach, rows[-1] + reach])
    for x, y in centres[inside.all(axis=1)]:
        near_rows = np.flatnonzero(np.abs(rows - y) < reach)
        near_columns = np.flatnonzero(np.abs(columns - x) < reach)
        where = np.ix_(near_rows, near_columns)
        distance = np.hypot(rows[near_rows, None] - y, columns[near_columns] - x)
        value = 1 - distance / (RIM * STANDARD_PX)
        target[where] = np.maximum(target[where], value.clip(0, 1))
    return target


def _draw_network(seed: int) -> Network:
    """Draw the first weights."""
    network = Network(STEM_WIDTH, WIDTH, normalised=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                deviation = math.sqrt(2 / parameter[0].numel())
                parameter.normal_(0, deviation, generator=generator)
            elif "norm" not in name:
                parameter.zero_()
        assert network.head.bias is not None
        # Most cells are background.
        network.head.bias.fill_(-3)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


# --- Crops ----------------------------------------------------------------------------------------


def _draw_crop(example: Example, rng: Rng) -> tuple[Array, Array]:
    """Draw a crop of a micrograph and its target."""
    zoom = float(np.exp(rng.normal(0, 0.07))) if rng.random() < 0.5 else 1.0
    side = round(CROP_PX / zoom)
    corner = [_draw_corner(n, side, rng) for n in example.image.shape]
    image = _window(example.image, corner[0], corner[1], side)
    centres = (example.centres - [corner[1], corner[0]] + 0.5) * (CROP_PX / side) - 0.5
    image = _change_spectrum(image, rng)
    target = build_target(centres - MARGIN_PX, N_CELLS, N_CELLS)
    if rng.random() < WITH_BORDERS:
        _mirror_margins(image, rng)
    if rng.random() < WITH_LUMPS:
        image = _add_lumps(image, centres, rng)
    image = _change_grey_levels(image, rng)
    turn, flip = int(rng.integers(4)), bool(rng.integers(2))
    return _turn(image, turn, flip), _turn(target, turn, flip)


def _draw_corner(length: int, side: int, rng: Rng) -> int:
    """Draw where a crop begins; its margin may lie beyond the border."""
    return int(rng.integers(-MARGIN_PX, max(length - side + MARGIN_PX, -MARGIN_PX) + 1))


def _window(image: Array, top: int, left: int, side: int) -> Array:
    """Cut a square out of an image that goes on mirrored beyond its borders."""
    rows, columns = (
        mirror_places(np.arange(start, start + side), n)
        for start, n in zip((top, left), image.shape, strict=True)
    )
    return np.asarray(image[np.ix_(rows, columns)], np.float32)


def _turn(array: Array, turn: int, flip: bool) -> Array:
    turned = np.rot90(array, turn)
    return np.ascontiguousarray(turned[:, ::-1] if flip else turned)


def _change_spectrum(image: Array, rng: Rng) -> Array:
    """Resize a square to that of a crop; maybe blur, sharpen, or colour it on the way."""
    side = image.shape[0]
    changes = rng.random() < CHANGED
    if side == CROP_PX and not changes:
        return image
    terms = scipy.fft.dctn(image, norm="ortho")
    if changes:
        cycles = np.arange(side) / (2 * side) * STANDARD_PX
        radial = np.linspace(0, np.sqrt(2) * cycles[-1], N_RADIAL)
        place = np.hypot(cycles[:, None], cycles) / radial[1]
        terms *= _draw_gain(radial, rng)[np.rint(place).astype(np.intp)]
    kept = min(side, CROP_PX)
    resized = np.zeros((CROP_PX, CROP_PX), np.float32)
    resized[:kept, :kept] = terms[:kept, :kept] * (CROP_PX / side)
    return np.asarray(scipy.fft.idctn(resized, norm="ortho"), np.float32)


def _draw_gain(cycles: Array, rng: Rng) -> Array:
    """Draw a radial filter: a smooth curve in octaves, and at times a cutoff of either kind.

    ``cycles`` are those in a diameter, up to 16 along an axis.
    """
    knots = np.arange(-2, 6)
    octaves = np.log2(np.maximum(cycles, 0.25))
    gain = np.exp(np.interp(octaves, knots, rng.normal(0, 0.4) * 0.25 * knots))
    gain *= np.exp(np.interp(octaves, knots, rng.normal(0, 0.25, len(knots))))
    if rng.random() < 0.4:
        # Denoised micrographs may have left little more than the outline of a particle.
        gain /= 1 + (cycles / np.exp(rng.uniform(*np.log([1.8, 10])))) ** (2 * rng.uniform(1, 5))
    if rng.random() < 0.3:
        gain *= 1 - np.exp(-((cycles / rng.uniform(0.1, 0.7)) ** 2))
    return np.asarray(gain, np.float32)


def _mirror_margins(image: Array, rng: Rng) -> None:
    """Let the micrograph end, in place, where the scores of a crop do, at some of its sides.

    Particles that its border cuts have their centres on either side of it; those beyond do not
    count, and simulated micrographs have none.
    """
    for _ in range(4):
        image[...] = np.rot90(image)
        if rng.random() < 0.5:
            image[:MARGIN_PX] = image[MARGIN_PX : 2 * MARGIN_PX][::-1].copy()


def _add_lumps(image: Array, centres: Array, rng: Rng) -> Array:
    """Add lumps of ice where no particle is known: of its size, but lighter, with uneven rims."""
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    image = image.copy()
    for x, y in rng.uniform(0, CROP_PX, (N_LUMPS, 2)):
        radius_px = STANDARD_PX / 2 * rng.uniform(0.35, 1.4)
        room_px = radius_px + STANDARD_PX / 2
        if len(centres) and np.hypot(*(centres - [x, y]).T).min() < room_px:
            continue
        softness_px = rng.uniform(1, 8)
        reach_px = int(1.15 * radius_px + softness_px) + 1
        near = tuple(slice(max(0, int(c) - reach_px), int(c) + reach_px + 2) for c in (y, x))
        down, right = rows[near[0]] - y, columns[:, near[1]] - x
        angle = np.arctan2(down, right)
        rim_px = radius_px * (1 + 0.15 * np.cos(rng.integers(1, 5) * angle + rng.uniform(0, 7)))
        inside = (rim_px - np.hypot(down, right)) / softness_px + 0.5
        image[near] += np.exp(rng.uniform(*np.log(LUMP_HEIGHTS))) * inside.clip(0, 1)
    return np.asarray(image, np.float32)


def _change_grey_levels(image: Array, rng: Rng) -> Array:
    """Add noise at times, bring the crop to the standard scale again, and leave that a little."""
    if rng.random() < 0.25:
        deviation = image.std() * np.exp(rng.uniform(np.log(0.1), np.log(1.0)))
        image = image + deviation * rng.standard_normal(image.shape, np.float32)
    low, middle, high = np.percentile(image[::2, ::2], [15.87, 50, 84.13])
    spread = max(float(high - low) / 2, 1e-6) * np.exp(rng.normal(0, 0.08))
    shifted = (image - middle) / spread + rng.normal(0, 0.05)
    return np.asarray(shifted.clip(-LIMIT, LIMIT), np.float32)
