"""Frames against slow loops: how they are learnt, and what they do to images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emdask.backend import array_namespace, on_device
from emdask.kernels import tight_frame
from emdask.kernels.scales import halve, merge_scales
from emdask.kernels.tight_frame import (
    cosine_frame,
    denoise_images,
    learn_frame,
    nearest_rotation,
    threshold_images,
    wiener_images,
)

Floats = npt.NDArray[Any]


def random_frame(patch_px: int, rng: np.random.Generator) -> Floats:
    """Orthogonal, with a constant first atom."""
    start = cosine_frame(patch_px)
    turn = nearest_rotation(rng.normal(size=(patch_px**2 - 1,) * 2))
    return np.concatenate([start[:1], turn @ start[1:]])


def sparse_patches(atoms: Floats, n: int, rng: np.random.Generator) -> Floats:
    """A tenth of the coefficients is not zero; unit noise."""
    coefficients = 12 * rng.normal(size=(n, len(atoms))) * (rng.random((n, len(atoms))) < 0.1)
    return (coefficients @ atoms + rng.normal(size=(n, len(atoms)))).astype(np.float32)


def slow_objective(patches: Floats, atoms: Floats, threshold: float) -> float:
    """Per patch, for the best coefficients; with what it costs to leave the cosine frame."""
    signals = patches - patches.mean(axis=1, keepdims=True)
    coefficients = signals @ atoms[1:].T.astype(float)
    coefficients[np.abs(coefficients) < threshold] = 0
    error = ((signals - coefficients @ atoms[1:]) ** 2).sum()
    turned = ((atoms - cosine_frame(int(np.sqrt(len(atoms))))) ** 2).sum()
    cost = np.count_nonzero(coefficients) + tight_frame.PRIOR_COEFFICIENTS * turned
    return float(error + threshold**2 * cost) / len(patches)


def slow_filter(image: Floats, atoms: Floats, gains_of: Any, pilot: Floats | None = None) -> Floats:
    """Patch by patch, in loops."""
    side = int(np.sqrt(len(atoms)))
    margin = side - 1
    noisy = np.pad(image.astype(float), margin, mode="symmetric")
    guide = noisy if pilot is None else np.pad(pilot.astype(float), margin, mode="symmetric")
    sums, weights = np.zeros(noisy.shape), np.zeros(noisy.shape)
    for y in range(noisy.shape[0] - margin):
        for x in range(noisy.shape[1] - margin):
            place = np.s_[y : y + side, x : x + side]
            gains = gains_of(atoms @ guide[place].ravel())
            gains[0] = 1
            weight = 1 / (gains**2).sum()
            estimate = (gains * (atoms @ noisy[place].ravel())) @ atoms
            sums[place] += weight * estimate.reshape(side, side)
            weights[place] += weight
    height, width = image.shape
    inside = np.s_[margin : margin + height, margin : margin + width]
    return np.asarray(sums[inside] / weights[inside])


# --- Learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch_px", [1, 4, 8, 16])
def test_the_first_frame_is_orthogonal_and_begins_with_the_mean(patch_px: int) -> None:
    atoms = cosine_frame(patch_px)
    np.testing.assert_allclose(atoms @ atoms.T, np.eye(patch_px**2), atol=1e-12)
    np.testing.assert_allclose(atoms[0], 1 / patch_px)


@pytest.mark.parametrize("n_patches", [0, 3, 500])
def test_learnt_frames_are_tight(n_patches: int, rng: np.random.Generator) -> None:
    patches = sparse_patches(random_frame(4, rng), n_patches, rng)
    atoms = learn_frame(patches, threshold=3.5, n_iterations=10).atoms
    assert atoms.dtype == np.float32
    np.testing.assert_allclose(atoms @ atoms.T, np.eye(16), atol=1e-6)
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(16), atol=1e-6)
    np.testing.assert_allclose(atoms[0], 0.25)
    np.testing.assert_allclose(atoms[1:].sum(axis=1), 0, atol=1e-6)


def test_nothing_to_learn_leaves_the_first_frame() -> None:
    for patches in (np.zeros((0, 16)), np.full((5, 16), 3.0)):
        atoms = learn_frame(patches.astype("f4"), threshold=3.5, n_iterations=10).atoms
        np.testing.assert_allclose(atoms, cosine_frame(4), atol=1e-6)


def test_no_rotation_of_the_plane_is_nearer(rng: np.random.Generator) -> None:
    angles = np.linspace(0, 2 * np.pi, 100_001)
    c, s = np.cos(angles), np.sin(angles)
    for _ in range(10):
        matrix = rng.normal(size=(2, 2))
        turned = matrix[0, 0] * c - matrix[0, 1] * s + matrix[1, 0] * s + matrix[1, 1] * c
        mirrored = matrix[0, 0] * c + matrix[0, 1] * s + matrix[1, 0] * s - matrix[1, 1] * c
        found = np.trace(matrix @ nearest_rotation(matrix).T)
        assert found == pytest.approx(max(turned.max(), mirrored.max()), rel=1e-8)


def test_the_frame_of_a_step_is_the_best_for_its_coefficients(rng: np.random.Generator) -> None:
    signals = rng.normal(size=(200, 9))
    coefficients = signals * (np.abs(signals) > 1)
    best = nearest_rotation(coefficients.T @ signals)

    def error(frame: Floats) -> float:
        return float(((signals - coefficients @ frame) ** 2).sum())

    # Every other orthogonal matrix is a product of the best one with a rotation or mirroring.
    for size in (1e-3, 0.1, 1.0, 10.0):
        for _ in range(50):
            skew = size * rng.normal(size=(9, 9))
            other = nearest_rotation(np.eye(9) + skew - skew.T) @ best
            assert error(other) >= error(best)
    for i in range(9):
        assert error(best * np.where(np.arange(9) == i, -1, 1)[:, None]) >= error(best)


def test_learning_lowers_the_objective_step_by_step(rng: np.random.Generator) -> None:
    patches = sparse_patches(random_frame(6, rng), 2000, rng)
    learnt = learn_frame(patches, threshold=3.5, n_iterations=40)
    assert 3 < len(learnt.objective) <= 40
    assert (np.diff(learnt.objective) < 0).all()
    first = slow_objective(patches, cosine_frame(6), 3.5)
    assert learnt.objective[0] == pytest.approx(first, rel=1e-4)
    last = slow_objective(patches, learnt.atoms, 3.5)
    assert last <= learnt.objective[-1] * (1 + 1e-5)


def test_learning_finds_the_frame_that_patches_were_made_of(rng: np.random.Generator) -> None:
    truth = random_frame(4, rng)
    patches = sparse_patches(truth, 4000, rng)
    atoms = learn_frame(patches, threshold=3.5, n_iterations=200).atoms
    found = np.abs(truth[1:] @ atoms[1:].T).max(axis=1)
    assert np.count_nonzero(found > 0.99) >= 12
    assert slow_objective(patches, atoms, 3.5) < 0.6 * slow_objective(patches, cosine_frame(4), 3.5)


def test_learning_stops_where_nothing_changes(rng: np.random.Generator) -> None:
    known = sparse_patches(cosine_frame(4), 3000, rng)
    assert len(learn_frame(known, threshold=3.5, n_iterations=500).objective) < 60
    other = sparse_patches(random_frame(4, rng), 3000, rng)
    assert len(learn_frame(other, threshold=3.5, n_iterations=4).objective) == 4


def test_an_atom_found_once_is_hardly_learnt() -> None:
    first, second = cosine_frame(4)[1:3]
    truth = np.cos(0.5) * first + np.sin(0.5) * second
    for n_patches, low, high in ((1, 0.0, 0.25), (100, 0.4, 0.501)):
        patches = np.repeat(5 * truth[None], n_patches, axis=0).astype(np.float32)
        atom = learn_frame(patches, threshold=3.5, n_iterations=100).atoms[1]
        assert low < np.arctan2(atom @ second, atom @ first) < high


def test_learning_is_the_same_each_time(rng: np.random.Generator) -> None:
    patches = sparse_patches(random_frame(4, rng), 1000, rng)
    first, again = (learn_frame(patches, threshold=3.5, n_iterations=20) for _ in range(2))
    np.testing.assert_array_equal(first.atoms, again.atoms)


# --- Denoising ------------------------------------------------------------------------------------


@pytest.fixture(params=["one band", "many bands"])
def bands(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether an image is in work as a whole."""
    if request.param == "many bands":
        for name in ("COEFFICIENTS_AT_ONCE", "COEFFICIENTS_ON_CARD"):
            monkeypatch.setattr(tight_frame, name, 16 * 100)
    return str(request.param)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 7), (16, 16), (33, 20)])
