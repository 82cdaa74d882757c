"""Where the work runs: one word to a Dask client."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

import dask

from emdask.backend import CARD_RESOURCE, count_cards, require_card, resolve_device
from emdask.blocks_cuda import THREADS_A_CARD
from emdask.checks import check_integer, check_number, require, sentence
from emdask.errors import EmdaskError, MissingLibraryError
from emdask.placement import workers_with_cards

CONNECT_TIMEOUT_S = 20
DASHBOARD = "127.0.0.1:0"  # Any free port.
# Dask owns the cores: libraries inside a task keep to one. And without Dask's own threshold the
# allocator keeps the working memory of one image for the next: a tenth less CPU time.
WORKER_ENVIRONMENT: dict[str, str | None] = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA", "BLOSC")
} | {"MALLOC_TRIM_THRESHOLD_": None}


def connect(
    target: str = "local",
    *,
    n_workers: int | None = None,
    threads_per_worker: int | None = None,
    rmm_pool_GiB: float | None = None,
    quiet: bool = False,
) -> Any:
    """Start or join a Dask cluster; everything emdask computes then runs there.

    Parameters
    ----------
    target
        "local" starts worker processes on this machine, for which ``device="auto"`` is the CPU;
        "cuda" starts one for each of its NVIDIA cards (in a script, call it under ``if __name__ ==
        "__main__":``, because they import the script); "tcp://host:8786" or "tls://..." joins a
        running scheduler.
    n_workers
        Worker processes of a cluster started here; None for one a core, or one a card.
    threads_per_worker
        Threads of each worker started here; None for 1, or for 4 a card: while one computes on the
        card, others read, decompress, compress and write.
    rmm_pool_GiB
        With "cuda": memory of each card that RMM takes at once and hands out to CuPy; it grows when
        that is not enough. None for CuPy's own pool, which serves most work as well.
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
        If the target is none of these words, a number is out of range, there are fewer cards than
        workers, or something is asked of a scheduler that already has its own workers.
    DeviceError
        If "cuda" finds no card.
    MissingLibraryError
        If "cuda" needs a library that is not installed.
    EmdaskError
        If no scheduler answers at the address.

    Notes
    -----
    Workers of "cuda" declare the Dask resource ``GPU``, as much as they have threads. On a cluster
    of mixed workers, those started by hand declare it likewise, and what is denoised with
    ``device="cuda"`` goes to them alone. Where many workers share a card, the setting
    ``emdask.cards`` keeps "auto" on the CPU, as in the workers of "local"::

        dask cuda worker tcp://host:8786 --nthreads 4 --resources "GPU=4"
        DASK_EMDASK__CARDS=false dask worker tcp://host:8786 --nworkers auto --nthreads 1

    Examples
    --------
    >>> with connect("local", n_workers=1) as client:  # doctest: +SKIP
    ...     emdask.save_stack(emdask.denoise(stack), "clean.zarr")
    """
    remote = isinstance(target, str) and target.startswith(("tcp://", "tls://"))
    rule = 'target must be "local", "cuda" or a scheduler\'s address such as tcp://host:8786'
    require(remote or target in ("local", "cuda"), "connect", rule, target, _meant(target))
    if remote:
        rule = "a running scheduler has its own workers"
        remedy = "Leave out n_workers (--workers)."
        require(n_workers is None, "connect", rule, n_workers, remedy)
        remedy = "Leave out threads_per_worker."
        require(threads_per_worker is None, "connect", rule, threads_per_worker, remedy)
    if target != "cuda":
        rule = 'rmm_pool_GiB is for connect("cuda")'
        require(rmm_pool_GiB is None, "connect", rule, rmm_pool_GiB)
        client = _join(target) if remote else _start(n_workers, threads_per_worker)
    else:
        client = _start_on_cards(n_workers, threads_per_worker, rmm_pool_GiB)
    if not quiet:
        print(f"dashboard: {client.dashboard_link}", file=sys.stderr)  # noqa: T201
    return client


def _meant(target: object) -> str:
    """Remedy for an address without its protocol."""
    is_address = isinstance(target, str) and re.fullmatch(r"[\w.-]+:\d+", target)
    return f"Did you mean tcp://{target}?" if is_address else ""


def _start(n_workers: int | None, threads_per_worker: int | None) -> Any:
    from distributed import Client

    _check_counts(n_workers, threads_per_worker)
    # Not one card for all of them.
    config = {"emdask": {**dask.config.get("emdask"), "cards": False}}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}):
        # A client that starts its own cluster also closes it.
        return Client(
            n_workers=len(os.sched_getaffinity(0)) if n_workers is None else n_workers,
            threads_per_worker=1 if threads_per_worker is None else threads_per_worker,
            dashboard_address=DASHBOARD,
            config=config,
        )


def _check_counts(n_workers: int | None, threads_per_worker: int | None) -> None:
    for name, given in (("n_workers", n_workers), ("threads_per_worker", threads_per_worker)):
        if given is not None:
            check_integer("connect", name, given, 1)


def _start_on_cards(
    n_workers: int | None, threads_per_worker: int | None, rmm_pool_GiB: float | None
) -> Any:
    _check_counts(n_workers, threads_per_worker)
    if rmm_pool_GiB is not None:
        check_number("connect", "rmm_pool_GiB", rmm_pool_GiB, 2**-10)
    n_cards = _count_cards(needs_rmm=rmm_pool_GiB is not None)
    n_workers = n_cards if n_workers is None else n_workers
    n_threads = THREADS_A_CARD if threads_per_worker is None else threads_per_worker
    cards = "1 card" if n_cards == 1 else f"{n_cards} cards"
    rule = f"n_workers must be at most the number of cards, one a worker; here: {cards}"
    require(n_workers <= n_cards, "connect", rule, n_workers)
    pool: dict[str, Any] = {}
    if rmm_pool_GiB is not None:
        # Without the second argument CuPy would go on with its own pool beside RMM's.
        n_bytes = int(rmm_pool_GiB * 2**30)
        pool = {"rmm_pool_size": n_bytes, "rmm_allocator_external_lib_list": ["cupy"]}
    from dask_cuda import LocalCUDACluster

    with dask.config.set({"distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT}):
        cluster = LocalCUDACluster(
            n_workers=n_workers,
            threads_per_worker=n_threads,
            dashboard_address=DASHBOARD,
            resources={CARD_RESOURCE: n_threads},
            **pool,
        )
    return _own(cluster)


def _count_cards(*, needs_rmm: bool) -> int:
    """Return the number of cards, at least one; raise where something is missing."""
    what = 'connect("cuda")'
    libraries = {"cupy": "'emdask[cuda13]'", "dask_cuda": "'emdask[cuda13]'"}
    if needs_rmm:
        libraries["rmm"] = "rmm-cu13"
    for library, package in libraries.items():
        if importlib.util.find_spec(library) is None:
            other = package.replace("13", "12")
            remedy = f"For CUDA 13: pip install {package}; for CUDA 12: pip install {other}."
            rule = f"needs {library.replace('_', '-')}, which is not installed"
            raise MissingLibraryError(sentence(what, rule, remedy=remedy))
    require_card(what, "needs an NVIDIA card")
    return count_cards()


def require_cards(client: Any) -> None:
    """Fail now where work for ``device="cuda"`` would fail later, for want of a card.

    Parameters
    ----------
    client
        Of `connect`. Those of its workers that declare a card are asked, or all where none does.

    Raises
    ------
    DeviceError
        Naming the host that cannot use a card.
    """
    asked = workers_with_cards(client) or list(client.scheduler_info(n_workers=-1)["workers"])
    if asked:
        client.run(resolve_device, "cuda", ("cuda",), workers=asked)


def _own(cluster: Any) -> Any:
    """Return a client of the cluster that also closes it."""
    from distributed import Client

    class Owner(Client):  # type: ignore[misc]
        def close(self, *args: Any, **kwargs: Any) -> Any:
            closed = super().close(*args, **kwargs)
            cluster.close()
            return closed

    return Owner(cluster)


def _join(address: str) -> Any:
    from distributed import Client

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
