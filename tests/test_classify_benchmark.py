"""The benchmark of conformations runs; what it computes, and what its peer does, is checked."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import emdask
from emdask.kernels.ctf import ctf_2d

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = ("classify_images", "classify_peer", "classify")
# What they import of each other and of the others there.
IMPORTED = (*MODULES, "arguments", "tables", "cwf")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark, its images and its peer."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in IMPORTED:
        sys.modules.pop(name, None)


@pytest.fixture
def classify(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["classify"]


@pytest.fixture
def images(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["classify_images"]


@pytest.fixture
def peer(modules: dict[str, ModuleType]) -> ModuleType:
    return modules["classify_peer"]


@pytest.fixture
def sample(images: ModuleType) -> Any:
    return images.project_phantom(32, 30, 40)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


# Images


def test_a_phantom_is_seen_from_the_cone_and_from_all_sides(sample: Any) -> None:
    assert [len(part.label) for part in (sample.cone, sample.sphere)] == [30, 40]
    assert sample.cone.angle_deg.max() <= 10
    assert sample.sphere.angle_deg.max() > 90
    assert np.bincount(sample.cone.label).tolist() == [6] * 5
    mass = [volume.sum() for volume in sample.volumes]
    np.testing.assert_allclose(sample.cone.images.sum((1, 2)), mass[0], rtol=0.02)


def test_noise_is_that_of_the_recipe_and_of_the_snr(images: ModuleType, sample: Any) -> None:
    pile = images.make_pile(sample, 0.5)
    assert pile.in_cone.sum() == 30
    assert pile.noise_variance == pytest.approx(2 * sample.cone.images.var((1, 2)).mean())
    sigma = np.sqrt(pile.noise_variance)
    for seed, part in enumerate((sample.cone, sample.sphere)):
        rng = np.random.default_rng([20261122, seed, 500_000])
        noise = rng.standard_normal(part.images.shape, np.float32)
        own = pile.images[pile.in_cone == (seed == 0)]
        np.testing.assert_allclose(own, part.images + sigma * noise, atol=1e-4 * sigma)


def test_images_are_seen_through_the_ctf_that_they_state(images: ModuleType, sample: Any) -> None:
    pile = images.make_pile(sample, 1e12, with_ctf=True, cone_only=True)
    ctf = ctf_2d((32, 32), pixel_size_A=8.0, defocus_u_A=pile.defocus_A)
    expected = np.fft.irfft2(np.fft.rfft2(sample.cone.images) * ctf, s=(32, 32))
    np.testing.assert_allclose(pile.images, expected, atol=1e-4 * np.abs(expected).max())
    assert pile.stack.defocus_u_A.values.tolist() == pile.defocus_A.tolist()
    assert len(pile.some(slice(7)).optics.varying()["defocus_u_A"]) == 7


def test_files_that_are_not_there_are_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "classify.py"), "--images", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert f"python make_images.py --out {tmp_path}" in run.stderr


def test_prepared_images_are_read(images: ModuleType, sample: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "meta.npz", angles=np.arange(5), apix=8.0)
    for i, volume in enumerate(sample.volumes):
        np.save(tmp_path / f"vol_{i}.npy", volume)
    for name in ("cone", "sphere"):
        part = getattr(sample, name)
        np.save(tmp_path / f"{name}_clean.npy", part.images)
        theta = np.deg2rad(part.angle_deg)
        np.savez(tmp_path / f"{name}.npz", label=part.label, theta=theta)
    read = images.load_sample(tmp_path, None, 12)
    assert read.pixel_size_A == 8.0
    np.testing.assert_array_equal(read.volumes, sample.volumes)
    np.testing.assert_array_equal(read.cone.images, sample.cone.images)
    np.testing.assert_allclose(read.sphere.angle_deg, sample.sphere.angle_deg[:12])


# The peer


@pytest.mark.parametrize("library", ["finufft", "scipy"])
def test_rings_are_those_of_the_fourier_transform(
    peer: ModuleType, sample: Any, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "finufft":
        pytest.importorskip("finufft")
    else:
        monkeypatch.setattr(peer, "finufft", None)
    some = sample.cone.images[:2]
    rings = peer.sample_polar(some, np.array([1.0, 3.5, 8.0]), 12)
    y, x = np.indices((32, 32)) - 16
    angle = 2 * np.pi * np.arange(6) / 12
    for i, radius in enumerate((1.0, 3.5, 8.0)):
        path = radius * (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y)
        expected = np.einsum("ayx,nyx->na", np.exp(-2j * np.pi * path / 32), some)
        np.testing.assert_allclose(rings[:, i], expected, atol=0.01 * np.abs(expected).max())


def test_amplitudes_in_noise_have_rices_mean(peer: ModuleType, rng: np.random.Generator) -> None:
    noise = rng.normal(scale=np.sqrt(0.5), size=(2, 200_000)) * np.sqrt(3.0)
    for power in (0.0, 2.0, 9.0):
        seen = np.abs(np.sqrt(power) + noise[0] + 1j * noise[1])
        assert peer.rice_mean(power, 3.0) == pytest.approx(seen.mean(), rel=0.01)


def test_the_search_of_the_peer_finds_class_and_likelihood(
    peer: ModuleType, classify: ModuleType, sample: Any
) -> None:
    views = np.stack([classify.project(volume, [(0.0, 0.0)]) for volume in sample.volumes])
    variance = 0.2 * views.var()
    poses = peer.prepare_poses(views, 2, variance)
    turned = np.rot90(views[:, 0], axes=(1, 2))
    # A quarter turn of an even image moves its centre, by a pixel.
    moved = np.roll(turned, (2, -1), (1, 2)).astype(np.float32)
    found = peer.search(moved, poses)
    for likely in found:
        assert likely.argmax(1).tolist() == [0, 1, 2, 3, 4]
    power = np.square(views - views.mean((2, 3), keepdims=True)).sum((1, 2, 3))
    peak = found.maximum[range(5), range(5)]
    np.testing.assert_allclose(peak, power / variance / 2, rtol=0.06)
    assert (found.marginal >= found.maximum).all()


def test_screening_of_the_peer_corrects_for_the_ctf(
    peer: ModuleType, classify: ModuleType, images: ModuleType, sample: Any
) -> None:
    pile = images.make_pile(sample, 3.0, with_ctf=True)
    way = classify.prepare_peer_screen(sample, pile)
    told, not_told = way(pile), way(pile._replace(defocus_A=None))
    far = ~pile.in_cone & (pile.angle_deg > 30)
    removed = [
        (scores[far] < np.quantile(scores[pile.in_cone], 0.1)).mean() for scores in (told, not_told)
    ]
    assert removed[0] > 0.7
    assert removed[0] > removed[1]


# Tables


def test_screening_is_told_for_all_ways(classify: ModuleType, sample: Any) -> None:
    options = classify.parse_arguments(["--quick", "--snrs", "5"])
    title, _, head, _, *rows = classify.screen_lines(options, False, sample)
    assert title.startswith("Screening: 30 images of the cone and 40 of the sphere, 32 px, no CTF")
    assert len(cells(head)) == 8
    found = {row[1]: row for row in map(cells, rows)}
    assert [*found] == ["emdask", "peer, powers", "peer, amplitudes", "emdask, keep=0.95"]
    assert float(found["emdask"][4]) > 0.8
    assert all(0.9 < float(found[name][2]) <= 0.97 for name in [*found][:3])
    assert float(found["emdask"][6]) > 0


def test_states_are_told_for_all_ways(classify: ModuleType, sample: Any) -> None:
    options = classify.parse_arguments(["--quick", "--snrs", "5"])
    lines = classify.state_lines(options, True, sample)
    rows = [cells(line) for line in lines[4:8]]
    assert [row[1] for row in rows] == [
        *("emdask, marginal", "emdask, maximum", "peer, marginal", "peer, maximum")
    ]
    assert all(float(row[2]) > 0.7 for row in rows)
    assert len(cells(lines[-1])) == 7


def test_both_stages_tell_where_kept_images_come_from(classify: ModuleType, sample: Any) -> None:
    options = classify.parse_arguments(["--quick", "--snrs", "5"])
    lines = classify.mixed_lines(options, sample)
    ours, theirs = (cells(line) for line in lines[4:6])
    for row in (ours, theirs):
        kept, *rings = (int(cell.split(" of ")[0]) for cell in row[2:7])
        assert kept == sum(rings) > 15
        assert sum(int(cell.split(" of ")[1]) for cell in row[3:7]) == 70
    assert ours[:2] == ["5", "emdask"]


def test_shares_are_those_of_images_within_the_cone(classify: ModuleType, sample: Any) -> None:
    pile = classify.make_pile(sample, 1.0)
    near = np.concatenate([sample.cone.label, sample.sphere.label[sample.sphere.angle_deg <= 10]])
    expected = np.bincount(near) / len(near)
    np.testing.assert_allclose(classify.true_shares(pile, 5), expected)


def test_agreement_matches_classes_with_states(classify: ModuleType) -> None:
    label = np.array([0, 0, 1, 1, 2, 2])
    assert classify.agreement(np.array([2, 2, 0, 0, 1, 1]), label) == 1
    assert classify.agreement(np.array([2, 2, 0, 0, 1, 0]), label) == pytest.approx(5 / 6)


def test_what_is_refused_is_said(classify: ModuleType, sample: Any) -> None:
    pile = classify.make_pile(sample, 1.0)
    y, x = np.indices((32, 32)) - 15.5
    hollow = pile._replace(images=pile.images * (np.hypot(y, x) > 13))
    cone = {"view": classify.VIEW, "cone_deg": classify.CONE_DEG}
    assert classify.by_spectra(hollow, sample, cone) == "refused"


def test_memory_is_told(classify: ModuleType, sample: Any, tmp_path: Path) -> None:
    emdask.save_stack(classify.make_pile(sample, 1.0).stack, tmp_path / "images.zarr")
    np.savez(tmp_path / "volumes.npz", *sample.volumes)
    before, after = classify.memory_here(tmp_path / "images.zarr")
    assert 50 < before <= after
