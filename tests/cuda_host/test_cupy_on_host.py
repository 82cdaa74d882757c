"""The stand-in does what CuPy does, and refuses what CuPy refuses."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import skimage.restoration

from emdask import backend
from tests.cuda_host.cupy_on_host import Card
from tests.cuda_host.host import LaunchError

SOURCE = """
extern "C" __global__ void __launch_bounds__(64) add(const float* a, float* out, float b, int n) {
  extern __shared__ float values[];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  values[threadIdx.x] = WORTH * b;
  if (i < n) out[i] = a[i] + values[threadIdx.x];
}
"""


@pytest.fixture(params=[False, True], ids=["plain", "strict"])
def card(request: pytest.FixtureRequest, cuda_on_host: Card) -> Card:
    """Card whose arrays are NumPy's, and one whose arrays are its own."""
    cuda_on_host.strict = request.param
    return cuda_on_host


@pytest.fixture
def strict(cuda_on_host: Card) -> Card:
    """Card whose arrays are its own."""
    cuda_on_host.strict = True
    return cuda_on_host


def add_kernel() -> Any:
    import cupy

    return cupy.RawModule(code=SOURCE, options=("-DWORTH=2.0f",)).get_function("add")


def test_a_raw_kernel_runs(card: Card) -> None:
    import cupy

    a = cupy.asarray(np.arange(100, dtype=np.float32))
    out = cupy.empty(100, np.float32)
    arguments = (a, out, np.float32(3), np.int32(100))
    add_kernel()((4,), (32,), arguments, shared_mem=128)
    np.testing.assert_array_equal(cupy.asnumpy(out), np.arange(100) + 6)
    assert card.launches == {"add": 1}


def test_how_kernels_run_is_chosen_by_the_card(card: Card) -> None:
    import cupy

    card.guarded, card.order = True, 5
    a, out = cupy.zeros(7, np.float32), cupy.zeros(7, np.float32)
    with pytest.raises(LaunchError, match="byte 32 of"):
        add_kernel()((1,), (32,), (a, out, np.float32(3), np.int32(9)), shared_mem=128)


def test_more_shared_memory_must_be_asked_for(card: Card) -> None:
    import cupy

    kernel = add_kernel()
    arguments = (cupy.zeros(1, np.float32), cupy.zeros(1, np.float32), np.float32(1), np.int32(1))
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernel((1,), (1,), arguments, shared_mem=50000)
    kernel.max_dynamic_shared_size_bytes = 50000
    kernel((1,), (1,), arguments, shared_mem=50000)
    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        kernel.max_dynamic_shared_size_bytes = 300000


@pytest.mark.parametrize("bad", [1.0, np.float64(1)])
def test_numbers_must_have_the_type_of_the_parameter(card: Card, bad: Any) -> None:
    import cupy

    arrays = cupy.zeros(1, np.float32), cupy.zeros(1, np.float32)
    with pytest.raises(LaunchError, match="b must be a float"):
        add_kernel()((1,), (1,), (*arrays, bad, np.int32(1)), shared_mem=4)


def test_kernels_must_be_there_and_grids_tuples(card: Card) -> None:
    import cupy

    with pytest.raises(cupy.cuda.driver.CUDADriverError):
        cupy.RawModule(code=SOURCE, options=("-DWORTH=2.0f",)).get_function("subtract")
    with pytest.raises(TypeError, match="tuples"):
        add_kernel()(1, (1,), ())


def test_arrays_move_and_are_copies(card: Card) -> None:
    import cupy

    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = cupy.asarray(host)
    there[...] = 7
    assert np.shares_memory(cupy.asarray(there), there)
    back = cupy.asnumpy(there)
    there[...] = 8
    assert host[1, 2] == 5
    assert type(back) is np.ndarray
    np.testing.assert_array_equal(back, np.full((2, 3), 7))


def test_copies_to_the_host_go_into_arrays_that_fit(card: Card) -> None:
    import cupy
    import cupyx

    there = cupy.asarray(np.ones(5, np.float32))
    pinned = cupyx.empty_pinned(5, np.float32)
    assert np.isnan(pinned).all()
    assert cupy.asnumpy(there, out=pinned, blocking=False) is pinned
    np.testing.assert_array_equal(pinned, 1)
    with pytest.raises(TypeError, match="float64"):
        cupy.asnumpy(there, out=np.empty(5))
    with pytest.raises(ValueError, match="mismatch"):
        cupy.asnumpy(there, out=np.empty(4, np.float32))


def test_pinned_memory_comes_in_units(card: Card) -> None:
    import cupy

    memory = cupy.cuda.alloc_pinned_memory(20)
    assert np.frombuffer(memory, np.uint8).size == 512
    assert np.frombuffer(memory, np.float32, 5).size == 5


