"""What every reconstructor keeps; runs on every method found."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize

import emdask
from emdask import lazy
from emdask.errors import ParameterError, StackError, UnknownMethodError
from emdask.method import find_method, list_methods
from emdask.metrics import frc_resolution, fsc
from emdask.phantoms import phantom
from emdask.reconstructors import FAMILY

METHODS = list_methods(FAMILY)
BOX, PIXEL_A = 24, 3.0
TRUTH = phantom(12, radius_A=16, width_A=(3.5, 4.5), seed=2).volume(BOX, PIXEL_A)
CTF = {"defocus_A": (5_000, 9_000), "astigmatism_A": (0, 400)}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def simulate(n_images: int = 300, **options: Any) -> xr.DataArray:
    return emdask.simulate(TRUTH, n_images, **{"snr": None, "shifts_A": 6.0, **options}).images


@pytest.fixture(scope="module")
def images() -> xr.DataArray:
    return simulate().compute()


def exploding(block: np.ndarray) -> np.ndarray:
    if block.size:
        raise AssertionError("building the graph computed a block")
    return block


def test_building_computes_nothing_and_tells_what_comes(method: str, images: xr.DataArray) -> None:
    lazy = images.copy(data=da.from_array(images.values, chunks=(50, -1, -1)))
    lazy = lazy.copy(data=lazy.data.map_blocks(exploding, meta=np.empty((0, 0, 0), np.float32)))
    found = emdask.reconstruct(lazy, method)
    assert {name: v.dims for name, v in found.data_vars.items()} == {
        "volume": ("z", "y", "x"),
        "half_1": ("z", "y", "x"),
        "half_2": ("z", "y", "x"),
        "fsc": ("frequency",),
        "resolution_A": ("threshold",),
    }
    assert isinstance(found.volume.data, da.Array)
    assert found.volume.dtype == np.float32
    assert found.frequency.shape == (BOX // 2,)
    assert abs(found.frequency.values[-1] - 0.5 / PIXEL_A) < 0.02
    for attrs in (found.attrs, found.volume.attrs, found.half_1.attrs):
        assert attrs["pixel_size_A"] == PIXEL_A
        assert attrs["n_images"] == 300
        assert [entry["step"] for entry in attrs["provenance"]] == ["simulate", method]
    done = emdask.reconstruct(images, method).compute()
    for name, variable in found.data_vars.items():
        assert (done[name].shape, done[name].dtype) == (variable.shape, variable.dtype)


def test_the_truth_comes_back(method: str, images: xr.DataArray) -> None:
    found = emdask.reconstruct(images, method).compute()
    correlation = fsc(found.volume, TRUTH)[1].values
    assert correlation[: int(0.8 * BOX / 2)].min() > 0.99
    assert np.linalg.norm(found.volume - TRUTH) < 0.03 * np.linalg.norm(TRUTH)
    assert abs(float(found.volume.sum() / TRUTH.sum()) - 1) < 0.02


@pytest.mark.parametrize("ctf", [None, CTF])
def test_noise_and_ctf_are_dealt_with(method: str, ctf: Any) -> None:
    noisy = simulate(600, snr=0.2, ctf=ctf)
    found = emdask.reconstruct(noisy, method).compute()
    frequency, correlation = fsc(found.volume, TRUTH)
    assert correlation.values[frequency < 1 / 4].min() > 0.9
    # Halves tell the resolution of the whole without the truth, to a shell.
    true = frc_resolution(frequency / PIXEL_A, correlation, threshold=0.5)
    assert 0.1 / PIXEL_A < true < 0.4 / PIXEL_A
    assert abs(1 / float(found.resolution_A[0]) - true) < 1 / (BOX * PIXEL_A)
    assert found.fsc.values[:3].min() > 0.9


def insert_tasks(found: xr.Dataset, method: str) -> set[tuple[int, int]]:
    """Chain and step of each task that adds up images."""
    keys = found.__dask_graph__().keys()
    return {
        key[1:] for key in keys if isinstance(key, tuple) and key[0].startswith(f"{method}-insert")
    }


def test_chunks_do_not_show(
    method: str, images: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums go from task to task, and those of chains are added up."""
    whole = emdask.reconstruct(images, method)
    assert len(insert_tasks(whole, method)) == 1
    expected = whole.compute(scheduler="synchronous")
    monkeypatch.setattr(lazy, "FOLD_BYTES", 1)
    monkeypatch.setattr(lazy, "FOLD_VOLUMES", dict.fromkeys(lazy.FOLD_VOLUMES, 0))
    many, few = {(i, j) for i in range(3) for j in range(3)}, {(0, 0), (1, 0)}
    for chunks, tasks in ((37, many), (150, few)):
        with dask.config.set(scheduler="threads", num_workers=3):
            parts = emdask.reconstruct(images.chunk(image=chunks), method)
            assert insert_tasks(parts, method) == tasks
            found = parts.compute()
        for name in ("volume", "half_1", "half_2"):
            difference = abs(found[name] - expected[name]).max()
            assert difference < 1e-4 * abs(expected[name]).max()


