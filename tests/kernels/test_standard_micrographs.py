"""Micrographs at the standard scale: what they show does not depend on camera and pixel size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from emdask.backend import to_device, to_host
from emdask.kernels import standard_micrographs
from emdask.kernels.standard_micrographs import Scale, resize, standardise


def spot(shape: tuple[int, int], x: float, y: float, width: float) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * width**2))


@pytest.mark.parametrize("shape", [(31, 40), (97, 128), (150, 53)])
def test_resizing_is_cutting_cosine_transforms(
    device: str, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    image = rng.normal(size=(97, 80)).astype(np.float32)
    frequencies = np.zeros(shape)
    kept = tuple(slice(0, min(a, b)) for a, b in zip(shape, image.shape, strict=True))
    frequencies[kept] = dctn(image, norm="ortho")[kept]
    wanted = idctn(frequencies, norm="ortho") * np.sqrt(np.prod(shape) / image.size)
    np.testing.assert_allclose(
        to_host(resize(to_device(image, device), shape)), wanted, atol=2e-6, rtol=1e-4
    )


def test_bands_do_not_show(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    image = rng.poisson(20, size=(97, 80)).astype(np.uint16)
    whole = resize(image, (40, 30))
    monkeypatch.setattr(standard_micrographs, "BAND_PIXELS", 800)
    np.testing.assert_array_equal(resize(image, (40, 30)), whole)


@pytest.mark.parametrize("diameter_px", [20.0, 71.3, 32.0])
def test_a_dark_particle_is_light_and_where_it_was(
    rng: np.random.Generator, diameter_px: float
) -> None:
    x, y = 130.25, 90.0
    image = 1000 - 50 * spot((251, 320), x, y, diameter_px / 4) + 20 * rng.normal(size=(251, 320))
    standard, scale = standardise(image, diameter_px)
    row, column = np.unravel_index(np.argmax(gaussian_filter(standard, 6)), standard.shape)
    found = scale.to_original(column, row)
    assert found == pytest.approx((x, y), abs=3 / scale.factor_x)
    assert scale.to_standard(*found) == pytest.approx((column, row))
    light, _ = standardise(-image, diameter_px, contrast="light")
    np.testing.assert_allclose(light, standard, atol=1e-4)


def test_grey_levels_and_background_do_not_matter(device: str, rng: np.random.Generator) -> None:
    noise = rng.normal(size=(300, 280))
    slope = np.linspace(0, 2, 280) + np.linspace(0, 1, 300)[:, None] ** 2
    plain, _ = standardise(to_device(noise, device), 48)
    other, _ = standardise(to_device(700 + 90 * (noise + slope), device), 48)
    plain, other = to_host(plain), to_host(other)
    assert np.corrcoef(plain.ravel(), other.ravel())[0, 1] > 0.97
    for standard in (plain, other):
        assert standard.std() == pytest.approx(1, rel=0.05)
        assert abs(standard.mean()) < 0.05


def test_a_lump_of_ice_and_hot_pixels_leave_their_surroundings_alone(
    rng: np.random.Generator,
) -> None:
    noise = rng.normal(size=(400, 400))
    dirty = noise - 40 * (spot((400, 400), 200, 200, 20) > 0.5)
    dirty[::97, ::89] = 1e6
    plain, _ = standardise(noise, 32)
    standard, _ = standardise(dirty, 32)
    ring = spot((400, 400), 200, 200, 20)
    around = (ring < 0.2) & (ring > 0.01)
    assert abs(np.mean((standard - plain)[around])) < 0.3
    assert standard.std() < 1.3


def test_kinds_of_numbers_agree(rng: np.random.Generator) -> None:
    counts = rng.poisson(40, size=(120, 130))
    wanted, _ = standardise(counts.astype(np.float64), 40)
    for kind in (np.uint8, np.int16, np.uint16, np.float32):
        np.testing.assert_allclose(standardise(counts.astype(kind), 40)[0], wanted, atol=1e-4)


def test_sparse_counts_have_a_scale(rng: np.random.Generator) -> None:
    standard, _ = standardise(rng.poisson(0.05, size=(200, 200)).astype(np.uint8), 40)
    assert standard.std() == pytest.approx(1, rel=0.5)


@pytest.mark.parametrize(("n_rows", "value"), [(150, 0), (150, 1000), (340, 0), (340, 1e7)])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
def test_padding_leaves_the_rest_as_it_is(
    device: str, rng: np.random.Generator, n_rows: int, value: float, kind: type
) -> None:
    image = 1000 + 100 * rng.normal(size=(400, 300))
    image[370:390, 100:120] -= 100
    whole, _ = standardise(image.astype(kind), 48)
    image[:n_rows] = value
    standard = to_host(standardise(to_device(image.astype(kind), device), 48)[0])
    first = round(n_rows / 1.5)
    assert not standard[: first - 1].any()
    inner = slice(first + 2, None)
    assert np.corrcoef(standard[inner].ravel(), whole[inner].ravel())[0, 1] > 0.97
    assert standard[inner].std() == pytest.approx(whole[inner].std(), rel=0.1)


@pytest.mark.parametrize("mean", [0.01, 0.05, 0.5, 2.0])
def test_counts_that_are_rare_are_no_padding(rng: np.random.Generator, mean: float) -> None:
    counts = rng.poisson(mean, size=(320, 330)).astype(np.uint8)
    assert standard_micrographs.find_padding(counts) is None
    counts[:, :100] = 0
    padded = standard_micrographs.find_padding(counts)
    assert padded is not None
    np.testing.assert_array_equal(padded, counts == 0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 60), (40, 40)])
def test_tiny_and_constant_images_do_no_harm(device: str, shape: tuple[int, int]) -> None:
    constant = to_device(np.full(shape, 7, np.int16), device)
    standard, scale = standardise(constant, 20)
    assert not to_host(standard).any()
    assert standard.shape == (
        max(1, round(shape[0] * 1.6)),
        max(1, round(shape[1] * 1.6)),
    )
    assert scale == Scale(standard.shape[1] / shape[1], standard.shape[0] / shape[0])
    ramp = to_device(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), device)
    assert np.isfinite(to_host(standardise(ramp, 500)[0])).all()


@pytest.mark.parametrize("noise", [3.0, 0.0])
def test_bad_lines_at_the_edges_are_mended(
    device: str, rng: np.random.Generator, noise: float
) -> None:
    good = rng.normal(100, 5, size=(300, 280)).astype(np.float32)
    bad = good.copy()
    bad[:2] = 100 + noise * (good[:2] - 100)
    bad[:, -3:] = 100 + noise * (good[:, -3:] - 100)
    given = to_device(bad, device)
    mended = to_host(standard_micrographs.mend_edges(given))
    np.testing.assert_array_equal(mended[2:, :-3], good[2:, :-3])
    np.testing.assert_array_equal(mended[:2, :-3], good[2:4, :-3][::-1])
    np.testing.assert_array_equal(mended[2:, -3:], good[2:, -6:-3][:, ::-1])
    np.testing.assert_array_equal(to_host(given), bad)
    fine = to_device(good, device)
    assert standard_micrographs.mend_edges(fine) is fine
