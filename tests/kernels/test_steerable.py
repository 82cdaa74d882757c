"""Steerable expansion: adjoint, steered, and accurate as its docstrings say."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from emdask.backend import why_no_cuda
from emdask.errors import ParameterError
from emdask.kernels import steerable
from emdask.kernels.steerable import combine, evaluate, expand, mirror, rotate, steerable_basis
from emdask.kernels.transforms import to_half_planes, to_images

# Of what is stored in single precision.
SINGLE = 2e-6


def move(array: Any, device: str) -> Any:
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


def back(array: Any) -> Any:
    return array if isinstance(array, np.ndarray) and not hasattr(array, "get") else array.get()


def noise(n: int, box_px: int) -> Any:
    return np.random.default_rng(0).normal(size=(n, box_px, box_px)).astype("f4")


def draw_coefs(n: int, basis: steerable.SteerableBasis) -> Any:
    rng = np.random.default_rng(1)
    coefs = rng.normal(size=(n, len(basis.orders), 2)).astype("f4").view("c8")[..., 0]
    coefs.imag[:, basis.slices[0]] = 0
    return coefs


def counts(basis: steerable.SteerableBasis) -> Any:
    """How often a coefficient stands in the image: order -k is the conjugate of k."""
    return np.where(basis.orders == 0, 1, 2)


def blobs(box_px: int, turn_deg: float = 0.0, flip: int = 1) -> Any:
    """Gaussians at 40 % of the radius and less, turned and mirrored exactly."""
    y, x = np.mgrid[:box_px, :box_px] - float(box_px // 2)
    cos, sin = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    image = np.zeros((box_px, box_px))
    for mass, x0, y0 in [(1, 0.16, 0.09), (2, -0.15, 0.13), (1.5, 0.06, -0.19)]:
        x0, y0 = x0 * box_px, flip * y0 * box_px
        squares = (x - (x0 * cos - y0 * sin)) ** 2 + (y - (x0 * sin + y0 * cos)) ** 2
        image += mass * np.exp(-squares / 2 / (0.05 * box_px) ** 2)
    return image.astype("f4")


@pytest.mark.parametrize(("box_px", "band"), [(32, 0.5), (33, 0.5), (32, 0.3)])
def test_expanding_is_the_adjoint_of_evaluating(device: str, box_px: int, band: float) -> None:
    basis = steerable_basis(box_px, band=band)
    images, coefs = noise(5, box_px), draw_coefs(5, basis)
    expanded = back(expand(to_half_planes(move(images, device)), basis))
    evaluated = back(to_images(evaluate(move(coefs, device), basis), (box_px, box_px)))
    assert (expanded.dtype, expanded.shape) == (np.complex64, coefs.shape)
    products = ((expanded * coefs.conj()).real * counts(basis)).sum(1)
    scale = np.linalg.norm(images[0]) * np.linalg.norm(evaluated[0])
    np.testing.assert_allclose(products, (images * evaluated).sum((1, 2)), atol=SINGLE * scale)


@pytest.mark.parametrize("box_px", [32, 33])
def test_turned_and_mirrored_images_have_turned_and_mirrored_coefficients(
    device: str, box_px: int
) -> None:
    basis = steerable_basis(box_px)
    images = np.stack([blobs(box_px), blobs(box_px, 33.0), blobs(box_px, flip=-1)])
    coefs = expand(to_half_planes(move(images, device)), basis)
    atol = 1e-5 * abs(back(coefs)).max()
    turned = rotate(coefs[:1], basis, 33.0)
    np.testing.assert_allclose(back(turned), back(coefs[1:2]), atol=atol)
    np.testing.assert_allclose(back(mirror(coefs[:1])), back(coefs[2:]), atol=atol)


# The stand-in for a card multiplies by a BLAS of the CPU, for which this does not hold.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_an_image_does_not_depend_on_those_beside_it(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    monkeypatch.setattr(steerable, "IMAGES_AT_ONCE", 16)
    basis = steerable_basis(24)
    terms = move(to_half_planes(noise(37, 24)), device)
    coefs = expand(terms, basis)
    images = back(evaluate(coefs, basis))
    for i in (0, 1, 15, 16, 21, 36):
        alone = expand(terms[i : i + 1], basis)
        np.testing.assert_array_equal(back(alone)[0], back(coefs)[i])
        np.testing.assert_array_equal(back(evaluate(alone, basis))[0], images[i])


def test_a_basis_is_made_once_in_a_process_and_travels_as_its_numbers() -> None:
    basis = steerable_basis(24)
    assert steerable_basis(24, radius_px=12.0, band=0.5) is basis
    assert pickle.loads(pickle.dumps(basis)) is basis
    assert len(pickle.dumps(basis)) < 200


def test_combined_functions_are_sums_of_those_of_the_basis(device: str) -> None:
    basis = steerable_basis(32)
    rng = np.random.default_rng(4)
    matrices = [rng.normal(size=(own.shape[1], k % 4)) for k, own in enumerate(basis.radial)]
    few = combine(basis, matrices)
    assert len(few.orders) == sum(k % 4 for k in range(len(basis.radial)))
    terms = to_half_planes(move(noise(3, 32), device))
    expected, found = back(expand(terms, basis)), back(expand(terms, few))
    coefs = draw_coefs(3, few)
    whole = np.zeros((3, len(basis.orders)), np.complex64)
    for k, matrix in enumerate(matrices):
        own, part = few.slices[k], basis.slices[k]
        np.testing.assert_allclose(found[:, own], expected[:, part] @ matrix, atol=1e-4)
        whole[:, part] = coefs[:, own] @ matrix.T
    images = [back(evaluate(move(c, device), b)) for c, b in ((coefs, few), (whole, basis))]
    np.testing.assert_allclose(images[0], images[1], atol=1e-5 * abs(images[1]).max())
    again = pickle.loads(pickle.dumps(few))
    np.testing.assert_array_equal(again.radial[3], few.radial[3])


@pytest.mark.parametrize("wrong", [{"box_px": 4}, {"radius_px": 17.0}, {"band": 0.6}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=next(iter(wrong))):
        steerable_basis(**{"box_px": 32, **wrong})