def test_new_arrays(card: Card) -> None:
    import cupy

    assert np.isnan(cupy.asnumpy(cupy.empty((2, 3), np.float32))).all()
    np.testing.assert_array_equal(cupy.asnumpy(cupy.full(3, 2.5)), [2.5] * 3)
    np.testing.assert_array_equal(cupy.asnumpy(cupy.ones((1, 2), np.int32)), [[1, 1]])
    np.testing.assert_array_equal(cupy.asnumpy(cupy.zeros_like(cupy.ones(2))), [0, 0])
    assert cupy.empty_like(cupy.ones(2), np.int32).dtype == np.int32


def test_memory_is_counted_and_runs_out(card: Card) -> None:
    import cupy

    card.free_bytes = 1000
    first = cupy.zeros(100, np.float32)
    second = first[:10]
    assert cupy.cuda.Device().mem_info == (600, card.total_bytes)
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="allocating 604 bytes"):
        cupy.asarray(np.zeros(151, np.float32))
    del first
    assert cupy.get_default_memory_pool().used_bytes() == 400
    del second
    assert cupy.get_default_memory_pool().used_bytes() == 0
    assert card.peak_bytes == 400


def test_streams_are_entered_and_left(card: Card) -> None:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream as entered:
        assert entered is stream
        assert cupy.cuda.get_current_stream() is stream
        start, stop = stream.record(), stream.record()
        stream.wait_event(stop)
        stream.synchronize()
    assert cupy.cuda.get_current_stream() is cupy.cuda.Stream.null
    assert cupy.cuda.get_elapsed_time(start, stop) >= 0


def test_the_one_card(card: Card) -> None:
    import cupy

    assert cupy.cuda.runtime.getDeviceCount() == 1
    with cupy.cuda.Device(0) as device:
        assert device.id == 0
        assert device.attributes["MaxSharedMemoryPerBlockOptin"] == 232448
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.Device(1)


def test_strict_arrays_belong_to_cupy(strict: Card) -> None:
    import cupy

    there = cupy.asarray(np.arange(4, dtype=np.float32))
    for array in (there, there + 1, there[:2], there.max(), cupy.sqrt(there), np.abs(there)):
        assert isinstance(array, cupy.ndarray)
        assert backend.array_namespace(array) is cupy
    assert cupy.get_array_module(there) is cupy
    assert all(isinstance(value, cupy.ndarray) for value in there)
    assert float(there.sum()) == 6
    assert type(there.get()) is np.ndarray
    spectrum = backend.fourier_namespace(there).dctn(there, norm="ortho")
    assert isinstance(spectrum, cupy.ndarray)
    assert float(spectrum[0]) == pytest.approx(3)


def test_strict_arrays_do_not_mix_with_those_of_the_host(strict: Card) -> None:
    import cupy
    import cupyx.scipy.fft

    there, host = cupy.ones(3), np.ones(3)
    attempts = (
        lambda: there + host,
        lambda: host * there,
        lambda: cupy.sqrt(host),
        lambda: cupy.concatenate([there, host]),
        lambda: np.stack([there, host]),
        lambda: there.__setitem__(0, host),
        lambda: cupyx.scipy.fft.dctn(host),
    )
    for attempt in attempts:
        with pytest.raises(TypeError, match="Unsupported type"):
            attempt()
    with pytest.raises(TypeError, match=r"pass a numpy\.ndarray"):
        add_kernel()((1,), (1,), (host, there, np.float32(1), np.int32(1)))


def test_strict_arrays_are_set_from_the_host(strict: Card) -> None:
    import cupy

    there = cupy.empty(3, np.float32)
    there.set(np.arange(3, dtype=np.float32))
    np.testing.assert_array_equal(there.get(), [0, 1, 2])
    with pytest.raises(TypeError, match="float64"):
        there.set(np.zeros(3))
    with pytest.raises(ValueError, match="Shape"):
        there.set(np.zeros(4, np.float32))


def test_what_cupy_has_not_is_not_there(strict: Card) -> None:
    import cupy
    import cupyx.scipy.fft

    assert not hasattr(cupy, "geomspace")
    with pytest.raises(TypeError, match="initial"):
        cupy.max(cupy.ones(3), initial=2)
    with pytest.raises(TypeError, match="workers"):
        cupyx.scipy.fft.dctn(cupy.ones(3), workers=1)


