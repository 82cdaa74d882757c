"""Steerable expansion: adjoint, steered, and accurate as its docstrings say."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from scipy import special

from emdask.backend import why_no_cuda
from emdask.errors import ParameterError
from emdask.kernels import steerable
from emdask.kernels.ctf import Optics
from emdask.kernels.steerable import (
    combine,
    evaluate,
    expand,
    mirror,
    rotate,
    sample_filters,
    steerable_basis,
)
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


def sample_function(box_px: int, k: int, root: float, band: float) -> Any:
    """The transform of one function about pixel ``box_px // 2``, on `numpy.fft.fft2`'s grid."""
    y, x = np.meshgrid(*[np.fft.fftfreq(box_px)] * 2, indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    values = special.jv(k, root * radius / band) * np.exp(1j * k * angle) * (radius < band)
    return values * (-1j) ** k / (band * np.sqrt(np.pi) * abs(special.jv(k + 1, root)))


@pytest.mark.parametrize(("box_px", "band"), [(24, 0.5), (25, 0.4)])
def test_coefficients_are_those_of_bessel_functions(device: str, box_px: int, band: float) -> None:
    basis = steerable_basis(box_px, band=band)
    image = noise(1, box_px)
    coefs = back(expand(to_half_planes(move(image, device)), basis))[0]
    centred = np.fft.fft2(np.fft.ifftshift(image[0].astype("f8")))
    for k in (0, 1, 2, 3, 4, 7, 10):
        own = coefs[basis.slices[k]]
        for value, root in zip(own, special.jn_zeros(k, len(own)), strict=True):
            function = sample_function(box_px, k, root, band)
            expected = (function.conj() * centred).sum() / box_px**2
            np.testing.assert_allclose(value, expected, atol=1e-5)


@pytest.mark.parametrize("box_px", [32, 64])
def test_images_inside_the_disc_are_in_the_span(device: str, box_px: int) -> None:
    image = blobs(box_px)[None]
    coefs = expand(to_half_planes(move(image, device)), steerable_basis(box_px))
    again = back(to_images(evaluate(coefs, steerable_basis(box_px)), (box_px, box_px)))
    np.testing.assert_allclose(again, image, atol=1e-5 * image.max())


def gram(basis: steerable.SteerableBasis) -> Any:
    """Products of all functions on the grid, cosines before sines, each of norm 1."""
    n, first = len(basis.orders), basis.slices[0].stop
    coefs = np.concatenate([np.eye(n), 1j * np.eye(n)[first:]]).astype("c8")
    scale = np.sqrt(np.r_[counts(basis), counts(basis)[first:]])
    found = expand(evaluate(coefs, basis), basis) / scale[:, None]
    return np.concatenate([found.real, found.imag[:, first:]], 1) * scale


@pytest.mark.parametrize(
    ("radius_px", "root_mean_square", "variance", "singular"),
    [(32, 0.028, 0.025, 0.24), (24, 0.006, 0.003, 0.05)],
)
def test_functions_are_as_nearly_orthonormal_as_is_said(
    radius_px: float, root_mean_square: float, variance: float, singular: float
) -> None:
    basis = steerable_basis(64, radius_px=radius_px, band=0.4)
    errors = gram(basis) - np.eye(2 * len(basis.orders) - basis.slices[0].stop)
    assert np.linalg.norm(errors) / np.sqrt(len(errors)) < root_mean_square
    # What white noise gives a coefficient.
    assert abs(np.diag(errors)).max() < variance
    assert np.linalg.norm(errors, 2) < singular


def test_functions_at_the_nodes_are_orthonormal() -> None:
    basis = steerable_basis(48, radius_px=20.0, band=0.4)
    for radial in basis.radial:
        products = radial[:-1].T @ radial[:-1]
        np.testing.assert_allclose(products, np.eye(len(products)), atol=1e-11)


@pytest.mark.parametrize(("box_px", "band"), [(32, 0.5), (33, 0.5), (40, 0.3)])
def test_filters_at_the_nodes_are_those_on_the_grid(box_px: int, band: float) -> None:
    """Also of a CTF whose rings are wider than the box; an order's cosines and sines differ."""
    basis = steerable_basis(box_px, band=band)
    optics = Optics(pixel_size_A=2.0, defocus_u_A=2e4, defocus_v_A=2e4)
    on_grid = (optics.ctf((box_px, box_px), 0) ** 2).astype("f4")
    on_grid[0, 0] = 0
    at_nodes = sample_filters(optics.power, basis)[0]
    for place, radial in zip(basis.slices[::4], basis.radial[::4], strict=True):
        units = np.eye(len(basis.orders), dtype="c8")[place]
        cosines, sines = (
            expand(evaluate(part, basis) * on_grid, basis)[:, place] for part in (units, 1j * units)
        )
        parts = (cosines.real, sines.imag) if place.start else (cosines.real,)
        expected = np.mean(parts, axis=0)
        found = radial.T @ (at_nodes[:, None] * radial)
        np.testing.assert_allclose(found, expected, atol=1e-4 * abs(expected).max())


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
