"""Screening: images from near a direction are kept, whatever comes in between."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import EmdaskWarning, ParameterError, StackError
from emdask.kernels.directions import angles_between
from tests.kernels.test_conformations import BOX, CTF, LARGE, VIEW, make_volumes, mix, simulate

QUICK = {"cone_deg": VIEW.cone_deg, "spacing_deg": 12.0}


def screen(made: Any, references: Any = None, **options: Any) -> xr.Dataset:
    given = list(make_volumes()) if references is None else references
    stack = getattr(made, "images", made)
    lazy = emdask.screen(stack, given, VIEW.view_deg, **{**QUICK, **options})
    return lazy.compute(scheduler="sync")


@pytest.mark.parametrize("with_ctf", [False, True])
def test_images_of_the_cone_are_kept(with_ctf: bool) -> None:
    volumes = make_volumes(grid=LARGE)
    options = {"ctf": CTF} if with_ctf else {}
    made, near = mix(80, 160, 1.0, volumes=volumes, **options)
    found = screen(made, list(volumes), keep=0.9)
    angle_deg = angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg)
    # Of 80 images, 0.9 is known to 0.034.
    assert found.kept.values[near].mean() == pytest.approx(0.9, abs=0.09)
    assert found.kept.values[angle_deg > 25].mean() < 0.06
    kept = found.isel(image=found.kept.values)
    directions = np.stack([kept.rot_deg, kept.tilt_deg], axis=1)
    # Angles are of single precision.
    assert angles_between(directions, VIEW.view_deg).max() < VIEW.cone_deg + 1e-3
    dropped = found.isel(image=~found.kept.values)
    assert np.isnan(dropped.rot_deg).all()
    assert np.isnan(dropped.tilt_deg).all()


def test_scores_and_what_is_kept_go_together() -> None:
    made, _ = mix(24, 40, 3.0)
    found, stricter = screen(made), screen(made, keep=0.5)
    np.testing.assert_array_equal(found.screen_score, stricter.screen_score)
    assert stricter.kept.sum() < found.kept.sum()
    for each in (found, stricter):
        score = each.screen_score.values
        assert score[each.kept].min() >= score[~each.kept].max()
    assert found.attrs["provenance"][-1]["step"] == "screen"
    np.testing.assert_array_equal(found.image_id, made.image_id)


def test_chunks_do_not_matter() -> None:
    made, _ = mix(24, 40, 3.0)
    whole = screen(made.images.chunk(image=64))
    parts = screen(made.images.chunk(image=(5, 30, 29)))
    xr.testing.assert_allclose(parts, whole, rtol=1e-4)


def test_nothing_is_read_before_it_is_asked_for() -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("read")

    images = da.map_blocks(
        fail, chunks=((4, 4), (BOX,), (BOX,)), dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    lazy = emdask.screen(images, list(make_volumes()), VIEW.view_deg, **QUICK)
    assert lazy.kept.shape == (8,)
    assert lazy.kept.dtype == bool


def test_references_may_be_images_whose_directions_are_known() -> None:
    made, near = mix(24, 40, 3.0)
    given, _ = mix(60, 150, None, seed=8, shifts_A=0.0)
    references = given.clean
    found = screen(made, references)
    assert found.kept.values[near].mean() > found.kept.values[~near].mean() + 0.4
    unknown = references.drop_vars(["rot_deg", "tilt_deg", "psi_deg"])
    with pytest.raises(ParameterError, match="screen: reference images must have known directions"):
        screen(made, unknown)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"keep": 1.0}, "screen: keep must be"),
        ({"cone_deg": 0.0}, "screen: cone_deg must be"),
        ({"spacing_deg": 90.0}, "screen: spacing_deg must be"),
        ({"bad_pixels": "ignore"}, "screen: bad_pixels must be"),
    ],
)
def test_bad_parameters_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        screen(np.zeros((4, BOX, BOX), "f4"), **options)


def test_a_view_and_references_must_be_given() -> None:
    images = np.zeros((4, BOX, BOX), "f4")
    with pytest.raises(ParameterError, match="screen: a view must be given"):
        emdask.screen(images, list(make_volumes()), None)
    with pytest.raises(ParameterError, match="screen: references must be given"):
        emdask.screen(images, None, VIEW.view_deg)


def test_noise_that_was_changed_is_told() -> None:
    made = simulate(8, 3.0)
    with pytest.raises(StackError, match=r"have been whitened.*Take them as they were"):
        screen(emdask.whiten(made.images))
    smooth = emdask.denoise(made.images, "gaussian", width_px=1.0)
    with pytest.warns(EmdaskWarning, match=r"were denoised \(gaussian\)"):
        emdask.screen(smooth, list(make_volumes()), VIEW.view_deg, **QUICK)
