"""Banks of references for conformations: what a stack tells of itself, and which views are made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import ParameterError
from emdask.kernels import conformations, pose_search
from emdask.kernels.conformations import (
    StackSums,
    View,
    add_stacks,
    find_radius,
    find_threshold,
    plan_search,
    prepare_pose_set,
    prepare_spectrum_set,
    reference_images,
    sum_stack,
)
from emdask.kernels.contrast import find_contrast
from emdask.kernels.ctf import Optics
from emdask.kernels.directions import angles_between, turn_pole
from emdask.kernels.polar import match_spectra
from emdask.kernels.pose_search import search_poses
from emdask.kernels.references import References
from emdask.phantoms import Phantom, phantom
from emdask.stack import optics_of

BOX, PIXEL_A = 32, 3.0
# Where corners are to tell the noise of low frequencies, too.
LARGE = (64, 2.0)
VIEW = View((40.0, 60.0), 10.0)
CTF = {"defocus_A": (8e3, 2e4)}
# Of a search that is quick: few views, and shifts up to 1.3 px.
QUICK = {"view": VIEW, "step_deg": 5.0, "rim_deg": 0.0, "shift_px": 1.3, "band": None}


def conformation(turn_deg: float) -> Phantom:
    """A body with an arm that is turned about z."""
    body = phantom(16, radius_A=24, width_A=(4.8, 6.0), seed=4)
    arm = phantom(5, radius_A=8, width_A=(4.8, 5.2), seed=7)
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    places = (arm.positions_A + np.array([22.0, 0.0, 4.0])) @ np.array(
        [[c, s, 0], [-s, c, 0], [0, 0, 1]]
    )
    return Phantom(
        positions_A=np.concatenate([body.positions_A, places]),
        widths_A=np.concatenate([body.widths_A, arm.widths_A]),
        masses=np.concatenate([body.masses, 1.5 * arm.masses]),
    )


@functools.cache
def make_volumes(
    n: int = 2, turn_deg: float = 30.0, grid: tuple[int, float] = (BOX, PIXEL_A)
) -> tuple[xr.DataArray, ...]:
    """Conformations in a box of so many pixels of so many Å."""
    return tuple(conformation(i * turn_deg).volume(*grid) for i in range(n))


def as_references(volumes: Any) -> References:
    return References(
        volumes=tuple(v.values for v in volumes), pixel_size_A=volumes[0].pixel_size_A
    )


def simulate(
    n: int, snr: float | None, poses: Any = "cone", seed: int = 1, volumes: Any = (), **options: Any
) -> Any:
    """Images of two conformations, computed; poses are those of `emdask.simulate`."""
    is_cone = isinstance(poses, str) and poses == "cone"
    around = {"cone_deg": VIEW.cone_deg, "view_deg": VIEW.view_deg} if is_cone else {}
    given = list(volumes or make_volumes())
    how = {"poses": poses, "seed": seed, "shifts_A": 3.0, **around, **options}
    return emdask.simulate(given, n, snr=snr, **how).compute()


def mix(n_near: int, n_far: int, snr: float, seed: int = 1, **options: Any) -> tuple[Any, Any]:
    """Images of the cone and from everywhere, of one contrast; and which are of the cone."""
    rng = np.random.default_rng(seed)
    n = n_near + n_far
    near = rng.permutation(np.arange(n) < n_near)
    lowest = np.where(near, np.cos(np.deg2rad(VIEW.cone_deg)), -1)
    tilts = np.rad2deg(np.arccos(rng.uniform(lowest, 1)))
    views = turn_pole(np.column_stack([360 * rng.random(n), tilts]), VIEW.view_deg)
    poses = np.column_stack([views, 360 * rng.random(n)])
    return simulate(n, snr, poses=poses, seed=seed, **options), near


def measure(made: Any) -> StackSums:
    images = made.images
    return sum_stack(images.values, np.arange(len(images)), len(images), optics_of(images))


def project(n_views: int, seed: int = 5) -> tuple[References, Any]:
    """Reference images of both conformations, half of them near to the view; and which."""
    near = simulate(n_views, None, seed=seed, shifts_A=0.0)
    far = simulate(n_views, None, poses="uniform", seed=seed, shifts_A=0.0)
    images = np.concatenate([each.clean.values for each in (near, far)])
    angles = np.concatenate([each.rotation_deg.values for each in (near, far)])
    which = np.concatenate([each.class_id.values for each in (near, far)]) - 1
    given = {"images": images, "class_index": which, "angles_deg": angles, "pixel_size_A": PIXEL_A}
    return References(**given), VIEW.holds(angles[:, :2])


@pytest.fixture(autouse=True)
def _components_are_found_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_search, "N_DRAWN", 400)


# --- The stack ------------------------------------------------------------------------------------


def assert_same_sums(found: StackSums, expected: StackSums) -> None:
    """Up to rounding; what is kept is the same."""
    assert found.spectra is not None
    assert expected.spectra is not None
    assert found.spectra.n_images == expected.spectra.n_images
    for name in ("power", "square"):
        ours, theirs = (getattr(each.spectra, name) for each in (found, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    np.testing.assert_allclose(found.spectra.noise.power, expected.spectra.noise.power, rtol=1e-9)
    np.testing.assert_array_equal(found.order, expected.order)
    assert (found.optics is None) == (expected.optics is None)
    if found.optics is not None and expected.optics is not None:
        for name, values in expected.optics.varying().items():
            np.testing.assert_array_equal(getattr(found.optics, name), values)


def sum_blocks(images: Any, ids: Any, ends: list[int], n_images: int, optics: Any) -> StackSums:
    starts = [0, *ends[:-1]]
    blocks = [slice(start, end) for start, end in zip(starts, ends, strict=True)]
    return functools.reduce(
        add_stacks,
        [sum_stack(images[s], ids[s], n_images, optics and optics[s]) for s in blocks],
    )


@pytest.mark.parametrize("with_ctf", [False, True])
@pytest.mark.parametrize("n_images", [90, 12_000])
def test_blocks_do_not_matter(
    n_images: int, with_ctf: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether all are measured, or a sixth; more optics are there than are kept."""
    monkeypatch.setattr(conformations, "N_OPTICS", 9)
    images = rng.normal(size=(90, BOX, BOX)).astype("f4")
    ids = rng.permutation(10**6)[:90]
    defoci = rng.uniform(1e4, 2e4, 90)
    optics = None
    if with_ctf:
        optics = Optics(pixel_size_A=PIXEL_A, defocus_u_A=defoci, defocus_v_A=defoci)
    whole = sum_stack(images, ids, n_images, optics)
    assert whole.spectra is not None
    assert 0 < whole.spectra.n_images <= 90
    assert (whole.spectra.n_images == 90) == (n_images == 90)
    assert len(whole.order) == 9
    # Blocks of one image are measured or not.
    for ends in ([30, 60, 90], [1, 2, 89, 90], list(range(1, 91))):
        assert_same_sums(sum_blocks(images, ids, ends, n_images, optics), whole)


