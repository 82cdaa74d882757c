"""Two stages: what is far from the view goes, and the rest is told apart; on any workers alike."""

from __future__ import annotations

import functools
import pickle
import warnings
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import emdask
from emdask.classifiers import two_stage
from emdask.classifiers.template import complete
from emdask.classifiers.two_stage import METHOD, TwoStage
from emdask.errors import EmdaskWarning, ParameterError, StackError
from emdask.kernels import pose_search
from emdask.kernels.directions import angles_between
from emdask.references import open_references
from emdask.stack import optics_of
from tests.kernels.test_conformations import (
    BOX,
    CTF,
    LARGE,
    PIXEL_A,
    VIEW,
    make_volumes,
    mix,
    simulate,
)

QUICK = {"view": VIEW.view_deg, "cone_deg": VIEW.cone_deg, "step_deg": 5.0, "spacing_deg": 15.0}
POSES = ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "shift_y_A")


@pytest.fixture(autouse=True)
def _components_are_found_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_search, "N_DRAWN", 400)


def build(made: Any, chunk: int = 16, references: Any = None, **options: Any) -> xr.Dataset:
    given = list(make_volumes()) if references is None else references
    return emdask.classify(made.images.chunk(image=chunk), given, **{**QUICK, **options})


def classify(made: Any, **options: Any) -> xr.Dataset:
    """As one thread does it."""
    return build(made, **options).compute(scheduler="sync")


def from_view(made: Any) -> Any:
    return angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg)


@functools.cache
def make_mixed(with_ctf: bool = False) -> tuple[Any, Any]:
    """Small images of 24 near and 40 other views."""
    return mix(24, 40, 3.0, **({"ctf": CTF} if with_ctf else {}))


@pytest.mark.parametrize("with_ctf", [False, True])
def test_what_is_near_is_told_apart_and_what_is_far_goes(with_ctf: bool) -> None:
    volumes = make_volumes(grid=LARGE)
    options = {"ctf": CTF} if with_ctf else {}
    made, near = mix(80, 120, 1.0, volumes=volumes, **options)
    found = classify(made, references=list(volumes), chunk=50)
    far = from_view(made) > 25
    assert found.kept[near].mean() > 0.75
    assert found.kept[far].mean() < 0.04
    right = (found.class_id == made.class_id).values
    assert right[near & found.kept.values].mean() > 0.95
    score = found.screen_score.values
    assert np.isfinite(score).all()
    # Larger is nearer: chance that one of the cone has a higher score than one that is far.
    assert (score[near][:, None] > score[far]).mean() > 0.98
    kept = found.kept.values
    np.testing.assert_array_equal(found.class_id > 0, kept)
    for name in POSES:
        np.testing.assert_array_equal(np.isfinite(found[name]), kept)
    among = np.bincount(found.class_id.values[kept])[1:] / kept.sum()
    np.testing.assert_allclose(found.proportion, among, atol=0.05)
    assert float(found.proportion_none) == pytest.approx(1 - kept.mean(), abs=0.05)
    assert (found.proportion_low <= found.proportion).all()
    assert (found.proportion <= found.proportion_high).all()


def test_what_the_first_stage_drops_is_not_compared() -> None:
    made, _ = make_mixed()
    found = classify(made)
    compared = np.isfinite(found.log_likelihood).all("class").values
    assert 0 < compared.sum() < 64
    # What is compared lies above all that is not.
    score = found.screen_score.values
    assert score[compared].min() >= score[~compared].max()
    dropped = found.isel(image=~compared)
    assert (dropped.log_likelihood == -np.inf).all()
    assert (dropped.posterior == 0).all()
    assert (dropped.posterior_none == 1).all()
    assert not dropped.kept.any()
    assert np.isnan(dropped.margin).all()