def test_without_threshold_the_image_comes_back(
    shape: tuple[int, int], device: str, bands: str, rng: np.random.Generator
) -> None:
    images = rng.normal(size=(2, *shape)).astype(np.float32)
    atoms = random_frame(4, rng).astype(np.float32)

    def same(block: Any) -> Any:
        return threshold_images(block, move(atoms, block), threshold=0.0)

    np.testing.assert_allclose(on_device(same, images, device=device), images, atol=1e-5)


def move(array: Floats, block: Any) -> Any:
    """Bring an array to where a block is."""
    return array_namespace(block).asarray(array)


@pytest.mark.parametrize("shape", [(3, 2), (11, 14)])
def test_filters_are_those_of_slow_loops(
    shape: tuple[int, int], device: str, bands: str, rng: np.random.Generator
) -> None:
    clean = 4 * np.sin(np.add.outer(np.arange(shape[0]), 0.5 * np.arange(shape[1])))
    noisy = np.stack([clean + rng.normal(size=shape) for _ in range(2)]).astype(np.float32)
    pilots = np.stack([clean, 0.5 * clean]).astype(np.float32)
    atoms = random_frame(4, rng).astype(np.float32)

    def hard(block: Any) -> Any:
        return threshold_images(block, move(atoms, block), threshold=2.7)

    def wiener(block: Any) -> Any:
        return wiener_images(block, move(pilots, block), move(atoms, block), noise=1.5)

    hard_result, wiener_result = (on_device(f, noisy, device=device) for f in (hard, wiener))
    for i in range(2):
        slow = slow_filter(noisy[i], atoms, lambda c: (np.abs(c) >= 2.7) * 1.0)
        np.testing.assert_allclose(hard_result[i], slow, atol=1e-4)
        slow = slow_filter(noisy[i], atoms, lambda p: p**2 / (p**2 + 1.5**2), pilots[i])
        np.testing.assert_allclose(wiener_result[i], slow, atol=1e-4)


