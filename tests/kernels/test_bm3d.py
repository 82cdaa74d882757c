"""BM3D on plain arrays, against a slow reference and by its behaviour."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emdask.kernels import bm3d_cpu, bm3d_plan
from emdask.kernels.bm3d import Rows, denoise_unit_noise
from emdask.kernels.bm3d_plan import HIGH_NOISE, NORMAL, Layout, Profile
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


@dataclass(frozen=True)
class Loops:
    """A twin module and the library of its arrays."""

    module: ModuleType
    xp: Any = np

    def denoise(self, image: Floats, sigma: float = 1.0, profile: Profile = NORMAL) -> Floats:
        """Denoise one image that lies at rest in NumPy."""
        return self.denoise_all(image[None], np.array([sigma]), profile)[0]

    def denoise_all(self, images: Floats, sigmas: Any, profile: Profile = NORMAL) -> Floats:
        return self.to_numpy(self.module.denoise(self.xp.asarray(images), sigmas, profile))

    def lay_out(self, images: Floats, window_px: int) -> tuple[Any, Layout]:
        """Padded images and their plan."""
        layout = self.module.TWIN.lay_out(images.shape[1:], window_px)
        return self.module.TWIN.pad_images(self.xp.asarray(images), layout), layout

    def match(self, padded: Any, layout: Layout, rows: Rows, limit: float) -> tuple[Any, Any]:
        """Groups of up to 16 blocks in windows of 11 pixels."""
        found = self.module.match_blocks(padded, layout, rows, 11, 16, limit)
        return tuple(self.to_numpy(part) for part in found)

    def to_numpy(self, array: Any) -> Any:
        return array if self.xp is np else self.xp.asnumpy(array)


@pytest.fixture
def twin(device: str) -> Loops:
    """Each set of loops in turn."""
    if device == "cpu":
        return Loops(bm3d_cpu)
    import cupy

    from emdask.kernels import bm3d_cuda

    return Loops(bm3d_cuda, cupy)


@functools.cache
def slowly_denoised(shape: tuple[int, int], profile: Profile) -> Floats:
    """The slow reference's result for a scene."""
    noisy = scene(*shape)[1].astype(float)
    if profile.n_scales > 1:
        return bm3d_reference.denoise_scales(noisy, profile).astype(np.float32)
    return bm3d_reference.denoise(noisy, 1.0, profile).astype(np.float32)


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
def test_agrees_with_the_slow_reference(
    twin: Loops, shape: tuple[int, int], profile: Profile
) -> None:
    _, noisy = scene(*shape)
    assert_close(twin.denoise(noisy, profile=profile), slowly_denoised(shape, profile))


@pytest.mark.parametrize(("shape", "n_scales"), [((26, 32), 2), ((33, 32), 3)])
def test_scales_agree_with_the_slow_reference(
    twin: Loops, shape: tuple[int, int], n_scales: int
) -> None:
    _, noisy = scene(*shape)
    profile = HIGH_NOISE._replace(window_px=11, n_scales=n_scales)
    assert_close(twin.denoise(noisy, profile=profile), slowly_denoised(shape, profile))


@pytest.mark.parametrize("contrast", [1.0, 0.0])
def test_groups_are_the_nearest_blocks(twin: Loops, contrast: float) -> None:
    """Where all blocks are equal, in a flat image, those nearer in the image come first."""
    images = np.stack([contrast * scene(32, 35, seed)[1] for seed in range(2)])
    padded, layout = twin.lay_out(images, 11)
    groups, sizes = twin.match(padded, layout, (0, layout.n_down), bm3d_plan.NEVER_SIMILAR)
    assert groups.dtype == sizes.dtype == np.int32
    assert (sizes == 16).all()
    y, x = (g - layout.margin for g in np.divmod(groups, layout.width))
    profile = Profile(window_px=11)
    for n, image in enumerate(images):
        for block, (i, j) in enumerate(np.ndindex(layout.n_down, layout.n_across)):
            expected = bm3d_reference.similar_places(image, 3 * i, 3 * j, True, profile)
            assert list(zip(y[n, block], x[n, block], strict=True)) == expected


