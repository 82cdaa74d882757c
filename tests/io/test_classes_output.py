"""Classes as files: STAR files that name the images where they lie, tables, proportions."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from emdask.errors import FormatError, ParameterError
from emdask.io import open_stack, save_stack
from emdask.io.classes_output import (
    CONFIDENCE,
    check_classes_target,
    holds_classes,
    list_image_names,
    save_classes,
    tabulate_classes,
    tabulate_proportions,
)
from emdask.io.star_text import parse_star
from tests.fake_classes import POSES, fake_table, known_images


@pytest.fixture(scope="module")
def images() -> xr.DataArray:
    return known_images(20).compute().chunk(image=8)


@pytest.fixture
def folder(images: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    save_stack(images, "data/in.mrcs")
    return tmp_path


def save(
    source: str, out: str, *, table: xr.Dataset | None = None, **options: object
) -> xr.Dataset:
    stack = open_stack(source)
    table = fake_table(stack, n_dropped=5) if table is None else table
    names = list_image_names([source], out)
    save_classes(table, out, stack=stack, names=names, **options)
    return table


@pytest.mark.parametrize("source", ["data/in.star", "data/in.mrcs"])
@pytest.mark.parametrize("out", ["out.star", "data/out.star", "other/out.star"])
def test_star_file_names_the_images_where_they_lie(folder, images, source, out):
    (folder / "other").mkdir()
    stack = open_stack(source)
    table = fake_table(images, n_dropped=5)
    names = list_image_names([source], out)
    save_classes(table, out, stack=stack, names=names)
    found = open_stack(out)
    kept = np.flatnonzero(table.class_id.values)
    assert len(kept) == 15
    np.testing.assert_array_equal(found.values, images.values[kept])
    np.testing.assert_array_equal(found.class_id, table.class_id.values[kept])
    np.testing.assert_array_equal(found.image_id, kept)
    for name in POSES:
        np.testing.assert_allclose(found[name], table[name].values[kept], atol=1e-5)
    np.testing.assert_allclose(found[CONFIDENCE], table.confidence.values[kept], atol=1e-6)
    assert found.attrs["pixel_size_A"] == 3.0
    assert [step["step"] for step in found.attrs["provenance"]][-1] == "two_stage"
    assert not list(folder.rglob("*.part*"))


def test_all_images_are_written_with_class_0_and_poses_0(folder):
    table = save("data/in.star", "all.star", all_images=True)
    found = open_stack("all.star")
    assert len(found) == 20
    dropped = np.flatnonzero(table.class_id.values == 0)
    assert len(dropped) == 5
    for name in POSES:
        assert not found[name].values[dropped].any()
        assert np.isfinite(found[name].values).all()
    np.testing.assert_array_equal(found.class_id, table.class_id)


def test_poses_of_the_images_stay_where_none_were_found(folder):
    stack = open_stack("data/in.star")
    save("data/in.star", "out.star", table=fake_table(stack, poses=False))
    found = open_stack("out.star")
    for name in POSES:
        np.testing.assert_array_equal(found[name], stack[name])


def test_names_of_a_project_stay_what_they_are(folder, images):
    """As RELION has it: paths start from the project folder, wherever the STAR file is."""
    (folder / "project/Extract").mkdir(parents=True)
    (folder / "project/Class3D").mkdir()
    save_stack(images, "project/Extract/in.mrcs")
    text = Path("project/Extract/in.star").read_text("utf-8")
    Path("project/particles.star").write_text(text.replace("@in.mrcs", "@Extract/in.mrcs"), "utf-8")
    inside = list_image_names(["project/particles.star"], "project/Class3D/out.star")
    assert inside[1] == "000002@Extract/in.mrcs"
    outside = list_image_names(["project/particles.star"], "data/out.star")
    assert outside[1] == "000002@../project/Extract/in.mrcs"
    # A file of the same name is nearer to the new one: the name would lead to it.
    (folder / "data/Extract").mkdir()
    os.link("data/in.mrcs", "data/Extract/in.mrcs")
    save_stack(images[::-1].compute().chunk(image=8), "data/Extract/in.mrcs", overwrite=True)
    assert list_image_names(["project/particles.star"], "data/out.star") == outside


def test_project_folder_and_images_are_heard(folder, images):
    (folder / "far").mkdir()
    os.rename("data/in.star", "far/in.star")
    os.rename("data/in.mrcs", "far/other.mrcs")
    os.mkdir("root")
    os.rename("far/other.mrcs", "root/in.mrcs")
    names = list_image_names(["far/in.star"], "out.star", images=slice(2, 4), project_folder="root")
    assert names == ["000003@root/in.mrcs", "000004@root/in.mrcs"]


def test_label_of_original_names_is_no_copy_of_the_names(folder):
    save("data/in.star", "out.star")
    labels = parse_star(Path("out.star").read_bytes(), "out.star")["particles"]
    assert "rlnImageOriginalName" not in labels
    assert {"rlnClassNumber", "rlnAngleRot", "rlnOriginXAngst"} <= set(labels)
    # One that says something else stays.
    stack = open_stack("data/in.star").assign_coords(
        rlnImageOriginalName=("image", [f"{i}@old.mrcs" for i in range(20)])
    )
    names = list_image_names(["data/in.star"], "out.star")
    save_classes(fake_table(stack), "out.star", stack=stack, names=names, overwrite=True)
    assert open_stack("out.star").rlnImageOriginalName.values[3] == "3@old.mrcs"


def test_images_in_a_store_cannot_be_named(folder, images):
    save_stack(images, "in.zarr")
    with pytest.raises(FormatError, match=r"emdask convert in.zarr particles.mrcs"):
        list_image_names(["in.zarr"], "out.star")


def test_tables_have_all_images(folder):
    stack = open_stack("data/in.star")
    table = fake_table(stack, n_dropped=5)
    save_classes(table, "out.csv", stack=stack)
    found = pd.read_csv("out.csv")
    assert list(found)[:4] == ["image_id", "class_id", "kept", "confidence"]
    assert len(found) == 20
    np.testing.assert_array_equal(found.class_id, table.class_id)
    np.testing.assert_allclose(found.posterior_2, table.posterior[:, 1], rtol=1e-6)
    np.testing.assert_allclose(found.screen_score, table.screen_score, rtol=1e-6)
    assert found.rot_deg.isna().sum() == 5
    save_classes(table, "out.zarr", stack=stack)
    with xr.open_zarr("out.zarr", consolidated=False, chunks=None) as again:
        xr.testing.assert_equal(again.load(), table)
        assert again.attrs["provenance"][-1]["parameters"]["cone_deg"] == 10.0
    assert tabulate_classes(table).shape == (20, 7 + 5 + 6)


def test_proportions_have_a_row_for_none():
    table = fake_table(known_images(20), n_dropped=5)
    frame = tabulate_proportions(table)
    assert frame["class"].tolist() == ["1", "2", "3", "none"]
    assert frame.n_images.sum() == 20
    assert frame.n_images.iloc[-1] == 5
    np.testing.assert_allclose(frame.proportion, [*table.proportion, 0.25])
    np.testing.assert_allclose(frame.low[:3], table.proportion_low)
    assert frame.high.isna().tolist() == [False, False, False, True]


def test_what_exists_is_not_replaced_unasked(folder, images):
    stack = open_stack("data/in.star")
    table = fake_table(stack)
    for name in ("out.csv", "out.zarr", "out.star"):
        names = list_image_names(["data/in.star"], name)
        save_classes(table, name, stack=stack, names=names)
        with pytest.raises(FileExistsError, match="exists already"):
            save_classes(table, name, stack=stack, names=names)
        save_classes(table, name, stack=stack, names=names, overwrite=True)
    assert holds_classes("out.zarr")
    assert not list(folder.glob("*.partial"))


def test_stores_of_images_and_inputs_never_give_way(folder, images):
    save_stack(images, "in.zarr")
    with pytest.raises(FileExistsError, match="is something else"):
        check_classes_target("in.zarr", overwrite=True)
    with pytest.raises(FileExistsError, match="is what the images are read from"):
        check_classes_target("data/../data/in.star", overwrite=True, inputs=["data/in.star"])
    (folder / "a.csv").mkdir()
    with pytest.raises(FileExistsError, match="is something else"):
        check_classes_target("a.csv", overwrite=True)


def test_wrong_targets_are_sentences(folder):
    with pytest.raises(ParameterError, match=r"must end in .star, .csv or .zarr; got ''"):
        check_classes_target("out")
    with pytest.raises(ParameterError, match=r"must end in .csv; got '.star'"):
        check_classes_target("out.star", suffixes=(".csv",))
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        check_classes_target("no/out.star")
