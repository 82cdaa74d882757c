"""The scoring network: a sliding window whose answer depends on its window alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from emdask.backend import run_on, to_device, to_host
from emdask.kernels import scoring_network, torch_arrays
from emdask.kernels.scoring_network import FIELD_PX, STEP_PX, Network, score_network


def random_weights(seed: int = 0, width: int = 8) -> Any:
    torch.manual_seed(seed)
    arrays = {name: t.numpy() for name, t in Network(4, width).state_dict().items()}
    return SimpleNamespace(arrays=arrays, digest=f"{seed} {width}")


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(150, 213)).astype(np.float32)


def test_the_map_is_the_sliding_window(image: np.ndarray) -> None:
    weights = random_weights()
    scores, step, offset = score_network(image, weights)
    assert scores.shape == (38, 54)
    assert (step, offset) == (STEP_PX, 0)
    half = FIELD_PX // 2
    mirrored = np.pad(image, half + STEP_PX, mode="symmetric")[STEP_PX:, STEP_PX:]
    network = scoring_network.build_network(weights.arrays)
    for i, j in [(0, 0), (11, 13), (20, 30), (37, 53), (37, 0)]:
        rows, columns = (slice(STEP_PX * k, STEP_PX * k + FIELD_PX) for k in (i, j))
        window = torch.from_numpy(mirrored[rows, columns].copy())[None, None]
        with torch.no_grad():
            wanted = torch.sigmoid(network(window))
        assert wanted.shape == (1, 1, 1, 1)
        assert scores[i, j] == pytest.approx(float(wanted), abs=1e-5)


@pytest.mark.parametrize("tile_px", [1, 37, 64, 150])
def test_tiles_do_not_show(image: np.ndarray, tile_px: int) -> None:
    weights = random_weights()
    whole = score_network(image, weights, tile_px=4096).scores
    parts = score_network(image[:90, :101], weights, tile_px=tile_px).scores
    other = score_network(image[:90, :101], weights, tile_px=4096).scores
    np.testing.assert_allclose(parts, other, atol=1e-5)
    # Far from the borders the rest of the image does not matter.
    far = slice(0, (90 - FIELD_PX // 2) // STEP_PX), slice(0, (101 - FIELD_PX // 2) // STEP_PX)
    np.testing.assert_allclose(parts[far], whole[far], atol=1e-5)


def test_devices_agree(device: str, image: np.ndarray) -> None:
    scored = score_network(to_device(image, device), random_weights()).scores
    host = score_network(image, random_weights()).scores
    # On a card numbers have 16 bits.
    tolerance = 1e-5 if device == "cpu" else 0.02
    np.testing.assert_allclose(to_host(scored), host, atol=tolerance)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (40, 7)])
def test_images_smaller_than_the_window(shape: tuple[int, int]) -> None:
    scores = score_network(np.ones(shape, np.float32), random_weights()).scores
    assert scores.shape == tuple(-(-n // STEP_PX) for n in shape)
    assert np.isfinite(scores).all()


def test_folding_normalisation_away_changes_nothing() -> None:
    torch.manual_seed(3)
    network = Network(4, 8, normalised=True)
    images = torch.randn(2, 1, FIELD_PX + 12, FIELD_PX + 8)
    for _ in range(3):
        network(3 * images + 1)
    network.eval()
    folded = scoring_network.build_network(scoring_network.fold(network))
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images), atol=1e-4, rtol=1e-4)


def test_threads_of_the_user_stay(image: np.ndarray) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        score_network(image, random_weights())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_that_overlap_leave_what_the_user_wants() -> None:
    """Whichever leaves first; threads that begin afterwards take it on."""
    with ThreadPoolExecutor(1) as users, ThreadPoolExecutor(1) as a, ThreadPoolExecutor(1) as b:
        at_first = users.submit(torch.get_num_threads).result()
        users.submit(torch.set_num_threads, 3).result()
        for first, second in ((a, b), (b, a)):
            for change in ("__enter__", "__exit__"):
                for pool in (first, second):
                    pool.submit(getattr(torch_arrays.one_torch_thread, change)).result()
                    if change == "__enter__":
                        assert pool.submit(torch.get_num_threads).result() == 1
            with ThreadPoolExecutor(1) as new:
                numbers = [p.submit(torch.get_num_threads).result() for p in (users, a, b, new)]
            assert numbers == [3, 3, 3, 3]
        users.submit(torch.set_num_threads, at_first).result()


def test_threads_score_as_one_does(rng: np.random.Generator) -> None:
    weights = random_weights()
    images = rng.normal(size=(6, 120, 130)).astype(np.float32)
    alone = [score_network(image, weights).scores for image in images]
    with ThreadPoolExecutor(3) as pool:
        together = [m.scores for m in pool.map(lambda image: score_network(image, weights), images)]
    np.testing.assert_array_equal(together, alone)


def test_a_full_card_is_a_memory_error(monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> None:
    """And what PyTorch keeps is given back first, so that a second try may find room."""
    events = []

    def run_out(*args: Any) -> Network:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(scoring_network, "kept_network", run_out)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("given back"))
    with pytest.raises(MemoryError, match="Tried to allocate 2 GiB") as caught:
        score_network(image, random_weights())
    assert events == ["given back"]
    assert caught.value.__context__ is None


def test_a_full_card_is_tried_again_alone(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch, image: np.ndarray
) -> None:
    weights = random_weights()
    find, failures = scoring_network.kept_network, [torch.OutOfMemoryError("full")]

    def run_out_once(*args: Any) -> Network:
        if failures:
            raise failures.pop()
        return find(*args)

    monkeypatch.setattr(scoring_network, "kept_network", run_out_once)
    found = run_on("cuda", score_network, image, weights, n_bytes=1000, what="a micrograph")
    np.testing.assert_array_equal(found.scores, score_network(image, weights).scores)


def test_networks_are_made_once(monkeypatch: pytest.MonkeyPatch, image: np.ndarray) -> None:
    made = []
    build = scoring_network.build_network
    monkeypatch.setattr(
        scoring_network, "build_network", lambda arrays: made.append(1) or build(arrays)
    )
    for seed in (101, 102, 101, 102):
        score_network(image, random_weights(seed))
    assert len(made) == 2
    for seed in range(103, 103 + torch_arrays.N_KEPT):
        score_network(image, random_weights(seed))
    assert len(torch_arrays._kept) == torch_arrays.N_KEPT
