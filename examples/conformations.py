"""Tell conformations of a particle apart, and count them: ``python examples/conformations.py``.

A particle with an arm that has turned by 0, 15 or 30 degrees is seen from all sides, each image
with its own CTF. Two stages keep the images that are seen along the axis of the turn, and find how
many of them show each state. What was drawn is known, so what is found is judged by it.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import xarray as xr

import emdask
from emdask.kernels.directions import angles_between

STATES_DEG = (0.0, 15.0, 30.0)
PROPORTIONS = [0.5, 0.3, 0.2]
VIEW, CONE_DEG = (0.0, 0.0), 15.0
BOX_PX, PIXEL_SIZE_A = 64, 3.0
CTF = {"defocus_A": (10_000, 20_000)}


def make_states() -> list[xr.DataArray]:
    """Volumes of the particle, one for each state of its arm, which turns about z."""
    rng = np.random.default_rng(0)
    body = rng.normal(scale=(18, 22, 25), size=(60, 3))
    arm = np.array([18.0, 0.0, 0.0]) + rng.normal(scale=(14, 6, 8), size=(25, 3)) + [22, 0, 10]
    particle = emdask.phantom(85, radius_A=60, seed=0)
    volumes = []
    for angle in np.deg2rad(STATES_DEG):
        c, s = np.cos(angle), np.sin(angle)
        turned = arm @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        positions = np.concatenate([body, turned])
        state = replace(
            particle,
            positions_A=positions - positions.mean(axis=0),
            widths_A=np.full(85, 5.0),
            masses=np.ones(85),
        )
        volumes.append(state.volume(BOX_PX, PIXEL_SIZE_A))
    return volumes


def main(n_images: int = 3000, snr: float = 0.1) -> xr.Dataset:
    """Simulate, classify, and print what was found beside what is true.

    Parameters
    ----------
    n_images
        Seen from all sides.
    snr
        Signal-to-noise ratio.

    Returns
    -------
    xarray.Dataset
        What `emdask.classify` found.
    """
    volumes = make_states()
    made = emdask.simulate(
        volumes, n_images, snr=snr, shifts_A=6.0, ctf=CTF, proportions=PROPORTIONS
    )
    # What a stack of real images has: not the truth.
    stack = made.images.drop_vars(
        ["class_id", "rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A"]
    )
    found = emdask.classify(stack, volumes, "two_stage", view=VIEW, cone_deg=CONE_DEG).compute()
    views = made.rotation_deg.values[:, :2]
    report(found, made.class_id.values, angles_between(views, VIEW))
    return found


def report(found: xr.Dataset, class_id: np.ndarray, angle_deg: np.ndarray) -> None:
    """Print how many were kept, and the proportions."""
    kept, near = found.kept.values, angle_deg <= CONE_DEG
    print(f"{len(kept)} images, {near.sum()} within {CONE_DEG:g} degrees of the view")
    print(f"kept: {kept.sum()}, of which {(kept & near).sum()} are, and", end=" ")
    print(f"{(kept & (angle_deg > 2 * CONE_DEG)).sum()} are more than twice as far")
    right = (found.class_id.values == class_id)[kept & near].mean()
    print(f"class right: {100 * right:.1f} %")
    print("state   true   found  95 % interval")
    for i, angle in enumerate(STATES_DEG):
        true = np.mean(class_id[near] == i + 1)
        low, high = found.proportion_low.values[i], found.proportion_high.values[i]
        share = found.proportion.values[i]
        print(f"{angle:4.0f}°   {true:.3f}  {share:.3f}  {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    main(*(kind(value) for kind, value in zip((int, float), sys.argv[1:], strict=False)))
