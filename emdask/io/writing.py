"""Save a stack: all of it is made in ``PATH.partial`` and takes its name at the end.

What lies in ``PATH.partial`` while it is unfinished::

    draft/      the output before its metadata are whole
    job.json    what is being made: shape, type, chunks, a digest of the metadata, the graph's name
    lock        held by the process at work
    content-*/  the output, and what its format needs to go on after a crash
    old/        an output that is being replaced
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.checks import sentence
from emdask.errors import ParameterError
from emdask.io.mrc_output import MICROGRAPHS, MRC, MRCS
from emdask.io.output import Options, Output, replace_file
from emdask.io.zarr import plain_attributes
from emdask.io.zarr_output import ZARR
from emdask.lazy import write_images
from emdask.stack import as_stack

OUTPUTS = {".zarr": ZARR, ".mrcs": MRCS, ".star": MRCS, ".mrc": MRC, "": MICROGRAPHS}
CONTENT, DRAFT, JOB, LOCK = "content", "draft", "job.json", "lock"
FULL = (errno.ENOSPC, errno.EDQUOT)
GO_ON = "resume=True (--resume)"
REPLACE = "overwrite=True (--overwrite)"

Progress = Callable[[int, int], None]


def save_stack(
    stack: Any,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    dtype: npt.DTypeLike | None = None,
    compression: str = "auto",
    on_progress: Progress | None = None,
) -> Path:
    """Compute a stack and save it, on the active Dask client or else on local threads.

    The output is made in ``PATH.partial`` beside it and takes its name when it is whole.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x), or Dask or NumPy array of 2 or 3 dims
        Images; a stack's coordinates and attributes are saved too.
    path
        ``NAME.zarr``: a Zarr store whose shards are the stack's chunks. ``NAME.mrcs`` or
        ``NAME.star``: both of them. ``NAME.mrc``: one micrograph. A name without suffix: a folder
        with one ``.mrc`` for each micrograph, named after it, and ``micrographs.star``. MRC stores
        float64 as float32 and uint8 as uint16.
    resume
        Go on with what an interrupted call left, whose finished chunks are kept; the result is the
        same to the byte. Where ``path`` is whole and holds this very stack, it is left as it is.
    overwrite
        Replace an existing output, once the new one is whole, and give up an unfinished one.
    dtype
        Type of the pixels in the file; None keeps the stack's.
    compression
        Of a Zarr store: "none", "lz4", "zstd", or "auto": none for real numbers, lz4 for integers.
    on_progress
        Called with (images written, images in all) as chunks finish.

    Returns
    -------
    pathlib.Path
        ``path``.

    Raises
    ------
    ParameterError
        If the suffix, ``dtype`` or ``compression`` cannot be.
    FileExistsError
        If there is an output, or an unfinished one, and neither ``resume`` nor ``overwrite`` says
        what to do with it; it is left untouched.
    OSError
        If the folder cannot be written or is full. What is written stays for ``resume``.

    Examples
    --------
    >>> folder = tempfile.mkdtemp()
    >>> save_stack(np.ones((4, 8, 8), "f4"), folder + "/ones.zarr").name
    'ones.zarr'
    """
    output, main = _find_output(path)
    source = output.arrange(as_stack(stack))
    options = Options(dtype=None if dtype is None else np.dtype(dtype), compression=compression)
    partial = main.with_name(f"{main.name}.partial")
    target = output.plan(source, partial / CONTENT, main.name, options)
    _check_parent(main)
    job = _describe_job(source, target, output)
    begun = _find_begun(partial, job, resume=resume, overwrite=overwrite)
    names = output.products(main.name)
    if begun and not (_content(partial) / names[-1]).exists():
        _publish(partial, main.parent, names)
        return Path(path)
    if not begun and resume and main.exists():
        found = output.plan(source, main.parent, main.name, options)
        if _is_whole(output, source, found, options):
            _clear(partial)
            return Path(path)
    _refuse_existing(partial, main.parent, names, overwrite=overwrite, resume=resume, begun=begun)
    _check_space(main, 0 if begun else target.n_bytes)
    with _lock(partial), _explain_full(partial):
        if not begun:
            _begin(partial, output, source, main.name, options, job)
        target = output.plan(source, _content(partial), main.name, options)
        _write(partial, output, source, target, job, on_progress)
        _publish(partial, main.parent, names)
    return Path(path)


def check_target(
    stack: Any,
    path: str | os.PathLike[str],
    *,
    resume: bool = False,
    overwrite: bool = False,
    dtype: npt.DTypeLike | None = None,
    compression: str = "auto",
) -> None:
    """Refuse at once what `save_stack` would refuse; nothing is written or computed.

    Parameters
    ----------
    stack, path, resume, overwrite, dtype, compression
        As of `save_stack`.

    Raises
    ------
    ParameterError, FileExistsError, OSError
        As `save_stack` does.

    Examples
    --------
    >>> check_target(np.ones((4, 8, 8), "f4"), "ones.jpg")
    Traceback (most recent call last):
    emdask.errors.ParameterError: ones.jpg: the suffix must be one of ...
    """
    output, main = _find_output(path)
    source = output.arrange(as_stack(stack))
    options = Options(dtype=None if dtype is None else np.dtype(dtype), compression=compression)
    partial = main.with_name(f"{main.name}.partial")
    target = output.plan(source, partial / CONTENT, main.name, options)
    _check_parent(main)
    begun = partial.exists() and _find_begun(
        partial, _describe_job(source, target, output), resume=resume, overwrite=overwrite
    )
    # Whether an output is the one that ``resume`` asks for, its pixels must tell.
    if not (resume and main.exists()):
        names = output.products(main.name)
        _refuse_existing(
            partial, main.parent, names, overwrite=overwrite, resume=resume, begun=begun
        )
    _check_space(main, 0 if begun else target.n_bytes)


def _find_output(path: str | os.PathLike[str]) -> tuple[Output, Path]:
    """Return the format and the absolute path of the file, or folder, of images."""
    absolute = Path(os.path.abspath(path))
    suffix = absolute.suffix.lower()
    if os.fspath(path).endswith(os.sep) and suffix != ".zarr":
        return MICROGRAPHS, absolute
    if suffix not in OUTPUTS:
        known = ", ".join(name for name in OUTPUTS if name)
        rule = f"the suffix must be one of {known}, or none for a folder of micrographs"
        raise ParameterError(sentence(str(path), rule, suffix or None))
    main = absolute.with_suffix(".mrcs") if suffix == ".star" else absolute
    return OUTPUTS[suffix], main


def _check_parent(main: Path) -> None:
    parent = main.parent
    if not parent.is_dir():
        rule = f"there is no folder {parent}"
        raise FileNotFoundError(sentence(str(main), rule, remedy="Create it first."))
    if not os.access(parent, os.W_OK | os.X_OK):
        rule = f"the folder {parent} is read-only"
        remedy = "Choose another one, or change its permissions."
        raise PermissionError(sentence(str(main), rule, remedy=remedy))


def _check_space(main: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(main.parent).free
    if free < n_bytes:
        rule = f"needs {n_bytes:,} bytes; its file system has {free:,} free"
        raise _full(sentence(str(main), rule, remedy="Choose another folder."))


def _full(text: str) -> OSError:
    error = OSError(text)
    error.errno = errno.ENOSPC
    return error


@contextlib.contextmanager
def _explain_full(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        remedy = f"What is finished is kept: make room and go on with {GO_ON}."
        raise _full(sentence(str(partial), "the file system is full", remedy=remedy)) from error


def _describe_job(stack: xr.DataArray, target: Any, output: Output) -> dict[str, Any]:
    """Return what two calls must have in common to write one output."""
    runs = [[size, len(list(group))] for size, group in groupby(stack.data.chunks[0])]
    return {
        "format": output.task,
        "shape": list(stack.shape),
        "dtype": str(target.dtype),
        "chunks": runs,
        "compression": target.compression,
        "metadata": _digest(stack),
        "graph": str(stack.data.name),
    }


def _digest(stack: xr.DataArray) -> str:
    """Return a digest of all coordinates and attributes."""
    digest = hashlib.sha256(json.dumps(plain_attributes(stack.attrs), sort_keys=True).encode())
    for name in sorted(stack.coords, key=str):
        coordinate = stack.coords[name]
        values = np.asarray(coordinate.values)
        text = values.dtype.kind in "UTO"
        labels = [str(name), coordinate.dims, "text" if text else values.dtype.str]
        digest.update(json.dumps([labels, plain_attributes(coordinate.attrs)]).encode())
        digest.update("\0".join(map(str, values.ravel())).encode() if text else values.tobytes())
    return digest.hexdigest()


def _find_begun(partial: Path, job: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
    """Say whether there is an unfinished output to go on with; refuse one that is another's."""
    if not partial.exists():
        return False
    if not (partial / JOB).exists():
        if any(path.name not in (LOCK, DRAFT) for path in partial.iterdir()):
            rule = "this name is needed for an unfinished output, and holds something else"
            raise FileExistsError(sentence(str(partial), rule, remedy="Move it away."))
        return False
    if not _content(partial).exists() or (overwrite and not resume):
        return False
    if not resume:
        rule = "an unfinished output is here"
        remedy = f"Go on with it by {GO_ON}, or start anew by {REPLACE}."
        raise FileExistsError(sentence(str(partial), rule, remedy=remedy))
    begun = json.loads((partial / JOB).read_text())
    different = [key for key in job if key != "graph" and job[key] != begun.get(key)]
    if different:
        raise _another(partial, ", ".join(different))
    return True


