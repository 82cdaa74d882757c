"""Inpainting: what is found, what it is filled with, and that all else stays bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import scipy.ndimage
import tifffile
from skimage.restoration import inpaint_biharmonic

import emdask
from emdask.denoisers.inpaint import Inpaint
from emdask.errors import FormatError, ParameterError, StackError
from emdask.kernels.inpainting import fill_masked
from emdask.kernels.outliers import bin_known, find_beads, find_hot_pixels, grow


@pytest.fixture
def noise(rng: np.random.Generator) -> np.ndarray:
    """Two images of white noise on ice that grows thicker to one side, (2, 90, 110)."""
    return rng.normal(100 + np.linspace(0, 20, 110), 3.0, size=(2, 90, 110)).astype(np.float32)


def disc(shape: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.asarray(np.hypot(y - centre[0], x - centre[1]) < radius)


def find_all(image: np.ndarray, bead_px: float, threshold: float = 8.0) -> np.ndarray:
    return find_beads(image, np.ones(image.shape, bool), bead_px, threshold)


# --- What is found --------------------------------------------------------------------------------


def test_hot_and_dead_pixels_are_found_one_by_one(
    noise: np.ndarray, rng: np.random.Generator
) -> None:
    image = noise[0].copy()
    bad = rng.random(image.shape) < 0.003
    bad[0, 0] = bad[-1, 50] = bad[40, 40] = bad[40, 41] = True
    image[bad] += rng.choice([-1.0, 1.0], bad.sum()) * rng.uniform(45, 1e4, bad.sum())
    np.testing.assert_array_equal(find_hot_pixels(image, 8.0), bad)


def test_the_rule_is_that_of_robust_deviations(noise: np.ndarray) -> None:
    """Against the definition, pixel by pixel, at a threshold that noise passes now and then."""
    image = noise[0]
    expected = np.zeros(image.shape, bool)
    wide = np.pad(image, 4, mode="reflect")
    for y, x in np.ndindex(image.shape):
        around = wide[y : y + 9, x : x + 9].ravel()
        spread = np.median(np.abs(around - np.median(around))) / 0.67449
        expected[y, x] = abs(image[y, x] - np.median(around)) > 3.3 * spread
    found = find_hot_pixels(image, 3.3)
    assert 10 < expected.sum() < 99
    assert not (found & ~expected).any()
    # One that differs little from the mean around it is not looked at.
    assert (expected & ~found).sum() <= 1


def test_an_image_of_outliers_has_none(rng: np.random.Generator) -> None:
    counts = rng.poisson(0.03, size=(64, 64)).astype(np.float32)
    assert not find_hot_pixels(counts, 8.0).any()


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("radius", [5, 9, 24])
def test_beads_are_found(sign: int, radius: int, rng: np.random.Generator) -> None:
    shape = (20 * radius, 22 * radius)
    beads = disc(shape, (6 * radius, 5 * radius), radius)
    beads |= disc(shape, (12 * radius, 16 * radius), radius)
    image = rng.normal(size=shape) + sign * 4.0 * scipy.ndimage.gaussian_filter(beads * 1.0, 1)
    found = find_all((1000 + 5 * image).astype("f4"), 2 * radius)
    assert found[beads].mean() > 0.99
    assert found.sum() < 2.2 * beads.sum()


def test_particles_edges_and_large_things_are_no_beads(rng: np.random.Generator) -> None:
    shape = (300, 320)
    particles = sum(
        disc(shape, (y, x), 10) * 0.8 for y in range(30, 300, 50) for x in range(30, 320, 50)
    )
    carbon = 6.0 * (np.arange(320) > 200) * np.ones((300, 1))
    contamination = 5.0 * disc(shape, (150, 100), 60)
    for signal in (particles, carbon, contamination):
        image = rng.normal(size=shape) + signal
        assert not find_all(image.astype("f4"), 20).any()


def test_real_micrographs_keep_their_particles(shared_data: Path) -> None:
    for path in sorted((shared_data / "micrographs").glob("*.mrc")):
        stack = emdask.open_stack(path)
        image = stack.values[0].astype(np.float32)
        result = emdask.denoise(stack, "inpaint", bead_px=24, grow_px=0).values[0]
        assert np.count_nonzero(result != image) <= 4


# --- What it is filled with -----------------------------------------------------------------------


def test_small_regions_are_filled_as_by_scikit_image(noise: np.ndarray) -> None:
    mask = np.zeros(noise.shape[1:], bool)
    mask[10, 10] = mask[30:33, 50:53] = mask[0, 70] = mask[-1, -1] = True
    image = noise[0]
    result = fill_masked(np.where(mask, 1e6, image).astype("f4"), mask)
    expected = inpaint_biharmonic(image.astype("f8"), mask)
    np.testing.assert_allclose(result[mask], expected[mask], rtol=1e-6)
    np.testing.assert_array_equal(result[~mask], image[~mask])


@pytest.mark.parametrize("radius", [3, 12, 30])
def test_what_is_smooth_is_continued(radius: int) -> None:
    y, x = np.mgrid[:120, :130]
    smooth = (50 + np.sin(x / 40) * np.cos(y / 30) + y / 60).astype("f4")
    mask = disc((120, 130), (60, 66), radius)
    result = fill_masked(np.where(mask, 0, smooth).astype("f4"), mask)
    assert np.abs(result - smooth)[mask].max() < 0.12
    np.testing.assert_array_equal(result[~mask], smooth[~mask])


def test_noise_is_not_continued_into_large_regions(rng: np.random.Generator) -> None:
    image = rng.normal(size=(200, 200)).astype("f4")
    mask = disc((200, 200), (100, 100), 40)
    assert fill_masked(image, mask)[mask].std() < 0.4
    assert inpaint_biharmonic(image, mask)[mask].std() > 0.8


def test_a_large_region_is_not_filled_from_its_neighbour(rng: np.random.Generator) -> None:
    image = rng.normal(10, 1, size=(150, 150)).astype("f4")
    mask = disc((150, 150), (70, 60), 20) | disc((150, 150), (70, 103), 20)
    result = fill_masked(np.where(mask, -1e4, image).astype("f4"), mask)
    assert np.abs(result[mask] - 10).max() < 2.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 2), (5, 7), (16, 3)])
def test_any_mask_of_any_size_can_be_filled(
    shape: tuple[int, int], rng: np.random.Generator
) -> None:
    for share in (0.1, 0.5, 0.9, 1.0):
        image = rng.normal(size=shape).astype("f4")
        mask = rng.random(shape) < share
        result = fill_masked(image, mask)
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(result[~mask], image[~mask])


def test_squares_average_what_is_known(rng: np.random.Generator) -> None:
    image, known = rng.normal(size=(7, 11)), rng.random((7, 11)) < 0.4
    means, shares = bin_known(image, known, 3)
    assert means.shape == shares.shape == (3, 4)
    for i, j in np.ndindex(means.shape):
        here = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
        assert shares[i, j] == pytest.approx(known[here].mean())
        expected = image[here][known[here]].mean() if known[here].any() else image[known].mean()
        assert means[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("grow_px", [0, 0.5, 1, 1.5, 3, 4, 6.5])
def test_masks_grow_by_a_distance(grow_px: float, rng: np.random.Generator) -> None:
    mask = rng.random((40, 50)) < 0.003
    mask[12, 0] = True
    expected = scipy.ndimage.distance_transform_edt(~mask) <= grow_px
    np.testing.assert_array_equal(grow(mask, grow_px), expected)
    assert not grow(np.zeros((5, 5), bool), grow_px).any()


# --- As a method ----------------------------------------------------------------------------------


def test_images_without_outliers_stay_bit_by_bit(noise: np.ndarray) -> None:
    for parameters in ({}, {"bead_px": 20}):
        result = emdask.denoise(noise, "inpaint", **parameters).compute()
        np.testing.assert_array_equal(result, noise)


def test_hot_pixels_and_beads_are_repaired(noise: np.ndarray) -> None:
    bead = disc((90, 110), (40, 60), 10)
    spoilt = np.where(bead, noise - 15, noise)
    spoilt[1, 20, 20] = 1e5
    result = emdask.denoise(spoilt, "inpaint", bead_px=20, grow_px=1).compute()
    kept = grow(bead, 5)
    kept[17:24, 17:24] = True
    np.testing.assert_array_equal(result[:, ~kept], noise[:, ~kept])
    slope = 100 + np.linspace(0, 20, 110) * np.ones((90, 1))
    assert np.abs((result - slope)[:, bead]).max() < 6
    assert abs(result[1, 20, 20] - slope[20, 20]) < 12


def write_mask(path: Path, mask: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, mask)
    elif path.suffix == ".mrc":
        mrcfile.write(path, mask.astype(np.int8))
    else:
        tifffile.imwrite(path, mask.astype(np.uint8))


@pytest.mark.parametrize("name", ["mask.npy", "mask.mrc", "mask.tif"])
def test_a_mask_says_what_is_filled(name: str, noise: np.ndarray, tmp_path: Path) -> None:
    mask = disc((90, 110), (40, 60), 4)
    write_mask(tmp_path / name, mask)
    noise[0, 5, 5] = 1e6
    result = emdask.denoise(noise, "inpaint", mask=tmp_path / name).compute()
    np.testing.assert_array_equal(result[:, ~mask], noise[:, ~mask])
    assert (result[:, mask] != noise[:, mask]).all()


def test_a_mask_that_changed_is_read_again(noise: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    for centre in ((20.0, 20.0), (50.0, 60.0)):
        mask = disc((90, 110), centre, 3 + centre[0] / 20)
        write_mask(path, mask)
        result = emdask.denoise(noise, "inpaint", mask=str(path)).compute()
        np.testing.assert_array_equal(result != noise, np.broadcast_to(mask, noise.shape))


def test_bad_masks_are_told(noise: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        emdask.denoise(noise, "inpaint", mask=str(tmp_path / "none.npy"))
    write_mask(tmp_path / "three.npy", np.zeros((3, 4, 5)))
    with pytest.raises(FormatError, match=r"a mask is one image \(h, w\); got \(3, 4, 5\)"):
        emdask.denoise(noise, "inpaint", mask=str(tmp_path / "three.npy"))
    write_mask(tmp_path / "small.npy", np.zeros((4, 5)))
    with pytest.raises(StackError, match=r"the size of the images, 90 x 110 px; got '4 x 5 in "):
        emdask.denoise(noise, "inpaint", mask=str(tmp_path / "small.npy"))
    write_mask(tmp_path / "all.tif", np.ones((90, 110)))
    with pytest.raises(FormatError, match=r"all\.tif: a mask must leave pixels .*Is it the other"):
        emdask.denoise(noise, "inpaint", mask=str(tmp_path / "all.tif"))


def test_arrays_that_are_no_masks_are_told(noise: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "mask.npy"
    write_mask(path, np.zeros((90, 110)))
    whole = path.read_bytes()
    objects = np.zeros((90, 110), object)
    for content in (b"", b"no array", whole[:50], whole[:-1], objects, np.full((90, 110), "a")):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content, allow_pickle=True)
        with pytest.raises(FormatError, match=r"mask\.npy: must be a whole array of numbers.*save"):
            emdask.denoise(noise, "inpaint", mask=str(path))


@pytest.mark.parametrize("mask", ["mask.npy", "~/mask.npy"])
def test_workers_find_the_mask_from_any_folder(
    mask: str, noise: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = disc((90, 110), (40, 60), 4)
    write_mask(tmp_path / "mask.npy", filled)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lazy = emdask.denoise(emdask.stack.as_stack(noise), "inpaint", mask=mask)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal((lazy.values != noise).any(axis=0), filled)
    told = lazy.attrs["provenance"][-1]["parameters"]["mask"]
    assert told == str(tmp_path / "mask.npy")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"mask": "mask.png"}, r"mask must be the path of a file \.npy, .*; got 'mask\.png'"),
        ({"mask": np.zeros((3, 3))}, r"mask must be the path of a file .*; got 'ndarray'"),
        ({"mask": "mask.npy", "bead_px": 20}, "not both a mask and beads"),
        ({"threshold": 1}, r"threshold must be a number in \[3, 1000\]"),
        ({"bead_px": 2}, r"bead_px must be a number in \[6, 1000\]"),
        ({"grow_px": -1}, r"grow_px must be a number in \[0, 100\]"),
    ],
)
def test_bad_parameters_are_named(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ParameterError, match=f"^inpaint: {said}"):
        Inpaint(**bad)