def test_numbers_of_images_tell_which_are_measured(rng: np.random.Generator) -> None:
    images, ids = rng.normal(size=(60, 16, 16)).astype("f4"), np.arange(60)
    some = sum_stack(images, ids, 6000, None)
    turned = sum_stack(images[::-1], ids[::-1], 6000, None)
    np.testing.assert_array_equal(np.sort(some.order), np.sort(turned.order))
    others = sum_stack(images, ids + 60, 6000, None)
    assert not set(some.order.tolist()) & set(others.order.tolist())


def test_of_many_images_about_2000_are_measured() -> None:
    n = 40_000
    images = np.ones((n, 8, 8), "f4")
    images[:, ::2] = 0
    ids = np.arange(n)
    blocks = [
        sum_stack(images[s : s + 4000], ids[s : s + 4000], n, None) for s in range(0, n, 4000)
    ]
    counts = [block.spectra.n_images if block.spectra else 0 for block in blocks]
    # Five standard deviations of what chance would choose.
    assert abs(sum(counts) - 2000) < 5 * 2000**0.5
    assert abs(np.array(counts) - 200).max() < 5 * 200**0.5
    assert len(functools.reduce(add_stacks, blocks).order) == 500


def test_blocks_of_which_none_is_measured_add_nothing(rng: np.random.Generator) -> None:
    images = rng.normal(size=(3, 16, 16)).astype("f4")
    ids = np.arange(100)
    chosen = sum_stack(np.zeros((100, 16, 16), "f4"), ids, 10**6, None)
    assert 0 <= len(chosen.order) < 5
    without = ids[[len(sum_stack(images[:1], ids[i : i + 1], 10**6, None).order) == 0 for i in ids]]
    none = sum_stack(images, without[:3], 10**6, None)
    assert none.spectra is None
    some = sum_stack(images, np.arange(3), 3, None)
    assert_same_sums(add_stacks(none, some), some)
    assert_same_sums(add_stacks(some, none), some)
    assert add_stacks(none, none).spectra is None


