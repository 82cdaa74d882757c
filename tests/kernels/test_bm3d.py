"""BM3D on plain arrays, against a slow reference and by its behaviour."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from emdask.kernels import bm3d_cpu, bm3d_plan
from emdask.kernels.bm3d_plan import HIGH_NOISE, NORMAL, Profile
from tests.kernels import bm3d_reference

Floats = npt.NDArray[np.float32]
# Rounding alone moves a result by about 1e-5 of the noise; where it turns a near tie between two
# blocks, by a few hundredths of the noise in a few pixels.
ROUNDING = 2e-4
TURNED_TIES = 0.1


def scene(h: int, w: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Smooth blobs and an edge, clean and with unit noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    clean = 3 * np.sin(x / 7) * np.cos(y / 9) + 4.0 * (x + 2 * y > (w + 2 * h) / 2)
    noisy = clean + rng.normal(size=(h, w))
    return clean.astype(np.float32), noisy.astype(np.float32)


def denoise(image: Floats, sigma: float = 1.0, profile: Profile = NORMAL) -> Floats:
    return bm3d_cpu.denoise(image[None], np.array([sigma]), profile)[0]


def assert_close(result: Floats, expected: Floats) -> None:
    difference = np.abs(result - expected)
    assert np.median(difference) < ROUNDING
    assert difference.max() < TURNED_TIES


@pytest.mark.parametrize(
    "profile",
    [
        Profile(window_px=11),
        Profile(window_px=11, hard_group=4, wiener_group=8, threshold=2.0),
        Profile(window_px=15, hard_distance=2.2, wiener_distance=0.05, window_beta=0.0),
    ],
)
@pytest.mark.parametrize("shape", [(24, 24), (22, 28)])
def test_agrees_with_the_slow_reference(shape: tuple[int, int], profile: Profile) -> None:
    _, noisy = scene(*shape)
    expected = bm3d_reference.denoise(noisy.astype(float), 1.0, profile)
    assert_close(denoise(noisy, profile=profile), expected.astype(np.float32))


@pytest.mark.parametrize(("shape", "n_scales"), [((26, 32), 2), ((33, 32), 3)])
def test_scales_agree_with_the_slow_reference(shape: tuple[int, int], n_scales: int) -> None:
    _, noisy = scene(*shape)
    profile = HIGH_NOISE._replace(window_px=11, n_scales=n_scales)
    expected = bm3d_reference.denoise_scales(noisy.astype(float), profile)
    assert_close(denoise(noisy, profile=profile), expected.astype(np.float32))


def test_half_of_white_noise_is_white_noise() -> None:
    noise = np.random.default_rng(0).normal(size=(255, 256)).astype(np.float32)
    half = bm3d_plan.halve(noise)
    assert half.shape == (128, 128)
    assert half.std() == pytest.approx(1, rel=0.02)
    np.testing.assert_allclose(bm3d_plan.halve(bm3d_plan.double(half, (255, 256))), half, atol=1e-5)


def test_groups_are_the_nearest_blocks() -> None:
    _, noisy = scene(32, 32)
    layout = bm3d_plan.lay_out(noisy.shape, 11)
    padded = bm3d_plan.pad_image(noisy, layout)
    shifts = bm3d_plan.search_shifts(11)
    groups = np.empty((layout.n_down * layout.n_across, 16), np.int32)
    sizes = np.empty(len(groups), np.int32)
    place = layout.margin // 3, layout.margin // 3, layout.n_across, layout.margin
    bm3d_cpu.match_blocks(
        bm3d_cpu.split_columns(padded),
        layout.width,
        place,
        shifts,
        np.float32(np.inf),
        bm3d_cpu._match_scratch(len(shifts), layout.margin),
        groups,
        sizes,
    )
    assert (sizes == 16).all()
    y, x = (g - layout.margin for g in np.divmod(groups, layout.width))
    for block, (i, j) in enumerate(np.ndindex(layout.n_down, layout.n_across)):
        expected = bm3d_reference.similar_places(noisy, 3 * i, 3 * j, True, Profile(window_px=11))
        assert list(zip(y[block], x[block], strict=True)) == expected


def test_matrices_agree_with_their_definitions() -> None:
    np.testing.assert_allclose(bm3d_plan.cosine_matrix(), bm3d_reference.cosine_2(), atol=1e-12)
    np.testing.assert_allclose(bm3d_plan.wavelet_matrix(), bm3d_reference.wavelet_1_5(), atol=1e-12)


def test_removes_noise() -> None:
    clean, noisy = scene(96, 96)
    assert np.mean((denoise(noisy) - clean) ** 2) < 0.12


@pytest.mark.parametrize("profile", [NORMAL, HIGH_NOISE])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (8, 8), (9, 10), (17, 64), (45, 130)])
def test_any_shape(shape: tuple[int, int], profile: Profile) -> None:
    _, noisy = scene(*shape)
    result = denoise(noisy, profile=profile)
    assert result.shape == shape
    assert np.isfinite(result).all()
    assert result.std() <= noisy.std()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 100.0])
def test_constant_image_stays(sigma: float) -> None:
    image = np.full((40, 33), 7.25, np.float32)
    np.testing.assert_allclose(denoise(image, sigma), image, atol=1e-5)


def test_no_noise_returns_the_input() -> None:
    _, image = scene(40, 40)
    assert np.array_equal(denoise(image, 0.0), image)
    np.testing.assert_allclose(denoise(image, 1e-3), image, atol=1e-3)


def test_mean_and_unit_pass_through() -> None:
    _, noisy = scene(48, 48)
    expected = denoise(noisy)
    assert_close(denoise(noisy + np.float32(50)) - np.float32(50), expected)
    assert_close(denoise(noisy * np.float32(1e-3), 1e-3) * np.float32(1e3), expected)


@pytest.mark.parametrize("profile", [NORMAL, HIGH_NOISE])
@pytest.mark.parametrize("shape", [(38, 38), (40, 51), (39, 45)])
def test_commutes_with_rotation_and_transposition(shape: tuple[int, int], profile: Profile) -> None:
    _, noisy = scene(*shape)
    expected = denoise(noisy, profile=profile)
    assert_close(denoise(np.rot90(noisy), profile=profile), np.rot90(expected))
    assert_close(denoise(noisy.T, profile=profile), expected.T)
    assert_close(denoise(noisy[:, ::-1], profile=profile), expected[:, ::-1])


def test_images_are_independent() -> None:
    images = np.stack([scene(40, 37, seed)[1] for seed in range(3)])
    sigmas = np.array([1.0, 0.5, 2.0])
    together = bm3d_cpu.denoise(images, sigmas)
    alone = [bm3d_cpu.denoise(images[i : i + 1], sigmas[i : i + 1])[0] for i in range(3)]
    assert np.array_equal(together, alone)
