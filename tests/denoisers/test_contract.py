"""What every denoiser keeps; runs on every method found."""

from __future__ import annotations

import dataclasses
import pickle
from functools import cache
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize

import emdask
from emdask.backend import why_no_cuda
from emdask.denoisers import FAMILY, complete_params
from emdask.errors import DeviceError, ParameterError, StackError
from emdask.io.weights import Weights
from emdask.method import Method, find_method, learns, list_methods
from emdask.stack import as_stack, build_stack

METHODS = list_methods(FAMILY)
# Differences between the devices, relative to the noise: rounding, and where it turns a near tie in
# a method that chooses, a few pixels by more.
ROUNDING = 2e-4
TURNED_TIES = 0.1
SIGMA = 0.5
# Methods whose sums over the stack are added up in the order of the chunks, and how far rounding
# may then carry the answer, relative to the noise.
SUMS_ROUND = {"cwf": 1e-5}
# Methods that know particles alone: square boxes of at least this many px.
PARTICLES_ALONE = {"cwf": 8}


def blobs(n_images: int = 6, size: int = 48, seed: int = 7) -> np.ndarray:
    """Smooth images of unit contrast: a few Gaussians each, seeded by the image."""
    y, x = np.mgrid[:size, :size]
    images = np.zeros((n_images, size, size), np.float32)
    for i in range(n_images):
        rng = np.random.default_rng([seed, i])
        for cy, cx, width in zip(
            *rng.uniform(12, size - 12, (2, 5)), rng.uniform(2, 5, 5), strict=True
        ):
            images[i] += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return images


@cache
def trained(method: str) -> Weights:
    """A network of a method of which none ships: small, and good enough for blobs."""
    training = record_of(method).training
    assert training is not None
    clean = blobs(64, seed=8)
    noisy = clean + np.random.default_rng(2).normal(scale=SIGMA, size=clean.shape)
    given: dict[str, Any] = {"stack": noisy.astype("f4"), "clean": clean}
    if training.takes != "clean":
        del given["clean"]
    options: dict[str, Any] = {"epochs": 12, "learning_rate": 4e-3, "width": 8}
    return emdask.train_denoiser(**given, method=method, **options)


def denoise(images: Any, method: Any, **options: Any) -> Any:
    """Denoise with a model where one is needed."""
    name = method if isinstance(method, str) else type(method).__module__.rpartition(".")[2]
    if record_of(name).needs_model and "model" not in options:
        options["model"] = trained(name)
    return emdask.denoise(images, method, **options)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    return blobs()


@pytest.fixture(scope="module")
def noisy(clean: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(scale=SIGMA, size=clean.shape)
    return (clean + noise).astype(np.float32)


def record_of(method: str) -> Method:
    return find_method(FAMILY, method)


def assert_same(result: np.ndarray, expected: np.ndarray, method: str) -> None:
    """Bit by bit; but to rounding where the method adds up the stack."""
    atol = SUMS_ROUND.get(method, 0) * SIGMA
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)


def learns_by_default(method: str) -> bool:
    record = record_of(method)
    return learns(record, record.params())


def spoilt(method: str, clean: np.ndarray, noisy: np.ndarray) -> np.ndarray:
    """Images with the fault that the method removes."""
    if record_of(method).removes == "noise":
        return noisy
    faint = clean + (noisy - clean) / 10
    hot = np.random.default_rng(2).random(clean.shape) < 0.004
    return np.where(hot, faint + 8, faint).astype(np.float32)


def exploding(block: np.ndarray) -> np.ndarray:
    if block.size:
        raise AssertionError("building the graph computed a block")
    return block


