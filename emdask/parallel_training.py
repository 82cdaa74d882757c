"""Training in several processes on one machine, one for each card, by PyTorch's own means."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emdask.checks import sentence
from emdask.errors import DeviceError, EmdaskError

# Between looks at what processes tell.
POLL_S = 0.1
RESULT = "result"

Progress = Callable[[str, int, int], None]
# (plan, rank, number of processes, device, on_progress) -> result
Task = Callable[[Any, int, int, str, Progress], Any]


def run_processes(
    task: Task, plan: Any, *, n_processes: int, device: str, on_progress: Progress
) -> Any:
    """Run a task in several processes that share a group of `torch.distributed`.

    Parameters
    ----------
    task
        Module-level function ``(plan, rank, n_processes, device, on_progress) -> result``.
    plan
        What to do; is sent to each process.
    n_processes
        How many.
    device
        "cpu", or "cuda": each process gets a card of its own.
    on_progress
        Called as the first process tells.

    Returns
    -------
    object
        What the first process returned.

    Raises
    ------
    EmdaskError
        As a process raised it; the others are ended.
    DeviceError
        If a process was killed.
    """
    from torch import multiprocessing
    from torch.multiprocessing.spawn import ProcessExitedException

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="emdask-") as folder:
        told = context.Queue()
        arguments = (task, plan, n_processes, device, folder, told)
        processes = multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
            _enter, arguments, nprocs=n_processes, join=False
        )
        try:
            error = _follow(processes, told, on_progress)
            if error is not None:
                raise error
        except ProcessExitedException as killed:
            rule = "one of the processes that learn together was ended"
            remedy = "Go on from the checkpoint, if there is one, with resume=True."
            raise DeviceError(sentence("train_denoiser", rule, str(killed), remedy)) from killed
        else:
            # Written by the process that this one has started, in a folder of its own.
            return pickle.loads(Path(folder, RESULT).read_bytes())
        finally:
            for process in processes.processes:
                process.terminate()
            for process in processes.processes:
                process.join()


def _follow(processes: Any, told: Any, on_progress: Progress) -> EmdaskError | None:
    """Pass on what is told until all have ended; returns what went wrong."""
    while True:
        has_ended = processes.join(timeout=POLL_S)
        while not told.empty():
            what = told.get()
            if isinstance(what, EmdaskError):
                return what
            on_progress(*what)
        if has_ended:
            return None


def _enter(
    rank: int, task: Task, plan: Any, n_processes: int, device: str, folder: str, told: Any
) -> None:
    """Join the group and do the task; what a process does."""
    import torch
    from torch import distributed

    torch.set_num_threads(max(1, torch.get_num_threads() // n_processes))
    if device == "cuda":
        # Before anything looks for cards: then CuPy and PyTorch, in all threads, have this one.
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        cards = [str(i) for i in range(n_processes)] if named is None else named.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[rank]
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        init_method=Path(folder, "group").as_uri(),
        rank=rank,
        world_size=n_processes,
    )
    try:
        result = task(plan, rank, n_processes, device, _teller(rank, told))
        if rank == 0:
            Path(folder, RESULT).write_bytes(pickle.dumps(result))
    except EmdaskError as error:
        told.put(error)
    finally:
        distributed.destroy_process_group()
    told.close()
    told.join_thread()
    # Threads of the group outlive it; now and then they abort an interpreter that ends.
    os._exit(0)


def _teller(rank: int, told: Any) -> Progress:
    """Tell of progress if this is the first process."""

    def tell(what: str, done: int, total: int) -> None:
        if rank == 0:
            told.put((what, done, total))

    return tell
