// BM3D on CUDA: matching, collaborative filtering, aggregation. `bm3d_cuda.py` launches these kernels.
//
// Dabov, Foi, Katkovnik and Egiazarian, "Image denoising by sparse 3-D transform-domain collaborative
// filtering", IEEE Transactions on Image Processing 16 (2007) 2080-2095.
//
// Images are padded and in units of the noise, as in `bm3d_cpu.py`; blockIdx.z is the image of a batch.
// Nothing here depends on the order in which thread blocks run, so results repeat bit by bit.

namespace {

constexpr int STEP = 3;
constexpr int BLOCK = 8;
constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;
constexpr float HUGE_DISTANCE = 3e38f;

// ---- Matching ---------------------------------------------------------------------------------
//
// A thread block matches ROWS x n_columns reference blocks with all shifts. First its warps fill a
// table of distances in shared memory: a lane holds the three columns of pixels that begin with its
// reference column, slides the other block down by one row at a time, and adds squared differences
// once for all blocks that share them: triples of rows to blocks within the lane, triples of columns to
// blocks between lanes. The order of the sums is that of `bm3d_cpu.py`. Then each warp picks the
// most similar blocks of one reference after another.

constexpr int ROWS = 3;                       // reference blocks of a lane, one below the other
constexpr int SPAN = STEP * (ROWS + 1) + 2;   // rows of pixels that they cover
constexpr int SIDE_BY_SIDE = 8;               // lanes that share sums; the last two only give
constexpr int SHIFTS_AT_ONCE = LANES / SIDE_BY_SIDE;
constexpr int RUNS = 3;                       // parts of a column of shifts, one for a warp each
constexpr int MATCH_WARPS = 8;
constexpr int LIST = 64;                      // candidates that a warp can sort
constexpr int STRIDE = 8 * LANES;             // distances that a warp looks at together
constexpr int SPIN = 12;
constexpr int MOST_HALVINGS = 8;

// Room for the distances of one reference block: whole strides, the rest of them filled with huge ones;
// and 4 more, so that lanes side by side write to other banks.
__device__ __forceinline__ int room_for(int n_shifts) {
  return (n_shifts + STRIDE - 1) / STRIDE * STRIDE + 4;
}

// Sums of squared differences of the blocks below each other in this lane, over two or three columns.
__device__ __forceinline__ void measure(const float (&home)[SPAN][3], const float (*away)[3],
                                        float (&narrow)[ROWS], float (&wide)[ROWS]) {
  float narrow_2[ROWS + 2], narrow_3[ROWS + 1], third_2[ROWS + 2], wide_3[ROWS + 1];
#pragma unroll
  for (int cell = 0; cell < ROWS + 2; cell++) {
    float d[3][3];
#pragma unroll
    for (int y = 0; y < 3; y++) {
#pragma unroll
      for (int x = 0; x < 3; x++) {
        const int row = STEP * cell + y;
        d[y][x] = row < SPAN ? home[row][x] - away[row][x] : 0.0f;
      }
    }
    narrow_2[cell] = __fmaf_rn(
        d[1][1], d[1][1],
        __fmaf_rn(d[1][0], d[1][0], __fmaf_rn(d[0][1], d[0][1], __fmul_rn(d[0][0], d[0][0]))));
    third_2[cell] = __fmaf_rn(d[1][2], d[1][2], __fmul_rn(d[0][2], d[0][2]));
    if (cell <= ROWS) {
      narrow_3[cell] = __fmaf_rn(d[2][1], d[2][1], __fmaf_rn(d[2][0], d[2][0], narrow_2[cell]));
      wide_3[cell] = narrow_3[cell] + __fmaf_rn(d[2][2], d[2][2], third_2[cell]);
    }
  }
#pragma unroll
  for (int i = 0; i < ROWS; i++) {
    narrow[i] = narrow_3[i] + narrow_3[i + 1] + narrow_2[i + 2];
    wide[i] = wide_3[i] + wide_3[i + 1] + (narrow_2[i + 2] + third_2[i + 2]);
  }
}

__device__ __forceinline__ void load_triple(const float* source, float (&triple)[3]) {
#pragma unroll
  for (int x = 0; x < 3; x++) triple[x] = source[x];
}

// Fill the table (n_down x n_columns, room), shifts in the order of an image. UNROLLED steps of a
// run are written out, after which the registers move up; WHOLE runs have just as many.
template <int UNROLLED, bool WHOLE>
__device__ __forceinline__ void fill_table(const float* corner, int width, int window, int n_down,
                                           int n_columns, float* table) {
  const int lane = threadIdx.x % LANES, half = window / 2, room = room_for(window * window);
  const int column = lane % SIDE_BY_SIDE;
  const int n_quads = (window + SHIFTS_AT_ONCE - 1) / SHIFTS_AT_ONCE;
  const int run_length = (window + RUNS - 1) / RUNS;
  const float* here = corner + STEP * column;
  float home[SPAN][3];
#pragma unroll
  for (int row = 0; row < SPAN; row++) load_triple(here + row * width, home[row]);

  for (int task = threadIdx.x / LANES; task < n_quads * RUNS; task += MATCH_WARPS) {
    const int dx = task / RUNS * SHIFTS_AT_ONCE + lane / SIDE_BY_SIDE;
    const int first = task % RUNS * run_length;
    const int n_steps = WHOLE ? UNROLLED : min(run_length, window - first);
    const bool stores = dx < window && column < n_columns;
    const float* next = here + (first - half) * width + min(dx, window - 1) - half;
    float* entries[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      entries[i] = table + (i * n_columns + column) * room + first * window + dx;
    float away[SPAN - 1 + UNROLLED][3];
#pragma unroll
    for (int row = 0; row < SPAN - 1; row++, next += width) load_triple(next, away[row]);
    for (int start = 0; start < n_steps; start += UNROLLED) {
#pragma unroll
      for (int k = 0; k < UNROLLED; k++) {
        if (WHOLE || start + k < n_steps) {
          load_triple(next, away[SPAN - 1 + k]);
          next += width;
          float narrow[ROWS], wide[ROWS];
          measure(home, away + k, narrow, wide);
#pragma unroll
          for (int i = 0; i < ROWS; i++) {
            const float sum = wide[i] + __shfl_down_sync(ALL, wide[i], 1) +
                              __shfl_down_sync(ALL, narrow[i], 2);
            if (stores && i < n_down) *entries[i] = sum;
            entries[i] += window;
          }
        }
      }
#pragma unroll
      for (int row = 0; row < SPAN - 1; row++) {
#pragma unroll
        for (int x = 0; x < 3; x++) away[row][x] = away[row + UNROLLED][x];
      }
    }
  }
}

__device__ __forceinline__ int sum_over_warp(int value) {
#pragma unroll
  for (int gap = LANES / 2; gap > 0; gap /= 2) value += __shfl_xor_sync(ALL, value, gap);
  return value;
}

// The `rank`-th smallest (from 0) of one or two numbers a lane: bitonic sort.
template <int EACH>
__device__ __forceinline__ float pick(float (&v)[EACH], int rank) {
  const int place = EACH * (threadIdx.x % LANES);
#pragma unroll
  for (int size = 2; size <= EACH * LANES; size *= 2) {
    const bool rises = (place & size) == 0;
#pragma unroll
    for (int gap = size / 2; gap >= EACH; gap /= 2) {
      const bool takes_low = rises == ((place & gap) == 0);
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        const float there = __shfl_xor_sync(ALL, v[i], gap / EACH);
        v[i] = takes_low ? fminf(v[i], there) : fmaxf(v[i], there);
      }
    }
    if (EACH == 2) {
      const float low = fminf(v[0], v[EACH - 1]), high = fmaxf(v[0], v[EACH - 1]);
      v[0] = rises ? low : high;
      v[EACH - 1] = rises ? high : low;
    }
  }
  return __shfl_sync(ALL, rank % EACH ? v[EACH - 1] : v[0], rank / EACH);
}

// Upper bound of the `group_size`-th smallest distance: shifts are dealt to bins, EACH a lane, whose
// minima are distances too. Lanes turn by SPIN from one load to the next, or in windows nearly as wide
// as a warp the nearest shifts, which lie in a disc, would share few bins.
template <int EACH>
__device__ __forceinline__ float bound_distance(const float* distances, int n_shifts,
                                                int group_size) {
  float bins[EACH];
#pragma unroll
  for (int i = 0; i < EACH; i++) bins[i] = HUGE_DISTANCE;
  for (int start = 0; start < n_shifts; start += STRIDE) {
#pragma unroll
    for (int k = 0; k < STRIDE / LANES; k++) {
      const int lane = (threadIdx.x + SPIN * k) % LANES;
      bins[k % EACH] = fminf(bins[k % EACH], distances[start + LANES * k + lane]);
    }
  }
  return pick<EACH>(bins, group_size - 1);
}

// Which shifts belong to a group: nearer than the bound, or as near and of no later rank than `last`.
struct Cut {
  float bound;
  int last;
};

template <bool TIES>
__device__ __forceinline__ bool is_within(float distance, int s, const Cut& cut,
                                          const unsigned short* ranks) {
  if (!TIES) return distance <= cut.bound;
  return distance < cut.bound || (distance == cut.bound && ranks[s] <= cut.last);
}

template <bool TIES>
__device__ int count_within(const float* distances, int n_shifts, const Cut& cut,
                            const unsigned short* ranks) {
  int n = 0;
  for (int s = threadIdx.x % LANES; s < n_shifts; s += LANES)
    n += is_within<TIES>(distances[s], s, cut, ranks);
  return sum_over_warp(n);
}

// Halve a bound that leaves more than a list holds until it leaves as many as the group and the list hold
// both; false where that does not happen soon.
__device__ bool halve_bound(const float* distances, int n_shifts, int group_size,
                            const unsigned short* ranks, Cut& cut) {
  float low = 0.0f, high = cut.bound;
  for (int k = 0; k < MOST_HALVINGS; k++) {
    cut.bound = 0.5f * (low + high);
    const int n = count_within<false>(distances, n_shifts, cut, ranks);
    if (n >= group_size && n <= LIST) return true;
    if (n < group_size) low = cut.bound;
    else high = cut.bound;
  }
  return false;
}

// The exact cut that leaves `group_size` shifts, for the rare reference (flat ground) where no bound
// does: bisection on the bits of the distance, then on the rank among equals.
__device__ Cut find_cut(const float* distances, int n_shifts, int group_size, float limit,
                        const unsigned short* ranks) {
  int low = -1, high = __float_as_int(limit);
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    const Cut cut = {__int_as_float(middle), 0};
    if (count_within<false>(distances, n_shifts, cut, ranks) >= group_size) high = middle;
    else low = middle;
  }
  Cut cut = {__int_as_float(high), n_shifts};
  low = -1, high = n_shifts - 1;
  while (high - low > 1) {
    cut.last = low + (high - low) / 2;
    if (count_within<true>(distances, n_shifts, cut, ranks) >= group_size) high = cut.last;
    else low = cut.last;
  }
  cut.last = high;
  return cut;
}

