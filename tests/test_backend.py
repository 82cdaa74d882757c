"""Devices: what is named is used or refused; a card is used through CuPy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest

import emdask
from emdask.backend import (
    array_namespace,
    check_device,
    count_cards,
    on_device,
    resolve_device,
    why_no_cuda,
)
from emdask.errors import DeviceError, ParameterError
from emdask.method import Method, parameter

needs_card = pytest.mark.skipif(why_no_cuda() is not None, reason=f"no card: {why_no_cuda()}")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One function over any array library, for both devices."""

    by: float = parameter(2.0, "factor")


def _scale(images: np.ndarray, params: Scale) -> np.ndarray:
    xp = array_namespace(images)
    return xp.multiply(images, params.by, dtype=xp.float32)


def _library(images: np.ndarray, params: Scale) -> np.ndarray:
    """Mark each image with the library that it was handed in: 0 NumPy, 1 CuPy."""
    xp = array_namespace(images)
    return xp.full(images.shape, float(xp is not np), dtype=xp.float32)


METHOD = Method(params=Scale, apply={"cpu": _scale, "cuda": _scale})

IMAGE_BYTES = 96 * 24 * 20
FIXED_BYTES = 256 * 2**20


@pytest.fixture
def card(cuda_on_host: Any) -> Any:
    """Card of a stand-in for CuPy that takes no array of the host for one of its own."""
    cuda_on_host.strict = True
    return cuda_on_host


def free_for(n_images: float) -> int:
    """Free memory of a card of which a piece may have so many images of 24 x 20 pixels."""
    return int((FIXED_BYTES + n_images * IMAGE_BYTES) * 4 / 0.9) + 64


class Sizes:
    """Doubles images and keeps how many came at once; beyond ``fits``, memory runs out."""

    def __init__(self, fits: int = 10**9) -> None:
        self.fits = fits
        self.asked: list[int] = []
        self.done: list[int] = []

    def __call__(self, images: Any) -> Any:
        xp = array_namespace(images)
        self.asked.append(len(images))
        if len(images) > self.fits:
            raise xp.cuda.memory.OutOfMemoryError(1, 1)
        self.done.append(len(images))
        return xp.multiply(images, 2, dtype=xp.float32)


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(10, 24, 20)).astype("f4")


def test_devices_are_three_words() -> None:
    with pytest.raises(ParameterError, match="device must be one of auto, cpu, cuda; got 'gpu'"):
        check_device("gpu", "bm3d", {"cpu"})
    with pytest.raises(ParameterError, match=r"got .cuda:1.\. Choose cards by CUDA_VISIBLE"):
        check_device("cuda:1", "bm3d", {"cpu", "cuda"})


def test_the_default_device_is_a_setting() -> None:
    import dask

    with dask.config.set({"emdask.device": "cpu"}):
        assert check_device(None, "bm3d", {"cpu"}) == "cpu"
    assert check_device(None, "bm3d", {"cpu"}) == "auto"


def test_a_method_without_cuda_code_says_so() -> None:
    with pytest.raises(DeviceError, match="bm3d: runs on cpu; got 'cuda'"):
        check_device("cuda", "bm3d", {"cpu"})


def test_no_card_is_an_error_when_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emdask.backend.why_no_cuda", lambda: "there is none")
    with pytest.raises(DeviceError, match=rf"NVIDIA card. On {socket.gethostname()} there is none"):
        resolve_device("cuda", {"cpu", "cuda"})
    assert resolve_device("auto", {"cpu", "cuda"}) == "cpu"
    with pytest.raises(DeviceError):
        emdask.denoise(np.ones((1, 4, 4), "f4"), Scale(), device="cuda").compute()


def test_auto_takes_a_card_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    monkeypatch.setattr("emdask.backend.why_no_cuda", lambda: None)
    assert resolve_device("auto", {"cpu", "cuda"}) == "cuda"
    assert resolve_device("auto", {"cpu"}) == "cpu"
    with dask.config.set({"emdask.cards": False}):
        assert resolve_device("auto", {"cpu", "cuda"}) == "cpu"
        assert resolve_device("cuda", {"cpu", "cuda"}) == "cuda"


def test_an_old_driver_is_told_with_a_remedy(
    cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    def fail() -> int:
        raise cupy.cuda.runtime.CUDARuntimeError(
            "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
            "version"
        )

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", fail)
    assert why_no_cuda.__wrapped__() == (
        "the NVIDIA driver is missing or older than CuPy's CUDA: nvidia-smi shows it"
    )


def test_both_devices_give_one_answer(device: str) -> None:
    images = np.arange(32, dtype="f4").reshape(2, 4, 4)
    result = emdask.denoise(images, Scale(by=3.0), device=device).compute()
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, 3 * images)


