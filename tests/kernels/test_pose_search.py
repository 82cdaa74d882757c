"""Search of poses: against particles put there, and likelihoods summed directly over poses."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp

from emdask.backend import why_no_cuda
from emdask.kernels import pose_search
from emdask.kernels.ctf import Optics, apply_ctf
from emdask.kernels.fourier import frequency_grid
from emdask.kernels.pose_search import PoseBank, PosePlan, prepare_poses, search_poses
from emdask.phantoms import Phantom, phantom

BOX, PIXEL_A = 32, 3.0


def balanced(seed: int) -> Phantom:
    """A particle of no mass on the whole, so that its images less their mean end where it ends."""
    made = phantom(14, radius_A=24, width_A=(4.8, 6.0), seed=seed)
    return replace(made, masses=made.masses - made.masses.mean())


PARTICLES = [balanced(seed) for seed in range(4)]
PLAN = PosePlan(
    shift_px=3.0,
    radius_px=14.0,
    bands=(0.2, 0.28, 0.36),
    shift_steps_px=(0.8, 0.4, 0.25),
    turn_steps_deg=(6.0, 3.0, 2.0),
    shift_reach_px=(0.6, 0.75),
    turn_reach_deg=(5.0, 8.0),
)


def see(which: Any, turns_deg: Any, shifts_px: Any = (0.0, 0.0)) -> Any:
    """Views along z, turned from the x towards the y axis, then shifted (x, y); not scaled."""
    shifts = np.broadcast_to(shifts_px, (len(which), 2))
    # RELION's psi turns the y axis towards x, and its shifts are what would centre the particle.
    return np.concatenate(
        [
            PARTICLES[i].project(
                [[0, 0, -t]], shift_A=-PIXEL_A * s, box_px=BOX, pixel_size_A=PIXEL_A
            )
            for i, t, s in zip(which, turns_deg, shifts, strict=True)
        ]
    )


# So that views have variance 1.
SCALE = see(range(4), [0.0] * 4).var(axis=(1, 2)).mean() ** -0.5
REFERENCES = SCALE * see(range(4), [0.0] * 4)


@functools.cache
def make_bank(variance: float, sizes: tuple[int, ...] = (1,) * 4) -> PoseBank:
    return make_other_bank(variance, sizes)


def make_other_bank(variance: float, sizes: tuple[int, ...] = (1,) * 4, **options: Any) -> PoseBank:
    amplitude = np.full((BOX, BOX // 2 + 1), variance**0.5)
    given = {"references": REFERENCES, "coarse": REFERENCES, "noise_amplitude": amplitude}
    return prepare_poses(group_sizes=sizes, **{**given, "plan": PLAN, **options})


@pytest.fixture(autouse=True)
def _components_are_found_from_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 400 references, of which there are some 1800: a second less for each bank."""
    monkeypatch.setattr(pose_search, "N_DRAWN", 400)


def draw_optics(n: int, rng: np.random.Generator) -> Optics:
    defoci = rng.uniform(8e3, 2e4, n)
    return Optics(pixel_size_A=PIXEL_A, defocus_u_A=defoci, defocus_v_A=defoci)


def draw(n: int, variance: float, rng: np.random.Generator, optics: Optics | None = None) -> Any:
    """Images, and the truth: which particles, turns and shifts."""
    which, turns = np.arange(n) % 4, rng.uniform(0, 360, n)
    shifts = rng.uniform(-2.9, 2.9, (n, 2))
    images = SCALE * see(which, turns, shifts)
    if optics is not None:
        images = apply_ctf(images, optics.ctfs((BOX, BOX), n))
    images = images + rng.normal(scale=variance**0.5, size=images.shape)
    return images.astype("f4"), which, turns, shifts


def turn_gap(a: Any, b: Any) -> Any:
    return abs((np.asarray(a) - b + 180) % 360 - 180)


def on(device: str, array: Any) -> Any:
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


