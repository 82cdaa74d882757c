"""Simulated micrographs: particles where the picks say, dark, through the CTF of a whole field."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.ndimage import uniform_filter
from scipy.spatial.distance import pdist

import emdask
from emdask.errors import ParameterError, StackError
from emdask.kernels.ctf import apply_ctf, ctf_2d
from emdask.kernels.fourier import radial_power
from emdask.phantoms import phantom
from emdask.simulators import exposure as exposures
from emdask.simulators.exposure import within_discs
from emdask.simulators.micrographs import simulate_micrographs

PIXEL_A = 4.0
BOX = 40
PARTICLE = phantom(10, radius_A=35, width_A=(7.0, 9.0), seed=5)
VOLUME = PARTICLE.volume(BOX, PIXEL_A)
OPTICS = ("voltage_kV", "spherical_aberration_mm", "amplitude_contrast")
CTF = {"defocus_A": (9_000, 20_000), "astigmatism_A": 300.0}


def make(n: int = 1, **options: Any) -> tuple[xr.Dataset, pd.DataFrame]:
    defaults = {"snr": 0.2, "size_px": 192, "n_particles": 12, "ice": 0.0, "diameter_A": 90.0}
    return simulate_micrographs(VOLUME, n, **{**defaults, **options})


def closed_form(picks: pd.DataFrame, shape: tuple[int, int], margin_px: int = 0) -> Any:
    """Sum of the particles' projections, on a frame with a margin."""
    size = max(shape) + 2 * margin_px + 2
    centre = size // 2
    field = np.zeros((size, size))
    for pick in picks.itertuples():
        field += PARTICLE.project(
            [[pick.rot_deg, pick.tilt_deg, pick.psi_deg]],
            shift_A=(
                (centre - margin_px - pick.x_px) * PIXEL_A,
                (centre - margin_px - pick.y_px) * PIXEL_A,
            ),
            box_px=size,
            pixel_size_A=PIXEL_A,
        )[0]
    return field[: shape[0] + 2 * margin_px, : shape[1] + 2 * margin_px]


def test_particles_are_where_the_picks_say_and_dark():
    made, picks = make(size_px=(160, 200))
    clean, expected = made.clean[0].values, -closed_form(picks, (160, 200))
    assert clean.shape == (160, 200)
    scale = (clean * expected).sum() / (expected**2).sum()
    assert scale > 0
    error = np.linalg.norm(clean - scale * expected) / np.linalg.norm(clean)
    assert error < 2e-3


def test_the_ctf_is_that_of_the_field_beyond_the_frame():
    made, picks = make(ctf=CTF, n_particles=8, seed=3)
    names = ("defocus_u_A", "defocus_v_A", "astigmatism_deg")
    optics = {name: made[name].values[0] for name in names}
    optics |= {name: made.attrs[name] for name in OPTICS}
    margin_px = 150
    field = closed_form(picks, (192, 192), margin_px)
    ctf = ctf_2d(field.shape, pixel_size_A=PIXEL_A, **optics)
    expected = -apply_ctf(field, ctf)[margin_px:-margin_px, margin_px:-margin_px]
    clean = made.clean[0].values
    scale = (clean * expected).sum() / (expected**2).sum()
    assert scale > 0
    error = np.linalg.norm(clean - scale * expected) / np.linalg.norm(clean)
    # The box of a projection cuts the corners of its density off: 2e-3.
    assert error < 5e-3


@pytest.mark.parametrize("snr_in", ["frame", "particles"])
@pytest.mark.parametrize("noise", ["white", "coloured"])
def test_snr_is_what_was_asked_for_in_each_micrograph(snr_in: str, noise: str):
    made, picks = make(3, snr=0.05, snr_in=snr_in, noise=noise, ctf=CTF, n_particles=(5, 15))
    for i in range(3):
        clean = made.clean[i].values
        places = picks.loc[picks.image_id == i, ["x_px", "y_px"]].to_numpy()
        assert 5 <= len(places) <= 15
        part = clean[within_discs(clean.shape, places, 90 / PIXEL_A)]
        variance = (clean if snr_in == "frame" else part).var()
        assert variance == pytest.approx(0.05, rel=1e-3)
    rest = (made.images - made.clean).values
    assert rest.var() == pytest.approx(1, rel=0.02)


