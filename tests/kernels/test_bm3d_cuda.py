"""The CUDA twin of BM3D beside the CPU's: on the host everywhere, on a card where one is."""

from __future__ import annotations

import inspect
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

import emdask.kernels
from emdask.errors import DeviceError
from emdask.kernels import bm3d_cpu
from emdask.kernels.bm3d_plan import FAR, FAST, HIGH_NOISE, NORMAL, Profile, blend_window
from tests.kernels.test_bm3d import assert_close, scene

Floats = npt.NDArray[np.float32]
SHARED_NAMES = ("denoise", "match_blocks", "start_sums", "filter_hard", "filter_wiener")
# Rounding of float32 sums, where the same blocks are filtered. Equal guides give equal groups bit
# by bit, but guides that differ by rounding may turn a near tie: whole results meet `assert_close`.
ROUNDING = 2e-5
PROFILES = [
    NORMAL,
    FAST,
    HIGH_NOISE,
    Profile(window_px=3, hard_group=1, wiener_group=2),
    Profile(window_px=9, hard_group=64, wiener_group=64),
    Profile(window_px=99, hard_group=4, wiener_group=8),
    Profile(window_px=15, hard_distance=2.2, wiener_distance=0.05, window_beta=0.0),
]


@pytest.fixture
def twin(card: str) -> Any:
    """The module, with CuPy or its stand-in."""
    from emdask.kernels import bm3d_cuda

    return bm3d_cuda


def run(twin: Any, images: Floats, sigmas: Any, profile: Profile) -> Floats:
    import cupy

    return cupy.asnumpy(twin.denoise(cupy.asarray(images), sigmas, profile))  # type: ignore[no-any-return]


def scenes(n: int, h: int, w: int) -> Floats:
    return np.stack([scene(h, w, seed)[1] for seed in range(n)])


def test_the_twins_share_names_and_parameters(cuda_on_host: Any) -> None:
    from emdask.kernels import bm3d_cuda

    for name in (*SHARED_NAMES, "finish_sums"):
        ours, theirs = (getattr(module, name) for module in (bm3d_cuda, bm3d_cpu))
        assert list(inspect.signature(ours).parameters) == list(
            inspect.signature(theirs).parameters
        ), name


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", [(26, 41), (45, 32)])
def test_equals_the_cpu(twin: Any, shape: tuple[int, int], profile: Profile) -> None:
    images = scenes(2, *shape)
    sigmas = np.array([1.0, 0.7])
    expected = bm3d_cpu.denoise(images, sigmas, profile)
    assert_close(run(twin, images, sigmas, profile), expected)


@pytest.mark.parametrize("shape", [(1, 1), (3, 30), (8, 8), (9, 70)])
def test_equals_the_cpu_on_scraps(twin: Any, shape: tuple[int, int]) -> None:
    images = scenes(3, *shape)
    sigmas = np.array([1.0, 2.0, 0.0])
    expected = bm3d_cpu.denoise(images, sigmas)
    assert_close(run(twin, images, sigmas, NORMAL), expected)


@pytest.mark.parametrize("group_size", [1, 2, 16, 32, 64])
@pytest.mark.parametrize("limit", [60.0, 1e29])
def test_groups_are_those_of_the_cpu(twin: Any, group_size: int, limit: float) -> None:
    """Bit by bit, in every row and column and in bands."""
    images = scenes(2, 35, 50)
    # Flat ground: all blocks are equally near.
    images[1, :20] = 0.25
    assert_groups_are_those_of_the_cpu(twin, images, 21, group_size, limit)


def test_groups_on_smooth_ground(twin: Any) -> None:
    """The nearest blocks lie side by side, and for some many are hardly farther than the last."""
    noise = np.random.default_rng(2).normal(size=(1, 44, 64))
    images = (10 * gaussian_filter(noise, (0, 5, 5))).astype(np.float32)
    assert_groups_are_those_of_the_cpu(twin, images, 31, 32, 1e29)