def back(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


# --- Poses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [1e-4, 0.1])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_clean_images_are_found_where_they_are(
    with_ctf: bool, variance: float, rng: np.random.Generator
) -> None:
    optics = draw_optics(40, rng) if with_ctf else None
    images, which, turns, shifts = draw(40, variance, rng, optics)
    found = search_poses(images, make_bank(variance), optics)
    rows = np.arange(40)
    np.testing.assert_array_equal(found.log_likelihood.argmax(1), which)
    assert (found.reference == np.arange(4)).all()
    # About a step of the fine grid: turns and shifts may make up for each other a little.
    assert turn_gap(found.turn_deg[rows, which], turns).max() < 2.5
    assert np.median(turn_gap(found.turn_deg[rows, which], turns)) < 0.8
    assert abs(found.shift_px[rows, which] - shifts).max() < 0.25
    assert (found.turn_deg >= 0).all()
    assert (found.turn_deg < 360).all()
    assert [each.dtype for each in found] == ["f4", "i8", "f4", "f4"]


def test_noisy_images_are_found_nearby(rng: np.random.Generator) -> None:
    images, which, turns, shifts = draw(80, 3.0, rng)
    found = search_poses(images, make_bank(3.0))
    rows = np.arange(80)
    right = found.log_likelihood.argmax(1) == which
    assert right.mean() > 0.85
    gaps = turn_gap(found.turn_deg[rows, which], turns)[right]
    assert np.median(gaps) < 3.5
    assert np.median(abs(found.shift_px[rows, which] - shifts)[right]) < 0.35


def test_the_likeliest_reference_of_a_group_is_told_by_its_place(rng: np.random.Generator) -> None:
    images, which, turns, _ = draw(40, 0.2, rng)
    found = search_poses(images, make_bank(0.2, (1, 3)))
    group = (which > 0) * 1
    np.testing.assert_array_equal(found.log_likelihood.argmax(1), group)
    np.testing.assert_array_equal(found.reference[np.arange(40), group], which)
    assert turn_gap(found.turn_deg[np.arange(40), group], turns).max() < 2.5


def test_each_image_has_its_own_ctf(rng: np.random.Generator) -> None:
    optics = draw_optics(60, rng)
    images, which, _, _ = draw(60, 10.0, rng, optics)
    bank, rows = make_bank(10.0), np.arange(60)
    right, wrong, blind = (
        search_poses(images, bank, given).log_likelihood
        for given in (optics, optics[rows[::-1]], None)
    )
    accuracies = [(each.argmax(1) == which).mean() for each in (right, wrong, blind)]
    assert accuracies[0] > 0.85
    assert accuracies[0] > accuracies[2] + 0.05
    # A likelihood says which CTF is right, too.
    own = [each[rows, which].mean() for each in (right, wrong, blind)]
    assert own[0] > max(own[1:]) + 2


def test_the_spectrum_of_the_noise_counts(rng: np.random.Generator) -> None:
    """Noise of low frequency is not mistaken for a particle where it is known."""
    power = 1 + 300 * np.exp(-((frequency_grid((BOX, BOX)) / 0.07) ** 2))
    images, which, _, _ = draw(60, 0.0, rng)
    noise = np.fft.rfft2(rng.normal(size=images.shape)) * np.sqrt(power)
    images = (images + np.fft.irfft2(noise, s=(BOX, BOX))).astype("f4")
    accuracies = [
        (search_poses(images, bank).log_likelihood.argmax(1) == which).mean()
        for bank in (make_other_bank(0.0, noise_amplitude=np.sqrt(power)), make_bank(1.0))
    ]
    assert accuracies[0] > 0.95
    assert accuracies[1] < accuracies[0] - 0.2


def test_the_level_of_the_ground_does_not_matter(rng: np.random.Generator) -> None:
    images, _, _, _ = draw(8, 1.0, rng)
    found, lifted = (search_poses(each, make_bank(1.0)) for each in (images, images + 50))
    np.testing.assert_allclose(lifted.log_likelihood, found.log_likelihood, rtol=1e-4, atol=1e-2)


# --- Likelihoods ----------------------------------------------------------------------------------


def exact_likelihoods(
    image: Any, which: int, variance: float, turns: Any, shifts: Any, ctf: Any
) -> Any:
    """Of poses relative to noise alone, by sums over pixels; the mean grey level tells nothing."""
    views = SCALE * see([which] * len(turns), turns, shifts)
    if ctf is not None:
        views = apply_ctf(views, ctf)
    views = views - views.mean(axis=(1, 2), keepdims=True)
    return ((views * (image - views / 2)).sum(axis=(1, 2))) / variance