// List the shifts within a cut as keys that sort by distance, then by rank; LIST + 1 if too many.
template <bool TIES>
__device__ int list_within(const float* distances, int n_shifts, const Cut& cut,
                           const unsigned short* ranks, unsigned long long* list) {
  const int lane = threadIdx.x % LANES;
  int listed = 0;
  for (int start = 0; start < n_shifts; start += LANES * LANES) {
    unsigned hits = 0;
    for (int part = 0; part < LANES && start + LANES * part < n_shifts; part += STRIDE / LANES) {
      unsigned some = 0;
#pragma unroll
      for (int k = 0; k < STRIDE / LANES; k++) {
        const int s = start + LANES * (part + k) + lane;
        if (is_within<TIES>(distances[s], s, cut, ranks)) some |= 1u << k;
      }
      hits |= some << part;
    }
    const int mine = __popc(hits);
    int until_here = mine;
#pragma unroll
    for (int gap = 1; gap < LANES; gap *= 2) {
      const int before = __shfl_up_sync(ALL, until_here, gap);
      if (lane >= gap) until_here += before;
    }
    const int found = __shfl_sync(ALL, until_here, LANES - 1);
    if (listed + found > LIST) return LIST + 1;
    int at = listed + until_here - mine;
    for (; hits != 0; hits &= hits - 1) {
      const int s = start + LANES * (__ffs(hits) - 1) + lane;
      const unsigned long long bits = __float_as_uint(distances[s]);
      list[at++] = bits << 32 | ranks[s];
    }
    listed += found;
  }
  return listed;
}

