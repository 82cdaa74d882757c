"""Laziness lives here: the only file that calls ``map_blocks``, ``map_overlap`` and ``delayed``.

Building a graph never reads a pixel, and each function below takes plain block functions that live
at module level, so that a graph is small to send. Pixels flow ``read_images -> map_images ->
write_images`` a chunk at a time; the scheduler frees a chunk as soon as it is written.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask import threaded
from dask._task_spec import Alias, DataNode, List, Task, TaskRef
from dask.array.optimization import optimize
from dask.base import get_scheduler, tokenize
from dask.callbacks import Callback
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.system import CPU_COUNT
from dask.utils import key_split

from emdask.backend import array_namespace, on_device, one_blas_thread, resolve_device
from emdask.checks import sentence
from emdask.errors import EmdaskError, StackError
from emdask.kernels.ctf import Optics
from emdask.kernels.reductions import over_pixels
from emdask.method import Classifier, Learn, Method, Reconstructor, learns
from emdask.placement import on_cards, requests

Images = npt.NDArray[Any]
# What to do about NaN and infinite pixels.
BAD_PIXELS = ("raise", "replace")
COMBINE_AT_ONCE = 8
# A task that adds images to large sums takes at least so many; and where all threads have a task,
# as much as so many volumes of their edge: the sums, some ten volumes, are copied once a task, and
# a card adds up the images faster than they are.
FOLD_BYTES = 64 * 2**20
FOLD_VOLUMES = {"cpu": 2, "auto": 2, "cuda": 4}
WRITES_AT_ONCE = 20_000
LARGE_GRAPH = "4 GiB"
# Of a table: 15 numbers each are 4 MiB.
ROWS_AT_ONCE = 1 << 16


def read_images(
    read: Callable[[Any, int, int], Images],
    source: Any,
    *,
    shape: tuple[int, int, int],
    dtype: npt.DTypeLike,
    chunk: int,
    name: str,
) -> da.Array:
    """Make a lazy array whose blocks read themselves.

    Parameters
    ----------
    read
        Module-level function ``(source, start, stop) -> images start..stop``, shape (stop - start,
        h, w).
    source
        Small picklable record: paths, offsets; stored in the graph once.
    shape
        (n, h, w).
    dtype
        Type of the pixels that ``read`` returns.
    chunk
        Images a block.
    name
        Readable name of the tasks, as "read-mrc".

    Returns
    -------
    dask.array.Array, shape (n, h, w)

    Examples
    --------
    >>> def ramp(source, start, stop):
    ...     return np.arange(start, stop, dtype="f4")[:, None, None] * np.ones((1, 2, 2), "f4")
    >>> stack = read_images(ramp, None, shape=(5, 2, 2), dtype="f4", chunk=2, name="ramp")
    >>> float(stack[3, 0, 0].compute())
    3.0
    """
    source_array = _ImagesOnDisk(read, source, shape, np.dtype(dtype))
    sizes = _chunk_sizes(shape[0], chunk)
    return da.from_array(
        source_array,
        chunks=(sizes, shape[1:2], shape[2:3]),
        name=f"{name}-{tokenize(read, source, shape, dtype, chunk)}",
        asarray=False,
        meta=np.empty((0, 0, 0), dtype),
    )


@dataclass(frozen=True)
class _ImagesOnDisk:
    """What `dask.array.from_array` slices.

    Dask merges a selection that follows into the one that makes a block, so that ``stack[5]`` reads
    one image and not the chunk around it; ``map_blocks`` would always read the chunk. The record is
    in the graph once, however many blocks there are.
    """

    read: Callable[[Any, int, int], Images]
    source: Any
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __getitem__(self, index: tuple[int | slice, ...]) -> Images:
        which, *within = index
        if not isinstance(which, slice):
            return self.read(self.source, int(which), int(which) + 1)[0, *within]
        start, stop, step = which.indices(self.shape[0])
        if step == 1:
            return self.read(self.source, start, max(start, stop))[:, *within]
        numbers = range(start, stop, step)
        images = [self.read(self.source, i, i + 1)[0, *within] for i in numbers]
        return np.stack(images)


def _chunk_sizes(n_images: int, chunk: int) -> tuple[int, ...]:
    full, rest = divmod(n_images, chunk)
    return (chunk,) * full + ((rest,) if rest else ())


def map_images(
    images: da.Array,
    method: Method,
    params: Any,
    *,
    name: str,
    device: str,
    model: Any = None,
    optics: Optics | None = None,
    bad_pixels: str = "raise",
) -> da.Array:
    """Apply a method to every block of whole images.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    method, params
        The record and its parameters.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda"; resolved on the worker.
    model
        What the method learnt, or a Delayed of it, or the weights of its network; None where it
        needs none.
    optics
        Of all images; a block gets its part of it. None where it is not known or not asked for.
    bad_pixels
        "raise" names the first image with NaN or infinite pixels; "replace" puts the mean of the
        image's finite pixels there.

    Returns
    -------
    dask.array.Array, shape (n, h, w), float32
    """
    meta = images._meta.astype(np.float32)
    token = tokenize(images.name, method, params, device, model, optics, bad_pixels)
    extra = {} if model is None else {"model": _send_once(model, name)}
    varying, tables = _split_optics(optics, images.chunks[0])
    with on_cards(device):
        return da.map_blocks(
            _apply_block,
            images,
            *tables,
            dtype=np.float32,
            chunks=images.chunks,
            meta=meta,
            name=f"{name}-{token}",
            method=method,
            params=params,
            device=device,
            bad_pixels=bad_pixels,
            starts=_starts(images),
            optics=optics and replace(optics, **dict.fromkeys(varying, 0.0)),
            varying=varying,
            **extra,
        )


def _send_once(model: Any, name: str) -> Delayed:
    """Give a model a key of its own in the graph: a worker gets it once, not with each task."""
    if isinstance(model, Delayed):
        return model
    return delayed(model, name=f"{name}-model-{tokenize(model)}", traverse=False)


def _split_optics(
    optics: Optics | None, sizes: tuple[int, ...]
) -> tuple[tuple[str, ...], list[da.Array]]:
    """Names of what differs from image to image, and its values in chunks as the images are."""
    values = optics.varying() if optics is not None else {}
    if not values:
        return (), []
    table = np.stack([*values.values()], axis=1)[:, None, :]
    return tuple(values), [da.from_array(table, chunks=(sizes, -1, -1))]


def _apply_block(
    images: Images,
    *tables: Images,
    method: Method,
    params: Any,
    device: str,
    bad_pixels: str,
    starts: npt.NDArray[np.int64],
    optics: Optics | None,
    varying: tuple[str, ...],
    block_id: tuple[int, ...],
    model: Any = None,
) -> Images:
    images = clean_pixels(images, int(starts[block_id[0]]), bad_pixels)
    takes_model = method.learn is not None or method.load is not None
    arguments = (params, model) if takes_model else (params,)
    if optics is not None:
        values = tables[0][:, 0].T if varying else ()
        optics = replace(optics, **dict(zip(varying, values, strict=True)))
    how: dict[str, Any] = {"device": device, "takes_optics": method.takes_optics}
    return _run_block(method.apply, images, *arguments, optics=optics, **how)


def _run_block(
    functions: Mapping[str, Callable[..., Images]],
    images: Images,
    *arguments: Any,
    device: str,
    optics: Optics | None,
    takes_optics: bool,
) -> Images:
    where = resolve_device(device, functions)
    function, along = functions[where], {}
    if optics is not None:
        along = {"optics": optics}
    elif takes_optics:
        function = partial(function, optics=None)
    with one_blas_thread:
        return on_device(function, images, *arguments, device=where, along=along)  # type: ignore[no-any-return]


def _starts(images: da.Array) -> npt.NDArray[np.int64]:
    """Return the position of each chunk's first image."""
    return np.cumsum([0, *images.chunks[0][:-1]])


