"""How dictionaries start and learn, and how scales combine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.kernels import ksvd
from emdask.kernels.ksvd import (
    cosine_atoms,
    denoise_unit_noise,
    learn_atoms,
    list_scales,
    replace_atoms,
)
from emdask.kernels.pursuit_cpu import code_patches
from emdask.kernels.scales import double, halve, merge_scales


def test_a_complete_start_is_the_cosine_transform() -> None:
    from scipy.fft import dctn

    atoms = cosine_atoms(64, 8).reshape(8, 8, 8, 8)
    for down in range(8):
        for across in range(8):
            frequencies = np.zeros((8, 8))
            frequencies[down, across] = 1
            np.testing.assert_allclose(
                dctn(atoms[down, across], norm="ortho"), frequencies, atol=1e-6
            )


@pytest.mark.parametrize(("n_atoms", "patch_px"), [(256, 8), (100, 5), (77, 8)])
def test_an_overcomplete_start(n_atoms: int, patch_px: int) -> None:
    atoms = cosine_atoms(n_atoms, patch_px)
    assert atoms.shape == (n_atoms, patch_px**2)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(atoms[0], 1 / patch_px, atol=1e-6)
    np.testing.assert_allclose(atoms[1:].mean(axis=1), 0, atol=1e-6)
    assert np.linalg.matrix_rank(atoms.astype("f8")) == patch_px**2


def test_known_values_of_the_start() -> None:
    """Elad and Aharon 2006: 16 frequencies, cos(pi i j / 16) at the middles of pixels."""
    wave = np.cos(np.pi * 3 * (np.arange(8) + 0.5) / 16)
    wave -= wave.mean()
    expected = np.outer(np.full(8, 8**-0.5), wave / np.linalg.norm(wave))
    np.testing.assert_allclose(cosine_atoms(256, 8)[3].reshape(8, 8), expected, atol=1e-6)


def test_unused_and_double_atoms_are_replaced_by_the_worst_patches(
    rng: np.random.Generator,
) -> None:
    atoms = np.eye(6, 9, dtype=np.float32)
    atoms[4] = -atoms[1]
    patches = rng.normal(size=(5, 9)).astype(np.float32)
    uses = np.array([9, 9, 0, 9, 9, 3])
    errors = np.array([1, 7, 2, 9, 3], np.float32)
    replaced = replace_atoms(atoms, patches, uses, errors)
    np.testing.assert_array_equal(replaced[[0, 1, 3, 5]], atoms[[0, 1, 3, 5]])
    for atom, patch in ((2, patches[3]), (4, patches[1])):
        np.testing.assert_allclose(replaced[atom], patch / np.linalg.norm(patch), rtol=1e-6)


def test_fewer_patches_than_poor_atoms(rng: np.random.Generator) -> None:
    atoms = np.eye(4, dtype=np.float32)
    patches = rng.normal(size=(1, 4)).astype(np.float32)
    replaced = replace_atoms(atoms, patches, np.zeros(4, int), np.ones(1, np.float32))
    np.testing.assert_array_equal(replaced[1:], atoms[1:])
    assert not np.array_equal(replaced[0], atoms[0])


def make_edges(rng: np.random.Generator, n_patches: int) -> np.ndarray:
    """Patches of an edge each, at any angle and place, with unit noise."""
    y, x = np.mgrid[-2.5:3, -2.5:3]
    angles, places = rng.uniform(0, 2 * np.pi, n_patches), rng.uniform(-2, 2, n_patches)
    side = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    edges = np.where(side > places[:, None, None], 6.0, 0.0).reshape(n_patches, 36)
    return (edges + rng.normal(size=edges.shape)).astype(np.float32)


def test_learning_needs_fewer_atoms(rng: np.random.Generator) -> None:
    train, test = make_edges(rng, 2000), make_edges(rng, 300)
    test -= test.mean(axis=1, keepdims=True)

    def atoms_needed(n_iterations: int) -> float:
        atoms = learn_atoms(train, n_atoms=64, patch_px=6, n_iterations=n_iterations)
        counts = code_patches(test, atoms, tolerance=1.15**2 * 36, max_atoms=32)[2]
        return float(counts.mean())

    start, once, learnt = (atoms_needed(n) for n in (0, 1, 8))
    assert start > once > learnt
    assert learnt < 0.8 * start


def test_patches_that_are_noise_teach_nothing(rng: np.random.Generator) -> None:
    faint = (0.5 * rng.normal(size=(900, 25)) + rng.uniform(-9, 9, (900, 1))).astype(np.float32)
    sizes = {"n_atoms": 36, "patch_px": 5, "n_iterations": 3}
    np.testing.assert_array_equal(learn_atoms(faint, **sizes), cosine_atoms(36, 5))
    strong = 5 * rng.normal(size=(600, 25)).astype(np.float32)
    both = learn_atoms(np.concatenate([faint, strong]), **sizes)
    np.testing.assert_allclose(both, learn_atoms(strong, **sizes), atol=1e-6)
    assert np.abs(both - cosine_atoms(36, 5)).max() > 0.1


def test_few_patches_teach_few_atoms(rng: np.random.Generator) -> None:
    strong = 5 * rng.normal(size=(600, 25)).astype(np.float32)
    sizes = {"n_atoms": 64, "patch_px": 5, "n_iterations": 2}
    atoms = learn_atoms(strong, **sizes)
    np.testing.assert_allclose(np.linalg.norm(atoms, axis=1), np.arange(64) < 37, atol=1e-5)
    np.testing.assert_array_equal(learn_atoms(strong[:380], **sizes), cosine_atoms(64, 5))


def test_scales_stop_where_patches_have_no_room() -> None:
    for side, expected in ((31, [31]), (32, [32, 16]), (200, [200, 100, 50, 25])):
        scales = list_scales(np.zeros((1, side, 300), np.float32), 4, 8)
        assert [scale.shape[1] for scale in scales] == expected


def recording(calls: list[Any]) -> Any:
    def denoise_images(images: np.ndarray, atoms: np.ndarray, **settings: float) -> np.ndarray:
        calls.append((images.copy(), atoms, settings))
        return images / 2

    return denoise_images


def test_fine_scales_code_what_coarse_ones_leave(rng: np.random.Generator) -> None:
    images = rng.normal(size=(2, 64, 66)).astype(np.float32)
    atoms = rng.normal(size=(2, 5, 64)).astype(np.float32)
    calls: list[Any] = []
    result = denoise_unit_noise(images, atoms, n_scales=2, denoise_images=recording(calls))
    coarse, fine = calls
    half = np.stack([halve(image) for image in images])
    np.testing.assert_allclose(coarse[0], half, atol=1e-6)
    smooth = double(half / 2, (64, 66))
    np.testing.assert_allclose(fine[0], images - smooth, atol=1e-5)
    np.testing.assert_array_equal(fine[1], atoms[0])
    np.testing.assert_array_equal(coarse[1], atoms[1])
    assert (coarse[2]["gain"], fine[2]["gain"]) == (ksvd.CODE_GAIN, ksvd.REFINE_GAIN)
    expected = merge_scales(smooth + (images - smooth) / 2, half / 2)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_estimates_of_few_patches_count_for_one_half(rng: np.random.Generator) -> None:
    images = rng.normal(size=(1, 40, 44)).astype(np.float32)
    calls: list[Any] = []
    atoms = np.zeros((2, 4, 64), np.float32)
    result = denoise_unit_noise(images, atoms, n_scales=3, denoise_images=recording(calls))
    gains = [settings["gain"] for _, _, settings in calls]
    assert gains == [ksvd.CODE_GAIN, ksvd.REFINE_GAIN, ksvd.CODE_GAIN]
    np.testing.assert_array_equal(calls[2][0], images)
    half = halve(images[0]) / 2
    smooth = double(half, (40, 44))
    refined = merge_scales(smooth + (images[0] - smooth) / 2, half)
    np.testing.assert_allclose(result[0], (refined + images[0] / 2) / 2, atol=1e-5)


def test_images_smaller_than_a_patch_are_mirrored(rng: np.random.Generator) -> None:
    images = rng.normal(size=(1, 3, 12)).astype(np.float32)
    calls: list[Any] = []
    atoms = np.zeros((1, 4, 64), np.float32)
    result = denoise_unit_noise(images, atoms, n_scales=2, denoise_images=recording(calls))
    np.testing.assert_array_equal(calls[0][0][0, 3:6], images[0, ::-1])
    np.testing.assert_array_equal(result, images / 2)