// Write the group of one reference block; `list` holds LIST keys.
__device__ void write_group(const float* distances, int n_shifts, int group_size, float limit,
                            const unsigned short* ranks, const int* offsets, int here,
                            unsigned long long* list, int* group, int* size_of_group) {
  const int lane = threadIdx.x % LANES;
  const float bound = group_size <= LANES / 2 ? bound_distance<1>(distances, n_shifts, group_size)
                                               : bound_distance<2>(distances, n_shifts, group_size);
  Cut cut = {fminf(limit, bound), 0};
  int listed = list_within<false>(distances, n_shifts, cut, ranks, list);
  if (listed > LIST) {
    __syncwarp();  // before others write where these did
    if (halve_bound(distances, n_shifts, group_size, ranks, cut)) {
      listed = list_within<false>(distances, n_shifts, cut, ranks, list);
    } else {
      cut = find_cut(distances, n_shifts, group_size, limit, ranks);
      listed = list_within<true>(distances, n_shifts, cut, ranks, list);
    }
  }
  __syncwarp();
  const unsigned long long none = ~0ull;
  const unsigned long long first = lane < listed ? list[lane] : none;
  const unsigned long long second = lane + LANES < listed ? list[lane + LANES] : none;
  int first_place = 0, second_place = 0;
#pragma unroll 4
  for (int k = 0; k < listed; k++) first_place += list[k] < first;
  if (listed > LANES) {
#pragma unroll 4
    for (int k = 0; k < listed; k++) second_place += list[k] < second;
  }
  const int size = 1 << (LANES - 1 - __clz(min(listed, group_size)));
  if (lane < listed && first_place < size) group[first_place] = here + offsets[first & 0xffffu];
  if (lane + LANES < listed && second_place < size)
    group[second_place] = here + offsets[second & 0xffffu];
  for (int k = size + lane; k < group_size; k += LANES) group[k] = 0;
  if (lane == 0) *size_of_group = size;
  __syncwarp();
}

}  // namespace

#if !defined(ONLY) || ONLY == 0
// Groups of similar blocks. Grid: (ceil(n_across / n_columns), ceil(n_rows / n_down), images), 256
// threads; shared memory: 8 * 64 * 8 bytes and n_down * n_columns * room floats, with room for
// window * window distances rounded up to 256s, and 4 more; n_down <= 3, n_columns <= 6.
//   guides   (images, n_pixels) padded images, rows of `width` pixels; 16 columns and 6 rows beyond the
//            padded image are read
//   ranks    (window * window) place of each shift, counted as in an image, in the order nearest first
//   offsets  (window * window) dy * width + dx, nearest shift first
//   groups   (images, n_rows * n_across, group_size), sizes (images, n_rows * n_across)
extern "C" __global__ void __launch_bounds__(256, 2)
match_blocks(const float* guides, long long n_pixels, int width, int margin, int first_row, int n_rows,
             int n_across, int window, int n_down, int n_columns, int group_size, float limit,
             const unsigned short* ranks, const int* offsets, int* groups, int* sizes) {
  extern __shared__ unsigned long long match_memory[];
  float* table = reinterpret_cast<float*>(match_memory + MATCH_WARPS * LIST);
  const int n_shifts = window * window, room = room_for(n_shifts), warp = threadIdx.x / LANES;
  const int left = blockIdx.x * n_columns, top = blockIdx.y * n_down;
  const int corner = (margin + STEP * (first_row + top)) * width + margin + STEP * left;
  const float* guide = guides + blockIdx.z * n_pixels + corner;
  if (window == 39)
    fill_table<13, true>(guide, width, window, n_down, n_columns, table);
  else
    fill_table<7, false>(guide, width, window, n_down, n_columns, table);
  for (int k = warp; k < n_down * n_columns; k += MATCH_WARPS)
    for (int s = n_shifts + threadIdx.x % LANES; s < room - 4; s += LANES)
      table[k * room + s] = HUGE_DISTANCE;
  __syncthreads();
  for (int k = warp; k < n_down * n_columns; k += MATCH_WARPS) {
    const int row = k / n_columns, column = k % n_columns;
    if (top + row >= n_rows || left + column >= n_across) continue;
    const long long block = (static_cast<long long>(blockIdx.z) * n_rows + top + row) * n_across +
                            left + column;
    write_group(table + k * room, n_shifts, group_size, limit, ranks, offsets,
                corner + STEP * (row * width + column), match_memory + warp * LIST,
                groups + block * group_size, sizes + block);
  }
}
#endif

