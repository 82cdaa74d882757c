"""Images added up on a card: as on the CPU, to rounding; on the host everywhere, on a card too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import DeviceError
from emdask.phantoms import phantom
from emdask.reconstructors import direct_fourier

PIXEL_A = 3.0
BOX = 22
VOLUME = phantom(8, radius_A=18, width_A=(4.0, 6.0)).volume(BOX, PIXEL_A)
CTF = {"defocus_A": (5_000, 8_000), "astigmatism_A": (0, 300)}
# Of the largest voxel and weight: sums of float32 in another order.
ROUNDING = 2e-5


def images(n_images: int = 60, **options: Any) -> xr.DataArray:
    options = {"snr": 2.0, "shifts_A": 5.0, "device": "cpu", **options}
    return emdask.simulate(VOLUME, n_images, **options).images.compute()


def assert_same_maps(ours: xr.Dataset, theirs: xr.Dataset) -> None:
    assert set(ours.variables) == set(theirs.variables)
    for name in ("volume", *(name for name in theirs if str(name).startswith("half"))):
        expected = theirs[name].values
        largest = abs(expected).max()
        np.testing.assert_allclose(ours[name].values, expected, atol=1e-3 * largest)
        difference = np.linalg.norm(ours[name].values - expected)
        assert difference < 1e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("ctf", [None, CTF])
@pytest.mark.parametrize("half_maps", [True, False])
def test_maps_are_those_of_the_cpu(card: str, half_maps: bool, ctf: Any) -> None:
    stack = images(ctf=ctf)
    ours, theirs = (
        emdask.reconstruct(stack, half_maps=half_maps, device=device).compute()
        for device in (card, "cpu")
    )
    assert_same_maps(ours, theirs)
    if half_maps:
        np.testing.assert_allclose(ours.fsc, theirs.fsc, atol=1e-3)


def test_symmetric_maps_are_those_of_the_cpu(card: str) -> None:
    """Each image is added under all rotations of the group."""
    stack = images(20)
    ours, theirs = (
        emdask.reconstruct(stack, symmetry="D2", device=device).compute()
        for device in (card, "cpu")
    )
    assert_same_maps(ours, theirs)


def given(stack: xr.DataArray, **changes: Any) -> dict[str, Any]:
    along = {
        "rotation_deg": np.stack([stack[f"{angle}_deg"] for angle in ("rot", "tilt", "psi")], 1),
        "shift_A": np.stack([stack.shift_x_A, stack.shift_y_A], 1),
        "half": np.arange(len(stack)) % 2 + 1,
        "optics": None,
    }
    return {**along, **changes}


def insert(device: str, sums: Any, stack: xr.DataArray, **changes: Any) -> Any:
    params = direct_fourier.DirectFourier(pixel_size_A=PIXEL_A)
    function = direct_fourier.METHOD.insert[device]
    return function(sums, stack.values, params, **given(stack, **changes))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", ">i2"])
def test_sums_are_those_of_the_cpu(card: str, dtype: str) -> None:
    """Of images as they are stored; those before are left as they are."""
    stack = (10 * images(9)).astype(dtype)
    before = insert("cpu", None, stack[:4])
    kept = [half.cells.copy() for half in before.halves]
    ours, theirs = (insert(device, before, stack[4:]) for device in (card, "cpu"))
    for result, expected, half, cells in zip(
        ours.halves, theirs.halves, before.halves, kept, strict=True
    ):
        assert type(result.cells) is np.ndarray
        np.testing.assert_array_equal(half.cells, cells)
        largest = abs(expected.cells).max(axis=(0, 1, 2))
        assert (abs(result.cells - expected.cells) < ROUNDING * largest).all()


def test_pieces_do_not_show(card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = images(9)
    whole = insert(card, None, stack)
    monkeypatch.setattr(direct_fourier, "batch_size", lambda shape: 2)
    for ours, theirs in zip(insert(card, None, stack).halves, whole.halves, strict=True):
        np.testing.assert_array_equal(ours.cells, theirs.cells)


def test_a_half_without_images_is_empty(card: str) -> None:
    sums = insert(card, None, images(3), half=np.full(3, 2))
    assert not sums.halves[0].cells.any()
    assert sums.halves[1].cells.any()


def test_memory_is_as_stated(cuda_on_host: Any) -> None:
    """The sums of both halves, and 96 bytes a pixel of the images that are there at once."""
    cuda_on_host.strict = True
    sums = insert("cuda", None, images(40))
    held = sum(half.cells.nbytes for half in sums.halves)
    assert held < cuda_on_host.peak_bytes < held + 40 * 96 * BOX**2
    assert cuda_on_host.used_bytes == 0


def test_sums_that_the_card_has_no_room_for(cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    cuda_on_host.free_bytes = 100_000
    with pytest.raises(DeviceError, match="adding up images of 22 px needs about"):
        insert("cuda", None, images(4))
