"""What is neither a block nor fits at once: its way to the card and back, and its turn there."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emdask.backend import run_on, to_device, to_host
from emdask.errors import DeviceError


@pytest.mark.parametrize("slab_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("shape", [(7, 5, 3), (0, 4), (), (1000,)])
def test_arrays_come_back_as_they_went(
    card: str, shape: tuple[int, ...], slab_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    from emdask import blocks_cuda

    monkeypatch.setattr(blocks_cuda, "SLAB_BYTES", slab_bytes)
    array = np.random.default_rng(0).normal(size=shape).astype(">f4")
    there = to_device(array, card)
    assert isinstance(there, cupy.ndarray)
    result = to_host(there)
    assert type(result) is np.ndarray
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, array)
    out = np.empty(shape, np.float32)
    assert to_host(there, out) is out
    np.testing.assert_array_equal(out, array)
    strided = np.arange(24.0).reshape(4, 6)[::2, ::3]
    np.testing.assert_array_equal(to_host(to_device(strided, card)), strided)


def test_results_are_in_ordinary_memory(card: str) -> None:
    result = to_host(to_device(np.ones(5), card))
    assert result.base is None


def test_the_host_needs_no_moving() -> None:
    array = np.ones(3)
    assert to_device(array, "cpu") is array
    assert to_host(array) is array
    out = np.empty(3)
    assert to_host(array, out) is out
    np.testing.assert_array_equal(out, array)
    assert run_on("cpu", np.negative, 3, n_bytes=1 << 60, what="nothing") == -3


def test_it_runs_on_a_stream_of_its_own(card: str) -> None:
    def work(value: int) -> Any:
        import cupy

        assert cupy.cuda.get_current_stream() is not cupy.cuda.Stream.null
        return float(to_host(cupy.full(3, value)).sum())

    assert run_on(card, work, 4, n_bytes=100, what="a sum") == 12


class Hungry:
    """Runs out of memory the first times."""

    def __init__(self, n_failures: int) -> None:
        self.n_failures = n_failures
        self.reserved: list[int] = []

    def __call__(self) -> str:
        import cupy

        from emdask import blocks_cuda

        self.reserved.append(blocks_cuda._MEMORY._taken_bytes)
        if len(self.reserved) <= self.n_failures:
            raise cupy.cuda.memory.OutOfMemoryError(1, 1)
        return "done"


def test_what_finds_no_room_runs_again_alone(cuda_on_host: Any) -> None:
    hungry = Hungry(1)
    assert run_on("cuda", hungry, n_bytes=1000, what="a meal") == "done"
    assert hungry.reserved == [1000, cuda_on_host.total_bytes]
    assert run_on("cuda", (last := Hungry(0)), n_bytes=7, what="a meal") == "done"
    assert last.reserved == [7]


def test_what_a_network_keeps_of_the_card_is_counted_and_given_back(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emdask import blocks_cuda

    kept = [5000]
    without = blocks_cuda._usable_bytes()
    pytorch = SimpleNamespace(
        is_initialized=lambda: True, memory_reserved=lambda: sum(kept), empty_cache=kept.clear
    )
    monkeypatch.setitem(sys.modules, "torch.cuda", pytorch)
    assert blocks_cuda._usable_bytes() - without == pytest.approx(0.9 * 5000, abs=1)
    assert run_on("cuda", Hungry(1), n_bytes=1000, what="a meal") == "done"
    assert not kept
    monkeypatch.setitem(sys.modules, "torch.cuda", SimpleNamespace())  # being imported
    assert blocks_cuda._usable_bytes() == without


def test_what_finds_none_at_all_says_so(cuda_on_host: Any) -> None:
    cuda_on_host.free_bytes = 3000
    told = "device: a meal needs about 5,000 bytes of the card's memory, and 3,000 are free. End"
    with pytest.raises(DeviceError, match=told):
        run_on("cuda", Hungry(9), n_bytes=5000, what="a meal")