def assert_groups_are_those_of_the_cpu(
    twin: Any, images: Floats, window_px: int, group_size: int, limit: float
) -> None:
    import cupy

    groups = []
    for module in (bm3d_cpu, twin):
        xp = np if module is bm3d_cpu else cupy
        layout = module.TWIN.lay_out(images.shape[1:], window_px)
        padded = module.TWIN.pad_images(xp.asarray(images), layout)
        for rows in ((0, 4), (4, layout.n_down)):
            found, sizes = (
                part if xp is np else xp.asnumpy(part)
                for part in module.match_blocks(padded, layout, rows, window_px, group_size, limit)
            )
            used = np.arange(group_size) < sizes[..., None]
            assert not found[~used].any()
            places = np.stack(np.divmod(found, layout.width)) - layout.margin
            groups.append((sizes, np.where(used, places, 0)))
    for (sizes, places), (our_sizes, our_places) in zip(groups[:2], groups[2:], strict=True):
        np.testing.assert_array_equal(our_sizes, sizes)
        np.testing.assert_array_equal(our_places, places)


@pytest.mark.parametrize("name", ["filter_hard", "filter_wiener"])
@pytest.mark.parametrize("group_size", [4, 16, 32, 64])
def test_filters_add_what_the_cpu_adds(twin: Any, name: str, group_size: int) -> None:
    import cupy

    images = scenes(1, 30, 44)
    estimates = []
    for module in (bm3d_cpu, twin):
        xp = np if module is bm3d_cpu else cupy
        layout = module.TWIN.lay_out(images.shape[1:], 11)
        padded = module.TWIN.pad_images(xp.asarray(images), layout)
        rows, window = (0, layout.n_down), blend_window(2.0)
        found = module.match_blocks(padded, layout, rows, 11, group_size, 90.0)
        sums = module.start_sums(padded, slice(0, layout.height))
        if name == "filter_hard":
            module.filter_hard(padded, layout, rows, *found, 2.7, window, sums)
        else:
            basic = xp.where(padded < FAR, padded * np.float32(0.8), padded)
            module.filter_wiener(padded, basic, layout, rows, *found, window, sums)
        estimate = module.finish_sums(sums, layout, window)
        estimate = estimate if xp is np else xp.asnumpy(estimate)
        top, left = (layout.margin + border for border in layout.border)
        estimates.append(estimate[:, top : top + 30, left : left + 44])
    np.testing.assert_allclose(estimates[1], estimates[0], atol=ROUNDING)


