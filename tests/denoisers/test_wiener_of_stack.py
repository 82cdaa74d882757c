"""``wiener`` with the power of the signal learnt from the stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import ParameterError, StackError
from emdask.simulators.demo_images import demo_particles
from emdask.stack import optics_of
from tests.denoisers.test_deconvolution import fitted_error

OPTIONS: dict[str, Any] = {"n_images": 40, "box_px": 64, "pixel_size_A": 4.0, "seed": 5}


@pytest.fixture(scope="module")
def stack() -> xr.DataArray:
    """Particles with CTFs of their own, SNR 0.1."""
    return demo_particles(snr=0.1, **OPTIONS)[0].compute()


@pytest.fixture(scope="module")
def density() -> np.ndarray:
    """What they are like without CTF."""
    return demo_particles(snr=0.1, ctf=False, **OPTIONS)[1]


@pytest.fixture(scope="module")
def model(stack: xr.DataArray) -> xr.Dataset:
    learnt: xr.Dataset = emdask.learn_denoiser(stack, "wiener", prior="stack").compute()
    return learnt


def test_it_is_better_than_what_one_image_tells(
    stack: xr.DataArray, density: np.ndarray, model: xr.Dataset
) -> None:
    by_stack = emdask.denoise(stack, "wiener", prior="stack", model=model).values
    by_image = emdask.denoise(stack, "wiener").values
    assert fitted_error(by_stack, density) < 0.88 * fitted_error(by_image, density)


def test_it_comes_near_the_best_filter_of_rings(
    stack: xr.DataArray, density: np.ndarray, model: xr.Dataset
) -> None:
    errors = [
        fitted_error(
            emdask.denoise(stack, "wiener", prior="stack", strength=strength, model=model).values,
            density,
        )
        for strength in (1.0, 0.5, 0.7, 1.4, 2.0)
    ]
    assert errors[0] < 1.05 * min(errors)


def test_a_stack_without_ctf() -> None:
    stack, density = demo_particles(snr=0.1, ctf=False, **OPTIONS)
    lazy = emdask.denoise(stack, "wiener", prior="stack")
    assert "ctf_state" not in lazy.attrs
    by_image = emdask.denoise(stack, "wiener").values
    assert np.mean((lazy.values - density) ** 2) < 0.95 * np.mean((by_image - density) ** 2)


def test_the_model_says_what_it_is(stack: xr.DataArray, model: xr.Dataset, tmp_path: Path) -> None:
    assert set(model.data_vars) == {"signal_power", "noise_power"}
    assert model.signal_power.dims == model.noise_power.dims == model.frequency.dims == ("ring",)
    assert (np.diff(model.frequency) > 0).all()
    assert model.attrs["n_images"] == 40
    assert model.attrs["prior"] == "stack"
    assert float(model.noise_power[0]) == pytest.approx(1, abs=0.1)
    assert float(model.signal_power[0]) > 20 * float(model.signal_power[-1])
    path = emdask.save_model(model, tmp_path / "model.zarr")
    results = [
        emdask.denoise(stack[:3], "wiener", prior="stack", model=given).values
        for given in (model, path)
    ]
    np.testing.assert_array_equal(results[0], results[1])


def test_chunks_do_not_matter(stack: xr.DataArray, model: xr.Dataset, device: str) -> None:
    options: dict[str, Any] = {"prior": "stack", "device": device}
    parts = stack.chunk({"image": (1, 12, 27)})
    learnt = emdask.learn_denoiser(parts, "wiener", **options).compute()
    xr.testing.assert_allclose(learnt, model, rtol=1e-4, atol=1e-5)
    whole = emdask.denoise(stack, "wiener", model=model, **options).values
    again = emdask.denoise(parts, "wiener", model=model, **options).values
    np.testing.assert_array_equal(again, whole)
    one_graph = emdask.denoise(parts, "wiener", **options).values
    np.testing.assert_allclose(one_graph, whole, atol=1e-3)
    here = emdask.denoise(stack, "wiener", model=model, prior="stack", device="cpu").values
    np.testing.assert_allclose(whole, here, atol=1e-4)


def test_building_computes_nothing() -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        if block.size:
            raise AssertionError("a block was computed")
        return block

    images = da.zeros((4, 16, 16), chunks=(1, 16, 16), dtype="f4").map_blocks(
        explode, dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    lazy = emdask.denoise(images, "wiener", prior="stack")
    with pytest.raises(AssertionError, match="a block was computed"):
        lazy.compute()


def test_phase_flipped_images_give_the_same(stack: xr.DataArray, model: xr.Dataset) -> None:
    flipped = emdask.phase_flip(stack)
    learnt = emdask.learn_denoiser(flipped, "wiener", prior="stack", sigma=1.0).compute()
    options: dict[str, Any] = {"prior": "stack", "sigma": 1.0, "model": learnt}
    results = [emdask.denoise(images, "wiener", **options) for images in (flipped, stack)]
    # What is kept as a gradient is not the same after flipping.
    assert np.corrcoef(*(result.values.ravel() for result in results))[0, 1] > 0.995


@pytest.mark.parametrize("prior", ["image", "stack"])
def test_the_ctf_is_corrected_once(stack: xr.DataArray, prior: str) -> None:
    corrected = emdask.denoise(stack[:3], "wiener", prior=prior)
    assert corrected.attrs["ctf_state"] == "corrected"
    assert optics_of(corrected) is None
    with pytest.raises(StackError, match="got 'corrected'"):
        emdask.phase_flip(corrected)
    kept = emdask.denoise(stack[:3], "wiener", prior=prior, psf="none")
    assert "ctf_state" not in kept.attrs
    assert optics_of(kept) is not None


def test_grey_levels_have_no_natural_scale(stack: xr.DataArray, model: xr.Dataset) -> None:
    options: dict[str, Any] = {"prior": "stack", "model": model}
    plain = emdask.denoise(stack, "wiener", **options).values
    other = stack.copy(data=250 * stack.values.astype("f8") - 4000)
    scaled = emdask.denoise(other, "wiener", **options).values
    np.testing.assert_allclose((scaled + 4000) / 250, plain, atol=2e-3)
    means = [images.values.mean((1, 2)) for images in (stack, emdask.denoise(stack, "wiener"))]
    np.testing.assert_allclose(plain.mean((1, 2)), means[0], atol=1e-5)


def test_gradients_are_not_amplified(stack: xr.DataArray, model: xr.Dataset) -> None:
    down, across = np.mgrid[-1:1:64j, -1:1:64j]
    slope = (5 * across - 2 * down + across * down).astype("f4")
    tilted = stack.copy(data=stack.values + slope)
    level, steep = (
        emdask.denoise(images, "wiener", prior="stack", sigma=1.0, model=model).values
        for images in (stack, tilted)
    )
    np.testing.assert_allclose(steep, level + slope, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 1, 1), (1, 1, 9), (2, 5, 7), (3, 17, 16)])
def test_tiny_and_flat_images_survive(shape: tuple[int, int, int]) -> None:
    for images in (np.zeros(shape), np.random.default_rng(3).normal(size=shape)):
        result = emdask.denoise(images.astype("f4"), "wiener", prior="stack").compute()
        assert np.isfinite(result).all()
    flat = emdask.denoise(np.full(shape, 7, "i2"), "wiener", prior="stack").compute()
    np.testing.assert_allclose(flat, 7, atol=1e-4)


def test_of_noise_little_is_left() -> None:
    noise = np.random.default_rng(0).normal(size=(60, 48, 48)).astype("f4")
    for options in ({}, {"sigma": 1.0}, {"psf": 2.0}):
        result = emdask.denoise(noise, "wiener", prior="stack", **options).compute()
        assert result.std() < 0.1


def test_wrong_input_is_told(stack: xr.DataArray, model: xr.Dataset) -> None:
    with pytest.raises(ParameterError, match="wiener: prior must be one of image, stack; got 'al"):
        emdask.denoise(stack, "wiener", prior="all")
    with pytest.raises(ParameterError, match="learns nothing from a stack, with these parameters"):
        emdask.denoise(stack, "wiener", model=model)
    with pytest.raises(StackError, match="wiener: has nothing to learn"):
        emdask.learn_denoiser(stack, "wiener")
    with pytest.raises(ParameterError, match=r"model's size, 64 x 64 pixels; got \(48, 64\)"):
        emdask.denoise(stack[:, :48], "wiener", prior="stack", model=model)
    coarse = stack.assign_attrs(pixel_size_A=8.0)
    with pytest.raises(ParameterError, match=r"pixels must be as large as the model's, 4 Å; got 8"):
        emdask.denoise(coarse, "wiener", prior="stack", model=model)


def test_a_model_serves_the_psf_that_it_was_learnt_with(
    stack: xr.DataArray, model: xr.Dataset, tmp_path: Path
) -> None:
    wide, narrow = ([[1.0, 2.0, 1.0]], [[1.0, 4.0, 1.0]])
    models = [
        ("auto", model),
        *((p, emdask.learn_denoiser(stack, "wiener", prior="stack", psf=p)) for p in (1.5, wide)),
    ]
    for learnt_with, learnt in models:
        if learnt_with != "auto":
            learnt = learnt.compute()
        kept = emdask.save_model(learnt, tmp_path / f"{learnt.attrs['psf']}.zarr")
        for psf in ("auto", "none", 1.5, 2.0, wide, narrow):
            options: dict[str, Any] = {"prior": "stack", "psf": psf, "model": kept}
            if psf == learnt_with:
                emdask.denoise(stack, "wiener", **options)
                continue
            rule = f"^wiener: psf must be that of the model, {learnt.attrs['psf']!r}; got .* Pass"
            with pytest.raises(ParameterError, match=rule):
                emdask.denoise(stack, "wiener", **options)
    # As another processor might round it.
    rounded = np.add(wide, [[1e-12, 0, 0]])
    emdask.denoise(stack, "wiener", prior="stack", psf=rounded, model=kept)
