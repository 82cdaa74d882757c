"""K-SVD on images and stacks."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

import emdask
from emdask.denoisers.ksvd import Ksvd, choose_scales, sample_scales
from emdask.errors import ParameterError, StackError

# Small, so that tests are fast.
LEARNING = {"n_atoms": 64, "n_iterations": 4, "n_patches": 3000}


def psnr(images: np.ndarray, clean: np.ndarray) -> float:
    return float(10 * np.log10(np.ptp(clean) ** 2 / np.mean((images - clean) ** 2)))


def make_particles(n: int, size: int) -> np.ndarray:
    """Sums of blobs within a disc."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    images = np.zeros((n, size, size), np.float32)
    for i in range(n):
        rng = np.random.default_rng([11, i])
        for _ in range(40):
            angle, radius = rng.uniform(0, 2 * np.pi), size / 4 * np.sqrt(rng.uniform())
            cy, cx, width = radius * np.sin(angle), radius * np.cos(angle), rng.uniform(2, 5)
            images[i] += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return images


def with_noise(clean: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(5).normal(scale=sigma, size=clean.shape)
    return (clean + noise).astype(np.float32)


def best_gaussian(noisy: np.ndarray, clean: np.ndarray) -> float:
    widths = np.arange(0.5, 6, 0.25)
    return max(psnr(gaussian_filter(noisy, (0, width, width)), clean) for width in widths)


@pytest.mark.parametrize("snr", [0.4, 0.1, 0.05])
def test_particles_are_better_than_by_the_best_gaussian(snr: float) -> None:
    clean = make_particles(6, 128)
    noisy = with_noise(clean, float(np.sqrt(clean.var() / snr)))
    result = emdask.denoise(noisy, "ksvd").compute()
    assert psnr(result, clean) > best_gaussian(noisy, clean) + 0.5


def test_a_photograph_gains_by_learning() -> None:
    from skimage import data

    clean = data.camera()[150:278, 150:278].astype(np.float32)[None]
    noisy = with_noise(clean, 25)

    def score(**options: object) -> float:
        return psnr(emdask.denoise(noisy, "ksvd", sigma=25, **options).compute(), clean)

    cosines, learnt = score(n_iterations=0), score(scope="image")
    assert cosines > best_gaussian(noisy, clean) + 1
    assert learnt > cosines
    assert score(scope="stack", n_patches=1 << 18) == pytest.approx(learnt, abs=1e-6)


def test_more_strength_leaves_less_detail() -> None:
    noisy = with_noise(make_particles(1, 64), 1.0)
    detail = [
        np.diff(emdask.denoise(noisy, "ksvd", sigma=1.0, strength=s, **LEARNING).compute()).std()
        for s in (0.5, 1.0, 2.0)
    ]
    assert detail[0] > detail[1] > detail[2]


def test_strength_is_a_factor_of_sigma() -> None:
    noisy = with_noise(make_particles(1, 32), 1.0)
    options = {"n_scales": 1, **LEARNING}
    a = emdask.denoise(noisy, "ksvd", sigma=1.0, strength=1.5, **options).compute()
    b = emdask.denoise(noisy, "ksvd", sigma=1.5, **options).compute()
    np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_model_is_atoms_of_unit_norm_that_follow_the_seed(rng: np.random.Generator) -> None:
    noisy = with_noise(make_particles(3, 128), 1.0)
    model = emdask.learn_denoiser(noisy, "ksvd", sigma=1.0, n_scales=2, **LEARNING).compute()
    assert dict(model.sizes) == {"scale": 2, "atom": 64, "pixel": 64}
    norms = np.linalg.norm(model.atoms, axis=2)
    np.testing.assert_allclose(norms[norms > 0], 1, atol=1e-5)
    assert np.all(np.sum(norms > 0, axis=1) > 32)
    assert model.n_patches.values.tolist() == [3000, 3000]
    again = emdask.learn_denoiser(noisy, "ksvd", sigma=1.0, n_scales=2, **LEARNING).compute()
    xr.testing.assert_identical(model, again)
    other = {**LEARNING, "seed": 1}
    third = emdask.learn_denoiser(noisy, "ksvd", sigma=1.0, n_scales=2, **other).compute()
    assert np.abs(third.atoms - model.atoms).max() > 0.1


def test_each_image_by_its_own_dictionary_is_the_stack_of_one() -> None:
    noisy = with_noise(make_particles(3, 48), 0.5)
    options = {"sigma": 0.5, **LEARNING}
    alone = emdask.denoise(noisy, "ksvd", scope="image", **options).compute()
    for i in range(3):
        # The sample follows the image's number, which is 0 in a stack of one.
        expected = emdask.denoise(noisy[i : i + 1], "ksvd", **options).compute()[0]
        np.testing.assert_array_equal(alone[i], expected)
    chunks = da.from_array(noisy, chunks=(1, -1, -1))
    parts = emdask.denoise(chunks, "ksvd", scope="image", **options).compute()
    np.testing.assert_array_equal(parts, alone)


def test_images_take_scales_by_their_own_snr() -> None:
    rng = np.random.default_rng(2)
    unit = rng.normal(size=(5, 64, 64)).astype(np.float32)
    unit += np.sqrt([0.1, 0.7, 50.0, 0.1, 0.7])[:, None, None] * np.sign(np.arange(64) - 31.5)
    chosen = {n: which.tolist() for which, n in choose_scales(unit, Ksvd())}
    assert chosen == {1: [2], 2: [1, 4], 3: [0, 3]}
    assert [n for _, n in choose_scales(unit, Ksvd(n_scales=4))] == [4]


def test_images_teach_the_scales_that_they_take() -> None:
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 64, 64))
    images[1] += 10 * np.sign(np.arange(64) - 31.5)
    params = Ksvd(sigma=1.0, n_patches=10**6)
    samples = sample_scales(images, np.arange(2), params)
    assert [len(sample.keys) for sample in samples.scales] == [2 * 57**2, 25**2, 9**2]


def test_a_model_of_another_kind_is_refused() -> None:
    noisy = with_noise(make_particles(2, 64), 1.0)
    stack = emdask.learn_denoiser(noisy, "ksvd", n_scales=1, **LEARNING).compute()
    for options, said in (
        ({"scope": "image"}, "ksvd: learns nothing from a stack, with these parameters"),
        (
            {"patch_px": 6},
            "ksvd: patch_px must be that of the model, 8; got 6. Pass patch_px as well",
        ),
        ({"n_scales": 2}, "n_scales must be at most that of the model, 1; got 2"),
    ):
        with pytest.raises(ParameterError, match=said):
            emdask.denoise(noisy, "ksvd", model=stack, **options).compute()
    with pytest.raises(StackError, match="ksvd: has nothing to learn"):
        emdask.learn_denoiser(noisy, "ksvd", scope="image")
    kept = emdask.denoise(noisy, "ksvd", model=stack).compute()
    assert np.isfinite(kept).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sigma": -1}, 'sigma must be "auto" or a number of at least 0; got -1'),
        ({"scope": "both"}, "scope must be one of stack, image; got 'both'"),
        ({"n_scales": 6}, r"n_scales must be an integer in \[1, 5\]; got 6"),
        ({"patch_px": 17}, r"patch_px must be an integer in \[4, 16\]; got 17"),
        ({"n_atoms": 1000}, r"n_atoms must be an integer in \[16, 512\]; got 1000"),
        ({"n_patches": 0}, "n_patches must be an integer"),
    ],
)
def test_parameters_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(ParameterError, match=f"ksvd: {said}"):
        emdask.denoise(np.zeros((1, 16, 16)), "ksvd", **options)