def test_one_ctf_for_all_stays_one() -> None:
    images = np.random.default_rng(0).normal(size=(6, 16, 16)).astype("f4")
    same = Optics(pixel_size_A=PIXEL_A, defocus_u_A=np.full(6, 1e4), defocus_v_A=1.1e4)
    whole = sum_stack(images, np.arange(6), 6, same)
    assert_same_sums(sum_blocks(images, np.arange(6), [2, 6], 6, same), whole)
    found = sum_blocks(images, np.arange(6), [2, 6], 6, same).optics
    assert found is not None
    assert np.ndim(found.defocus_v_A) == 0
    assert np.shape(found.defocus_u_A) == (6,)


# --- Views ----------------------------------------------------------------------------------------


def test_a_view_holds_what_is_near() -> None:
    views = np.array([[40.0, 60.0], [40.0, 70.0], [40.0, 70.01], [220.0, 120.0]])
    assert VIEW.holds(views).tolist() == [True, True, False, False]


def test_spectra_are_of_the_cone_and_of_all_that_is_outside() -> None:
    volumes = make_volumes(5, 10.0)
    sums = measure(simulate(40, 1.0))
    how = {"spacing_deg": 15.0, "view": VIEW}
    found = prepare_spectrum_set(as_references(volumes), sums, by_class=True, **how)
    ends = found.bank.group_ends
    assert len(ends) == 6
    assert ends[-1] == len(found.angles_deg) == len(found.class_index) == len(found.bank.log_prior)
    distances = angles_between(found.angles_deg[:, :2], VIEW.view_deg)
    assert distances[: ends[4]].max() < 10.001
    assert distances[ends[4] :].min() > 10 + 0.2 * 15
    assert distances.max() > 170
    np.testing.assert_array_equal(found.class_index[: ends[4]], np.repeat(np.arange(5), ends[0]))
    # Conformations are much alike from afar.
    assert set(found.class_index[ends[4] :]) == {0, 2, 4}
    joined = prepare_spectrum_set(as_references(volumes), sums, by_class=False, **how)
    assert joined.bank.group_ends == (ends[4], ends[5])
    np.testing.assert_array_equal(joined.angles_deg, found.angles_deg)


def test_without_a_view_there_are_all() -> None:
    sums = measure(simulate(40, 1.0, poses="uniform"))
    how = {"spacing_deg": 20.0, "view": None}
    found = prepare_spectrum_set(as_references(make_volumes()), sums, by_class=True, **how)
    first, last = found.bank.group_ends
    assert last == 2 * first
    np.testing.assert_array_equal(found.angles_deg[:first], found.angles_deg[first:])
    assert angles_between(found.angles_deg[:, :2], (0.0, 0.0)).max() > 165


@pytest.mark.parametrize("with_ctf", [False, True])
def test_spectra_tell_the_cone_from_the_rest(with_ctf: bool) -> None:
    options = {"ctf": CTF} if with_ctf else {}
    near, far = simulate(60, 1.0, **options), simulate(60, 1.0, poses="uniform", **options)
    far = far.isel(image=angles_between(far.rotation_deg.values[:, :2], VIEW.view_deg) > 25)
    sums = measure(near)
    how = {"spacing_deg": 12.0, "view": VIEW, "by_class": False}
    bank = prepare_spectrum_set(as_references(make_volumes()), sums, **how).bank
    likely = [
        match_spectra(each.images.values, bank, optics_of(each.images)).log_likelihood
        for each in (near, far)
    ]
    scores = [each[:, 0] - each[:, 1] for each in likely]
    # Chance that one from the cone has a higher score than one from elsewhere.
    assert (scores[0][:, None] > scores[1]).mean() > 0.95


