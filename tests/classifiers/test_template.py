"""Brute force: classes and poses of particles that were simulated, as RELION means them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.classifiers.template import METHOD, Template, complete
from emdask.errors import ParameterError
from emdask.kernels import pose_search
from emdask.kernels.directions import turn_pole
from emdask.kernels.projections import rotation_matrices
from emdask.references import open_references
from emdask.stack import optics_of
from tests.kernels.test_conformations import BOX, CTF, PIXEL_A, VIEW, make_volumes, simulate

AROUND = {"view": VIEW.view_deg, "cone_deg": VIEW.cone_deg, "step_deg": 4.0}


@pytest.fixture(autouse=True)
def _components_are_found_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_search, "N_DRAWN", 400)


def classify(made: Any, chunk: int = 16, references: Any = None, **options: Any) -> xr.Dataset:
    """As one thread does it."""
    given = list(make_volumes()) if references is None else references
    stack = made.images.chunk(image=chunk)
    return emdask.classify(stack, given, "template", **{**AROUND, **options}).compute(
        scheduler="sync"
    )


def turn_from_truth(found: xr.Dataset, truth: Any) -> Any:
    """Angle of the rotation between poses, degrees."""
    angles = np.stack([found.rot_deg, found.tilt_deg, found.psi_deg], axis=1)
    matrices = rotation_matrices(angles), rotation_matrices(truth.rotation_deg.values)
    trace = np.einsum("vij,vij->v", *matrices)
    return np.rad2deg(np.arccos(((trace - 1) / 2).clip(-1, 1)))


@pytest.mark.parametrize("likelihood", ["marginal", "maximum"])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_classes_poses_and_shifts_come_back(with_ctf: bool, likelihood: str) -> None:
    made = simulate(48, 6.0, **({"ctf": CTF} if with_ctf else {}))
    found = classify(made, likelihood=likelihood)
    np.testing.assert_array_equal(found.class_id, made.class_id)
    assert found.kept.all()
    assert (found.margin > 0).all()
    np.testing.assert_allclose(found.proportion, np.bincount(made.class_id)[1:] / 48, atol=1e-3)
    # Directions are 4 degrees apart.
    assert turn_from_truth(found, made).max() < 8
    assert np.median(turn_from_truth(found, made)) < 3.5
    errors = np.stack([found.shift_x_A - made.shift_x_A, found.shift_y_A - made.shift_y_A])
    # Of shifts up to 3 Å, in pixels of 3 Å.
    assert abs(errors).max() < 1.5
    assert np.median(abs(errors)) < 0.4
    for name in ("shift_x_A", "shift_y_A"):
        assert np.corrcoef(found[name], made[name])[0, 1] > 0.9
    assert (abs(found.psi_deg) <= 180).all()


def test_poses_are_ready_to_reconstruct_from() -> None:
    """Projections at the poses found look like the images without noise."""
    made = simulate(24, 6.0)
    found = classify(made)
    poses = np.stack([found.rot_deg, found.tilt_deg, found.psi_deg], axis=1)
    shifts = np.stack([found.shift_x_A, found.shift_y_A], axis=1)
    for i, volume in enumerate(make_volumes()):
        own = (found.class_id == i + 1).values
        again = emdask.simulate(
            volume, int(own.sum()), snr=None, poses=poses[own], shifts_A=shifts[own]
        ).clean.compute()
        pairs = zip(again.values, made.clean.values[own], strict=True)
        assert min(np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs) > 0.98


def test_conformations_may_differ_much() -> None:
    """An arm that turns about the view by far more than a step of the search."""
    volumes = make_volumes(n=4, turn_deg=25.0)
    along = {"view_deg": (0.0, 0.0), "cone_deg": 5.0}
    made = simulate(60, 6.0, volumes=volumes, **along)
    found = classify(made, references=list(volumes), view=(0.0, 0.0), cone_deg=6.0)
    np.testing.assert_array_equal(found.class_id, made.class_id)
    assert np.median(turn_from_truth(found, made)) < 3.5


def test_classes_that_are_rare_are_counted() -> None:
    made = simulate(60, 4.0, proportions=[0.9, 0.1], seed=3)
    found = classify(made)
    np.testing.assert_array_equal(found.class_id, made.class_id)
    assert 0.02 < float(found.proportion[1]) < 0.25


def test_images_of_the_rim_are_of_no_class() -> None:
    rng = np.random.default_rng(0)
    near = np.arange(48) < 24
    tilts = np.where(near, rng.uniform(0, 9, 48), rng.uniform(16, 20, 48))
    views = turn_pole(np.column_stack([360 * rng.random(48), tilts]), VIEW.view_deg)
    made = simulate(48, 6.0, poses=np.column_stack([views, 360 * rng.random(48)]))
    found = classify(made, rim_deg=12.0)
    assert found.kept[near].mean() > 0.8
    assert found.kept[~near].mean() < 0.35
    np.testing.assert_array_equal(found.class_id > 0, found.kept)
    gone = found.isel(image=~found.kept.values)
    for name in ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A"):
        assert np.isnan(gone[name]).all()
    assert (gone.posterior_none > 0.5).all()
    assert np.isfinite(gone.log_likelihood).all()
    assert float(found.proportion_none) == pytest.approx(float((~found.kept).mean()), abs=0.1)
    # Without a rim each image is of some class.
    assert classify(made).kept.all()


def test_chunks_do_not_matter() -> None:
    made = simulate(30, 2.0, ctf=CTF)
    tables = [classify(made, chunk=chunk, rim_deg=4.0) for chunk in (30, 11, 1)]
    for found in tables[1:]:
        np.testing.assert_array_equal(found.class_id, tables[0].class_id)
        for name in ("log_likelihood", "posterior", "psi_deg", "shift_x_A", "proportion"):
            np.testing.assert_allclose(found[name], tables[0][name], rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("rim_deg", [0.0, 4.0])
def test_with_the_same_references_blocks_give_the_same_bits(rim_deg: float) -> None:
    made = simulate(20, 2.0, ctf=CTF)
    stack, optics = made.images, optics_of(made.images)
    params = complete(Template(**AROUND, rim_deg=rim_deg), stack.attrs, stack.shape)
    references = open_references(list(make_volumes()), stack, "classify")
    sums = METHOD.chunk["cpu"](stack.values, np.arange(20), params, 20, optics=optics)
    model = pickle.loads(pickle.dumps(METHOD.prepare(sums, params, references)))
    score = METHOD.score["cpu"]
    whole = score(stack.values, params, model, optics=optics)
    assert whole.shape == (20, len(METHOD.columns(params, 2)))
    assert whole.dtype == np.float32
    for some in (slice(0, 1), slice(3, 17), slice(12, 20), slice(5, 5)):
        part = score(stack.values[some], params, model, optics=optics[some])
        np.testing.assert_array_equal(part, whole[some])


def test_references_may_be_images() -> None:
    made = simulate(30, 4.0)
    given = simulate(160, None, seed=8, shifts_A=0.0).clean
    found = classify(made, references=given)
    assert (found.class_id == made.class_id).mean() > 0.9
    assert np.median(turn_from_truth(found, made)) < 6
    assert abs(found.shift_x_A - made.shift_x_A).max() < 2
    # Of images alone no view is needed, and without directions poses are not known.
    bare = given.drop_vars(["rot_deg", "tilt_deg", "psi_deg"])
    blind = classify(made, references=bare, view=None)
    np.testing.assert_array_equal(blind.class_id, found.class_id)
    assert blind.kept.all()
    assert np.isnan(blind.rot_deg).all()
    np.testing.assert_allclose(blind.shift_x_A, found.shift_x_A, atol=0.05)


def test_reference_images_may_be_few_in_the_rim() -> None:
    """Even none: then no image is none of these."""
    made, given = simulate(12, 6.0), simulate(60, None, seed=8, shifts_A=0.0).clean
    found = classify(made, references=given, rim_deg=5.0)
    assert found.kept.all()
    assert (found.posterior_none == 0).all()


def test_shifts_are_looked_for_up_to_the_largest() -> None:
    made = simulate(16, 6.0, shifts_A=4.4)
    wide, narrow = classify(made, shift_A=4.5), classify(made, shift_A=0.0)
    likely = [found.log_likelihood.max("class") for found in (wide, narrow)]
    assert float((likely[0] - likely[1]).mean()) > 5
    assert abs(narrow.shift_x_A).max() < abs(wide.shift_x_A).max()


def test_finer_details_tell_more() -> None:
    made = simulate(60, 0.1, seed=2)
    accuracies = [
        float((classify(made, resolution_A=r).class_id == made.class_id).mean())
        for r in (8.0, 24.0)
    ]
    assert accuracies[0] > accuracies[1]


def test_pixels_are_as_large_as_they_are_said_to_be() -> None:
    made = simulate(8, 6.0)
    plain = da.from_array(made.images.values, chunks=(4, -1, -1))
    expected = classify(made, chunk=4)
    found = emdask.classify(plain, list(make_volumes()), "template", **AROUND).compute()
    for name in ("class_id", "shift_x_A", "psi_deg"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    doubled = [v.assign_attrs(pixel_size_A=2 * PIXEL_A) for v in make_volumes()]
    found = emdask.classify(plain, doubled, "template", **AROUND).compute()
    np.testing.assert_allclose(found.shift_x_A, 2 * expected.shift_x_A, atol=1e-3)


def test_cards_say_the_same(card: str) -> None:
    made = simulate(12, 3.0, ctf=CTF)
    expected, found = (classify(made, rim_deg=4.0, device=each) for each in ("cpu", card))
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-3, atol=0.05)
    kept = expected.kept.values
    for name in ("shift_x_A", "shift_y_A", "tilt_deg"):
        np.testing.assert_allclose(found[name][kept], expected[name][kept], atol=0.05)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"view": (1.0,)}, r"template: view must be rot and tilt, two numbers.*got \(1.0,\)"),
        ({"view": (0.0, float("nan"))}, "view must be rot and tilt"),
        ({"cone_deg": 40.0}, "template: cone_deg must be a number"),
        ({"step_deg": 0.1}, "template: step_deg must be"),
        ({"rim_deg": -1.0}, "template: rim_deg must be"),
        ({"likelihood": "mean"}, "template: likelihood must be one of marginal, maximum"),
        ({"shift_A": -1.0}, "template: shift_A must be"),
        ({"shift_A": 25.0}, "shift_A must be at most a quarter of the box, 24 Å; got 25"),
        ({"resolution_A": 5.0}, "resolution_A must lie between two pixels and .* 6 to 24 Å; got 5"),
        ({"resolution_A": 90.0}, "resolution_A must lie between"),
        ({"view": None}, "template: a view must be given.*Pass view="),
        ({"pixel_size_A": 0.0}, "template: pixel_size_A must be"),
    ],
)
def test_bad_parameters_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    stack = np.zeros((4, BOX, BOX), "f4")
    with pytest.raises(ParameterError, match=match):
        emdask.classify(stack, list(make_volumes()), "template", **{**AROUND, **options})


def test_images_of_which_a_class_has_none_near_the_view_are_refused() -> None:
    given = simulate(30, None, seed=8).clean
    there = given.assign_coords(class_id=("image", 1 + np.arange(30) % 2))
    there = there.assign_coords(tilt_deg=("image", np.where(np.arange(30) % 2, 150.0, 60.0)))
    with pytest.raises(ParameterError, match=r"each class needs a reference image within 10 deg"):
        emdask.classify(simulate(4, 1.0).images, there, "template", **AROUND)


def test_states_of_a_real_molecule_are_told_apart(shared_data: Path) -> None:
    """Five states of RNA polymerase, 5 degrees apart, at an SNR of 0.1."""
    paths = [shared_data / "conformations" / f"vol_{i}.npy" for i in range(5)]
    if not paths[0].exists():
        pytest.skip(f"no volumes of RNA polymerase here: {paths[0]}")
    attrs = {"pixel_size_A": 2.0}
    volumes = [xr.DataArray(np.load(path), dims=("z", "y", "x"), attrs=attrs) for path in paths]
    how = {"poses": "cone", "cone_deg": 10.0, "shifts_A": 8.0, "seed": 4}
    made = emdask.simulate(volumes, 60, snr=0.1, **how)
    how = {"view": (0.0, 0.0), "step_deg": 4.0}
    found = emdask.classify(made.images, volumes, "template", **how).compute()
    # Of more images 0.965 are told right: three standard deviations of 60 below.
    assert float((found.class_id == made.class_id).mean()) > 0.89
    assert np.median(turn_from_truth(found, made)) < 4
    errors = np.stack([found.shift_x_A - made.shift_x_A, found.shift_y_A - made.shift_y_A])
    assert np.median(abs(errors)) < 0.6