def test_a_micrograph_does_not_depend_on_how_many_there_are():
    options: dict[str, Any] = {
        "ctf": CTF,
        "noise": "coloured",
        "carbon": 0.5,
        "ice": 1.0,
        "n_crystals": (0, 3),
        "n_particles": (3, 12),
        "crowding": 0.5,
        "seed": 11,
    }
    many, many_picks = make(7, **options)
    few, few_picks = make(4, **options)
    np.testing.assert_array_equal(few.images[::-1].values, many.images[:4].values[::-1])
    np.testing.assert_array_equal(few.clean[2].values, many.clean[2].values)
    pd.testing.assert_frame_equal(few_picks, many_picks[many_picks.image_id < 4])
    other, _ = make(1, **{**options, "seed": 12})
    assert not np.array_equal(other.images[0], few.images[0])


def test_building_reads_and_projects_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exposures, "prepare", lambda exposure, device: pytest.fail("computed"))
    made, picks = make(50, size_px=4096, n_particles=40)
    assert made.images.shape == (50, 4096, 4096)
    assert len(picks) == 50 * 40
    assert picks.groupby("micrograph").size().eq(40).all()


def test_particles_keep_their_distance_within_the_frame():
    _, picks = make(6, n_particles=40, min_distance_A=75.0, size_px=(192, 256))
    for _, one in picks.groupby("image_id"):
        assert len(one) == 40
        assert pdist(one[["x_px", "y_px"]]).min() >= 75 / PIXEL_A
    assert (picks.x_px.min(), picks.y_px.min()) >= (0, 0)
    assert picks.x_px.max() <= 255
    assert picks.y_px.max() <= 191
    # Over all of the frame, to its edges.
    assert picks.x_px.max() > 245
    assert picks.x_px.min() < 10


def test_crowded_particles_have_near_neighbours():
    def nearest(crowding: float) -> float:
        _, picks = make(20, n_particles=8, crowding=crowding, size_px=512)
        places = picks.groupby("image_id")[["x_px", "y_px"]]
        gaps = [np.sort(pdist(one))[:4].mean() for _, one in places]
        return float(np.mean(gaps)) * PIXEL_A / 90

    assert nearest(1.0) < 1.35
    assert nearest(0.0) > 1.6


def test_views_and_classes_are_drawn_for_each_particle():
    twice = [VOLUME, emdask.simulators.check_volumes(3 * VOLUME.values, PIXEL_A)[0]]
    made, picks = simulate_micrographs(
        twice,
        4,
        snr=1.0,
        size_px=512,
        n_particles=60,
        diameter_A=90.0,
        proportions=[1, 3],
        poses="cone",
        cone_deg=20.0,
        ice=0.0,
    )
    assert (picks.class_id == 2).mean() == pytest.approx(0.75, abs=0.08)
    assert picks.tilt_deg.max() <= 20
    assert len(set(picks.psi_deg)) == 240
    clean = -made.clean[0].values
    first = picks[picks.image_id == 0]
    inner = first[first.x_px.between(20, 490) & first.y_px.between(20, 490)]
    sums = [
        clean[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4].sum()
        for x, y in inner[["x_px", "y_px"]].to_numpy()
    ]
    mean = pd.Series(sums).groupby(inner.class_id.to_numpy()).mean()
    assert mean[2] / mean[1] == pytest.approx(3, rel=0.3)


def test_ice_grows_darker_to_one_side_by_what_was_asked_for():
    with_ice, _ = make(ice=3.0, seed=4)
    without, _ = make(ice=0.0, seed=4)
    ice = (with_ice.clean - without.clean)[0].values
    y, x = np.mgrid[-0.5:0.5:192j, -0.5:0.5:192j]
    terms = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    slope_x, slope_y, _ = np.linalg.lstsq(terms, ice.ravel(), rcond=None)[0]
    across = abs(slope_x) + abs(slope_y)
    assert across == pytest.approx(3, rel=0.25)
    assert 2.5 < np.ptp(ice) < 4.2