def _content(partial: Path) -> Path:
    """Return the folder of the job in ``job.json``.

    Every job has its own: a task of another job that was interrupted may still run on a cluster,
    and must not find a place for its pixels here.
    """
    digest = hashlib.sha256((partial / JOB).read_bytes()).hexdigest()
    return partial / f"{CONTENT}-{digest[:12]}"


def _another(partial: Path, what: str) -> FileExistsError:
    rule = f"the unfinished output was begun for another stack; different: {what}"
    remedy = f"Call it with what began it, or start anew by {REPLACE} without {GO_ON}."
    return FileExistsError(sentence(str(partial), rule, remedy=remedy))


def _refuse_existing(
    partial: Path, folder: Path, names: Sequence[str], *, overwrite: bool, resume: bool, begun: bool
) -> None:
    """Raise unless the names are free, or are to be replaced, or are ours."""
    for name in names:
        moved = begun and not (_content(partial) / name).exists()
        if overwrite or moved or not _is_there(folder / name):
            continue
        rule = "already exists"
        if begun:
            rule += f", and an unfinished output waits in {partial.name}"
            remedy = f"Finish that and replace this by {GO_ON} with {REPLACE}."
        elif resume:
            rule += ", and is not what this call would write"
            remedy = f"Replace it by {REPLACE}, or choose another name."
        else:
            remedy = f"Replace it by {REPLACE}, or choose another name."
        raise FileExistsError(sentence(str(folder / name), rule, remedy=remedy))


