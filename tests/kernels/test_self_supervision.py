"""Training without clean images: pairs of one image, and hidden pixels."""

from __future__ import annotations

import pytest
import torch

from emdask.errors import ParameterError
from emdask.kernels.self_supervision import hide_pixels, recorrupt


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
def test_the_noise_of_the_two_is_independent(strength: float) -> None:
    signal = 5 * torch.sin(torch.arange(400.0) / 9).expand(4, 1, 400, 400)
    noisy = signal + torch.empty(4, 1, 400, 400).normal_(generator=seeded(1))
    pair = recorrupt(noisy, seeded(), strength=strength)
    noise = [(part - signal).flatten() for part in pair]
    assert abs(float(noise[0].var()) / (1 + strength**2) - 1) < 0.01
    assert abs(float(noise[1].var()) / (1 + strength**-2) - 1) < 0.01
    correlation = float(torch.corrcoef(torch.stack(noise))[0, 1])
    assert abs(correlation) < 4 / noise[0].numel() ** 0.5


def test_without_the_noise_of_the_image_they_would_not_be() -> None:
    """What the test of independence can tell."""
    pair = recorrupt(torch.zeros(1, 1, 100, 100), seeded())
    assert float(torch.corrcoef(torch.stack([part.flatten() for part in pair]))[0, 1]) < -0.99


def best_factor(given: torch.Tensor, target: torch.Tensor) -> float:
    """Of an image, to come as near to another as it can."""
    return float((given * target).sum() / given.square().sum())


def noisy_waves() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a smooth signal, and the signal."""
    signal = 2 * torch.sin(torch.arange(400.0) / 20).expand(4, 1, 400, 400)
    return signal + torch.empty(4, 1, 400, 400).normal_(generator=seeded(1)), signal


def test_what_suits_the_other_of_a_pair_suits_the_clean_image() -> None:
    noisy, signal = noisy_waves()
    given, target = recorrupt(noisy, seeded())
    assert best_factor(given, target) == pytest.approx(best_factor(given, signal), abs=0.01)
    assert best_factor(given, noisy) > best_factor(given, signal) + 0.2


def test_what_suits_hidden_pixels_suits_the_clean_image() -> None:
    noisy, signal = noisy_waves()
    given, hidden = hide_pixels(noisy, seeded(), share=0.1)
    found = best_factor(given[hidden], noisy[hidden])
    assert found == pytest.approx(best_factor(given[hidden], signal[hidden]), abs=0.02)
    # Pixels that are seen would be left as they are.
    assert found < 0.8


def test_a_pair_follows_its_generator() -> None:
    noisy = torch.randn(1, 1, 8, 8)
    first, again, other = (recorrupt(noisy, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def numbered(n: int, height: int, width: int) -> torch.Tensor:
    return torch.arange(float(n * height * width)).reshape(n, 1, height, width)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (30, 51), (4, 4), (2, 1), (1, 9)])
@pytest.mark.parametrize("reach", [1, 2, 5])
def test_hidden_pixels_hold_those_of_neighbours(height: int, width: int, reach: int) -> None:
    noisy = numbered(3, height, width)
    seen = set()
    for seed in range(20):
        given, hidden = hide_pixels(noisy, seeded(seed), share=0.06, reach=reach)
        assert torch.equal(given[~hidden], noisy[~hidden])
        own, put = noisy[hidden].long(), given[hidden].long()
        assert (own != put).all()
        area = height * width
        assert torch.equal(own // area, put // area)
        down = put % area // width - own % area // width
        right = put % width - own % width
        assert int(down.abs().max()) <= reach
        assert int(right.abs().max()) <= reach
        seen |= set(zip(down.tolist(), right.tolist(), strict=True))
    rows, columns = (2 * min(reach, n - 1) + 1 for n in (height, width))
    assert len(seen) <= rows * columns - 1
    if height >= 30:
        assert len(seen) == (2 * reach + 1) ** 2 - 1


@pytest.mark.parametrize("share", [0.01, 0.015, 0.1])
def test_one_pixel_of_each_square_is_hidden(share: float) -> None:
    side = round(share**-0.5)
    _, hidden = hide_pixels(torch.randn(2, 1, 4 * side, 6 * side), seeded(), share=share)
    squares = hidden.reshape(2, 4, side, 6, side).sum(dim=(2, 4))
    assert (squares == 1).all()
    places = sum(
        hide_pixels(torch.zeros(1, 1, 8, 8), seeded(k), share=1 / 64)[1].long() for k in range(500)
    )
    assert int((places > 0).sum()) == 64


def test_any_pixel_of_a_square_that_the_border_cuts_is_as_likely() -> None:
    images = torch.zeros(20000, 1, 1, 13)
    _, hidden = hide_pixels(images, seeded(), share=1 / 64)
    times = hidden.double().mean(dim=(0, 1, 2))
    for part in (times[:8], times[8:]):
        chance = 1 / len(part)
        deviation = (chance * (1 - chance) / len(images)) ** 0.5
        assert float((part - chance).abs().max()) < 4.5 * deviation


def test_what_is_hidden_follows_the_generator() -> None:
    noisy = torch.randn(1, 1, 32, 32)
    first, again, other = (hide_pixels(noisy, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[1], other[1])


def test_wrong_parameters_are_refused() -> None:
    noisy = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ParameterError, match="recorrupt: strength must be"):
        recorrupt(noisy, seeded(), strength=0)
    with pytest.raises(ParameterError, match="hide_pixels: share must be"):
        hide_pixels(noisy, seeded(), share=0)
    with pytest.raises(ParameterError, match="hide_pixels: reach must be"):
        hide_pixels(noisy, seeded(), reach=0)