namespace {

// ---- Filtering --------------------------------------------------------------------------------
//
// One warp filters the groups of a part of a strip: STRIP rows of reference blocks, one column after another. It
// alone adds to its accumulator, a ring of columns in shared memory that moves along with the strip, so
// no addition there needs to be atomic, and the order of additions is fixed. Columns that no later group
// can reach are added to the sums of the image as integers (fixed point), which commute.
//
// 32 blocks are filtered at a time: one group of 32, two of 16, four of 8, or half a group of 64 (the
// sums, then the differences of its pairs). Two arrangements take turns. "By pixel": a lane
// holds pixels (lane / 8, lane % 8) and (4 + lane / 8, lane % 8) of all 32 blocks; loads and additions touch
// whole rows, and the Haar transform across blocks stays within the lane. "By block": a lane holds one
// block, whose two-dimensional transforms stay within the lane. A buffer in shared memory turns one into the
// other, half a block at a time.
//
// Haar transforms are left without their factors sqrt(1/2); `level` says how many are missing.

constexpr int FILTER_WARPS = 4;           // of a thread block, at most
constexpr int STRIP = 4;
constexpr int FLUSHED = 8;                // columns that leave the ring at a time
constexpr int PIXELS = BLOCK * BLOCK;
constexpr int HALF_BLOCK = PIXELS / 2;
constexpr int SLOTS = 32;                 // blocks at a time
constexpr int TURN_PITCH = SLOTS + 4;
constexpr int TURN = HALF_BLOCK * TURN_PITCH;
constexpr float WEIGHT_TICKS = 1099511627776.0f;  // 2^40 to a weight of one

// Periodic biorthogonal spline wavelet 1.5 without its factors: (mean, coarse detail, 2 middle, 4 fine).
constexpr float TAP = 22.0f / 128.0f;
__device__ __forceinline__ float wavelet_norm(int k) {  // of the rows of the forward transform
  return k == 0 ? 2.8284271f : k == 1 ? 2.9908716f : k < 4 ? 2.0582342f : 1.4142136f;
}
__device__ __forceinline__ int wavelet_shift(int k) {  // its inverse wants coefficients / 2^shift
  return k < 2 ? 3 : k < 4 ? 2 : 1;
}

template <int GAP>
__device__ __forceinline__ void wavelet(float* x) {
  const float d0 = x[GAP] - x[0], d1 = x[3 * GAP] - x[2 * GAP];
  const float d2 = x[5 * GAP] - x[4 * GAP], d3 = x[7 * GAP] - x[6 * GAP];
  const float e = d3 - d1, f = d0 - d2;
  const float low0 = x[GAP] + x[0] + TAP * e, low1 = x[3 * GAP] + x[2 * GAP] + TAP * f;
  const float low2 = x[5 * GAP] + x[4 * GAP] - TAP * e, low3 = x[7 * GAP] + x[6 * GAP] - TAP * f;
  const float left = low0 + low1, right = low2 + low3;
  x[0] = left + right;
  x[GAP] = right - left;
  x[2 * GAP] = low1 - low0;
  x[3 * GAP] = low3 - low2;
  x[4 * GAP] = d0;
  x[5 * GAP] = d1;
  x[6 * GAP] = d2;
  x[7 * GAP] = d3;
}

template <int GAP>
__device__ __forceinline__ void inverse_wavelet(float* x) {
  const float left = x[0] - x[GAP], right = x[0] + x[GAP];
  const float d0 = x[4 * GAP], d1 = x[5 * GAP], d2 = x[6 * GAP], d3 = x[7 * GAP];
  const float e = d3 - d1, f = d0 - d2;
  const float s0 = left - x[2 * GAP] - TAP * e, s1 = left + x[2 * GAP] - TAP * f;
  const float s2 = right - x[3 * GAP] + TAP * e, s3 = right + x[3 * GAP] + TAP * f;
  x[0] = s0 - d0;
  x[GAP] = s0 + d0;
  x[2 * GAP] = s1 - d1;
  x[3 * GAP] = s1 + d1;
  x[4 * GAP] = s2 - d2;
  x[5 * GAP] = s2 + d2;
  x[6 * GAP] = s3 - d3;
  x[7 * GAP] = s3 + d3;
}

// Orthonormal cosine transform, type II; C1 = cos(pi / 16) / 2 and so on.
constexpr float C1 = 0.49039264f, C2 = 0.46193977f, C3 = 0.41573481f, C4 = 0.35355339f;
constexpr float C5 = 0.27778512f, C6 = 0.19134172f, C7 = 0.09754516f;

template <int GAP>
__device__ __forceinline__ void cosine(float* x) {
  const float s0 = x[0] + x[7 * GAP], s1 = x[GAP] + x[6 * GAP];
  const float s2 = x[2 * GAP] + x[5 * GAP], s3 = x[3 * GAP] + x[4 * GAP];
  const float d0 = x[0] - x[7 * GAP], d1 = x[GAP] - x[6 * GAP];
  const float d2 = x[2 * GAP] - x[5 * GAP], d3 = x[3 * GAP] - x[4 * GAP];
  const float outer = s0 + s3, inner = s1 + s2, p = s0 - s3, q = s1 - s2;
  x[0] = C4 * (outer + inner);
  x[GAP] = C1 * d0 + C3 * d1 + C5 * d2 + C7 * d3;
  x[2 * GAP] = C2 * p + C6 * q;
  x[3 * GAP] = C3 * d0 - C7 * d1 - C1 * d2 - C5 * d3;
  x[4 * GAP] = C4 * (outer - inner);
  x[5 * GAP] = C5 * d0 - C1 * d1 + C7 * d2 + C3 * d3;
  x[6 * GAP] = C6 * p - C2 * q;
  x[7 * GAP] = C7 * d0 - C5 * d1 + C3 * d2 - C1 * d3;
}

template <int GAP>
__device__ __forceinline__ void inverse_cosine(float* x) {
  const float x1 = x[GAP], x3 = x[3 * GAP], x5 = x[5 * GAP], x7 = x[7 * GAP];
  const float sum = C4 * (x[0] + x[4 * GAP]), difference = C4 * (x[0] - x[4 * GAP]);
  const float p = C2 * x[2 * GAP] + C6 * x[6 * GAP], q = C6 * x[2 * GAP] - C2 * x[6 * GAP];
  const float s0 = sum + p, s1 = difference + q, s2 = difference - q, s3 = sum - p;
  const float d0 = C1 * x1 + C3 * x3 + C5 * x5 + C7 * x7;
  const float d1 = C3 * x1 - C7 * x3 - C1 * x5 - C5 * x7;
  const float d2 = C5 * x1 - C1 * x3 + C7 * x5 + C3 * x7;
  const float d3 = C7 * x1 - C5 * x3 + C3 * x5 - C1 * x7;
  x[0] = s0 + d0;
  x[GAP] = s1 + d1;
  x[2 * GAP] = s2 + d2;
  x[3 * GAP] = s3 + d3;
  x[4 * GAP] = s3 - d3;
  x[5 * GAP] = s2 - d2;
  x[6 * GAP] = s1 - d1;
  x[7 * GAP] = s0 - d0;
}

// What a warp works with; offsets in bytes.
struct Strip {
  const float* noisy;
  const float* basic;
  unsigned upper, lower;    // offset of this lane's pixels in a block of the image
  float* turn;              // TURN floats
  const unsigned* places;   // offsets of blocks in the image, two a slot for groups of 64
  const unsigned* marks;    // as many: row of the ring (offset) << 10, and column (offset)
  float* ring;              // at this lane's upper pixel of a block in the corner, without the column
  unsigned column;          // offset of this lane's column
  unsigned wrap;            // bytes of a row of the ring
  unsigned below;           // offset of the lower pixel
  int slot;                 // place of this lane's block in its group
  int sizes[SLOTS / 8];     // used slots of each group, a power of two or 0
  bool paired;              // groups of 64: a slot holds two blocks, not one
};

__device__ __forceinline__ float read_at(const char* source, unsigned offset) {
  return *reinterpret_cast<const float*>(source + offset);
}

// Haar transform across the slots of each group, as far as its size goes; or the same steps in reverse
// order, which undo it but for factors of two.
template <int GROUP, bool INVERSE>
__device__ __forceinline__ void haar(float (&v)[SLOTS], const int (&sizes)[SLOTS / 8]) {
#pragma unroll
  for (int g = 0; g < SLOTS / GROUP; g++) {
#pragma unroll
    for (int step = 1; step < GROUP; step *= 2) {
      const int gap = INVERSE ? GROUP / 2 / step : step;
      if (gap < sizes[g]) {
#pragma unroll
        for (int k = g * GROUP; k < (g + 1) * GROUP; k += 2 * gap) {
          const float left = v[k], right = v[k + gap];
          v[k] = left + right;
          v[k + gap] = left - right;
        }
      }
    }
  }
}

// Half a block from "by pixel" to "by block".
__device__ __forceinline__ void turn_to_blocks(float* turn, const float (&v)[SLOTS], float* half) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int k = 0; k < SLOTS; k += 4)
    *reinterpret_cast<float4*>(turn + lane * TURN_PITCH + k) =
        make_float4(v[k], v[k + 1], v[k + 2], v[k + 3]);
  __syncwarp();
