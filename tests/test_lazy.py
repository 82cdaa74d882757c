"""The lazy layer with methods small enough to check by eye."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage

import emdask
from emdask.errors import StackError
from emdask.lazy import learn_model, map_tiles, read_images
from emdask.method import Learn, Method, parameter


@dataclass(frozen=True, kw_only=True)
class Centre:
    """Subtracts the mean image of the stack: a method that learns."""

    weight: float = parameter(1.0, "how much of the mean is subtracted")


def _sums(images: np.ndarray, image_ids: np.ndarray, params: Centre) -> dict[str, object]:
    return {"n": len(image_ids), "sum": images.sum(0, dtype="f8"), "ids": list(image_ids)}


def _add(a: dict, b: dict) -> dict:
    return {key: a[key] + b[key] for key in a}


def _mean(sums: dict, params: Centre) -> dict:
    return {"mean": sums["sum"] / sums["n"], "ids": sums["ids"]}


def _subtract(images: np.ndarray, params: Centre, model: dict) -> np.ndarray:
    return (images - params.weight * model["mean"]).astype(np.float32)


METHOD = Method(
    params=Centre, apply={"cpu": _subtract}, learn=Learn(chunk=_sums, combine=_add, finalize=_mean)
)


@dataclass(frozen=True, kw_only=True)
class Box:
    """Mean filter: a method that works on tiles."""

    width_px: int = parameter(5, "edge of the box", "px")


def _box(images: np.ndarray, params: Box) -> np.ndarray:
    size = (1, params.width_px, params.width_px)
    return scipy.ndimage.uniform_filter(images, size, mode="nearest").astype(np.float32)


BOX = Method(params=Box, apply={"cpu": _box}, halo=lambda params: params.width_px // 2)


@pytest.mark.parametrize("chunk", [1, 3, 7, 40])
def test_a_model_is_learnt_in_one_pass(rng: np.random.Generator, chunk: int) -> None:
    images = rng.normal(size=(40, 6, 5)).astype("f4")
    lazy = da.from_array(images, chunks=(chunk, -1, -1))
    model = emdask.learn_denoiser(lazy, Centre()).compute()
    np.testing.assert_allclose(model["mean"], images.mean(0, dtype="f8"), rtol=1e-12)
    assert model["ids"] == list(range(40))
    two_graphs = emdask.denoise(lazy, Centre(), model=model).compute()
    one_graph = emdask.denoise(lazy, Centre()).compute()
    np.testing.assert_allclose(two_graphs, images - images.mean(0), atol=1e-6)
    np.testing.assert_array_equal(one_graph, two_graphs)


def test_random_choices_can_follow_the_image(rng: np.random.Generator) -> None:
    stack = emdask.stack.build_stack(da.zeros((4, 2, 2)), {"image_id": [5, 3, 8, 1]})
    model = emdask.learn_denoiser(stack[1:], Centre()).compute()
    assert model["ids"] == [3, 8, 1]


def test_learning_keeps_no_block(rng: np.random.Generator) -> None:
    """The combine tree is shallow and every block enters one task alone."""
    lazy = da.zeros((600, 2, 2), chunks=(1, 2, 2))
    model = learn_model(lazy, np.arange(600), METHOD, Centre(), name="centre")
    keys = [str(key) for key in dict(model.dask)]
    assert sum("centre-sums" in key for key in keys) == 600
    assert sum("centre-combine" in key for key in keys) == 75 + 10 + 2 + 1


@pytest.mark.parametrize("tile_px", [1, 16, 33, 100])
def test_tiles_have_no_seams(rng: np.random.Generator, tile_px: int) -> None:
    images = rng.normal(size=(2, 70, 50)).astype("f4")
    tiled = map_tiles(
        da.from_array(images), BOX, Box(width_px=7), tile_px=tile_px, name="box", device="cpu"
    )
    np.testing.assert_allclose(tiled.compute(), _box(images, Box(width_px=7)), atol=2e-6)
    assert tiled.dtype == np.float32


def test_tiles_need_a_halo() -> None:
    with pytest.raises(StackError, match="needs whole images"):
        map_tiles(da.zeros((1, 9, 9)), METHOD, Centre(), tile_px=4, name="centre", device="cpu")


def _count(source: int, start: int, stop: int) -> np.ndarray:
    return np.full((stop - start, 2, 2), source, "i2") + np.arange(start, stop)[:, None, None]


def test_blocks_read_themselves() -> None:
    images = read_images(_count, 100, shape=(10, 2, 2), dtype="i2", chunk=4, name="read-count")
    assert images.chunks == ((4, 4, 2), (2,), (2,))
    np.testing.assert_array_equal(images[:, 0, 0].compute(), np.arange(100, 110))
    np.testing.assert_array_equal(images[7, 1].compute(), [107, 107])


def test_a_huge_stack_is_a_small_graph() -> None:
    """Ten million images: the graph is described, not enumerated, and pickles small."""
    shape = (10_000_000, 128, 128)
    images = read_images(_count, 0, shape=shape, dtype="f4", chunk=1024, name="read-count")
    lazy = emdask.denoise(images, "bm3d", sigma=1.0)
    assert lazy.npartitions == 9766
    assert len(pickle.dumps(lazy.dask)) < 1_000_000


def test_nothing_is_read_while_building() -> None:
    images = read_images(_fail, None, shape=(4, 8, 8), dtype="f4", chunk=2, name="read-fail")
    lazy = emdask.denoise(images, "bm3d")[1:]
    with pytest.raises(OSError, match="read"):
        lazy.compute()


def _fail(source: None, start: int, stop: int) -> np.ndarray:
    raise OSError("read")


def test_stacked_steps_become_one_task_a_chunk() -> None:
    images = read_images(_count, 0, shape=(8, 4, 4), dtype="f4", chunk=2, name="read-count")
    (optimized,) = dask.optimize(emdask.denoise(emdask.denoise(images, "bm3d"), "bm3d"))
    assert len(dict(optimized.dask)) <= 4 + 1
