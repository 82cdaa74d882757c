"""Noise and contrast of a stack: recovered from images that are made with both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels.contrast import (
    LEAST_FREQUENCY,
    add_spectra,
    find_contrast,
    find_noise,
    mean_light,
    measure_light,
    noise_at,
    sum_spectra,
)
from emdask.kernels.ctf import Optics, apply_ctf
from emdask.kernels.fourier import frequency_grid, radial_power, ring_frequencies

BOX = 64


def blobs(n: int, rng: np.random.Generator) -> Any:
    """Particles of variance 1 over the frame, that leave the corners free."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    images = np.zeros((n, BOX, BOX))
    for image in images:
        for x0, y0 in rng.uniform(-10, 10, (12, 2)):
            image += np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 2 / 2.5**2)
    return images / np.sqrt(images.var(axis=(1, 2)).mean())


def coloured(n: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Noise, and its power on the grid of `numpy.fft.rfft2`."""
    power = 0.5 + 2 * np.exp(-((frequency_grid((BOX, BOX)) / 0.15) ** 2))
    white = np.fft.rfft2(rng.normal(size=(n, BOX, BOX)))
    return np.fft.irfft2(white * np.sqrt(power), s=(BOX, BOX)), power


def draw_optics(n: int, rng: np.random.Generator) -> Optics:
    defoci = rng.uniform(8e3, 16e3, n)
    return Optics(pixel_size_A=3.0, defocus_u_A=defoci, defocus_v_A=defoci + 500)


def test_the_spectrum_of_the_noise_is_found_beside_particles(rng: np.random.Generator) -> None:
    noise, power = coloured(200, rng)
    images = blobs(200, rng) + noise
    found = noise_at(frequency_grid((BOX, BOX)), find_noise(sum_spectra(images, None)))
    ratio = found / power
    beyond = frequency_grid((BOX, BOX)) > 0.1
    np.testing.assert_allclose(ratio[beyond], 1, atol=0.1)
    # Of slow changes corners of 32 px see less, and never more.
    assert ratio.min() > 0.65
    assert ratio[~beyond].max() < 1.02


def test_below_the_first_frequencies_noise_is_as_at_these(rng: np.random.Generator) -> None:
    frequency, power = find_noise(sum_spectra(rng.normal(size=(20, BOX, BOX)), None))
    low = frequency < LEAST_FREQUENCY
    assert low.any()
    np.testing.assert_array_equal(power[low], power[~low][0])
    assert noise_at([0.0, 9.0], (frequency, power)).tolist() == [power[0], power[-1]]


@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.parametrize(("contrast", "is_white"), [(1.0, True), (2.0, False), (20.0, False)])
def test_the_contrast_is_what_references_were_multiplied_by(
    contrast: float, is_white: bool, with_ctf: bool, rng: np.random.Generator
) -> None:
    particles = blobs(300, rng)
    noise = rng.normal(size=particles.shape) if is_white else coloured(300, rng)[0]
    optics = draw_optics(300, rng) if with_ctf else None
    images = contrast * particles
    if optics is not None:
        images = apply_ctf(images, optics.ctfs((BOX, BOX), 300))
    # Only half of the particles are known: others look alike on the whole.
    expected = radial_power(particles[:150])[1].mean(0)
    square, error = find_contrast(sum_spectra(images + noise, optics), expected, BOX)
    assert np.sqrt(square) == pytest.approx(contrast, rel=0.04)
    assert error < 0.1 * square


def test_the_ctf_counts(rng: np.random.Generator) -> None:
    particles, optics = blobs(100, rng), draw_optics(100, rng)
    images = apply_ctf(particles, optics.ctfs((BOX, BOX), 100))
    images += 0.3 * rng.normal(size=images.shape)
    expected = radial_power(particles)[1].mean(0)
    square, too_low = (
        find_contrast(sum_spectra(images, given), expected, BOX)[0] for given in (optics, None)
    )
    assert np.sqrt(square) == pytest.approx(1.0, rel=0.05)
    assert np.sqrt(too_low) < 0.75


def test_images_without_particles_show_none(rng: np.random.Generator) -> None:
    expected = radial_power(blobs(10, rng))[1].mean(0)
    images = rng.normal(size=(200, BOX, BOX))
    square, error = find_contrast(sum_spectra(images, None), expected, BOX)
    assert abs(square) < 2 * error
    # Quiet where the particle should be, loud in the corners.
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    images *= np.where(np.hypot(x, y) < BOX / 2, 0.5, 1.0)
    assert find_contrast(sum_spectra(images, None), expected, BOX)[0] < 0


def test_sums_add_up(rng: np.random.Generator) -> None:
    images, optics = rng.normal(size=(10, BOX, BOX)).astype("f4"), draw_optics(10, rng)
    whole = sum_spectra(images, optics)
    parts = [sum_spectra(images[s], optics[s]) for s in (slice(0, 3), slice(3, 10))]
    joined = add_spectra(*parts)
    assert joined.n_images == whole.n_images == 10
    for name in ("power", "square", "light"):
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), rtol=1e-12)
    np.testing.assert_allclose(joined.noise.power, whole.noise.power, rtol=1e-9)
    expected = optics.power(ring_frequencies((BOX, BOX))).sum(0)
    np.testing.assert_allclose(joined.square, expected)
    assert sum_spectra(images, None).square.tolist() == [10.0] * len(whole.square)


def test_one_ctf_for_all_counts_for_each(rng: np.random.Generator) -> None:
    images = rng.normal(size=(4, BOX, BOX))
    same = Optics(pixel_size_A=3.0, defocus_u_A=1e4, defocus_v_A=1e4)
    each = Optics(pixel_size_A=3.0, defocus_u_A=np.full(4, 1e4), defocus_v_A=1e4)
    squares = [sum_spectra(images, optics).square for optics in (same, each)]
    np.testing.assert_allclose(squares[0], squares[1])


def test_light_is_that_of_the_middle(rng: np.random.Generator) -> None:
    images = blobs(50, rng) + rng.normal(size=(50, BOX, BOX))
    light = measure_light(images)
    assert light.shape == (50,)
    np.testing.assert_allclose(measure_light(2 - 3 * images), -3 * light, rtol=1e-9)
    mean, error = mean_light(sum_spectra(images, None))
    assert mean == pytest.approx(light.mean())
    assert error == pytest.approx(light.std(ddof=1) / np.sqrt(50))
    assert mean > 5 * error


@pytest.mark.parametrize("box", [24, 48, 96])
def test_noise_of_no_particle_is_within_its_error(box: int, rng: np.random.Generator) -> None:
    """Whatever the box, and with few images or many."""
    y, x = np.indices((box, box)) - box // 2
    particle = np.exp(-(y**2 + x**2) / (0.02 * box**2))[None]
    power = radial_power(particle)[1].mean(0)
    found = [
        find_contrast(sum_spectra(rng.normal(size=(n, box, box)), None), power, box)
        for n, repeats in ((20, 16), (60, 16), (200, 4))
        for _ in range(repeats)
    ]
    z = np.array([square / error for square, error in found])
    assert abs(z).max() < 4
    assert abs(z.mean()) < 0.8
    # An error that is right to a factor of 2.
    assert 0.5 < z.std() < 2
    assert found[-1][1] < found[0][1]