#pragma unroll
  for (int p = 0; p < HALF_BLOCK; p++) half[p] = turn[p * TURN_PITCH + lane];
  __syncwarp();
}

// And back.
__device__ __forceinline__ void turn_to_pixels(float* turn, const float* half, float (&v)[SLOTS]) {
  const int lane = threadIdx.x;
#pragma unroll
  for (int p = 0; p < HALF_BLOCK; p++) turn[p * TURN_PITCH + lane] = half[p];
  __syncwarp();
#pragma unroll
  for (int k = 0; k < SLOTS; k += 4) {
    const float4 four = *reinterpret_cast<float4*>(turn + lane * TURN_PITCH + k);
    v[k] = four.x;
    v[k + 1] = four.y;
    v[k + 2] = four.z;
    v[k + 3] = four.w;
  }
  __syncwarp();
}

// How groups of up to GROUP blocks fill the slots. PART of a group of 64: the differences of its pairs
// of blocks (1), then the sums (0).
template <int GROUP>
struct Shape {
  static constexpr bool PAIRS = GROUP > SLOTS;
  static constexpr int IN_SLOTS = PAIRS ? SLOTS : GROUP;
  static constexpr int AT_ONCE = SLOTS / IN_SLOTS;
  static constexpr int PER_SLOT = PAIRS ? 2 : 1;
  static constexpr int LEVELS = IN_SLOTS == 8 ? 4 : IN_SLOTS == 16 ? 5 : 6;  // sizes 1, 2, 4 ...
};

// A number that is known when the code is compiled: registers cannot be indexed by others.
template <int VALUE>
struct Number {
  static constexpr int value = VALUE;
};

// act(Number<k>()) for all k in [FIRST, STOP).
template <int FIRST, int STOP, class Act>
__device__ __forceinline__ void for_each(const Act& act) {
  if constexpr (FIRST < STOP) {
    act(Number<FIRST>());
    for_each<FIRST + 1, STOP>(act);
  }
}

// act(Number<group>(), Number<slot>()) for all used slots; sizes are powers of two, so few branches do.
template <int GROUP, class Act>
__device__ __forceinline__ void for_used(const int (&sizes)[SLOTS / 8], const Act& act) {
  using Slots = Shape<GROUP>;
  for_each<0, Slots::AT_ONCE>([&](auto group) {
    constexpr int g = decltype(group)::value;
    for_each<0, Slots::LEVELS>([&](auto level) {
      constexpr int stop = 1 << decltype(level)::value, start = stop / 2;
      if (start < sizes[g])
        for_each<start, stop>([&](auto i) {
          act(group, Number<g * Slots::IN_SLOTS + decltype(i)::value>());
        });
    });
  });
}

// One pixel a lane of all blocks, transformed across blocks.
template <int GROUP, int PART>
__device__ __forceinline__ void load_pixels(const Strip& strip, const float* image, unsigned pixel,
                                            float (&v)[SLOTS]) {
  using Slots = Shape<GROUP>;
  const char* source = reinterpret_cast<const char*>(image) + pixel;
#pragma unroll
  for (int k = 0; k < SLOTS; k++) v[k] = 0.0f;
  for_used<GROUP>(strip.sizes, [&](auto, auto slot) {
    constexpr int k = decltype(slot)::value;
    if constexpr (Slots::PAIRS) {
      const float left = read_at(source, strip.places[2 * k]);
      const float right = strip.paired ? read_at(source, strip.places[2 * k + 1]) : 0.0f;
      v[k] = PART ? left - right : left + right;
    } else {
      v[k] = read_at(source, strip.places[k]);
    }
  });
  if (!PART) haar<Slots::IN_SLOTS, false>(v, strip.sizes);
}

// Blocks transformed across blocks, "by block".
template <int GROUP, int PART>
__device__ __forceinline__ void load_blocks(const Strip& strip, const float* image,
                                            float (&block)[PIXELS]) {
  float v[SLOTS];
  load_pixels<GROUP, PART>(strip, image, strip.upper, v);
  turn_to_blocks(strip.turn, v, block);
  load_pixels<GROUP, PART>(strip, image, strip.lower, v);
  turn_to_blocks(strip.turn, v, block + HALF_BLOCK);
}

// Factors sqrt(1/2) that the Haar transform owes the coefficients of this lane.
template <int GROUP, int PART>
__device__ __forceinline__ int missing_level(const Strip& strip) {
  using Slots = Shape<GROUP>;
  if (PART) return 1;
  int size = strip.sizes[0];
#pragma unroll
  for (int g = 1; g < Slots::AT_ONCE; g++)
    if (static_cast<int>(threadIdx.x) >= g * Slots::IN_SLOTS) size = strip.sizes[g];
  const int level = strip.slot ? __ffs(strip.slot) : LANES - 1 - __clz(max(size, 1));
  return Slots::PAIRS && strip.paired ? level + 1 : level;
}

