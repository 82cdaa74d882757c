"""Particles out of micrographs: pixels by hand, laziness, what is known of them, RELION's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import starfile
import xarray as xr
from numpy.testing import assert_allclose, assert_array_equal

import emdask
from emdask import extract, open_stack, save_picks, save_stack
from emdask.errors import ParameterError, StackError
from emdask.lazy import read_images
from emdask.stack import build_stack, optics_of

SHAPE = (80, 100)
NAMES = ["mics/a b.mrc", "mics/b.mrc", "mics/c.mrc", "mics/d.mrc", "mics/e.mrc"]
READS: list[tuple[int, int]] = []


def read_noise(source: int, start: int, stop: int) -> Any:
    """Noise of each micrograph by its number; notes what is read."""
    READS.append((start, stop))
    return np.stack(
        [
            1000 + 20 * np.random.default_rng([source, i]).normal(size=SHAPE).astype("f4")
            for i in range(start, stop)
        ]
    )


def open_noise(chunk: int = 1) -> xr.DataArray:
    images = read_images(
        read_noise, 7, shape=(5, *SHAPE), dtype="f4", chunk=chunk, name="read-noise"
    )
    coords = {
        "micrograph": NAMES,
        "image_id": np.arange(10, 15),
        "defocus_u_A": np.arange(5) * 1e3 + 1e4,
        "defocus_v_A": np.arange(5) * 1e3 + 9e3,
        "astigmatism_deg": np.arange(5) * 10.0,
        "optics_group": [1, 1, 2, 2, 2],
        "rlnCtfMaxResolution": np.arange(5) + 3.5,
        "rlnCtfPowerSpectrum": [f"{name}.ctf" for name in NAMES],
    }
    attrs = {
        "kind": "micrographs",
        "pixel_size_A": 1.5,
        "voltage_kV": 300.0,
        "spherical_aberration_mm": 2.7,
        "amplitude_contrast": 0.1,
        "relion": {
            "optics": {
                "rlnOpticsGroup": [1, 2],
                "rlnOpticsGroupName": ["first", "second"],
                "rlnMicrographOriginalPixelSize": [0.75, 0.75],
            }
        },
    }
    return build_stack(images, coords, attrs)


@pytest.fixture
def picks(rng: np.random.Generator) -> pd.DataFrame:
    """Of three of five micrographs, in no order; well within the frame."""
    table = pd.DataFrame(
        {
            "micrograph": rng.choice([NAMES[3], NAMES[0], NAMES[4]], 40),
            "x_px": rng.uniform(20, 80, 40),
            "y_px": rng.uniform(20, 60, 40),
        }
    )
    return table.assign(score=np.sort(rng.normal(size=40))[::-1])


def in_order(picks: pd.DataFrame) -> pd.DataFrame:
    """Micrograph by micrograph, in the order of the stack."""
    return pd.concat([picks[picks.micrograph == name] for name in NAMES], ignore_index=True)


def test_boxes_by_hand(picks: pd.DataFrame) -> None:
    particles = extract(open_noise(), picks, 24, normalise=False, invert=False)
    assert particles.shape == (40, 24, 24)
    assert particles.dtype == np.float32
    boxes = particles.values
    for box, pick in zip(boxes, in_order(picks).itertuples(), strict=True):
        micrograph = read_noise(7, NAMES.index(pick.micrograph), 5)[0]
        x, y = (int(np.floor(place + 0.5)) for place in (pick.x_px, pick.y_px))
        assert_array_equal(box, micrograph[y - 12 : y + 12, x - 12 : x + 12])


def test_background_and_contrast(picks: pd.DataFrame) -> None:
    particles = extract(open_noise(), picks, 24).values
    y, x = np.indices((24, 24)) - 12
    outside = x**2 + y**2 > 9**2
    assert_allclose(particles[:, outside].mean(axis=1), 0, atol=1e-5)
    assert_allclose(particles[:, outside].std(axis=1), 1, atol=1e-5)
    assert_array_equal(extract(open_noise(), picks, 24, invert=False).values, -particles)
    wide = extract(open_noise(), picks, 24, background_radius_px=5).values
    outside = x**2 + y**2 > 5**2
    assert_allclose(wide[:, outside].std(axis=1), 1, atol=1e-5)


def test_nothing_is_read_until_computed_and_then_once(picks: pd.DataFrame) -> None:
    READS.clear()
    particles = extract(open_noise(), picks, 24)
    assert READS == []
    particles.compute()
    assert sorted(READS) == [(0, 1), (3, 4), (4, 5)]
    READS.clear()
    first = extract(open_noise(chunk=3), picks[picks.micrograph == NAMES[4]], 24)
    first.compute()
    assert READS == [(4, 5)]


def test_chunks_do_not_change_the_answer(picks: pd.DataFrame) -> None:
    whole = extract(open_noise(), picks, 24, bin=2)
    for chunk in (2, 3, 5):
        other = extract(open_noise(chunk), picks, 24, bin=2)
        assert_array_equal(other.values, whole.values)
        assert sum(other.chunks[0]) == 40
    counts = [int((picks.micrograph == name).sum()) for name in (NAMES[0], NAMES[3], NAMES[4])]
    assert whole.chunks == (tuple(counts), (12,), (12,))
    some = in_order(picks)[5:9].index
    assert_array_equal(whole[5:9].values, extract(open_noise(), in_order(picks), 24, bin=2)[some])


def test_chunks_of_all_micrographs() -> None:
    everywhere = pd.DataFrame({"micrograph": NAMES * 2, "x_px": 50.0, "y_px": 40.0})
    READS.clear()
    particles = extract(open_noise(chunk=2), everywhere, 16)
    assert particles.chunks[0] == (4, 4, 2)
    particles.compute()
    assert sorted(READS) == [(0, 2), (2, 4), (4, 5)]


def test_graph_is_true_to_its_meta(picks: pd.DataFrame) -> None:
    particles = extract(open_noise(), picks, 24)
    blocks = dask.compute(*particles.data.to_delayed().ravel())
    assert [block.shape[0] for block in blocks] == list(particles.chunks[0])
    assert {block.dtype for block in blocks} == {particles.data._meta.dtype}
    assert particles.data.name == extract(open_noise(), picks, 24).data.name
    assert particles.data.name != extract(open_noise(), picks, 24, bin=2).data.name


def test_what_is_known_of_micrographs_is_known_of_particles(picks: pd.DataFrame) -> None:
    particles = extract(open_noise(), picks, 24, bin=3)
    ordered = in_order(picks)
    image_of = np.array([NAMES.index(name) for name in ordered.micrograph])
    assert particles.micrograph.values.tolist() == ordered.micrograph.tolist()
    assert_array_equal(particles.micrograph_x_px, ordered.x_px)
    assert_array_equal(particles.micrograph_y_px, ordered.y_px)
    assert_array_equal(particles.pick_score, ordered.score)
    assert_array_equal(particles.image_id, np.arange(40))
    assert_array_equal(particles.defocus_u_A, image_of * 1e3 + 1e4)
    assert_array_equal(particles.optics_group, np.array([1, 1, 2, 2, 2])[image_of])
    assert_array_equal(particles.rlnCtfMaxResolution, image_of + 3.5)
    assert "rlnCtfPowerSpectrum" not in particles.coords
    assert particles.attrs["kind"] == "particles"
    assert particles.attrs["pixel_size_A"] == 4.5
    step = particles.attrs["provenance"][-1]
    assert step["step"] == "extract"
    expected = {"box_px": 24, "bin": 3, "edge": "drop", "n_picks": 40, "n_dropped": 0}
    assert expected.items() <= step["parameters"].items()
    optics = optics_of(particles)
    assert optics is not None
    assert optics.pixel_size_A == 4.5


def test_relion_reads_what_is_saved(picks: pd.DataFrame, tmp_path: Path) -> None:
    particles = extract(open_noise(), picks, 24, bin=2)
    path = save_stack(particles, tmp_path / "particles.mrcs")
    tables = starfile.read(Path(path).with_suffix(".star"), always_dict=True)
    optics, rows = tables["optics"], tables["particles"]
    assert optics.set_index("rlnOpticsGroup").to_dict("index") == {
        number: {
            "rlnOpticsGroupName": name,
            "rlnMicrographOriginalPixelSize": 0.75,
            "rlnMicrographPixelSize": 1.5,
            "rlnImagePixelSize": 3.0,
            "rlnImageSize": 12,
            "rlnImageDimensionality": 2,
            "rlnVoltage": 300.0,
            "rlnSphericalAberration": 2.7,
            "rlnAmplitudeContrast": 0.1,
        }
        for number, name in ((1, "first"), (2, "second"))
    }
    ordered = in_order(picks)
    assert rows["rlnImageName"][39] == "000040@particles.mrcs"
    assert rows["rlnMicrographName"].tolist() == ordered.micrograph.tolist()
    for label, column in (
        ("rlnCoordinateX", ordered.x_px),
        ("rlnCoordinateY", ordered.y_px),
        ("rlnAutopickFigureOfMerit", ordered.score),
        ("rlnDefocusU", particles.defocus_u_A),
        ("rlnDefocusV", particles.defocus_v_A),
        ("rlnDefocusAngle", particles.astigmatism_deg),
        ("rlnOpticsGroup", particles.optics_group),
    ):
        assert_array_equal(rows[label], column)


def test_saved_particles_come_back(picks: pd.DataFrame, tmp_path: Path) -> None:
    particles = extract(open_noise(), picks, 24, bin=2)
    save_stack(particles, tmp_path / "particles.mrcs")
    again = open_stack(tmp_path / "particles.star")
    assert_array_equal(again.values, particles.values)
    assert again.attrs["pixel_size_A"] == 3.0
    assert again.attrs["kind"] == "particles"
    for name in particles.coords:
        assert_array_equal(again[name].values, particles[name].values)
    assert again.attrs["provenance"] == particles.attrs["provenance"]
    # What was picked can be read from the particles, too.
    table = emdask.open_picks(tmp_path / "particles.star")
    assert_array_equal(table.score, in_order(picks).score)
    save_stack(particles, tmp_path / "particles.zarr")
    assert_array_equal(open_stack(tmp_path / "particles.zarr").values, particles.values)


def test_micrographs_without_optics_groups(picks: pd.DataFrame, tmp_path: Path) -> None:
    bare = open_noise().drop_vars("optics_group").assign_attrs(relion={})
    save_stack(extract(bare, picks, 24), tmp_path / "particles.mrcs")
    optics = starfile.read(tmp_path / "particles.star", always_dict=True)["optics"]
    assert optics["rlnOpticsGroup"].tolist() == [1]
    assert optics["rlnMicrographPixelSize"].tolist() == [1.5]


def test_pixel_sizes_that_differ(picks: pd.DataFrame) -> None:
    mixed = open_noise().assign_coords(pixel_size_A=("image", [1.0, 1.0, 1.0, 2.0, 2.0]))
    del mixed.attrs["pixel_size_A"]
    particles = extract(mixed, picks, 24, bin=2)
    is_late = np.isin(particles.micrograph.values, NAMES[3:])
    assert_array_equal(particles.pixel_size_A, np.where(is_late, 4.0, 2.0))


def test_binning_is_exact_for_smooth_micrographs() -> None:
    y, x = np.indices((128, 128)) * 2 * np.pi / 32
    micrograph = 3 * np.cos(y) + 2 * np.sin(2 * x + y) + np.cos(3 * x)
    picks = pd.DataFrame({"micrograph": "image_000000", "x_px": [64, 50], "y_px": [64, 70]})
    bare = {"normalise": False, "invert": False}
    whole = extract(micrograph, picks, 64, **bare).values
    for factor in (2, 4):
        binned = extract(micrograph, picks, 64, bin=factor, **bare).values
        assert_allclose(binned, whole[:, ::factor, ::factor], atol=1e-4)
        half = 32 // factor
        assert_allclose(binned[:, half, half], whole[:, 32, 32], atol=1e-4)


EDGE = pd.DataFrame(
    {
        "micrograph": "image_000000",
        "x_px": [8, 7.4, 92, 92.5, 50, 50, 0, -0.6, 99.4, 99.5, 500],
        "y_px": [8, 8, 72, 72, 7.5, 7.4, 0, 10, 79.4, 40, 500],
    }
)


def test_boxes_beyond_the_frame_are_dropped(rng: np.random.Generator) -> None:
    particles = extract(rng.normal(size=SHAPE), EDGE, 16)
    assert particles.micrograph_x_px.values.tolist() == [8, 92, 50]
    parameters = particles.attrs["provenance"][0]["parameters"]
    assert (parameters["n_picks"], parameters["n_dropped"]) == (11, 8)


def test_boxes_beyond_the_frame_are_filled(rng: np.random.Generator) -> None:
    micrograph = rng.normal(size=SHAPE)
    bare = {"normalise": False, "invert": False, "edge": "fill"}
    particles = extract(micrograph, EDGE, 16, **bare)
    assert particles.micrograph_x_px.values.tolist() == [8, 7.4, 92, 92.5, 50, 50, 0, 99.4]
    assert particles.attrs["provenance"][0]["parameters"]["n_dropped"] == 3
    padded = np.pad(micrograph, 16, "symmetric").astype("f4")
    corner = particles.values[6]
    assert_array_equal(corner, padded[8:24, 8:24])


def test_names_are_matched(picks: pd.DataFrame) -> None:
    whole = extract(open_noise(), picks, 24)
    bare = picks.assign(micrograph=[Path(name).stem for name in picks.micrograph])
    assert_array_equal(extract(open_noise(), bare, 24).values, whole.values)
    moved = picks.assign(micrograph="MotionCorr/job002/" + picks.micrograph)
    found = extract(open_noise(), moved, 24)
    assert found.micrograph.values.tolist() == whole.micrograph.values.tolist()


def test_sections_of_one_file(rng: np.random.Generator) -> None:
    stack = build_stack(
        da.from_array(rng.normal(size=(3, *SHAPE)), chunks=(1, -1, -1)),
        {"micrograph": ["all.mrcs"] * 3},
    )
    picks = pd.DataFrame({"micrograph": ["000003@all.mrcs"], "x_px": [40], "y_px": [40]})
    bare = {"normalise": False, "invert": False}
    particles = extract(stack, picks, 8, **bare)
    assert_array_equal(particles.values[0], stack.values[2, 36:44, 36:44].astype("f4"))
    assert particles.micrograph.values.tolist() == ["000003@all.mrcs"]
    # Alone it has no number, but knows which it is.
    alone = stack.assign_coords(image_id=("image", range(3)))[2:3]
    assert_array_equal(extract(alone, picks, 8, **bare).values, particles.values)
    assert_array_equal(
        extract(alone, picks.assign(micrograph="all.mrcs"), 8, **bare).values, particles.values
    )
    for name, images in (("000002@all.mrcs", alone), ("all.mrcs", stack)):
        with pytest.raises(StackError, match="Sections of a file have their numbers before"):
            extract(images, picks.assign(micrograph=name), 8)


def test_one_micrograph_out_of_its_stack(picks: pd.DataFrame) -> None:
    own = picks[picks.micrograph == NAMES[3]]
    particles = extract(open_noise()[3], own, 24)
    expected = extract(open_noise(), own, 24)
    assert_array_equal(particles.values, expected.values)
    for name in expected.coords:
        assert_array_equal(particles[name].values, expected[name].values)
    nameless = open_noise()[3].drop_vars("micrograph")
    numbered = own.assign(micrograph="image_000013")
    assert_array_equal(extract(nameless, numbered, 24).values, expected.values)


def test_tables_of_dask_and_files(picks: pd.DataFrame, tmp_path: Path) -> None:
    dd = pytest.importorskip("dask.dataframe")
    expected = extract(open_noise(), in_order(picks), 24)
    lazy = extract(open_noise(), dd.from_pandas(in_order(picks), npartitions=2), 24)
    assert_array_equal(lazy.values, expected.values)
    folder = save_picks(picks, tmp_path / "picked", micrographs=NAMES)
    for path in (folder, str(folder / "autopick.star")):
        assert_array_equal(extract(open_noise(), path, 24).values, expected.values)


def test_bad_pixels(picks: pd.DataFrame) -> None:
    stack = open_noise()
    pixels = stack.values
    pixels[1, 3, 3] = np.nan  # without picks
    extract(stack.copy(data=da.from_array(pixels, chunks=(1, -1, -1))), picks, 24).compute()
    pixels[3, 3, 3] = np.nan
    stack = stack.copy(data=da.from_array(pixels, chunks=(1, -1, -1)))
    with pytest.raises(StackError, match="image 3 has 1 NaN or infinite pixels"):
        extract(stack, picks, 24).compute()
    repaired = extract(stack, picks, 24, bad_pixels="replace").values
    assert np.isfinite(repaired).all()


def test_integer_micrographs(rng: np.random.Generator) -> None:
    micrograph = rng.integers(0, 255, SHAPE).astype(np.uint8)
    picks = pd.DataFrame({"micrograph": ["image_000000"], "x_px": [40], "y_px": [40]})
    particles = extract(micrograph, picks, 8, normalise=False)
    assert_array_equal(particles.values[0], -micrograph[36:44, 36:44].astype("f4"))


def test_flat_micrographs_give_finite_particles() -> None:
    picks = pd.DataFrame({"micrograph": ["image_000000"], "x_px": [40], "y_px": [40]})
    for level in (0.0, 1e4):
        particles = extract(np.full(SHAPE, level, "f4"), picks, 16, bin=2).values
        assert abs(particles).max() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box_px": 81}, "box_px must be at most 80, the shorter side of the micrographs; got 81"),
        ({"box_px": 3}, "box_px must be an integer of at least 4; got 3"),
        ({"bin": 0}, "bin must be an integer of at least 1; got 0"),
        ({"bin": 5}, "box_px must be an even multiple of bin, 5, .*; got 24. Such as 20."),
        ({"box_px": 12, "bin": 6}, "box_px must be an even multiple .*; got 12. Such as 24."),
        ({"edge": "pad"}, "edge must be one of drop, fill; got 'pad'"),
        ({"background_radius_px": 13}, r"background_radius_px must be a number in \[0, 12\]"),
        ({"bad_pixels": "keep"}, "bad_pixels must be one of raise, replace"),
        ({"picks": "table"}, "no such file"),
        ({"picks": {"x_px": 3}}, "picks must be a table"),
    ],
)
def test_bad_parameters(options: dict[str, Any], message: str, picks: pd.DataFrame) -> None:
    READS.clear()
    with pytest.raises((ParameterError, FileNotFoundError), match=message):
        extract(open_noise(), **{"picks": picks, "box_px": 24, **options})
    assert READS == []


def test_picks_that_do_not_fit(picks: pd.DataFrame) -> None:
    with pytest.raises(StackError, match="there must be at least one pick; got 0"):
        extract(open_noise(), picks[:0], 24)
    strange = picks.assign(micrograph=["mics/z.mrc", *picks.micrograph[1:]])
    message = "must be those of micrographs here, as mics/a b.mrc; 1 of [34] mean none, or several"
    with pytest.raises(StackError, match=f"{message}; got 'mics/z.mrc'"):
        extract(open_noise(), strange, 24)
    twins = open_noise().assign_coords(micrograph=("image", [f"{i}/m.mrc" for i in range(5)]))
    with pytest.raises(StackError, match="1 of 1 mean none, or several; got 'm'"):
        extract(twins, picks.assign(micrograph="m"), 24)
    with pytest.raises(StackError, match="at least one box of 24 px must lie within its micro"):
        extract(open_noise(), picks.assign(x_px=5000), 24)
    words = picks.assign(y_px=["1", "2 px", *picks.y_px[2:].astype(str)])
    with pytest.raises(ParameterError, match="must have numbers in y_px; row 1 has '2 px'"):
        extract(open_noise(), words, 24)
    with pytest.raises(ParameterError, match="row 0 has not"):
        extract(open_noise(), picks.assign(x_px=np.nan), 24)