def clean_pixels(images: Images, first: int, bad_pixels: str) -> Images:
    """Refuse or replace NaN and infinite pixels; images whose pixels are integers pass.

    Parameters
    ----------
    images : array, shape (n, h, w)
        NumPy or CuPy.
    first
        Number of the first of them, for the message.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    array, shape (n, h, w)
        The very images where nothing is wrong with them.

    Raises
    ------
    StackError
        Of the first image with such pixels, if they are to raise.

    Examples
    --------
    >>> clean_pixels(np.array([[[1.0, np.nan, 3.0]]]), 0, "replace").tolist()
    [[[1.0, 2.0, 3.0]]]
    """
    if images.dtype.kind != "f":
        return images
    xp = array_namespace(images)
    # A sum is finite only if every term is: one pass and no mask in the usual case.
    sums = over_pixels("sum", images, np.float64)
    if bool(xp.isfinite(sums).all()):
        return images
    finite = xp.isfinite(images)
    bad = [int(i) for i in xp.flatnonzero(~over_pixels("all", finite))]
    if bad and bad_pixels == "raise":
        count = int((~finite[bad[0]]).sum())
        rule = f"image {first + bad[0]} has {count} NaN or infinite pixels"
        remedy = 'Leave the image out, or pass bad_pixels="replace" (--bad-pixels replace).'
        raise StackError(sentence("stack", rule, remedy=remedy))
    counts = xp.maximum(over_pixels("sum", finite), 1)
    means = over_pixels("sum", xp.where(finite, images, 0), np.float64) / counts
    return xp.where(finite, images, means[:, None, None]).astype(images.dtype)  # type: ignore[no-any-return]


