"""Simulated particles against closed forms, and each image its own, whatever is beside it."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import emdask
from emdask.errors import ParameterError, StackError
from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.kernels.fourier import radial_power
from emdask.kernels.projections import rotation_matrices
from emdask.metrics import snr as measured_snr
from emdask.phantoms import phantom
from emdask.simulators import scene as scenes
from emdask.simulators import simulate, truth
from emdask.simulators.truth import Draws, class_ends, draw_classes
from emdask.volumes import build_volume

PIXEL_A = 4.0
BOX = 48
PARTICLE = phantom(12, radius_A=40, width_A=(7.0, 10.0), seed=2)
VOLUME = PARTICLE.volume(BOX, PIXEL_A)
CTF = {"defocus_A": (9_000, 15_000), "astigmatism_A": (0, 400), "b_factor_A2": 60.0}


def make(n_images: int = 6, **options: Any) -> xr.Dataset:
    return simulate(VOLUME, n_images, **{"snr": 0.5, **options})


def closed_form(made: xr.Dataset) -> Any:
    shift_A = made.shift_A.values
    return PARTICLE.project(
        made.rotation_deg.values, shift_A=shift_A, box_px=BOX, pixel_size_A=PIXEL_A
    )


@pytest.mark.parametrize(("accuracy", "bound"), [("rough", 5e-3), ("normal", 3e-4), ("high", 3e-5)])
def test_projections_are_those_of_the_closed_form(accuracy: str, bound: float) -> None:
    made = make(snr=None, shifts_A=9.0, accuracy=accuracy)
    expected = closed_form(made)
    error = np.linalg.norm(made.clean.values - expected) / np.linalg.norm(expected)
    assert error < bound
    assert np.array_equal(made.images.values, made.clean.values)


def test_clean_images_have_their_own_ctf() -> None:
    made = make(snr=None, ctf=CTF, shifts_A=5.0)
    names = ("defocus_u_A", "defocus_v_A", "astigmatism_deg", "b_factor_A2")
    optics = {name: made[name].values for name in names}
    for name in ("pixel_size_A", "voltage_kV", "spherical_aberration_mm", "amplitude_contrast"):
        optics[name] = made.attrs[name]
    expected = apply_ctf(closed_form(made), ctf_2d((BOX, BOX), **optics))
    error = np.linalg.norm(made.clean.values - expected) / np.linalg.norm(expected)
    assert error < 3e-4
    assert len(set(made.defocus_u_A.values)) == 6
    mean = (made.defocus_u_A + made.defocus_v_A).values / 2
    assert (mean >= 9_000).all()
    assert (mean <= 15_000).all()


@pytest.mark.parametrize("ctf", [None, CTF])
@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_snr_is_what_was_asked_for(ctf: Any, noise: str) -> None:
    made = make(500, snr=0.1, ctf=ctf, noise=noise, seed=4).compute()
    rest = (made.images - made.clean).values
    assert rest.var() == pytest.approx(1.0, rel=0.01)
    asked = made.clean.values.var(axis=(1, 2)).mean() / rest.var(axis=(1, 2)).mean()
    assert asked == pytest.approx(0.1, rel=0.02)
    assert float(measured_snr(made.images.values, made.clean.values).mean()) == pytest.approx(
        0.1, rel=0.03
    )


def test_an_image_does_not_depend_on_those_beside_it() -> None:
    options: dict[str, Any] = {
        "ctf": CTF,
        "shifts_A": 6.0,
        "noise": "coloured",
        "proportions": [1, 2],
        "seed": 9,
    }
    volumes = [VOLUME, VOLUME[::-1].copy()]
    many = simulate(volumes, 23, snr=0.2, chunks=23, **options)
    few = simulate(volumes, 11, snr=0.2, chunks=3, **options)
    assert many.images.data.numblocks[0] == 1
    np.testing.assert_array_equal(few.images.values, many.images.values[:11])
    np.testing.assert_array_equal(few.clean[7].values, many.clean.values[7])
    np.testing.assert_array_equal(few.images[::-2].values, many.images.values[:11][::-2])
    for name in few.coords:
        np.testing.assert_array_equal(few[name], many[name][:11])
    other = simulate(volumes, 11, snr=0.2, **{**options, "seed": 10})
    assert not np.array_equal(other.rot_deg, few.rot_deg)


def test_building_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "prepare", lambda scene: pytest.fail("computed"))
    made = make(1_000_000, ctf=CTF)
    assert made.images.shape == (1_000_000, BOX, BOX)
    assert len(dict(made.images.data.dask)) < 3000


def test_one_image_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    made_ids = []
    real = scenes.normal_images
    monkeypatch.setattr(
        scenes,
        "normal_images",
        lambda seed, ids, shape: made_ids.append(ids) or real(seed, ids, shape),
    )
    made = make(100)
    made.images[37].compute()
    assert np.concatenate(made_ids).tolist() == [37]


def test_uniform_views_cover_the_sphere() -> None:
    made = make(20_000, snr=None)
    cosine = np.cos(np.deg2rad(made.tilt_deg.values))
    assert stats.kstest(cosine, stats.uniform(-1, 2).cdf).pvalue > 1e-3
    for name in ("rot_deg", "psi_deg"):
        assert stats.kstest(made[name].values, stats.uniform(-180, 360).cdf).pvalue > 1e-3


def test_a_cone_of_views_stays_within_it_and_fills_it() -> None:
    made = make(5000, snr=None, poses="cone", cone_deg=12.0, view_deg=(40.0, 70.0))
    # The direction from which a particle is seen is the last row of its matrix.
    directions = rotation_matrices(made.rotation_deg.values)[:, 2]
    axis = rotation_matrices([40.0, 70.0, 0.0])[2]
    cosine = directions @ axis
    assert cosine.min() >= np.cos(np.deg2rad(12.0)) - 1e-12
    low = np.cos(np.deg2rad(12.0))
    assert stats.kstest(cosine, stats.uniform(low, 1 - low).cdf).pvalue > 1e-3


def test_given_poses_and_shifts_are_taken() -> None:
    poses = np.array([[10.0, 20.0, 30.0], [0.0, 90.0, 0.0], [5.0, 5.0, 5.0]])
    shifts = np.array([[1.0, -2.0], [0.0, 0.0], [8.0, 8.0]])
    made = make(3, snr=None, poses=poses, shifts_A=shifts)
    np.testing.assert_array_equal(made.rotation_deg, poses)
    np.testing.assert_array_equal(made.shift_A, shifts)
    expected = closed_form(made)
    np.testing.assert_allclose(made.clean, expected, atol=1e-3 * expected.max())


def test_classes_come_in_their_proportions() -> None:
    twice = build_volume(2 * VOLUME.values, PIXEL_A)
    made = simulate([VOLUME, twice], 4000, snr=None, proportions=[3, 1], seed=1)
    share = float((made.class_id == 2).mean())
    assert share == pytest.approx(0.25, abs=0.025)
    sums = made.clean[:40].sum(("y", "x")).values / VOLUME.values.sum()
    np.testing.assert_allclose(sums, made.class_id.values[:40], rtol=1e-3)


def test_groups_of_optics() -> None:
    groups = [{"defocus_A": 8_000.0}, {"defocus_A": 16_000.0, "voltage_kV": 200.0}]
    made = make(300, ctf=groups)
    second = made.optics_group.values == 2
    assert 100 < second.sum() < 200
    np.testing.assert_array_equal(made.defocus_u_A, np.where(second, 16_000, 8_000))
    np.testing.assert_array_equal(made.voltage_kV, np.where(second, 200.0, 300.0))
    assert made.attrs["amplitude_contrast"] == 0.1


def test_coloured_noise_has_more_power_at_low_frequency() -> None:
    made = make(40, noise="coloured")
    frequency, power = radial_power((made.images - made.clean).values)
    mean = power.mean(axis=0)
    assert 1.5 < mean[frequency < 0.08].mean() / mean[frequency > 0.3].mean() < 6


def test_truth_goes_with_the_images_to_disk_and_back(tmp_path: Any) -> None:
    made = make(5, ctf=CTF, shifts_A=3.0)
    emdask.save_stack(made.images, tmp_path / "made.mrcs")
    opened = emdask.open_stack(tmp_path / "made.star")
    np.testing.assert_array_equal(opened.values, made.images.values)
    for name in ("rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "defocus_u_A", "class_id"):
        np.testing.assert_allclose(opened[name], made[name], atol=1e-4, err_msg=name)
    assert opened.attrs["pixel_size_A"] == PIXEL_A
    assert made.attrs["provenance"][-1]["step"] == "simulate"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"snr": 0}, "snr must be a number"),
        ({"n_images": 0}, "n_images must be an integer"),
        ({"poses": "unifrom"}, "Did you mean uniform"),
        ({"poses": np.zeros((2, 3))}, "poses must have one entry an image; got 2"),
        ({"poses": np.zeros((6, 2))}, r"poses must have shape \(n, 3\)"),
        ({"shifts_A": -1}, "shifts_A must be a number"),
        ({"ctf": {"defocus": 1e4}}, "Did you mean defocus_A"),
        ({"ctf": {"defocus_A": (2e4, 1e4)}}, "the range of defocus_A must be"),
        ({"ctf": 3}, "ctf must be a dictionary"),
        ({"proportions": [1, 2]}, "proportions must be 1 numbers"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"accuracy": "best"}, "accuracy must be one of"),
        ({"device": "tpu"}, "device must be one of"),
        ({"ctf": {"b_factor_A2": -1e6}}, r"b_factor_A2 must lie in \[0, 10000\]; got -1000000.0"),
        ({"ctf": {"defocus_A": np.array(["a"] * 6)}}, "defocus_A must be numbers"),
        ({"view_deg": ("a", "b")}, r"view_deg must be \(rot, tilt\) in degrees; got \('a', 'b'\)"),
        ({"view_deg": (1.0, [2.0])}, "view_deg must be"),
        ({"poses": [[1, 2, 3], [1]]}, "poses must be numbers"),
        ({"shifts_A": "far"}, "shifts_A must be numbers"),
        ({"proportions": ["a"]}, "proportions must be 1 numbers"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        make(**options)


def test_volumes_must_agree() -> None:
    with pytest.raises(StackError, match="one size in voxels and in Å"):
        simulate([VOLUME, build_volume(VOLUME.values, 3.0)], 4, snr=1.0)
    with pytest.raises(StackError, match="pixel size must be known"):
        simulate(VOLUME.values, 4, snr=1.0)


@pytest.mark.parametrize("snr", [0.1, None])
def test_volumes_that_cannot_be_projected_are_refused_at_once(snr: float | None) -> None:
    with pytest.raises(ParameterError, match="simulate: a volume must not be 0 everywhere"):
        simulate([VOLUME, 0 * VOLUME], 4, snr=snr)
    with pytest.raises(ParameterError, match="at least 8 voxels along each axis; got 4"):
        simulate(VOLUME[:4, :4, :4], 4, snr=snr)
    volumes: tuple[Any, ...] = (None, {"a": VOLUME}, (volume for volume in [VOLUME]))
    for volume in volumes:
        with pytest.raises(StackError, match="volume: must be an array of numbers"):
            simulate(volume, 4, snr=snr)


def test_grey_levels_that_float32_cannot_square_are_named() -> None:
    faint = build_volume(1e-30 * VOLUME.values, PIXEL_A)
    with pytest.raises(ParameterError, match="must have a finite signal"):
        simulate(faint, 4, snr=0.1).images[0].compute()


GIVEN: dict[str, dict[str, Any]] = {
    "poses": {"poses": np.random.default_rng(0).uniform(-90, 90, (9, 3))},
    "shifts": {"shifts_A": np.random.default_rng(1).uniform(-9, 9, (9, 2))},
    "defocus": {"ctf": {"defocus_A": np.linspace(5_000, 25_000, 9)}},
}


@pytest.mark.parametrize("name", GIVEN)
def test_an_image_does_not_depend_on_how_many_take_of_an_array(name: str) -> None:
    few, many = (make(n, **GIVEN[name]).images.values for n in (3, 9))
    np.testing.assert_array_equal(few, many[:3])


WIDE = {"defocus_A": (5_000, 25_000)}


@pytest.mark.parametrize("proportions", [[9, 1], [1, 1]])
def test_snr_holds_where_signals_differ_much(proportions: list[int]) -> None:
    strong = build_volume(3 * VOLUME.values[::-1], PIXEL_A)
    options: dict[str, Any] = {"ctf": WIDE, "proportions": proportions, "seed": 2}
    made = simulate([VOLUME, strong], 9_000, snr=0.1, **options)
    variance = made.clean.values.var(axis=(1, 2))
    assert variance[:500].mean() == pytest.approx(0.1, rel=1e-4)
    # Those after them by chance: the standard error of 500 is 6 % at most.
    assert variance[500:].mean() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("seed", [0, 1])
def test_snr_holds_for_images_far_on(seed: int) -> None:
    far = make(5_500, snr=0.1, ctf={"defocus_A": (9_000, 15_000)}, seed=seed).clean[5_000:].values
    assert far.var(axis=(1, 2)).mean() == pytest.approx(0.1, rel=0.02)


def test_snr_of_given_poses_is_that_of_these() -> None:
    poses = np.random.default_rng(3).uniform(-90, 90, (37, 3))
    ctf = {"defocus_A": np.linspace(5_000, 25_000, 37)}
    made = make(37, snr=0.1, poses=poses, ctf=ctf)
    assert made.clean.values.var(axis=(1, 2)).mean() == pytest.approx(0.1, rel=1e-4)


def test_shares_end_at_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of these in another order are larger than the last of their running sums."""
    shares = np.random.default_rng(0).random(1_000)
    assert class_ends(shares, 1_000)[-1] == 1
    draws = Draws(image_ids=np.arange(1), seed=0)
    monkeypatch.setattr(truth, "uniform_draws", lambda *_, **__: np.array([[1 - 2**-53]]))
    for seed in range(20):
        shares = np.random.default_rng(seed).random(1_000)
        assert draw_classes(shares, 1_000, draws) == [999]
