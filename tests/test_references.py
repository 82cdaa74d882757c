"""What images are compared with: whatever a user gives, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.errors import FormatError, StackError
from emdask.references import open_references
from emdask.stack import as_stack, build_stack
from emdask.volumes import build_volume

BOX, PIXEL_A = 8, 2.0
VOLUME = build_volume(np.random.default_rng(0).normal(size=(BOX,) * 3), PIXEL_A)
OTHER = VOLUME + 1
OTHER.attrs = dict(VOLUME.attrs)


def make_stack(n: int = 3, box: int = BOX, **attrs: Any) -> xr.DataArray:
    images = np.random.default_rng(1).normal(size=(n, box, box)).astype("f4")
    return build_stack(as_stack(images).data, {}, {"pixel_size_A": PIXEL_A, **attrs})


STACK = make_stack(20)


def bare(stack: xr.DataArray) -> xr.DataArray:
    return stack.drop_attrs()


def opened(given: Any, stack: xr.DataArray = STACK) -> Any:
    return open_references(given, stack, "classify")


def test_volumes_in_any_form(tmp_path: Path) -> None:
    path = emdask.save_volume(VOLUME, tmp_path / "volume.mrc")
    for given in (VOLUME, VOLUME.values, [VOLUME], path, str(path), (path,)):
        found = opened(given)
        np.testing.assert_array_equal(found.volumes, [VOLUME.values])
        assert (found.n_classes, found.box_px, found.pixel_size_A) == (1, BOX, PIXEL_A)
    two = opened([path, OTHER])
    assert two.n_classes == 2
    np.testing.assert_array_equal(two.volumes[1], OTHER.values)
    assert two.volumes[0].dtype == np.float32


def test_images_say_what_they_are_of(tmp_path: Path) -> None:
    angles = {name: ("image", np.arange(3.0) + i) for i, name in enumerate(("rot", "tilt", "psi"))}
    stack = make_stack().assign_coords(
        class_id=("image", [2, 1, 2]), **{f"{name}_deg": value for name, value in angles.items()}
    )
    path = emdask.save_stack(stack, tmp_path / "references.star")
    for given in (stack, stack.compute(), [stack], path):
        found = opened(given)
        np.testing.assert_allclose(found.images, stack.values)
        assert found.class_index.tolist() == [1, 0, 1]
        np.testing.assert_allclose(found.angles_deg, [[0, 1, 2], [1, 2, 3], [2, 3, 4]])
        assert found.volumes is None


def test_images_that_say_nothing_are_of_one_class() -> None:
    for given in (make_stack(), make_stack().values, make_stack()[1], make_stack().values[0]):
        found = opened(given)
        assert found.n_classes == 1
        assert found.angles_deg is None
        assert found.images.shape[1:] == (BOX, BOX)
    one = opened(make_stack().assign_coords(class_id=("image", [1, 1, 1]))[2])
    assert one.class_index.tolist() == [0]
    # One angle of three says nothing of a view.
    assert opened(make_stack().assign_coords(rot_deg=("image", [1, 2, 3]))).angles_deg is None


def test_a_pixel_size_that_one_says_holds_for_both() -> None:
    assert opened(VOLUME.values).pixel_size_A == PIXEL_A
    assert opened(bare(make_stack())).pixel_size_A == PIXEL_A
    assert opened([VOLUME, OTHER], bare(STACK)).pixel_size_A == PIXEL_A
    assert opened(make_stack(), bare(STACK)).pixel_size_A == PIXEL_A
    nearly = VOLUME.assign_attrs(pixel_size_A=2.009)
    assert opened(nearly).pixel_size_A == PIXEL_A
    for nobody in (VOLUME.values, bare(make_stack())):
        with pytest.raises(StackError, match=r"must be known.*stack\.assign_attrs\(pixel_size_A"):
            opened(nobody, bare(STACK))


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (
            "classify: references must have the box of the images, 8 x 8 pixels; got (6, 6, 6). "
            "Pad, crop or resample them to the images'.",
            build_volume(np.ones((6, 6, 6)), PIXEL_A),
        ),
        ("8 x 8 pixels; got (3, 10, 10)", make_stack(3, 10)),
        (
            "references must have the pixel size of the images, 2 Å, to 0.5 %; got '2.02 Å'. Pad",
            VOLUME.assign_attrs(pixel_size_A=2.02),
        ),
        ("to 0.5 %; got '3 Å'", [VOLUME, VOLUME.assign_attrs(pixel_size_A=3.0)]),
        ("to 0.5 %; got '1 Å'", make_stack(pixel_size_A=1.0)),
        ("a list of volumes, or one stack of images; got [('image'", [make_stack(), make_stack()]),
        ("or one stack of images; got [('z'", [VOLUME, make_stack()]),
        ("or one stack of images; got []", []),
        ("voxels must be finite", VOLUME.where(VOLUME.max() != VOLUME)),
        ("finite; image 0 has others. Leave", make_stack().where(STACK[0, 2, 3] != make_stack())),
        (
            "class_id of references must run from 1, and each class must have an image; "
            "got [0, 2]. Number them anew",
            make_stack().assign_coords(class_id=("image", [0, 2, 2])),
        ),
        (
            "rot_deg, tilt_deg, psi_deg of references must be finite",
            make_stack().assign_coords(
                {name: ("image", [0, 1, np.nan]) for name in ("rot_deg", "tilt_deg", "psi_deg")}
            ),
        ),
        ("stack: an array must have 2 or 3 dims; got (8,)", np.ones(8)),
        ("dims must be (image, y, x); got ('a', 'b', 'c')", VOLUME.rename(z="a", y="b", x="c")),
    ],
)
def test_what_does_not_go_with_the_images_is_refused(message: str, given: Any) -> None:
    with pytest.raises(StackError, match=re.escape(message)):
        opened(given)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.mrc"):
        opened(tmp_path / "absent.mrc")
    path = tmp_path / "unknown.mrc"
    with mrcfile.new(path) as file:
        file.set_data(VOLUME.values)
        file.set_volume()
    with pytest.raises(FormatError, match=r"unknown.mrc: the file does not say its pixel size. O"):
        opened(path)
    (tmp_path / "broken.mrc").write_bytes(path.read_bytes()[:1500])
    with pytest.raises(FormatError, match=r"broken\.mrc"):
        opened(tmp_path / "broken.mrc")