def map_parts(
    images: da.Array,
    image_of: npt.NDArray[np.int64],
    places: Images,
    cut: Callable[..., Images],
    params: Any,
    *,
    shape: tuple[int, int],
    name: str,
    bad_pixels: str,
) -> da.Array:
    """Make images out of parts of images, as particles out of micrographs.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk; each that has parts is read once, others are not.
    image_of : int64 array, shape (m,)
        Position of the image that each part is of, rising.
    places : array, shape (m, k)
        What tells where each part is.
    cut
        ``(image, places, params) -> parts``: a module-level function of one image (h, w) and the
        places in it.
    params
        Its parameters.
    shape : (h, w)
        Size of a part.
    name
        Readable name of the tasks.
    bad_pixels
        As of `map_images`, for images that have parts.

    Returns
    -------
    dask.array.Array, shape (m, *shape), float32
        The parts of images that lie side by side in a chunk are a chunk: an image without parts
        between them is where the next begins.

    Examples
    --------
    >>> def corner(image, places, params):
    ...     return np.stack([image[y : y + 1, x : x + 1] for x, y in places])
    >>> images = da.from_array(np.arange(12.0).reshape(3, 2, 2), chunks=(1, 2, 2))
    >>> where = {"shape": (1, 1), "name": "corners", "bad_pixels": "raise"}
    >>> parts = map_parts(images, np.array([0, 2]), np.array([[1, 0], [0, 1]]), corner, {}, **where)
    >>> parts.compute().ravel().tolist()
    [1.0, 10.0]
    """
    used, counts = np.unique(image_of, return_counts=True)
    source = take_images(images, used)
    ends = np.cumsum(source.chunks[0])
    sizes = tuple(int(part.sum()) for part in np.split(counts, ends[:-1]))
    table = np.column_stack([image_of, places])[:, None, :]
    token = tokenize(source.name, image_of, places, cut, params, shape, bad_pixels)
    return da.map_blocks(
        _cut_block,
        source,
        da.from_array(table, chunks=(sizes, -1, -1)),
        dtype=np.float32,
        chunks=(sizes, shape[:1], shape[1:]),
        meta=images._meta.astype(np.float32),
        name=f"{name}-{token}",
        cut=cut,
        params=params,
        shape=shape,
        bad_pixels=bad_pixels,
    )


def take_images(images: da.Array, used: npt.NDArray[np.int64]) -> da.Array:
    """Take images by their positions, rising, so that no other is read.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    used : int64 array, shape (m,)
        Positions, rising.

    Returns
    -------
    dask.array.Array, shape (m, h, w)

    Examples
    --------
    >>> images = da.from_array(np.arange(4.0).reshape(4, 1, 1), chunks=(2, 1, 1))
    >>> take_images(images, np.array([0, 3])).compute().ravel().tolist()
    [0.0, 3.0]
    """
    if len(used) == images.shape[0]:
        return images
    if max(images.chunks[0]) == 1:
        return images.blocks[used]
    # Slices, since what is made of them by reading is merged with it; a list of positions is not.
    runs = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    return da.concatenate([images[int(run[0]) : int(run[-1]) + 1] for run in runs])


def _cut_block(
    images: Images,
    table: Images,
    *,
    cut: Callable[..., Images],
    params: Any,
    shape: tuple[int, int],
    bad_pixels: str,
) -> Images:
    numbers, starts = np.unique(table[:, 0, 0], return_index=True)
    parts: Images = array_namespace(images).empty((len(table), *shape), np.float32)
    ends = [*starts[1:], len(table)]
    for i, (number, start, end) in enumerate(zip(numbers, starts, ends, strict=True)):
        image = clean_pixels(images[i : i + 1], int(number), bad_pixels)[0]
        with one_blas_thread:
            parts[start:end] = cut(image, table[start:end, 0, 1:], params)
    return parts


def map_tiles(
    images: da.Array, method: Method, params: Any, *, tile_px: int, name: str, device: str
) -> da.Array:
    """Apply a method to overlapping tiles of images too large for one block.

    The tiles overlap by the method's halo and the margins are trimmed, so the result is that of
    whole images where the method is local. Each tile is a task of its own: for images of many
    thousand pixels only.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Images.
    method, params
        The record, whose ``halo`` must be given, and its parameters.
    tile_px
        Edge of a tile without its margins; at least the halo.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda".

    Returns
    -------
    dask.array.Array, shape (n, h, w), float32
        In chunks of one image and one tile.

    Raises
    ------
    StackError
        If the method has no halo: its answer depends on the whole image.
    """
    if method.halo is None:
        raise StackError(sentence(name, "needs whole images and cannot work on tiles"))
    halo = method.halo(params)
    tiles = images.rechunk({0: 1, 1: max(tile_px, halo), 2: max(tile_px, halo)})
    with on_cards(device):
        return da.map_overlap(
            _apply_tile,
            tiles,
            depth={0: 0, 1: halo, 2: halo},
            boundary="none",
            dtype=np.float32,
            meta=images._meta.astype(np.float32),
            name=f"{name}-{tokenize(images.name, method, params, tile_px, device)}",
            method=method,
            params=params,
            device=device,
        )


def _apply_tile(images: Images, *, method: Method, params: Any, device: str) -> Images:
    where = resolve_device(device, method.apply)
    with one_blas_thread:
        return on_device(method.apply[where], images, params, device=where)  # type: ignore[no-any-return]


