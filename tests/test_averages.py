"""Class averages: classes and poses of tables and stacks, CTFs, laziness, refusals."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask import averages, lazy
from emdask.averages import class_averages
from emdask.errors import ParameterError, StackError
from emdask.kernels.projections import rotation_matrices
from emdask.phantoms import phantom
from emdask.stack import add_provenance, build_stack, optics_of
from tests.kernels.test_alignment import correlate, correlate_turned, project

BOX, PIXEL_A = 32, 3.0
VIEW = (30.0, 50.0)
SHAPES = [phantom(6, radius_A=26, width_A=(5.0, 6.0), seed=seed) for seed in (0, 4, 5)]
TRUTH = [
    shape.project([[*VIEW, 0.0]], box_px=BOX, pixel_size_A=PIXEL_A)[0].astype(np.float64)
    for shape in SHAPES
]


def make_stack(
    n: int = 120, snr: float | None = None, ctf: bool = False, chunk: int = 37
) -> xr.DataArray:
    """Views of three particles, turned and shifted; class 1, 2 and 3, and poses."""
    rng = np.random.default_rng(1)
    class_id, psi_deg = rng.integers(1, 4, n), rng.uniform(-180, 180, n)
    shift_A = rng.uniform(-6, 6, (n, 2))
    rotation = np.column_stack([np.broadcast_to(VIEW, (n, 2)), psi_deg])
    images = np.empty((n, BOX, BOX))
    for k, shape in enumerate(SHAPES, start=1):
        own = class_id == k
        images[own] = shape.project(
            rotation[own], shift_A=shift_A[own], box_px=BOX, pixel_size_A=PIXEL_A
        )
    coords = {"image_id": 100 + np.arange(n), "class_id": class_id, "psi_deg": psi_deg}
    coords |= {"shift_x_A": shift_A[:, 0], "shift_y_A": shift_A[:, 1]}
    attrs: dict[str, Any] = {"pixel_size_A": PIXEL_A}
    if ctf:
        coords["defocus_u_A"] = rng.uniform(8e3, 16e3, n)
        attrs |= {"voltage_kV": 300, "spherical_aberration_mm": 2.7, "amplitude_contrast": 0.1}
        stack = build_stack(da.from_array(images), coords, attrs)
        optics = optics_of(stack)
        assert optics is not None
        images = np.fft.irfft2(np.fft.rfft2(images) * optics.ctfs((BOX, BOX), n), (BOX, BOX))
    if snr is not None:
        images = images + rng.normal(scale=(images.var() / snr) ** 0.5, size=images.shape)
    pixels = da.from_array(images.astype(np.float32), chunks=(chunk, -1, -1))
    return build_stack(pixels, coords, add_provenance(attrs, "made", {}))


@pytest.fixture(scope="module")
def stack() -> xr.DataArray:
    return make_stack()


POSE = ["psi_deg", "shift_x_A", "shift_y_A"]


def split(stack: xr.DataArray) -> tuple[xr.DataArray, xr.Dataset]:
    """The images alone, and a table of all that is known, as `emdask.classify` has it."""
    names = ["class_id", *POSE]
    found = {name: ("image", stack[name].values) for name in names}
    coords = {"image_id": ("image", stack.image_id.values), "class": [1, 2, 3]}
    return stack.drop_vars(names), xr.Dataset(found, coords)


@pytest.mark.parametrize("align", ["auto", "poses", "images", "none"])
def test_building_computes_nothing_and_tells_what_comes(align: str, stack: xr.DataArray) -> None:
    def explode(block: np.ndarray) -> np.ndarray:
        if block.size:
            raise AssertionError("building the graph computed a block")
        return block

    meta = np.empty((0, 0, 0), np.float32)
    found = class_averages(
        stack.copy(data=stack.data.map_blocks(explode, meta=meta)), align=align, max_images=5
    )
    assert (found.dims, found.shape, found.dtype) == (("class", "y", "x"), (3, BOX, BOX), "f4")
    assert isinstance(found.data, da.Array)
    assert found["class"].values.tolist() == [1, 2, 3]
    assert found.n_images.values.tolist() == [5, 5, 5]
    assert found.attrs["pixel_size_A"] == PIXEL_A
    steps = found.attrs["provenance"]
    assert [step["step"] for step in steps] == ["made", "class_averages"]
    assert steps[1]["parameters"]["align"] == ("poses" if align == "auto" else align)
    with pytest.raises(AssertionError, match="computed a block"):
        found.compute()
    done = class_averages(stack, align=align, max_images=5, n_iterations=1).compute()
    assert (done.shape, done.dtype) == (found.shape, found.dtype)


def test_poses_bring_each_class_to_its_particle(stack: xr.DataArray, device: str) -> None:
    found = class_averages(stack, device=device).compute()
    counts = [int((stack.class_id == k).sum()) for k in (1, 2, 3)]
    assert found.n_images.values.tolist() == counts
    for average, truth in zip(found.values, TRUTH, strict=True):
        assert np.abs(average - truth).max() < 0.01 * truth.max()
    apart = class_averages(stack, align="none", device=device).compute()
    means = [stack.values[stack.class_id == k].mean(0) for k in (1, 2, 3)]
    np.testing.assert_allclose(apart, means, atol=1e-6 * np.max(means))


@pytest.mark.parametrize("is_lazy", [False, True])
def test_a_table_goes_before_the_stack(stack: xr.DataArray, is_lazy: bool) -> None:
    alone, table = split(stack)
    expected = class_averages(stack).compute()
    given = table.chunk() if is_lazy else table
    xr.testing.assert_identical(class_averages(alone, given).compute(), expected)
    wrong = stack.assign_coords(class_id=stack.class_id * 0 + 2, psi_deg=stack.psi_deg + 50)
    xr.testing.assert_identical(class_averages(wrong, given).compute(), expected)
    # What the table does not tell, as poses, the stack does.
    of_stack = class_averages(wrong.assign_coords(psi_deg=stack.psi_deg), table[["class_id"]])
    xr.testing.assert_identical(of_stack.compute(), expected)


@pytest.mark.parametrize("view", [(0.0, 0.0), (60.0, 70.0)])
def test_views_of_a_cone_are_turned_to_look_alike(view: tuple[float, float]) -> None:
    """Rot and psi of views near tilt 0 say together how an image is turned."""
    rng = np.random.default_rng(0)
    n = 200
    tipped = np.column_stack([rng.uniform(0, 360, n), rng.uniform(0, 6, n), np.zeros(n)])
    # The third row of a rotation is the direction that the view looks along.
    x, y, z = (rotation_matrices(tipped)[:, 2] @ rotation_matrices([*view, 0.0])).T
    rot_deg, tilt_deg = np.rad2deg(np.arctan2(y, x)), np.rad2deg(np.arccos(z))
    psi_deg = rng.uniform(0, 360, n)
    poses = np.column_stack([rot_deg, tilt_deg, psi_deg])
    images = SHAPES[0].project(poses, box_px=BOX, pixel_size_A=PIXEL_A)
    coords = dict(zip(("rot_deg", "tilt_deg", "psi_deg"), poses.T, strict=True))
    stack = build_stack(da.from_array(images), coords)
    truth = SHAPES[0].project([[*view, 0.0]], box_px=BOX, pixel_size_A=PIXEL_A)[0]
    assert correlate_turned(class_averages(stack).values[0], truth) > 0.98
    if view[1] == 0:
        by_psi = class_averages(stack.drop_vars("rot_deg")).values[0]
        assert correlate_turned(by_psi, truth) < 0.8


def test_images_of_no_class_are_left_out(stack: xr.DataArray) -> None:
    alone, table = split(stack)
    kept = (table.class_id != 2) & (stack.image_id.values % 3 > 0)
    # Poses of images that are left out are NaN; and class 2 has none left.
    some = table.assign({name: table[name].where(kept) for name in POSE})
    some["class_id"] = table.class_id.where(kept, 0)
    found = class_averages(alone, some).compute()
    expected = class_averages(stack[kept.values]).compute()
    assert found.n_images.values.tolist() == expected.n_images.values.tolist()
    assert found.n_images.values[1] == 0
    np.testing.assert_allclose(found, expected, atol=1e-6 * float(expected.max()))
    assert not found[1].values.any()
    by_images = class_averages(alone, some, align="images", max_images=4, n_iterations=1).compute()
    assert by_images.n_images.values.tolist() == [4, 0, 4]
    assert not by_images[1].values.any()


def test_without_classes_all_images_are_of_one(stack: xr.DataArray) -> None:
    one = class_averages(stack.drop_vars("class_id")).compute()
    assert one["class"].values.tolist() == [1]
    np.testing.assert_allclose(
        one[0],
        (class_averages(stack) * class_averages(stack).n_images).sum("class") / len(stack),
        atol=1e-5 * float(one.max()),
    )
    plain = class_averages(stack.values, align="none").compute()
    np.testing.assert_allclose(plain[0], stack.values.mean(0), atol=1e-6 * float(plain.max()))
    assert "pixel_size_A" not in plain.attrs
    assert plain.attrs["provenance"][0]["step"] == "class_averages"


def test_noise_falls_by_the_number_of_images() -> None:
    noisy, clean = make_stack(400, snr=0.1), make_stack(400)
    found, truth = class_averages(noisy).compute(), class_averages(clean).compute()
    variance = float((noisy - clean).var())
    for k in range(3):
        left = float((found[k] - truth[k]).var())
        assert 0.8 < left * int(found.n_images[k]) / variance < 1.2


def test_ctfs_are_corrected() -> None:
    recorded = make_stack(ctf=True)
    found = class_averages(recorded).compute()
    assert found.attrs["ctf_state"] == "corrected"
    as_is = class_averages(recorded.drop_vars("defocus_u_A")).compute()
    assert "ctf_state" not in as_is.attrs
    for average, plain, truth in zip(found.values, as_is.values, TRUTH, strict=True):
        assert correlate(average, truth) > 0.98
        assert correlate(plain, truth) < 0.9
    # What has been turned over by its sign, or corrected, is not corrected twice.
    flipped = emdask.phase_flip(recorded)
    np.testing.assert_allclose(class_averages(flipped), found, atol=1e-5 * float(found.max()))
    done = class_averages(recorded.assign_attrs(ctf_state="corrected")).compute()
    np.testing.assert_array_equal(done, as_is)


@pytest.mark.parametrize("align", ["poses", "images"])
def test_chunks_do_not_show(
    align: str, stack: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"align": align, "n_iterations": 1, "max_images": 20}
    expected = class_averages(stack.chunk(image=-1), **options).compute()
    monkeypatch.setattr(lazy, "FOLD_BYTES", 1)
    monkeypatch.setattr(lazy, "FOLD_VOLUMES", dict.fromkeys(lazy.FOLD_VOLUMES, 0))
    for chunks in (1, 50):
        found = class_averages(stack.chunk(image=chunks), **options).compute()
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("align", ["poses", "images"])
def test_which_images_are_taken_follows_their_numbers(align: str) -> None:
    options: dict[str, Any] = {"align": align, "n_iterations": 1, "max_images": 6}
    noisy = make_stack(snr=1.0)
    part = noisy[noisy.class_id == 1]
    found = class_averages(part, **options).compute()
    assert found.n_images.values.tolist() == [6]
    others = class_averages(part.assign_coords(image_id=part.image_id + 1), **options).compute()
    assert np.abs(found - others).max() > 0.01 * found.max()
    if align == "poses":
        backwards = class_averages(part[::-1], **options).compute()
        np.testing.assert_allclose(found, backwards, atol=1e-6 * float(found.max()))


def test_images_are_aligned_by_themselves() -> None:
    noisy = make_stack(450, snr=0.1)
    bare = noisy.drop_vars(POSE)
    found = class_averages(bare).compute()
    assert found.attrs["provenance"][-1]["parameters"] == {
        "align": "images",
        "n_iterations": 5,
        "max_images": 500,
    }
    none = class_averages(bare, align="none").compute()
    for k in range(3):
        own, other = TRUTH[k], TRUTH[(k + 1) % 3]
        aligned = correlate_turned(found.values[k], own)
        assert aligned > 0.9
        assert aligned > correlate_turned(none.values[k], own) + 0.1
        assert aligned > correlate_turned(found.values[k], other) + 0.05


def test_images_with_ctfs_are_aligned_by_themselves() -> None:
    recorded = make_stack(240, snr=0.3, ctf=True).drop_vars([*POSE, "class_id"])
    own = recorded[make_stack(240).class_id.values == 1]
    found = class_averages(own).compute()
    assert found.attrs["ctf_state"] == "corrected"
    assert correlate_turned(found.values[0], TRUTH[0]) > 0.9


def test_a_card_aligns_images_as_well(card: str) -> None:
    angles = 40.0 * np.arange(9)
    images = project(angles, box_px=32)
    found = class_averages(images, n_iterations=1, device=card).compute()
    expected = class_averages(images, n_iterations=1, device="cpu").compute()
    np.testing.assert_allclose(found, expected, atol=0.01 * float(expected.max()))


def test_bad_pixels_are_named_or_replaced(stack: xr.DataArray) -> None:
    pixels = stack.values.copy()
    number = int(np.flatnonzero(stack.class_id.values == 2)[7])
    pixels[number, 4, 5] = np.nan
    spoilt = stack.copy(data=da.from_array(pixels, chunks=(37, -1, -1)))
    pixels[number, 4, 5] = np.nanmean(pixels[number])
    mended = stack.copy(data=da.from_array(pixels, chunks=(37, -1, -1)))
    for align in ("poses", "images"):
        options: dict[str, Any] = {"align": align, "n_iterations": 1}
        with pytest.raises(StackError, match=f"image {number} has 1 NaN"):
            class_averages(spoilt, **options).compute()
        found = class_averages(spoilt, bad_pixels="replace", **options).compute()
        expected = class_averages(mended, **options).compute()
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(expected.max()))


def test_integers_and_one_image(stack: xr.DataArray) -> None:
    scaled = (stack / stack.max() * 100).astype(np.int16).assign_attrs(stack.attrs)
    found = class_averages(scaled).compute()
    for average, truth in zip(found.values, TRUTH, strict=True):
        assert correlate(average, truth) > 0.999
    one = class_averages(stack[4], max_images=1)
    assert one.n_images.sum() == 1
    assert one.n_images[int(stack.class_id[4]) - 1] == 1
    assert correlate(one.values[-1], TRUTH[int(stack.class_id[4]) - 1]) > 0.999


def test_classes_found_by_classify_are_averaged(stack: xr.DataArray) -> None:
    bare = stack.drop_vars(["class_id", *POSE])
    table = emdask.classify(bare, method="kmeans", n_classes=2, n_components=3)
    options: dict[str, Any] = {"max_images": 10, "n_iterations": 1}
    of_lazy = class_averages(bare, table, **options)
    assert of_lazy.sizes["class"] == 2
    xr.testing.assert_identical(
        of_lazy.compute(), class_averages(bare, table.compute(), **options).compute()
    )


def test_memory_is_that_of_the_sums(stack: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes from task to task are sums of classes, however many images there are."""
    made = []
    insert = averages.insert

    def watch(*args: Any, **options: Any) -> Any:
        made.append(insert(*args, **options))
        return made[-1]

    record = averages.Reconstructor(
        params=averages.Averages,
        insert={"cpu": watch},
        combine=averages.add_sums,
        finalize=averages._finalize,
    )
    monkeypatch.setattr(averages, "RECORD", record)
    monkeypatch.setattr(lazy, "FOLD_BYTES", 1)
    monkeypatch.setattr(lazy, "FOLD_VOLUMES", dict.fromkeys(lazy.FOLD_VOLUMES, 0))
    class_averages(stack.chunk(image=10)).compute()
    assert len(made) == 12
    assert {(sums.images.shape, sums.squares) for sums in made} == {((3, BOX, BOX), None)}


