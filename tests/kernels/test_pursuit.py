"""Sparse coding of patches, estimates of images and updates of atoms on the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.kernels import pursuit_cpu
from emdask.kernels.pursuit_cpu import code_patches, denoise_images, improve_atoms


def make_atoms(rng: np.random.Generator, n_atoms: int, n_pixels: int) -> np.ndarray:
    atoms = rng.normal(size=(n_atoms, n_pixels))
    return (atoms / np.linalg.norm(atoms, axis=1, keepdims=True)).astype(np.float32)


def make_patches(
    rng: np.random.Generator, atoms: np.ndarray, n_patches: int, n_used: int
) -> np.ndarray:
    """Sums of a few atoms each, with some noise."""
    shares = np.zeros((n_patches, len(atoms)))
    for row in shares:
        row[rng.choice(len(atoms), n_used, replace=False)] = rng.uniform(2, 6, n_used)
    noise = rng.normal(scale=0.05, size=(n_patches, atoms.shape[1]))
    return (shares @ atoms + noise).astype(np.float32)


def pursue(
    patch: np.ndarray, atoms: np.ndarray, tolerance: float, max_atoms: int
) -> tuple[list[int], np.ndarray]:
    """Orthogonal matching pursuit as it is defined."""
    chosen: list[int] = []
    shares = np.zeros(0)
    rest = patch.astype("f8")
    while len(chosen) < max_atoms and rest @ rest > tolerance:
        chosen.append(int(np.argmax((atoms @ rest) ** 2)))
        shares = np.linalg.lstsq(atoms[chosen].T.astype("f8"), patch, rcond=None)[0]
        rest = patch - shares @ atoms[chosen]
    return chosen, shares


@pytest.mark.parametrize(
    ("n_atoms", "n_pixels", "max_atoms"), [(24, 16, 6), (50, 25, 3), (256, 64, 8)]
)
def test_codes_are_those_of_the_definition(
    rng: np.random.Generator, n_atoms: int, n_pixels: int, max_atoms: int
) -> None:
    atoms = make_atoms(rng, n_atoms, n_pixels)
    patches = make_patches(rng, atoms, 40, 3)
    indices, values, counts = code_patches(patches, atoms, tolerance=0.5, max_atoms=max_atoms)
    assert (indices.dtype, values.dtype, counts.dtype) == (np.int16, np.float32, np.int32)
    for patch, chosen, shares, count in zip(patches, indices, values, counts, strict=True):
        expected, their_shares = pursue(patch, atoms, 0.5, max_atoms)
        assert chosen[:count].tolist() == expected
        np.testing.assert_allclose(shares[:count], their_shares, atol=1e-4)
        assert not chosen[count:].any()
        assert not shares[count:].any()


def test_residuals_are_within_the_tolerance(rng: np.random.Generator) -> None:
    atoms = make_atoms(rng, 64, 36)
    patches = (3 * rng.normal(size=(600, 36))).astype(np.float32)
    indices, values, counts = code_patches(patches, atoms, tolerance=20.0, max_atoms=36)
    rest = patches - np.einsum("ma,mad->md", values, atoms[indices])
    assert np.all(np.sum(rest**2, axis=1) <= 20.0 * (1 + 1e-5))
    fewer = np.maximum(counts - 1, 0)
    for i in (0, 300, 599):
        _, shares = pursue(patches[i], atoms, 0.0, int(fewer[i]))
        last = patches[i] - shares @ atoms[indices[i, : fewer[i]]]
        assert last @ last > 20.0


def test_patches_within_the_tolerance_need_no_atoms(rng: np.random.Generator) -> None:
    atoms = make_atoms(rng, 16, 16)
    _, values, counts = code_patches(atoms, atoms, tolerance=1.01, max_atoms=2)
    assert not counts.any()
    assert not values.any()


def test_atoms_that_are_there_twice_are_taken_once(rng: np.random.Generator) -> None:
    atoms = make_atoms(rng, 8, 16)
    twice = np.concatenate([atoms, atoms])
    indices, values, counts = code_patches(atoms, twice, tolerance=1e-9, max_atoms=16)
    assert counts.max() < 16
    assert np.all(indices[:, 0] == np.arange(8))
    rest = atoms - np.einsum("ma,mad->md", values, twice[indices])
    assert np.abs(rest).max() < 1e-5


def slow_denoise(
    image: np.ndarray, atoms: np.ndarray, gain: float, blend: float, max_atoms: int
) -> np.ndarray:
    side = round(atoms.shape[1] ** 0.5)
    sums, weights = blend * image.astype("f8"), np.full(image.shape, blend)
    for y in range(image.shape[0] - side + 1):
        for x in range(image.shape[1] - side + 1):
            place = np.s_[y : y + side, x : x + side]
            patch = image[place].ravel().astype("f8")
            chosen, shares = pursue(patch - patch.mean(), atoms, gain**2 * side**2, max_atoms)
            estimate = patch.mean() + shares @ atoms[chosen]
            sums[place] += estimate.reshape(side, side)
            weights[place] += 1
    return sums / weights


@pytest.mark.parametrize(("side", "shape"), [(8, (17, 20)), (5, (12, 9)), (6, (6, 6))])
def test_images_are_averages_of_their_patches(
    rng: np.random.Generator, side: int, shape: tuple[int, int]
) -> None:
    atoms = make_atoms(rng, 40, side**2)
    images = (2 * rng.normal(size=(2, *shape))).astype(np.float32)
    images[:, :, shape[1] // 2 :] += 4
    settings = {"gain": 1.6, "blend": 0.7, "max_atoms": 5}
    result = denoise_images(images, atoms, **settings)
    assert result.dtype == np.float32
    for image, estimate in zip(images, result, strict=True):
        np.testing.assert_allclose(estimate, slow_denoise(image, atoms, **settings), atol=2e-4)


def test_images_do_not_depend_on_those_beside_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pursuit_cpu, "PATCHES_AT_ONCE", 64)
    atoms = make_atoms(rng, 32, 16)
    images = (2 * rng.normal(size=(4, 20, 21))).astype(np.float32)
    settings = {"gain": 1.1, "blend": 0.3, "max_atoms": 4}
    whole = denoise_images(images, atoms, **settings)
    np.testing.assert_array_equal(denoise_images(images[2:3], atoms, **settings), whole[2:3])


def test_a_sweep_is_that_of_the_definition(rng: np.random.Generator) -> None:
    truth = make_atoms(rng, 12, 20)
    patches = make_patches(rng, truth, 150, 2)
    atoms = make_atoms(rng, 12, 20)
    atoms[3] = 0  # no patch uses it
    codes = code_patches(patches, atoms, tolerance=0.1, max_atoms=3)
    shares = np.zeros((len(patches), len(atoms)))
    np.put_along_axis(shares, codes[0].astype(int), codes[1].astype("f8"), axis=1)
    expected = atoms.astype("f8")
    for k in range(len(atoms)):
        users = np.flatnonzero(shares[:, k])
        if len(users):
            lack = (
                patches[users] - shares[users] @ expected + np.outer(shares[users, k], expected[k])
            )
            _, _, directions = np.linalg.svd(lack)
            sign = np.sign(shares[users, k] @ lack @ directions[0])
            expected[k] = sign * directions[0]
            shares[users, k] = lack @ expected[k]
    new, uses, errors = improve_atoms(patches, atoms, codes, n_powers=200)
    np.testing.assert_allclose(new, expected, atol=2e-3)
    np.testing.assert_array_equal(uses, np.bincount(np.nonzero(shares)[1], minlength=12))
    np.testing.assert_allclose(
        errors, np.sum((patches - shares @ expected) ** 2, axis=1), atol=0.02
    )


@pytest.mark.parametrize("n_powers", [1, 2])
def test_a_sweep_lowers_the_error(rng: np.random.Generator, n_powers: int) -> None:
    patches = make_patches(rng, make_atoms(rng, 30, 25), 400, 3)
    atoms = make_atoms(rng, 30, 25)
    codes = code_patches(patches, atoms, tolerance=0.5, max_atoms=3)
    before = patches - np.einsum("ma,mad->md", codes[1], atoms[codes[0]])
    given = atoms.copy()
    new, _, errors = improve_atoms(patches, atoms, codes, n_powers=n_powers)
    after = patches - np.einsum("ma,mad->md", codes[1], new[codes[0]])
    np.testing.assert_array_equal(atoms, given)
    np.testing.assert_allclose(np.sum(after**2, axis=1), errors, rtol=1e-3, atol=1e-3)
    assert np.sum(after**2) < 0.8 * np.sum(before**2)
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), 1, atol=1e-5)
