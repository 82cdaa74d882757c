"""Where the work runs: one word to a Dask client."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

import dask

from emdask.checks import check_integer, require, sentence
from emdask.errors import EmdaskError

CONNECT_TIMEOUT_S = 20
# Dask owns the cores: libraries inside a task keep to one. And without Dask's own threshold the
# allocator keeps the working memory of one image for the next: a tenth less CPU time.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA", "BLOSC")
} | {"MALLOC_TRIM_THRESHOLD_": None}


def connect(
    target: str = "local",
    *,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    quiet: bool = False,
) -> Any:
    """Start or join a Dask cluster; everything emdask computes then runs there.

    Parameters
    ----------
    target
        "local" starts worker processes on this machine (in a script, call it under
        ``if __name__ == "__main__":``, because they import the script); "tcp://host:8786" or
        "tls://..." joins a running scheduler.
    n_workers
        Worker processes of a local cluster; None for one a core.
    threads_per_worker
        Threads of each local worker.
    quiet
        Do not print the dashboard's address.

    Returns
    -------
    distributed.Client
        Active until ``close()``, which also ends a cluster started here; a context manager. The
        dashboard's address is printed to stderr and is ``client.dashboard_link``.

    Raises
    ------
    ParameterError
        If the target is none of these words, or a number of workers is given to a scheduler that
        already has its own.
    EmdaskError
        If no scheduler answers at the address.

    Examples
    --------
    >>> with connect("local", n_workers=1) as client:  # doctest: +SKIP
    ...     emdask.save_stack(emdask.denoise(stack), "clean.zarr")
    """
    remote = target.startswith(("tcp://", "tls://"))
    rule = 'target must be "local" or a scheduler\'s address such as tcp://host:8786'
    require(remote or target == "local", "connect", rule, target)
    client = _join(target, n_workers) if remote else _start(n_workers, threads_per_worker)
    if not quiet:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)  # noqa: T201
    return client


def _start(n_workers: int | None, threads_per_worker: int) -> Any:
    from distributed import Client

    n_workers = len(os.sched_getaffinity(0)) if n_workers is None else n_workers
    check_integer("connect", "n_workers", n_workers, 1)
    check_integer("connect", "threads_per_worker", threads_per_worker, 1)
    with dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}):
        # A client that starts its own cluster also closes it. Port 0: any free one, on localhost.
        return Client(
            n_workers=n_workers,
            threads_per_worker=threads_per_worker,
            dashboard_address="127.0.0.1:0",
        )


def _join(address: str, n_workers: int | None) -> Any:
    from distributed import Client

    require(n_workers is None, "connect", "a running scheduler has its own workers", n_workers)
    try:
        _knock(address)
        return Client(address, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "no answer in time"
        rule = f"no scheduler answers ({reason})"
        remedy = "Check the address, or start one with: dask scheduler"
        raise EmdaskError(sentence(address, rule, remedy=remedy)) from error


def _knock(address: str) -> None:
    """Fail at once where nothing listens; a Dask client would try on until its time is over."""
    place = urlsplit(address)
    socket.create_connection((place.hostname, place.port or 8786), CONNECT_TIMEOUT_S).close()
