"""simulate_micrographs() on a card: what the CPU makes, to rounding; the stand-in, a card too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from emdask.errors import DeviceError
from emdask.phantoms import phantom
from emdask.simulators import exposure
from emdask.simulators.micrographs import simulate_micrographs

PIXEL_A = 4.0
VOLUMES = [
    phantom(9, radius_A=30, width_A=(7.0, 10.0), seed=seed).volume(32, PIXEL_A) for seed in (1, 2)
]
OPTIONS: dict[str, Any] = {
    "snr": 0.3,
    "size_px": (120, 150),
    "n_particles": (3, 6),
    "diameter_A": 80.0,
    "ctf": {"defocus_A": (9_000, 15_000), "astigmatism_A": 300.0},
    "hole_A": 1500.0,
    "seed": 5,
}
# Of the largest grey level: rounding of float32 sums.
ROUNDING = 3e-6


@pytest.fixture(autouse=True)
def _nothing_is_kept() -> Any:
    """Volumes on the stand-in's card must not outlive it."""
    yield
    exposure.prepare.forget()


def make(device: str, **options: Any) -> Any:
    return simulate_micrographs(VOLUMES, 2, device=device, **{**OPTIONS, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"ice": 0.0, "ctf": None},
        {"noise": "coloured", "snr_in": "particles", "accuracy": "high"},
        {"carbon": 1.0, "n_crystals": 3, "noise": "coloured"},
    ],
    ids=["plain", "coloured", "film"],
)
def test_micrographs_are_those_of_the_cpu(card: str, options: dict[str, Any]) -> None:
    (ours, picks), (theirs, same) = (make(device, **options) for device in (card, "cpu"))
    pd.testing.assert_frame_equal(picks, same)
    assert len(picks) >= 4
    for name in ("clean", "images"):
        result, expected = ours[name].values, theirs[name].values
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, atol=ROUNDING * abs(expected).max())


def test_a_micrograph_that_the_card_has_no_room_for(cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    made, _ = make("cuda", size_px=512)
    made.images[0].compute()
    cuda_on_host.free_bytes = cuda_on_host.used_bytes + (1 << 20)
    with pytest.raises(DeviceError, match="a micrograph needs"):
        made.images[1].compute()


def test_the_card_is_chosen_where_there_is_one(cuda_on_host: Any) -> None:
    cuda_on_host.strict = True
    simulate_micrographs(VOLUMES, 2, **OPTIONS)[0].images[0].compute()
    assert cuda_on_host.launches["slice_points_5"]
