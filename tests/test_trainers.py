"""Networks are trained on the data at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emdask
from emdask.errors import FormatError, ParameterError, StackError
from emdask.io.weights import Weights, open_weights
from emdask.metrics import match_picks
from emdask.pickers.cnn import SHIPPED
from emdask.stack import build_stack

DIAMETER_PX = 24.0


def discs(n_images: int, *, strength: float = 3.0) -> tuple[xr.DataArray, pd.DataFrame]:
    """Micrographs of dark discs in noise, 16 each, and where they are."""
    images = np.empty((n_images, 160, 160), np.float32)
    rows = []
    y, x = np.mgrid[:160, :160]
    for i in range(n_images):
        rng = np.random.default_rng([11, i])
        image = rng.normal(size=(160, 160))
        grid = np.stack(np.meshgrid(np.arange(20, 160, 40), np.arange(20, 160, 40)), -1)
        for cx, cy in grid.reshape(-1, 2) + rng.uniform(-6, 6, (16, 2)):
            image -= strength * (np.hypot(x - cx, y - cy) < DIAMETER_PX / 2)
            rows.append((f"m{i}.mrc", cx, cy))
        images[i] = image
    names = np.array([f"m{i}.mrc" for i in range(n_images)])
    stack = build_stack(images, {"micrograph": names}, {})
    return stack, pd.DataFrame(rows, columns=["micrograph", "x_px", "y_px"])


@pytest.fixture(scope="module")
def scene() -> tuple[xr.DataArray, pd.DataFrame]:
    return discs(3)


def train(stack: Any, picks: Any, **more: Any) -> Weights:
    options = {"diameter_px": DIAMETER_PX, "n_steps": 6, "start": "general"} | more
    return emdask.train_picker(stack, picks, **options)


@pytest.fixture(scope="module")
def trained(scene: tuple[xr.DataArray, pd.DataFrame]) -> Weights:
    stack, truth = scene
    return train(stack, truth[truth.micrograph != "m2.mrc"], n_steps=10)


def average_precision(weights: Any, stack: xr.DataArray, truth: pd.DataFrame) -> float:
    picks = emdask.pick(
        stack, "cnn", model=weights, diameter_px=DIAMETER_PX, threshold=0.02
    ).compute(scheduler="sync")
    return match_picks(picks, truth, radius_px=0.3 * DIAMETER_PX).average_precision


def test_what_is_learnt_is_found_elsewhere(
    trained: Weights, scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    """Of the third micrograph no label was given."""
    stack, truth = scene
    third = truth[truth.micrograph == "m2.mrc"]
    assert average_precision(trained, stack[2:], third) > 0.9


def test_about_tells_what_was_done(trained: Weights) -> None:
    assert trained.about["trained_n_micrographs"] == "2"
    assert trained.about["trained_n_labels"] == "32"
    assert float(trained.about["trained_diameter_px"]) == DIAMETER_PX


def test_the_same_seed_is_the_same_network(scene: tuple[xr.DataArray, pd.DataFrame]) -> None:
    """Beginning with random weights."""
    stack, truth = scene
    short = {"n_steps": 1, "start": None}
    again = [train(stack, truth, **short, seed=seed).digest for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_weights_are_kept(
    trained: Weights, scene: tuple[xr.DataArray, pd.DataFrame], tmp_path: Path
) -> None:
    stack, _ = scene
    path = emdask.save_model(trained, tmp_path / "mine.safetensors")
    options = {"diameter_px": DIAMETER_PX}
    in_memory = emdask.pick(stack, "cnn", model=trained, **options).compute()
    from_file = emdask.pick(stack, "cnn", model=str(path), **options).compute()
    pd.testing.assert_frame_equal(in_memory, from_file)


def test_without_labels_it_learns_from_its_own_picks(
    trained: Weights, scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    stack, truth = scene
    faint, there = discs(3, strength=1.6)
    told: list[tuple[str, int, int]] = []
    better = train(
        faint,
        None,
        start=trained,
        n_rounds=2,
        n_steps=3,
        on_progress=lambda what, done, total: told.append((what, done, total)),
    )
    assert average_precision(better, faint, there) > 0.9
    assert average_precision(better, stack, truth) > 0.9
    assert any(what.startswith("round 2 of 2") for what, _, _ in told)
    assert all(0 <= done <= total for _, done, total in told)


def test_a_few_labels_are_enough(
    trained: Weights, scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    """A quarter of the particles of one micrograph; the others are not taken for background."""
    stack, truth = scene
    few = truth[truth.micrograph == "m0.mrc"].iloc[::4]
    taught = train(stack, few, start=trained)
    assert taught.about["trained_n_labels"] == "4"
    assert average_precision(taught, stack, truth) > 0.9


class Training:
    """Stands in for `train_network`, and keeps what it is given."""

    def __init__(self) -> None:
        self.examples: list[Any] = []
        self.n_steps = 0

    def __call__(self, examples: Any, **more: Any) -> dict[str, np.ndarray]:
        self.examples = list(examples)
        self.n_steps = more["n_steps"]
        return dict(more["start"] or {"a": np.zeros(1, np.float32)})


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Training:
    training = Training()
    monkeypatch.setattr("emdask.kernels.picker_training.train_network", training)
    return training


def test_the_share_that_is_labelled_says_how_many_particles_there_are(
    scene: tuple[xr.DataArray, pd.DataFrame], training: Training
) -> None:
    stack, truth = scene
    few = truth.groupby("micrograph").head(4)
    for start, labelled, share, threshold in (
        (None, 0.5, 0.5, "0.15"),
        (None, None, 1 / 1.2, "0.25"),
        ("general", 0.1, 0.1, "0.1"),
        (None, 1.0, 1.0, "0.3"),
    ):
        weights = train(stack, few, start=start, labelled=labelled)
        assert [example.share for example in training.examples] == pytest.approx([share] * 3)
        # Fewer labels, less sure; not below the threshold of the method.
        assert weights.about["threshold"] == threshold
    train(stack, few)
    assert all(example.share < 1 for example in training.examples)


def test_without_labels_a_network_keeps_its_threshold(
    scene: tuple[xr.DataArray, pd.DataFrame], training: Training
) -> None:
    stack, _ = scene
    for start in ("general", "simulated"):
        before = open_weights(SHIPPED / f"{start}.safetensors").about
        after = train(stack, None, start=start).about
        assert after.get("threshold") == before.get("threshold")


def test_steps_follow_from_what_is_learnt(
    scene: tuple[xr.DataArray, pd.DataFrame], training: Training
) -> None:
    stack, truth = scene
    for picks, more, steps in (
        (truth, {"labelled": 0.5}, "800"),
        (truth, {"labelled": 0.4, "n_rounds": 2}, "300, 60"),
        (None, {}, "60"),
        (None, {"n_rounds": 2, "n_steps": 7}, "7, 7"),
    ):
        weights = train(stack, picks, **({"n_steps": None} | more))
        assert weights.about["trained_n_steps"] == steps
        assert training.n_steps == int(steps.split()[-1])
    with pytest.raises(ParameterError, match="n_steps must be an integer of at least 1"):
        train(stack, truth, n_steps=0)


def test_labels_beyond_the_frame_are_left_out(
    scene: tuple[xr.DataArray, pd.DataFrame], training: Training
) -> None:
    stack, truth = scene
    some = truth.copy()
    some.loc[some.index[[0, 1]], "x_px"] = [-3.0, 160.0]
    train(stack, some, start=None)
    assert [len(example.centres) for example in training.examples] == [14, 16, 16]
    binned = truth.assign(x_px=2 * truth.x_px, y_px=2 * truth.y_px)
    with pytest.raises(ParameterError, match=r"micrographs of 160 x 160 px; got"):
        train(stack, binned, start=None)


def test_bad_pixels_are_replaced_where_that_is_asked(
    scene: tuple[xr.DataArray, pd.DataFrame], training: Training
) -> None:
    stack, truth = scene
    broken = stack.copy(deep=True)
    broken[1, 3, 3] = np.nan
    train(broken, truth, bad_pixels="replace")
    sound, mended = (training.examples[i].image for i in (0, 1))
    assert np.isfinite(mended).all()
    assert mended.std() == pytest.approx(sound.std(), rel=0.1)


def test_what_is_wrong_is_said(scene: tuple[xr.DataArray, pd.DataFrame], tmp_path: Path) -> None:
    stack, truth = scene
    with pytest.raises(ParameterError, match="without a network to start from it needs labels"):
        train(stack, None, start=None)
    with pytest.raises(ParameterError, match="picks must name micrographs of the stack"):
        train(stack, truth.assign(micrograph="other.mrc"))
    with pytest.raises(ParameterError, match="one of diameter_A and diameter_px"):
        emdask.train_picker(stack, truth)
    with pytest.raises(ParameterError, match="n_rounds must be an integer of at least 1"):
        train(stack, truth, n_rounds=0)
    with pytest.raises(ParameterError, match="labelled is a share of the particles, and needs pic"):
        train(stack, None, labelled=0.5)
    with pytest.raises(ParameterError, match="labelled must be a number in"):
        train(stack, truth, labelled=0)
    with pytest.raises(FileNotFoundError):
        train(stack, truth, start=str(tmp_path / "none.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(FormatError):
        train(stack, truth, start=str(tmp_path / "bad.safetensors"))
    with pytest.raises(ParameterError, match="weights of a network that picks"):
        train(stack, truth, start=Weights({"a": np.zeros(3)}))
    broken = stack.copy(deep=True)
    broken[1, 3, 3] = np.inf
    with pytest.raises(StackError, match=r"m1\.mrc has NaN or infinite pixels"):
        train(broken, truth)
