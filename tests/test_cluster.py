"""connect(): the same work on a local cluster or a scheduler's address."""

from __future__ import annotations

import importlib.util
import inspect
import os
import socket
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from distributed import LocalCluster

import emdask
from emdask import cluster
from emdask.backend import resolve_device, why_no_cuda
from emdask.errors import DeviceError, EmdaskError, MissingLibraryError, ParameterError


@pytest.fixture(autouse=True)
def _no_environment_of_other_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask writes the environment of workers into that of this process, and leaves it there."""
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)


def environ() -> dict[str, str]:
    """Return a worker's environment."""
    return dict(os.environ)


def devices_with_a_card() -> list[str]:
    """Which devices work would run on if the worker had a card."""
    with mock.patch("emdask.backend.why_no_cuda", return_value=None):
        return [resolve_device(named, ("cpu", "cuda")) for named in ("auto", "cuda")]


def test_a_local_cluster_gives_the_same_answer(
    rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    images = rng.normal(size=(4, 24, 24)).astype("f4")
    alone = emdask.denoise(images, "bm3d", sigma=1.0).compute(scheduler="synchronous")
    with emdask.connect("local", n_workers=2) as client:
        assert client.dashboard_link in capsys.readouterr().err
        assert "127.0.0.1" in client.dashboard_link
        assert len(client.scheduler_info(n_workers=-1)["workers"]) == 2
        for environment in client.run(environ).values():
            assert environment["OMP_NUM_THREADS"] == "1"
            assert "MALLOC_TRIM_THRESHOLD_" not in environment
        for devices in client.run(devices_with_a_card).values():
            assert devices == ["cpu", "cuda"]
        there = emdask.denoise(images, "bm3d", sigma=1.0).compute()
        with emdask.connect(client.scheduler.address, quiet=True) as guest:
            joined = emdask.denoise(images, "bm3d", sigma=1.0).compute()
            assert guest.scheduler.address == client.scheduler.address
    np.testing.assert_array_equal(there, alone)
    np.testing.assert_array_equal(joined, alone)


def test_wrong_targets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in ("loca", None, 3):
        with pytest.raises(ParameterError, match=f"target must be .*; got {target!r}"):
            emdask.connect(target)
    with pytest.raises(ParameterError, match=r"Did you mean tcp://localhost:8786\?"):
        emdask.connect("localhost:8786")
    with pytest.raises(ParameterError, match="n_workers must be an integer of at least 1"):
        emdask.connect("local", n_workers=0)
    with pytest.raises(ParameterError, match=r"has its own workers; got 2. Leave out n_workers"):
        emdask.connect("tcp://127.0.0.1:1", n_workers=2)
    with pytest.raises(ParameterError, match="has its own workers; got 4"):
        emdask.connect("tcp://127.0.0.1:1", threads_per_worker=4)
    with pytest.raises(ParameterError, match=r'rmm_pool_GiB is for connect\("cuda"\); got 2'):
        emdask.connect("local", rmm_pool_GiB=2)
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(EmdaskError, match=r"no scheduler answers \(Connection refused\)"):
        emdask.connect("tcp://127.0.0.1:1")
    with pytest.raises(EmdaskError, match=r"no scheduler answers .*Check the address"):
        emdask.connect("tcp://127.0.0.1:no-port")


def make_module(name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(attributes)
    return module


@pytest.fixture
def asked(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What dask-cuda is asked for, on a machine of two cards; its workers are plain ones."""
    import cupy

    seen: dict[str, Any] = {}

    class LocalCUDACluster(LocalCluster):
        def __init__(
            self,
            *,
            n_workers: int,
            rmm_pool_size: int | None = None,
            rmm_allocator_external_lib_list: list[str] | None = None,
            **options: Any,
        ) -> None:
            seen.update(options, n_workers=n_workers)
            seen["rmm"] = (rmm_pool_size, rmm_allocator_external_lib_list)
            super().__init__(n_workers=1, **options)
            seen["cluster"] = self

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 2)
    dask_cuda = make_module("dask_cuda", LocalCUDACluster=LocalCUDACluster)
    monkeypatch.setitem(sys.modules, "dask_cuda", dask_cuda)
    return seen


def test_each_card_gets_a_worker_that_declares_it(
    asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with emdask.connect("cuda") as client:
        (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
        assert (worker["nthreads"], worker["resources"]) == (4, {"GPU": 4})
        assert client.dashboard_link in capsys.readouterr().err
        assert "127.0.0.1" in client.dashboard_link
        (environment,) = client.run(environ).values()
        assert environment["OMP_NUM_THREADS"] == "1"
        assert "MALLOC_TRIM_THRESHOLD_" not in environment
        (devices,) = client.run(devices_with_a_card).values()
        assert devices == ["cuda", "cuda"]
        assert client.submit(sum, [1, 2]).result() == 3
    assert asked["n_workers"] == 2
    assert asked["rmm"] == (None, None)
    assert asked["cluster"].status.name == "closed"


def test_rmm_hands_out_the_memory_of_cupy(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rmm", make_module("rmm"))
    with emdask.connect(
        "cuda", n_workers=1, threads_per_worker=2, rmm_pool_GiB=1.5, quiet=True
    ) as client:
        assert client.nthreads() == dict.fromkeys(client.nthreads(), 2)
    assert asked["rmm"] == (3 * 2**29, ["cupy"])
    assert asked["resources"] == {"GPU": 2}


def test_more_workers_than_cards_are_refused(asked: dict[str, Any]) -> None:
    rule = "connect: n_workers must be at most the number of cards, one a worker; here: 2 cards"
    with pytest.raises(ParameterError, match=f"{rule}; got 3"):
        emdask.connect("cuda", n_workers=3)
    with pytest.raises(ParameterError, match="n_workers must be an integer of at least 1; got 0"):
        emdask.connect("cuda", n_workers=0)
    with pytest.raises(ParameterError, match="threads_per_worker must be an integer"):
        emdask.connect("cuda", threads_per_worker=0)
    assert asked == {}


def hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    """Make a library look as if it were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == hidden else find(name)
    )


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        ("cupy", "needs cupy, which is not installed. For CUDA 13: pip install 'emdask[cuda13]'"),
        ("dask_cuda", "needs dask-cuda, which is not installed. For CUDA 13: pip install 'emdask"),
        ("rmm", "needs rmm, which is not installed. For CUDA 13: pip install rmm-cu13; for CUDA "),
    ],
)
def test_what_is_not_installed_is_told(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, hidden: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "rmm", make_module("rmm"))
    hide(monkeypatch, hidden)
    with pytest.raises(MissingLibraryError) as told:
        emdask.connect("cuda", rmm_pool_GiB=1)
    assert str(told.value).startswith(f'connect("cuda"): {said}')
    with pytest.raises(ParameterError, match="n_workers must be an integer of at least 1; got 0"):
        emdask.connect("cuda", n_workers=0)
    with pytest.raises(ParameterError, match="rmm_pool_GiB must be a number"):
        emdask.connect("cuda", rmm_pool_GiB=0)
    assert asked == {}


