"""Training the scoring network: it learns what is labelled, and not what is unlabelled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emdask.errors import ParameterError
from emdask.kernels import picker_training
from emdask.kernels.picker_training import (
    STANDARD_PX,
    Example,
    NetworkTraining,
    build_target,
    positive_unlabelled_loss,
    train_network,
)
from emdask.kernels.schedules import fall, rise_and_fall, rise_and_stay
from emdask.kernels.scoring_network import FIELD_PX, STEP_PX, score_network


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    """A narrow network and small crops, for the seconds that a test may take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(picker_training, "STEM_WIDTH", 6)
        patch.setattr(picker_training, "WIDTH", 12)
        patch.setattr(picker_training, "N_CELLS", 16)
        patch.setattr(picker_training, "CROP_PX", STEP_PX * 15 + FIELD_PX)
        yield


def discs(seed: int, n: int = 12, size: int = 320) -> tuple[np.ndarray, np.ndarray]:
    """Light discs of the standard diameter in noise, and their centres."""
    rng = np.random.default_rng(seed)
    places = np.array([(x, y) for x in range(30, size - 29, 52) for y in range(30, size - 29, 52)])
    centres = places[rng.permutation(len(places))[:n]] + rng.uniform(-6, 6, (n, 2))
    rows, columns = np.ogrid[:size, :size]
    image = rng.normal(size=(size, size))
    for x, y in centres:
        image[np.hypot(rows - y, columns - x) < STANDARD_PX / 2] += 2.5
    return image.astype(np.float32), centres