__device__ __forceinline__ float power_of_two(int exponent) {
  return __int_as_float((127 + exponent) << 23);
}

// Threshold the coefficients of a block; returns how many are kept.
__device__ __forceinline__ float threshold_block(float (&block)[PIXELS], float threshold, int level) {
#pragma unroll
  for (int y = 0; y < BLOCK; y++) wavelet<1>(block + BLOCK * y);
#pragma unroll
  for (int x = 0; x < BLOCK; x++) wavelet<BLOCK>(block + x);
  const float limit = threshold * power_of_two(level / 2) * (level % 2 ? 1.4142136f : 1.0f);
  int kept = 0;
#pragma unroll
  for (int y = 0; y < BLOCK; y++) {
#pragma unroll
    for (int x = 0; x < BLOCK; x++) {
      float& value = block[BLOCK * y + x];
      const bool keep = fabsf(value) > limit * (wavelet_norm(y) * wavelet_norm(x));
      kept += keep;
      value = keep ? value * power_of_two(-level - wavelet_shift(y) - wavelet_shift(x)) : 0.0f;
    }
  }
#pragma unroll
  for (int x = 0; x < BLOCK; x++) inverse_wavelet<BLOCK>(block + x);
#pragma unroll
  for (int y = 0; y < BLOCK; y++) inverse_wavelet<1>(block + BLOCK * y);
  return static_cast<float>(kept);
}

__device__ __forceinline__ void cosine_block(float (&block)[PIXELS]) {
#pragma unroll
  for (int y = 0; y < BLOCK; y++) cosine<1>(block + BLOCK * y);
#pragma unroll
  for (int x = 0; x < BLOCK; x++) cosine<BLOCK>(block + x);
}

// Wiener filter a block by the pilot's coefficients; returns the energy of the gains.
__device__ __forceinline__ float attenuate_block(float (&block)[PIXELS], float (&pilot)[PIXELS],
                                                 int level) {
  const float noise = power_of_two(level), factor = power_of_two(-level);
  float energy = 0.0f;
#pragma unroll
  for (int p = 0; p < PIXELS; p++) {
    const float power = pilot[p] * pilot[p];
    const float gain = __fdividef(power, power + noise);
    energy += gain * gain;
    block[p] *= gain * factor;
  }
#pragma unroll
  for (int x = 0; x < BLOCK; x++) inverse_cosine<BLOCK>(block + x);
#pragma unroll
  for (int y = 0; y < BLOCK; y++) inverse_cosine<1>(block + BLOCK * y);
  return energy;
}

// Filter 32 slots: both halves of the estimates "by pixel", and kept coefficients or energy of this lane.
template <int GROUP, int PART, bool WIENER>
__device__ __forceinline__ float filter_slots(const Strip& strip, float threshold,
                                              float (&upper)[SLOTS], float (&lower)[SLOTS]) {
  float block[PIXELS];
  const int level = missing_level<GROUP, PART>(strip);
  float strength;
  if (WIENER) {
    float pilot[PIXELS];
    load_blocks<GROUP, PART>(strip, strip.basic, pilot);
    cosine_block(pilot);
    load_blocks<GROUP, PART>(strip, strip.noisy, block);
    cosine_block(block);
    strength = attenuate_block(block, pilot, level);
  } else {
    load_blocks<GROUP, PART>(strip, strip.noisy, block);
    strength = threshold_block(block, threshold, level);
  }
  turn_to_pixels(strip.turn, block, upper);
  turn_to_pixels(strip.turn, block + HALF_BLOCK, lower);
  if (!PART) {
    haar<Shape<GROUP>::IN_SLOTS, true>(upper, strip.sizes);
    haar<Shape<GROUP>::IN_SLOTS, true>(lower, strip.sizes);
  }
  return strength;
}

// Add one block, two pixels a lane, to the ring.
__device__ __forceinline__ void add_to_ring(const Strip& strip, int place, float upper, float lower) {
  const unsigned mark = strip.marks[place];
  // Beyond the end of the row it goes on at its begin; before, the difference is a huge number.
  const unsigned across = (mark & 1023u) + strip.column;
  char* at = reinterpret_cast<char*>(strip.ring) + (mark >> 10) + min(across, across - strip.wrap);
  *reinterpret_cast<float*>(at) += upper;
  *reinterpret_cast<float*>(at + strip.below) += lower;
  // The next block may lie over this one.
  __syncwarp();
}

template <int GROUP, bool WIENER>
__device__ __forceinline__ float weigh(float strength) {
#pragma unroll
  for (int gap = Shape<GROUP>::IN_SLOTS / 2; gap > 0; gap /= 2)
    strength += __shfl_xor_sync(ALL, strength, gap);
  return 1.0f / fmaxf(strength, WIENER ? 1e-3f : 1.0f);
}

// Filter the groups in the slots and add them to the ring; the weight of this lane's group is returned.
template <int GROUP, bool WIENER>
__device__ __forceinline__ float filter_groups(const Strip& strip, float threshold, float upper_blend,
                                               float lower_blend) {
  using Slots = Shape<GROUP>;
  float upper[SLOTS], lower[SLOTS], upper_difference[SLOTS], lower_difference[SLOTS];
  float strength = 0.0f;
  if (Slots::PAIRS && strip.paired)
    strength = filter_slots<GROUP, 1, WIENER>(strip, threshold, upper_difference, lower_difference);
  strength += filter_slots<GROUP, 0, WIENER>(strip, threshold, upper, lower);
  const float weight = weigh<GROUP, WIENER>(strength);
  for_used<GROUP>(strip.sizes, [&](auto group, auto slot) {
    constexpr int k = decltype(slot)::value;
    const float here = __shfl_sync(ALL, weight, decltype(group)::value * Slots::IN_SLOTS);
    const float up = upper_blend * here, low = lower_blend * here;
    if constexpr (Slots::PAIRS) {
      const float upper_change = strip.paired ? upper_difference[k] : 0.0f;
      const float lower_change = strip.paired ? lower_difference[k] : 0.0f;
      add_to_ring(strip, 2 * k, up * (upper[k] + upper_change), low * (lower[k] + lower_change));
      if (strip.paired)
        add_to_ring(strip, 2 * k + 1, up * (upper[k] - upper_change),
                    low * (lower[k] - lower_change));
    } else {
      add_to_ring(strip, k, up * upper[k], low * lower[k]);
    }
  });
  return weight;
}

