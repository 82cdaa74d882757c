"""What every picker keeps; runs on every method found."""

from __future__ import annotations

import pickle
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dask.base import tokenize

import emdask
from emdask.errors import DeviceError, ParameterError, StackError
from emdask.kernels.proteins import grow_protein
from emdask.method import list_methods
from emdask.metrics import match_picks
from emdask.phantoms import Phantom
from emdask.pickers import COLUMNS, FAMILY, score_micrograph
from emdask.stack import build_stack

METHODS = list_methods(FAMILY)
DIAMETER_A = 110.0
PIXEL_A = 3.0
N_PARTICLES = 14
SIZE_PX = 384


def protein(size: float) -> Phantom:
    """A particle that is denser than ice all over, of about 200 Å times ``size``."""
    points = grow_protein(1) * size
    return Phantom(
        positions_A=points, widths_A=np.full(len(points), 8 * size), masses=np.ones(len(points))
    )


@pytest.fixture(scope="module")
def particle() -> xr.DataArray:
    return protein(0.5).volume(48, PIXEL_A)


@pytest.fixture(scope="module")
def scene(particle: xr.DataArray) -> tuple[xr.DataArray, pd.DataFrame]:
    """Three micrographs, in memory, and where their particles are."""
    made, truth = emdask.simulate_micrographs(
        particle, 3, snr=0.3, size_px=SIZE_PX, n_particles=N_PARTICLES, seed=5, ice=0.5
    )
    return made.images.compute(), truth


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def options(method: str, particle: xr.DataArray) -> dict[str, Any]:
    """What a method cannot do without."""
    return {"template": particle, "n_views": 8} if method == "template" else {}


def pick(images: Any, method: str, options: dict[str, Any], **more: Any) -> pd.DataFrame:
    size = {} if "diameter_px" in more else {"diameter_A": DIAMETER_A}
    return emdask.pick(images, method, **size, **options, **more).compute(scheduler="sync")


