"""Images of known classes, and tables of the layout that `emdask.classify` returns."""

from __future__ import annotations

import numpy as np
import xarray as xr

from emdask.phantoms import phantom
from emdask.simulators import simulate
from emdask.stack import add_provenance
from emdask.volumes import build_volume

POSES = ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A")


def conformations(n_classes: int = 3, box_px: int = 24) -> list[xr.DataArray]:
    """Volumes that differ by a part of them."""
    made = [phantom(8, radius_A=20, width_A=6.0, seed=k).volume(box_px, 3.0) for k in range(9)]
    shared = made[0].values
    return [build_volume(shared + made[k + 1].values, 3.0) for k in range(n_classes)]


def known_images(n_images: int = 60, n_classes: int = 3, snr: float = 1.0) -> xr.DataArray:
    """Images of the conformations; their ``class_id`` is the truth."""
    images: xr.DataArray = simulate(
        conformations(n_classes), n_images, snr=snr, shifts_A=3.0
    ).images
    return images


def fake_table(
    stack: xr.DataArray,
    n_classes: int = 3,
    *,
    n_dropped: int = 0,
    n_wrong: int = 0,
    poses: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """Classes as they are known, but for some at random that are wrong or left out.

    Posteriors are 0.9 for the class assigned, less for images with a high number.
    """
    rng = np.random.default_rng(seed)
    n = len(stack)
    order = rng.permutation(n)
    dropped, wrong = order[:n_dropped], order[n_dropped : n_dropped + n_wrong]
    class_id = np.array(stack.class_id.values, np.int64)
    class_id[wrong] = class_id[wrong] % n_classes + 1
    class_id[dropped] = 0
    kept = class_id > 0
    sure = np.linspace(0.98, 0.6, n)
    posterior = np.repeat((1 - sure)[:, None] / n_classes, n_classes, axis=1)
    posterior[kept, class_id[kept] - 1] = sure[kept]
    posterior[~kept] = 0.0
    log_likelihood = np.where(kept[:, None], np.log(np.maximum(posterior, 1e-9)) + 50, -np.inf)
    none = np.where(kept, 1 - posterior.sum(axis=1), 1.0)
    share = np.bincount(class_id[kept], minlength=n_classes + 1)[1:] / kept.sum()
    ordered = np.sort(posterior, axis=1)
    margin = np.log(ordered[:, -1] / np.maximum(ordered[:, -2], 1e-9), where=kept, out=np.zeros(n))
    found = {
        "class_id": ("image", class_id),
        "kept": ("image", kept),
        "log_likelihood": (("image", "class"), log_likelihood.astype(np.float32)),
        "posterior": (("image", "class"), posterior.astype(np.float32)),
        "posterior_none": ("image", none.astype(np.float32)),
        "margin": ("image", np.where(kept, margin, np.nan).astype(np.float32)),
        "confidence": ("image", np.where(kept, sure, 0.0).astype(np.float32)),
        "proportion": ("class", share),
        "proportion_error": ("class", np.full(n_classes, 0.02)),
        "proportion_low": ("class", (share - 0.04).clip(0)),
        "proportion_high": ("class", (share + 0.04).clip(max=1)),
        "proportion_none": ((), float((~kept).mean())),
    }
    if poses:
        for name in POSES:
            values = np.asarray(stack[name].values, np.float64) + 1.0
            found[name] = ("image", np.where(kept, values, np.nan))
        found["screen_score"] = ("image", (rng.normal(size=n) + 4 * kept).astype(np.float32))
    parameters = {"view": (0.0, 0.0), "cone_deg": 10.0}
    attrs = {"method": "two_stage", "n_images": n, "pixel_size_A": 3.0}
    history = {"provenance": stack.attrs.get("provenance", ())}
    attrs |= add_provenance(history, "two_stage", parameters)
    coords = {"image_id": ("image", stack.image_id.values), "class": np.arange(1, n_classes + 1)}
    return xr.Dataset(found, coords, attrs)


def fake_averages(stack: xr.DataArray, table: xr.Dataset) -> xr.DataArray:
    """Means of the images of each class, not aligned."""
    numbers = table["class"].values
    class_id = table.class_id.values
    pixels = stack.values
    means = [pixels[class_id == k].sum(axis=0) / max((class_id == k).sum(), 1) for k in numbers]
    counts = [int((class_id == k).sum()) for k in numbers]
    coords = {"class": numbers, "n_images": ("class", counts)}
    return xr.DataArray(np.stack(means), coords, dims=("class", "y", "x"))