@pytest.mark.gpu
@needs_card
def test_a_block_goes_to_the_card_and_back() -> None:
    images = np.ones((2, 4, 4), "f4")
    assert on_device(_library, images, Scale(), device="cuda").sum() == images.size
    assert on_device(_library, images, Scale(), device="cpu").sum() == 0


@pytest.mark.gpu
@needs_card
def test_a_block_on_the_card_stays_there() -> None:
    import cupy

    images = cupy.ones((4, 8, 8), "f4")
    for where, expected in (("cuda", 1.0), ("cpu", 0.0)):
        block = on_device(_library, images, Scale(), device=where)
        assert isinstance(block, cupy.ndarray)
        assert float(block.mean()) == expected
    lazy = emdask.denoise(da.from_array(images, chunks=(2, 8, 8), asarray=False), Scale())
    assert isinstance(lazy._meta, cupy.ndarray)
    result = lazy.compute(scheduler="synchronous")
    assert isinstance(result, cupy.ndarray)
    assert float(result.sum()) == 2 * images.size


@pytest.mark.gpu
@needs_card
def test_bad_pixels_on_the_card() -> None:
    import cupy

    images = cupy.ones((2, 4, 4), "f4")
    images[1, 2, 2] = cupy.nan
    lazy = da.from_array(images, chunks=(1, 4, 4), asarray=False)
    with pytest.raises(emdask.errors.StackError, match="image 1 has 1 NaN"):
        emdask.denoise(lazy, Scale()).compute(scheduler="synchronous")
    repaired = emdask.denoise(lazy, Scale(), bad_pixels="replace").compute(scheduler="synchronous")
    np.testing.assert_array_equal(cupy.asnumpy(repaired), 2.0)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i2", ">i2", ">f4", "u1"])
def test_a_block_arrives_as_it_is_stored(card: Any, images: np.ndarray, dtype: str) -> None:
    stored = (images * 20 + 60).astype(dtype)
    seen: list[np.dtype] = []

    def look(there: Any) -> Any:
        xp = array_namespace(there)
        assert xp is not np
        seen.append(there.dtype)
        return there.astype(xp.float32)

    result = on_device(look, stored, device="cuda")
    assert seen == [stored.dtype.newbyteorder("=")]
    assert type(result) is np.ndarray
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, stored.astype("f4"))


@pytest.mark.parametrize(
    ("fitting", "pieces"), [(100, [10]), (4.5, [4, 4, 2]), (1, [1] * 10), (0.5, [1] * 10)]
)
def test_a_block_is_split_where_the_card_is_small(
    card: Any, images: np.ndarray, fitting: float, pieces: list[int]
) -> None:
    card.free_bytes = free_for(fitting)
    double = Sizes()
    np.testing.assert_array_equal(on_device(double, images, device="cuda"), 2 * images)
    assert double.done == pieces
    assert card.used_bytes == 0


def test_pieces_are_halved_where_memory_runs_out(card: Any, images: np.ndarray) -> None:
    double = Sizes(fits=3)
    np.testing.assert_array_equal(on_device(double, images, device="cuda"), 2 * images)
    assert double.asked == [10, 5, 2, 2, 2, 2, 2]
    assert card.used_bytes == 0


def test_an_image_too_large_is_told(card: Any, images: np.ndarray) -> None:
    card.free_bytes = 1_000_000
    double = Sizes(fits=0)
    with pytest.raises(DeviceError) as told:
        on_device(double, images, device="cuda")
    assert str(told.value) == (
        f"device: one image of 20 x 24 pixels needs about {IMAGE_BYTES + FIXED_BYTES:,} bytes of "
        "the card's memory, and 1,000,000 are free. End what else uses the card, take a larger "
        'one, or pass device="cpu" (--device cpu).'
    )
    assert double.asked == [1, 1]


def test_a_block_without_images_comes_back(card: Any) -> None:
    result = on_device(Sizes(), np.empty((0, 24, 20), "i2"), device="cuda")
    assert (result.shape, result.dtype) == ((0, 24, 20), np.float32)


