"""open_stack: many files, laziness, bad input, and the way through a store and back."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr

from emdask import open_stack, save_stack
from emdask.errors import EmdaskError, FormatError, ParameterError, StackError
from emdask.io import files as files_module
from emdask.io import mrc as mrc_module
from emdask.io.mrc import build_header


def write_mrc(path: Path, n: int = 1, first: int = 0, edge: int = 6, size_A: float = 1.5) -> Path:
    images = np.arange(first, first + n, dtype="f4")[:, None, None] * np.ones((edge, edge), "f4")
    path.write_bytes(build_header(images.shape, "f4", size_A) + images.tobytes())
    return path


def numbers(stack: xr.DataArray) -> list[int]:
    return [int(value) for value in stack.compute().values[:, 0, 0]]


SEEN: list[tuple[int, int]] = []


def count_reads(source: Any, start: int, stop: int, read: Any = mrc_module.read_block) -> Any:
    SEEN.append((start, stop))
    return read(source, start, stop)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every read of pixels of an MRC file, as (start, stop)."""
    SEEN.clear()
    monkeypatch.setattr(mrc_module, "read_block", count_reads)
    return SEEN


def test_patterns_and_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_mrc(tmp_path / f"m{i}.mrc", first=i) for i in range(4)]
    stack = open_stack(str(tmp_path / "m*.mrc"))
    assert numbers(stack) == [0, 1, 2, 3]
    assert stack.attrs == {"kind": "micrographs", "pixel_size_A": 1.5}
    assert list(stack.micrograph.values) == [str(path) for path in paths]
    assert numbers(open_stack([paths[2], str(paths[0])])) == [2, 0]
    assert numbers(open_stack([str(tmp_path / "m[23].mrc"), paths[0]])) == [2, 3, 0]
    assert numbers(open_stack([tmp_path / "m1.mrc"])) == [1]
    monkeypatch.chdir(tmp_path)
    relative = open_stack("m*.mrc")
    assert list(relative.micrograph.values) == ["m0.mrc", "m1.mrc", "m2.mrc", "m3.mrc"]
    monkeypatch.chdir("/")
    assert numbers(relative) == [0, 1, 2, 3]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    assert numbers(open_stack(str(write_mrc(tmp_path / "a[1].mrc", first=5)))) == [5]


def test_files_of_several_images(tmp_path: Path) -> None:
    paths = [write_mrc(tmp_path / "a.mrcs", 3), write_mrc(tmp_path / "b.mrcs", 2, first=3)]
    stack = open_stack(paths, chunks=2)
    assert numbers(stack) == [0, 1, 2, 3, 4]
    assert stack.attrs["kind"] == "particles"
    assert list(stack.micrograph.values) == [str(paths[i]) for i in (0, 0, 0, 1, 1)]
    assert numbers(open_stack(paths, images=slice(2, 4))) == [2, 3]
    assert open_stack(paths, images=slice(4, None, -2)).image_id.values.tolist() == [4, 2, 0]


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    for i in range(5):
        write_mrc(tmp_path / f"{i}.mrc", edge=8 if i == 3 else 6)
    with pytest.raises(StackError, match=r"4 of 5 files are 6x6; got .*3\.mrc \(8x8\)\."):
        open_stack(str(tmp_path / "*.mrc"))


def test_pixel_sizes_that_differ_are_a_coordinate(tmp_path: Path) -> None:
    for i, size_A in enumerate([1.5, 2.5, 0.0]):
        write_mrc(tmp_path / f"{i}.mrc", size_A=size_A)
    stack = open_stack(str(tmp_path / "*.mrc"))
    assert "pixel_size_A" not in stack.attrs
    np.testing.assert_array_equal(stack.pixel_size_A, [1.5, 2.5, np.nan])
    stack = open_stack(str(tmp_path / "*.mrc"), pixel_size_A=2.0)
    assert stack.attrs["pixel_size_A"] == 2.0
    assert "pixel_size_A" not in stack.coords


def test_types_that_differ_are_widened(tmp_path: Path) -> None:
    write_mrc(tmp_path / "a.mrc", first=1)
    (tmp_path / "b.mrc").write_bytes(build_header((1, 6, 6), "i2", 1.5) + b"\2\0" * 36)
    stack = open_stack(str(tmp_path / "*.mrc"))
    assert stack.dtype == np.float32
    assert numbers(stack) == [1, 2]