def test_groups_survive_contraction(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilers for cards fuse multiplications and additions; distances leave them no choice."""
    from tests.cuda_host import host

    fused = tuple(flag.replace("contract=off", "contract=fast") for flag in host.FLAGS)
    assert fused != host.FLAGS
    monkeypatch.setattr(host, "FLAGS", fused)
    host.build.cache_clear()
    from emdask.kernels import bm3d_cuda

    test_groups_are_those_of_the_cpu(bm3d_cuda, 32, 1e29)
    images = scenes(1, 30, 31)
    assert_close(run(bm3d_cuda, images, np.ones(1), NORMAL), bm3d_cpu.denoise(images, np.ones(1)))
    host.build.cache_clear()


def test_strong_contrast_keeps_its_digits(twin: Any) -> None:
    """Sums are integers: their unit follows the image, of noise a millionth of its range too."""
    images = scenes(1, 26, 29) * np.float32(1e5)
    for sigma in (1.0, 1e5):
        expected = bm3d_cpu.denoise(images, np.array([sigma]))
        result = run(twin, images, np.array([sigma]), NORMAL)
        assert_close(result / sigma, expected / sigma)
        assert np.median(np.abs(result - expected)) < 1e-6 * np.abs(images).max()


def test_neither_batches_nor_slabs_nor_bands_show(
    twin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = scenes(5, 40, 33)
    sigmas = np.linspace(0.5, 1.5, 5)
    whole = run(twin, images, sigmas, HIGH_NOISE)
    for name, value in (("BATCH_BYTES", 2 << 20), ("GROUP_BYTES", 1), ("LEAST_SLAB_ROWS", 17)):
        monkeypatch.setattr(twin, name, value)
        if name == "LEAST_SLAB_ROWS":
            monkeypatch.setattr(twin, "SUM_BYTES", 1 << 60)
        np.testing.assert_array_equal(run(twin, images, sigmas, HIGH_NOISE), whole)
    alone = [run(twin, images[i : i + 1], sigmas[i : i + 1], HIGH_NOISE)[0] for i in range(5)]
    np.testing.assert_array_equal(whole, alone)


def test_threads_may_run_in_any_order(cuda_on_host: Any) -> None:
    """Shuffled lanes, warps and blocks, and memory between guards: the same bits."""
    from emdask.kernels import bm3d_cuda

    images = scenes(2, 27, 38)
    results: list[Floats] = []
    profiles = NORMAL, FAST, Profile(window_px=9, hard_group=64, wiener_group=64)
    for order in (0, 1, 2):
        cuda_on_host.order, cuda_on_host.guarded = order, order > 0
        results += [bm3d_cuda.denoise(images, np.ones(2), profile) for profile in profiles]
    for i in range(3):
        np.testing.assert_array_equal(results[i], results[i + 3])
        np.testing.assert_array_equal(results[i], results[i + 6])


def test_many_images_are_few_launches(cuda_on_host: Any) -> None:
    from emdask.kernels import bm3d_cuda

    for n in (1, 40):
        cuda_on_host.launches.clear()
        bm3d_cuda.denoise(scenes(n, 16, 16), np.ones(n), FAST)
        assert cuda_on_host.launches["match_blocks"] == 2
        assert sum(cuda_on_host.launches.values()) < 12


@pytest.mark.parametrize("profile", [NORMAL, HIGH_NOISE])
def test_memory_is_as_stated(
    cuda_on_host: Any, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 bytes a pixel of the padded images, whatever NumPy makes in between counted as well."""
    from emdask.kernels import bm3d_cuda

    monkeypatch.setattr(bm3d_cuda, "GROUP_BYTES", 1 << 20)
    cuda_on_host.strict = False
    images = scenes(1, 256, 240)
    layout = bm3d_cuda.lay_out((256, 240), profile.window_px)
    bm3d_cuda.denoise(images[:, :32, :32], np.ones(1), profile)  # tables and code that stay
    tracemalloc.start()
    bm3d_cuda.denoise(images, np.ones(1), profile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The images themselves are the caller's; groups and transforms are bounded apart.
    bounded = (1 << 20) + 64 * (1 << 12)
    assert peak < bm3d_cuda.PIXEL_BYTES * layout.height * layout.width + bounded


def test_cards_with_less_shared_memory(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer reference blocks at a time, the same groups."""
    from emdask.kernels import bm3d_cuda

    images = scenes(1, 26, 26)
    for window_px in (39, 95):
        profile = Profile(window_px=window_px)
        expected = bm3d_cuda.denoise(images, np.ones(1), profile)
        for most, in_all in ((65536, 65536), (101376, 102400), (166912, 167936)):
            monkeypatch.setattr(bm3d_cuda, "_shared_bytes", lambda a=most, b=in_all: (a, b, 1024))
            n_down, n_columns = bm3d_cuda._match_tile(window_px)
            assert 0 < bm3d_cuda._match_bytes(n_down, n_columns, window_px) <= most
            result = bm3d_cuda.denoise(images, np.ones(1), profile)
            np.testing.assert_array_equal(result, expected)
        monkeypatch.undo()


def test_a_window_too_wide_for_a_card_is_told(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emdask.kernels import bm3d_cuda

    monkeypatch.setattr(bm3d_cuda, "_shared_bytes", lambda: (49152, 49152, 0))
    with pytest.raises(DeviceError, match=r"^bm3d: a window of 99 px needs .* smaller window_px"):
        bm3d_cuda.denoise(scenes(1, 26, 26), np.ones(1), Profile(window_px=99))


def test_the_source_goes_with_the_package() -> None:
    assert (Path(emdask.kernels.__path__[0]) / "bm3d.cu").is_file()
