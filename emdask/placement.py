"""Which workers take a task: work for cards asks for workers that declare one.

Dask's annotations carry what a task asks for; here they are set, and kept where Dask drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask
from dask._task_spec import Alias
from dask.array.optimization import optimize
from dask.base import get_scheduler
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer

from emdask.backend import CARD_RESOURCE

ONE_CARD = {CARD_RESOURCE: 1}


@contextmanager
def on_cards(device: str) -> Iterator[None]:
    """Mark what is built as work for workers with cards, where a card is named and some have one.

    Yields
    ------
    None
    """
    if device != "cuda" or not _workers_have_cards():
        yield
        return
    # Dask's optimisation of arrays forgets the resources that a layer asks for.
    if dask.config.get("array_optimize", ...) is ...:
        dask.config.set({"array_optimize": optimize_for_cards})
    with dask.annotate(resources=ONE_CARD):
        yield


def _workers_have_cards() -> bool:
    """Whether a worker of the active client declares a card; otherwise none may be asked for."""
    client = getattr(get_scheduler(), "__self__", None)
    return client is not None and bool(workers_with_cards(client))


def workers_with_cards(client: Any) -> list[str]:
    """Addresses of the workers that declare a card.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.

    Returns
    -------
    list of str
    """
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [key for key, worker in workers.items() if worker["resources"].get(CARD_RESOURCE)]


def optimize_for_cards(graph: HighLevelGraph, keys: Any, **kwargs: Any) -> Mapping[Any, Any]:
    """Optimise an array's graph as Dask does, and keep which tasks ask for a card.

    Parameters
    ----------
    graph
        Graph of the array.
    keys
        Keys that are computed.
    **kwargs
        As of `dask.array.optimize`, in whose place Dask calls this.

    Returns
    -------
    mapping of key to task
    """
    tasks = dict(optimize(graph, keys, **kwargs))
    marked = _names_from(graph, tasks, lambda layer: "resources" in (layer.annotations or ()))
    if not marked:
        return tasks
    layers: dict[str, dict[Any, Any]] = {}
    for key, task in tasks.items():
        layers.setdefault(_layer_name(key), {})[key] = task
    needs = {
        name: {_layer_name(key) for task in part.values() for key in task.dependencies} - {name}
        for name, part in layers.items()
    }
    notes = {name: {"resources": ONE_CARD} if name in marked else None for name in layers}
    parts = {name: MaterializedLayer(part, notes[name]) for name, part in layers.items()}
    return HighLevelGraph(parts, needs)  # type: ignore[no-any-return]


def _names_from(
    graph: HighLevelGraph, tasks: Mapping[Any, Any], is_start: Callable[[Layer], bool]
) -> set[str]:
    """Names of the tasks of some layers and of all that follow.

    What follows may be one task with them after optimisation, under the name of the last; or under
    a new one, to which that of the last is an alias.
    """
    found = [name for name, layer in graph.layers.items() if is_start(layer)]
    names: set[str] = set()
    while found:
        name = found.pop()
        if name not in names:
            names.add(name)
            found.extend(graph.dependents[name])
    aliases = [task for task in tasks.values() if isinstance(task, Alias)] if names else []
    targets = {_layer_name(task.target) for task in aliases if _layer_name(task.key) in names}
    return names | {name for name in targets if name not in graph.layers}


def _layer_name(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) else key)


def _needs_card(layer: Layer) -> bool:
    """Whether the layer was built with ``device="cuda"``, be it before a client was there."""
    task = getattr(layer, "task", None)
    return getattr(task, "kwargs", {}).get("device") == "cuda"


def requests(graph: HighLevelGraph, tasks: Mapping[Any, Any], prefix: str) -> dict[str, Any]:
    """Annotations under which optimised tasks, and those named by a prefix, go to cards.

    Parameters
    ----------
    graph
        Of the array, before its optimisation.
    tasks
        Of the graph, optimised.
    prefix
        First part of the keys of tasks that were added, each of which ends a chain of tasks.

    Returns
    -------
    dict
        Empty where nothing was built for cards, or no worker declares one.
    """
    on_card = _names_from(graph, tasks, _needs_card)
    if not on_card or not _workers_have_cards():
        return {}
    return {"resources": _Resources(frozenset({*on_card, prefix}))}


@dataclass(frozen=True)
class _Resources:
    """What each task asks for, as Dask's annotations take it; the scheduler calls it."""

    on_card: frozenset[str]

    def __call__(self, key: Any) -> dict[str, int]:
        return ONE_CARD if _layer_name(key) in self.on_card else {}