def test_what_does_not_fit_is_refused_at_once(stack: xr.DataArray) -> None:
    def refuse(error: type[Exception], match: str, images: Any = stack, *a: Any, **o: Any) -> None:
        with pytest.raises(error, match=match):
            class_averages(images, *a, **o)

    bare, table = split(stack)
    refuse(
        ParameterError, "align must be one of auto, poses, images, none; got 'pose'", align="pose"
    )
    refuse(ParameterError, "n_iterations must be an integer in", n_iterations=0)
    refuse(ParameterError, "max_images must be an integer of at least 1", max_images=0)
    refuse(ParameterError, "bad_pixels must be one of", bad_pixels="ignore")
    refuse(ParameterError, "device must be one of", device="tpu")
    refuse(StackError, r"must be square.*\(32, 30\)", stack[:, :, :30])
    refuse(StackError, 'needs psi_deg.*Pass align="images"', bare, align="poses")
    refuse(StackError, "dataset with class_id of each image; got 'list'", stack, [1])
    refuse(StackError, "dataset with class_id", stack, table.drop_vars("class_id"))
    refuse(StackError, "a row for each of the 7 images", bare[:7], table)
    refuse(StackError, "image_id of the stack", bare[::-1], table)
    none = stack.assign_coords(class_id=0 * stack.class_id)
    refuse(StackError, "an image must be of a class; class_id is 0 for all", none)
    below = stack.assign_coords(class_id=stack.class_id - 2)
    refuse(StackError, "number from 1, or 0 for none; got -1", below)
    lost = stack.assign_coords(psi_deg=stack.psi_deg.where(stack.image_id != 107))
    refuse(StackError, "pose of image 7 must be finite", lost)
    unknown = stack.copy()
    del unknown.attrs["pixel_size_A"]
    refuse(StackError, "pixel size must be known where images are shifted", unknown)
    sizes = ("image", np.where(stack.image_id < 105, 2.0, 3.0))
    refuse(StackError, "must have one pixel size", stack.assign_coords(pixel_size_A=sizes))