def test_particles_are_found(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images, truth = scene
    found = match_picks(pick(images, method, options), truth, radius_px=0.2 * DIAMETER_A / PIXEL_A)
    assert found.average_precision > 0.9
    assert found.recall > 0.9
    assert found.precision > 0.7


def test_the_table_is_as_it_says(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images, _ = scene
    lazy = emdask.pick(images.chunk({"image": 1}), method, diameter_A=DIAMETER_A, **options)
    table = lazy.compute(scheduler="sync")
    assert lazy.npartitions == 3
    assert list(table.columns) == list(COLUMNS)
    assert (table.dtypes == lazy.dtypes).all()
    assert list(table.micrograph.unique()) == [str(name) for name in images.micrograph.values]
    for _, rows in table.groupby("micrograph"):
        assert rows.score.is_monotonic_decreasing
        assert rows[["x_px", "y_px"]].to_numpy().min() >= -0.5
        assert rows[["x_px", "y_px"]].to_numpy().max() <= SIZE_PX - 0.5


def test_chunks_do_not_matter(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images, _ = scene
    expected = pick(images.chunk({"image": 3}), method, options)
    for chunks in ({"image": 1}, {"image": 2, "y": 100}):
        result = pick(images.chunk(chunks), method, options)
        pd.testing.assert_frame_equal(
            result.reset_index(drop=True), expected.reset_index(drop=True)
        )


def test_building_reads_nothing(method: str, options: dict[str, Any]) -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("was computed")

    images = da.zeros((4, 256, 256), chunks=(1, 256, 256), dtype="f4")
    poisoned = images.map_blocks(explode, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    stack = build_stack(poisoned, {}, {"pixel_size_A": PIXEL_A})
    table = emdask.pick(stack, method, diameter_A=DIAMETER_A, **options)
    assert table.npartitions == 4
    with pytest.raises(AssertionError, match="was computed"):
        table.compute(scheduler="sync")


def test_the_same_call_is_the_same_graph(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images = scene[0].chunk({"image": 1})
    tables = [
        emdask.pick(images, method, diameter_A=size, **options) for size in (110.0, 110.0, 100.0)
    ]
    names = [tokenize(table) for table in tables]
    assert names[0] == names[1] != names[2]
    again = pickle.loads(pickle.dumps(tables[0])).compute(scheduler="sync")
    pd.testing.assert_frame_equal(again, tables[0].compute(scheduler="sync"))


def test_nothing_to_be_found_is_an_empty_table(
    method: str, options: dict[str, Any], particle: xr.DataArray
) -> None:
    """All of one grey level, all carbon, and bare noise."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 300, 310)).astype("f4")
    noise[0] = 7
    noise[1] = 0
    noise[2] += 20 * np.linspace(0, 1, 310, dtype="f4")
    stack = build_stack(noise, {}, {"pixel_size_A": PIXEL_A})
    table = pick(stack, method, options)
    assert list(table.columns) == list(COLUMNS)
    counts = table.groupby("micrograph").size()
    assert not {"image_000000", "image_000001"} & set(counts.index)
    # 70 places at least; of noise a few may pass.
    assert counts.max() <= 10 if len(counts) else True


def test_coordinates_are_of_the_micrograph(method: str, options: dict[str, Any]) -> None:
    """x to the right, y downwards, the first pixel's centre at 0; whatever the scale."""
    for diameter_px, shape in ((20.0, (200, 260)), (61.0, (420, 355))):
        volume = protein(3.0 * diameter_px / 220).volume(2 * int(0.7 * diameter_px), 3.0)
        if method == "template":
            options = {"template": volume, "n_views": 8}
        places = np.array([[0.25, 0.3], [0.7, 0.28], [0.5, 0.75]]) * (shape[1], shape[0])
        places = places.round()
        image = np.random.default_rng(1).normal(scale=0.6, size=shape)
        half = volume.shape[0] // 2
        projection = volume.values.sum(axis=0)
        projection *= 2.5 / projection.max()
        for px, py in places.astype(int):
            image[py - half : py + half, px - half : px + half] -= projection[
                : 2 * half, : 2 * half
            ]
        stack = build_stack(image[None].astype("f4"), {}, {"pixel_size_A": 3.0})
        table = pick(stack, method, options, diameter_px=diameter_px)
        found = table[["x_px", "y_px"]].to_numpy()
        apart = np.linalg.norm(found[:, None] - places[None], axis=2).min(axis=0)
        assert apart.max() < 0.12 * diameter_px, (method, diameter_px)


def test_contrast_is_a_sign(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images = scene[0][:1]
    dark, light = pick(images, method, options), pick(-images, method, options, contrast="light")
    pd.testing.assert_frame_equal(dark, light, rtol=1e-5)


def test_threshold_spacing_and_border(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images = scene[0][:1]
    usual = pick(images, method, options)
    middle = float(usual.score.median())
    fewer = pick(images, method, options, threshold=middle)
    assert 0 < len(fewer) < len(usual)
    assert fewer.score.min() > middle - 1e-6
    inner = pick(images, method, options, border_px=60)
    assert inner[["x_px", "y_px"]].to_numpy().min() >= 59.5
    assert inner[["x_px", "y_px"]].to_numpy().max() <= SIZE_PX - 60.5
    apart = pick(images, method, options, spacing=2.0)[["x_px", "y_px"]].to_numpy()
    distances = np.linalg.norm(apart[:, None] - apart[None], axis=2)
    assert distances[distances > 0].min() > 1.9 * DIAMETER_A / PIXEL_A


def test_what_is_wrong_is_said(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images = scene[0]
    unknown = images.drop_attrs()
    with pytest.raises(ParameterError, match="one of diameter_A and diameter_px must be given"):
        emdask.pick(images, method, **options)
    with pytest.raises(StackError, match=r"pixel size .* not known"):
        emdask.pick(unknown, method, diameter_A=100, **options)
    with pytest.raises(ParameterError, match="fit into the micrographs"):
        emdask.pick(images, method, diameter_A=5000, **options)
    with pytest.raises(ParameterError, match="fit into the micrographs"):
        emdask.pick(images, method, diameter_A=5, **options)
    large = build_stack(da.zeros((1, 20_000, 20_000)), {}, {"pixel_size_A": PIXEL_A})
    with pytest.raises(ParameterError, match=r"magnify .* Is the diameter right"):
        emdask.pick(large, method, diameter_A=18, **options)
    with pytest.raises(StackError, match="images must be micrographs; got 'particles'"):
        emdask.pick(images.assign_attrs(kind="particles"), method, diameter_A=100, **options)
    twice = xr.concat([images[:1], images[:1]], "image")
    with pytest.raises(StackError, match="must differ in micrograph or image_id"):
        emdask.pick(twice, method, diameter_A=100, **options)
    with pytest.raises(ParameterError, match="no parameter of this name; got 'modl'"):
        emdask.pick(images, method, diameter_A=100, modl=1, **options)
    with pytest.raises(ParameterError, match="contrast must be one of dark, light"):
        emdask.pick(images, method, diameter_A=100, contrast="black", **options)
    broken = images.copy(deep=True)
    broken[1, 5, 5] = np.nan
    with pytest.raises(StackError, match="image 1 has 1 NaN"):
        pick(broken, method, options)
    assert len(pick(broken, method, options, bad_pixels="replace")) > 0


def test_a_device_that_is_named_never_falls_back(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    from emdask.backend import why_no_cuda

    if why_no_cuda() is None:
        pytest.skip("there is a card")
    with pytest.raises(DeviceError, match="cuda"):
        pick(scene[0], method, options, device="cuda")


def test_a_micrograph_alone_is_scored_the_same(
    method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    image = scene[0][0]
    best = pick(scene[0][:1], method, options).iloc[0]
    scores, scale = score_micrograph(image, method, diameter_px=DIAMETER_A / PIXEL_A, **options)
    i, j = np.unravel_index(np.argmax(scores.scores), scores.scores.shape)
    x_px, y_px = scale.to_original(
        scores.offset_px + j * scores.step_px, scores.offset_px + i * scores.step_px
    )
    cell = scores.step_px / scale.factor_x
    assert abs(x_px - best.x_px) <= cell
    assert abs(y_px - best.y_px) <= cell
    assert float(scores.scores.max()) == pytest.approx(best.score, rel=1e-5)
    size = {"diameter_px": DIAMETER_A / PIXEL_A, **options}
    with pytest.raises(ParameterError, match="one micrograph is scored at a time; got 3"):
        score_micrograph(scene[0], method, **size)
    with pytest.raises(ParameterError, match="finite pixels"):
        score_micrograph(image.where(image != image[3, 3]), method, **size)


def test_cards_find_the_same(
    card: str, method: str, options: dict[str, Any], scene: tuple[xr.DataArray, pd.DataFrame]
) -> None:
    images, truth = scene
    with dask.config.set(scheduler="sync"):
        on_card = pick(images, method, options, device=card)
        on_host = pick(images, method, options, device="cpu")
    again = match_picks(on_card, on_host, radius_px=2.0)
    assert again.f1 > 0.97
    found = match_picks(on_card, truth, radius_px=0.2 * DIAMETER_A / PIXEL_A)
    assert found.average_precision > 0.9
