"""The U-net, and networks applied to images of any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from emdask.backend import run_on, to_device, to_host
from emdask.io.weights import Weights
from emdask.kernels import denoising_network
from emdask.kernels.denoising_network import (
    UNet,
    apply_network,
    build_unet,
    draw_unet,
    state_arrays,
)

WIDTHS = (4, 6, 8)


def random_unet(seed: int = 0, widths: tuple[int, ...] = WIDTHS) -> UNet:
    """All layers at random: none begins with zeros, so that everything reaches the answer."""
    network = draw_unet(seed, widths)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.2, generator=generator)
    return network.eval()


def random_weights(seed: int = 0) -> Weights:
    return Weights(state_arrays(random_unet(seed)))


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(3, 40, 56)).astype(np.float32)


def apply(images: Any, weights: Weights, **options: Any) -> Any:
    return apply_network(images, weights, build=build_unet, **({"sigma": 1.0} | options))


def test_it_begins_with_nothing() -> None:
    network = draw_unet(3)
    assert float(network(torch.randn(2, 1, 32, 48)).detach().abs().max()) == 0
    assert sum(parameter.numel() for parameter in network.parameters()) < 1.3e6


def test_the_same_seed_draws_the_same() -> None:
    first, again, other = (state_arrays(draw_unet(seed, WIDTHS)) for seed in (5, 5, 6))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
    assert any((array != other[name]).any() for name, array in first.items())


def test_signals_keep_their_size_through_the_layers() -> None:
    """Neither blown up nor wiped out: the first weights keep the variance, block by block."""
    network, seen = draw_unet(0), []
    for level in [*network.before, *network.after]:
        level.register_forward_hook(lambda _, __, out: seen.append(float(out.detach().std())))
    network(torch.randn(4, 1, 64, 64))
    assert len(seen) == 7
    assert 0.3 < min(seen) < max(seen) < 4


def test_arrays_make_the_same_network(images: np.ndarray) -> None:
    network = random_unet()
    again = build_unet(state_arrays(network))
    given = torch.from_numpy(images[:, None])
    with torch.inference_mode():
        np.testing.assert_array_equal(again(given).numpy(), network(given).numpy())


def test_arrays_of_another_network_are_refused() -> None:
    arrays = state_arrays(random_unet())
    with pytest.raises(RuntimeError, match="Missing key"):
        build_unet({name: array for name, array in arrays.items() if name != "head.bias"})
    with pytest.raises(KeyError):
        build_unet({"first": np.zeros(3)})


def test_what_it_reaches_is_bounded() -> None:
    network = random_unet()
    reach, centre, edge = network.reach_px, 120, 240
    assert reach == 2 * 2 + 4 * (2 + 4 + 8) + 8
    given = torch.randn(1, 1, edge, edge, generator=torch.Generator().manual_seed(0)).double()
    network = network.double()
    with torch.inference_mode():
        before = network(given)
        for place in (centre, centre + 5):
            changed = given.clone()
            changed[0, 0, place, place] += 100
            where = np.argwhere((network(changed) - before)[0, 0].abs().numpy() > 0)
            far = np.abs(where - place).max()
            assert reach // 2 < far <= reach


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 65), (64, 64)])
def test_any_size(rng: np.random.Generator, shape: tuple[int, int], device: str) -> None:
    given = rng.normal(size=(2, *shape)).astype(np.float32)
    result = apply(to_device(given, device), random_weights())
    found = to_host(result)
    assert type(result) is type(to_device(given, device))
    assert found.shape == given.shape
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_tiles_have_no_seams(rng: np.random.Generator) -> None:
    weights = random_weights()
    given = rng.normal(size=(1, 301, 410)).astype(np.float32)
    whole = apply(given, weights, tile_px=512)
    for tile_px in (64, 96, 200):
        np.testing.assert_allclose(apply(given, weights, tile_px=tile_px), whole, atol=2e-5)


def test_a_narrower_margin_would_show(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test of seams would find: tiles that overlap too little differ."""
    given = rng.normal(size=(1, 301, 410)).astype(np.float32)
    whole = apply(given, random_weights(1), tile_px=512)
    monkeypatch.setattr(UNet, "reach_px", 8)
    assert np.abs(apply(given, random_weights(1), tile_px=96) - whole).max() > 1e-2


def test_images_are_treated_one_by_one(images: np.ndarray) -> None:
    weights = random_weights()
    together = apply(images, weights)
    for image, found in zip(images, together, strict=True):
        np.testing.assert_array_equal(apply(image[None], weights)[0], found)


def test_threads_answer_as_one_does(images: np.ndarray) -> None:
    weights = random_weights()
    alone = apply(images, weights)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda image: apply(image[None], weights)[0], images))
    np.testing.assert_array_equal(together, alone)


def test_threads_of_the_user_stay(images: np.ndarray) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        apply(images, random_weights())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_grey_levels_have_no_scale(images: np.ndarray) -> None:
    plain = apply(images, random_weights())
    scaled = apply(images * 40 - 300, random_weights(), sigma=40.0)
    np.testing.assert_allclose((scaled + 300) / 40, plain, atol=1e-4)


def test_the_noise_is_estimated(images: np.ndarray) -> None:
    """White noise of deviation 3 is divided by 3."""
    given = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)[:, :64, :64]
    noise = np.random.default_rng(5).normal(scale=3.0, size=given.shape)
    estimated = apply((0.2 * given + noise).astype("f4"), random_weights(), sigma="auto")
    told = apply((0.2 * given + noise).astype("f4"), random_weights(), sigma=3.0)
    assert np.abs(estimated - told).max() < 0.1 * np.abs(told).max()


def test_images_without_noise_stay(images: np.ndarray) -> None:
    flat = np.full((2, 24, 24), 7, np.int16)
    np.testing.assert_array_equal(apply(flat, random_weights(), sigma="auto"), 7)


def test_no_images(images: np.ndarray) -> None:
    assert apply(images[:0], random_weights()).shape == (0, 40, 56)


def test_a_full_card_is_tried_again_alone(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch, images: np.ndarray
) -> None:
    weights = random_weights()
    find, failures = denoising_network.kept_network, [torch.OutOfMemoryError("full")]

    def run_out_once(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return find(*args)

    monkeypatch.setattr(denoising_network, "kept_network", run_out_once)
    found = run_on("cuda", apply, images, weights, n_bytes=1000, what="images")
    np.testing.assert_array_equal(found, apply(images, weights))
