"""simulate() on a card: what the CPU makes, to rounding; on the host everywhere, on a card too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import emdask
from emdask.errors import DeviceError
from emdask.kernels import scales
from emdask.phantoms import phantom
from emdask.simulators import scene, simulate

PIXEL_A = 4.0
VOLUMES = [
    phantom(9, radius_A=30, width_A=(7.0, 10.0), seed=seed).volume(33, PIXEL_A) for seed in (1, 2)
]
OPTIONS: dict[str, Any] = {
    "snr": 0.3,
    "shifts_A": 6.0,
    "ctf": {"defocus_A": (9_000, 15_000), "astigmatism_A": (0, 400), "b_factor_A2": 60.0},
    "proportions": (0.7, 0.3),
    "noise": "coloured",
    "seed": 5,
}
# Of the largest grey level: rounding of float32 sums.
ROUNDING = 3e-6


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Any:
    """Scenes of the stand-in's card must not outlive it."""
    yield
    scene.prepare.forget()


def make(device: str, n_images: int = 7, **options: Any) -> Any:
    return simulate(VOLUMES, n_images, device=device, **{**OPTIONS, **options})


@pytest.mark.parametrize("accuracy", ["rough", "normal", "high"])
def test_images_are_those_of_the_cpu(card: str, accuracy: str) -> None:
    ours, theirs = (make(device, accuracy=accuracy).compute() for device in (card, "cpu"))
    for name in ("images", "clean"):
        result, expected = ours[name].values, theirs[name].values
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=ROUNDING * abs(expected).max())
    noise, expected = (made.images.values - made.clean.values for made in (ours, theirs))
    np.testing.assert_allclose(noise, expected, atol=1e-5)
    assert set(ours.class_id.values) == {1, 2}
    assert ours.drop_vars(["images", "clean"]).identical(theirs.drop_vars(["images", "clean"]))


def test_an_image_does_not_depend_on_those_beside_it(card: str) -> None:
    whole = make(card, chunks=7).compute()
    for chunks in (1, 3):
        again = make(card, chunks=chunks).compute()
        np.testing.assert_array_equal(again.images.values, whole.images.values)
    alone = make(card, chunks=2).images[5].compute()
    np.testing.assert_array_equal(alone.values, whole.images.values[5])


def test_as_many_images_as_are_transformed_together(
    card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scales, "TRANSFORM_PIXELS", 3 * 33 * 33)
    monkeypatch.setattr(scene, "batch_size", lambda shape: 5)
    ours = make(card, snr=None, chunks=7).compute()
    theirs = make("cpu", snr=None).compute()
    largest = abs(theirs.clean.values).max()
    np.testing.assert_allclose(ours.clean.values, theirs.clean.values, atol=ROUNDING * largest)


def test_a_volume_that_the_card_has_no_room_for(cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    cuda_on_host.free_bytes = 1 << 16
    with pytest.raises(
        DeviceError, match="transform of a volume of 33 voxels along each axis needs"
    ):
        make("cuda").images[0].compute()


def test_the_card_is_chosen_where_there_is_one(cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    made = emdask.simulate(VOLUMES, 2, **OPTIONS)
    made.images[0].compute()
    assert cuda_on_host.launches["slice_points_5"]