def test_groups_of_a_band_are_those_of_the_whole(twin: Loops) -> None:
    images = np.stack([scene(41, 64, seed)[1] for seed in range(2)])
    padded, layout = twin.lay_out(images, 11)
    groups, sizes = twin.match(padded, layout, (0, layout.n_down), 64 * 2.2)
    band, band_sizes = twin.match(padded, layout, (3, 8), 64 * 2.2)
    blocks = slice(3 * layout.n_across, 8 * layout.n_across)
    np.testing.assert_array_equal(band, groups[:, blocks])
    np.testing.assert_array_equal(band_sizes, sizes[:, blocks])
    assert set(np.unique(sizes)) > {1, 16}
    assert (groups[np.arange(16) >= sizes[..., None]] == 0).all()


def test_bands_change_nothing(twin: Loops) -> None:
    _, noisy = scene(45, 50)
    narrow = twin.module.TWIN._replace(band_rows=lambda n_images, layout, group_size: 4)
    result = denoise_unit_noise(twin.xp.asarray(noisy[None]), NORMAL, narrow)
    whole = denoise_unit_noise(twin.xp.asarray(noisy[None]), NORMAL, twin.module.TWIN)
    assert_close(twin.to_numpy(result), twin.to_numpy(whole))


def test_matrices_agree_with_their_definitions() -> None:
    np.testing.assert_allclose(bm3d_plan.cosine_matrix(), bm3d_reference.cosine_2(), atol=1e-12)
    np.testing.assert_allclose(bm3d_plan.wavelet_matrix(), bm3d_reference.wavelet_1_5(), atol=1e-12)


def test_removes_noise(twin: Loops) -> None:
    clean, noisy = scene(96, 96)
    assert np.mean((twin.denoise(noisy) - clean) ** 2) < 0.12


@pytest.mark.parametrize("profile", [NORMAL, HIGH_NOISE])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (8, 8), (9, 10), (17, 64), (45, 130)])
def test_any_shape(twin: Loops, shape: tuple[int, int], profile: Profile) -> None:
    _, noisy = scene(*shape)
    result = twin.denoise(noisy, profile=profile)
    assert result.shape == shape
    assert np.isfinite(result).all()
    assert result.std() <= noisy.std()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 100.0])
def test_constant_image_stays(twin: Loops, sigma: float) -> None:
    image = np.full((40, 33), 7.25, np.float32)
    np.testing.assert_allclose(twin.denoise(image, sigma), image, atol=1e-5)


def test_no_noise_returns_the_input(twin: Loops) -> None:
    _, image = scene(40, 40)
    assert np.array_equal(twin.denoise(image, 0.0), image)
    np.testing.assert_allclose(twin.denoise(image, 1e-3), image, atol=1e-3)


def test_mean_and_unit_pass_through(twin: Loops) -> None:
    _, noisy = scene(48, 48)
    expected = twin.denoise(noisy)
    assert_close(twin.denoise(noisy + np.float32(50)) - np.float32(50), expected)
    assert_close(twin.denoise(noisy * np.float32(1e-3), 1e-3) * np.float32(1e3), expected)


@pytest.mark.parametrize("profile", [NORMAL, HIGH_NOISE])
@pytest.mark.parametrize("shape", [(38, 38), (40, 51), (39, 45)])
def test_commutes_with_rotation_and_transposition(
    twin: Loops, shape: tuple[int, int], profile: Profile
) -> None:
    _, noisy = scene(*shape)
    expected = twin.denoise(noisy, profile=profile)
    assert_close(twin.denoise(np.rot90(noisy), profile=profile), np.rot90(expected))
    assert_close(twin.denoise(noisy.T, profile=profile), expected.T)
    assert_close(twin.denoise(noisy[:, ::-1], profile=profile), expected[:, ::-1])


def test_images_are_independent(twin: Loops) -> None:
    images = np.stack([scene(40, 37, seed)[1] for seed in range(3)])
    sigmas = np.array([1.0, 0.0, 2.0])
    together = twin.denoise_all(images, sigmas)
    alone = np.concatenate(
        [twin.denoise_all(images[i : i + 1], sigmas[i : i + 1]) for i in range(3)]
    )
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float64])
def test_grey_levels_of_any_type(twin: Loops, dtype: type[Any]) -> None:
    image = np.round(20 * scene(30, 30)[1] + 120).astype(dtype)
    assert_close(twin.denoise(image, 20), twin.denoise(image.astype(np.float32), 20))