def test_images_do_not_depend_on_those_beside_them(
    device: str, bands: str, rng: np.random.Generator
) -> None:
    images = 2 * rng.normal(size=(5, 21, 26)).astype(np.float32)
    frames = np.stack([random_frame(4, rng) for _ in range(2)]).astype(np.float32)

    def denoise(block: Any) -> Any:
        return denoise_images(block, frames)

    together = on_device(denoise, images, device=device)
    for part in (slice(0, 1), slice(2, 3), slice(3, 5)):
        alone = on_device(denoise, images[part].copy(), device=device)
        np.testing.assert_array_equal(alone, together[part])


def test_resolutions_are_those_told(rng: np.random.Generator) -> None:
    noisy = 2 * rng.normal(size=(1, 20, 24)).astype(np.float32)
    fine, coarse = (random_frame(4, rng).astype(np.float32) for _ in range(2))
    half = halve(noisy)
    hard = threshold_images(half, coarse, threshold=2.7 * 1.2)
    once = wiener_images(half, hard, coarse, noise=1.2)
    twice = wiener_images(half, once, coarse, noise=1.2)
    pilot = merge_scales(threshold_images(noisy, fine, threshold=3.1 * 1.2), twice)
    result = merge_scales(wiener_images(noisy, pilot, fine, noise=1.2), twice)
    frames = np.stack([fine, coarse])
    np.testing.assert_array_equal(
        denoise_images(noisy, frames, detail_threshold=3.1, strength=1.2), result
    )


def test_resolutions_too_coarse_for_two_patches_are_left_out(rng: np.random.Generator) -> None:
    noisy = rng.normal(size=(1, 9, 15)).astype(np.float32)
    frames = np.stack([random_frame(4, rng) for _ in range(4)]).astype(np.float32)
    np.testing.assert_array_equal(denoise_images(noisy, frames), denoise_images(noisy, frames[:2]))
