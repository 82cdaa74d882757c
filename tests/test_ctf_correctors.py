"""Phase flipping: what it does, what later steps know of it, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import DeviceError, StackError
from emdask.kernels.ctf import ctf_2d
from emdask.kernels.fourier import radial_correlation
from emdask.simulators.demo_images import demo_particles
from emdask.stack import build_stack, optics_of

OF_CTF = (
    *("pixel_size_A", "voltage_kV", "spherical_aberration_mm", "amplitude_contrast"),
    *("defocus_u_A", "defocus_v_A", "astigmatism_deg"),
)


@pytest.fixture(scope="module")
def stack() -> xr.DataArray:
    """Five images of 48 px with defoci and astigmatism of their own; three share theirs."""
    images, _ = demo_particles(n_images=5, box_px=48, pixel_size_A=4.0, snr=1.0, seed=2)
    return images.assign_coords(
        {name: ("image", images[name].values[[0, 1, 0, 3, 0]]) for name in OF_CTF[4:]}
    )


def test_each_image_is_multiplied_by_the_sign_of_its_ctf(stack: xr.DataArray) -> None:
    flipped = emdask.phase_flip(stack)
    assert flipped.dtype == np.float32
    known = stack.attrs | {name: stack[name].values for name in OF_CTF[4:]}
    ctf = ctf_2d(stack.shape[1:], **{name: known[name] for name in OF_CTF})
    assert 0.2 < (ctf < 0).mean() < 0.8
    expected = np.fft.irfft2(np.fft.rfft2(stack.values) * np.sign(ctf))
    np.testing.assert_allclose(flipped.values, expected, atol=1e-5)
    xr.testing.assert_equal(flipped.coords.to_dataset(), stack.coords.to_dataset())
    assert [step["step"] for step in flipped.attrs["provenance"]] == ["demo", "phase_flip"]
    assert "ctf_state" not in stack.attrs


def test_chunks_never_change_the_answer(stack: xr.DataArray, device: str) -> None:
    whole = emdask.phase_flip(stack, device=device).values
    parts = emdask.phase_flip(stack.chunk({"image": (1, 3, 1)}), device=device)
    np.testing.assert_array_equal(parts.values, whole)
    alone = emdask.phase_flip(stack[3], device=device)
    assert alone.dims == ("image", "y", "x")
    np.testing.assert_array_equal(alone.values[0], whole[3])
    np.testing.assert_allclose(whole, emdask.phase_flip(stack, device="cpu").values, atol=1e-5)


def test_building_computes_nothing() -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        if block.size:
            raise AssertionError("a block was computed")
        return block

    images = da.zeros((2, 8, 8), chunks=1, dtype="f4").map_blocks(explode, meta=np.empty((0, 0, 0)))
    attrs = {"pixel_size_A": 2.0, "voltage_kV": 300.0, "spherical_aberration_mm": 2.7}
    attrs |= {"amplitude_contrast": 0.1}
    lazy = emdask.phase_flip(build_stack(images, {"defocus_u_A": [1e4, 2e4]}, attrs))
    assert lazy.data.name.startswith("phase_flip-")
    with pytest.raises(AssertionError, match="was computed"):
        lazy.compute()


def test_contrast_is_put_right() -> None:
    options: dict[str, Any] = {"n_images": 4, "box_px": 96, "snr": 1e6, "seed": 4}
    stack, _ = demo_particles(**options)
    density = demo_particles(ctf=False, **options)[1]
    before, after = (
        radial_correlation(images.values, density, least_power=1e-3)
        for images in (stack, emdask.phase_flip(stack))
    )
    assert (before.min(axis=1) < -0.9).all()
    assert (after[np.abs(before) > 0.9] > 0.9).all()
    assert after.min() > -0.1


def test_later_steps_know_of_it(stack: xr.DataArray) -> None:
    flipped = emdask.phase_flip(stack)
    optics = optics_of(flipped)
    assert optics is not None
    assert optics.phase_flipped
    maps = [emdask.reconstruct(images, half_maps=False).volume for images in (stack, flipped)]
    scale = float(np.abs(maps[0]).max())
    np.testing.assert_allclose(maps[1].values, maps[0].values, atol=1e-3 * scale)
    # Noise beyond the borders is another, so that only what is strong is the same.
    clean = [emdask.denoise(images, "wiener").values for images in (stack, flipped)]
    assert np.corrcoef(clean[0].ravel(), clean[1].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", ["flipped.zarr", "flipped.mrcs"])
def test_files_keep_it(stack: xr.DataArray, tmp_path: Path, name: str) -> None:
    path = emdask.save_stack(emdask.phase_flip(stack), tmp_path / name)
    again = emdask.open_stack(path.with_suffix(".star") if name.endswith("s") else path)
    optics = optics_of(again)
    assert optics is not None
    assert optics.phase_flipped
    with pytest.raises(StackError, match="phase_flip: images must be as recorded"):
        emdask.phase_flip(again)


def test_what_cannot_be_flipped_is_told(stack: xr.DataArray) -> None:
    without = stack.drop_vars("defocus_u_A")
    for images in (without, stack.values):
        with pytest.raises(StackError, match=r"^phase_flip: needs a stack with the .* Open"):
            emdask.phase_flip(images)
    rule = "^phase_flip: images must be as recorded, with nothing done about their CTF; got 'phase"
    with pytest.raises(StackError, match=rule):
        emdask.phase_flip(emdask.phase_flip(stack))
    with pytest.raises(StackError, match="got 'corrected'"):
        emdask.phase_flip(stack.assign_attrs(ctf_state="corrected"))
    with pytest.raises(StackError, match=r"for the CTF pixel_size_A, .* must be known"):
        emdask.phase_flip(stack.drop_attrs())


def test_bad_pixels_are_named_or_replaced(stack: xr.DataArray) -> None:
    pixels = stack.values.copy()
    pixels[2, 3, 4] = np.nan
    bad = stack.copy(data=pixels)
    with pytest.raises(StackError, match="image 2 has 1 NaN"):
        emdask.phase_flip(bad).compute()
    assert np.isfinite(emdask.phase_flip(bad, bad_pixels="replace").values).all()


def test_a_named_device_never_falls_back(
    stack: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emdask.backend.why_no_cuda", lambda: "none here")
    with pytest.raises(DeviceError, match="cuda"):
        emdask.phase_flip(stack, device="cuda").compute()