def test_no_card_is_told_at_once(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    with pytest.raises(DeviceError) as told:
        emdask.connect("cuda")
    assert str(told.value) == (
        f'connect("cuda"): needs an NVIDIA card. On {socket.gethostname()} the CUDA runtime finds '
        "no card."
    )
    assert asked == {}


def test_dask_cuda_still_takes_what_it_is_given() -> None:
    """Runs where dask-cuda is installed: it needs no card."""
    dask_cuda = pytest.importorskip("dask_cuda")
    options = inspect.signature(dask_cuda.LocalCUDACluster).parameters
    names = ("n_workers", "threads_per_worker", "rmm_pool_size", "rmm_allocator_external_lib_list")
    assert set(names) <= set(options)
    assert options["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.gpu
@pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")
def test_real_cards_denoise(rng: np.random.Generator) -> None:
    pytest.importorskip("dask_cuda")
    images = rng.normal(size=(12, 48, 48)).astype("f4")
    alone = emdask.denoise(images, "bm3d", sigma=1.0, device="cpu").compute()
    with emdask.connect("cuda", n_workers=1, quiet=True) as client:
        (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
        assert worker["resources"] == {"GPU": 4}
        lazy = emdask.denoise(emdask.stack.as_stack(images).chunk({"image": 3}), "bm3d", sigma=1.0)
        there = lazy.compute()
        named = emdask.denoise(images, "bm3d", sigma=1.0, device="cuda").compute()
    np.testing.assert_array_equal(there, named)
    # Rounding may turn a near tie between two blocks.
    assert np.median(np.abs(named - alone)) < 2e-4
    assert np.abs(named - alone).max() < 0.1