@pytest.mark.parametrize("keep", [0.8, 0.95])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_the_threshold_keeps_what_it_is_to_keep(with_ctf: bool, keep: float) -> None:
    options = {"ctf": CTF} if with_ctf else {}
    volumes = make_volumes(grid=LARGE)
    made, near = mix(300, 200, 0.5, volumes=volumes, **options)
    # Images are taken to be from everywhere; the cone's hold more power than most.
    sums = measure(made.isel(image=~near))
    references = as_references(volumes)
    how = {"spacing_deg": 12.0, "view": VIEW, "by_class": False}
    spectra = prepare_spectrum_set(references, sums, **how)
    threshold = find_threshold(spectra, references, sums, VIEW, keep)
    optics = optics_of(made.images)
    likely = match_spectra(made.images.values, spectra.bank, optics).log_likelihood
    kept = likely[:, 0] - likely[:, 1] >= threshold
    # Three standard deviations of 400 simulated and 300 fresh images, and errors of the contrast.
    chance = (keep * (1 - keep) * (1 / 400 + 1 / 300)) ** 0.5
    assert abs(kept[near].mean() - keep) < 3 * chance + 0.03
    far = angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg) > 25
    assert kept[far].mean() < 0.25


# --- Poses ----------------------------------------------------------------------------------------


def test_the_basis_set_is_of_all_classes_from_the_same_views() -> None:
    sums = measure(simulate(40, 1.0))
    found = prepare_pose_set(as_references(make_volumes(3)), sums, **{**QUICK, "rim_deg": 5.0})
    ends = found.bank.group_ends
    assert (found.n_classes, len(ends), ends[-1]) == (3, 4, len(found.angles_deg))
    inside, rim = found.angles_deg[: ends[2]], found.angles_deg[ends[2] :]
    np.testing.assert_array_equal(inside[: ends[0]], inside[ends[0] : ends[1]])
    assert angles_between(inside[:, :2], VIEW.view_deg).max() < 10.001
    np.testing.assert_allclose(angles_between(rim[:, :2], VIEW.view_deg), 15, atol=1e-4)
    plain = prepare_pose_set(as_references(make_volumes(3)), sums, **QUICK)
    assert plain.bank.group_ends == ends[:3]


def test_the_coarse_step_has_views_of_every_conformation() -> None:
    """Their mean, of conformations that differ much, is turned unlike any of them."""
    sums = measure(simulate(24, 3.0))
    counts = [
        len(prepare_pose_set(as_references(volumes), sums, **QUICK).bank.coarse)
        for volumes in (make_volumes(n=1), make_volumes(n=3))
    ]
    assert counts[1] == 3 * counts[0]


def test_a_narrow_rim_is_a_rim() -> None:
    how = {**QUICK, "rim_deg": 1.0}
    found = prepare_pose_set(as_references(make_volumes()), measure(simulate(40, 1.0)), **how)
    assert len(found.bank.group_ends) == 3


@pytest.mark.parametrize("factor", [7.0, 1e-3])
def test_grey_levels_of_references_do_not_matter(factor: float) -> None:
    """How strongly images show them is measured."""
    made = simulate(40, 1.0)
    sums, volumes = measure(made), make_volumes()
    how = {"spacing_deg": 15.0, "view": VIEW, "by_class": True}
    likely = []
    for scale in (1.0, factor):
        references = as_references([scale * v for v in volumes])
        bank = prepare_spectrum_set(references, sums, **how).bank
        likely.append([match_spectra(made.images.values, bank).log_likelihood])
        bank = prepare_pose_set(references, sums, **QUICK).bank
        likely[-1].append(search_poses(made.images.values, bank).log_likelihood)
    for found, expected in zip(*likely, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=0.1)


