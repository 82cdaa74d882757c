"""Workers find what one thread finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import emdask
from emdask.volumes import build_volume


def ball(box_px: int = 32, pixel_A: float = 3.0) -> xr.DataArray:
    z, y, x = (np.indices((box_px,) * 3) - box_px // 2) * pixel_A
    return build_volume((x**2 + y**2 + z**2 < 28**2).astype("f4"), pixel_A)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, _ = emdask.simulate_micrographs(
        ball(), 4, snr=0.3, size_px=(256, 300), n_particles=10, seed=2
    )
    return emdask.save_stack(made.images, tmp_path_factory.mktemp("micrographs") / "mics")


def test_workers_do_not_matter(folder: Path) -> None:
    """Read, scored and tabulated in one task a chunk, on one worker or two."""
    stack = emdask.open_stack(str(folder / "*.mrc"), chunks=1)
    tables = {method: emdask.pick(stack, method, diameter_A=60) for method in ("log", "cnn")}
    alone = {method: table.compute(scheduler="sync") for method, table in tables.items()}
    with emdask.connect("local", n_workers=2):
        for method, table in tables.items():
            pd.testing.assert_frame_equal(table.compute(), alone[method])
    assert all(len(table) > 20 for table in alone.values())