def film_of(made: xr.Dataset, **options: Any) -> Any:
    without, _ = make(carbon=0.0, **options)
    return (made - without).clean.values


def test_film_is_dark_shows_the_ctf_and_has_no_particles():
    options: dict[str, Any] = {
        "size_px": 256,
        "hole_A": 3000.0,
        "ctf": {"defocus_A": 15_000.0},
        "n_particles": 0,
        "seed": 1,
    }
    made, picks = make(4, carbon=1.0, **options)
    assert not len(picks)
    film = film_of(made, n=4, **options)
    powers = []
    for one in film:
        dark = uniform_filter(one, 9) < -0.75
        assert 0.02 < dark.mean() < 0.95
        assert one[dark].mean() == pytest.approx(-1.6, abs=0.3)
        assert np.median(one[~dark]) == pytest.approx(0, abs=0.1)
        tiles = one.reshape(4, 64, 4, 64).swapaxes(1, 2).reshape(-1, 64, 64)
        whole = dark.reshape(4, 64, 4, 64).swapaxes(1, 2).reshape(-1, 64, 64).all(axis=(1, 2))
        powers += [radial_power(tile)[1] for tile in tiles[whole]]
    frequency = radial_power(film[0][:64, :64])[0]
    ctf = ctf_2d((64, 64), pixel_size_A=PIXEL_A, defocus_u_A=15_000.0)
    ctf2 = np.interp(frequency, np.fft.fftfreq(64)[:32], ctf[:32, 0] ** 2)
    assert len(powers) > 4
    assert np.corrcoef(np.mean(powers, axis=0)[3:], ctf2[3:])[0, 1] > 0.8


def test_particles_stay_off_the_film_and_the_noise_on_it_is_stronger():
    options: dict[str, Any] = {"size_px": 512, "hole_A": 3000.0, "seed": 1}
    made, picks = make(3, carbon=1.0, n_particles=60, **options)
    _, without = make(3, n_particles=60, **options)
    assert 20 < len(picks) < 0.9 * len(without)
    bare = film_of(make(3, carbon=1.0, n_particles=0, **options)[0], n=3, n_particles=0, **options)
    noise = (made.images - made.clean).values
    for i, one in enumerate(bare):
        dark = uniform_filter(one, 9) < -0.75
        places = picks.loc[picks.image_id == i, ["x_px", "y_px"]].round().astype(int)
        assert not dark[places.y_px, places.x_px].any()
        assert noise[i][dark].std() == pytest.approx(1.15, abs=0.02)
        assert noise[i][~dark].std() == pytest.approx(1, abs=0.02)


def test_crystals_are_dark_and_not_picked():
    with_lumps, picks = make(n_crystals=3, n_particles=4, seed=2)
    without, same = make(n_crystals=0, n_particles=4, seed=2)
    pd.testing.assert_frame_equal(picks, same)
    lumps = (with_lumps.clean - without.clean)[0].values
    assert lumps.min() < -1
    assert lumps.max() <= 1e-6
    assert 0.005 < (lumps < -0.3).mean() < 0.5


def test_diameter_is_measured():
    made, _ = make(diameter_A=None)
    diameter_A = made.attrs["provenance"][-1]["parameters"]["diameter_A"]
    radii = np.linalg.norm(PARTICLE.positions_A, axis=1)
    assert 1.2 * radii.max() < diameter_A < 2 * (radii.max() + 3 * PARTICLE.widths_A.max())
    assert make(size_px=1024, n_particles=None)[1].shape[0] == pytest.approx(
        0.15 * (1024 * PIXEL_A) ** 2 / (np.pi / 4 * 90**2), rel=0.01
    )


