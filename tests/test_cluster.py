"""connect(): the same work on a local cluster or a scheduler's address."""

from __future__ import annotations

import os

import numpy as np
import pytest

import emdask
from emdask import cluster
from emdask.errors import EmdaskError, ParameterError


def environ() -> dict[str, str]:
    """Return a worker's environment."""
    return dict(os.environ)


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
        there = emdask.denoise(images, "bm3d", sigma=1.0).compute()
        with emdask.connect(client.scheduler.address, quiet=True) as guest:
            joined = emdask.denoise(images, "bm3d", sigma=1.0).compute()
            assert guest.scheduler.address == client.scheduler.address
    np.testing.assert_array_equal(there, alone)
    np.testing.assert_array_equal(joined, alone)


def test_wrong_targets_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match="target must be"):
        emdask.connect("loca")
    with pytest.raises(ParameterError, match="n_workers must be an integer of at least 1"):
        emdask.connect("local", n_workers=0)
    with pytest.raises(ParameterError, match="has its own workers"):
        emdask.connect("tcp://127.0.0.1:1", n_workers=2)
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 1)
    with pytest.raises(EmdaskError, match=r"no scheduler answers \(Connection refused\)"):
        emdask.connect("tcp://127.0.0.1:1")
    with pytest.raises(EmdaskError, match=r"no scheduler answers .*Check the address"):
        emdask.connect("tcp://127.0.0.1:no-port")