def test_fine_details_are_looked_at_where_conformations_differ_in_these(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Else particles as small as these are compared to the highest frequencies.
    monkeypatch.setattr(conformations, "SEARCH_BANDS", (1.5, 2.0))
    sums = measure(simulate(40, 1.0))
    y = np.indices((BOX,) * 3)
    checks = make_volumes()[0].values * (1 + 0.8 * np.cos(2 * np.pi * 0.36 * y[2]))
    bands = []
    for second in (make_volumes()[1].values, checks):
        volumes = (make_volumes()[0].values, second.astype("f4"))
        references = References(volumes=volumes, pixel_size_A=PIXEL_A)
        bands.append(prepare_pose_set(references, sums, **QUICK).bank.plan.bands[2])
    assert bands[0] < 0.36 < bands[1] <= conformations.HIGHEST_BAND
    given = prepare_pose_set(as_references(make_volumes()), sums, **{**QUICK, "band": 0.3})
    assert given.bank.plan.bands[2] == 0.3


def test_steps_are_as_fine_as_frequencies_ask_for() -> None:
    plan, finer, wider = (
        plan_search(*each) for each in ((50, 0.22, 4), (50, 0.44, 4), (100, 0.22, 4))
    )
    assert plan.bands[:2] == finer.bands[:2]
    assert finer.shift_steps_px[2] == pytest.approx(plan.shift_steps_px[2] / 2, abs=0.01)
    assert finer.turn_steps_deg[2] == pytest.approx(plan.turn_steps_deg[2] / 2)
    # What is twice as wide is looked at half as finely first, and turns by steps as large.
    assert wider.bands[0] == pytest.approx(plan.bands[0] / 2)
    assert wider.turn_steps_deg[0] == pytest.approx(plan.turn_steps_deg[0], rel=0.05)
    assert plan.bands[0] < plan.bands[1] < plan.bands[2]
    assert plan.shift_px == 4
    assert max(plan_search(50, 0.05, 4).bands) == 0.05


# --- Images as references -------------------------------------------------------------------------


def test_reference_images_go_to_the_cone_the_rim_or_nowhere() -> None:
    references, near = project(30)
    assert references.angles_deg is not None
    assert references.class_index is not None
    sums = measure(simulate(40, 1.0))
    spectra = prepare_spectrum_set(references, sums, spacing_deg=9.0, view=VIEW, by_class=True)
    counts = [int((near & (references.class_index == k)).sum()) for k in range(2)]
    ends = np.cumsum([*counts, int((~near).sum())])
    assert spectra.bank.group_ends == tuple(ends)
    held = VIEW.holds(spectra.angles_deg[:, :2])
    np.testing.assert_array_equal(held, np.arange(len(held)) < ends[1])
    rim_deg = 25.0
    poses = prepare_pose_set(references, sums, **{**QUICK, "rim_deg": rim_deg})
    distances = angles_between(references.angles_deg[:, :2], VIEW.view_deg)
    in_rim = int((~near & (distances < 10 + rim_deg)).sum())
    assert in_rim > 0
    assert poses.bank.group_ends == (*ends[:2], ends[1] + in_rim)
    none_there = prepare_pose_set(references, sums, **{**QUICK, "rim_deg": 1e-3})
    assert none_there.bank.group_ends == tuple(ends[:2])
    everywhere = prepare_pose_set(references, sums, **{**QUICK, "view": None})
    assert everywhere.bank.group_ends[-1] == len(near)


def test_reference_images_need_no_angles() -> None:
    references, _ = project(10)
    given = {"images": references.images, "class_index": references.class_index}
    unknown = References(**given, pixel_size_A=PIXEL_A)
    sums = measure(simulate(40, 1.0))
    for view in (None, VIEW):
        found = prepare_pose_set(unknown, sums, **{**QUICK, "view": view})
        assert found.bank.group_ends[-1] == 20
        assert np.isnan(found.angles_deg).all()


def test_the_ground_of_reference_images_does_not_matter() -> None:
    references, _ = project(15)
    assert references.images is not None
    lifted = References(
        **{**vars(references), "images": references.images + 3 * references.images.max()}
    )
    made = simulate(20, 1.0)
    sums = measure(made)
    found = []
    for each in (references, lifted):
        how = {"spacing_deg": 9.0, "view": VIEW, "by_class": True}
        bank = prepare_spectrum_set(each, sums, **how).bank
        poses = prepare_pose_set(each, sums, **QUICK).bank
        images = made.images.values
        found.append(
            [f(images, b).log_likelihood for f, b in ((match_spectra, bank), (search_poses, poses))]
        )
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=0.1)


