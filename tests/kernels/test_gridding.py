"""The solution for the volume, against the volume and against dense sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.fft import irfftn, rfft2, rfftn
from scipy.spatial.transform import Rotation

from emdask.kernels import gridding
from emdask.kernels.gridding import shell_weights, solve_volume, symmetrise
from emdask.kernels.masks import spherical_mask
from emdask.kernels.projections import sample_blobs
from emdask.kernels.shells import shell_correlation, shell_numbers
from emdask.kernels.slices import (
    GridPlan,
    data_to_volume,
    empty_sums,
    fold_sums,
    insert_slices,
    prepare_volume,
    project_volume,
    slice_volume,
)
from emdask.kernels.symmetry import factor_group, symmetry_matrices

Array = npt.NDArray[Any]
N = 32
MASK = spherical_mask(N, 11.0, 4.0)


@pytest.fixture(scope="module")
def truth() -> Array:
    """Blobs in the mask, and of them what is below Nyquist."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 3))
    centres *= 8 * rng.uniform(size=(30, 1)) / np.linalg.norm(centres, axis=1, keepdims=True)
    volume = sample_blobs(centres, 1.2, box_px=N, pixel_size_A=1.0)
    return np.asarray(irfftn(np.where(shell_numbers(N) < N // 2, rfftn(volume), 0), s=(N,) * 3))


def draw_views(n_views: int, seed: int = 1) -> Array:
    return np.asarray(Rotation.random(n_views, random_state=seed).as_matrix())


def grids_of(
    truth: Array, matrices: Array, weights: Array | None = None, noise: float = 0.0
) -> tuple[Array, Array, GridPlan]:
    """Data and weights of a volume's slices, each weighed and blurred by ``weights``."""
    slices = slice_volume(prepare_volume(truth, "high"), matrices)
    if noise:
        images = np.random.default_rng(2).normal(scale=noise, size=(len(slices), N, N))
        slices = slices + rfft2(images.astype(np.float32))
    weights = np.ones(slices.shape, np.float32) if weights is None else weights
    sums = empty_sums(N, "rough")
    insert_slices(sums, slices * weights, weights, matrices)
    return *fold_sums(sums), sums.plan


def error(volume: Array, truth: Array) -> float:
    return float(np.linalg.norm(volume - truth) / np.linalg.norm(truth))


def solve(truth: Array, matrices: Array, n_refinements: int, **options: Any) -> Array:
    data, weights, plan = grids_of(truth, matrices, **options)
    prior = 1e-3 * shell_weights(weights, plan)
    return np.asarray(solve_volume(data, weights, prior, MASK, plan, n_refinements))


def test_refined_volume_is_the_one_that_was_projected(truth: Array) -> None:
    matrices = draw_views(400)
    rough, fine = (solve(truth, matrices, number) for number in (0, 1))
    assert error(rough, truth) < 0.15
    assert error(fine, truth) < 0.02
    assert shell_correlation(fine, truth)[: int(0.8 * N / 2)].min() > 0.999


def test_weights_that_differ_from_view_to_view_are_divided_out(truth: Array) -> None:
    matrices = draw_views(400)
    ky, kx = np.fft.fftfreq(N)[:, None], np.fft.rfftfreq(N)
    rings = np.random.default_rng(3).uniform(20, 60, 400)[:, None, None]
    weights = np.square(np.sin(rings * (kx**2 + ky**2) + 0.1)).astype(np.float32)
    assert error(solve(truth, matrices, 1, weights=weights), truth) < 0.02


@pytest.mark.parametrize("n_views", [10, 60])
@pytest.mark.parametrize("tilt", [0.2, 0.6, np.pi / 2])
def test_refinement_does_no_harm_where_views_are_few_or_alike(
    truth: Array, n_views: int, tilt: float
) -> None:
    rng = np.random.default_rng(4)
    angles = rng.uniform(0, 2 * np.pi, (n_views, 3))
    angles[:, 1] = tilt
    matrices = Rotation.from_euler("zyz", angles).inv().as_matrix()
    errors = [error(solve(truth, matrices, number), truth) for number in (0, 1, 5)]
    assert errors[1] < 1.02 * errors[0]
    assert errors[2] < 1.02 * errors[0]


def test_convolution_is_what_projecting_there_and_back_does(truth: Array) -> None:
    matrices = draw_views(200)
    data, weights, plan = grids_of(truth, matrices)
    there_and_back = data_to_volume(data, plan)
    response = gridding._convolution(weights, np.zeros(N // 2 + 1, np.float32), plan)
    found = gridding._convolve(truth.astype(np.float32), response, plan)
    assert error(MASK * found, MASK * there_and_back) < 0.005


def test_prior_keeps_down_what_noise_would_fill(truth: Array) -> None:
    data, weights, plan = grids_of(truth, draw_views(200), noise=truth.max())
    mean = shell_weights(weights, plan)
    power = np.square(np.abs(rfftn(truth)))
    shells = shell_numbers(N)
    signal = np.array([power[shells == s].mean() for s in range(N // 2)] + [1e-6])
    noise = truth.max() ** 2 * N**2
    errors = [
        error(solve_volume(data, weights, prior, MASK, plan), truth)
        for prior in (1e-3 * mean, noise / np.maximum(signal, 1e-6))
    ]
    assert errors[1] < 0.5 * errors[0]


def test_shell_weights_are_means_over_whole_shells() -> None:
    plan = GridPlan(box_px=8, accuracy="rough")
    m = plan.grid_px
    shells = shell_numbers(8, m)
    weights = np.where(shells == 2, np.float32(3), np.float32(1))
    np.testing.assert_allclose(shell_weights(weights, plan), [1, 1, 3, 1, 1])


@pytest.mark.parametrize("group", ["C1", "C3", "D2", "D7", "T", "O", "I"])
def test_factors_of_a_group_multiply_to_it(group: str) -> None:
    matrices = symmetry_matrices(group)
    products = [np.eye(3)]
    for factor in factor_group(matrices):
        products = [a @ b for a in products for b in (np.eye(3), *factor)]
    assert len(products) == len(matrices)
    for matrix in matrices:
        assert min(np.abs(matrix - product).max() for product in products) < 1e-9


@pytest.mark.parametrize("group", ["C2", "C3", "D3", "O"])
def test_symmetrised_sums_are_those_of_all_equivalent_views(truth: Array, group: str) -> None:
    matrices, rotations = draw_views(6), symmetry_matrices(group)
    slices = rfft2(project_volume(prepare_volume(truth), matrices))
    weights = np.ones(slices.shape, np.float32)
    few, many = empty_sums(N, "rough"), empty_sums(N, "rough")
    insert_slices(few, slices, weights, matrices)
    for rotation in rotations:
        insert_slices(many, slices, weights, matrices @ rotation)
    # What lies far from the particle, or in the last shells, which the grid cuts, is of no account.
    within = shell_numbers(N, few.plan.grid_px) <= N // 2 - 3
    for found, expected in zip(fold_sums(few), fold_sums(many), strict=True):
        ours, theirs = (
            MASK * data_to_volume(within * grid, few.plan)
            for grid in (symmetrise(found, rotations, few.plan), expected)
        )
        assert error(ours, theirs) < 0.01
