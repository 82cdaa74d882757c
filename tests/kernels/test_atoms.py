"""Atoms on a grid against their Fourier transforms, which are known."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from emdask.kernels.atoms import gaussian_width, sample_atoms


def transform(positions_A, amplitudes, n, pixel_A):
    """Sum of the atoms' waves at the frequencies of a grid; ``amplitudes(k)`` gives one an atom."""
    k = np.fft.fftfreq(n, pixel_A)
    kz, ky, kx = np.meshgrid(k, k, k, indexing="ij")
    squared = kx**2 + ky**2 + kz**2
    total = np.zeros((n, n, n), complex)
    for (x, y, z), amplitude in zip(positions_A, amplitudes(squared), strict=True):
        total += amplitude * np.exp(-2j * np.pi * (kx * x + ky * y + kz * z))
    return total, squared


@pytest.mark.parametrize("density", ["electrostatic", "gaussian"])
@pytest.mark.parametrize(
    ("box_px", "pixel_A", "resolution_A"), [(24, 2.0, 4.0), (25, 2.0, 7.0), (32, 1.0, 9.0)]
)
def test_the_transform_is_that_of_the_atoms(rng, density, box_px, pixel_A, resolution_A):
    positions_A = rng.uniform(-5, 5, (6, 3))
    numbers = np.array([6, 7, 8, 15, 16, 1])
    sampled = sample_atoms(
        positions_A,
        numbers,
        resolution_A=resolution_A,
        box_px=box_px,
        pixel_size_A=pixel_A,
        density=density,
    )
    assert sampled.dtype == np.float32

    def amplitudes(squared):
        blur = np.exp(-(resolution_A**2) * squared)
        for number in numbers:
            if density == "gaussian":
                yield number * blur
            else:
                coefficients = gemmi.Element(int(number)).c4322
                terms = zip(coefficients.a, coefficients.b, strict=True)
                yield blur * sum(a * np.exp(-b * squared / 4) for a, b in terms)

    truth, squared = transform(positions_A, amplitudes, box_px, pixel_A)
    found = np.fft.fftn(np.fft.ifftshift(sampled.astype(float)))
    inside = squared < (0.5 / pixel_A) ** 2
    error = np.abs(found - truth)[inside].max() / np.abs(truth[0, 0, 0])
    assert error < 1e-3


def test_the_gaussian_falls_to_one_over_e_at_the_resolution():
    width_A, resolution_A = gaussian_width(8.0), 8.0
    at_it = np.exp(-2 * np.pi**2 * width_A**2 / resolution_A**2)
    assert at_it == pytest.approx(np.exp(-1))


def test_an_atom_holds_its_scattering_length():
    options = {"resolution_A": 6.0, "box_px": 16, "pixel_size_A": 2.0}
    origin = np.zeros((1, 3))
    carbon, oxygen = (sample_atoms(origin, np.array([z]), **options).sum() for z in (6, 8))
    # International Tables C, table 4.3.1.1, at s = 0: 2.509 and 1.983 Å.
    assert carbon == pytest.approx(2.509, rel=2e-3)
    assert oxygen == pytest.approx(1.983, rel=2e-3)
