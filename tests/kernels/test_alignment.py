"""Images turned and shifted onto one another: known poses, and poses by the images alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from emdask.backend import on_device, to_device, to_host
from emdask.kernels.alignment import (
    AverageSums,
    PlanePoses,
    add_sums,
    align_images,
    solve_averages,
    sum_aligned,
    turn_images,
)
from emdask.kernels.ctf import Optics
from emdask.phantoms import phantom

PIXEL_A = 3.0
VIEW = (30.0, 50.0)
ASTIGMATIC = {"defocus_u_A": 9000.0, "defocus_v_A": 5000.0, "astigmatism_deg": 25.0}


def project(psi_deg: Any, shift_px: Any = (0.0, 0.0), box_px: int = 48, seed: int = 9) -> Any:
    """Views of a particle, turned by psi; exact."""
    psi_deg = np.atleast_1d(psi_deg)
    rotation = np.column_stack([np.broadcast_to(VIEW, (len(psi_deg), 2)), psi_deg])
    particle = phantom(7, radius_A=PIXEL_A * box_px * 0.3, width_A=(5.0, 6.0), seed=seed)
    shift_A = PIXEL_A * np.asarray(shift_px)
    return particle.project(rotation, shift_A=shift_A, box_px=box_px, pixel_size_A=PIXEL_A)


def draw_poses(rng: np.random.Generator, n: int, reach_px: float) -> PlanePoses:
    return PlanePoses(rng.uniform(0, 360, n), rng.uniform(-reach_px, reach_px, (n, 2)))


def average(images: Any, poses: PlanePoses, optics: Optics | None = None) -> np.ndarray:
    return solve_averages(sum_aligned(images, np.zeros(len(images), int), 1, poses, optics))[0]


def no_poses(n: int) -> PlanePoses:
    return PlanePoses(np.zeros(n), np.zeros((n, 2)))


def correlate(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def correlate_turned(image: np.ndarray, truth: np.ndarray) -> float:
    """Correlation at the best turn and shift."""
    turned = turn_images(np.repeat(image[None], 120, 0), 3.0 * np.arange(120))
    turned -= turned.mean((1, 2), keepdims=True)
    truth = truth - truth.mean()
    terms = np.fft.rfft2(turned) * np.fft.rfft2(truth).conj()
    products = np.fft.irfft2(terms, truth.shape).max((1, 2))
    return float((products / np.linalg.norm(turned, axis=(1, 2))).max() / np.linalg.norm(truth))


def differences(found: PlanePoses, true: PlanePoses) -> tuple[np.ndarray, np.ndarray]:
    """By how much turns (deg) and shifts (px) are off, up to a turn and a shift of all."""
    off = np.exp(1j * np.deg2rad(found.psi_deg - true.psi_deg))
    turn = np.angle(off * np.median(off.real) - 1j * off * np.median(off.imag), deg=True)
    angle = np.deg2rad(found.psi_deg)
    plane = (found.shift_px - true.shift_px) @ [1, 1j] * np.exp(1j * angle)
    plane -= np.median(plane.real) + 1j * np.median(plane.imag)
    return np.abs(turn), np.abs(plane)


@pytest.mark.parametrize("box_px", [48, 49])
def test_turns_are_those_of_projections(box_px: int, device: str) -> None:
    angles = np.array([0.0, 10.0, 44.9, 45.1, 90.0, 133.0, 180.0, -90.0, 271.0, 725.0])
    still = np.repeat(project(0.0, box_px=box_px), len(angles), 0)
    # psi turns the coordinates, so the image turns the other way.
    turned = on_device(turn_images, still, -angles, device=device)
    assert turned.dtype == np.float32
    expected = project(angles, box_px=box_px)
    assert np.abs(turned - expected).max() < 0.005 * expected.max()
    back = on_device(turn_images, turned, angles, device=device)
    assert np.abs(back - still).max() < 0.005 * still.max()


def test_right_angles_move_pixels(rng: np.random.Generator) -> None:
    images = rng.normal(size=(1, 9, 9)).astype(np.float32)
    found = turn_images(np.repeat(images, 4, 0), 90.0 * np.arange(4))
    expected = [np.rot90(images[0], -k) for k in range(4)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_noise_stays_white(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(300, 24, 24))
    turned = turn_images(noise, rng.uniform(0, 360, 300))
    np.testing.assert_allclose(turned.var(), noise.var(), rtol=0.01)
    assert np.abs(turned.var(0) - 1).max() < 0.4
    power = np.square(np.abs(np.fft.rfft2(turned))).mean(0) / 24**2
    assert power.min() > 0.7
    assert power.max() < 1.4


def test_poses_bring_images_back_in_relions_sense(rng: np.random.Generator, device: str) -> None:
    poses = draw_poses(rng, 30, 4.0)
    images = project(poses.psi_deg, poses.shift_px)
    sums = sum_aligned(to_device(images, device), np.zeros(30, int), 1, poses)
    assert sums.images.dtype == np.float64
    truth = project(0.0)[0]
    found = solve_averages(sums)[0]
    assert np.abs(found - truth).max() < 0.005 * truth.max()
    wrong = [
        PlanePoses(-poses.psi_deg, poses.shift_px),
        PlanePoses(poses.psi_deg, -poses.shift_px),
        PlanePoses(poses.psi_deg, poses.shift_px[:, ::-1]),
    ]
    for other in wrong:
        assert correlate(average(images, other), truth) < 0.97


def test_noise_falls_by_the_number_of_images(rng: np.random.Generator) -> None:
    poses = draw_poses(rng, 100, 4.0)
    signal = project(poses.psi_deg, poses.shift_px)
    images = signal + rng.normal(scale=signal.std() * 10**0.5, size=signal.shape)
    variance = 10 * signal.var() / 100
    left = average(images, poses) - project(0.0)[0]
    assert 0.85 < left.var() / variance < 1.15
    some = PlanePoses(poses.psi_deg[:25], poses.shift_px[:25])
    assert 0.85 < (average(images[:25], some) - project(0.0)[0]).var() / variance / 4 < 1.15


def test_classes_and_parts_add_up(rng: np.random.Generator) -> None:
    poses = draw_poses(rng, 40, 3.0)
    images = rng.normal(size=(40, 16, 16))
    optics = Optics(pixel_size_A=PIXEL_A, **{**ASTIGMATIC, "defocus_u_A": 9e3 + np.arange(40)})
    number = rng.integers(-1, 3, 40)
    whole = sum_aligned(images, number, 4, poses, optics)
    parts = [
        sum_aligned(images[p], number[p], 4, PlanePoses(*(v[p] for v in poses)), optics[p])
        for p in (slice(0, 13), slice(13, 40))
    ]
    for found, expected in zip(add_sums(*parts), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert whole.counts.tolist() == [*(int((number == k).sum()) for k in range(3)), 0]
    averages = solve_averages(whole)
    for k in range(3):
        own = number == k
        alone = average(images[own], PlanePoses(*(v[own] for v in poses)), optics[own.nonzero()[0]])
        np.testing.assert_allclose(averages[k], alone, atol=1e-5)
    assert not averages[3].any()


def test_images_that_are_left_out_do_not_show(rng: np.random.Generator) -> None:
    images = rng.normal(size=(4, 16, 16))
    poses = PlanePoses(
        np.array([0, np.nan, 30, 0]), np.array([[0, 0], [np.nan] * 2, [2, 1], [0, 0]])
    )
    sums = sum_aligned(images, np.array([0, -1, -1, 0]), 1, poses)
    assert sums.counts.tolist() == [2]
    np.testing.assert_allclose(solve_averages(sums)[0], images[[0, 3]].mean(0), atol=1e-6)
    none = sum_aligned(images, np.full(4, -1), 2, poses)
    assert none.counts.tolist() == [0, 0]


@pytest.mark.parametrize("astigmatism", ["same", "varying", "none"])
def test_ctfs_are_corrected_in_the_frame_of_the_average(
    rng: np.random.Generator, astigmatism: str, device: str
) -> None:
    n = 60
    poses = draw_poses(rng, n, 3.0)
    own: dict[str, Any] = dict(ASTIGMATIC)
    if astigmatism == "varying":
        own = {"defocus_u_A": rng.uniform(6e3, 12e3, n), "defocus_v_A": rng.uniform(4e3, 6e3, n)}
        own["astigmatism_deg"] = rng.uniform(0, 180, n)
    if astigmatism == "none":
        own = dict.fromkeys(("defocus_u_A", "defocus_v_A"), rng.uniform(4e3, 12e3, n))
    optics = Optics(pixel_size_A=PIXEL_A, **own)
    clean = project(poses.psi_deg, poses.shift_px)
    ctf = optics.ctfs((48, 48), n)
    images = np.fft.irfft2(np.fft.rfft2(clean) * ctf, (48, 48))
    sums = sum_aligned(to_device(images, device), np.zeros(n, int), 1, poses, optics)
    truth = project(0.0)[0]
    found = solve_averages(sums)[0]
    assert abs(found.mean() - images.mean()) < 0.01 * truth.mean()
    assert np.linalg.norm(found - found.mean() - truth + truth.mean()) < 0.15 * np.linalg.norm(
        truth
    )
    assert correlate(average(images, poses), truth) < 0.95


def test_squares_turn_with_the_images(rng: np.random.Generator) -> None:
    """What is divided by is the mean of the squared CTFs, as the images have them."""
    psi_deg = np.array([30.0, 100.0])
    optics = Optics(pixel_size_A=PIXEL_A, **ASTIGMATIC)
    sums = sum_aligned(
        np.zeros((2, 32, 32)), np.zeros(2, int), 1, PlanePoses(psi_deg, np.zeros((2, 2))), optics
    )
    assert sums.squares is not None
    turned = [
        Optics(pixel_size_A=PIXEL_A, **{**ASTIGMATIC, "astigmatism_deg": 25.0 + psi})
        for psi in psi_deg
    ]
    expected = sum(each.ctf((32, 32), 0) ** 2 for each in turned)
    np.testing.assert_allclose(sums.squares[0].ravel()[1:], expected.ravel()[1:], rtol=1e-5)
    assert sums.squares[0, 0, 0] == 2


def test_zeros_of_the_ctf_do_not_blow_up_noise(rng: np.random.Generator) -> None:
    noise = rng.normal(size=(50, 32, 32))
    optics = Optics(pixel_size_A=PIXEL_A, defocus_u_A=2e4, defocus_v_A=2e4)
    power = np.square(np.abs(np.fft.rfft2(average(noise, no_poses(50), optics)))) / 32**2
    assert power.max() < 12 / 50 / (4 * 0.005)
    assert power[1:].mean() < 6 / 50


def test_clean_images_are_aligned_to_a_fraction_of_a_step(
    rng: np.random.Generator, device: str
) -> None:
    n = 24 if device == "cuda" else 60
    true = draw_poses(rng, n, 2.0)
    images = project(true.psi_deg, true.shift_px)
    found = align_images(to_device(images, device), n_iterations=2)
    assert isinstance(found.psi_deg, np.ndarray)
    assert found.shift_px.shape == (n, 2)
    turn, shift = differences(found, true)
    assert np.median(turn) < 0.7
    assert np.median(shift) < 0.1
    assert turn.max() < 3


def noisy_views(
    rng: np.random.Generator, n: int, snr: float, optics: Optics | None = None, box_px: int = 48
) -> tuple[np.ndarray, PlanePoses]:
    true = draw_poses(rng, n, box_px / 20)
    images = project(true.psi_deg, true.shift_px, box_px)
    if optics is not None:
        ctf = optics.ctfs((box_px, box_px), n)
        images = np.fft.irfft2(np.fft.rfft2(images) * ctf, (box_px, box_px))
    return images + rng.normal(scale=(images.var() / snr) ** 0.5, size=images.shape), true


@pytest.mark.parametrize("seed", [0, 1])
def test_a_particle_emerges_from_noisy_images(rng: np.random.Generator, seed: int) -> None:
    images, true = noisy_views(rng, 200, 0.1)
    found = align_images(images, seed=seed)
    truth = project(0.0)[0]
    assert correlate_turned(average(images, found), truth) > 0.93
    assert correlate_turned(images.mean(0), truth) < 0.6
    turn, shift = differences(found, true)
    assert np.median(turn) < 3
    assert np.median(shift) < 0.6


def test_a_particle_emerges_through_ctfs(rng: np.random.Generator) -> None:
    defocus = rng.uniform(8e3, 16e3, 200)
    optics = Optics(pixel_size_A=PIXEL_A, defocus_u_A=defocus, defocus_v_A=defocus)
    images, _ = noisy_views(rng, 200, 0.2, optics)
    truth = project(0.0)[0]
    found = correlate_turned(average(images, align_images(images, optics), optics), truth)
    assert found > 0.92
    assert correlate_turned(average(images, align_images(images)), truth) < found - 0.05


def test_the_average_is_centred_on_the_images(rng: np.random.Generator) -> None:
    images, _ = noisy_views(rng, 150, 1.0)
    found = align_images(images)
    angle = np.deg2rad(found.psi_deg)
    off = (found.shift_px @ [1, 1j] * np.exp(1j * angle)).mean()
    assert abs(off) < 1e-6
    assert np.abs(found.shift_px).max() < 4


def test_the_same_seed_gives_the_same_poses(rng: np.random.Generator) -> None:
    images, _ = noisy_views(rng, 30, 0.5, box_px=32)
    first, again, other = (align_images(images, n_iterations=1, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.psi_deg, again.psi_deg)
    assert not np.array_equal(first.psi_deg, other.psi_deg)


def test_shifts_stay_within_reach(rng: np.random.Generator) -> None:
    true = PlanePoses(np.zeros(60), rng.uniform(-6, 6, (60, 2)))
    images = project(true.psi_deg, true.shift_px)
    near, far = (align_images(images, shift_px=reach, n_iterations=2) for reach in (2.0, 8.0))
    assert np.median(differences(far, true)[1]) < 0.2
    assert np.median(differences(near, true)[1]) > 0.5


def test_few_images_and_none() -> None:
    image = project(0.0)
    for n in (0, 1):
        found = align_images(image[:n])
        assert found.psi_deg.tolist() == [0.0] * n
        assert found.shift_px.shape == (n, 2)
    two = align_images(project([0.0, 70.0]), n_iterations=1)
    assert abs((two.psi_deg[1] - two.psi_deg[0] - 70 + 180) % 360 - 180) < 2


def test_images_without_contrast_do_not_end_it() -> None:
    found = align_images(np.full((5, 32, 32), 3.0))
    assert np.isfinite(found.psi_deg).all()
    assert np.isfinite(found.shift_px).all()


def test_grey_levels_do_not_matter(rng: np.random.Generator) -> None:
    images, _ = noisy_views(rng, 20, 1.0, box_px=32)
    plain = align_images(images, n_iterations=1)
    scaled = align_images((1000 * images + 5000).astype(np.int32), n_iterations=1)
    assert np.abs(plain.psi_deg - scaled.psi_deg).max() < 0.5


def test_sums_are_of_the_host(device: str) -> None:
    sums = sum_aligned(to_device(np.ones((3, 8, 8)), device), np.zeros(3, int), 1, no_poses(3))
    assert isinstance(sums, AverageSums)
    assert type(sums.images) is np.ndarray
    assert to_host(sums.images) is sums.images
    np.testing.assert_allclose(solve_averages(sums)[0], 1, atol=1e-6)
