"""The lazy layer with methods small enough to check by eye."""

from __future__ import annotations

import operator
import pickle
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import xarray as xr

import emdask
from emdask.backend import why_no_cuda
from emdask.errors import DeviceError, FormatError, ParameterError, StackError
from emdask.kernels.ctf import Optics, ctf_2d
from emdask.lazy import learn_model, map_rows, map_tiles, prepare_model, read_images
from emdask.method import Classifier, Learn, Method, parameter


@dataclass(frozen=True, kw_only=True)
class Centre:
    """Subtracts the mean image of the stack: a method that learns."""

    weight: float = parameter(1.0, "how much of the mean is subtracted")


def _sums(
    images: np.ndarray, image_ids: np.ndarray, params: Centre, n_images: int
) -> dict[str, object]:
    return {"n": len(image_ids), "sum": images.sum(0, dtype="f8"), "ids": list(image_ids)}


def _add(a: dict, b: dict) -> dict:
    return {key: a[key] + b[key] for key in a}


def _mean(sums: dict, params: Centre) -> xr.Dataset:
    return xr.Dataset(
        {"mean": (("y", "x"), sums["sum"] / sums["n"]), "ids": ("image", sums["ids"])}
    )


def _subtract(images: np.ndarray, params: Centre, model: xr.Dataset) -> np.ndarray:
    return (images - params.weight * model["mean"].values).astype(np.float32)


METHOD = Method(
    params=Centre,
    apply={"cpu": _subtract},
    learn=Learn(chunk={"cpu": _sums}, combine=_add, finalize=_mean),
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
    assert model["ids"].values.tolist() == list(range(40))
    assert model.attrs == {"method": "test_lazy", "weight": 1.0, "whitened": False}
    two_graphs = emdask.denoise(lazy, Centre(), model=model).compute()
    one_graph = emdask.denoise(lazy, Centre()).compute()
    np.testing.assert_allclose(two_graphs, images - images.mean(0), atol=1e-6)
    np.testing.assert_array_equal(one_graph, two_graphs)


def test_random_choices_can_follow_the_image(rng: np.random.Generator) -> None:
    stack = emdask.stack.build_stack(da.zeros((4, 2, 2)), {"image_id": [5, 3, 8, 1]})
    model = emdask.learn_denoiser(stack[1:], Centre()).compute()
    assert model["ids"].values.tolist() == [3, 8, 1]


def test_a_model_of_another_method_is_refused(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 3), "f4")
    other = xr.Dataset(attrs={"method": "ksvd"})
    with pytest.raises(ParameterError, match="test_lazy: model must be one that test_lazy has"):
        emdask.denoise(images, Centre(), model=other)
    with pytest.raises(ParameterError, match="must be a dataset, or a path of one; got 'int'"):
        emdask.denoise(images, Centre(), model=3)
    with pytest.raises(FileNotFoundError, match="no such model"):
        emdask.denoise(images, Centre(), model=tmp_path / "none.zarr")


def test_a_saved_model_serves_another_stack(rng: np.random.Generator, tmp_path: Path) -> None:
    images = rng.normal(size=(6, 4, 4)).astype("f4")
    model = emdask.learn_denoiser(images, Centre()).compute()
    path = emdask.save_model(model, tmp_path / "centre.zarr")
    by_file = emdask.denoise(images[:2] + 1, Centre(), model=path).compute()
    np.testing.assert_array_equal(by_file, emdask.denoise(images[:2] + 1, Centre(), model=model))
    with pytest.raises(FileExistsError, match=r"centre\.zarr: exists already\. Name another"):
        emdask.save_model(model, path)
    emdask.save_model(model, path, overwrite=True)
    (tmp_path / "other.zarr").mkdir()
    with pytest.raises(FormatError, match=r"other\.zarr: is not a model"):
        emdask.open_model(tmp_path / "other.zarr")
    with pytest.raises(FileExistsError, match="is no model"):
        emdask.save_model(model, tmp_path / "other.zarr", overwrite=True)


def test_a_model_is_in_the_graph_once(rng: np.random.Generator) -> None:
    images = da.from_array(rng.normal(size=(50, 40, 40)).astype("f4"), chunks=(1, -1, -1))
    model = emdask.learn_denoiser(images, Centre()).compute()
    graph = dict(dask.optimize(emdask.denoise(images, Centre(), model=model))[0].dask)
    holding = [key for key in graph if str(key).startswith("test_lazy-model")]
    assert len(holding) == 1


