"""Micrographs that the shipped network is trained on, and the command that trains it."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from scipy.spatial import KDTree

import emdask
from emdask.denoisers.unet import SHIPPED
from emdask.io.weights import open_weights
from emdask.kernels.symmetry import symmetry_matrices

TRAINING = Path(__file__).parents[1] / "examples" / "training"


@pytest.fixture
def structures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TRAINING))
    return importlib.import_module("structures")


@pytest.fixture
def micrographs(structures: ModuleType) -> ModuleType:
    return importlib.import_module("training_micrographs")


def test_structures_of_every_kind_have_the_size_that_was_asked_for(structures):
    for seed, kind in enumerate(structures.KINDS):
        structure = structures.draw_structure(seed, kind)
        volume, diameter_A = structure.volume(24.0)
        assert (volume.values >= 0).all(), kind
        assert abs(diameter_A / volume.attrs["pixel_size_A"] / 24 - 1) < 0.15, kind
        assert 60 < diameter_A < 500, kind
        again = structures.draw_structure(seed, kind)
        assert np.array_equal(structure.points_A, again.points_A)


def test_no_hollow_ball_is_like_ferritin(structures):
    low_A, high_A = structures.LEFT_OUT_SHELLS_A
    for seed in range(40):
        points_A = structures.draw_structure(seed, "shell").points_A
        diameter_A = 2 * np.quantile(np.linalg.norm(points_A, axis=1), 0.995)
        assert not low_A < diameter_A < high_A
    # No octahedron either: none is the same after a quarter of a turn.
    rng = np.random.default_rng(0)
    for _ in range(10):
        points_A, _ = structures.KINDS["cubic"](rng, 60.0)
        turned = points_A @ symmetry_matrices("C4")[1].T
        assert KDTree(points_A).query(turned)[0].max() > 1.0


def test_a_micrograph_follows_from_seed_and_number(micrographs):
    one, again, other = (micrographs.training_micrograph(3, i, size_px=256) for i in (2, 2, 4))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.centres, again.centres)
    assert one.conditions["structure_seed"] != other.conditions["structure_seed"]


def test_micrographs_hold_their_particles_and_everything_that_is_none(micrographs):
    made = [micrographs.training_micrograph(0, index, size_px=256) for index in range(16)]
    for one in made:
        assert one.image.shape == (256, 256)
        assert one.image.dtype == np.float32
        assert np.isfinite(one.image).all()
        assert ((one.centres >= -0.5) & (one.centres <= 255.5)).all()
        low, high = (
            end * size
            for end, size in zip(micrographs.STATED, micrographs.DIAMETERS_PX, strict=True)
        )
        assert 0.85 * low < one.diameter_px < 1.15 * high
        assert one.conditions["n_particles"] == len(one.centres)
    assert sum(len(one.centres) for one in made) > 60
    for name in ("carbon", "ctf", "n_crystals", "n_lumps", "fragments", "denoised_to", "eight_bit"):
        having = [bool(one.conditions[name]) for one in made]
        assert any(having), name
        assert not all(having), name


def test_particles_are_dark_at_their_centres(micrographs, monkeypatch):
    for share in ("WITH_CARBON", "WITH_LUMPS", "WITH_DIRT", "WITH_FRAGMENTS", "EMPTY", "SMEARED"):
        monkeypatch.setattr(micrographs, share, 0.0)
    monkeypatch.setattr(micrographs, "WITHOUT_CTF", 1.0)
    monkeypatch.setattr(micrographs, "SNRS", (1.0, 1.5))
    darker = []
    for index in range(8):
        one = micrographs.training_micrograph(5, index, size_px=384)
        if one.conditions["kind"] in ("ring", "shell"):
            continue
        x, y = np.rint(one.centres).astype(int).T.clip(0, 383)
        level = np.median(one.image), one.image.std()
        darker.append((level[0] - one.image[y, x].mean()) / level[1])
    assert np.mean(darker) > 0.5


def test_one_command_trains_both_networks(micrographs, tmp_path):
    trainer = importlib.import_module("train_general_picker")
    folder = tmp_path / "betagal"
    folder.mkdir()
    grey = np.random.default_rng(0).normal(128, 20, (600, 600)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grey).save(folder / "a.jpg")
    (folder / "a.txt").write_text("x\ty\n200\t300\n400\t250\n")
    written = trainer.main(tmp_path / "out", folder, 1, trainer.QUICK)
    simulated, general = (open_weights(path) for path in written)
    assert [path.name for path in written] == ["simulated.safetensors", "general.safetensors"]
    assert simulated.digest != general.digest
    assert "10017" not in simulated.about["data"]
    assert "10017" in general.about["data"]
    assert all(np.isfinite(array).all() for array in general.arrays.values())


def test_labelled_micrographs_come_to_the_standard_without_their_border(micrographs):
    trainer = importlib.import_module("train_general_picker")
    image = np.random.default_rng(0).normal(size=(640, 512))
    example = trainer.build_example(image, np.array([[200.0, 300.0]]), 64.0, border_px=100)
    assert example.image.shape == (220, 156)
    assert np.abs(example.centres - [[49.75, 99.75]]).max() < 1e-9


@pytest.fixture
def images(structures: ModuleType) -> ModuleType:
    return importlib.import_module("training_images")


def test_training_images_follow_from_seed_and_number(images):
    for draw, size in ((images.draw_particles, (3, 48)), (images.draw_field, (80,))):
        one, again, other = (draw(2, i, *size) for i in (5, 5, 6))
        assert np.array_equal(one, again)
        assert not np.array_equal(one, other)
        np.testing.assert_allclose(one.mean(axis=(-2, -1)), 0, atol=1e-4)
        np.testing.assert_allclose(one.std(axis=(-2, -1)), 1, rtol=1e-3)


def test_packed_structures_fill_their_shape_evenly(images, structures, monkeypatch):
    """Counts in cubes of 20 Å scatter far less than those of points thrown at random."""
    monkeypatch.setattr(images, "CLOSED_A", (16.0, 16.0))
    ball = structures.fill_ellipsoid(np.random.default_rng(0), np.zeros(3), np.full(3, 60.0))
    thrown = images.Structure(kind="ball", points_A=ball, masses=np.ones(len(ball)))
    packed = images.pack(thrown, np.random.default_rng(1))
    scatter = []
    for structure in (thrown, packed):
        points = structure.points_A
        inner = points[np.abs(points).max(axis=1) < 30]
        counts, _ = np.histogramdd(inner, bins=[np.arange(-30, 31, 20)] * 3)
        scatter.append(counts.std() / counts.mean())
    assert scatter[0] > 0.2
    assert scatter[1] < 0.1
    assert (packed.masses >= 1).all()


def test_the_command_trains_networks_that_denoise(images, tmp_path, capsys):
    command = importlib.import_module("train_denoisers")
    assert command.main(["--out", str(tmp_path), "--quick"]) == 0
    assert "micrographs -> " in capsys.readouterr().out
    for name in ("particles", "micrographs"):
        weights = open_weights(tmp_path / f"{name}.safetensors")
        assert weights.about["method"] == "unet"
        assert weights.about["licence"] == "BSD-3-Clause"
        assert {array.dtype for array in weights.arrays.values()} == {np.dtype(np.float16)}
        noisy = np.random.default_rng(0).normal(size=(1, 48, 48))
        assert emdask.denoise(noisy, "unet", model=weights).compute().std() < 1
    # What is there is not made again.
    assert command.main(["--out", str(tmp_path), "--quick", "--only", "particles"]) == 0


def test_networks_that_ship_know_what_they_are():
    for name, path in SHIPPED.items():
        weights = open_weights(path)
        assert weights.about["name"] == name
        assert weights.about["licence"] == "BSD-3-Clause"
        assert path.stat().st_size < 5e6
