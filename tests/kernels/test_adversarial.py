"""What generator and discriminator lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import beta as beta_function
from torch.nn import functional

from emdask.errors import ParameterError
from emdask.kernels.adversarial import (
    KINDS,
    Adversary,
    discriminator_loss,
    draw_discriminator,
    generator_loss,
    gradient_penalty,
)

LOGITS = torch.tensor([-6.0, -1.0, 0.0, 0.4, 2.0, 7.0], dtype=torch.float64)
OTHERS = torch.tensor([-4.0, -2.5, 0.1, 1.0, 3.0, 5.0], dtype=torch.float64)


def gradients(adversary: Adversary) -> tuple[torch.Tensor, ...]:
    real, fake = (logits.clone().requires_grad_() for logits in (LOGITS, OTHERS))
    (discriminator_loss(adversary, real, fake) + 2 * generator_loss(adversary, fake)).backward()
    assert real.grad is not None
    assert fake.grad is not None
    return real.grad, fake.grad


def beta(a: float, b: float) -> Adversary:
    return Adversary(kind="beta", alpha=a, beta=b)


def test_vanilla_is_the_cross_entropy() -> None:
    ones, zeros = torch.ones_like(LOGITS), torch.zeros_like(LOGITS)
    known = functional.binary_cross_entropy_with_logits
    found = discriminator_loss(Adversary(kind="vanilla"), LOGITS, OTHERS)
    torch.testing.assert_close(found, known(LOGITS, ones) + known(OTHERS, zeros))
    found = generator_loss(Adversary(kind="vanilla"), OTHERS)
    torch.testing.assert_close(found, known(OTHERS, ones))


def test_least_squares_are_of_one_and_of_nothing() -> None:
    adversary = Adversary(kind="least_squares")
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0, 6.0])
    assert float(discriminator_loss(adversary, real, fake)) == pytest.approx(0.5 * (2 + 12))
    assert float(generator_loss(adversary, fake)) == pytest.approx(0.5 * (1 + 1 + 25) / 3)


def test_wasserstein_is_the_difference_of_means() -> None:
    adversary = Adversary(kind="wasserstein")
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0, 6.0])
    assert float(discriminator_loss(adversary, real, fake)) == pytest.approx(2 - 2)
    assert float(discriminator_loss(adversary, real, fake - 1)) == pytest.approx(1 - 2)
    assert float(generator_loss(adversary, fake)) == pytest.approx(-2)


def test_the_family_at_nothing_is_vanilla() -> None:
    vanilla, family = Adversary(kind="vanilla"), beta(0, 0)
    for loss in (
        lambda adversary: discriminator_loss(adversary, LOGITS, OTHERS),
        lambda adversary: generator_loss(adversary, OTHERS),
    ):
        torch.testing.assert_close(loss(family), loss(vanilla), rtol=1e-9, atol=0)
    for found, known in zip(gradients(family), gradients(vanilla), strict=True):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=1e-15)


def test_the_family_at_one_is_quadratic_in_the_probability() -> None:
    real, fake = torch.sigmoid(LOGITS), torch.sigmoid(OTHERS)
    known = (0.5 * (1 - real) ** 2).mean() + (0.5 * fake**2).mean()
    found = discriminator_loss(beta(1, 1), LOGITS, OTHERS)
    torch.testing.assert_close(found, known, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.0, -0.5), (-0.5, 0.3), (3.0, 2.0)])
def test_scores_are_the_integrals_of_the_family(a: float, b: float) -> None:
    """S(t, 1) = -∫_t^1 c^(α-1) (1-c)^β dc, S(t, 0) = -∫_0^t c^α (1-c)^(β-1) dc."""
    for logit in (-3.0, -0.5, 1.5):
        t = 1 / (1 + np.exp(-logit))
        at_real = quad(lambda c: c ** (a - 1) * (1 - c) ** b, t, 1)[0]
        at_fake = quad(lambda c: c**a * (1 - c) ** (b - 1), 0, t)[0]
        given = torch.tensor([logit], dtype=torch.float64)
        assert float(generator_loss(beta(a, b), given)) == pytest.approx(at_real, rel=1e-6)
        found = float(discriminator_loss(beta(a, b), given, given))
        assert found == pytest.approx(at_real + at_fake, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (1.0, -0.5)])
def test_gradients_are_those_of_the_values(kind: str, a: float, b: float) -> None:
    adversary = Adversary(kind=kind, alpha=a, beta=b)
    given = LOGITS.clone().requires_grad_()
    torch.autograd.gradcheck(
        lambda logits: discriminator_loss(adversary, logits, -logits / 2), given, atol=1e-6
    )
    torch.autograd.gradcheck(lambda logits: generator_loss(adversary, logits), given, atol=1e-6)
    torch.autograd.gradgradcheck(lambda logits: generator_loss(adversary, logits), given, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 0.5), (0.1, 3.0), (10.0, 10.0)])
def test_scores_are_bounded_above_nothing(a: float, b: float, dtype: torch.dtype) -> None:
    """So one image that is far off counts for little; of vanilla it would count for all."""
    far = torch.tensor([-1000.0, -50.0, 50.0, 1000.0], dtype=dtype).requires_grad_()
    loss = discriminator_loss(beta(a, b), far, far)
    assert loss.dtype == dtype
    bound = beta_function(a, b + 1) + beta_function(a + 1, b)
    assert 0 <= float(loss.detach()) <= bound
    loss.backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()
    assert far.grad.abs().max() < 0.01
    assert float(discriminator_loss(Adversary(kind="vanilla"), far, far).detach()) > 500


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (10.0, -0.9), (10.0, 10.0), (0.2, 0.0)])
def test_scores_far_off_are_those_of_the_limits(a: float, b: float) -> None:
    """At t = 0 the integral is the beta function; near t = 1 only (1 - c)^β is left of it."""
    low, high = (torch.tensor([logit], dtype=torch.float64) for logit in (-1000.0, 45.0))
    adversary = beta(a, b)
    assert float(generator_loss(adversary, low)) == pytest.approx(beta_function(a, b + 1), rel=1e-9)
    left = np.exp(-45 * (b + 1)) / (b + 1)
    assert float(generator_loss(adversary, high)) == pytest.approx(left, rel=1e-9)


def test_scores_without_bound_go_on_beyond_the_quadrature() -> None:
    """α = 0 is lost logit by logit; α < 0 exponentially."""
    low = torch.tensor([-70.0], dtype=torch.float64)
    assert float(generator_loss(beta(0, 0), low)) == pytest.approx(70, rel=1e-12)
    t = 1 / (1 + np.exp(70.0))
    found = float(generator_loss(beta(-0.5, 0), low))
    assert found == pytest.approx(2 * (t**-0.5 - 1), rel=1e-9)


def test_the_penalty_is_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, 1, 8, 8, generator=generator) for _ in range(2))
    direction = torch.randn(1, 1, 8, 8, generator=generator)
    direction /= 8 * direction.norm()
    for length in (1.0, 3.0):
        found = gradient_penalty(
            lambda images, k=length: (k * images * direction).sum((1, 2, 3))[:, None],
            real,
            fake,
            generator,
        )
        torch.testing.assert_close(found, torch.tensor((length - 1.0) ** 2), atol=1e-5, rtol=1e-5)


def test_the_penalty_is_of_the_mean_of_an_images_logits() -> None:
    images, generator = torch.ones(3, 1, 4, 4), torch.Generator()
    found = gradient_penalty(
        lambda x: torch.stack([x[:, 0, 0, 0], 5 * x[:, 0, 1, 1]], dim=1), images, images, generator
    )
    # Its gradient has the parts 1/2 and 5/2; of 16 pixels.
    assert float(found.detach()) == pytest.approx((4 * 6.5**0.5 - 1) ** 2, rel=1e-6)


def test_the_penalty_is_between_the_images() -> None:
    """At one place a pair, drawn from the generator alone."""
    seen = []

    def square(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.detach())
        return images.square().sum((1, 2, 3))[:, None] / 2

    real, fake = torch.full((6, 1, 4, 4), 2.0), torch.full((6, 1, 4, 4), -1.0)
    found = [
        gradient_penalty(square, real, fake, torch.Generator().manual_seed(seed)).detach()
        for seed in (0, 0, 1)
    ]
    places = seen[0][:, 0, 0, 0]
    assert torch.equal(seen[0], places[:, None, None, None].expand_as(real))
    assert len(set(places.tolist())) == 6
    assert -1 <= float(places.min()) < float(places.max()) <= 2
    # The gradient of the square is the image, whose norm is 4 times what its pixels are; of 16.
    torch.testing.assert_close(found[0], (16 * places.abs() - 1).square().mean())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_penalty_does_not_depend_on_the_size_of_images() -> None:
    small = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = [
        gradient_penalty(lambda x: x.square().mean((2, 3)), images, images, torch.Generator())
        for images in (small, small.repeat(1, 1, 4, 4))
    ]
    torch.testing.assert_close(found[1], found[0])
    assert float(found[0].detach()) > 0.1


def test_the_penalty_reaches_the_discriminator() -> None:
    network = draw_discriminator(0, (4, 8))
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 32, 32, generator=generator) for _ in range(2))
    gradient_penalty(network, real, fake, generator).backward()
    assert network.layers[0].weight.grad.abs().sum() > 0


def test_the_penalty_of_no_gradient_is_finite() -> None:
    images, factor = torch.ones(2, 1, 4, 4), torch.zeros((), requires_grad=True)
    found = gradient_penalty(
        lambda x: (factor * x).sum((1, 2, 3))[:, None], images, images, torch.Generator()
    )
    found.backward()
    assert float(found.detach()) == 1
    assert factor.grad is not None
    assert torch.isfinite(factor.grad)


def test_weights_are_drawn_with_the_deviations_of_leaky_rectifiers() -> None:
    network = draw_discriminator(0)
    assert [layer.weight.shape[:2] for layer in network.layers] == [
        (32, 1),
        (64, 32),
        (96, 64),
        (128, 96),
    ]
    for layer in (*network.layers, network.head):
        n_terms = layer.weight[0].numel()
        known = (2 / (1 + 0.2**2) / n_terms) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(known, rel=0.1)
        assert not layer.bias.detach().any()


def test_gradients_reach_all_weights_and_the_images() -> None:
    network = draw_discriminator(0)
    images = torch.randn(2, 1, 48, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    generator_loss(beta(1, 1), network(images)).backward()
    for tensor in (images, *network.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_an_answer_does_not_depend_on_the_batch() -> None:
    network = draw_discriminator(0, (4, 8))
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images)[:1], network(images[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(16, 16), (17, 31), (33, 50), (128, 128)])
def test_discriminators_take_any_size(shape: tuple[int, int]) -> None:
    network = draw_discriminator(3)
    logits = network(torch.randn(2, 1, *shape))
    assert logits.shape == (2, 1, *(n // 16 for n in shape))
    again = draw_discriminator(3)(torch.ones(1, 1, *shape))
    assert torch.equal(again, network(torch.ones(1, 1, *shape)))
    assert not torch.equal(again, draw_discriminator(4)(torch.ones(1, 1, *shape)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_moves_towards_what_is_real(kind: str) -> None:
    """Numbers about 2 are real; the generator begins with numbers about -1."""
    adversary = Adversary(kind=kind, alpha=0.5, beta=0.5)
    generator = torch.Generator().manual_seed(0)
    shift = torch.tensor(-1.0, requires_grad=True)
    network = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    of_network = torch.optim.Adam(network.parameters(), 0.02, (0.5, 0.9))
    of_shift = torch.optim.Adam([shift], 0.02, (0.5, 0.9))
    for _ in range(300):
        real = 2 + 0.5 * torch.randn(64, 1, generator=generator)
        fake = shift + 0.5 * torch.randn(64, 1, generator=generator)
        loss = discriminator_loss(adversary, network(real), network(fake.detach()))
        if kind == "wasserstein":
            wide = [part[:, None, None] for part in (real, fake.detach())]
            flat: Any = lambda images: network(images[:, 0, 0])  # noqa: E731
            loss = loss + gradient_penalty(flat, *wide, generator)
        of_network.zero_grad()
        loss.backward()
        of_network.step()
        of_shift.zero_grad()
        generator_loss(adversary, network(fake)).backward()
        of_shift.step()
    assert abs(float(shift.detach()) - 2) < 0.7


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"kind": "hinge"}, "adversary: kind must be one of vanilla, least_squares"),
        ({"alpha": -1}, r"adversary: alpha must be a number in \[-0.9, 10\]; got -1"),
        ({"beta": 11}, "adversary: beta must be"),
        ({"penalty": -1}, "adversary: penalty must be a number of at least 0"),
        ({"penalty": float("nan")}, "adversary: penalty must be"),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        Adversary(**changes)