def grid_about(turn_deg: float, shift_px: Any) -> tuple[Any, Any, float]:
    """Turns and shifts close together, and the size of a cell."""
    t, y, x = np.meshgrid(np.linspace(-9, 9, 19), *[np.linspace(-0.9, 0.9, 10)] * 2, indexing="ij")
    shifts = np.column_stack([x.ravel(), y.ravel()]) + shift_px
    return t.ravel() + turn_deg, shifts, 1.0 * 0.2 * 0.2


@pytest.mark.parametrize("variance", [1.0, 3.0])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_likelihoods_are_those_of_direct_sums(
    with_ctf: bool, variance: float, rng: np.random.Generator
) -> None:
    n = 6
    optics = draw_optics(n, rng) if with_ctf else None
    images, which, _, _ = draw(n, variance, rng, optics)
    bank = make_bank(variance)
    whole, best = (search_poses(images, bank, optics, best_only=b) for b in (False, True))
    turns, shifts = bank.fine.turns, bank.fine.shifts
    cell = (turns[1] - turns[0]) * (shifts[1, 0] - shifts[0, 0]) ** 2
    for i in range(n):
        ctf = None if optics is None else optics.ctf((BOX, BOX), i)
        k = which[i]
        turns_deg, shifts_px, own = grid_about(whole.turn_deg[i, k], whole.shift_px[i, k])
        exact = exact_likelihoods(images[i], k, variance, turns_deg, shifts_px, ctf)
        # The prior is even over the poses that are compared.
        total = logsumexp(exact) + np.log(own / (cell * len(turns) * len(shifts)))
        assert whole.log_likelihood[i, k] == pytest.approx(total, abs=1.5, rel=0.003)
        # The best of a coarser grid.
        assert -0.02 < (best.log_likelihood[i, k] - exact.max()) / exact.max() < 0.01


def test_the_best_pose_is_likelier_than_the_mean_of_all(rng: np.random.Generator) -> None:
    images, _, _, _ = draw(20, 2.0, rng)
    bank = make_bank(2.0, (2, 2))
    whole, best = (search_poses(images, bank, best_only=b) for b in (False, True))
    n_local = len(bank.fine.turns) * len(bank.fine.shifts)
    # Of equal priors of two references, the best has half.
    gain = best.log_likelihood - whole.log_likelihood
    assert (gain > 0).all()
    assert (gain < np.log(n_local)).all()
    for name in ("reference", "turn_deg", "shift_px"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(best, name))


def test_references_that_are_the_same_count_as_one(rng: np.random.Generator) -> None:
    images, _, _, _ = draw(12, 2.0, rng)
    twice = np.repeat(REFERENCES, [3, 1, 1, 1], axis=0)
    one, three = (
        search_poses(images, make_other_bank(2.0, sizes, references=references))
        for sizes, references in (((1, 1, 1, 1), REFERENCES), ((3, 1, 1, 1), twice))
    )
    np.testing.assert_allclose(three.log_likelihood, one.log_likelihood, rtol=0.01, atol=0.3)


def test_priors_are_of_references_in_their_group(rng: np.random.Generator) -> None:
    images, _, _, _ = draw(12, 2.0, rng)
    plain = search_poses(images, make_bank(2.0))
    prior = np.array([0.0, -3.0, 1.5, -40.0])
    found = search_poses(images, make_bank(2.0)._replace(log_prior=prior.astype("f4")))
    expected = plain.log_likelihood + prior
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5, atol=1e-3)
    barred = np.where(np.arange(4) == 2, 0.0, -1e5).astype("f4")
    found = search_poses(images, make_bank(2.0, (4,))._replace(log_prior=barred))
    assert (found.reference == 2).all()


@pytest.mark.parametrize("variance", [0.05, 2.0])
def test_components_hold_the_references(variance: float) -> None:
    bank = make_bank(variance)
    for nearby in (bank.middle, bank.fine):
        n = len(nearby.turns) * len(nearby.shifts)
        assert nearby.held.shape == (4, n)
        assert nearby.values.n_columns == 4 * n
        assert nearby.held.max() < 1.0001
        # What is left out is a tenth of what noise puts into one number, squared.
        total = 2 * nearby.power.sum(0)[:, None]
        assert ((1 - nearby.held) * total).mean() < 0.2


# --- The search -----------------------------------------------------------------------------------


