"""Weights of networks: what is written comes back, and nothing else passes for them."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize

import emdask
from emdask.errors import FormatError, MissingLibraryError, ParameterError
from emdask.io.weights import Weights, open_weights, save_weights

pytest.importorskip("safetensors")

ABOUT = {"method": "cnn", "licence": "MIT", "seed": "7", "data": "Å, simulated", "a": "b"}


def make_weights(rng: np.random.Generator) -> Weights:
    arrays = {
        "z.kernel": rng.normal(size=(4, 3, 5, 5)).astype(np.float32).transpose(1, 0, 2, 3),
        "a.half": rng.normal(size=(3,)).astype(np.float16),
        "count": np.array(12, np.int64),
        "swapped": np.arange(3, dtype=">f4"),
        "empty": np.zeros((0, 2), np.float32),
    }
    return Weights(arrays, ABOUT)


def test_weights_come_back(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = make_weights(rng)
    again = open_weights(save_weights(weights, tmp_path / "one.safetensors"))
    assert again.about == ABOUT
    assert again.arrays.keys() == weights.arrays.keys()
    for name, array in weights.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
        assert again.arrays[name].dtype.name == array.dtype.name
        assert again.arrays[name].shape == array.shape
        assert again.arrays[name].flags.writeable
    assert again.digest == weights.digest
    assert again.n_bytes == weights.n_bytes


def test_same_weights_are_same_bytes(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = make_weights(rng)
    files = [save_weights(weights, tmp_path / f"{i}.safetensors") for i in range(6)]
    assert len({file.read_bytes() for file in files}) == 1
    backwards = Weights(dict(reversed(weights.arrays.items())), dict(reversed(ABOUT.items())))
    assert save_weights(backwards, files[0], overwrite=True).read_bytes() == files[1].read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {file.name for file in files}


def test_other_programs_read_the_file(rng: np.random.Generator, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = make_weights(rng)
    path = save_weights(weights, tmp_path / "one.safetensors")
    np.testing.assert_array_equal(load_file(path)["z.kernel"], weights.arrays["z.kernel"])
    save_file({"a": np.ones(2)}, tmp_path / "bare.safetensors")
    assert open_weights(tmp_path / "bare.safetensors").about == {}


def test_digest_tells_weights_apart(rng: np.random.Generator) -> None:
    weights = make_weights(rng)
    changed = weights.arrays["z.kernel"].copy()
    changed[0, 0, 0, 0] += 1e-3
    others = [
        Weights({**weights.arrays, "z.kernel": changed}, ABOUT),
        Weights({**weights.arrays, "empty": np.zeros((2, 0), np.float32)}, ABOUT),
        Weights(weights.arrays, {**ABOUT, "seed": "8"}),
    ]
    assert len({weights.digest, *(other.digest for other in others)}) == 4
    copy = pickle.loads(pickle.dumps(weights))
    assert copy.digest == weights.digest
    assert tokenize(copy) == tokenize(weights) != tokenize(others[0])


def test_truncated_files_are_told(rng: np.random.Generator, tmp_path: Path) -> None:
    path = save_weights(make_weights(rng), tmp_path / "one.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    message = f"tells of {len(whole):,} bytes; the file has {len(whole) - 10:,}. It is truncated"
    with pytest.raises(FormatError, match=message):
        open_weights(path)
    for n_bytes in (3, 8, 40):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(FormatError, match="must be a safetensors file"):
            open_weights(path)
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        open_weights(path)


@pytest.mark.parametrize(
    "content", [b"PK\x03\x04" + bytes(100), b"\x02" + bytes(7) + b"{}" + b"more", bytes(64)]
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match="must be a safetensors file"):
        open_weights(path)


def test_types_that_numpy_lacks_are_told(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    path = tmp_path / "brain.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(FormatError, match="NumPy's types"):
        open_weights(path)


def test_targets_are_checked(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = make_weights(rng)
    path = save_weights(weights, tmp_path / "one.safetensors")
    with pytest.raises(FileExistsError, match="exists already"):
        save_weights(weights, path)
    with pytest.raises(ParameterError, match=r"must end in \.safetensors"):
        save_weights(weights, tmp_path / "one.pt")
    with pytest.raises(FileNotFoundError, match="folder does not exist"):
        save_weights(weights, tmp_path / "no" / "one.safetensors")
    with pytest.raises(ParameterError, match="array text must be of a type"):
        save_weights(Weights({"text": np.array(["a"])}), tmp_path / "two.safetensors")
    with pytest.raises(ParameterError, match="about must be text"):
        save_weights(Weights({}, {"seed": 3}), tmp_path / "two.safetensors")  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError, match=r"Did you mean one\.safetensors"):
        open_weights(tmp_path / "ome.safetensors")
    assert [entry.name for entry in tmp_path.iterdir()] == ["one.safetensors"]


def test_models_by_suffix(rng: np.random.Generator, tmp_path: Path) -> None:
    weights = make_weights(rng)
    path = emdask.save_model(weights, tmp_path / "one.safetensors")
    assert emdask.open_model(path).digest == weights.digest
    model = xr.Dataset({"a": ("n", [1.0])}, attrs={"method": "ksvd"})
    with pytest.raises(ParameterError, match=r"must end in \.zarr"):
        emdask.save_model(model, tmp_path / "two.safetensors")
    with pytest.raises(ParameterError, match=r"must end in \.safetensors"):
        emdask.save_model(weights, tmp_path / "two.zarr")


def test_missing_library(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_weights(make_weights(rng), tmp_path / "one.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: open_weights(path), lambda: save_weights(make_weights(rng), path)):
        with pytest.raises(MissingLibraryError, match=r"pip install 'emdask\[torch\]'"):
            call()