def score(arrays: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    digest = str(sum(float(np.abs(a).sum()) for a in arrays.values()))
    return np.asarray(score_network(image, SimpleNamespace(arrays=arrays, digest=digest)).scores)


def at_centres(scores: np.ndarray, centres: np.ndarray) -> np.ndarray:
    cells = np.rint(centres / STEP_PX).astype(int)
    return scores[cells[:, 1], cells[:, 0]]


@pytest.fixture(scope="module")
def trained(small: None) -> dict[str, np.ndarray]:
    examples = [Example(*discs(seed)) for seed in range(8)]
    return train_network(examples, n_steps=150, batch=8, learning_rate=4e-3)


def test_it_learns_discs(trained: dict[str, np.ndarray]) -> None:
    image, centres = discs(99)
    scores = score(trained, image)
    least = at_centres(scores, centres).min()
    assert least > 0.35
    rows, columns = np.indices(scores.shape) * STEP_PX
    away = np.min([np.hypot(rows - y, columns - x) for x, y in centres], axis=0) > STANDARD_PX / 2
    assert scores[away].max() < least / 2


def test_same_seed_same_weights() -> None:
    examples = [Example(*discs(0))]
    one, again, other = (
        train_network(examples, n_steps=3, batch=2, seed=seed) for seed in (5, 5, 6)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert any((one[name] != other[name]).any() for name in one)


def test_copies_of_a_training_go_on_apart() -> None:
    examples = [Example(*discs(0))]
    first = NetworkTraining(seed=3)
    first.learn(examples, 2, batch=2)
    second = copy.deepcopy(first)
    before = first.weights
    second.learn(examples, 2, batch=2)
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, before[name])
    # They draw the same crops from here on.
    first.learn(examples, 2, batch=2)
    for name, array in first.weights.items():
        np.testing.assert_array_equal(array, second.weights[name])
    assert any((array != before[name]).any() for name, array in first.weights.items())


def test_schedules_of_the_learning_rate() -> None:
    n = 50
    up_and_down, up, down = (
        np.array([schedule(step, n) for step in range(n)])
        for schedule in (rise_and_fall, rise_and_stay, fall)
    )
    assert up_and_down[0] < 0.2
    assert up_and_down.argmax() == n // 10
    assert up_and_down.max() == 1
    assert up_and_down[-1] < 0.01
    assert up[0] == pytest.approx(0.2)
    assert (up[n // 10 :] == 1).all()
    np.testing.assert_allclose(down, 1 - np.arange(n) / n)


def test_unlabelled_particles_are_not_background(trained: dict[str, np.ndarray]) -> None:
    image, centres = discs(98)
    # One in six has a label: who takes the others for background scores them 1/6 as high.
    labelled, unlabelled = centres[:2], centres[2:]
    how = {"start": trained, "n_steps": 60, "batch": 8, "learning_rate": 4e-3}
    partly = Example(image, labelled, fully_labelled=False, expected=12)
    open_minded = train_network([partly], **how)
    misled = train_network([partly._replace(fully_labelled=True)], **how)
    found, missed = (
        at_centres(score(arrays, image), unlabelled) for arrays in (open_minded, misled)
    )
    assert found.mean() > 3 * missed.mean()


def test_the_loss_is_the_cross_entropy_where_all_is_labelled() -> None:
    logits = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.rand(3, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    loss = positive_unlabelled_loss(logits, targets, torch.ones(3))
    torch.testing.assert_close(loss, wanted)


def test_the_loss_expects_what_full_labels_say() -> None:
    """Averaged over which particles are labelled, it is the loss of all labels."""
    logits = torch.linspace(-2, 2, 16).reshape(1, 1, 4, 4)
    truth = torch.zeros(1, 1, 4, 4)
    truth.view(-1)[[1, 4, 9, 15]] = 1
    losses = []
    for one in (1, 4, 9, 15):
        labels = torch.zeros(1, 1, 4, 4)
        labels.view(-1)[one] = 1
        losses.append(positive_unlabelled_loss(logits, labels, torch.tensor([0.25])))
    full = positive_unlabelled_loss(logits, truth, torch.ones(1))
    torch.testing.assert_close(torch.stack(losses).mean(), full)


def test_the_risk_of_background_is_never_negative() -> None:
    logits = torch.full((1, 1, 2, 2), 5.0)
    labels = torch.ones(1, 1, 2, 2)
    loss = positive_unlabelled_loss(logits, labels, torch.tensor([0.1]))
    assert float(loss) == pytest.approx(
        10 * float(torch.nn.functional.softplus(-logits[0, 0, 0, 0]))
    )


def test_targets_are_cones_about_centres() -> None:
    target = build_target(np.array([[20.0, 12.0], [-100.0, 5.0]]), 8, 10)
    assert target.shape == (8, 10)
    assert target[3, 5] == 1
    # 4 and 8 px away, of a reach of 0.3 diameters of 32 px.
    assert target[3, 6:8] == pytest.approx([1 - 4 / 9.6, 1 - 8 / 9.6])
    assert target[3, 8] == 0
    assert target[:, :2].max() == 0


def test_shares_of_labels() -> None:
    image, centres = np.zeros((50, 50), np.float32), np.zeros((10, 2))
    assert Example(image, centres).share == 1
    assert Example(image, centres, False).share == pytest.approx(1 / 1.2)
    assert Example(image, centres, False, 40).share == 0.25
    assert Example(image, centres, False, 5).share == 1


def test_lumps_are_added_where_no_particle_is(rng: np.random.Generator) -> None:
    side = picker_training.CROP_PX
    centres = np.array([[40.0, 60.0], [120.0, 100.0]])
    rows, columns = np.ogrid[:side, :side]
    distance = np.min([np.hypot(rows - y, columns - x) for x, y in centres], axis=0)
    touched = np.zeros((side, side), bool)
    for _ in range(20):
        lumps = picker_training._add_lumps(np.zeros((side, side), np.float32), centres, rng)
        assert lumps.min() >= 0
        touched |= lumps > 0
    assert touched.any()
    assert not touched[distance < STANDARD_PX / 4].any()


def test_borders_are_mirrored_and_scored_cells_stay(rng: np.random.Generator) -> None:
    side, margin = picker_training.CROP_PX, picker_training.MARGIN_PX
    image = rng.normal(size=(side, side)).astype(np.float32)
    inner = slice(margin, side - margin)
    seen = set()
    for _ in range(20):
        ended = image.copy()
        picker_training._mirror_margins(ended, rng)
        np.testing.assert_array_equal(ended[inner, inner], image[inner, inner])
        sides = [np.rot90(ended, k)[: 2 * margin, inner] for k in range(4)]
        mirrored = [bool((rows[:margin] == rows[margin:][::-1]).all()) for rows in sides]
        seen.add(sum(mirrored))
    assert {1, 2, 3} <= seen


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(ParameterError, match="must have a particle"):
        train_network([Example(np.zeros((50, 50), np.float32), np.zeros((0, 2)))])


def test_progress_is_told_and_small_or_flat_images_do_no_harm() -> None:
    told = []
    examples = [
        Example(np.zeros((20, 300), np.float32), np.zeros((0, 2))),
        Example(*discs(1, size=90, n=1)),
    ]
    arrays = train_network(
        examples, n_steps=4, batch=3, on_progress=lambda *words: told.append(words)
    )
    assert [words[1:] for words in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][0].startswith("loss ")
    assert all(np.isfinite(array).all() for array in arrays.values())