def test_halves_are_those_of_the_stack_or_of_the_numbers(method: str, images: xr.DataArray) -> None:
    half_set = np.random.default_rng(0).integers(1, 3, len(images))
    ours = emdask.reconstruct(images.assign_coords(half_set=("image", half_set)), method)
    by_number = emdask.reconstruct(images, method).compute()
    for found, chosen, other in (
        (ours.compute(), half_set == 2, "half_2"),
        (by_number, images.image_id.values % 2 == 0, "half_1"),
    ):
        alone = emdask.reconstruct(images[chosen], method, half_maps=False).compute()
        difference = np.linalg.norm(found[other] - alone.volume)
        assert difference < 1e-3 * np.linalg.norm(alone.volume)
        assert set(alone.data_vars) == {"volume"}


def test_a_particle_of_some_symmetry_needs_fewer_images(method: str) -> None:
    # On an odd part of the box, about its middle, voxel n // 2.
    inner = TRUTH.values[1:, 1:, 1:]
    symmetric = TRUTH.copy(data=np.zeros_like(TRUTH.values))
    symmetric[1:, 1:, 1:] = sum(np.rot90(inner, k, axes=(1, 2)) for k in range(4)) / 4
    few = emdask.simulate(symmetric, 40, snr=0.3).images.compute()
    found = [emdask.reconstruct(few, method, symmetry=group).compute() for group in ("C1", "C4")]
    without, with_it = (fsc(f.volume, symmetric)[1].values[3:7].mean() for f in found)
    assert with_it > without + 0.1
    turned = np.rot90(found[1].volume.values[1:, 1:, 1:], axes=(1, 2))
    difference = np.linalg.norm(turned - found[1].volume.values[1:, 1:, 1:])
    assert difference < 0.01 * np.linalg.norm(turned)


def test_parameters_are_plain_records(method: str) -> None:
    record = find_method(FAMILY, method)
    params = record.params()
    assert pickle.loads(pickle.dumps(params)) == params
    assert tokenize(params) == tokenize(record.params())
    assert all(field.metadata["meaning"] for field in dataclasses.fields(params))
    with pytest.raises(ParameterError, match="no parameter of this name; got 'sigmaa'"):
        emdask.reconstruct(np.zeros((2, 8, 8), np.float32), method, sigmaa=1)


def test_a_record_does_as_its_name(method: str, images: xr.DataArray) -> None:
    record = find_method(FAMILY, method).params(half_maps=False)
    by_record = emdask.reconstruct(images, record)
    by_name = emdask.reconstruct(images, method, half_maps=False)
    assert by_record.volume.data.name == by_name.volume.data.name
    with pytest.raises(ParameterError, match="into the record"):
        emdask.reconstruct(images, record, symmetry="C2")


def test_what_does_not_fit_is_refused_at_once(method: str, images: xr.DataArray) -> None:
    def refuse(error: type[Exception], match: str, stack: Any = images, **options: Any) -> None:
        with pytest.raises(error, match=match):
            emdask.reconstruct(stack, method, **options)

    bare = images.drop_vars(["rot_deg", "psi_deg"])
    refuse(StackError, "has no rot_deg, psi_deg. Open a .star file", bare)
    refuse(StackError, "pose of each image must be known", images.values)
    refuse(StackError, r"must be square.*\(24, 20\)", images[:, :, :20])
    refuse(StackError, "not a dataset; got .'images'", xr.Dataset({"images": images}))
    unknown = images.copy()
    del unknown.attrs["pixel_size_A"]
    refuse(StackError, "pixel size of the stack must be known", unknown)
    refuse(ParameterError, "symmetry: must be a group", symmetry="Q5")
    lost = images.assign_coords(tilt_deg=images.tilt_deg.where(images.image_id != 7))
    refuse(StackError, "tilt_deg of image 7 must be finite; got nan", lost)
    refuse(StackError, "half_set must be 1 or 2", images.assign_coords(half_set=images.image_id))
    refuse(StackError, "all are of half 1. Pass half_maps=False", images[::2])
    sizes = ("image", np.where(images.image_id < 5, 2.0, 3.0))
    refuse(StackError, "one pixel size", images.assign_coords(pixel_size_A=sizes))
    refuse(ParameterError, "bad_pixels must be one of", bad_pixels="ignore")
    with pytest.raises(UnknownMethodError, match="direct_fourier"):
        emdask.reconstruct(images, "direct_furier")


def test_bad_pixels_are_named_or_replaced(method: str, images: xr.DataArray) -> None:
    spoilt = images.copy(deep=True)
    spoilt[3, 4, 5] = np.nan
    with pytest.raises(StackError, match="image 3 has 1 NaN"):
        emdask.reconstruct(spoilt, method).compute()
    found = emdask.reconstruct(spoilt, method, bad_pixels="replace").compute()
    assert np.linalg.norm(found.volume - TRUTH) < 0.05 * np.linalg.norm(TRUTH)
