"""Kernels run on the host as CUDA says they do, and what CUDA leaves undefined is an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.cuda_host import host
from tests.cuda_host.host import BuildError, LaunchError

pytestmark = pytest.mark.skipif(
    host.why_no_compiler() is not None, reason=str(host.why_no_compiler())
)
ORDERS = (0, 1, 2)
LANES = np.arange(32)

SUMS = """
constexpr int N = 128;

template <int LENGTH>
__device__ __forceinline__ float turn_around(float value) {
  __shared__ float values[LENGTH];
  values[threadIdx.x] = value;
  __syncthreads();
  return values[LENGTH - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(N) sum_blocks(
    const float* __restrict__ values, float* __restrict__ sums, int n) {
  extern __shared__ float partial[];
  const int t = threadIdx.x, at = blockIdx.x * N + t;
  partial[t] = turn_around<N>(at < n ? values[at] : 0.0f);
#pragma unroll
  for (int gap = N / 2; gap > 0; gap /= 2) {
    __syncthreads();
    if (t < gap) partial[t] += partial[t + gap];
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}
"""

COLLECTIVES = """
constexpr unsigned ALL = 0xffffffffu;
extern "C" __global__ void exchange(long long* out, int distance, int width) {
  const int t = threadIdx.x;
  const long long value = 1000000000000ll + t;
  out[t] = __shfl_sync(ALL, value, distance, width);
  out[32 + t] = __shfl_xor_sync(ALL, value, distance, width);
  out[64 + t] = __shfl_down_sync(ALL, value, distance, width);
  out[96 + t] = __shfl_up_sync(ALL, value, distance, width);
}
extern "C" __global__ void vote(unsigned* out, int limit) {
  const int t = threadIdx.x;
  out[4 * t] = __ballot_sync(ALL, t % 32 < limit);
  out[4 * t + 1] = __any_sync(ALL, t % 32 < limit);
  out[4 * t + 2] = __all_sync(ALL, t % 32 < limit);
  out[4 * t + 3] = __syncthreads_count(t < limit) + 1000 * __syncthreads_or(t == limit);
}
extern "C" __global__ void sum_warp(float* out) {
  float value = float(threadIdx.x);
  for (int gap = 16; gap > 0; gap /= 2) value += __shfl_xor_sync(ALL, value, gap);
  out[threadIdx.x] = value;
}
extern "C" __global__ void count(int* n, unsigned long long* n_wide, float* sum, int* ends) {
  atomicAdd(n, 1);
  atomicAdd(n_wide, 1ull << 33);
  atomicAdd(sum, 0.5f);
  atomicMax(ends, int(blockIdx.x * blockDim.x + threadIdx.x));
  atomicMin(ends + 1, -int(threadIdx.x));
}
extern "C" __global__ void index(int* out) {
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = 1000 * block + thread;
}
"""

ARITHMETIC = """
extern "C" __global__ void floats(const float* a, const float* b, const float* c, float* out) {
  out[0] = a[0] * b[0] + c[0];
  out[1] = __fmaf_rn(a[0], b[0], c[0]);
  out[2] = __int_as_float(__float_as_int(a[0]) + 1);
  out[3] = __uint_as_float(__float_as_uint(a[0]) ^ 0x80000000u);
  out[4] = __frcp_rn(3.0f) + __fadd_rn(1.0f, __fsub_rn(2.0f, __fmul_rn(2.0f, 0.5f)));
  out[5] = min(1.0f, max(a[0], fabsf(b[0]))) + __fdividef(1.0f, 4.0f) + rsqrtf(4.0f);
  out[6] = __ll2float_rn(__float2ll_rn(2.5f)) + __ldg(c);
  const float4 four = make_float4(1.0f, 2.0f, 3.0f, 4.0f);
  const int2 two = make_int2(5, 6);
  out[7] = four.w * float(two.y);
  sincospif(2.5f, out + 8, out + 9);
  sincospif(-1e6f - 1.0f, out + 10, out + 11);
}
extern "C" __global__ void integers(int* out, long long* wide, int zero) {
  out[0] = __popc(0xf0f0u);
  out[1] = __ffs(8);
  out[2] = __ffs(zero);
  out[3] = __clz(1);
  out[4] = __clz(zero);
  out[5] = int(__brev(1u) >> 31);
  out[6] = min(3, -4) + max(7, 2) + abs(-9);
  out[7] = int(sizeof(long long)) + int(sizeof(int));
  wide[0] = __float2ll_rn(1e30f);
  wide[1] = __float2ll_rn(-2.5f);
}
"""

FAULTS = """
extern "C" __global__ void mix_collectives() {
  if (threadIdx.x < 7) __syncwarp();
  else __syncthreads();
}
extern "C" __global__ void mix_places(float* out) {
  float value = 1.0f;
  if (threadIdx.x < 7) value = __shfl_xor_sync(0xffffffffu, value, 1);
  else value = __shfl_xor_sync(0xffffffffu, value, 2);
  out[threadIdx.x] = value;
}
extern "C" __global__ void leave_early() {
  if (threadIdx.x % 32 == 7) return;
  __syncwarp();
}
extern "C" __global__ void leave_late() {
  if (threadIdx.x % 32 < 7) __syncwarp();
}
extern "C" __global__ void leave_as_warp() {
  if (threadIdx.x < 32) return;
  __syncthreads();
}
extern "C" __global__ void part_of_warp() {
  if (threadIdx.x < 7) __syncwarp(0x7fu);
}
extern "C" __global__ void shared_index(float* out, int at) {
  __shared__ float values[2][32];
  values[at][threadIdx.x] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = values[0][threadIdx.x];
}
extern "C" __global__ void local_index(float* out, int at) {
  float values[4];
  for (int i = 0; i < at; ++i) values[i] = float(i);
  out[threadIdx.x] = values[at - 1];
}
extern "C" __global__ void dynamic_index(float* out, int at) {
  extern __shared__ float dynamic_values[];
  dynamic_values[at] = 1.0f;
  out[0] = dynamic_values[at];
}
extern "C" __global__ void divide(int* out, int by) { out[threadIdx.x] = 10 / by; }
extern "C" __global__ void shift(int* out, int by) { out[threadIdx.x] = 1 << by; }
extern "C" __global__ void trap() { if (threadIdx.x == 5) __trap(); }
extern "C" __global__ void read(const float* in, float* out, int at) { out[0] = in[at]; }
extern "C" __global__ void write(float* out, int at) { out[at] = 1.0f; }
extern "C" __global__ void write_const(const float* in) { const_cast<float*>(in)[0] = 1.0f; }
"""

RACES = """
extern "C" __global__ void turn(float* out, int waits) {
  __shared__ float values[32];
  const int t = threadIdx.x;
  values[t] = float(t);
  if (waits) __syncwarp();
  out[t] = values[31 - t];
}
extern "C" __global__ void pass_on(float* out, int waits) {
  __shared__ float values[64];
  const int t = threadIdx.x;
  values[t] = float(t);
  if (waits) __syncthreads();
  out[t] = t > 0 ? values[t - 1] : -1.0f;
}
extern "C" __global__ void unwritten(float* out, unsigned* words) {
  __shared__ float values[32];
  extern __shared__ unsigned dynamic_words[];
  if (threadIdx.x > 0) values[threadIdx.x] = 1.0f;
  __syncwarp();
  out[threadIdx.x] = values[threadIdx.x];
  words[threadIdx.x] = dynamic_words[threadIdx.x];
}
"""


def launch(
    source: str,
    name: str,
    block: Any,
    *arguments: Any,
    grid: Any = 1,
    **options: Any,
) -> None:
    host.build(source)[name].launch(grid, block, arguments, **options)


def zeros(n: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return np.zeros(n, dtype)


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_sum_through_shared_memory(order: int, rng: np.random.Generator) -> None:
    values = rng.integers(-9, 9, 1000).astype(np.float32)
    sums = zeros(8)
    launch(SUMS, "sum_blocks", 128, values, sums, 1000, grid=8, shared_bytes=512, order=order)
    np.testing.assert_array_equal(sums, np.pad(values, (0, 24)).reshape(8, 128).sum(axis=1))


@pytest.mark.parametrize(("distance", "width"), [(1, 32), (5, 32), (3, 8), (9, 16), (31, 32)])
def test_shuffles(distance: int, width: int) -> None:
    out = zeros(128, np.int64)
    launch(COLLECTIVES, "exchange", 32, out, distance, width, order=1)
    start = LANES // width * width
    down, up, across = LANES + distance, LANES - distance, LANES ^ distance
    expected = [
        start + distance % width,
        np.where(across < start + width, across, LANES),
        np.where(down < start + width, down, LANES),
        np.where(up >= start, up, LANES),
    ]
    np.testing.assert_array_equal(out - 10**12, np.concatenate(expected))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [0, 1, 20, 32])
def test_votes(limit: int, order: int) -> None:
    out = zeros(4 * 96, np.uint32)
    launch(COLLECTIVES, "vote", 96, out, limit, order=order)
    expected = [2**limit - 1, limit > 0, limit == 32, limit + 1000]
    np.testing.assert_array_equal(out.reshape(96, 4), np.tile(expected, (96, 1)))


def test_butterfly_in_many_warps() -> None:
    out = zeros(1024)
    launch(COLLECTIVES, "sum_warp", 1024, out, order=3)
    np.testing.assert_array_equal(out, np.repeat(1024 * LANES + 496, 32))


def test_atomics() -> None:
    n, n_wide, total = zeros(1, np.int32), zeros(1, np.uint64), zeros(1)
    ends = zeros(2, np.int32)
    launch(COLLECTIVES, "count", 48, n, n_wide, total, ends, grid=5)
    assert (n[0], n_wide[0], total[0], *ends) == (240, 240 << 33, 120.0, 239, -47)


def test_indices_of_three_dimensions() -> None:
    out = zeros(12 * 30, np.int32)
    launch(COLLECTIVES, "index", (5, 3, 2), out, grid=(2, 3, 2))
    expected = 1000 * np.arange(12)[:, None] + np.arange(30)
    np.testing.assert_array_equal(out.reshape(12, 30), expected)


def test_floats_round_as_on_a_card() -> None:
    a, b, c = (np.array([value], np.float32) for value in (1 + 2**-12, 1 + 2**-12, -1.0))
    out = zeros(12)
    launch(ARITHMETIC, "floats", 1, a, b, c, out)
    exact = 2**-11 + 2**-24  # of the product less one; a rounded product loses the last term
    third = np.float32(1) / np.float32(3)
    expected = [2**-11, exact, np.nextafter(a[0], np.float32(2)), -a[0], third + np.float32(2)]
    expected += [1.75, 1.0, 24.0]
    np.testing.assert_array_equal(out[:8], np.array(expected, np.float32))
    np.testing.assert_allclose(out[8:], [1, 0, 0, -1], rtol=0, atol=1e-7)


def test_integers() -> None:
    out, wide = zeros(8, np.int32), zeros(2, np.int64)
    launch(ARITHMETIC, "integers", 1, out, wide, 0)
    np.testing.assert_array_equal(out, [8, 4, 0, 31, 32, 1, 12, 12])
    np.testing.assert_array_equal(wide, [2**63 - 1, -2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mix_collectives",
            r"__syncthreads \(line 4\), but thread \(0, 0, 0\) waits at __syncwarp",
        ),
        ("leave_early", r"thread \(7, 0, 0\) returned, but thread \(0, 0, 0\) waits at __syncwarp"),
        ("leave_late", r"thread \(7, 0, 0\) returned, but thread \(0, 0, 0\) waits at __syncwarp"),
        ("leave_as_warp", r"waits at __syncthreads .*, but thread \(31, 0, 0\) has returned"),
        ("part_of_warp", r"__syncwarp: the mask must be 0xffffffff; got 0x0000007f"),
        ("trap", r"trap, block \(0, 0, 0\): thread \(5, 0, 0\) traps"),
    ],
)
def test_threads_that_part_are_an_error(name: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launch(FAULTS, name, 64)


def test_the_same_collective_at_two_places_is_an_error() -> None:
    with pytest.raises(LaunchError, match=r"__shfl_xor_sync \(line 9\), but .* \(line 8\)"):
        launch(FAULTS, "mix_places", 32, zeros(32))


def test_a_warp_must_be_whole() -> None:
    with pytest.raises(LaunchError, match="full mask in a warp of 16 lanes"):
        launch(COLLECTIVES, "sum_warp", 48, zeros(48))


@pytest.mark.parametrize(
    ("name", "dtype", "argument", "message"),
    [
        ("shared_index", np.float32, 2, r"line 28: index 2 is outside of the array"),
        ("shared_index", np.float32, -1, r"index -1 is outside"),
        ("local_index", np.float32, 5, r"index 4 is outside"),
        ("divide", np.int32, 0, r"an integer is divided by zero"),
        ("shift", np.int32, 32, r"a shift by"),
        ("dynamic_index", np.float32, 16, r"byte 64 of 64 bytes of dynamic shared memory"),
        ("dynamic_index", np.float32, -3, r"wrote at byte -12 of 64 bytes of dynamic shared"),
    ],
)
def test_undefined_behaviour_is_an_error(
    name: str, dtype: npt.DTypeLike, argument: int, message: str
) -> None:
    with pytest.raises(LaunchError, match=message):
        launch(FAULTS, name, 32, zeros(32, dtype), argument, shared_bytes=64)


@pytest.mark.parametrize("at", [32, -2000, 5000])
def test_guards_find_reads_outside_of_an_array(at: int) -> None:
    with pytest.raises(LaunchError, match=f"byte {4 * at} of in, which has 128 bytes"):
        launch(FAULTS, "read", 1, zeros(32), zeros(1), at, guarded=True)


def test_between_the_guards_unwritten_memory_is_nan() -> None:
    out = zeros(1)
    launch(FAULTS, "read", 1, zeros(32), out, -1, guarded=True)
    assert np.isnan(out[0])


@pytest.mark.parametrize("at", [-1, 31, 32])
def test_guards_find_writes_outside_of_an_array(at: int) -> None:
    out = zeros(31)
    with pytest.raises(LaunchError, match=f"byte {4 * at} of out, which has 124 bytes"):
        launch(FAULTS, "write", 1, out, at, guarded=True)
    assert not out.any()


def test_guards_find_writes_to_const_arrays() -> None:
    with pytest.raises(LaunchError, match="byte 0 of in"):
        launch(FAULTS, "write_const", 1, zeros(4), guarded=True)


def test_guards_give_the_same_results(rng: np.random.Generator) -> None:
    values, sums = rng.integers(-9, 9, 1000).astype(np.float32), zeros(8)
    launch(SUMS, "sum_blocks", 128, values, sums, 1000, grid=8, shared_bytes=512, guarded=True)
    np.testing.assert_array_equal(sums, np.pad(values, (0, 24)).reshape(8, 128).sum(axis=1))


@pytest.mark.parametrize(("name", "n"), [("turn", 32), ("pass_on", 64)])
def test_a_missing_barrier_shows(name: str, n: int) -> None:
    def run(order: int, waits: int) -> npt.NDArray[np.float32]:
        out = zeros(n)
        launch(RACES, name, n, out, waits, order=order)
        return out

    right = run(0, waits=1)
    for order in ORDERS:
        np.testing.assert_array_equal(run(order, waits=1), right)
    assert any(not np.array_equal(run(order, waits=0), right) for order in ORDERS)


def test_unwritten_shared_memory_is_nan_in_each_block() -> None:
    for _ in range(2):
        out, words = zeros(32), zeros(32, np.uint32)
        launch(RACES, "unwritten", 32, out, words, grid=2, shared_bytes=128)
        np.testing.assert_array_equal(out, [np.nan] + 31 * [1])
        np.testing.assert_array_equal(words, 0xFFFFFFFF)


def test_a_library_runs_again_after_an_error() -> None:
    test_threads_that_part_are_an_error("leave_early", "leave_early")
    out = zeros(4)
    launch(FAULTS, "write", 1, out, 3)
    np.testing.assert_array_equal(out, [0, 0, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((zeros(4),), "takes 2 arguments; got 1"),
        ((zeros(4), 1.0), "at must be a int"),
        ((zeros(4), np.int64(1)), "at must be a int"),
        ((zeros(4), 2**31), "at must be a int"),
        ((zeros(4, np.float64), 1), "out must be an array of float32; got float64"),
        ((zeros(8)[::2], 1), "out must be C-contiguous"),
        ((np.frombuffer(bytes(16), np.float32), 1), "out is written to"),
        (([0.0], 1), "out must be an array; got"),
    ],
)
def test_arguments_must_fit(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launch(FAULTS, "write", 1, *arguments)


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes", "message"),
    [
        (1, 129, 0, "at most 128 threads"),
        (1, 0, 0, "block must lie in 1 to"),
        ((1, 70000), 1, 0, "grid must lie in 1 to"),
        (1, 128, 300000, "dynamic shared memory"),
    ],
)
def test_geometry_must_fit(grid: Any, block: Any, shared_bytes: int, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        launch(
            SUMS, "sum_blocks", block, zeros(1), zeros(1), 1, grid=grid, shared_bytes=shared_bytes
        )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('extern "C" __global__ void k(int* out) { int unused; out[0] = 1; }', "unused"),
        ('extern "C" __global__ void k(int* out) { out[0] = missing; }', ":1:.*missing"),
        ('extern "C" __global__ void k(struct S* out) { }', "no launch can pass"),
        ("__global__ void k(int* out) { out[0] = 1; }", 'must be declared extern "C"'),
    ],
)
def test_warnings_and_errors_of_a_source(source: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        host.build(source)


def test_macros_are_options() -> None:
    source = 'extern "C" __global__ void k(int* out) { out[0] = WORTH; }'
    for worth in (3, 4):
        out = zeros(1, np.int32)
        host.build(source, (f"-DWORTH={worth}",))["k"].launch(1, 1, (out,))
        assert out[0] == worth


def test_two_processes_may_build_at_once(tmp_path: Path) -> None:
    program = f"from tests.cuda_host import host; host.build({RACES!r}); print('built')"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[2],
            env={"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in processes] == ["built\n"] * 2
    assert len(list(tmp_path.glob("*/*.so"))) == 1


def test_fibres_run_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "FLAGS", (*host.FLAGS, "-DCUDA_HOST_UCONTEXT"))
    out = zeros(96)
    launch(f"// By the system's own contexts.\n{COLLECTIVES}", "sum_warp", 96, out, order=1)
    np.testing.assert_array_equal(
        out.reshape(3, 32), (1024 * np.arange(3) + 496)[:, None] + zeros(32)
    )
