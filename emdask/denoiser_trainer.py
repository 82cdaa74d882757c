"""Training of denoisers: networks that learn on stacks of any size, and can be stopped."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import numpy.typing as npt
import pandas as pd

from emdask.backend import check_device, count_cards, resolve_device
from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.denoisers import FAMILY
from emdask.errors import StackError
from emdask.io.weights import Weights, open_weights, save_weights
from emdask.kernels.schedules import rise_and_fall
from emdask.lazy import BAD_PIXELS
from emdask.method import Method, Training, build_record, find_method, list_methods
from emdask.parallel_training import run_processes
from emdask.stack import as_stack
from emdask.training_batches import Batches, Drawing, Part

WHAT = "train_denoiser"
PRECISIONS = ("auto", "float32", "bfloat16")
# Of what a training starts with, and of weights to start from.
LEARNING_RATE, FINE_TUNING_RATE = 2e-3, 5e-4
CHECKPOINT_S = 300.0
CURVE = ("epoch", "step", "learning_rate", "training_loss", "validation_loss", "seconds")
NEEDS = {
    "clean": "learns from noisy images and clean ones",
    "pairs": "learns from noisy images, or pairs of them",
    "noisy": "learns from noisy images alone",
}

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a network learns.

    Parameters
    ----------
    epochs, patience, learning_rate
        As of `train_denoiser`.
    n_steps
        Steps of an epoch.
    """

    epochs: int
    n_steps: int
    patience: int | None
    learning_rate: float

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted over all epochs."""
        return self.learning_rate * rise_and_fall(step, self.epochs * self.n_steps)


class _Progress(NamedTuple):
    """Where a training is: the next epoch and step, the curve, the best epoch and its weights."""

    epoch: int
    step: int
    losses: list[float]
    curve: list[dict[str, float]]
    best: dict[str, Array] | None

    @property
    def best_epoch(self) -> int:
        """Number of the epoch of least error; -1 before the first."""
        known = [row["validation_loss"] for row in self.curve]
        return int(np.argmin(known)) if known and not math.isnan(known[0]) else len(known) - 1


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """All that it takes to train, wherever it is done."""

    method: str
    params: Any
    parts: tuple[Part, ...]
    drawing: Drawing
    schedule: Schedule
    start: Mapping[str, Array] | None
    short: bool
    checkpoint: Path | None
    log: Path | None
    resume: bool
    told: Mapping[str, str]


def train_denoiser(
    stack: Any = None,
    clean: Any = None,
    *,
    method: str = "unet",
    pair: Any = None,
    snr: float | tuple[float, float] | None = None,
    coloured: float = 0.0,
    either_contrast: bool = False,
    epochs: int = 20,
    batch: int = 16,
    crop_px: int = 128,
    learning_rate: float | None = None,
    model: Any = None,
    validation: float = 0.1,
    patience: int | None = 5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    log: str | Path | None = None,
    device: str | None = None,
    n_processes: int | None = None,
    precision: str = "auto",
    bad_pixels: str = "raise",
    about: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
    **parameters: Any,
) -> Weights:
    """Train the network of a denoiser on the images at hand, at once.

    Images are read a few chunks at a time, through the active Dask client if there is one, so a
    stack may be larger than memory; chunks of 16 to 256 MB suit. The network learns in this
    process.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array, or a list of these
        Noisy images, particles or micrographs, each stack of a list of its own size. None where
        noise is to be added to clean ones.
    clean
        The same images without noise, in the same grey levels; a list where ``stack`` is one. For
        methods that learn from clean images.
    method
        Name of a method that is a network.
    pair
        Other images of the same, with noise of their own, as sums of even and odd frames are; for
        "noise2noise".
    snr
        Signal-to-noise ratio, or the least and the largest, at which noise is added to ``clean``
        anew in each epoch: variance of the clean piece over that of the noise.
    coloured
        Share of the pieces, 0 to 1, whose added noise is stronger at low frequencies, as of ice.
    either_contrast
        Whether pieces are shown dark on light as well as light on dark.
    epochs
        Passes over the images, each in another order, pieces turned anyhow.
    batch
        Pieces of images in a step.
    crop_px
        Longest edge of a piece; of larger images as many are cut as cover them once.
    learning_rate
        Of AdamW, at its highest; it rises for a tenth of the steps, and falls as half a cosine.
        None for 0.002, or 0.0005 after a model to start from.
    model
        Network to start from: weights, or a path or a name of some; None draws one.
    validation
        Share of the images that are held out to judge the network after each epoch, at most 512 of
        a stack; of stacks of fewer than 10, the lowest rows. 0 for none.
    patience
        Epochs without a lower error after which training ends; None for never.
    seed
        Of the random numbers: on one machine, with the same device, number of threads and
        libraries, the same seed gives the same weights, however often training was interrupted.
    checkpoint
        Path, ``.safetensors``, of what it takes to go on; written after each epoch and every five
        minutes. None for none.
    resume
        Whether to go on from the checkpoint, if there is one.
    log
        Path of a table, ``.csv``, of a row for each epoch: epoch, step, learning_rate,
        training_loss, validation_loss, seconds.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    n_processes
        Processes of this machine that share each batch; None for one for each card that there is.
        As with `emdask.connect`, a script that asks for several needs ``if __name__ ==
        "__main__":``.
    precision
        "float32", or "bfloat16" where 16 bits will do; "auto" is the latter on a card.
    bad_pixels
        As of `emdask.denoise`.
    about
        More that the weights are to tell: data, licence; all text.
    on_progress
        Called as ``(what, done, total)`` after each step.
    **parameters
        Of the network and its training, by name; ``emdask train-denoiser --help`` lists them.

    Returns
    -------
    Weights
        For ``denoise(..., method, model=weights)``; `emdask.save_model` keeps them as
        ``.safetensors``. Those of the epoch of least error, or of the last without validation;
        ``about`` tells what they were made of.

    Raises
    ------
    UnknownMethodError, ParameterError, StackError, DeviceError, MissingLibraryError

    Examples
    --------
    >>> import numpy as np
    >>> clean = np.random.default_rng(0).normal(size=(12, 32, 32)).cumsum(axis=1)
    >>> weights = train_denoiser(clean=clean, snr=0.5, epochs=1, width=4, n_levels=2)
    >>> weights.about["method"], weights.about["snr"]
    ('unet', '0.5 to 0.5')
    """
    record, training = _find(method)
    params = build_record(method, training.params, parameters)
    parts = _parts(method, training, stack, clean, pair, snr)
    check_integer(WHAT, "epochs", epochs, 1)
    check_integer(WHAT, "batch", batch, 1)
    check_integer(WHAT, "crop_px", crop_px, training.stride(params))
    check_integer(WHAT, "seed", seed, 0)
    check_number(WHAT, "validation", validation, 0, 0.5)
    check_number(WHAT, "coloured", coloured, 0, 1)
    check_choice(WHAT, "precision", precision, PRECISIONS)
    check_choice(WHAT, "bad_pixels", bad_pixels, BAD_PIXELS)
    if learning_rate is not None:
        check_number(WHAT, "learning_rate", learning_rate, 1e-9, 1)
    if patience is not None:
        check_integer(WHAT, "patience", patience, 1)
    require(checkpoint is not None or not resume, WHAT, "resume needs a checkpoint to go on from")
    if n_processes is not None:
        check_integer(WHAT, "n_processes", n_processes, 1)
    where = resolve_device(check_device(device, WHAT, record.apply), record.apply)
    start = None if model is None else _start(record, model, parts)
    drawing = Drawing(
        batch=batch,
        crop_px=crop_px,
        stride=training.stride(params),
        validation=validation,
        seed=seed,
        snr=_range(snr),
        coloured=coloured,
        either_contrast=either_contrast,
        bad_pixels=bad_pixels,
    )
    default_rate = LEARNING_RATE if start is None else FINE_TUNING_RATE
    schedule = Schedule(
        epochs=epochs,
        n_steps=Batches(parts, drawing).n_steps,
        patience=patience,
        learning_rate=default_rate if learning_rate is None else learning_rate,
    )
    told = _describe(method, params, parts, drawing, schedule)
    plan = _Plan(
        method=method,
        params=params,
        parts=tuple(parts),
        drawing=drawing,
        schedule=schedule,
        start=None if start is None else start.arrays,
        short=precision == "bfloat16" or (precision == "auto" and where == "cuda"),
        checkpoint=None if checkpoint is None else Path(checkpoint).absolute(),
        log=None if log is None else Path(log).absolute(),
        resume=resume,
        told=told,
    )
    tell = on_progress or _say_nothing
    if n_processes is None:
        n_processes = count_cards() if where == "cuda" else 1
    if where == "cuda":
        rule = "n_processes must be at most the number of cards, one each"
        require(n_processes <= count_cards(), WHAT, rule, n_processes)
    if n_processes == 1:
        progress = _learn(plan, 0, 1, where, tell)
    else:
        progress = run_processes(
            _learn, plan, n_processes=n_processes, device=where, on_progress=tell
        )
    assert progress.best is not None
    # Not how long it took, so that the same training gives the same weights.
    curve = [{name: row[name] for name in CURVE[:-1]} for row in progress.curve]
    known = {"trained_epochs": str(len(curve)), "curve": json.dumps(curve)}
    return Weights(progress.best, told | known | dict(about or {}))


def curve_of(weights: Weights) -> pd.DataFrame:
    """Return how the losses went, an epoch a row.

    Parameters
    ----------
    weights
        What `train_denoiser` returned.

    Returns
    -------
    pandas.DataFrame
        Columns ``epoch``, ``step``, ``learning_rate``, ``training_loss``, ``validation_loss``.
    """
    return pd.DataFrame(json.loads(weights.about["curve"]))


def _say_nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


# --- What is asked for ----------------------------------------------------------------------------


def _find(method: str) -> tuple[Method, Training]:
    """Return the record of a method that is a network."""
    record: Method = find_method(FAMILY, method)
    if record.training is None:
        known = [n for n in list_methods(FAMILY) if find_method(FAMILY, n).training is not None]
        rule = "is no network, and there is nothing to train"
        raise StackError(sentence(method, rule, remedy=f"Networks: {', '.join(known)}."))
    return record, record.training


def _range(snr: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the least and the largest SNR."""
    if snr is None:
        return None
    ends = (snr, snr) if isinstance(snr, int | float) else tuple(snr)
    require(len(ends) == 2, WHAT, "snr must be a number, or the least and the largest", snr)
    for end in ends:
        check_number(WHAT, "snr", end, 1e-6)
    require(ends[0] <= ends[1], WHAT, "the least snr comes first", snr)
    return float(ends[0]), float(ends[1])


