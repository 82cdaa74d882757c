"""Weights of a network: named arrays and what is known of them, kept as safetensors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from emdask.checks import require, sentence
from emdask.errors import FormatError, MissingLibraryError
from emdask.io.files import check_file
from emdask.io.output import remove_path, replace_path

SUFFIX = ".safetensors"
# What safetensors keeps of NumPy's types.
BITS = (8, 16, 32, 64)
DTYPES = (
    *("float64", "float32", "float16", "bool", "complex64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in BITS),
)
# The header's length comes first, in so many bytes; what follows it starts at a multiple of them.
WORD_BYTES = 8


@dataclass(frozen=True, eq=False)
class Weights:
    """Weights of a network.

    Parameters
    ----------
    arrays
        Name of each array, as of the layer that it belongs to, to its values.
    about
        What is known of them: method, data, seed, parameters, licence; all text.

    Examples
    --------
    >>> weights = Weights({"first.bias": np.zeros(3, np.float32)}, {"method": "cnn"})
    >>> weights.digest[:8], weights.n_bytes
    ('24762840', 12)
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    about: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Text of 64 digits that tells these weights from any others, on every machine."""
        total = hashlib.sha256(json.dumps(dict(self.about), sort_keys=True).encode())
        for name in sorted(self.arrays):
            array = np.asarray(self.arrays[name], order="C")
            array = array.astype(array.dtype.newbyteorder("<"), copy=False)
            total.update(json.dumps([name, array.dtype.str, array.shape]).encode())
            total.update(array.tobytes())
        return total.hexdigest()

    @property
    def n_bytes(self) -> int:
        """Bytes that the arrays take."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    def __dask_tokenize__(self) -> str:
        return self.digest


def save_weights(weights: Weights, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write weights of a network; the same weights are the same bytes.

    Parameters
    ----------
    weights
        The weights; each entry of ``about`` becomes one of the file's metadata.
    path
        Target; its name ends in ``.safetensors``.
    overwrite
        Whether weights of that name give way.

    Returns
    -------
    pathlib.Path

    Raises
    ------
    ParameterError
        If the name ends otherwise, or an array is of a type that the format lacks.
    FileExistsError, FileNotFoundError
        If there is something of that name, or its folder is not there.
    MissingLibraryError
        If safetensors is not installed.

    Examples
    --------
    >>> import tempfile
    >>> weights = Weights({"bias": np.arange(2.0)}, {"method": "cnn"})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = open_weights(save_weights(weights, f"{folder}/small.safetensors"))
    >>> again.arrays["bias"], again.about
    (array([0., 1.]), {'method': 'cnn'})
    """
    path = Path(path)
    library = _import_safetensors(path)
    check_weights_target(path, overwrite=overwrite)
    rule = "about must be text, names and values"
    is_text = all(isinstance(word, str) for pair in weights.about.items() for word in pair)
    require(is_text, "save_weights", rule, dict(weights.about))
    for name, array in weights.arrays.items():
        rule = f"array {name} must be of a type that safetensors has"
        require(np.asarray(array).dtype.name in DTYPES, "save_weights", rule, str(array.dtype))
    arrays = {name: np.asarray(weights.arrays[name], order="C") for name in sorted(weights.arrays)}
    draft = path.with_name(f"{path.name}.partial")
    remove_path(draft)
    draft.write_bytes(_sort_header(library.numpy.save(arrays, metadata=dict(weights.about))))
    replace_path(draft, path)
    return path


def _sort_header(content: bytes) -> bytes:
    """Put the metadata in order: the library writes them in another one every time."""
    end = WORD_BYTES + int.from_bytes(content[:WORD_BYTES], "little")
    header = json.loads(content[WORD_BYTES:end])
    metadata = header.pop("__metadata__", {})
    header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % WORD_BYTES)
    return len(text).to_bytes(WORD_BYTES, "little") + text + content[end:]


def open_weights(path: str | os.PathLike[str]) -> Weights:
    """Read weights that `save_weights`, or another program, wrote.

    Parameters
    ----------
    path
        The file, safetensors whatever its name.

    Returns
    -------
    Weights
        In memory.

    Raises
    ------
    FileNotFoundError, FormatError
        If there is no such file, or it is truncated or no safetensors file.
    MissingLibraryError
        If safetensors is not installed.

    Examples
    --------
    >>> open_weights("no/such.safetensors")
    Traceback (most recent call last):
    FileNotFoundError: no/such.safetensors: no such file. There is no folder no either.
    """
    name = os.path.expanduser(os.fspath(path))
    check_file(name)
    library = _import_safetensors(name)
    try:
        with library.safe_open(name, framework="np") as file:
            about = file.metadata() or {}
            arrays = {key: np.array(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except (library.SafetensorError, TypeError, KeyError, AttributeError) as error:
        _check_whole(name)
        remedy = "Weights are written by save_weights() or emdask train-picker."
        rule = f"must be a safetensors file of NumPy's types ({error})"
        raise FormatError(sentence(name, rule, remedy=remedy)) from error
    return Weights(arrays, about)


def _check_whole(path: str) -> None:
    """Raise `FormatError` where a header is whole, and what it tells of is not."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        n_header = int.from_bytes(file.read(WORD_BYTES), "little")
        try:
            header = json.loads(file.read(min(n_header, size)))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[0] != "_"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return
    expected = WORD_BYTES + n_header + max(ends, default=0)
    if size < expected:
        rule = f"its header tells of {expected:,} bytes; the file has {size:,}"
        raise FormatError(f"{path}: {rule}. It is truncated; copy it again.")


def check_weights_target(path: str | Path, *, overwrite: bool = False) -> None:
    """Refuse, before hours of work, a target that `save_weights` would refuse after them.

    Raises
    ------
    ParameterError, FileExistsError, FileNotFoundError
    """
    path = Path(path)
    require(
        path.suffix == SUFFIX, str(path), f"the name of weights must end in {SUFFIX}", path.name
    )
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = "Name another one, or pass overwrite=True (--overwrite)."
        raise FileExistsError(sentence(str(path), "exists already", remedy=remedy))


def _import_safetensors(path: str | Path) -> ModuleType:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        rule = "safetensors, which weights are kept in, cannot be imported"
        remedy = "pip install 'emdask[torch]' brings it."
        raise MissingLibraryError(sentence(str(path), rule, str(error), remedy)) from error
    return safetensors