def test_more_is_kept_where_more_is_asked_for() -> None:
    made, near = make_mixed()
    compared = [
        np.isfinite(classify(made, keep=keep).log_likelihood).all("class").values
        for keep in (0.3, 0.9, 0.999)
    ]
    counts = [int(each[near].sum()) for each in compared]
    assert counts[0] < counts[1] <= counts[2]
    assert (compared[2] | ~compared[0]).all()


def test_stages_are_those_of_which_it_is_made() -> None:
    """Poses and likelihoods of what is kept are those of the second stage alone."""
    made, _ = make_mixed(with_ctf=True)
    stack, optics = made.images, optics_of(made.images)
    params = complete(TwoStage(**QUICK), stack.attrs, stack.shape)
    references = open_references(list(make_volumes()), stack, "classify")
    ids = np.arange(len(stack))
    sums = METHOD.chunk["cpu"](stack.values, ids, params, len(stack), optics=optics)
    model = pickle.loads(pickle.dumps(METHOD.prepare(sums, params, references)))
    score = METHOD.score["cpu"]
    rows = score(stack.values, params, model, optics=optics)
    columns = METHOD.columns(params, 2)
    assert rows.shape == (64, len(columns))
    assert columns[:3] == ("class_1", "class_2", "none")
    kept = rows[:, columns.index("kept")] > 0
    assert 0 < kept.sum() < 64
    second = two_stage.template.score(
        stack.values[kept], params, model.poses, optics=optics[np.flatnonzero(kept)]
    )
    np.testing.assert_array_equal(rows[kept, : second.shape[1]], second)
    # Whatever lies beside: also where a block has nothing to keep, or is empty.
    gone = np.flatnonzero(~kept)
    for some in (np.array([3]), ids[::-1], ids[10:40], gone[:7], ids[:0]):
        part = score(stack.values[some], params, model, optics=optics[some])
        np.testing.assert_array_equal(part, rows[some])


def test_a_stack_without_the_view_is_of_no_class() -> None:
    views = np.column_stack([np.linspace(0, 350, 20), np.full(20, 130.0), np.arange(20.0)])
    made = simulate(20, 6.0, poses=views)
    assert from_view(made).min() > 60
    found = classify(made)
    assert not found.kept.any()
    assert (found.class_id == 0).all()
    assert np.isnan(found.proportion).all()
    assert float(found.proportion_none) == 1
    assert np.isnan(found.psi_deg).all()


def test_references_may_be_images() -> None:
    """Those far from the view are what images are screened against; those nearby are compared."""
    made, near = make_mixed()
    cone = simulate(80, None, seed=8, shifts_A=0.0).clean
    sphere = simulate(200, None, poses="uniform", seed=9, shifts_A=0.0).clean
    images = np.concatenate([cone.values, sphere.values])
    names = ("class_id", "rot_deg", "tilt_deg", "psi_deg")
    coords = {n: ("image", np.concatenate([cone[n].values, sphere[n].values])) for n in names}
    given = xr.DataArray(images, coords, ("image", "y", "x"), attrs=made.images.attrs)
    found = classify(made, references=given)
    kept, far = found.kept.values, from_view(made) > 25
    assert kept[near].mean() > 0.5
    assert kept[far].mean() < 0.15
    right = (found.class_id == made.class_id).values
    assert right[near & kept].mean() > 0.85
    with pytest.raises(ParameterError, match="there must be reference images of other views"):
        classify(made, references=given[:80])
    bare = given.drop_vars(["rot_deg", "tilt_deg", "psi_deg"])
    with pytest.raises(ParameterError, match="must have known directions where a view is wanted"):
        classify(made, references=bare)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_chunks_do_not_matter(with_ctf: bool) -> None:
    made, _ = make_mixed(with_ctf)
    expected = classify(made, chunk=64)
    found = classify(made, chunk=11)
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    for name in ("screen_score", "log_likelihood", "posterior", *POSES, "proportion"):
        ours, theirs = found[name].values, expected[name].values
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=5e-3, err_msg=name)