def _parts(
    method: str, training: Training, stack: Any, clean: Any, pair: Any, snr: Any
) -> list[Part]:
    """Check what there is to learn from, and put together what belongs together."""
    needs = f"{method} {NEEDS[training.takes]}"
    if training.takes != "pairs":
        require(pair is None, WHAT, f"{needs}: it takes no pair")
    if training.takes == "clean":
        remedy = "Pass clean images, or take noise2noise or noise2void, which need none."
        require(clean is not None, WHAT, needs, remedy=remedy)
        one = (stack is None) != (snr is None)
        rule = f"{needs}: either stack, or an snr at which noise is added, must be given"
        require(one, WHAT, rule)
    else:
        remedy = "Pass noisy images as stack, or take another method."
        rule = f"{needs}: it takes no clean images"
        require(clean is None and snr is None, WHAT, rule, remedy=remedy)
        require(stack is not None, WHAT, f"{needs}: stack must be given")
    target = clean if training.takes == "clean" else pair
    noisy_stacks, targets = _as_stacks(stack), _as_stacks(target)
    both = noisy_stacks and targets
    rule = "there must be as many stacks of either kind"
    require(not both or len(noisy_stacks) == len(targets), WHAT, rule)
    return [
        _part(noisy, other, training.takes == "clean")
        for noisy, other in zip_longest(noisy_stacks, targets)
    ]