def test_micrographs_go_to_files_named_as_the_picks_say(tmp_path: Any):
    made, picks = make(2, ctf=CTF)
    emdask.save_stack(made.images, tmp_path / "micrographs")
    opened = emdask.open_stack(tmp_path / "micrographs" / "micrographs.star")
    np.testing.assert_array_equal(opened.values, made.images.values)
    np.testing.assert_allclose(opened.defocus_u_A, made.defocus_u_A, atol=1e-3)
    files = {path.name for path in (tmp_path / "micrographs").glob("*.mrc")}
    assert set(picks.micrograph) == files
    assert made.attrs["kind"] == "micrographs"


def test_micrographs_without_particles_are_noise():
    made, picks = make(2, n_particles=0)
    assert not len(picks)
    assert not made.clean.values.any()
    assert list(picks.columns)[:4] == ["micrograph", "image_id", "x_px", "y_px"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n_micrographs must be an integer"),
        ({"snr": None}, "snr must be a number"),
        ({"snr_in": "disc"}, "snr_in must be one of"),
        ({"size_px": 8}, "size_px must be an integer of at least 16"),
        ({"size_px": (64, 64, 64)}, "size_px must be an integer or"),
        ({"n_particles": 500}, r"at most \d+ do; got 500. Take fewer"),
        ({"n_particles": (5, 2)}, r"n_particles must be \(fewest, most\)"),
        ({"n_particles": -1}, "n_particles must be an integer"),
        ({"diameter_A": 1.0}, "diameter_A must be a number"),
        ({"min_distance_A": 0.0}, "min_distance_A must be a number"),
        ({"crowding": 1.5}, "crowding must be a number"),
        ({"carbon": -0.1}, "carbon must be a number"),
        ({"hole_A": 100.0}, "hole_A must be a number"),
        ({"ice": -1}, "ice must be a number"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"poses": "sphere"}, "poses must be one of"),
        ({"poses": np.zeros((3, 3))}, "poses must be one of"),
        ({"ctf": {"defocus": 1e4}}, "Did you mean defocus_A"),
        ({"proportions": [1, 2]}, "proportions must be 1 numbers"),
        ({"seed": -1}, "seed must be an integer"),
        ({"size_px": np.array([64, 64, 64])}, "size_px must be an integer or"),
        ({"ctf": {"defocus_A": (2e4, 1e4)}}, "the range of defocus_A"),
        ({"ctf": {"defocus_A": np.zeros(3)}, "n": 4}, "defocus_A must have one entry an image"),
        ({"ctf": 3}, "ctf must be"),
        ({"cone_deg": 200.0}, "cone_deg must be"),
        ({"view_deg": 1.0}, "view_deg must be"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], words: str):
    with pytest.raises(ParameterError, match=f"^simulate_micrographs: .*{words}"):
        make(**options)


def test_pairs_may_be_arrays():
    pair = np.array([64, 80])
    made, picks = make(1, size_px=pair, n_particles=np.array([2, 2]), n_crystals=np.array([1, 2]))
    assert made.images.shape == (1, 64, 80)
    assert len(picks) == 2


def test_volumes_must_agree_and_be_large_enough():
    with pytest.raises(StackError, match=r"^simulate_micrographs: volumes must have one size"):
        simulate_micrographs([VOLUME, VOLUME[1:, 1:, 1:]], 1, snr=0.1)
    with pytest.raises(ParameterError, match=r"^simulate_micrographs: .*at least 8 voxels"):
        simulate_micrographs(np.ones((4, 4, 4)), 1, snr=0.1, pixel_size_A=2.0)


def test_an_empty_volume_is_refused():
    with pytest.raises(ParameterError, match="must not be 0 everywhere"):
        simulate_micrographs(np.zeros((16, 16, 16)), 1, snr=0.1, pixel_size_A=2.0)


def test_a_frame_smaller_than_the_box_of_a_particle():
    made, picks = make(2, size_px=(24, 30), n_particles=1, ctf=CTF)
    assert made.images.values.shape == (2, 24, 30)
    assert len(picks) == 2
    assert made.clean.values.var(axis=(1, 2)) == pytest.approx(0.2, rel=1e-3)