// Sums of an image, as integers, where its padded pixels are.
struct Sums {
  unsigned long long* values;
  unsigned long long* weights;
  float ticks;  // to a value of one
};

__device__ __forceinline__ void add_ticks(unsigned long long* to, float ticks) {
  atomicAdd(to, static_cast<unsigned long long>(__float2ll_rn(ticks)));
}

// Add FLUSHED columns of a ring to the sums and clear them.
__device__ __forceinline__ void flush_ring(float* ring, int ring_columns, int n_rows, int width, int top,
                                           int first_column, const Sums& sums) {
  const int column = first_column + threadIdx.x % FLUSHED;
  float* at = ring + column % ring_columns;
  for (int row = threadIdx.x / FLUSHED; row < n_rows; row += LANES / FLUSHED) {
    float& value = at[row * ring_columns];
    // Blocks never reach outside of the image: what lies there is zero.
    if (value != 0.0f)
      add_ticks(sums.values + (top + row) * width + column, value * sums.ticks);
    value = 0.0f;
  }
  __syncwarp();
}

// Read the groups of AT_ONCE reference blocks below each other; blocks of this lane, -1 for none.
template <int GROUP>
__device__ __forceinline__ void read_groups(const int* groups, const int* sizes, int group_size,
                                            long long block, int n_across, int rows_left,
                                            int (&place)[2]) {
  using Slots = Shape<GROUP>;
  const int lane = threadIdx.x, g = lane / Slots::IN_SLOTS;
  place[0] = place[1] = -1;
  if (g >= rows_left) return;
  const long long here = block + static_cast<long long>(g) * n_across;
  const int size = sizes[here], slot = lane % Slots::IN_SLOTS;
#pragma unroll
  for (int k = 0; k < Slots::PER_SLOT; k++)
    if (Slots::PER_SLOT * slot + k < size)
      place[k] = groups[here * group_size + Slots::PER_SLOT * slot + k];
}

template <int GROUP, bool WIENER>
__device__ __forceinline__ void filter_strip(const float* noisy, const float* basic, long long n_pixels,
                                             int width, int margin, int first_row, int n_rows,
                                             int n_across, int window, int ring_columns,
                                             int group_size, const int* groups, const int* sizes,
                                             float threshold,
                                             const float* blend, const float* ticks,
                                             unsigned long long* values,
                                             unsigned long long* weights, int part_columns) {
  using Slots = Shape<GROUP>;
  extern __shared__ float4 filter_memory[];
  const int lane = threadIdx.x, half = window / 2, y = lane / BLOCK, x = lane % BLOCK;
  const int ring_rows = STEP * (STRIP - 1) + BLOCK + 2 * half;
  // The last warps of an image may have nothing to do.
  const int n_parts = (n_across + part_columns - 1) / part_columns;
  const int place_of_warp = blockIdx.x * blockDim.y + threadIdx.y;
  const int first = place_of_warp % n_parts * part_columns, row = place_of_warp / n_parts * STRIP;
  const int strip_rows = max(0, min(STRIP, n_rows - row));
  const int top = margin + STEP * (first_row + row) - half;
  // A number that the compiler cannot know (it is 0) keeps the address in a register, where otherwise
  // each use would work it out anew.
  float* turn = reinterpret_cast<float*>(filter_memory) + __shfl_sync(ALL, 0, 0) +
                threadIdx.y * (TURN + 4 * SLOTS + ring_rows * ring_columns);
  unsigned* places = reinterpret_cast<unsigned*>(turn + TURN);
  unsigned* marks = places + 2 * SLOTS;
  float* ring = reinterpret_cast<float*>(marks + 2 * SLOTS);
  for (int k = lane; k < ring_rows * ring_columns; k += LANES) ring[k] = 0.0f;

  Strip strip = {};
  strip.noisy = noisy + blockIdx.z * n_pixels;
  strip.basic = basic + blockIdx.z * n_pixels;
  strip.upper = 4u * (y * width + x);
  strip.lower = 4u * ((y + BLOCK / 2) * width + x);
  strip.turn = turn;
  strip.places = places;
  strip.marks = marks;
  strip.ring = ring + y * ring_columns;
  strip.column = 4u * x;
  strip.wrap = 4u * ring_columns;
  strip.below = 4u * (BLOCK / 2 * ring_columns);
  strip.slot = lane % Slots::IN_SLOTS;
  const Sums sums = {values + blockIdx.z * n_pixels, weights + blockIdx.z * n_pixels,
                     ticks[blockIdx.z]};
  const float upper_blend = blend[y] * blend[x], lower_blend = blend[BLOCK / 2 + y] * blend[x];

  const long long corner = (static_cast<long long>(blockIdx.z) * n_rows + row) * n_across;
  int flushed = margin + STEP * first - half;
  int next[2];
  read_groups<GROUP>(groups, sizes, group_size, corner + first, n_across, strip_rows, next);
  for (int column = first; column < first + part_columns; column++) {
    if (flushed + FLUSHED <= margin + STEP * column - half) {
      flush_ring(ring, ring_columns, ring_rows, width, top, flushed, sums);
      flushed += FLUSHED;
    }
    for (int i = 0; i < STRIP; i += Slots::AT_ONCE) {
      // Instructions come from far and are many; warps that keep step wait for them together.
      __syncthreads();
      if (column >= n_across || i >= strip_rows) continue;
      const int place[2] = {next[0], next[1]};
      // Asked for early: the answer is on its way while this group is filtered.
      const bool below = i + Slots::AT_ONCE < strip_rows;
      const int next_row = below ? i + Slots::AT_ONCE : 0, next_column = column + !below;
      if (next_column < min(first + part_columns, n_across))
        read_groups<GROUP>(groups, sizes, group_size, corner + next_row * n_across + next_column,
                           n_across, strip_rows - next_row, next);
      const unsigned used = __ballot_sync(ALL, place[0] >= 0);
      strip.paired = Slots::PAIRS && __any_sync(ALL, place[1] >= 0);
#pragma unroll
      for (int g = 0; g < Slots::AT_ONCE; g++)
        strip.sizes[g] = __popc(used << (LANES - (g + 1) * Slots::IN_SLOTS) >>
                                (LANES - Slots::IN_SLOTS));
#pragma unroll
      for (int k = 0; k < Slots::PER_SLOT; k++) {
        if (place[k] >= 0) {
          const int down = place[k] / width, across = place[k] - down * width;
          places[Slots::PER_SLOT * lane + k] = 4u * place[k];
          marks[Slots::PER_SLOT * lane + k] =
              4u * ((down - top) * ring_columns) << 10 | 4u * (across % ring_columns);
        }
      }
      __syncwarp();
      float weight;
      if (!Slots::PAIRS && used == ALL) {
        // Sizes that are known when the code is compiled leave no branches.
        Strip full = strip;
#pragma unroll
        for (int g = 0; g < Slots::AT_ONCE; g++) full.sizes[g] = Slots::IN_SLOTS;
        weight = filter_groups<GROUP, WIENER>(full, threshold, upper_blend, lower_blend);
      } else {
        weight = filter_groups<GROUP, WIENER>(strip, threshold, upper_blend, lower_blend);
      }
#pragma unroll
      for (int k = 0; k < Slots::PER_SLOT; k++)
        if (place[k] >= 0) add_ticks(sums.weights + place[k], weight * WEIGHT_TICKS);
    }
  }
  for (int k = 0; strip_rows && k < ring_columns; k += FLUSHED)
    flush_ring(ring, ring_columns, ring_rows, width, top, flushed + k, sums);
}

}  // namespace