def _part(noisy: da.Array | None, other: da.Array | None, is_clean: bool) -> Part:
    """Put images and what they should become together, in the same chunks."""
    if noisy is not None and other is not None:
        rule = "images must be as many and as large as those that they belong to"
        require(noisy.shape == other.shape, WHAT, rule, (noisy.shape, other.shape))
        other = other.rechunk(noisy.chunks)
    return Part(noisy=noisy, target=other, target_is_clean=is_clean)


def _as_stacks(given: Any) -> list[da.Array]:
    if given is None:
        return []
    stacks = [as_stack(one).data for one in (given if isinstance(given, Sequence) else [given])]
    require(bool(stacks), WHAT, "the list of stacks must not be empty")
    return stacks


def _start(record: Method, model: Any, parts: Sequence[Part]) -> Weights:
    assert record.load is not None
    weights: Weights = record.load(model, {}, parts[0].images.shape)
    return weights


def _describe(
    method: str, params: Any, parts: Sequence[Part], drawing: Drawing, schedule: Schedule
) -> dict[str, str]:
    """What weights tell of how they were made."""
    sizes = [f"{p.images.shape[0]} of {p.images.shape[2]} x {p.images.shape[1]}" for p in parts]
    told: dict[str, Any] = {
        "method": method,
        "emdask": version("emdask"),
        "images": ", ".join(sizes),
        "snr": "of the images" if drawing.snr is None else "{:g} to {:g}".format(*drawing.snr),
        "coloured": drawing.coloured,
        "either_contrast": drawing.either_contrast,
        "batch": drawing.batch,
        "crop_px": drawing.crop_px,
        "validation": drawing.validation,
        "seed": drawing.seed,
        "epochs": schedule.epochs,
        "steps_an_epoch": schedule.n_steps,
        "learning_rate": schedule.learning_rate,
        **asdict(params),
    }
    return {name: str(value) for name, value in told.items()}