def test_building_computes_nothing(method: str) -> None:
    images = da.zeros((8, 32, 32), chunks=(2, 32, 32), dtype="f4").map_blocks(
        exploding, dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    lazy = denoise(images, method)
    assert isinstance(lazy, da.Array)
    with pytest.raises(AssertionError, match="computed a block"):
        lazy.compute()


def test_chunks_never_change_the_answer(method: str, noisy: np.ndarray) -> None:
    whole = denoise(da.from_array(noisy, chunks=(-1, -1, -1)), method).compute()
    for chunk in (1, 4, (2, 3, 1)):
        parts = denoise(da.from_array(noisy, chunks=(chunk, -1, -1)), method).compute()
        assert_same(parts, whole, method)


def test_pixel_chunks_are_merged(method: str, noisy: np.ndarray) -> None:
    whole = denoise(noisy, method).compute()
    tiled = denoise(da.from_array(noisy, chunks=(2, 20, 16)), method)
    assert tiled.chunks[1:] == ((48,), (48,))
    assert_same(tiled.compute(), whole, method)


def test_meta_dtype_shape_are_true(method: str, noisy: np.ndarray) -> None:
    for dtype in ("f4", "f8", "f2", "i2", "u1"):
        scaled = (noisy * 20 + 60).astype(dtype)
        lazy = denoise(da.from_array(scaled, chunks=(4, -1, -1)), method)
        result = lazy.compute()
        assert lazy.dtype == result.dtype == np.float32
        assert lazy.shape == result.shape == noisy.shape
        assert type(lazy._meta) is type(result) is np.ndarray
        assert lazy._meta.ndim == 3


def test_lowers_the_error(method: str, noisy: np.ndarray, clean: np.ndarray, device: str) -> None:
    if device not in record_of(method).apply:
        pytest.skip(f"{method} has no code for {device}")
    given = spoilt(method, clean, noisy)
    result = denoise(given, method, device=device).compute()
    assert np.mean((result - clean) ** 2) < 0.5 * np.mean((given - clean) ** 2)


@pytest.mark.parametrize(("gain", "offset"), [(1e-3, 0.0), (250.0, -4000.0)])
def test_grey_levels_have_no_natural_scale(
    method: str, noisy: np.ndarray, gain: float, offset: float
) -> None:
    plain = denoise(noisy, method).compute()
    scaled = denoise(noisy.astype("f8") * gain + offset, method).compute()
    difference = np.abs((scaled - offset) / gain - plain) / SIGMA
    assert np.median(difference) < 1e-3
    assert difference.max() < TURNED_TIES


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 9), (2, 5, 7), (1, 17, 16), (2, 8, 8)])
def test_tiny_and_flat_images_survive(method: str, shape: tuple[int, int, int]) -> None:
    least_px = PARTICLES_ALONE.get(method, 0)
    if least_px and (shape[1] != shape[2] or shape[1] < least_px):
        with pytest.raises(StackError, match=rf"^{method}: images must be square"):
            denoise(np.zeros(shape, "f4"), method)
        return
    for images in (np.zeros(shape), np.random.default_rng(3).normal(size=shape)):
        result = denoise(images.astype("f4"), method).compute()
        assert result.shape == shape
        assert np.isfinite(result).all()
    flat = denoise(np.full(shape, 7, "i2"), method).compute()
    np.testing.assert_allclose(flat, 7, atol=1e-4)


def test_devices_agree(method: str, noisy: np.ndarray, device: str) -> None:
    if device not in record_of(method).apply:
        pytest.skip(f"{method} has no code for {device}")
    results = [denoise(noisy, method, device=d).compute() for d in ("cpu", device)]
    difference = np.abs(results[1] - results[0]) / SIGMA
    assert np.median(difference) < ROUNDING
    assert difference.max() < TURNED_TIES


def test_chunks_never_change_the_answer_of_a_device(
    method: str, noisy: np.ndarray, device: str
) -> None:
    if device not in record_of(method).apply:
        pytest.skip(f"{method} has no code for {device}")
    whole = denoise(noisy, method, device=device).compute()
    parts = da.from_array(noisy, chunks=((2, 3, 1), -1, -1))
    assert_same(denoise(parts, method, device=device).compute(), whole, method)


def test_a_named_device_never_falls_back(method: str, noisy: np.ndarray) -> None:
    if why_no_cuda() is None and "cuda" in record_of(method).apply:
        pytest.skip("there is a card and code for it")
    with pytest.raises(DeviceError, match=r"cuda"):
        denoise(noisy, method, device="cuda").compute()


def test_models_are_datasets_and_can_be_kept(
    method: str, noisy: np.ndarray, tmp_path: Path
) -> None:
    if not learns_by_default(method):
        pytest.skip(f"{method} learns nothing")
    model = emdask.learn_denoiser(noisy, method).compute()
    assert isinstance(model, xr.Dataset)
    assert model.attrs["method"] == method
    assert model.nbytes < 2**24
    path = emdask.save_model(model, tmp_path / "model.zarr")
    used = denoise(build_stack(da.from_array(noisy)), method, model=path)
    assert used.attrs["provenance"][-1]["parameters"]["model"] == model.attrs
    kept = denoise(noisy[1:3], method, model=path).compute()
    whole = denoise(noisy, method).compute()
    np.testing.assert_array_equal(kept, whole[1:3])


