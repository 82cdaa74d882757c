"""Devices: what is named is used or refused; a card is used through CuPy."""

from __future__ import annotations

from dataclasses import dataclass

import dask.array as da
import numpy as np
import pytest

import emdask
from emdask.backend import array_namespace, check_device, on_device, resolve_device, why_no_cuda
from emdask.errors import DeviceError, ParameterError
from emdask.method import Method, parameter

needs_card = pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One function over any array library, for both devices."""

    by: float = parameter(2.0, "factor")


def _scale(images: np.ndarray, params: Scale) -> np.ndarray:
    xp = array_namespace(images)
    return xp.multiply(images, params.by, dtype=xp.float32)


def _library(images: np.ndarray, params: Scale) -> np.ndarray:
    """Mark each image with the library that it was handed in: 0 NumPy, 1 CuPy."""
    xp = array_namespace(images)
    return xp.full(images.shape, float(xp is not np), dtype=xp.float32)


METHOD = Method(params=Scale, apply={"cpu": _scale, "cuda": _scale})


def test_devices_are_three_words() -> None:
    with pytest.raises(ParameterError, match="device must be one of auto, cpu, cuda; got 'gpu'"):
        check_device("gpu", "bm3d", {"cpu"})


def test_the_default_device_is_a_setting() -> None:
    import dask

    with dask.config.set({"emdask.device": "cpu"}):
        assert check_device(None, "bm3d", {"cpu"}) == "cpu"
    assert check_device(None, "bm3d", {"cpu"}) == "auto"


def test_a_method_without_cuda_code_says_so() -> None:
    with pytest.raises(DeviceError, match="bm3d: runs on cpu; got 'cuda'"):
        check_device("cuda", "bm3d", {"cpu"})


def test_no_card_is_an_error_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emdask.backend.why_no_cuda", lambda: "there is none")
    with pytest.raises(DeviceError, match=r"NVIDIA card. Here there is none"):
        resolve_device("cuda", {"cpu", "cuda"})
    assert resolve_device("auto", {"cpu", "cuda"}) == "cpu"
    with pytest.raises(DeviceError):
        emdask.denoise(np.ones((1, 4, 4), "f4"), Scale(), device="cuda").compute()


def test_both_devices_give_one_answer(device: str) -> None:
    images = np.arange(32, dtype="f4").reshape(2, 4, 4)
    result = emdask.denoise(images, Scale(by=3.0), device=device).compute()
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, 3 * images)


@pytest.mark.gpu
@needs_card
def test_a_block_goes_to_the_card_and_back() -> None:
    images = np.ones((2, 4, 4), "f4")
    assert on_device(_library, images, Scale(), device="cuda").sum() == images.size
    assert on_device(_library, images, Scale(), device="cpu").sum() == 0


@pytest.mark.gpu
@needs_card
def test_a_block_on_the_card_stays_there() -> None:
    import cupy

    images = cupy.ones((4, 8, 8), "f4")
    for where, expected in (("cuda", 1.0), ("cpu", 0.0)):
        block = on_device(_library, images, Scale(), device=where)
        assert isinstance(block, cupy.ndarray)
        assert float(block.mean()) == expected
    lazy = emdask.denoise(da.from_array(images, chunks=(2, 8, 8), asarray=False), Scale())
    assert isinstance(lazy._meta, cupy.ndarray)
    result = lazy.compute(scheduler="synchronous")
    assert isinstance(result, cupy.ndarray)
    assert float(result.sum()) == 2 * images.size


@pytest.mark.gpu
@needs_card
def test_bad_pixels_on_the_card() -> None:
    import cupy

    images = cupy.ones((2, 4, 4), "f4")
    images[1, 2, 2] = cupy.nan
    lazy = da.from_array(images, chunks=(1, 4, 4), asarray=False)
    with pytest.raises(emdask.errors.StackError, match="image 1 has 1 NaN"):
        emdask.denoise(lazy, Scale()).compute(scheduler="synchronous")
    repaired = emdask.denoise(lazy, Scale(), bad_pixels="replace").compute(scheduler="synchronous")
    np.testing.assert_array_equal(cupy.asnumpy(repaired), 2.0)