def test_thresholds_are_found_of_reference_images_too() -> None:
    references, near = project(60)
    made = simulate(200, 1.0, poses="uniform")
    sums = measure(made)
    spectra = prepare_spectrum_set(references, sums, spacing_deg=9.0, view=VIEW, by_class=False)
    thresholds = [find_threshold(spectra, references, sums, VIEW, keep) for keep in (0.5, 0.95)]
    assert thresholds[0] > thresholds[1]
    assert thresholds[0] > 0
    likely = match_spectra(made.images.values, spectra.bank).log_likelihood
    far = angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg) > 25
    kept = likely[:, 0] - likely[:, 1] >= thresholds[1]
    assert kept[far].mean() < 0.3
    assert near.sum() >= 60


def test_references_as_images_are_grouped() -> None:
    how = {"spacing_deg": 20.0, "view": VIEW}
    images, group = reference_images(as_references(make_volumes()), **how)
    assert images.shape == (len(group), BOX, BOX)
    assert set(group) == {0, 1, 2}
    assert (np.diff(group) >= 0).all()
    references, near = project(10)
    images, group = reference_images(references, **how)
    assert (group == 2).sum() == (~near).sum()


# --- Refused, and real ----------------------------------------------------------------------------


def test_images_that_show_nothing_are_refused(rng: np.random.Generator) -> None:
    y, x = np.indices((BOX, BOX)) - BOX // 2
    images = rng.normal(size=(40, BOX, BOX)) * np.where(np.hypot(x, y) < BOX / 2, 0.5, 1.0)
    sums = sum_stack(images.astype("f4"), np.arange(40), 40, None)
    with pytest.raises(ParameterError, match="must show more power than their corners"):
        prepare_pose_set(as_references(make_volumes()), sums, **QUICK)


def test_noise_alone_is_refused(rng: np.random.Generator) -> None:
    images = rng.normal(size=(300, BOX, BOX)).astype("f4")
    sums = sum_stack(images, np.arange(300), 300, None)
    with pytest.raises(ParameterError, match=r"show more power .* 4 standard errors .* of few or"):
        prepare_pose_set(as_references(make_volumes()), sums, **QUICK)


@pytest.mark.parametrize("with_ctf", [False, True])
def test_dark_particles_on_light_are_refused(with_ctf: bool) -> None:
    made = simulate(48, 1.0, **({"ctf": CTF} if with_ctf else {}))
    references = as_references(make_volumes())
    prepare_pose_set(references, measure(made), **QUICK)
    negative = made.assign(images=-made.images)
    with pytest.raises(ParameterError, match="must be light on dark"):
        prepare_pose_set(references, measure(negative), **QUICK)
    # One image tells nothing of the kind.
    prepare_pose_set(references, measure(made.isel(image=slice(1))), **QUICK)
    with pytest.raises(ParameterError, match="must be light on dark"):
        prepare_spectrum_set(
            references, measure(negative), spacing_deg=20.0, view=VIEW, by_class=False
        )


@pytest.mark.parametrize(("level", "n"), [(0.0, 1), (0.03, 20), (0.05, 5), (0.1, 20)])
def test_solvent_noise_of_a_map_is_outside_of_the_particle(
    level: float, n: int, rng: np.random.Generator
) -> None:
    y, x = np.indices((64, 64)) - 32
    images = (np.hypot(y, x) < 15) * np.ones((n, 1, 1))
    images += level * rng.normal(size=images.shape)
    assert 15 <= find_radius(images) <= 18


def test_the_contrast_of_a_real_molecule_is_found(shared_data: Path) -> None:
    """Images of a known SNR, of which the grey levels of a structure are multiplied."""
    path = shared_data / "conformations" / "vol_0.npy"
    if not path.exists():
        pytest.skip(f"no volume of RNA polymerase here: {path}")
    volume = xr.DataArray(np.load(path), dims=("z", "y", "x"), attrs={"pixel_size_A": 2.0})
    clean = emdask.simulate(volume, 40, snr=None, seed=3).clean.compute().values
    made = emdask.simulate(volume, 40, snr=0.1, seed=3).compute()
    spectra = sum_stack(made.images.values, np.arange(40), 40, None).spectra
    assert spectra is not None
    expected = float((clean * made.clean.values).sum() / np.square(clean).sum())
    power = emdask.kernels.fourier.radial_power(clean)[1].mean(0)
    # 40 images at an SNR of 0.1 tell it to some per cent.
    square, _ = find_contrast(spectra, power, 128)
    assert np.sqrt(square) == pytest.approx(expected, rel=0.05)
