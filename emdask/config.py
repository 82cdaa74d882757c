"""Resource defaults, under ``dask.config["emdask"]``; never an algorithm's parameter.

==================== ======== ==================================================================
key                  default  meaning
==================== ======== ==================================================================
``device``           "auto"   where kernels run: "auto", "cpu" or "cuda"
``cards``            True     whether "auto" may use a card in this process; False in the workers
                              of ``connect("local")``, which would all take the first card
``chunk-min-MiB``    2        smallest chunk that ``chunks="auto"`` makes: about a second of BM3D
``chunk-max-MiB``    256      largest: a 10 TB stack is then 40,000 tasks
``chunks-per-stack`` 1024     chunks aimed at between the two limits
==================== ======== ==================================================================

Change them as any Dask setting: ``dask.config.set({"emdask.device": "cpu"})`` or the environment
variable ``DASK_EMDASK__DEVICE=cpu``.
"""

from __future__ import annotations

from typing import Any

import dask.config

DEFAULTS: dict[str, Any] = {
    "device": "auto",
    "cards": True,
    "chunk-min-MiB": 2,
    "chunk-max-MiB": 256,
    "chunks-per-stack": 1024,
}

dask.config.update_defaults({"emdask": DEFAULTS})


def setting(name: str) -> Any:
    """Value of the setting ``emdask.<name>``.

    Examples
    --------
    >>> setting("chunk-max-MiB")
    256
    """
    return dask.config.get(f"emdask.{name}")
