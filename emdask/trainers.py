"""Training of networks on the data at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from emdask.backend import check_device, resolve_device
from emdask.checks import check_choice, check_integer, check_number, require, sentence
from emdask.errors import StackError
from emdask.io.weights import Weights
from emdask.kernels.standard_micrographs import CONTRASTS, standardise
from emdask.lazy import BAD_PIXELS, clean_pixels
from emdask.method import Picker, find_method
from emdask.pickers import FAMILY, find_diameter, pick
from emdask.picks import check_picks, pair_names
from emdask.placement import on_cards
from emdask.stack import as_micrographs, micrograph_names

WHAT = "train_picker"
# Share of labels beyond the frame from which on they are taken to be in other pixels.
MOST_OUTSIDE = 0.1
# Of a network that has learnt where all particles are labelled. Half of the F1 that it reaches is
# the best threshold on probabilities, and cones leave three quarters of these at the cell next to a
# label. With fewer labels it is less sure of any.
LABELLED_THRESHOLD = 0.3
# Steps of a round: where most particles are labelled, where few are, and from its own picks.
MOST = 0.5
N_STEPS_MOST, N_STEPS_FEW, N_STEPS_PICKED = 800, 300, 60
Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class PickerTraining:
    """How a network is trained to pick.

    Parameters
    ----------
    diameter_px
        Of a particle, in px of the micrographs.
    contrast
        "dark" or "light" particles.
    n_rounds, n_steps, labelled, best, seed, bad_pixels
        As of `train_picker`.
    device
        "cpu" or "cuda".
    """

    diameter_px: float
    contrast: str
    n_rounds: int
    n_steps: int | None
    labelled: float | None
    best: float
    seed: int
    bad_pixels: str
    device: str


def train_picker(
    micrographs: Any,
    picks: Any = None,
    *,
    diameter_A: float | None = None,
    diameter_px: float | None = None,
    start: Any = "general",
    n_rounds: int = 1,
    n_steps: int | None = None,
    n_micrographs: int = 40,
    labelled: float | None = None,
    best: float = 0.7,
    contrast: str = "dark",
    seed: int = 0,
    device: str | None = None,
    bad_pixels: str = "raise",
    on_progress: Progress | None = None,
) -> Weights:
    """Train the network of ``pick(..., "cnn")`` on the molecule at hand, at once.

    What is labelled is a particle; what is not may be one as well. So a handful of labels by hand
    will do (positive-unlabelled learning), or none: then the network that it starts from, which has
    seen other molecules, picks, and learns from those picks that it is surest of.

    Parameters
    ----------
    micrographs : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Micrographs; those that labels name, or, without labels, some from all over the stack.
    picks : pandas or dask DataFrame
        Labels: columns ``micrograph``, ``x_px``, ``y_px``, as `emdask.open_picks` gives; on the
        micrographs that they name most particles should not have been left out on purpose, but many
        may be missing. None where there are none.
    diameter_A, diameter_px
        As of `emdask.pick`.
    start
        Network that it starts from: "general", "simulated", the path of weights, or weights; None
        begins with random ones, which needs labels.
    n_rounds
        Rounds of training. In each after the first the network that was trained picks, and what it
        is surest of joins the labels.
    n_steps
        Steps of a round, each on 8 pieces of micrographs. None takes 800 where at least half of the
        particles are labelled, 300 where fewer are (more would be learning them by heart), and 60
        in rounds that learn from picks of the network.
    n_micrographs
        Most micrographs to learn from: each takes some MB of memory.
    labelled
        Share of the particles that is labelled in the micrographs that labels name, 0.001 to 1: the
        others are not taken for background. 1 where what has no label was left out on purpose, such
        as subunits: it is background then. None takes as many particles for there as the network
        finds that it starts from; without one, a fifth more than labels, so give it then.
    best
        Share of the picks of a network, 0 to 1, that it is surest of.
    contrast
        As of `emdask.pick`.
    seed
        Of the random numbers: on one machine, with the same device, number of threads and
        libraries, the same seed gives the same weights.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``. Training is done in this
        process; picking, on the active Dask client.
    bad_pixels
        "raise" or "replace", as of `emdask.pick`.
    on_progress
        Called as ``(what, done, total)`` while it goes on.

    Returns
    -------
    Weights
        For ``pick(..., "cnn", model=weights)``; `emdask.save_model` keeps them as ``.safetensors``.
        ``about`` tells what they were made of; after labels they have a threshold of their own:
        0.3 [3]_ times the share of the particles that was labelled, but not below that of ``cnn``.

    Raises
    ------
    ParameterError, StackError, DeviceError, MissingLibraryError

    References
    ----------
    .. [1] F. Wang et al., "DeepPicker: a deep learning approach for fully automated particle
       picking in cryo-EM", J. Struct. Biol. 195 (2016): training on other molecules, iteration.
    .. [2] T. Bepler et al., "Positive-unlabeled convolutional neural networks for particle picking
       in cryo-electron micrographs", Nature Methods 16 (2019).
    .. [3] Z. Lipton, C. Elkan, B. Naryanaswamy, "Optimal thresholding of classifiers to maximize F1
       measure", ECML PKDD (2014): half of the best F1, of a classifier that knows probabilities.

    Examples
    --------
    >>> from emdask import phantom, pick, simulate_micrographs
    >>> particle = phantom(8, radius_A=20).volume(32, 3.0)
    >>> made, truth = simulate_micrographs(particle, 2, snr=0.5, size_px=256, n_particles=9)
    >>> weights = train_picker(made.images, truth, diameter_A=50, n_steps=2)
    >>> picks = pick(made.images, "cnn", diameter_A=50, model=weights)
    """
    source = as_micrographs(micrographs, WHAT)
    record: Picker = find_method(FAMILY, "cnn")
    check_integer(WHAT, "n_rounds", n_rounds, 1)
    if n_steps is not None:
        check_integer(WHAT, "n_steps", n_steps, 1)
    check_integer(WHAT, "n_micrographs", n_micrographs, 1)
    check_integer(WHAT, "seed", seed, 0)
    check_number(WHAT, "best", best, 0.01, 1)
    check_choice(WHAT, "contrast", contrast, CONTRASTS)
    check_choice(WHAT, "bad_pixels", bad_pixels, BAD_PIXELS)
    if labelled is not None:
        check_number(WHAT, "labelled", labelled, 0.001, 1)
        rule = "labelled is a share of the particles, and needs picks"
        require(picks is not None, WHAT, rule, remedy="Pass the labels as picks, or leave it out.")
    require(
        picks is not None or start is not None,
        WHAT,
        "without a network to start from it needs labels",
        remedy='Pass picks, or start="general".',
    )
    training = PickerTraining(
        diameter_px=find_diameter(source, diameter_A, diameter_px, WHAT),
        contrast=contrast,
        n_rounds=n_rounds,
        n_steps=n_steps,
        labelled=labelled,
        best=best,
        seed=seed,
        bad_pixels=bad_pixels,
        device=resolve_device(check_device(device, WHAT, record.score), record.score),
    )
    weights = None if start is None else _load(record, start)
    labels = None if picks is None else _label(source, check_picks(WHAT, picks))
    chosen = _choose(source, labels, n_micrographs)
    return _train(chosen, labels, weights, training, on_progress or _say_nothing)


def _say_nothing(what: str, done: int, total: int) -> None:
    """Progress that nobody follows."""


def _load(record: Picker, model: Any) -> Weights:
    assert record.load is not None
    weights: Weights = record.load(record.params(model=model), None)
    return weights


def _label(stack: xr.DataArray, picks: pd.DataFrame) -> dict[str, Array]:
    """Places (n, 2) that labels name in each micrograph of the stack, those within its frame."""
    names = micrograph_names(stack).tolist()
    pairs = pair_names(picks["micrograph"].unique(), names)
    rule = "picks must name micrographs of the stack"
    require(
        bool(pairs), WHAT, rule, picks["micrograph"].unique()[:3].tolist(), f"It has {names[:3]}."
    )
    known = picks.assign(micrograph=picks["micrograph"].map(pairs)).dropna(subset="micrograph")
    height, width = stack.shape[1:]
    is_inside = known["x_px"].between(-0.5, width - 0.5) & known["y_px"].between(-0.5, height - 0.5)
    rule = f"labels must lie within the micrographs of {width} x {height} px"
    n_outside = int((~is_inside).sum())
    got = f"{n_outside} of {len(known)} outside"
    remedy = "Are they in pixels of these micrographs, not of others at another binning?"
    require(n_outside <= MOST_OUTSIDE * len(known), WHAT, rule, got, remedy)
    known = known[is_inside]
    return {
        str(name): rows[["x_px", "y_px"]].to_numpy(np.float64)
        for name, rows in known.groupby("micrograph")
    }


def _choose(
    stack: xr.DataArray, labels: Mapping[str, Array] | None, n_micrographs: int
) -> xr.DataArray:
    """Micrographs with labels, or any, evenly from all over the stack."""
    names = micrograph_names(stack)
    stack = stack.assign_coords(micrograph=("image", names))
    usable = np.flatnonzero(np.isin(names, list(labels)) if labels else np.ones(len(names), bool))
    n_chosen = min(len(usable), n_micrographs)
    return stack[usable[np.linspace(0, len(usable) - 1, n_chosen).round().astype(int)]]


def _train(
    stack: xr.DataArray,
    labels: Mapping[str, Array] | None,
    weights: Weights | None,
    training: PickerTraining,
    on_progress: Progress,
) -> Weights:
    """Rounds of picking, where there is a network, and training."""
    from emdask.kernels.picker_training import Example, train_network

    record: Picker = find_method(FAMILY, "cnn")
    images, scales = _standardise(stack, training, record.standard_px, on_progress)
    about = dict(weights.about) if weights is not None else {}
    n_steps = []
    for i in range(training.n_rounds):
        found = None if weights is None else _find(stack, weights, training)
        learnt = labels if labels is not None and i == 0 else _join(labels, found, training)
        by_label = learnt is labels
        examples = [
            Example(
                image=images[name],
                centres=np.column_stack(scales[name].to_standard(*learnt[name].T)),
                fully_labelled=False,
                expected=_expect(name, learnt, labels, found, training.labelled),
            )
            for name in images
            if name in learnt
        ]
        n_labels = sum(len(example.centres) for example in examples)
        _check_labels(n_labels, training)
        share = n_labels / sum(len(example.centres) / example.share for example in examples)
        n_steps.append(training.n_steps or _count_steps(by_label, share))
        if by_label:
            about["threshold"] = f"{max(record.threshold, LABELLED_THRESHOLD * share):.3g}"
        arrays = train_network(
            examples,
            start=None if weights is None else weights.arrays,
            n_steps=n_steps[i],
            seed=training.seed + i,
            device=training.device,
            on_progress=_within(on_progress, f"round {i + 1} of {training.n_rounds}, "),
        )
        weights = Weights(arrays, about)
    assert weights is not None
    told = {key: value for key, value in asdict(training).items() if key != "device"}
    told |= {"n_micrographs": len(images), "n_labels": n_labels, "emdask": version("emdask")}
    told["n_steps"] = ", ".join(map(str, n_steps))
    return replace(weights, about=about | {f"trained_{key}": str(told[key]) for key in told})


def _count_steps(by_label: bool, share: float) -> int:
    """Steps of a round, where nobody says how many."""
    if not by_label:
        return N_STEPS_PICKED
    return N_STEPS_MOST if share >= MOST else N_STEPS_FEW


def _expect(
    name: str,
    learnt: Mapping[str, Array],
    labels: Mapping[str, Array] | None,
    found: Mapping[str, pd.DataFrame] | None,
    labelled: float | None,
) -> float | None:
    """How many particles a micrograph is taken to have; None where nothing tells."""
    if labelled is not None and labels is not None and name in labels:
        return max(len(labels[name]) / labelled, len(learnt[name]))
    return None if found is None else float(max(len(found[name]), len(learnt[name])))


def _standardise(
    stack: xr.DataArray, training: PickerTraining, standard_px: float, on_progress: Progress
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Micrographs by name as the network sees them, and their scales."""
    images, scales = {}, {}
    for i, name in enumerate(stack.micrograph.values.tolist()):
        on_progress("reading micrographs", i, len(stack))
        image = stack[i].values
        if training.bad_pixels == "raise" and not np.isfinite(image).all():
            rule = f"{name} has NaN or infinite pixels"
            remedy = 'Leave it out, or pass bad_pixels="replace" (--bad-pixels replace).'
            raise StackError(sentence(WHAT, rule, remedy=remedy))
        image = clean_pixels(image[None], i, training.bad_pixels)[0]
        images[name], scales[name] = standardise(
            image, training.diameter_px, standard_px, training.contrast
        )
    on_progress("reading micrographs", len(stack), len(stack))
    return images, scales