def test_kind(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrcs")
    assert open_stack(path).attrs["kind"] == "particles"
    assert open_stack(path, kind="micrographs").attrs["kind"] == "micrographs"
    assert open_stack(write_mrc(tmp_path / "b.mrc", 2)).attrs["kind"] == "particles"
    movie = write_mrc(tmp_path / "c.mrc", 2, edge=1030)
    assert open_stack(movie).attrs["kind"] == "micrographs"


def test_building_reads_no_pixels_and_a_selection_only_its_own(
    tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    path = write_mrc(tmp_path / "a.mrcs", 100)
    stack = open_stack(path, chunks=50)
    (stack * 2 + 1).mean("image")
    assert reads == []
    assert stack[7].compute().values[0, 0] == 7
    assert reads == [(7, 8)]
    reads.clear()
    assert numbers(stack[45:53]) == list(range(45, 53))
    assert sorted(reads) == [(45, 50), (50, 53)]
    reads.clear()
    assert (stack[60] * 2).compute().values[0, 0] == 120
    assert stack[-1, 2:4, ::2].compute().shape == (2, 3)
    assert reads == [(60, 61), (99, 100)]
    reads.clear()
    assert numbers(stack[10:90:40]) == [10, 50]
    assert numbers(stack[20:10:-5]) == [20, 15]
    reads.clear()
    stack.compute()
    assert sorted(reads) == [(0, 50), (50, 100)]


def test_bytes_that_one_image_costs(tmp_path: Path) -> None:
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("the system does not count the bytes that a process reads")
    path = tmp_path / "large.mrcs"
    with path.open("wb") as file:
        file.write(build_header((4000, 128, 128), "f4", 1.5))
        file.truncate(1024 + 4000 * 128 * 128 * 4)
    stack = open_stack(path)

    def count() -> int:
        return int(counters.read_text().split("rchar: ")[1].split()[0])

    stack[5].compute(scheduler="sync")
    before = count()
    stack[6].compute(scheduler="sync")
    assert count() - before < 2 * 128 * 128 * 4


def test_consecutive_images_of_a_file_are_one_read(
    tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    write_mrc(tmp_path / "a.mrcs", 5)
    write_mrc(tmp_path / "b.mrcs", 5, first=10)
    names = [f"{i}@a.mrcs" for i in (2, 3, 4)] + ["1@b.mrcs", "5@a.mrcs", "2@b.mrcs"]
    (tmp_path / "x.star").write_text("data_\nloop_\n_rlnImageName\n" + "\n".join(names) + "\n")
    stack = open_stack(tmp_path / "x.star")
    assert reads == []
    assert numbers(stack) == [1, 2, 3, 10, 4, 11]
    assert reads == [(1, 5), (0, 2)]


def test_the_graph_is_small(tmp_path: Path) -> None:
    path = tmp_path / "sparse.mrcs"
    n_images = 1_500_000
    with path.open("wb") as file:
        file.write(build_header((n_images, 128, 128), "f4", 1.5))
        file.truncate(1024 + n_images * 128 * 128 * 4)
    stack = open_stack(path)
    assert len(stack.chunks[0]) > 1000
    assert len(cloudpickle.dumps(stack.data.dask)) < 30_000


def test_the_source_of_a_star_is_in_the_graph_once(tmp_path: Path) -> None:
    for i in range(20):
        write_mrc(tmp_path / f"{i}.mrcs", 50)
    rows = "".join(f"{j}@{i}.mrcs\n" for i in range(20) for j in range(1, 51))
    (tmp_path / "x.star").write_text("data_\nloop_\n_rlnImageName\n" + rows)
    stack = open_stack(tmp_path / "x.star", chunks=1)
    graph = dask.optimize(stack.data + 1)[0].dask
    source = stack.data.dask[f"original-{stack.data.name}"]
    size = len(cloudpickle.dumps(dict(graph)))
    assert size < 1000 * 900 + len(pickle.dumps(source))


def test_a_file_that_changed_is_another_source(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrcs", 2)
    name = open_stack(path).data.name
    assert open_stack(path).data.name == name
    os.utime(path, ns=(1, 1))
    assert open_stack(path).data.name != name


BAD: list[tuple[str, type[Exception], str]] = [
    ("absent.mrc", FileNotFoundError, r"no such file\.$"),
    ("god.mrc", FileNotFoundError, r"Did you mean good\.mrc\?"),
    ("nowhere/a.mrc", FileNotFoundError, "There is no folder .*nowhere either"),
    ("absent.zarr", FileNotFoundError, "no such file"),
    ("absent.star", FileNotFoundError, "no such file"),
    ("none*.mrc", FileNotFoundError, "no file fits this pattern"),
    ("empty.mrc", FormatError, r"the file is empty \(0 bytes\)"),
    ("folder.mrc", FormatError, r"it is a folder\. Pass a pattern"),
    ("", FormatError, "suffix must be one of .*or a folder|it is a folder"),
    ("image.jpeg", FormatError, r"the suffix must be one of \.mrc.*\.star, \.zarr"),
]


@pytest.mark.parametrize(("name", "error", "message"), BAD)
def test_bad_paths(tmp_path: Path, name: str, error: type[Exception], message: str) -> None:
    write_mrc(tmp_path / "good.mrc")
    (tmp_path / "empty.mrc").touch()
    (tmp_path / "folder.mrc").mkdir()
    (tmp_path / "image.jpeg").write_bytes(b"picture")
    with pytest.raises(error, match=message) as caught:
        open_stack(str(tmp_path / name))
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value, EmdaskError | FileNotFoundError)


def test_bad_lists_and_parameters(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc")
    with pytest.raises(FileNotFoundError, match="at least one file"):
        open_stack([])
    (tmp_path / "x.star").write_text("data_\nloop_\n_rlnImageName\n1@a.mrc\n")
    with pytest.raises(FormatError, match="one at a time"):
        open_stack([tmp_path / "x.star", path])
    with pytest.raises(ParameterError, match="images must be a slice"):
        open_stack(path, images=3)  # type: ignore[arg-type]
    with pytest.raises(StackError, match="images must select at least one"):
        open_stack(path, images=slice(5, 9))
    with pytest.raises(ParameterError, match="kind must be one of"):
        open_stack(path, kind="dogs")
    with pytest.raises(ParameterError, match="pixel_size_A must be a number"):
        open_stack(path, pixel_size_A=0)
    with pytest.raises(ParameterError, match="chunks"):
        open_stack(path, chunks=0)


def test_every_suffix_has_its_module() -> None:
    import importlib

    for module in files_module.IMAGE_FORMATS.values():
        assert callable(importlib.import_module(module).inspect_file)


def test_through_a_store_and_back(tmp_path: Path) -> None:
    """.mrcs+.star -> .zarr -> .mrcs+.star loses no pixel and no metadata."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, 8, 8)).astype("f4")
    (tmp_path / "a.mrcs").write_bytes(build_header((6, 8, 8), "f4", 9.0) + images.tobytes())
    rows = "".join(
        f"{i}@a.mrcs m{i % 2}.mrc {1 + i % 2} {rng.normal()!r} {i} 00{i} 'two words'\n"
        for i in (3, 1, 2, 6, 5, 4)
    )
    (tmp_path / "a.star").write_text(
        "data_general\n_rlnThing 5\n\n"
        "data_optics\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnImagePixelSize\n"
        "_rlnVoltage\n_rlnBeamTiltX\n1 a 1.5 300 0.25\n2 b 2.5 300 -0.5\n\n"
        "data_particles\nloop_\n_rlnImageName\n_rlnMicrographName\n_rlnOpticsGroup\n"
        "_rlnAngleTilt\n_rlnClassNumber\n_rlnUnknownText\n_rlnWords\n" + rows
    )
    first = open_stack(tmp_path / "a.star").assign_attrs(provenance=[{"step": "x"}])
    save_stack(first, tmp_path / "b.zarr")
    second = open_stack(tmp_path / "b.zarr")
    xr.testing.assert_identical(second.compute(), first.compute())
    save_stack(second, tmp_path / "c.mrcs")
    third = open_stack(tmp_path / "c.star")
    xr.testing.assert_identical(third.compute(), first.compute())
    np.testing.assert_array_equal(third.values, images[[2, 0, 1, 5, 4, 3]])
