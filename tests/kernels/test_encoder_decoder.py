"""Encoder-decoders: any size, no checkerboard, latent variables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from emdask.kernels.denoising_network import state_arrays
from emdask.kernels.encoder_decoder import (
    build_encoder_decoder,
    build_variational,
    draw_encoder_decoder,
    draw_variational,
    kl_divergence,
    sample_latent,
)

WIDTHS = (4, 6, 8)
PAIRS = [(draw_encoder_decoder, build_encoder_decoder), (draw_variational, build_variational)]


@pytest.fixture(params=PAIRS, ids=["plain", "variational"])
def pair(request: pytest.FixtureRequest) -> Any:
    return request.param


def random_network(draw: Any, seed: int = 0) -> Any:
    network = draw(seed, WIDTHS)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.3, generator=generator)
    return network.eval()


@pytest.mark.parametrize("shape", [(8, 8), (32, 24), (64, 128)])
def test_images_keep_their_size(pair: Any, shape: tuple[int, int]) -> None:
    network = random_network(pair[0])
    assert network.stride == 8
    with torch.inference_mode():
        assert network(torch.randn(3, 1, *shape)).shape == (3, 1, *shape)


def test_it_begins_weakly_and_by_its_seed(pair: Any) -> None:
    draw, _ = pair
    assert 0 < float(draw(0)(torch.randn(4, 1, 64, 64)).detach().std()) < 0.7
    first, again, other = (state_arrays(draw(seed, WIDTHS)) for seed in (1, 1, 2))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_kernels_are_multiples_of_strides(pair: Any) -> None:
    strided = [
        layer
        for layer in random_network(pair[0]).modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.stride != (1, 1)
    ]
    assert len(strided) == 2 * len(WIDTHS)
    for layer in strided:
        assert layer.kernel_size[0] % layer.stride[0] == 0


def test_no_checkerboard_where_all_is_even() -> None:
    """Weights of one value make flat images flat inside; a kernel of 3 would not."""
    network = draw_encoder_decoder(0, WIDTHS).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01)
        inside = network(torch.ones(1, 1, 160, 160))[0, 0, 72:88, 72:88]
        assert float(inside.std() / inside.mean()) < 1e-5
        layer = nn.ConvTranspose2d(1, 1, 3, stride=2, padding=1, bias=False)
        layer.weight.fill_(1)
        uneven = layer(torch.ones(1, 1, 20, 20))[0, 0, 8:16, 8:16]
    assert float(uneven.std() / uneven.mean()) > 0.1


def test_steps_of_a_stride_commute(pair: Any) -> None:
    network = random_network(pair[0])
    image = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        moved = network(torch.roll(image, (8, 16), (2, 3)))
        expected = torch.roll(network(image), (8, 16), (2, 3))
    inside = slice(96, 160)
    torch.testing.assert_close(moved[..., inside, inside], expected[..., inside, inside])


def test_what_it_reaches_is_bounded(pair: Any) -> None:
    network = random_network(pair[0]).double()
    image = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0)).double()
    with torch.inference_mode():
        before = network(image)
        for place in (128, 131, 135):
            changed = image.clone()
            changed[0, 0, place, place] += 100
            where = np.argwhere((network(changed) - before)[0, 0].abs().numpy() > 0)
            far = np.abs(where - place).max()
            assert network.reach_px / 3 < far <= network.reach_px


def test_the_bound_holds_for_every_pixel_of_a_cell(pair: Any) -> None:
    """Weights above 0 let through all that layers can: nothing cancels, nothing is cut off."""
    network = random_network(pair[0]).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.01 if parameter.ndim > 1 else 0)
    farthest = []
    for place in range(64, 64 + network.stride):
        image = torch.zeros(1, 1, 128, 16).double()
        image[0, 0, place, 8] = 1e9
        with torch.inference_mode():
            rows = np.nonzero(network(image)[0, 0].any(dim=1).numpy())[0]
        farthest.append(int(np.abs(rows - place).max()))
    assert network.reach_px - 2 <= max(farthest) <= network.reach_px


def test_arrays_make_the_same_network(pair: Any) -> None:
    draw, build = pair
    network = random_network(draw)
    again = build(state_arrays(network))
    image = torch.randn(1, 1, 32, 40)
    with torch.inference_mode():
        assert torch.equal(again(image), network(image))
    with pytest.raises(KeyError):
        build({"stem.weight": np.zeros(3)})
    arrays = state_arrays(network)
    del arrays["decoder.head.bias"]
    with pytest.raises(RuntimeError, match="Missing key"):
        build(arrays)


def test_what_is_made_of_arrays_has_their_widths_and_is_ready(pair: Any) -> None:
    draw, build = pair
    made = build(state_arrays(draw(0, (3, 5))))
    assert made.stride == 4
    assert not made.training
    weight = made.encoder.down[0].weight
    assert weight.shape[:2] == (5, 3)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert build_variational(state_arrays(draw_variational(0, WIDTHS, latent=3))).decode(
        torch.zeros(1, 3, 2, 2)
    ).shape == (1, 1, 16, 16)


def test_one_network_is_not_made_of_another() -> None:
    with pytest.raises(KeyError):
        build_variational(state_arrays(draw_encoder_decoder(0, WIDTHS)))
    with pytest.raises(RuntimeError, match="Unexpected key"):
        build_encoder_decoder(state_arrays(draw_variational(0, WIDTHS)))


def test_it_learns(pair: Any) -> None:
    """Blobs in noise as strong as they are, others than those of training."""
    generator = torch.Generator().manual_seed(0)
    place = torch.arange(16.0)

    def blobs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        y, x = 4 + 8 * torch.rand(2, n, 1, 1, 1, generator=generator)
        clean = 4 * torch.exp(-((place[:, None] - y) ** 2 + (place - x) ** 2) / 8)
        return clean + torch.empty_like(clean).normal_(generator=generator), clean

    network = pair[0](0, (8, 16))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        noisy, clean = blobs(32)
        optimiser.zero_grad()
        (network(noisy) - clean).square().mean().backward()
        optimiser.step()
    noisy, clean = blobs(200)
    with torch.inference_mode():
        error = float((network(noisy) - clean).square().mean())
    assert error < 0.4 * float(clean.var())


def test_divergence_is_that_of_normal_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 2, 4, 4, generator=generator)
    log_variance = torch.randn(3, 2, 4, 4, generator=generator)
    known = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, torch.exp(log_variance / 2)),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean)),
    )
    torch.testing.assert_close(kl_divergence(mean, log_variance), known.sum((1, 2, 3)))


def test_latent_variables_are_drawn_about_their_means() -> None:
    mean = torch.full((4, 2, 50, 50), 3.0, requires_grad=True)
    drawn = sample_latent(mean, torch.full_like(mean, -2.0), torch.Generator().manual_seed(0))
    assert abs(float(drawn.mean().detach()) - 3) < 0.02
    assert abs(float(drawn.std().detach()) - np.exp(-1)) < 0.01
    drawn.sum().backward()
    assert mean.grad is not None
    assert torch.equal(mean.grad, torch.ones_like(mean))


def test_what_is_decoded_is_of_the_means() -> None:
    network = random_network(draw_variational)
    image = torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        mean, log_variance = network.encode(image)
        assert mean.shape == log_variance.shape == (2, 8, 4, 4)
        assert torch.equal(network(image), network.decode(mean))
    fresh = draw_variational(0, WIDTHS)
    assert float(fresh.encode(image)[1].detach().std()) == 0