def test_filters_are_those_of_scipy(card: Card) -> None:
    import cupy
    import cupyx.scipy.ndimage

    host = np.random.default_rng(3).normal(size=(2, 20, 31)).astype(np.float32)
    there, filters = cupy.asarray(host), cupyx.scipy.ndimage
    pairs = [
        (filters.gaussian_filter(there, (0, 2, 2)), scipy.ndimage.gaussian_filter(host, (0, 2, 2))),
        (
            filters.uniform_filter(there, 3, axes=(1, 2)),
            scipy.ndimage.uniform_filter(host, (1, 3, 3)),
        ),
        (filters.median_filter(there, size=3), scipy.ndimage.median_filter(host, size=3)),
    ]
    for result, expected in pairs:
        assert isinstance(result, cupy.ndarray) == card.strict
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    output = cupy.empty_like(there)
    assert filters.median_filter(there, 3, output=output) is output
    np.testing.assert_array_equal(cupy.asnumpy(output), pairs[-1][1])


def test_restoration_is_that_of_scikit_image(card: Card) -> None:
    import cupy
    from cucim.skimage import restoration

    host = np.random.default_rng(3).normal(1, 0.1, size=(20, 31)).astype(np.float32)
    there, kernel = cupy.asarray(host), np.full((3, 3), 1 / 9, np.float32)
    psf = cupy.asarray(kernel)
    pairs = [
        (restoration.wiener(there, psf, 0.5), skimage.restoration.wiener(host, kernel, 0.5)),
        (
            restoration.richardson_lucy(there, psf, num_iter=3),
            skimage.restoration.richardson_lucy(host, kernel, num_iter=3),
        ),
        (
            restoration.denoise_tv_chambolle(there, 0.2),
            skimage.restoration.denoise_tv_chambolle(host, 0.2),
        ),
    ]
    for result, expected in pairs:
        assert isinstance(result, cupy.ndarray) == card.strict
        np.testing.assert_array_equal(cupy.asnumpy(result), expected)


def test_random_numbers_of_the_card_are_not_those_of_the_host(strict: Card) -> None:
    import cupy
    from cucim.skimage import restoration

    host = np.random.default_rng(3).normal(size=(16, 16))
    there, psf = cupy.asarray(host), cupy.ones((1, 1))
    few = {"max_num_iter": 5, "burnin": 1}
    generator = cupy.random.default_rng(7)
    assert cupy.random.default_rng(generator) is generator
    results = [
        restoration.unsupervised_wiener(there, psf, user_params=few, clip=False, rng=rng)[0].get()
        for rng in (7, generator)
    ]
    np.testing.assert_array_equal(*results)
    plain, _ = skimage.restoration.unsupervised_wiener(
        host, np.ones((1, 1)), user_params=few, clip=False, rng=7
    )
    assert np.abs(results[0] - plain).max() > 1e-3


def test_libraries_beside_cupy_refuse_what_they_do_not_take(strict: Card) -> None:
    import cupy
    import cupyx.scipy.ndimage
    from cucim.skimage import restoration

    there, host = cupy.ones((9, 9)), np.ones((9, 9))
    attempts = (
        lambda: cupyx.scipy.ndimage.gaussian_filter(host, 1),
        lambda: cupyx.scipy.ndimage.convolve(there, host),
        lambda: restoration.wiener(there, host, 0.5),
        lambda: restoration.richardson_lucy(host, there),
    )
    for attempt in attempts:
        with pytest.raises(TypeError, match="Unsupported type"):
            attempt()
    with pytest.raises(TypeError, match="workers"):
        cupyx.scipy.ndimage.median_filter(there, 3, workers=1)
    with pytest.raises(TypeError, match="iterations"):
        restoration.richardson_lucy(there, there, iterations=3)
    with pytest.raises(TypeError, match="positional"):
        restoration.denoise_tv_chambolle(there, 0.1, 1e-3, 10, None)
    assert not hasattr(restoration, "denoise_nl_means")
    assert not hasattr(cupyx.scipy.ndimage, "vectorized_filter")


def test_the_package_sees_a_card(cuda_on_host: Card) -> None:
    assert backend.why_no_cuda() is None
    assert importlib.util.find_spec("cupy") is not None


def test_afterwards_nothing_is_left() -> None:
    from tests.cuda_host import cupy_on_host

    before = backend.why_no_cuda()
    modules = {name for name in sys.modules if cupy_on_host.is_replaced(name)}
    with cupy_on_host.installed(Card()):
        from emdask.kernels import bm3d_cuda

        assert backend.why_no_cuda() is None
    assert {name for name in sys.modules if cupy_on_host.is_replaced(name)} == modules
    assert sys.modules.get("emdask.kernels.bm3d_cuda") is not bm3d_cuda
    assert backend.why_no_cuda() == before