# --- Graphs and workers ---------------------------------------------------------------------------


def read_lazily(chunk: int) -> Any:
    """The mixed images, that are in no task."""
    made, _ = make_mixed()
    images = made.images

    def read(block_info: Any = None) -> Any:
        start, end = block_info[None]["array-location"][0]
        return make_mixed()[0].images.values[start:end]

    chunks = (tuple(np.diff([*range(0, len(images), chunk), len(images)])), (BOX,), (BOX,))
    lazily = dask.array.map_blocks(read, chunks=chunks, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    return images.copy(data=lazily)


def test_the_references_are_one_key_of_the_graph() -> None:
    built = emdask.classify(read_lazily(8), list(make_volumes()), **QUICK)
    (optimised,) = dask.optimize(built)
    tasks = dict(optimised.__dask_graph__())
    models = [key for key in tasks if str(key).startswith("two_stage-model-")]
    assert len(models) == 1
    users = [key for key, task in tasks.items() if models[0] in task.dependencies]
    scores = [key for key in tasks if "two_stage-scores-" in str(key)]
    assert len(users) >= len(scores) == 8
    assert set(scores) <= set(users)
    volume_bytes = make_volumes()[0].nbytes
    sizes = {str(key): len(cloudpickle.dumps(task)) for key, task in tasks.items()}
    large = [key for key, size in sizes.items() if size > 10_000]
    # What the user gave goes to one task.
    (given,) = large
    assert given.startswith("two_stage-references-")
    assert sizes[given] > 2 * volume_bytes
    assert sum(size for key, size in sizes.items() if key != given) < 200_000


def test_building_reads_no_pixel() -> None:
    def explode(block: Any) -> Any:
        raise AssertionError("was read")

    made, _ = make_mixed()
    poisoned = made.images.chunk(image=16).copy(
        data=made.images.chunk(image=16).data.map_blocks(explode, dtype="f4")
    )
    built = emdask.classify(poisoned, list(make_volumes()), **QUICK)
    assert built.class_id.shape == (64,)


def test_any_number_of_workers_makes_the_same_table_and_gets_references_once() -> None:
    expected = emdask.classify(read_lazily(8), list(make_volumes()), **QUICK).compute(
        scheduler="sync"
    )
    for n_workers in (1, 2, 4):
        built = emdask.classify(read_lazily(8), list(make_volumes()), **QUICK)
        size = {"n_workers": n_workers, "threads_per_worker": 1, "processes": False}
        with (
            LocalCluster(**size, dashboard_address="127.0.0.1:0") as cluster,
            Client(cluster),
        ):
            found = built.compute()
            arrivals = [
                sum(any("two_stage-model-" in str(key) for key in sent["keys"]) for sent in log)
                for log in (w.transfer_incoming_log for w in cluster.workers.values())
            ]
        xr.testing.assert_identical(found, expected)
        # The one that has made it needs none.
        assert max(arrivals) <= 1
        assert sum(arrivals) <= n_workers - 1


def test_cards_say_the_same(card: str) -> None:
    made, _ = make_mixed(with_ctf=True)
    expected, found = (classify(made, device=each) for each in ("cpu", card))
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.screen_score, expected.screen_score, rtol=1e-3, atol=0.02)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-3, atol=0.05)
    for name in ("shift_x_A", "tilt_deg"):
        np.testing.assert_allclose(found[name], expected[name], atol=0.05)


# --- Refused, and real ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"view": None}, r"two_stage: a view must be given.*Pass view=\(0, 0\)"),
        ({"keep": 1.0}, "two_stage: keep must be"),
        ({"keep": 0.0}, "two_stage: keep must be"),
        ({"cone_deg": 0.0}, "two_stage: cone_deg must be"),
        ({"spacing_deg": 1.0}, "two_stage: spacing_deg must be"),
        ({"step_deg": 99.0}, "step_deg must be"),
        ({"shift_A": 30.0}, "shift_A must be at most a quarter of the box"),
        ({"sigma": 1.0}, "sigma"),
    ],
)
def test_bad_parameters_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    stack = np.zeros((4, BOX, BOX), "f4")
    with pytest.raises(ParameterError, match=match):
        emdask.classify(stack, list(make_volumes()), **{**QUICK, **options})