def test_shifts_are_tried_up_to_the_largest() -> None:
    plan = PLAN._replace(shift_px=3.0, shift_steps_px=(0.8, 0.5, 0.25))
    shifts = plan.coarse_shifts
    assert abs(shifts).max() == 3
    assert (shifts == 0).all(axis=1).any()
    assert {tuple(-s) for s in shifts} == {tuple(s) for s in shifts}
    assert np.diff(np.unique(shifts[:, 0])).max() < 0.8 * 1.34
    still = PLAN._replace(shift_px=0.0)
    assert still.coarse_shifts.tolist() == [[0, 0]]
    assert PLAN.n_turns == 60


def test_peaks_are_apart(device: str) -> None:
    """Also across the end of a turn; those of one image are not those of another."""
    plan, n_shifts = PLAN._replace(shift_reach_px=(0.8, 0.75)), len(PLAN.coarse_shifts)
    values = np.zeros((2, n_shifts, 60), "f4")
    here, there = 7, n_shifts - 3
    values[0, here, 0] = 9
    values[0, here, [1, 59]] = 8.5
    values[0, here + 1, 0] = 8
    values[0, there, 1] = 5
    values[1, there, 30] = 3
    values[1, there, 40] = 2
    on_device = on(device, values)
    found = pose_search._find_peaks(on_device, plan, pose_search.array_namespace(on_device))
    turns, shifts = (back(each) for each in found)
    assert turns.tolist() == [[0, 6], [180, 240]]
    places = [[here, there], [there, there]]
    np.testing.assert_array_equal(shifts, plan.coarse_shifts[np.array(places)])
    np.testing.assert_array_equal(back(on_device), values)


def test_particles_without_shifts_are_found_too(rng: np.random.Generator) -> None:
    plan = PLAN._replace(shift_px=0.0)
    turns = rng.uniform(0, 360, 8)
    images = (SCALE * see(np.arange(8) % 4, turns)).astype("f4")
    found = search_poses(images, make_other_bank(0.1, plan=plan))
    which = np.arange(8) % 4
    np.testing.assert_array_equal(found.log_likelihood.argmax(1), which)
    assert turn_gap(found.turn_deg[np.arange(8), which], turns).max() < 1.2


# The stand-in for a card multiplies by a BLAS of the CPU, for which this does not hold.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_an_image_does_not_depend_on_those_beside_it(
    device: str, with_ctf: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    monkeypatch.setattr(pose_search, "IMAGES_AT_ONCE", {"numpy": 8, "cupy": 8})
    optics = draw_optics(21, rng) if with_ctf else None
    images, _, _, _ = draw(21, 2.0, rng, optics)
    bank = make_bank(2.0, (1, 3))

    def search(some: Any) -> list[Any]:
        found = search_poses(on(device, images[some]), bank, optics and optics[some])
        return [back(each) for each in found]

    whole = search(np.arange(21))
    for some in ([0], [20], [7, 8], np.arange(21)[::-1], np.arange(3, 18)):
        for part, expected in zip(search(np.array(some)), whole, strict=True):
            np.testing.assert_array_equal(part, expected[some])


@pytest.mark.parametrize("best_only", [False, True])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_cards_say_the_same(
    card: str, with_ctf: bool, best_only: bool, rng: np.random.Generator
) -> None:
    optics = draw_optics(12, rng) if with_ctf else None
    images, which, _, _ = draw(12, 1.0, rng, optics)
    bank = make_bank(1.0, (1, 3))
    expected = search_poses(images, bank, optics, best_only=best_only)
    found = search_poses(on(card, images), bank, optics, best_only=best_only)
    assert all(hasattr(each, "get") for each in found)
    own = (np.arange(12), (which > 0) * 1)
    likely = [back(each.log_likelihood) for each in (found, expected)]
    np.testing.assert_allclose(likely[0], likely[1], rtol=1e-4, atol=0.02)
    np.testing.assert_array_equal(back(found.reference)[own], expected.reference[own])
    assert turn_gap(back(found.turn_deg)[own], expected.turn_deg[own]).max() < 0.05
    np.testing.assert_allclose(back(found.shift_px)[own], expected.shift_px[own], atol=0.01)
    assert [each.dtype for each in found] == [each.dtype for each in expected]


def test_no_images_are_nowhere(device: str) -> None:
    found = search_poses(on(device, np.empty((0, BOX, BOX), "f4")), make_bank(1.0, (1, 3)))
    assert [each.shape for each in found] == [(0, 2), (0, 2), (0, 2), (0, 2, 2)]
    assert [each.dtype for each in found] == ["f4", "i8", "f4", "f4"]