def test_bad_pixels_are_named_while_learning(rng: np.random.Generator) -> None:
    images = rng.normal(size=(5, 4, 4)).astype("f4")
    images[3, 1, 2] = np.nan
    lazy = da.from_array(images, chunks=(2, -1, -1))
    with pytest.raises(StackError, match="image 3 has 1 NaN"):
        emdask.learn_denoiser(lazy, Centre()).compute()
    model = emdask.learn_denoiser(lazy, Centre(), bad_pixels="replace").compute()
    assert np.isfinite(model["mean"]).all()


@dataclass(frozen=True, kw_only=True)
class Note:
    """Writes what it is told of the optics into the images."""

    pixel_size_A: float | None = parameter(None, "edge of a pixel", "Å")


def _note(images: np.ndarray, params: Note, *, optics: Optics | None) -> np.ndarray:
    result = np.full(images.shape, -1, np.float32)
    if optics is not None:
        result[:, 0, 0] = optics.defocus_u_A
        result[:, 0, 1] = optics.voltage_kV
        result[:, 1, 0] = [optics.ctf((4, 4), i)[0, 1] for i in range(len(images))]
    return result


def _complete(params: Note, attrs: dict, shape: tuple[int, ...]) -> Note:
    assert shape[1:] == (4, 4)
    return Note(pixel_size_A=attrs["pixel_size_A"]) if "pixel_size_A" in attrs else params


NOTE = Method(params=Note, apply={"cpu": _note}, complete=_complete, takes_optics=True)


def _noting(stack: object) -> xr.DataArray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "METHOD", NOTE)
        return emdask.denoise(stack, Note())


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_a_block_gets_the_optics_of_its_images(chunk: int) -> None:
    coords = {"defocus_u_A": np.arange(5) * 1e3 + 1e4, "phase_shift_deg": np.full(5, 90.0)}
    attrs = {"pixel_size_A": 1.5, "voltage_kV": 200.0, "spherical_aberration_mm": 2.0}
    attrs |= {"amplitude_contrast": 0.1}
    stack = emdask.stack.build_stack(da.zeros((5, 4, 4), chunks=(chunk, 4, 4)), coords, attrs)
    lazy = _noting(stack)
    assert lazy.attrs["provenance"][-1]["parameters"] == {"pixel_size_A": 1.5}
    result = lazy[1:].values
    np.testing.assert_array_equal(result[:, 0, 0], coords["defocus_u_A"][1:])
    np.testing.assert_array_equal(result[:, 0, 1], 200)
    expected = ctf_2d((4, 4), **coords, **attrs)[1:, 0, 1]
    np.testing.assert_allclose(result[:, 1, 0], expected, rtol=1e-6)


def test_without_defocus_there_are_no_optics() -> None:
    np.testing.assert_array_equal(_noting(np.zeros((2, 4, 4))).compute(), -1)
    stack = emdask.stack.build_stack(da.zeros((2, 4, 4)), {"defocus_u_A": [1e4, 2e4]})
    with pytest.raises(StackError, match="has defocus_u_A, but for the CTF pixel_size_A, voltage"):
        _noting(stack)


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


def _defoci(
    images: np.ndarray, image_ids: np.ndarray, params: Centre, n_images: int, *, optics: Optics
) -> list[tuple[int, float]]:
    defoci = np.broadcast_to(optics.defocus_u_A, len(images))
    return [*zip(image_ids.tolist(), defoci.tolist(), strict=True)]


def _table(pairs: list[tuple[int, float]], params: Centre) -> xr.Dataset:
    return xr.Dataset({"defocus_u_A": ("image", [defocus for _, defocus in sorted(pairs)])})


def _no_card(*_: object, **__: object) -> None:
    raise AssertionError("this process has no card")


KNOWING = Method(
    params=Centre,
    apply={"cpu": _subtract},
    learn=Learn(chunk={"cpu": _defoci, "cuda": _no_card}, combine=operator.add, finalize=_table),
    takes_optics=True,
)


def test_sums_are_given_the_optics_of_their_images() -> None:
    defoci = np.linspace(1e4, 2e4, 7)
    optics = Optics(pixel_size_A=2.0, defocus_u_A=defoci, defocus_v_A=defoci)
    images = da.zeros((7, 4, 4), chunks=(3, 4, 4))
    model = learn_model(images, np.arange(7), KNOWING, Centre(), name="defoci", optics=optics)
    np.testing.assert_array_equal(model.compute().defocus_u_A, defoci)


def test_learning_on_a_card_never_falls_back() -> None:
    images = da.zeros((2, 4, 4), chunks=(1, 4, 4))
    model = learn_model(images, np.arange(2), KNOWING, Centre(), name="defoci", device="cuda")
    with pytest.raises(DeviceError if why_no_cuda() else AssertionError, match="card"):
        model.compute()


