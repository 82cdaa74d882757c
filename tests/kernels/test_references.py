"""What images are compared with, as plain arrays."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from dask.base import tokenize

from emdask.errors import ParameterError
from emdask.kernels.references import References

IMAGES = np.zeros((4, 6, 6), np.float32)
VOLUMES = tuple(np.full((6, 6, 6), i, np.float32) for i in range(3))


def test_volumes_are_one_a_class() -> None:
    found = References(volumes=VOLUMES, pixel_size_A=2.0)
    assert (found.n_classes, found.box_px, found.pixel_size_A) == (3, 6, 2.0)


def test_images_are_of_the_classes_that_they_say() -> None:
    class_index = np.array([0, 1, 1, 0])
    angles_deg = np.arange(12.0).reshape(4, 3)
    found = References(images=IMAGES, class_index=class_index, angles_deg=angles_deg)
    assert (found.n_classes, found.box_px, found.pixel_size_A) == (2, 6, None)


def test_it_travels_and_has_a_name_of_its_contents() -> None:
    found = References(volumes=VOLUMES)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.volumes, found.volumes)
    assert tokenize(again) == tokenize(found) != tokenize(References(volumes=VOLUMES[:2]))


@pytest.mark.parametrize(
    ("match", "given"),
    [
        ("volumes, or else images with the class of each; got .'volumes', 'images'.", "both"),
        (r"volumes, or else images with the class of each; got \[\]", "none"),
        ("images with the class of each; got .'images'.", "no class"),
        ("squares or cubes of one size; got", "box"),
        ("squares or cubes of one size; got", "two sizes"),
        ("squares or cubes of one size; got", "flat volumes"),
        (r"squares or cubes of one size; got \[\]", "no image"),
        (r"a class for each image; got \(3,\)", "classes"),
        (r"numbered from 0, and each must have an image; got \[0, 2\]", "gap"),
        (r"three angles for each image; got \(4, 2\)", "angles"),
        (r"three angles for each image; got \(3, 3\)", "angles of volumes"),
    ],
)
def test_what_does_not_go_together_is_refused(match: str, given: str) -> None:
    some: dict[str, Any] = {"images": IMAGES, "class_index": np.array([0, 1, 1, 0])}
    options: dict[str, dict[str, Any]] = {
        "both": {"volumes": VOLUMES, "images": IMAGES},
        "none": {},
        "no class": {"images": IMAGES},
        "box": {**some, "images": IMAGES[:, :5]},
        "two sizes": {"volumes": (*VOLUMES, np.zeros((4, 4, 4), np.float32))},
        "flat volumes": {"volumes": tuple(IMAGES)},
        "no image": {"images": IMAGES[:0], "class_index": np.array([], np.int64)},
        "classes": {**some, "class_index": np.array([0, 1, 1])},
        "gap": {**some, "class_index": np.array([0, 2, 2, 0])},
        "angles": {**some, "angles_deg": np.zeros((4, 2))},
        "angles of volumes": {"volumes": VOLUMES, "angles_deg": np.zeros((3, 3))},
    }
    with pytest.raises(ParameterError, match=match):
        References(**options[given])
