"""Laplacian of Gaussian: finds balls of the diameter given, at one threshold for all scales."""

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

import emdask
from emdask.pickers import pick

PLACES = [(60, 70), (60, 200), (150, 130), (230, 60), (231, 240), (140, 30)]


def micrograph(rng: np.random.Generator, diameter: float, snr: float) -> np.ndarray:
    """Dark balls at `PLACES` (y, x) in noise of deviation 1."""
    y, x = np.indices((288, 300))
    image = rng.normal(size=y.shape)
    height = (2 * snr) ** 0.5
    for row, column in PLACES:
        squared = ((y - row) ** 2 + (x - column) ** 2) / (diameter / 2) ** 2
        image -= height * np.sqrt(np.maximum(1 - squared, 0))
    return image


def farthest(picks: pd.DataFrame) -> float:
    """How far one of `PLACES` is from the nearest pick, px."""
    y, x = np.array(PLACES).T[..., None]
    return float(np.hypot(picks.y_px.to_numpy() - y, picks.x_px.to_numpy() - x).min(1).max())


@pytest.mark.parametrize(("diameter", "snr"), [(24.0, 0.5), (40.0, 0.2)])
@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (-20.0, 3000.0)])
def test_balls_are_found_whatever_the_grey_levels(
    rng: np.random.Generator, diameter: float, snr: float, gain: float, offset: float
) -> None:
    image = gain * micrograph(rng, diameter, snr) + offset
    contrast = "dark" if gain > 0 else "light"
    picks = pick(image, "log", diameter_px=diameter, contrast=contrast).compute()
    assert farthest(picks.head(len(PLACES))) < 0.15 * diameter
    assert len(picks) < 30


@pytest.mark.parametrize("smooth", [0.0, 2.0])
def test_noise_alone_gives_few_picks(rng: np.random.Generator, smooth: float) -> None:
    noise = gaussian_filter(rng.normal(size=(512, 512)), smooth)
    picks = pick(noise, "log", diameter_px=32.0).compute()
    assert len(picks) < 0.15 * (512 / 32) ** 2


def test_ice_crystals_are_not_picked(rng: np.random.Generator) -> None:
    image = micrograph(rng, 30.0, 0.5)
    y, x = np.indices(image.shape)
    image[np.hypot(y - 230, x - 150) < 25] -= 40
    picks = pick(image, "log", diameter_px=30.0).compute()
    assert farthest(picks.head(len(PLACES))) < 5
    assert not (np.hypot(picks.y_px - 230, picks.x_px - 150) < 20).any()


def test_flat_micrographs_give_no_picks() -> None:
    assert len(pick(np.full((64, 64), 7), "log", diameter_px=20.0).compute()) == 0


def test_it_has_no_parameters() -> None:
    with pytest.raises(emdask.errors.ParameterError, match="log: no parameter of this name"):
        pick(np.zeros((64, 64)), "log", diameter_px=20.0, sigma=3)