# --- Rows -----------------------------------------------------------------------------------------

STEPS: list[str] = []


def _read_noting(source: None, start: int, stop: int) -> np.ndarray:
    STEPS.append("read")
    return np.arange(start, stop, dtype="f4")[:, None, None] * np.ones((1, 4, 4), "f4")


def _count_images(
    images: np.ndarray, image_ids: np.ndarray, params: Centre, n_images: int
) -> dict[str, object]:
    return {"n": len(image_ids), "sum": images.mean(axis=(1, 2)).sum(dtype="f8")}


def _prepare_mean(sums: dict, params: Centre, references: np.ndarray) -> float:
    STEPS.append("prepare")
    return float(params.weight * sums["sum"] / sums["n"] + references.sum())


def _compare(images: np.ndarray, params: Centre, model: float) -> np.ndarray:
    means = images.mean(axis=(1, 2))
    return np.stack([means - model, means], axis=1)


COMPARING = Classifier(
    params=Centre,
    chunk={"cpu": _count_images},
    combine=_add,
    prepare=_prepare_mean,
    score={"cpu": _compare},
    columns=lambda params, n_classes: ("class_1", "class_2"),
    takes_optics=False,
)


def _compared(images: da.Array, **options: object) -> da.Array:
    how = {"name": "centre", "device": "cpu", **options}
    ids, references = np.arange(len(images)), np.zeros((3, 3))
    model = prepare_model(images, ids, COMPARING, Centre(), references, **how)
    return map_rows(images, COMPARING, Centre(), n_columns=2, model=model, **how)


def _numbers(chunk: int = 2) -> da.Array:
    return read_images(_read_noting, None, shape=(12, 4, 4), dtype="f4", chunk=chunk, name="count")


@pytest.mark.parametrize("chain", ["as read", "slice", "rechunk", "arithmetic", "in memory"])
def test_images_are_read_again_once_the_model_is_there(chain: str) -> None:
    """No chunk waits in memory from the first pass to the second, nor is read before its time."""
    images = {
        "as read": _numbers,
        "slice": lambda: _numbers()[1:-1],
        "rechunk": lambda: _numbers().rechunk((3, 4, 4)),
        "arithmetic": lambda: _numbers() + 1,
        "in memory": lambda: da.from_array(_read_noting(None, 0, 12), chunks=(2, 4, 4)),
    }[chain]()
    rows = _compared(images)
    numbers = images[:, 0, 0].compute()
    STEPS.clear()
    with dask.config.set(scheduler="threads", num_workers=3):
        found = rows.compute()
    n_reads = 0 if chain == "in memory" else 6
    assert ["read"] * n_reads + ["prepare"] + ["read"] * n_reads == STEPS
    np.testing.assert_allclose(found, np.stack([numbers - numbers.mean(), numbers], 1), rtol=1e-6)
    assert found.dtype == rows.dtype == np.float32


def test_reading_and_scoring_a_chunk_is_one_task() -> None:
    (optimized,) = dask.optimize(_compared(_numbers()))
    keys = [str(key) for key in dict(optimized.dask)]
    # Twice reads and what is read; sums, their total and the model of it; scores, put together.
    assert sum("centre-scores" in key for key in keys) == 6
    assert sum("centre-model" in key for key in keys) == 1
    assert sum("centre-references" in key for key in keys) == 1
    assert len(keys) <= 6 * 3 + 6


def test_rows_of_many_chunks_lie_together(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _compared(_numbers()).chunks == ((12,), (2,))
    monkeypatch.setattr(emdask.lazy, "ROWS_AT_ONCE", 5)
    assert _compared(_numbers()).chunks == ((4, 4, 4), (2,))
    assert _compared(_numbers(chunk=7)).chunks == ((7, 5), (2,))


def test_rows_name_bad_pixels_and_their_own_length() -> None:
    spoilt = np.ones((5, 4, 4), "f4")
    spoilt[3, 1, 2] = np.inf
    images = da.from_array(spoilt, chunks=(2, 4, 4))
    with pytest.raises(StackError, match="image 3 has 1 NaN or infinite pixels"):
        _compared(images).compute()
    found = _compared(images, bad_pixels="replace").compute()
    np.testing.assert_array_equal(found, np.tile([0, 1], (5, 1)))
    how = {"name": "centre", "device": "auto"}
    good = da.ones((5, 4, 4), chunks=(2, 4, 4))
    model = prepare_model(good, np.arange(5), COMPARING, Centre(), np.zeros(1), **how)
    with pytest.raises(ValueError, match="reshape"):
        map_rows(good, COMPARING, Centre(), n_columns=3, model=model, **how).compute()