# --- Epochs ---------------------------------------------------------------------------------------


def _learn(plan: _Plan, rank: int, n_ranks: int, device: str, on_progress: Progress) -> _Progress:
    """Train in this process, alone or as one of several."""
    _, training = _find(plan.method)
    network = training.begin(
        plan.params, start=plan.start, seed=plan.drawing.seed, device=device, short=plan.short
    )
    drawing = replace(plan.drawing, rank=rank, n_ranks=n_ranks)
    batches = Batches(plan.parts, drawing, device)
    keeper = _Keeper(plan.checkpoint, plan.log, plan.told, writes=rank == 0)
    progress = keeper.open(network) if plan.resume else None
    if n_ranks > 1:
        network.join(rank)
    return _run(network, batches, plan.schedule, keeper, progress, on_progress)


def _run(
    network: Any,
    batches: Batches,
    schedule: Schedule,
    keeper: _Keeper,
    progress: _Progress | None,
    on_progress: Progress,
) -> _Progress:
    """Train to the end, from the beginning or from where it stopped."""
    progress = progress or _Progress(0, 0, [], [], None)
    before_s = progress.curve[-1]["seconds"] if progress.curve else 0.0
    began = time.monotonic()
    while progress.epoch < schedule.epochs and not _is_over(progress, schedule):
        losses = list(progress.losses)
        first = progress.step
        for step, drawn in enumerate(batches.epoch(progress.epoch, first), start=first):
            total = progress.epoch * schedule.n_steps + step
            losses.append(network.learn(drawn, schedule.rate(total)))
            what = f"epoch {progress.epoch + 1} of {schedule.epochs}, loss {_recent(losses):.4f}"
            on_progress(what, total + 1, schedule.epochs * schedule.n_steps)
            if keeper.is_due():
                keeper.save(network, progress._replace(step=step + 1, losses=losses))
        error = network.agree(judge(network, batches.validation()))
        row = {
            "epoch": progress.epoch + 1,
            "step": network.n_done,
            "learning_rate": schedule.rate(network.n_done - 1),
            "training_loss": float(np.mean(losses)),
            "validation_loss": error,
            "seconds": round(before_s + time.monotonic() - began, 1),
        }
        told = _Progress(progress.epoch + 1, 0, [], [*progress.curve, row], progress.best)
        if told.best_epoch == progress.epoch or told.best is None:
            told = told._replace(best=network.weights)
        progress = told
        keeper.save(network, progress)
        keeper.write_log(progress.curve)
    return progress


