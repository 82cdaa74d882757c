"""What a process prepares once for all of its blocks: volumes to project, the scale of images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from dask.base import tokenize

# Recipes that a process keeps ready.
N_READY = 2


class Recipe(Protocol):
    """Everything that some images depend on; the token tells it from others."""

    @property
    def token(self) -> str: ...


Given = TypeVar("Given", bound=Recipe, contravariant=True)
Ready = TypeVar("Ready")
Kind = TypeVar("Kind")


def build_recipe(kind: Callable[..., Kind], **fields: Any) -> Kind:
    """Build a recipe of this kind with a token that follows from its fields."""
    return kind(token=tokenize(fields), **fields)


class Once(Generic[Given, Ready]):
    """A function of a recipe and a device that does its work once in a process.

    Threads wait for each other, so that no two do the same. The last results are kept.

    Parameters
    ----------
    prepare
        What does the work.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> ready = Once(lambda recipe, device: [recipe.token, device])
    >>> ready(SimpleNamespace(token="a"), "cpu") is ready(SimpleNamespace(token="a"), "cpu")
    True
    """

    def __init__(self, prepare: Callable[[Given, str], Ready]) -> None:
        self._prepare = prepare
        self._kept: OrderedDict[tuple[str, str], Ready] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, recipe: Given, device: str) -> Ready:
        """Return what belongs to a recipe on a device."""
        key = (recipe.token, device)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._prepare(recipe, device)
                while len(self._kept) > N_READY:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def forget(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._kept.clear()
