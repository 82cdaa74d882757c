"""Real files of the field: all open, and read as mrcfile reads them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from emdask import open_stack

# File, shape, and pixel size, Å, as the headers say; None where they say nothing.
IMAGES: list[tuple[str, tuple[int, int, int], float | None]] = [
    ("micrographs/fei-extended_bin4.mrc", (1, 959, 927), 3.415),
    ("micrographs/epu2.9_example_bin4.mrc", (1, 1024, 1024), 2.666),
    ("particles/aspire_sample/sample.mrcs", (17, 200, 200), None),
    ("particles/lsu50S_10076_cryodrgn/empiar_10076_7.mrc", (7, 320, 320), None),
    ("particles/relion31_cryodrgn/relion31.mrcs", (5, 256, 256), 1.0),
    (
        "particles/ribosome_tilt_cryodrgn/ay19102021_L3_position6_ribo_it09_bin8_1.82A.mrcs",
        (220, 64, 64),
        1.0,
    ),
    ("particles/hand_sim_cryodrgn/hand.mrcs", (100, 64, 64), 1.0),
    ("particles/trpv1_cryojax/trpv1_small_stack.mrcs", (10, 48, 48), 4.88),
    ("maps/clean70SRibosome_vol_65p.mrc", (65, 65, 65), None),
    ("maps/betaGal.mrc", (100, 100, 100), 3.54),
    ("maps/trpv1_volume.mrc", (48, 48, 48), 4.88),
]
# File, number of images, pixel size, Å.
TABLES = [
    ("particles/aspire_sample/sample_relion_data.star", 17, 1.338),
    ("particles/lsu50S_10076_cryodrgn/empiar_10076_7.star", 7, 1.31),
    ("particles/relion31_cryodrgn/relion31.star", 5, 2.806),
    ("particles/ribosome_tilt_cryodrgn/sta_testing_bin8.star", 219, 1.96),
]
# Their stacks are not there, or have another name.
INCOMPLETE = [
    ("particles/trpv1_cryojax/trpv1_small_stack.star", "batch_0_restacked.mrc"),
    ("particles/metadata_cryodrgn/relion5.star", "toy_images_a.mrcs"),
    ("particles/metadata_cryodrgn/relion31.6opticsgroups.star", "0003_shiny.mrcs"),
]


def test_no_file_is_left_out(shared_data: Path) -> None:
    folders = ("micrographs", "particles", "maps")
    known = {name for name, *_ in (*IMAGES, *TABLES, *INCOMPLETE)}
    found = {
        str(path.relative_to(shared_data))
        for folder in folders
        for path in (shared_data / folder).rglob("*")
        if path.suffix in (".mrc", ".mrcs", ".star")
    }
    assert found == known


@pytest.mark.parametrize(("name", "shape", "size_A"), IMAGES)
def test_images(
    shared_data: Path, name: str, shape: tuple[int, int, int], size_A: float | None
) -> None:
    stack = open_stack(shared_data / name)
    assert stack.shape == shape
    if size_A is None:
        assert "pixel_size_A" not in stack.attrs
    else:
        assert stack.attrs["pixel_size_A"] == pytest.approx(size_A, abs=5e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        truth = mrcfile.read(shared_data / name) if _is_strict(name) else _read(shared_data / name)
    computed = stack.compute()
    assert np.isfinite(computed.values).all()
    assert computed.dtype == truth.dtype
    np.testing.assert_array_equal(computed.values, truth.reshape(shape))
    np.testing.assert_array_equal(stack[-1].values, computed.values[-1])


def _is_strict(name: str) -> bool:
    """Whether the file has the MAP word and the machine stamp that mrcfile asks for."""
    return "relion31" not in name and "ay19102021" not in name


def _read(path: Path) -> np.ndarray:
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data)


@pytest.mark.parametrize(("name", "n_images", "size_A"), TABLES)
def test_tables(shared_data: Path, name: str, n_images: int, size_A: float) -> None:
    stack = open_stack(shared_data / name)
    assert stack.sizes["image"] == n_images
    assert stack.attrs["pixel_size_A"] == pytest.approx(size_A, abs=5e-5)
    assert stack.attrs["voltage_kV"] == 300.0
    assert stack.attrs["kind"] == "particles"
    assert ((stack.defocus_u_A > 5e3) & (stack.defocus_u_A < 5e4)).all()
    assert np.isfinite(stack.values).all()
    first = int(str(stack.rlnImageOriginalName.values[0]).partition("@")[0])
    (images,) = (shared_data / name).parent.glob("*.mrc*")
    np.testing.assert_array_equal(stack[0].values, open_stack(images)[first - 1].values)


@pytest.mark.parametrize(("name", "missing"), INCOMPLETE)
def test_missing_stacks_are_named(shared_data: Path, name: str, missing: str) -> None:
    with pytest.raises(FileNotFoundError, match=missing):
        open_stack(shared_data / name)


def test_trpv1_beside_its_stack(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "particles" / "trpv1_cryojax"
    os.symlink(folder / "trpv1_small_stack.star", tmp_path / "x.star")
    os.symlink(folder / "trpv1_small_stack.mrcs", tmp_path / "batch_0_restacked.mrc")
    stack = open_stack(tmp_path / "x.star")
    assert stack.attrs["pixel_size_A"] == 4.88
    assert stack.attrs["relion"]["optics"]["rlnOpticsGroup"] == [7]
    assert stack.rot_deg.values[0] == -30.073301
    assert stack.shift_x_A.values[0] == -8.149219


def test_micrographs_joined_by_a_pattern_differ_in_size(shared_data: Path) -> None:
    with pytest.raises(ValueError, match="all images must have one size"):
        open_stack(str(shared_data / "micrographs" / "*.mrc"))