// Filter groups and add them to the sums. Grid: (ceil(parts / warps), 1, images), (32, warps) threads, at
// most FILTER_WARPS warps; strips of 4 rows have ceil(n_across / part_columns) parts each. Shared memory of
// a warp: 1152 + 128 + (17 + 2 * (window / 2)) * ring_columns floats.
//   noisy, basic  (images, n_pixels) padded images in units of the noise; hard thresholding reads the first
//   groups, sizes from `match_blocks`; group_size <= GROUP places a group
//   ring_columns  a multiple of 8, at least 2 * (window / 2) + 15
//   blend         (8) window of a block along one side
//   ticks         (images) of the sums to a value of one; a power of two
//   values, weights  (images, n_pixels) sums of the estimates, and weights of the blocks at their corners
// ONLY, if defined, is the one GROUP to compile, or 0 for all but the filters: a part of the time of all.
#define FILTER(NAME, GROUP, WIENER, RESIDENT)                                                           \
  extern "C" __global__ void __launch_bounds__(32 * FILTER_WARPS, RESIDENT / FILTER_WARPS)              \
  NAME(const float* noisy, const float* basic, long long n_pixels, int width, int margin, int first_row, \
       int n_rows, int n_across, int window, int ring_columns, int group_size, const int* groups,        \
       const int* sizes, float threshold, const float* blend, const float* ticks,                        \
       unsigned long long* values, unsigned long long* weights, int part_columns) {                      \
    filter_strip<GROUP, WIENER>(noisy, basic, n_pixels, width, margin, first_row, n_rows, n_across,      \
                                window, ring_columns, group_size, groups, sizes, threshold, blend,       \
                                ticks, values, weights, part_columns);                                  \
  }

#if !defined(ONLY) || ONLY == 8
FILTER(filter_hard_8, 8, false, 12)
FILTER(filter_wiener_8, 8, true, 12)
#endif
#if !defined(ONLY) || ONLY == 16
FILTER(filter_hard_16, 16, false, 12)
FILTER(filter_wiener_16, 16, true, 12)
#endif
#if !defined(ONLY) || ONLY == 32
FILTER(filter_hard_32, 32, false, 12)
FILTER(filter_wiener_32, 32, true, 12)
#endif
#if !defined(ONLY) || ONLY == 64
FILTER(filter_hard_64, 64, false, 8)
FILTER(filter_wiener_64, 64, true, 8)
#endif

#if !defined(ONLY) || ONLY == 0
// ---- Before and after ---------------------------------------------------------------------------

// Mirror the borders of images and surround them with `far`; one thread a pixel of the padded image.
extern "C" __global__ void pad_images(const float* images, int h, int w, int height, int width, int top,
                                      int left, int border_y, int border_x, float far, float* padded) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  int from_y = y - top, from_x = x - left;
  float value = far;
  if (from_y >= -border_y && from_y < h + border_y && from_x >= -border_x && from_x < w + border_x) {
    from_y = (from_y + 2 * h * BLOCK) % (2 * h);
    from_x = (from_x + 2 * w * BLOCK) % (2 * w);
    from_y = from_y < h ? from_y : 2 * h - 1 - from_y;
    from_x = from_x < w ? from_x : 2 * w - 1 - from_x;
    value = images[(static_cast<long long>(blockIdx.z) * h + from_y) * w + from_x];
  }
  padded[(static_cast<long long>(blockIdx.z) * height + y) * width + x] = value;
}

// Spread the weights of blocks, noted at their corners, down over the rows of the blocks.
extern "C" __global__ void spread_down(const unsigned long long* weights, int height, int width,
                                       const float* blend, float* spread) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const long long at = (static_cast<long long>(blockIdx.z) * height + y) * width + x;
  float sum = 0.0f;
  for (int k = 0; k < BLOCK && k <= y; k++) {
    const long long ticks = static_cast<long long>(weights[at - static_cast<long long>(k) * width]);
    sum += blend[k] * (static_cast<float>(ticks) / WEIGHT_TICKS);
  }
  spread[at] = sum;
}

// Spread them across the columns too and divide the sums by them.
extern "C" __global__ void divide_sums(const unsigned long long* values, const float* spread, int height,
                                       int width, const float* blend, const float* ticks, float far,
                                       float* estimates) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const long long at = (static_cast<long long>(blockIdx.z) * height + y) * width + x;
  float weight = 0.0f;
  for (int k = 0; k < BLOCK && k <= x; k++) weight += blend[k] * spread[at - k];
  const float value = static_cast<float>(static_cast<long long>(values[at])) / ticks[blockIdx.z];
  estimates[at] = weight > 0.0f ? value / weight : far;
}
#endif
