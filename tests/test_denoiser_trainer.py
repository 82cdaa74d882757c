"""Training of denoisers: what is learnt, going on after a kill, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest

import emdask
from emdask import denoiser_trainer
from emdask.backend import why_no_cuda
from emdask.denoiser_trainer import curve_of
from emdask.errors import DeviceError, ParameterError, StackError, UnknownMethodError
from emdask.io.weights import Weights, open_weights, save_weights

SIGMA = 1.0
SMALL = {"width": 4, "n_levels": 2}


def blobs(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    """A few Gaussians in each image."""
    y, x = np.mgrid[:side, :side]
    images = np.zeros((n, side, side), np.float32)
    rng = np.random.default_rng(seed)
    for image in images:
        for cy, cx, width in zip(
            *rng.uniform(6, side - 6, (2, 4)), rng.uniform(2, 4, 4), strict=True
        ):
            image += 2 * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return images


def add_noise(clean: np.ndarray, seed: int = 1) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(scale=SIGMA, size=clean.shape)
    return (clean + noise).astype(np.float32)


def error(result: Any, clean: np.ndarray) -> float:
    return float(np.mean((np.asarray(result) - clean) ** 2))


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return blobs(96)


@pytest.fixture(scope="module")
def noisy(clean: np.ndarray) -> np.ndarray:
    return add_noise(clean)


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


# --- What is learnt -------------------------------------------------------------------------------


def best_gaussian(noisy: np.ndarray, clean: np.ndarray) -> float:
    from scipy.ndimage import gaussian_filter

    widths = np.arange(0.5, 4, 0.1)
    return min(error(gaussian_filter(noisy, (0, w, w)), clean) for w in widths)


def test_a_network_learns_to_denoise_what_it_has_not_seen(clean: np.ndarray) -> None:
    """Better than the Gaussian that is best of all, told the truth."""
    weights = emdask.train_denoiser(
        clean=clean, snr=(0.1, 1), epochs=30, learning_rate=4e-3, width=8, n_levels=3
    )
    others = blobs(24, seed=9)
    given = add_noise(others)
    result = emdask.denoise(given, "unet", model=weights).compute()
    assert error(result, others) < 0.8 * best_gaussian(given, others)


@pytest.mark.parametrize("how", ["pairs", "recorrupted", "hidden"])
def test_networks_learn_without_clean_images(
    clean: np.ndarray, noisy: np.ndarray, how: str
) -> None:
    method = "noise2void" if how == "hidden" else "noise2noise"
    pair = add_noise(clean, seed=2) if how == "pairs" else None
    given = noisy if pair is None else np.concatenate([noisy, pair])
    pair = None if pair is None else np.concatenate([pair, noisy])
    options: dict[str, Any] = {"width": 8, "n_levels": 3, "learning_rate": 4e-3, "epochs": 30}
    if how == "hidden":
        options |= {"epochs": 80, "patience": None}
    weights = emdask.train_denoiser(given, pair=pair, method=method, **options)
    others = blobs(24, seed=9)
    seen = add_noise(others)
    result = emdask.denoise(seen, method, model=weights).compute()
    assert error(result, others) < 1.1 * best_gaussian(seen, others)
    assert error(result, others) < 0.15 * error(seen, others)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("autoencoder", {}),
        ("vae", {}),
        ("gan", {}),
        ("gan", {"loss": "vanilla"}),
        ("gan", {"loss": "wasserstein"}),
        ("gan", {"loss": "beta", "alpha": 0.5, "beta": 0.5}),
    ],
)
def test_encoder_decoders_learn_too(
    clean: np.ndarray, method: str, options: dict[str, Any]
) -> None:
    how: dict[str, Any] = {"width": 12, "n_levels": 3, "learning_rate": 4e-3, "epochs": 25}
    weights = emdask.train_denoiser(
        clean=clean, snr=(0.3, 1), method=method, patience=None, **how, **options
    )
    others = blobs(24, seed=9)
    given = add_noise(others)
    result = emdask.denoise(given, method, model=weights).compute()
    assert error(result, others) < 0.1 * error(given, others)


def test_pairs_of_noisy_and_clean_images(clean: np.ndarray, noisy: np.ndarray) -> None:
    options: dict[str, Any] = {"epochs": 6, "learning_rate": 4e-3, **SMALL}
    weights = emdask.train_denoiser(noisy, clean, **options)
    result = emdask.denoise(noisy, "unet", model=weights).compute()
    assert error(result, clean) < 0.3 * error(noisy, clean)


def test_a_network_goes_on_from_another(clean: np.ndarray) -> None:
    options: dict[str, Any] = {"snr": 0.3, "learning_rate": 4e-3, **SMALL}
    first = emdask.train_denoiser(clean=clean, epochs=8, **options)
    curves = [
        curve_of(emdask.train_denoiser(clean=clean, epochs=1, model=model, **options))
        for model in (None, first)
    ]
    assert curves[1].validation_loss[0] < curves[0].validation_loss[0] - 0.3


# --- The same again -------------------------------------------------------------------------------


class Killed(Exception):
    """In place of a kill."""


def killing(at: int) -> Any:
    def on_progress(what: str, done: int, total: int) -> None:
        if done == at:
            raise Killed

    return on_progress


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("unet", {"snr": 0.2}),
        ("autoencoder", {"snr": 0.2}),
        ("vae", {"snr": 0.2}),
        ("gan", {"snr": 0.2}),
        ("gan", {"snr": 0.2, "loss": "wasserstein"}),
        ("noise2noise", {}),
        ("noise2void", {}),
    ],
)
@pytest.mark.parametrize("at", [3, 13])
def test_what_was_killed_goes_on_with_the_same_result(
    clean: np.ndarray,
    noisy: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    options: dict[str, Any],
    at: int,
) -> None:
    """In the middle of an epoch, at its end, and twice."""
    monkeypatch.setattr(denoiser_trainer, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr("emdask.training_batches.BUFFER_BYTES", 100_000)
    given = {"clean": da.from_array(clean, chunks=(16, -1, -1))}
    if "snr" not in options:
        given = {"stack": da.from_array(noisy, chunks=(16, -1, -1))}
    how: dict[str, Any] = {**given, **options, **SMALL, "method": method, "epochs": 3, "batch": 8}
    whole = emdask.train_denoiser(**how, log=tmp_path / "whole.csv")
    kept = {"checkpoint": tmp_path / "kept.safetensors", "log": tmp_path / "log.csv"}
    for when in (at, at + 5):
        with pytest.raises(Killed):
            emdask.train_denoiser(**how, **kept, resume=True, on_progress=killing(when))
    resumed = emdask.train_denoiser(**how, **kept, resume=True)
    assert_same(resumed, whole)
    tables = [pd.read_csv(tmp_path / f"{name}.csv") for name in ("whole", "log")]
    columns = [name for name in tables[0] if name != "seconds"]
    pd.testing.assert_frame_equal(tables[1][columns], tables[0][columns])
    # Once it has ended, it has.
    assert_same(emdask.train_denoiser(**how, **kept, resume=True, on_progress=killing(1)), whole)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["unet", "vae", "gan"])
def test_on_a_card_what_was_killed_goes_on_with_the_same_result(
    clean: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    if (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    monkeypatch.setattr(denoiser_trainer, "CHECKPOINT_S", 0.0)
    how: dict[str, Any] = {"clean": clean, "snr": 0.2, **SMALL, "method": method, "epochs": 3}
    how |= {"batch": 8, "device": "cuda"}
    whole = emdask.train_denoiser(**how)
    checkpoint = tmp_path / "kept.safetensors"
    with pytest.raises(Killed):
        emdask.train_denoiser(**how, checkpoint=checkpoint, on_progress=killing(13))
    assert_same(emdask.train_denoiser(**how, checkpoint=checkpoint, resume=True), whole)
    noisy = add_noise(clean)
    found = emdask.denoise(noisy, method, model=whole, device="cuda").compute()
    expected = emdask.denoise(noisy, method, model=whole, device="cpu").compute()
    assert abs(found - expected).max() < 0.05 * expected.std()


@pytest.mark.parametrize(("method", "options"), [("unet", {}), ("gan", {"loss": "wasserstein"})])
def test_processes_that_share_batches_learn_the_same(
    clean: np.ndarray, tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    """Up to rounding. And they go on."""
    how: dict[str, Any] = {"clean": clean, "method": method, "snr": 0.2, "epochs": 2, "seed": 3}
    how |= {"width": 4, "n_levels": 4, **options}
    told: list[int] = []
    alone = emdask.train_denoiser(**how, n_processes=1)
    kept = tmp_path / "kept.safetensors"
    shared = emdask.train_denoiser(
        **how, n_processes=2, checkpoint=kept, on_progress=lambda _, done, __: told.append(done)
    )
    assert told == list(range(1, 13))
    losses = [curve_of(weights).validation_loss.to_numpy() for weights in (alone, shared)]
    np.testing.assert_allclose(*losses, rtol=2e-3)
    if method == "unet":
        for name, array in alone.arrays.items():
            np.testing.assert_allclose(shared.arrays[name], array, atol=2e-3)
        again = emdask.train_denoiser(**how, n_processes=2, checkpoint=kept, resume=True)
        assert_same(again, shared)


def test_a_process_that_is_killed_ends_all(clean: np.ndarray) -> None:
    """And says how to go on."""
    import multiprocessing

    def kill(what: str, done: int, total: int) -> None:
        multiprocessing.active_children()[-1].kill()

    how: dict[str, Any] = {"clean": clean, "snr": 0.2, "epochs": 500, **SMALL}
    with pytest.raises(DeviceError, match=r"was ended; got .*Go on from the checkpoint"):
        emdask.train_denoiser(**how, n_processes=2, on_progress=kill)
    assert multiprocessing.active_children() == []


def test_what_a_process_finds_wrong_is_told(clean: np.ndarray) -> None:
    bad = clean.copy()
    bad[7, 3, 3] = np.nan
    with pytest.raises(StackError, match="image 7 has 1 NaN"):
        emdask.train_denoiser(clean=bad, snr=0.2, epochs=1, n_processes=2, validation=0, **SMALL)


def test_seeds(clean: np.ndarray) -> None:
    how: dict[str, Any] = {"clean": clean, "snr": 0.2, "epochs": 1, **SMALL}
    first, again, other = (emdask.train_denoiser(**how, seed=seed) for seed in (1, 1, 2))
    assert_same(again, first)
    assert first.digest == again.digest
    assert any((array != other.arrays[name]).any() for name, array in first.arrays.items())


def test_a_checkpoint_of_another_training_is_refused(clean: np.ndarray, tmp_path: Path) -> None:
    how: dict[str, Any] = {"clean": clean, "snr": 0.2, "epochs": 1, **SMALL}
    path = tmp_path / "kept.safetensors"
    emdask.train_denoiser(**how, checkpoint=path)
    with pytest.raises(ParameterError, match=r"checkpoint must be of this training; got 'seed 0'"):
        emdask.train_denoiser(**how, checkpoint=path, resume=True, seed=7)


# --- The end, and what is told --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "patience", "n_epochs", "best"),
    [
        ([3.0, 1.0, 2.0, 1.5, 1.0, 0.5], 2, 4, 2),
        ([3.0, 1.0, 2.0, 0.5, 1.0, 0.7], 2, 6, 4),
        ([3.0, 1.0, 2.0, 1.5, 1.0, 4.0], None, 6, 2),
    ],
)
def test_it_stops_where_nothing_is_gained_and_the_best_counts(
    clean: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    errors: list[float],
    patience: int | None,
    n_epochs: int,
    best: int,
) -> None:
    seen: list[dict[str, np.ndarray]] = []

    def judge(network: Any, _: Any) -> float:
        seen.append(network.weights)
        return errors[len(seen) - 1]

    monkeypatch.setattr(denoiser_trainer, "judge", judge)
    weights = emdask.train_denoiser(clean=clean, snr=0.2, epochs=6, patience=patience, **SMALL)
    assert weights.about["trained_epochs"] == str(n_epochs) == str(len(seen))
    assert curve_of(weights).validation_loss.tolist() == errors[:n_epochs]
    assert_same(weights, Weights(seen[best - 1]))
    assert any((array != weights.arrays[name]).any() for name, array in seen[-1].items()) == (
        best != n_epochs
    )


def test_without_validation_the_last_counts(clean: np.ndarray) -> None:
    options: dict[str, Any] = {"snr": 0.2, "validation": 0, "patience": 1, **SMALL}
    weights = emdask.train_denoiser(clean=clean, epochs=3, **options)
    assert weights.about["trained_epochs"] == "3"
    assert curve_of(weights).validation_loss.isna().all()


def test_weights_tell_what_they_were_made_of(clean: np.ndarray, tmp_path: Path) -> None:
    weights = emdask.train_denoiser(
        clean=clean, snr=(0.1, 1), epochs=2, seed=4, about={"licence": "CC0"}, **SMALL
    )
    assert weights.about["method"] == "unet"
    assert weights.about["images"] == "96 of 32 x 32"
    assert weights.about["snr"] == "0.1 to 1"
    assert weights.about["seed"] == "4"
    assert weights.about["width"] == "4"
    assert weights.about["licence"] == "CC0"
    again = open_weights(save_weights(weights, tmp_path / "kept.safetensors"))
    assert again.digest == weights.digest
    curve = curve_of(weights)
    assert curve.epoch.tolist() == [1, 2]
    assert curve.step.tolist() == [6, 12]


def test_several_stacks(clean: np.ndarray) -> None:
    weights = emdask.train_denoiser(
        clean=[clean, blobs(32, side=48)], snr=0.2, epochs=1, crop_px=48, **SMALL
    )
    assert weights.about["images"] == "96 of 32 x 32, 32 of 48 x 48"


def test_progress_is_told(clean: np.ndarray) -> None:
    told: list[tuple[str, int, int]] = []
    emdask.train_denoiser(
        clean=clean, snr=0.2, epochs=2, on_progress=lambda *a: told.append(a), **SMALL
    )
    assert [done for _, done, _ in told] == list(range(1, 13))
    assert {total for *_, total in told} == {12}
    assert told[-1][0].startswith("epoch 2 of 2, loss ")


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"clean": None}, r"learns from noisy images and clean ones.*noise2void, which need none"),
        ({"snr": None}, r"either stack, or an snr at which noise is added"),
        ({"stack": blobs(12)}, r"either stack, or an snr at which noise is added"),
        ({"pair": blobs(12)}, r"it takes no pair"),
        ({"method": "noise2void"}, r"noisy images alone: it takes no clean images"),
        ({"method": "noise2noise"}, r"pairs of them: it takes no clean images"),
        ({"method": "noise2noise", "clean": None, "snr": None}, r"stack must be given"),
        ({"snr": (1, 0.1)}, r"the least snr comes first"),
        ({"snr": (1, 2, 3)}, r"snr must be a number, or the least and the largest"),
        ({"snr": 0}, r"snr must be"),
        ({"epochs": 0}, r"epochs must be an integer of at least 1"),
        ({"batch": 0}, r"batch must be"),
        ({"crop_px": 2}, r"crop_px must be an integer of at least 4"),
        ({"validation": 0.9}, r"validation must be a number in \[0, 0.5\]"),
        ({"precision": "half"}, r"precision must be one of auto, float32, bfloat16"),
        ({"patience": 0}, r"patience must be"),
        ({"n_processes": 0}, r"n_processes must be"),
        ({"learning_rate": 0}, r"learning_rate must"),
        ({"resume": True}, r"resume needs a checkpoint"),
        ({"widht": 4}, r"unet: no parameter of this name; got 'widht'. Did you mean width"),
        ({"width": 0}, r"unet: width must be an integer of at least 1"),
        ({"clean": []}, r"the list of stacks must not be empty"),
    ],
)
def test_wrong_input_is_refused(changes: dict[str, Any], match: str) -> None:
    how = {"clean": blobs(12), "snr": 0.2, "epochs": 1, **SMALL} | changes
    with pytest.raises(ParameterError, match=match):
        emdask.train_denoiser(**how)


def test_images_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ParameterError, match="as many and as large as those that they belong to"):
        emdask.train_denoiser(blobs(12), blobs(13), **SMALL)
    with pytest.raises(ParameterError, match="as many stacks of either kind"):
        emdask.train_denoiser([blobs(12), blobs(12)], [blobs(12)], **SMALL)


def test_methods_that_are_no_networks_are_refused() -> None:
    with pytest.raises(StackError, match=r"bm3d: is no network.*Networks: .*noise2noise.*unet"):
        emdask.train_denoiser(blobs(12), method="bm3d")
    with pytest.raises(UnknownMethodError, match="Did you mean unet"):
        emdask.train_denoiser(blobs(12), method="umet")


def test_models_of_other_methods_are_refused(clean: np.ndarray) -> None:
    weights = Weights({}, {"method": "noise2void"})
    with pytest.raises(ParameterError, match=r"trained for unet; got 'noise2void'. Call denoise"):
        emdask.denoise(clean, "unet", model=weights)
    with pytest.raises(ParameterError, match=r"noise2void: needs a model, as none ships"):
        emdask.denoise(clean, "noise2void")
    with pytest.raises(ParameterError, match=r"one of particles, micrographs, or a .safetensors"):
        emdask.denoise(clean, "unet", model="particle")
    with pytest.raises(FileNotFoundError, match=r"no/such.safetensors: no such file"):
        emdask.denoise(clean, "unet", model="no/such.safetensors")
    bad = Weights({"stem.weight": np.array([np.nan])}, {"method": "unet"})
    with pytest.raises(ParameterError, match="weights must be finite"):
        emdask.denoise(clean, "unet", model=bad)