def test_a_pixel_size_that_is_told_counts() -> None:
    """It stands in for one that is not known, and goes before one that is."""
    made, _ = make_mixed()
    volumes = [volume.drop_attrs() for volume in make_volumes()]
    plain = made.images.drop_attrs()
    with pytest.raises(StackError, match="a pixel size must be known"):
        build(xr.Dataset({"images": plain}), references=volumes)
    told = classify(xr.Dataset({"images": plain}), references=volumes, pixel_size_A=PIXEL_A)
    known = classify(made)
    assert told.attrs["pixel_size_A"] == PIXEL_A
    np.testing.assert_array_equal(told.class_id, known.class_id)
    np.testing.assert_allclose(told.shift_x_A, known.shift_x_A)
    with pytest.raises(StackError, match="must have the pixel size of the images, 9 Å"):
        build(made, pixel_size_A=9.0)


def test_noise_that_was_changed_is_told() -> None:
    made = simulate(8, 3.0)
    with pytest.raises(StackError, match=r"have been whitened.*Take them as they were"):
        build(made.assign(images=emdask.whiten(made.images)))
    smooth = made.assign(images=emdask.denoise(made.images, "gaussian", width_px=1.0))
    with pytest.warns(EmdaskWarning, match=r"were denoised \(gaussian\).*as they were recorded"):
        build(smooth)
    volumes = list(make_volumes())
    with warnings.catch_warnings():
        warnings.simplefilter("error", EmdaskWarning)
        # Outlines are those of denoised images.
        emdask.classify(smooth.images, volumes, "acf", features="contour")
    with pytest.warns(EmdaskWarning):
        emdask.classify(smooth.images, volumes, "acf")


def test_references_must_be_given() -> None:
    with pytest.raises(ParameterError, match="two_stage: references must be given"):
        emdask.classify(np.zeros((4, BOX, BOX), "f4"), **QUICK)


def test_a_real_mixture_is_sorted(shared_data: Path) -> None:
    """Five states of RNA polymerase, 5 degrees apart, among other views, at an SNR of 0.1."""
    paths = [shared_data / "conformations" / f"vol_{i}.npy" for i in range(5)]
    if not paths[0].exists():
        pytest.skip(f"no volumes of RNA polymerase here: {paths[0]}")
    attrs = {"pixel_size_A": 2.0}
    volumes = [xr.DataArray(np.load(path), dims=("z", "y", "x"), attrs=attrs) for path in paths]
    rng = np.random.default_rng(6)
    near = np.arange(120) < 60
    tilts = np.rad2deg(np.arccos(rng.uniform(np.where(near, np.cos(np.pi / 18), -1), 1)))
    poses = np.column_stack([360 * rng.random(120), tilts, 360 * rng.random(120)])
    made = emdask.simulate(volumes, 120, snr=0.1, poses=poses, shifts_A=8.0, seed=6)
    steps = {"spacing_deg": 12.0, "step_deg": 4.0}
    found = emdask.classify(made.images, volumes, view=(0.0, 0.0), **steps).compute()
    kept, far = found.kept.values, tilts > 25
    # Of more images 0.97 of the cone are kept, none of those that are far, and 0.97 of what is kept
    # is told right: bounds are three standard deviations of 60 images below 0.95, 0.99 and 0.965.
    assert kept[near].mean() > 0.86
    assert kept[far].sum() <= 2
    right = (found.class_id == made.class_id).values
    assert right[near & kept].mean() > 0.89