def _is_there(path: Path) -> bool:
    """Say whether something would be lost; an empty folder may be filled."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def _is_whole(output: Output, stack: xr.DataArray, found: Any, options: Options) -> bool:
    """Say whether an output is what this call would write: labels, and the pixels of one chunk."""
    with tempfile.TemporaryDirectory() as folder:
        made = output.plan(stack, Path(folder), Path(found.path).name, options)
        output.create(made, stack)
        if not output.is_like(made, found):
            return False
    return output.holds(found, stack.data.blocks[0].compute(), 0)


@contextlib.contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """Keep other processes out; the system takes the lock back however this one ends."""
    partial.mkdir(exist_ok=True)
    with open(partial / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "another process is writing this output"
            raise FileExistsError(sentence(str(partial), rule, remedy="Wait for it.")) from error
        except OSError:
            pass  # a file system without locks
        yield


def _begin(
    partial: Path,
    output: Output,
    stack: xr.DataArray,
    name: str,
    options: Options,
    job: dict[str, Any],
) -> None:
    """Write all but the pixels; ``content`` is there only when that is whole."""
    # The description last: without it, what is left here after a crash would be nobody's.
    for path in sorted(partial.iterdir(), key=lambda path: path.name == JOB):
        if path.name != LOCK:
            _remove(path)
    draft = partial / DRAFT
    draft.mkdir()
    replace_file(partial / JOB, [json.dumps(job, indent=1).encode()], draft)
    output.create(output.plan(stack, draft, name, options), stack)
    _rename(draft, _content(partial))


def _write(
    partial: Path,
    output: Output,
    stack: xr.DataArray,
    target: Any,
    job: dict[str, Any],
    on_progress: Progress | None,
) -> None:
    sizes = stack.data.chunks[0]
    starts = [0, *accumulate(sizes[:-1])]
    _remove(_content(partial) / "drafts")
    done = output.find_done(target, starts, sizes)
    begun = json.loads((partial / JOB).read_text())
    if done and begun["graph"] != job["graph"]:
        # Graphs of equal pixels may have other names in another process: the pixels decide.
        i = min(done)
        if not output.holds(target, stack.data.blocks[i].compute(), starts[i]):
            raise _another(partial, f"the pixels of chunk {i}")
    write_images(
        stack.data, output.write, target, name=output.task, done=done, on_progress=on_progress
    )
    output.finish(target, starts)


def _publish(partial: Path, folder: Path, names: Sequence[str]) -> None:
    """Give the output its name, the images last, and take ``partial`` away."""
    content = _content(partial)
    made = [content / name for name in names]
    replaced = folder / names[-1]
    if made[-1].exists() and replaced.exists():
        old = partial / "old"
        _remove(old)
        old.mkdir()
        _rename(replaced, old / replaced.name)
    for file in made:
        if file.exists():
            _rename(file, folder / file.name)
    _clear(partial)


def _clear(partial: Path) -> None:
    """Remove an output's workshop; ``job.json`` says what it is until nothing else is left."""
    if partial.exists():
        for path in partial.iterdir():
            if path.name != JOB:
                _remove(path)
        _remove(partial / JOB)
        partial.rmdir()


def _rename(old: Path, new: Path) -> None:
    os.replace(old, new)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