def map_signature(function: Callable[..., Any], signature: str, *arrays: Any, **sizes: int) -> Any:
    """Apply a function of plain arrays to the last axes of arrays, lazily if one is lazy.

    Parameters
    ----------
    function
        Module-level function of plain arrays; what its signature does not name broadcasts.
    signature
        As NumPy's generalised functions have, such as "(h,w),(h,w)->()".
    *arrays
        NumPy or Dask arrays; the axes that the signature names are merged into one chunk.
    **sizes
        Length of the axes that only the result has.

    Returns
    -------
    float64 array
        Of Dask if one of the arrays is, else what the function returns.

    Examples
    --------
    >>> def span(image):
    ...     return np.ptp(image, axis=(-2, -1))
    >>> map_signature(span, "(h,w)->()", da.ones((3, 4, 4))).compute()
    array([0., 0., 0.])
    """
    if not any(isinstance(array, da.Array) for array in arrays):
        return function(*arrays)
    return da.apply_gufunc(
        function,
        signature,
        *arrays,
        output_sizes=sizes,
        allow_rechunk=True,
        meta=np.empty((0,), np.float64),
    )


def learn_model(
    images: da.Array,
    image_ids: Images,
    method: Method,
    params: Any,
    *,
    name: str,
    device: str = "cpu",
    optics: Optics | None = None,
    known: Mapping[str, Any] | None = None,
    bad_pixels: str = "raise",
) -> Delayed:
    """Learn a method's model in one pass: sums of each chunk, combined as a tree, finalized.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    image_ids : int64 array, shape (n,)
        Number of each image; random choices follow it.
    method, params
        The record, whose ``learn`` must be given, and its parameters.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda", where the sums are made; resolved on the worker.
    optics
        Of all images, for methods that take them; None where they are not known.
    known
        More attributes of the model: what is known of the images.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    dask.delayed.Delayed
        The model, an `xarray.Dataset` whose attribute ``method`` is the name.
    """
    learn = method.learn
    if learn is None or not learns(method, params):
        raise StackError(sentence(name, "has nothing to learn", remedy="Call denoise() at once."))
    about = {**(known or {}), "method": name, **stored_parameters(params)}
    token = tokenize(images.name, image_ids, method, params, device, optics, about, bad_pixels)
    total = _sum_images(
        images,
        image_ids,
        learn,
        params,
        names=(f"{name}-sums-{token}", f"{name}-combine-{token}"),
        device=device,
        along={"optics": optics} if method.takes_optics else {},
        bad_pixels=bad_pixels,
    )
    return delayed(_finalize)(
        learn.finalize, total, params, about, dask_key_name=f"{name}-model-{token}"
    )


def _sum_images(
    images: da.Array,
    image_ids: Images,
    record: Learn | Classifier,
    params: Any,
    *,
    names: tuple[str, str],
    device: str,
    along: Mapping[str, Any],
    bad_pixels: str,
) -> Delayed:
    """Make sums of each chunk and combine them; ``names`` are those of the tasks that do."""
    ends = np.cumsum(images.chunks[0])
    blocks = images.to_delayed().ravel()
    sum_block = partial(
        _sum_block,
        chunk=record.chunk,
        params=params,
        n_images=images.shape[0],
        device=device,
        bad_pixels=bad_pixels,
    )
    sums = []
    with on_cards(device):
        for i, (block, end) in enumerate(zip(blocks, ends, strict=True)):
            part = slice(int(end - images.chunks[0][i]), int(end))
            sums.append(
                delayed(sum_block)(
                    block,
                    image_ids[part],
                    first=part.start,
                    along={name: value and value[part] for name, value in along.items()},
                    dask_key_name=f"{names[0]}-{i}",
                )
            )
    return _combine_tree(record.combine, sums, names[1])


def _combine_tree(combine: Callable[[Any, Any], Any], sums: list[Delayed], name: str) -> Delayed:
    level = 0
    while len(sums) > 1:
        sums = [
            delayed(_combine)(
                combine, sums[i : i + COMBINE_AT_ONCE], dask_key_name=f"{name}-{level}-{i}"
            )
            for i in range(0, len(sums), COMBINE_AT_ONCE)
        ]
        level += 1
    return sums[0]


def _sum_block(
    images: Images,
    image_ids: Images,
    *,
    chunk: Mapping[str, Callable[..., Any]],
    params: Any,
    n_images: int,
    device: str,
    bad_pixels: str,
    first: int,
    along: Mapping[str, Any],
) -> Any:
    images = clean_pixels(images, first, bad_pixels)
    where = resolve_device(device, chunk)
    with one_blas_thread:
        return chunk[where](images, image_ids, params, n_images, **along)


def _finalize(
    finalize: Callable[..., Any], sums: Any, params: Any, about: Mapping[str, Any]
) -> Any:
    with one_blas_thread:
        model = finalize(sums, params)
    return model.assign_attrs(about)


