"""What commands share: files to open, workers to start, paths of pictures to check."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import xarray as xr

from emdask.backend import count_cards
from emdask.checks import require, sentence
from emdask.cluster import require_cards
from emdask.config import setting
from emdask.console import connect_quietly
from emdask.io import open_stack
from emdask.io.models import SUFFIX, is_model
from emdask.io.volumes import holds_volume
from emdask.io.weights import SUFFIX as WEIGHTS

PREVIEW_SUFFIXES = (".png", ".pdf", ".svg")
MICROGRAPHS_STAR = "micrographs.star"
# In a picture of a stack.
IMAGES_SHOWN = 16
PATHS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Where the work runs.

    Parameters
    ----------
    n_workers
        Worker processes on this machine; None for one a core, or one a card.
    scheduler
        Address of a running Dask scheduler; "cuda" for the cards of this machine, "local" for its
        cores, "" for what the method and the device ask for.
    """

    n_workers: int | None = None
    scheduler: str = ""

    @contextmanager
    def connect(self, devices: Collection[str], device: str | None) -> Iterator[Any]:
        """Start or find workers; they stop at the end if they were started.

        Parameters
        ----------
        devices
            What there is code for, as ("cpu", "cuda").
        device
            What the user asked for; None takes the setting.

        Yields
        ------
        distributed.Client

        Raises
        ------
        ParameterError, DeviceError
            If cards are asked for and there is no code for them, or none of them.
        """
        device = device or setting("device")
        if self.scheduler == "cuda":
            remedy = "Leave out --scheduler cuda."
            rule = "cuda needs a method with code for cards; emdask methods shows what runs where"
            require("cuda" in devices, "--scheduler", rule, remedy=remedy)
            rule = "cuda does not go with --device cpu"
            require(device != "cpu", "--scheduler", rule, remedy=remedy)
        on_cards = self._on_cards(devices, device)
        target = self.scheduler or ("cuda" if on_cards else "local")
        with connect_quietly(target, n_workers=self.n_workers) as client:
            if device == "cuda":
                # Before any output is begun: what is left of it would stand in the way of the next.
                require_cards(client)
            yield client

    def _on_cards(self, devices: Collection[str], device: str) -> bool:
        """One worker a card, as soon as cards are used: not one a core that all share a card."""
        if device != "auto":
            return device == "cuda"
        able = "cuda" in devices and find_spec("dask_cuda") is not None
        return able and self.n_workers is None and setting("cards") and count_cards() > 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files of images and how they are opened, as `emdask.open_stack` takes them.

    Parameters
    ----------
    paths
        Files or patterns.
    images
        Which images to take, as "0:610"; "" for all.
    kind
        "micrographs" or "particles"; None for what the files are.
    pixel_size_A
        Edge of a pixel in Å; None for what the files say.
    project_folder
        Folder that the paths in a STAR file start from; None to look for it.
    """

    paths: Sequence[str]
    images: str = ""
    kind: str | None = None
    pixel_size_A: float | None = None
    project_folder: str | Path | None = None

    @property
    def is_volume(self) -> bool:
        """Whether it is a volume, where nobody said that it is a stack."""
        return self._may_be_other and holds_volume(self.paths[0])

    @property
    def is_model(self) -> bool:
        """Whether it is what a method has learnt, where nobody said that it is a stack."""
        is_group = self._may_be_other and Path(self.paths[0]).suffix == SUFFIX
        return is_group and is_model(self.paths[0])

    @property
    def is_weights(self) -> bool:
        """Whether it is the weights of a network."""
        return self._may_be_other and Path(self.paths[0]).suffix == WEIGHTS

    @property
    def _may_be_other(self) -> bool:
        asked = self.images or self.kind or self.project_folder
        return len(self.paths) == 1 and not asked

    def open(self) -> xr.DataArray:
        """Return the lazy stack."""
        return open_stack(
            list(self.paths),
            images=parse_slice(self.images),
            kind=self.kind,
            pixel_size_A=self.pixel_size_A,
            project_folder=self.project_folder,
        )


def parse_slice(text: str) -> slice | None:
    """Turn "START:STOP" or "START:STOP:STEP" into a slice; "" into None.

    Examples
    --------
    >>> parse_slice("0:610"), parse_slice("10:")
    (slice(0, 610, None), slice(10, None, None))
    """
    if not text:
        return None
    words = text.split(":")
    ok = len(words) in (2, 3) and all(re.fullmatch(r"-?\d+|", word.strip()) for word in words)
    require(ok, "--images", "images must be START:STOP, as 0:100", text)
    return slice(*(int(word) if word.strip() else None for word in words))


def options_text(source: Source) -> str:
    """Write the options that files were opened with, for the command that comes next.

    Examples
    --------
    >>> options_text(Source(paths=["a.mrc"], pixel_size_A=1.5)), options_text(Source(paths=["a"]))
    (' --pixel-size-A 1.5', '')
    """
    given = {
        "--images": source.images,
        "--kind": source.kind,
        "--pixel-size-A": source.pixel_size_A,
        "--project-folder": source.project_folder,
    }
    words = [word for name, value in given.items() if value for word in (name, str(value))]
    return f" {shlex.join(words)}" if words else ""


def paths_text(paths: Sequence[str]) -> str:
    """Write paths for the shell: as a pattern, where they are all of one kind in a folder.

    Examples
    --------
    >>> paths_text(["a b.mrc", "c.mrc"])
    "'a b.mrc' c.mrc"
    """
    first = Path(paths[0])
    same = sorted(str(path) for path in first.parent.glob(f"*{first.suffix}"))
    if len(paths) == 1 or same != sorted(str(Path(path)) for path in paths):
        return shlex.join(paths) if len(paths) <= PATHS_NAMED else "MICROGRAPHS..."
    folder = "" if first.parent == Path() else f"{shlex.quote(str(first.parent))}/"
    return f"{folder}*{shlex.quote(first.suffix)}"


def check_picture_path(path: Path | None, suffixes: Sequence[str]) -> None:
    """Refuse a picture's path before hours of work, not after.

    Raises
    ------
    ParameterError, FileNotFoundError, PermissionError
        If the ending is unknown, or the folder is absent or read-only.
    """
    if path is None:
        return
    rule = f"the name must end in {' or '.join(suffixes)}"
    require(path.suffix.lower() in suffixes, str(path), rule, path.suffix or None)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(sentence(str(path), "its folder does not exist"))
    if not os.access(folder, os.W_OK):
        raise PermissionError(sentence(str(path), "its folder is read-only"))


def reopen(path: str | Path) -> xr.DataArray:
    """Open what `emdask.save_stack` wrote; a folder of micrographs by its STAR file."""
    path = Path(path)
    return open_stack(path / MICROGRAPHS_STAR if path.is_dir() and path.suffix != ".zarr" else path)
