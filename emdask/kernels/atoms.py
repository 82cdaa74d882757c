"""The density of atoms on a grid, sampled by gemmi."""

from __future__ import annotations

import math
from typing import Any

import gemmi
import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len
from scipy.signal import resample

Array = npt.NDArray[Any]

DENSITIES = ("electrostatic", "gaussian")
# Of the density of an atom, relative to the peak of a carbon atom, what is left out.
CUTOFF = 1e-4
# Logarithm of the share of aliasing, relative to the amplitude at frequency 0: 1e-4.
ALIASING = math.log(1e-4)
LEAST_EDGE = 16


def gaussian_width(resolution_A: float) -> float:
    """Return the standard deviation, Å, of the Gaussian whose transform is 1 / e at a resolution.

    Examples
    --------
    >>> round(gaussian_width(10.0), 3)
    2.251
    """
    return resolution_A / (math.pi * math.sqrt(2))


def sample_atoms(
    positions_A: Array,
    numbers: Array,
    *,
    resolution_A: float,
    box_px: int,
    pixel_size_A: float,
    density: str = "electrostatic",
) -> Array:
    """Sample the density of atoms, band-limited to the grid.

    Parameters
    ----------
    positions_A : array, shape (m, 3)
        Places (x, y, z) in Å about the centre of the box, which is at voxel ``box_px // 2``.
    numbers : array of int, shape (m,)
        Atomic numbers.
    resolution_A
        Where the Gaussian that every atom is blurred by lowers amplitudes to 1 / e, Å; at least two
        pixels.
    box_px
        Edge of the volume. Atoms near its faces are continued at the opposite ones.
    pixel_size_A
        Edge of a voxel in Å.
    density
        "electrostatic": electron scattering factors of International Tables C, table 4.3.2.2, times
        the Gaussian; in Å. "gaussian": the Gaussian alone, times the atomic number.

    Returns
    -------
    float32 array, shape (box_px, box_px, box_px)
        Axes z, y, x; the integral of the density over each voxel.

    Examples
    --------
    >>> volume = sample_atoms(
    ...     np.zeros((1, 3)), np.array([8]), resolution_A=8.0, box_px=16, pixel_size_A=2.0,
    ...     density="gaussian",
    ... )
    >>> round(float(volume.sum()), 2)
    8.0
    """
    n_fine = _count_fine(box_px, pixel_size_A / resolution_A)
    edge_A = box_px * pixel_size_A
    b_factor_A2 = 8 * math.pi**2 * gaussian_width(resolution_A) ** 2
    calculator = _make_calculator(density, b_factor_A2, edge_A, n_fine)
    atom = gemmi.Atom()
    atom.b_iso = b_factor_A2
    for position_A, number in zip(positions_A + box_px // 2 * pixel_size_A, numbers, strict=True):
        atom.pos = gemmi.Position(*position_A)
        atom.element, atom.occ = _choose_scatterer(int(number), density)
        calculator.add_atom_density_to_grid(atom)
    sampled = np.asarray(calculator.grid.array).transpose(2, 1, 0)
    for axis in range(3):
        sampled = resample(sampled, box_px, axis=axis)
    return np.ascontiguousarray(sampled * np.float32(pixel_size_A**3), np.float32)


def _count_fine(box_px: int, pixels: float) -> int:
    """Return the samples along an edge at which aliasing does not show.

    Let a resolution be R, the transform exp(-(R k)^2), samples q apart, and K the largest frequency
    that is kept, the Nyquist frequency of the coarser grid: frequency 1 / q - K folds onto it.
    ``pixels`` is the edge of a voxel / R.
    """
    reach = math.sqrt(-ALIASING) * pixels
    wanted = box_px * min(2 * reach, 0.5 + reach)
    return int(next_fast_len(max(math.ceil(wanted), LEAST_EDGE), real=True))


def _make_calculator(density: str, b_factor_A2: float, edge_A: float, n_fine: int) -> Any:
    # Neutrons are scattered by points: atoms are nothing but the Gaussian of their B factor.
    calculator: Any = {
        "electrostatic": gemmi.DensityCalculatorE,
        "gaussian": gemmi.DensityCalculatorN,
    }[density]()
    calculator.cutoff = CUTOFF * _carbon(density) * (4 * math.pi / b_factor_A2) ** 1.5
    calculator.grid.set_unit_cell(gemmi.UnitCell(edge_A, edge_A, edge_A, 90, 90, 90))
    calculator.grid.set_size(n_fine, n_fine, n_fine)
    return calculator


def _carbon(density: str) -> float:
    """Return how much a carbon atom scatters at frequency 0."""
    carbon = gemmi.Element("C")
    factors = carbon.c4322 if density == "electrostatic" else carbon.neutron92
    return float(factors.calculate_sf(0.0))


def _choose_scatterer(number: int, density: str) -> tuple[gemmi.Element, float]:
    """Return the element and the occupancy by which gemmi makes the density of an atom."""
    if density == "electrostatic":
        return gemmi.Element(number), 1.0
    return gemmi.Element("C"), number / _carbon(density)