def judge(network: Any, batches: Any) -> float:
    """Return the mean error of a network over batches; NaN where there are none."""
    errors = [network.judge(drawn, number) for number, drawn in enumerate(batches)]
    return float(np.concatenate(errors).mean()) if errors else math.nan


def _is_over(progress: _Progress, schedule: Schedule) -> bool:
    """Whether the error has not fallen for too long."""
    if schedule.patience is None or not progress.curve or progress.step > 0:
        return False
    return len(progress.curve) - 1 - progress.best_epoch >= schedule.patience


def _recent(losses: Sequence[float]) -> float:
    return float(np.mean(losses[-100:]))


# --- Checkpoints and the log ----------------------------------------------------------------------


class _Keeper:
    """Writes what it takes to go on, and the table of the epochs."""

    def __init__(
        self, checkpoint: Path | None, log: Path | None, told: Mapping[str, str], *, writes: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._log = log
        self._told = dict(told)
        self._writes = writes
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Whether the last checkpoint is some minutes old."""
        return self._checkpoint is not None and time.monotonic() - self._saved > CHECKPOINT_S

    def save(self, network: Any, progress: _Progress) -> None:
        """Write a checkpoint; the one before stays whole until it is there."""
        if self._checkpoint is None or not self._writes:
            return
        arrays = {f"state.{name}": array for name, array in network.state().items()}
        arrays |= {f"best.{name}": array for name, array in (progress.best or {}).items()}
        where = {
            "epoch": progress.epoch,
            "step": progress.step,
            "losses": progress.losses,
            "curve": progress.curve,
        }
        about = self._told | {"checkpoint": json.dumps(where)}
        save_weights(Weights(arrays, about), self._checkpoint, overwrite=True)
        self._saved = time.monotonic()

    def open(self, network: Any) -> _Progress | None:
        """Bring a network to where its checkpoint says; None where there is none.

        Raises
        ------
        ParameterError
            If it is of another training.
        """
        assert self._checkpoint is not None
        if not self._checkpoint.exists():
            return None
        kept = open_weights(self._checkpoint)
        others = {
            name: kept.about.get(name)
            for name in self._told
            if kept.about.get(name) != self._told[name]
        }
        rule = "the checkpoint must be of this training"
        got = ", ".join(f"{name} {value}" for name, value in others.items())
        remedy = "Pass the same parameters, or another checkpoint."
        require(not others, str(self._checkpoint), rule, got, remedy)
        network.restore(_taken(kept.arrays, "state."))
        where = json.loads(kept.about["checkpoint"])
        best = _taken(kept.arrays, "best.")
        return _Progress(
            where["epoch"], where["step"], where["losses"], where["curve"], best or None
        )

    def write_log(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Write the table of the epochs."""
        if self._log is None or not self._writes:
            return
        rows = [",".join(CURVE), *(",".join(f"{row[name]:.8g}" for name in CURVE) for row in curve)]
        self._log.write_text("\n".join(rows) + "\n")


def _taken(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