def run_threads(n_threads: int, function: Any, images: np.ndarray) -> list[np.ndarray]:
    results: list[Any] = [None] * n_threads
    threads = [
        threading.Thread(
            target=lambda i=i: results.__setitem__(
                i, on_device(function, images + i, device="cuda")
            )
        )
        for i in range(n_threads)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_four_threads_share_a_card_each_on_its_stream(card: Any, images: np.ndarray) -> None:
    import cupy

    together = threading.Barrier(4)
    streams: set[int] = set()

    def double(there: Any) -> Any:
        streams.add(cupy.cuda.get_current_stream().ptr)
        # All four are on the card at once, or this raises.
        together.wait(30)
        return cupy.multiply(there, 2, dtype=cupy.float32)

    card.free_bytes = free_for(len(images))
    for i, result in enumerate(run_threads(4, double, images)):
        np.testing.assert_array_equal(result, 2 * (images + i))
    assert len(streams) == 4
    assert 0 not in streams


def test_large_images_take_turns(card: Any, images: np.ndarray) -> None:
    """An image that needs more than half of the card has it alone; nobody waits for ever."""
    at_once = most = 0
    lock = threading.Lock()

    def double(there: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with lock:
            at_once -= 1
        return array_namespace(there).multiply(there, 2, dtype="f4")

    card.free_bytes = int((FIXED_BYTES + IMAGE_BYTES) * 1.9 / 0.9)
    for i, result in enumerate(run_threads(3, double, images)):
        np.testing.assert_array_equal(result, 2 * (images + i))
    assert most == 1


def wait_until(true: Any) -> None:
    """Wait for a state that another thread brings about; half a minute is never needed."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_small_pieces_do_not_overtake_a_large_one(
    card: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the one on the card there is room for a small piece, but the large one came first."""
    from emdask import blocks_cuda

    monkeypatch.setattr(blocks_cuda, "WORKING_BYTES_FIXED", 0)
    card.free_bytes = int(4 * IMAGE_BYTES / 0.9) + 64
    small, large = rng.normal(size=(1, 24, 20)), rng.normal(size=(1, 48, 40))
    leave = threading.Event()
    order: list[tuple[int, ...]] = []

    def stay(there: Any) -> Any:
        order.append(there.shape)
        assert leave.wait(30)
        return there

    def pass_by(there: Any) -> Any:
        order.append(there.shape)
        return there

    def start(function: Any, images: np.ndarray) -> threading.Thread:
        thread = threading.Thread(
            target=on_device, args=(function, images), kwargs={"device": "cuda"}
        )
        thread.start()
        return thread

    threads = [start(stay, small)]
    wait_until(lambda: order)
    for n_before, images in enumerate((large, small)):
        threads.append(start(pass_by, images))
        wait_until(lambda n=n_before: order[1:] or len(blocks_cuda._MEMORY._waiting) > n)
    leave.set()
    for thread in threads:
        thread.join(30)
    assert order == [small.shape, large.shape, small.shape]


def test_after_an_image_that_had_the_card_to_itself_others_come(
    card: Any, images: np.ndarray
) -> None:
    """The first image has it; while the second is there, another thread's come and go."""
    beside: list[np.ndarray] = []
    counts: list[int] = []

    def double(there: Any) -> Any:
        xp = array_namespace(there)
        counts.append(len(there))
        if len(counts) <= 2:
            raise xp.cuda.memory.OutOfMemoryError(1, 1)
        if len(counts) == 4:
            beside.extend(run_threads(1, Sizes(), images))
        return xp.multiply(there, 2, dtype=xp.float32)

    result = on_device(double, images[:3], device="cuda")
    np.testing.assert_array_equal(result, 2 * images[:3])
    np.testing.assert_array_equal(beside[0], 2 * images)
    assert counts == [3, 1, 1, 1, 1]


def test_a_thread_has_two_pinned_buffers(
    card: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    allocate = cupy.cuda.alloc_pinned_memory
    alive: set[int] = set()
    most = 0

    def count(n_bytes: int) -> memoryview:
        nonlocal most
        buffer: memoryview = allocate(n_bytes)
        alive.add(id(buffer.obj))
        most = max(most, len(alive))
        weakref.finalize(buffer.obj, alive.remove, id(buffer.obj))
        return buffer

    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", count)
    card.free_bytes = free_for(3)
    on_device(Sizes(), images, device="cuda")
    assert (most, alive) == (2, set())


class Plans:
    """Doubles images and leaves plans of transforms; beyond ``fits``, memory runs out."""

    def __init__(self, *n_bytes: int, fits: int = 10**9) -> None:
        self.n_bytes = n_bytes
        self.fits = fits
        self.found: list[int] = []

    def __call__(self, images: Any) -> Any:
        xp = array_namespace(images)
        cache = xp.fft.config.get_plan_cache()
        self.found.append(cache.get_curr_memsize())
        for n_bytes in self.n_bytes:
            cache[("Plan1d", n_bytes)] = SimpleNamespace(work_area=xp.empty(n_bytes, "u1"))
        if len(images) > self.fits:
            raise xp.cuda.memory.OutOfMemoryError(1, 1)
        return xp.multiply(images, 2, dtype=xp.float32)


def run_in_one_thread(function: Any, images: np.ndarray) -> None:
    """Run in a thread of its own, of which nothing is left, and check the result."""
    np.testing.assert_array_equal(run_threads(1, function, images)[0], 2 * images)


def test_plans_of_transforms_are_kept_up_to_a_limit(
    card: Any, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from emdask import blocks_cuda

    monkeypatch.setattr(blocks_cuda, "PLAN_BYTES", 1000)
    card.free_bytes = free_for(4)
    # What is used last stays, as far as it fits; what alone is larger works, and does not stay.
    for n_bytes, kept in (((400, 500, 450), 950), ((1500,), 0), ((300,), 300)):
        double = Plans(*n_bytes)
        run_in_one_thread(double, images)
        assert double.found == [0, kept, kept]
    wait_until(lambda: card.used_bytes == 0)


def test_plans_of_transforms_make_room_where_memory_runs_out(card: Any, images: np.ndarray) -> None:
    double = Plans(300, fits=5)
    run_in_one_thread(double, images)
    assert double.found == [0, 0, 300]


def test_what_fails_on_the_card_leaves_it_usable(card: Any, images: np.ndarray) -> None:
    def fail(there: Any) -> Any:
        raise ValueError("not this one")

    card.free_bytes = free_for(0.5)
    for _ in range(3):
        with pytest.raises(ValueError, match="not this one"):
            on_device(fail, images, device="cuda")
    np.testing.assert_array_equal(on_device(Sizes(), images, device="cuda"), 2 * images)


def test_denoising_in_pieces_changes_nothing(card: Any, images: np.ndarray) -> None:
    card.free_bytes = free_for(3)
    lazy = da.from_array(images, chunks=(7, -1, -1))
    result = emdask.denoise(lazy, Scale(by=3.0), device="cuda").compute()
    assert (type(result), result.dtype) == (np.ndarray, np.float32)
    np.testing.assert_array_equal(result, images * np.float32(3))


def test_cards_are_counted(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 3)
    assert count_cards() == 3
    why_no_cuda.cache_clear()
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert count_cards() == 0


def test_memory_of_an_rmm_pool_is_to_be_had(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMM has taken most of the card for its pool, which CuPy then allocates from."""
    resource = SimpleNamespace(pool_size=lambda: free_for(6))
    rmm = SimpleNamespace(mr=SimpleNamespace(get_current_device_resource=lambda: resource))
    monkeypatch.setitem(sys.modules, "rmm", rmm)
    card.free_bytes = 100_000
    double = Sizes()
    on_device(double, np.zeros((10, 24, 20), "u1"), device="cuda")
    assert double.done == [6, 4]


@pytest.mark.gpu
@needs_card
def test_a_real_card_that_is_nearly_full(
    images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cupy

    from emdask import blocks_cuda

    monkeypatch.setattr(blocks_cuda, "_usable_bytes", lambda: int(0.9 * free_for(3)))
    double = Sizes(fits=2)
    np.testing.assert_array_equal(on_device(double, images, device="cuda"), 2 * images)
    assert double.asked == [3, 1] + [1] * 9

    def take_too_much(there: Any) -> Any:
        return cupy.empty(2 * cupy.cuda.runtime.memGetInfo()[1], "u1")

    with pytest.raises(DeviceError, match="one image of 20 x 24 pixels needs about"):
        on_device(take_too_much, images, device="cuda")
    for i, result in enumerate(run_threads(4, Sizes(), images)):
        np.testing.assert_array_equal(result, 2 * (images + i))


ONE_THREAD = """
import threading

from threadpoolctl import threadpool_info

from emdask.backend import one_blas_thread

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

def hold(inside, leave):
    with one_blas_thread:
        inside.set()
        leave.wait()

for _ in range(3):
    signs = [(threading.Event(), threading.Event()) for _ in range(2)]
    first, second = (threading.Thread(target=hold, args=pair) for pair in signs)
    first.start(), signs[0][0].wait()
    assert threads() == {1}
    second.start(), signs[1][0].wait()
    signs[0][1].set(), first.join()
    assert threads() == {1}, "the thread that came first has left"
    signs[1][1].set(), second.join()
    assert threads() == {2}
    with one_blas_thread:
        assert threads() == {1}
    assert threads() == {2}
"""


def test_blas_has_one_thread_while_any_task_wants_it() -> None:
    """In a process of its own: tasks of other tests may still be running in this one."""
    environment = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "2")
    command = [sys.executable, "-c", ONE_THREAD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