def test_what_is_learnt_does_not_depend_on_the_chunks(method: str, noisy: np.ndarray) -> None:
    if not learns_by_default(method):
        pytest.skip(f"{method} learns nothing")
    models = [
        emdask.learn_denoiser(da.from_array(noisy, chunks=(chunk, -1, -1)), method).compute()
        for chunk in (6, 1, (2, 3, 1))
    ]
    for model in models[1:]:
        if method not in SUMS_ROUND:
            xr.testing.assert_identical(model, models[0])
        assert model.attrs.keys() == models[0].attrs.keys()


def test_what_a_block_of_a_large_stack_sends_is_little(method: str) -> None:
    learn = record_of(method).learn
    if learn is None:
        pytest.skip(f"{method} learns nothing")
    images = np.random.default_rng(0).normal(size=(16, 64, 64)).astype("f4")
    stack = as_stack(images)
    params = complete_params(record_of(method), record_of(method).params(), stack)
    along = {"optics": None} if record_of(method).takes_optics else {}
    sums = learn.chunk["cpu"](images, np.arange(16), params, 16 * 1024, **along)
    assert len(pickle.dumps(sums)) < images.nbytes


def test_parameters_pickle_and_tokenize(method: str) -> None:
    params = record_of(method).params()
    assert pickle.loads(pickle.dumps(params)) == params
    assert tokenize(params) == tokenize(record_of(method).params())
    assert dataclasses.is_dataclass(params)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(params, dataclasses.fields(params)[0].name, 1)


def test_every_parameter_is_described(method: str) -> None:
    for field in dataclasses.fields(record_of(method).params):
        assert field.metadata["meaning"], field.name
        assert field.default is not dataclasses.MISSING, field.name


def test_an_unknown_parameter_is_named(method: str, noisy: np.ndarray) -> None:
    with pytest.raises(ParameterError, match=rf"^{method}: .*'strengthh'"):
        denoise(noisy, method, strengthh=1)


def test_record_and_name_are_one(method: str, noisy: np.ndarray) -> None:
    record = record_of(method).params()
    by_record, by_name = (denoise(noisy, which) for which in (record, method))
    assert by_record.name == by_name.name


def test_a_stack_keeps_what_is_known(method: str, noisy: np.ndarray) -> None:
    stack = build_stack(
        da.from_array(noisy, chunks=(2, -1, -1)),
        {"defocus_u_A": np.arange(6.0), "micrograph": list("abcdef")},
        {
            **{"pixel_size_A": 1.5, "voltage_kV": 300.0, "spherical_aberration_mm": 2.7},
            **{"amplitude_contrast": 0.1},
            "provenance": [{"step": "earlier", "parameters": {}}],
        },
    )
    result = denoise(stack, method)
    xr.testing.assert_equal(result.coords.to_dataset(), stack.coords.to_dataset())
    assert result.attrs["pixel_size_A"] == 1.5
    steps: list[Any] = result.attrs["provenance"]
    assert [s["step"] for s in steps] == ["earlier", method]
    assert stack.attrs["provenance"] == [{"step": "earlier", "parameters": {}}]


def test_one_image_in_one_image_out(method: str, noisy: np.ndarray) -> None:
    one = denoise(noisy[0], method)
    assert isinstance(one, da.Array)
    assert one.shape == (48, 48)
    np.testing.assert_array_equal(one.compute(), denoise(noisy[:1], method).compute()[0])


def test_bad_pixels_are_named_or_replaced(method: str, noisy: np.ndarray) -> None:
    bad = noisy.copy()
    bad[4, 3, 5] = np.nan
    bad[4, 7, 7] = np.inf
    images = da.from_array(bad, chunks=(3, -1, -1))
    with pytest.raises(StackError, match="image 4 has 2 NaN or infinite pixels"):
        denoise(images, method).compute()
    options: dict[str, Any] = {}
    if learns_by_default(method):
        options["model"] = emdask.learn_denoiser(noisy, method).compute()
    repaired = denoise(images, method, bad_pixels="replace", **options).compute()
    assert np.isfinite(repaired).all()
    good = denoise(noisy, method, **options).compute()
    np.testing.assert_array_equal(np.delete(repaired, 4, axis=0), np.delete(good, 4, axis=0))


def test_tasks_have_readable_names(method: str, noisy: np.ndarray) -> None:
    lazy = denoise(noisy, method)
    assert lazy.name.startswith(f"{method}-")
    (optimized,) = dask.optimize(lazy)
    assert any(str(key).startswith((method, f"('{method}")) for key in dict(optimized.dask))