def _find(
    stack: xr.DataArray, weights: Weights, training: PickerTraining
) -> dict[str, pd.DataFrame]:
    """Picks of each micrograph, at the network's own threshold."""
    table = pick(
        stack,
        "cnn",
        model=weights,
        diameter_px=training.diameter_px,
        contrast=training.contrast,
        device=training.device,
        bad_pixels=training.bad_pixels,
    )
    with on_cards(training.device):
        table = table.compute()
    names = stack.micrograph.values.tolist()
    return {name: table[table["micrograph"] == name] for name in names}


def _join(
    labels: Mapping[str, Array] | None,
    found: Mapping[str, pd.DataFrame] | None,
    training: PickerTraining,
) -> dict[str, Array]:
    """Labels, and of the picks of all micrographs those with the best scores, where no label is."""
    assert found is not None
    scores = np.concatenate([rows["score"].to_numpy() for rows in found.values()])
    least = np.quantile(scores, 1 - training.best) if len(scores) else 0.0
    joined = {}
    for name, rows in found.items():
        places = rows[rows["score"] >= least][["x_px", "y_px"]].to_numpy()
        if labels is not None and name in labels:
            apart = np.linalg.norm(places[:, None] - labels[name][None], axis=2)
            places = places[apart.min(axis=1, initial=np.inf) > training.diameter_px / 2]
            places = np.concatenate([labels[name], places])
        joined[name] = places
    return joined


def _check_labels(n_labels: int, training: PickerTraining) -> None:
    rule = f"there is no particle of {training.diameter_px:g} px to learn from"
    remedy = "Is the diameter right, and the contrast? Else label some particles by hand."
    require(n_labels > 0, WHAT, rule, remedy=remedy)


def _within(on_progress: Progress, prefix: str) -> Progress:
    def follow(what: str, done: int, total: int) -> None:
        on_progress(prefix + what, done, total)

    return follow
