"""Models of every form that has pictures, made without learning."""

from __future__ import annotations

import numpy as np
import xarray as xr

NOISE_VARIANCE = 0.5


def covariance_model(n_components: int = 30, box_px: int = 16) -> xr.Dataset:
    """Eigenvalues 4, 1 and 2, 0.5 (and none) of the noise, edges at 2 and 1.5 of it."""
    rng = np.random.default_rng(0)
    spectrum = NOISE_VARIANCE * np.array([[4.0, 1.0], [2.0, 0.5], [1.0, np.nan]])
    return xr.Dataset(
        {
            "mean": (("y", "x"), rng.normal(size=(box_px, box_px))),
            "eigenimages": (
                ("component", "y", "x"),
                rng.normal(size=(n_components, box_px, box_px)),
            ),
            "eigenvalue": ("component", NOISE_VARIANCE * np.arange(n_components, 0.0, -1.0)),
            "order": ("component", np.arange(n_components) % 3),
            "spectrum": (("order_k", "radial"), spectrum),
            "noise_edge": ("order_k", NOISE_VARIANCE * np.array([2.0, 1.5, 1.25])),
        },
        {"order_k": np.arange(3)},
        {"method": "fake", "noise_variance": NOISE_VARIANCE, "box_px": box_px},
    )


def dictionary_model(n_scales: int = 2, n_atoms: int = 10, patch_px: int = 4) -> xr.Dataset:
    """Atoms at random, of which the last three of the second scale were not learnt."""
    atoms = np.random.default_rng(0).normal(size=(n_scales, n_atoms, patch_px**2))
    atoms[1, -3:] = 0
    return xr.Dataset({"atoms": (("scale", "atom", "pixel"), atoms)}, attrs={"method": "fake"})


def power_model() -> xr.Dataset:
    """Two spectra, of which one is nowhere in a ring."""
    rings = {"frequency": ("ring", np.array([0.0, 0.25, 0.5]))}
    powers = {
        "signal_power": ("ring", np.array([8.0, 2.0, 0.0])),
        "noise_power": ("ring", np.array([1.0, 1.0, 1.5])),
    }
    return xr.Dataset(powers, rings, {"method": "fake"})
