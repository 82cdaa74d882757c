"""What generator and discriminator lose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
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


def test_scores_are_bounded_above_nothing() -> None:
    """So one image that is far off counts for little; of vanilla it would count for all."""
    far = torch.tensor([-50.0, 50.0]).requires_grad_()
    loss = discriminator_loss(beta(1, 1), far, far)
    assert 0 <= float(loss.detach()) <= 1
    loss.backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()
    assert float(discriminator_loss(Adversary(kind="vanilla"), far, far).detach()) > 40


def test_the_penalty_is_of_the_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, 1, 8, 8, generator=generator) for _ in range(2))
    direction = torch.randn(1, 1, 8, 8, generator=generator)
    direction /= direction.norm()
    for length in (1.0, 3.0):
        found = gradient_penalty(
            lambda images, k=length: (k * images * direction).sum((1, 2, 3))[:, None],
            real,
            fake,
            generator,
        )
        torch.testing.assert_close(found, torch.tensor((length - 1.0) ** 2), atol=1e-5, rtol=1e-5)


def test_the_penalty_reaches_the_discriminator() -> None:
    network = draw_discriminator(0, (4, 8))
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(2, 1, 32, 32, generator=generator) for _ in range(2))
    gradient_penalty(network, real, fake, generator).backward()
    assert network.layers[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(16, 16), (33, 50), (128, 128)])
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
        ({"kind": "hinge"}, "gan: loss must be one of vanilla, least_squares"),
        ({"alpha": -1}, "gan: alpha must be"),
        ({"beta": 11}, "gan: beta must be"),
        ({"penalty": -1}, "gan: penalty must be"),
    ],
)
def test_wrong_parameters_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        Adversary(**changes)