def stored_parameters(params: Any) -> dict[str, int | float | str]:
    """Return parameters as the attributes of a stored model hold them.

    Parameters
    ----------
    params
        Parameter record of a method.

    Returns
    -------
    dict of str to int, float or str
        Numbers and words as they are, for an array (nested tuples) a word that tells it from
        others; anything else is left out.

    Examples
    --------
    >>> from emdask.denoisers.wiener import Wiener
    >>> stored_parameters(Wiener(psf=[[0, 1, 0]]))["psf"]
    'array 635123facf9b0580'
    """
    values = {
        name: f"array {_digest(value)}" if isinstance(value, tuple) else value
        for name, value in asdict(params).items()
    }
    return {name: value for name, value in values.items() if isinstance(value, int | float | str)}


def _digest(values: tuple[Any, ...]) -> str:
    return hashlib.sha256(_digits(values).encode()).hexdigest()[:16]


def _digits(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({','.join(map(_digits, value))})"
    # Six digits: another processor rounds the sum by which an array is scaled otherwise.
    return f"{value:.6g}" if isinstance(value, float) else repr(value)


def _combine(combine: Callable[[Any, Any], Any], sums: list[Any]) -> Any:
    total = sums[0]
    for more in sums[1:]:
        total = combine(total, more)
    return total


def fold_images(
    images: da.Array,
    record: Reconstructor,
    params: Any,
    *,
    name: str,
    device: str,
    along: Mapping[str, Images],
    optics: Optics | None = None,
    bad_pixels: str = "raise",
) -> Delayed:
    """Add up a stack into sums too large for one a chunk, such as volumes.

    There are as many chains of tasks as there are threads on the active Dask client, or here; each
    hands its sums from task to task, so that a thread holds what it is given and what it makes of
    it, however many images there are. The chains' sums are combined as a tree and finalized.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    record, params
        The record and its parameters.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda"; resolved on the worker.
    along
        Keyword arguments of ``record.insert``: of each array, shape (n, ...), a slice goes along
        with the images.
    optics
        Of all images; None where it is not known or not asked for.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    dask.delayed.Delayed
        What ``record.finalize`` returns.
    """
    n_chains = _count_threads()
    insert = partial(
        _insert_blocks, record=record, params=params, device=device, bad_pixels=bad_pixels
    )
    token = tokenize(images.name, insert, along, optics, n_chains)
    prefix = f"{name}-insert-{token}"
    groups = _groups(images, FOLD_VOLUMES[device], n_chains)
    keys = [(images.name, i, 0, 0) for i in range(images.numblocks[0])]
    ends = np.cumsum([0, *images.chunks[0]])
    graph = dict(optimize(images.dask, keys))
    last = []
    for chain, run in enumerate(np.array_split(np.array(groups), n_chains)):
        before: Any = None
        for step, (first, end) in enumerate(run):
            part = slice(int(ends[first]), int(ends[end]))
            task = Task(
                (prefix, chain, step),
                insert,
                before,
                List(*(TaskRef(key) for key in keys[first:end])),
                first=part.start,
                along={label: array[part] for label, array in along.items()},
                optics=optics and optics[part],
            )
            graph[task.key] = task
            before = TaskRef(task.key)
        last += [before.key] if before is not None else []
    _fuse_reads(graph, prefix)
    with on_cards(device):
        layers = HighLevelGraph.from_collections(prefix, graph)
    sums = [Delayed(key, layers, layer=prefix) for key in last]
    total = _combine_tree(record.combine, sums, f"{name}-combine-{token}")
    task_name = f"{name}-finalize-{token}"
    return delayed(_finalize_fold)(record.finalize, total, params, dask_key_name=task_name)


def _groups(images: da.Array, n_volumes: int, n_chains: int) -> list[tuple[int, int]]:
    """First chunk and end of each run of chunks that one task takes."""
    n_bytes = np.array(images.chunks[0]) * prod(images.shape[1:]) * images.dtype.itemsize
    volumes_bytes = n_volumes * 4 * images.shape[-1] ** 3
    least = max(FOLD_BYTES, min(volumes_bytes, int(n_bytes.sum()) // n_chains))
    groups, first = [], 0
    for end in range(1, len(n_bytes) + 1):
        if n_bytes[first:end].sum() >= least or end == len(n_bytes):
            groups.append((first, end))
            first = end
    return groups


def map_tables(
    images: da.Array,
    labels: Images,
    function: Callable[..., Mapping[str, Any]],
    *,
    columns: Mapping[str, str],
    name: str,
    device: str,
    supported: Collection[str],
    model: Any = None,
    bad_pixels: str = "raise",
) -> Any:
    """Make a table of what is found in every block of whole images.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk; a chunk makes a partition.
    labels : array, shape (n,)
        What each image is called in the table.
    function
        ``(images, labels, *, device, model) -> columns``: a module-level function of a block (m, h,
        w), the names of its images, and the device "cpu" or "cuda".
    columns
        Name to pandas dtype, in order.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda"; resolved on the worker.
    supported
        Devices that ``function`` runs on.
    model
        What all blocks need; a worker gets it once.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    dask.dataframe.DataFrame
        Rows in the order of the images. Tables of Dask keep no resources: on a cluster of which
        not all workers have a card, compute what is made with ``device="cuda"`` within
        `emdask.placement.on_cards`.
    """
    from dask.dataframe.dask_expr import from_graph

    what = {"columns": columns, "supported": supported, "bad_pixels": bad_pixels}
    token = tokenize(images.name, labels, function, device, model, what)
    prefix, model_key = f"{name}-{token}", (f"{name}-model-{token}", 0)
    keys = [(images.name, i, 0, 0) for i in range(images.numblocks[0])]
    graph: dict[Any, Any] = dict(optimize(images.dask, keys))
    graph[model_key] = DataNode(model_key, model)
    starts = [*map(int, _starts(images)), len(labels)]
    for i, key in enumerate(keys):
        graph[prefix, i] = Task(
            (prefix, i),
            _tabulate,
            TaskRef(key),
            labels[starts[i] : starts[i + 1]],
            function,
            first=starts[i],
            device=device,
            model=TaskRef(model_key),
            **what,
        )
    _fuse_reads(graph, prefix)
    rows = [(prefix, i) for i in range(len(keys))]
    tasks = _Tasks(graph, token)
    return from_graph(tasks, _as_table({}, columns), (None,) * (len(keys) + 1), rows, name)


@dataclass(frozen=True)
class _Tasks(Mapping[Any, Any]):
    """A graph that has a token of its own; to make one, Dask would go through all of it."""

    graph: Mapping[Any, Any]
    token: str

    def __getitem__(self, key: Any) -> Any:
        return self.graph[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.graph)

    def __len__(self) -> int:
        return len(self.graph)

    def __dask_tokenize__(self) -> str:
        return self.token


def _tabulate(
    images: Images,
    labels: Images,
    function: Callable[..., Mapping[str, Any]],
    *,
    first: int,
    columns: Mapping[str, str],
    device: str,
    supported: Collection[str],
    bad_pixels: str,
    model: Any,
) -> Any:
    images = clean_pixels(images, first, bad_pixels)
    with one_blas_thread:
        found = function(images, labels, device=resolve_device(device, supported), model=model)
    return _as_table(found, columns)


def _as_table(found: Mapping[str, Any], columns: Mapping[str, str]) -> Any:
    import pandas as pd

    return pd.DataFrame(
        {label: pd.Series(found.get(label, ()), dtype=kind) for label, kind in columns.items()}
    )


def prepare_model(
    images: da.Array,
    image_ids: Images,
    record: Classifier,
    params: Any,
    references: Any,
    *,
    name: str,
    device: str,
    optics: Optics | None = None,
    bad_pixels: str = "raise",
) -> Delayed:
    """Prepare what images are compared with: sums of each chunk, combined as a tree, and one task.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    image_ids : int64 array, shape (n,)
        Number of each image; random choices follow it.
    record, params
        The record and its parameters.
    references
        What the user wants images to be compared with, or None; it goes to the one task alone.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda", where the sums are made, if they can be made there; resolved on the
        worker.
    optics
        Of all images; None where it is not known or not asked for.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    dask.delayed.Delayed
        What ``record.prepare`` returns. It has a key of its own in the graph, so that a worker gets
        it once, not with each task.
    """
    token = tokenize(images.name, image_ids, record, params, references, device, optics, bad_pixels)
    total = _sum_images(
        images,
        image_ids,
        record,
        params,
        names=(f"{name}-sums-{token}", f"{name}-combine-{token}"),
        device=device if device in ("auto", *record.chunk) else "cpu",
        along={"optics": optics} if record.takes_optics else {},
        bad_pixels=bad_pixels,
    )
    given = delayed(references, name=f"{name}-references-{token}", traverse=False)
    return delayed(_prepare)(
        record.prepare, total, params, given, dask_key_name=f"{name}-model-{token}"
    )


def _prepare(prepare: Callable[..., Any], sums: Any, params: Any, references: Any) -> Any:
    with one_blas_thread:
        return prepare(sums, params, references)


def map_rows(
    images: da.Array,
    record: Classifier,
    params: Any,
    *,
    n_columns: int,
    name: str,
    device: str,
    model: Delayed,
    optics: Optics | None = None,
    bad_pixels: str = "raise",
) -> da.Array:
    """Score every image of every block of whole images: a row of numbers for each.

    Images are read anew for it, once the model is there, even where the same images have made it:
    else they would all wait in memory until it is.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    record, params
        The record and its parameters.
    n_columns
        Length of a row.
    name
        Readable name of the tasks.
    device
        "auto", "cpu" or "cuda"; resolved on the worker.
    model
        Of `prepare_model`.
    optics
        Of all images; a block gets its part of it. None where it is not known or not asked for.
    bad_pixels
        As of `map_images`.

    Returns
    -------
    dask.array.Array, shape (n, n_columns), float32
        Of the host. Chunks of the images are put together, a few for a long stack.
    """
    score = partial(
        _score_block,
        record=record,
        params=params,
        n_columns=n_columns,
        device=device,
        bad_pixels=bad_pixels,
    )
    token = tokenize(images.name, score, model.key, optics)
    prefix = f"{name}-scores-{token}"
    keys = [(images.name, i, 0, 0) for i in range(images.numblocks[0])]
    graph, again = _copy_graph(dict(optimize(images.dask, keys)), f"{name}-{token}")
    starts = [*map(int, _starts(images)), images.shape[0]]
    for i, key in enumerate(keys):
        part = slice(starts[i], starts[i + 1])
        graph[prefix, i, 0] = Task(
            (prefix, i, 0),
            score,
            TaskRef(again.get(key, key)),
            TaskRef(model.key),
            first=part.start,
            optics=optics and optics[part],
        )
    _fuse_reads(graph, prefix)
    _wait_for(model.key, graph, prefix)
    with on_cards(device):
        layers = HighLevelGraph.from_collections(prefix, graph, dependencies=[model])
    chunks = (images.chunks[0], (n_columns,))
    rows = da.Array(layers, prefix, chunks, meta=np.empty((0, 0), np.float32))
    return rows.rechunk((_merge_sizes(images.chunks[0], ROWS_AT_ONCE), n_columns))


def _copy_graph(graph: dict[Any, Any], token: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """Give tasks other keys, so that they run again; and say which. Data are shared."""
    again = {key: _other_key(key, token) for key, v in graph.items() if not isinstance(v, DataNode)}
    copies = {
        again.get(key, key): node.substitute(again, key=again.get(key, key))
        for key, node in graph.items()
    }
    return copies, again


def _other_key(key: Any, token: str) -> Any:
    return (f"{key[0]}-{token}", *key[1:]) if isinstance(key, tuple) else f"{key}-{token}"


def _wait_for(key: Any, graph: dict[Any, Any], prefix: str) -> None:
    """Let what others than the tasks of a prefix begin with wait until a key is there."""
    data = {name for name, node in graph.items() if isinstance(node, DataNode)}
    for name, task in graph.items():
        is_last = isinstance(name, tuple) and name[0] == prefix
        if not is_last and isinstance(task, Task) and task.dependencies <= data:
            graph[name] = Task(name, _after, task, TaskRef(key))


def _after(result: Any, _: Any) -> Any:
    return result


def _merge_sizes(sizes: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Sizes of runs of neighbouring chunks that hold so much together at most, or one of them."""
    merged: list[int] = []
    for size in sizes:
        if merged and merged[-1] + size <= most:
            merged[-1] += size
        else:
            merged.append(size)
    return tuple(merged)


def _score_block(
    images: Images,
    model: Any,
    *,
    record: Classifier,
    params: Any,
    n_columns: int,
    device: str,
    bad_pixels: str,
    first: int,
    optics: Optics | None,
) -> Images:
    images = clean_pixels(images, first, bad_pixels)
    how: dict[str, Any] = {"device": device, "takes_optics": record.takes_optics}
    rows = _run_block(record.score, images, params, model, optics=optics, **how)
    xp = array_namespace(rows)
    rows = rows if xp is np else xp.asnumpy(rows)
    return rows.astype(np.float32, copy=False).reshape(len(images), n_columns)


def _count_threads() -> int:
    """Threads of the active client's workers, or those that Dask starts here."""
    get = get_scheduler()
    client = getattr(get, "__self__", None)
    if client is not None:
        return max(1, sum(int(n) for n in client.nthreads().values()))
    if get is get_sync:
        return 1
    return int(dask.config.get("num_workers", 0) or CPU_COUNT)


def _fuse_reads(graph: dict[Any, Any], prefix: str) -> None:
    """Read and add up a run of chunks in one task, so that no chunk travels or waits."""
    needed = Counter(key for task in graph.values() for key in task.dependencies)
    for key in [key for key in graph if isinstance(key, tuple) and key[0] == prefix]:
        task = graph[key]
        chains = [
            _take_chain(graph, needed, block)
            for block in task.dependencies
            if not (isinstance(block, tuple) and block[0] == prefix)
        ]
        parts = [part for chain in chains for part in chain]
        graph[key] = Task.fuse(*parts, task, key=key) if parts else task


def _insert_blocks(
    sums: Any,
    blocks: list[Images],
    *,
    record: Reconstructor,
    params: Any,
    device: str,
    bad_pixels: str,
    first: int,
    along: Mapping[str, Images],
    optics: Optics | None,
) -> Any:
    images = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    images = clean_pixels(images, first, bad_pixels)
    insert = record.insert[resolve_device(device, record.insert)]
    with one_blas_thread:
        return insert(sums, images, params, **along, optics=optics)


def _finalize_fold(finalize: Callable[..., Any], sums: Any, params: Any) -> Any:
    with one_blas_thread:
        return finalize(sums, params)


def label_arrays(result: Delayed, expected: Mapping[str, xr.Variable]) -> xr.Dataset:
    """Name the variables of a dataset that a task will return, each a lazy array.

    Parameters
    ----------
    result
        A task that returns an `xarray.Dataset`.
    expected
        Of each variable that is wanted the dims, shape, dtype and attributes; its values are not
        looked at.

    Returns
    -------
    xarray.Dataset
        What is computed of it together runs the task once.
    """
    variables = {}
    for name, like in expected.items():
        piece = delayed(_pick)(result, name, dask_key_name=f"{result.key}-{name}")
        meta = np.empty((0,) * like.ndim, like.dtype)
        array = da.from_delayed(piece, like.shape, like.dtype, meta=meta)
        variables[name] = xr.Variable(like.dims, array, like.attrs)
    return xr.Dataset(variables)


def _pick(dataset: xr.Dataset, name: str) -> Images:
    return dataset[name].values


def write_images(
    images: da.Array,
    write: Callable[[Any, Images, int], None],
    target: Any,
    *,
    name: str,
    done: Collection[int] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compute each chunk and hand it to a writer, on the active Dask client or on local threads.

    Parameters
    ----------
    images : dask.array.Array, shape (n, h, w)
        Whole images in each chunk.
    write
        Module-level function ``(target, images, start)``: writes images ``start ..`` where they
        belong.
    target
        Small picklable record of the target.
    name
        Readable name of the tasks, as "write-zarr".
    done
        Positions of the chunks that are written already and are not computed.
    on_progress
        Called with (images written, images in all) as chunks finish.
    """
    sizes = images.chunks[0]
    starts = _starts(images).tolist()
    todo = [i for i in range(len(sizes)) if i not in done]
    written = images.shape[0] - sum(sizes[i] for i in todo)
    # Another key each time: a cluster that remembers the task would not write again.
    prefix = f"{key_split(images.name)}-{name}-{uuid.uuid4().hex}"

    def count(key: tuple[str, int]) -> None:
        nonlocal written
        written += sizes[key[1]]
        if on_progress is not None:
            on_progress(written, images.shape[0])

    for first in range(0, len(todo), WRITES_AT_ONCE):
        chosen = todo[first : first + WRITES_AT_ONCE]
        blocks = {i: (images.name, i, 0, 0) for i in chosen}
        graph = dict(optimize(images.dask, list(blocks.values())))
        goal = f"{prefix}-target"
        graph[goal] = DataNode(goal, target)
        for i, block in blocks.items():
            task = Task((prefix, i), write, TaskRef(goal), TaskRef(block), starts[i])
            graph[task.key] = task
        keys = [(prefix, i) for i in chosen]
        notes = requests(images.dask, graph, prefix)
        _fuse_writes(graph, keys, goal)
        with dask.annotate(**notes):
            _run(graph, keys, count)


def _fuse_writes(graph: dict[Any, Any], keys: list[tuple[str, int]], goal: str) -> None:
    """Compute and write a chunk in one task: half the scheduler's work, and no chunk waits."""
    needed = Counter(key for task in graph.values() for key in task.dependencies)
    for key in keys:
        (block,) = graph[key].dependencies - {goal}
        chain = _take_chain(graph, needed, block)
        graph[key] = Task.fuse(*chain, graph[key], key=key) if chain else graph[key]


def _take_chain(graph: dict[Any, Any], needed: Counter[Any], block: Any) -> list[Any]:
    """Take out of the graph a block that one task needs, and what it is another name of."""
    chain: list[Any] = []
    while needed[block] == 1 and block in graph:
        chain.insert(0, graph.pop(block))
        if not isinstance(chain[0], Alias):
            break
        block = chain[0].target
    return chain


def _run(
    graph: dict[Any, Any], keys: list[tuple[str, int]], count: Callable[[tuple[str, int]], None]
) -> None:
    """Compute the keys on the active client or local threads; ``count`` each that ends."""
    get = get_scheduler()
    client = getattr(get, "__self__", None)
    if client is None:
        with _Counter(keys[0][0], count):
            (get or threaded.get)(graph, keys)
        return
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    # Dask warns of graphs that hold volumes, of which simulated images are made: they go out once.
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGE_GRAPH}):
        futures = client.get(graph, keys, sync=False)
    try:
        for future in as_completed(futures):
            if future.status != "finished":
                future.result()  # raises; asking for the None of a good one would cost a message
            count(future.key)
            future.release()
    except KilledWorker as error:
        rule = "the worker processes that took it up died, again and again: most often for memory"
        remedy = (
            "Give each worker more memory or take fewer workers (--workers), then go on with "
            "resume=True (--resume)."
        )
        raise EmdaskError(sentence(key_split(error.task), rule, remedy=remedy)) from error
    except FutureCancelledError as error:
        rule = "the scheduler is gone or has dropped the work"
        remedy = "See that it runs, then go on with resume=True (--resume)."
        raise EmdaskError(sentence(client.scheduler.address, rule, remedy=remedy)) from error
    finally:
        client.cancel(futures)


class _Counter(Callback):  # type: ignore[misc]
    """Counts finished writes of Dask's local schedulers."""

    def __init__(self, prefix: str, count: Callable[[tuple[str, int]], None]) -> None:
        super().__init__()
        self.prefix = prefix
        self.count = count

    def _posttask(self, key: Any, *_: Any) -> None:
        if isinstance(key, tuple) and key[0] == self.prefix:
            self.count(key)
