// Central slices of a volume's Fourier transform, and their adjoint, on CUDA. `slices_cuda.py` launches
// these kernels; `slices.py` tells the algorithm.
//
// Beatty, Nishimura and Pauly, "Rapid gridding reconstruction with a minimal oversampling ratio", IEEE
// Transactions on Medical Imaging 24 (2005) 799-808.
//
// A slice is gathered point by point. Its adjoint is gathered too, cell by cell: each adds up the points that
// reach it, image after image. So nothing here depends on the order in which threads run, nor on which
// images come together, and results repeat bit by bit.

namespace {

constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;

// ---- Where points lie -----------------------------------------------------------------------

// The axes of a half plane in cells a step of frequency, (x, y, z) each. Coarse parts have so few bits that
// their products with frequencies, and the sums of these, are exact; fine parts are what is left.
struct View {
  const float* numbers;

  __device__ __forceinline__ float coarse(int axis, int i) const { return numbers[3 * axis + i]; }
  __device__ __forceinline__ float fine(int axis, int i) const { return numbers[6 + 3 * axis + i]; }
  __device__ __forceinline__ float whole(int axis, int i) const { return coarse(axis, i) + fine(axis, i); }
  __device__ __forceinline__ float normal(int i) const { return numbers[12 + i]; }
  // Of the x axis; large where that is next to nothing.
  __device__ __forceinline__ float inverse(int i) const { return numbers[15 + i]; }
};

constexpr int VIEW_FLOATS = 18;

// Signed frequency of a row of `numpy.fft.rfft2`.
__device__ __forceinline__ int frequency(int row, int side) { return row < (side + 1) / 2 ? row : row - side; }

// Whether frequencies lie below Nyquist's.
__device__ __forceinline__ bool in_disc(int kx, int ky, int side) {
  return 4 * (kx * kx + ky * ky) < side * side;
}

// The factor exp(2 pi i turns) of a particle at the pixel side / 2 less the shift. The part of the pixel is
// reduced as integers; the shift is in turns a step of frequency.
__device__ __forceinline__ float2 find_phase(int kx, int ky, int side, float shift_x, float shift_y) {
  const int centre = ((kx + ky) % side) * (side / 2) % side;
  float turns = fmaf(static_cast<float>(kx), shift_x, static_cast<float>(ky) * shift_y);
  turns -= rintf(turns);
  turns -= static_cast<float>(centre) / static_cast<float>(side);
  float2 phase;
  sincospif(2.0f * turns, &phase.y, &phase.x);
  return phase;
}

__device__ __forceinline__ float2 multiply(float2 a, float2 b) {
  return make_float2(fmaf(a.x, b.x, -a.y * b.y), fmaf(a.x, b.y, a.y * b.x));
}

// ---- Slices ---------------------------------------------------------------------------------

// First of the WIDTH cells that a point reaches along an axis, and the offset, -1 to 1, of their polynomials.
template <int WIDTH>
__device__ __forceinline__ int find_first(float coarse, float fine, float& offset) {
  const float below = coarse - 0.5f * static_cast<float>(WIDTH), near = rintf(below);
  const float rest = (below - near) + fine, up = rest > 0.0f ? 1.0f : 0.0f;
  offset = fmaf(2.0f, up - rest, -1.0f);
  return static_cast<int>(near + up);
}

// Weights of the cells along the three axes: polynomials of the offsets, (degree + 1, WIDTH), constants first.
template <int WIDTH>
__device__ __forceinline__ void find_weights(const float* polynomials, int degree, const float (&offsets)[3],
                                             float (&weights)[3][WIDTH]) {
#pragma unroll
  for (int j = 0; j < WIDTH; j++) {
    const float last = polynomials[degree * WIDTH + j];
#pragma unroll
    for (int axis = 0; axis < 3; axis++) weights[axis][j] = last;
  }
  for (int power = degree - 1; power >= 0; power--) {
#pragma unroll
    for (int j = 0; j < WIDTH; j++) {
      const float next = polynomials[power * WIDTH + j];
#pragma unroll
      for (int axis = 0; axis < 3; axis++) weights[axis][j] = fmaf(weights[axis][j], offsets[axis], next);
    }
  }
}

template <int WIDTH>
__device__ __forceinline__ float2 interpolate(const float2* cells, int plane, int row,
                                              const float (&weights)[3][WIDTH]) {
  float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int z = 0; z < WIDTH; z++) {
    float2 layer = make_float2(0.0f, 0.0f);
#pragma unroll
    for (int y = 0; y < WIDTH; y++) {
      float2 line = make_float2(0.0f, 0.0f);
#pragma unroll
      for (int x = 0; x < WIDTH; x++) {
        const float2 cell = cells[z * plane + y * row + x];
        line.x = fmaf(weights[0][x], cell.x, line.x);
        line.y = fmaf(weights[0][x], cell.y, line.y);
      }
      layer.x = fmaf(weights[1][y], line.x, layer.x);
      layer.y = fmaf(weights[1][y], line.y, layer.y);
    }
    sum.x = fmaf(weights[2][z], layer.x, sum.x);
    sum.y = fmaf(weights[2][z], layer.y, sum.y);
  }
  return sum;
}

template <int WIDTH>
__device__ __forceinline__ float2 find_point(const float2* middle, int plane, int row,
                                             const float* polynomials, int degree, View view, int kx,
                                             int ky) {
  const float u = static_cast<float>(kx), v = static_cast<float>(ky);
  float coarse[3], fine[3], offsets[3];
#pragma unroll
  for (int i = 0; i < 3; i++) {
    coarse[i] = fmaf(u, view.coarse(0, i), v * view.coarse(1, i));
    fine[i] = fmaf(u, view.fine(0, i), v * view.fine(1, i));
  }
  // Half of the transform is there; the other is its mate.
  const float sign = coarse[0] + fine[0] < 0.0f ? -1.0f : 1.0f;
  int first[3];
#pragma unroll
  for (int i = 0; i < 3; i++) first[i] = find_first<WIDTH>(sign * coarse[i], sign * fine[i], offsets[i]);
  float weights[3][WIDTH];
  find_weights<WIDTH>(polynomials, degree, offsets, weights);
  const long long at = static_cast<long long>(first[2]) * plane + first[1] * row + first[0];
  float2 value = interpolate<WIDTH>(middle + at, plane, row, weights);
  value.y *= sign;
  return value;
}

// A warp takes 8 x 4 frequencies, which lie close to each other in the volume as well.
template <int WIDTH>
__device__ __forceinline__ void slice_all(const float2* cells, long long middle, int plane, int row,
                                          const float* polynomials, int degree, const float* views,
                                          const float* shifts, int side, float2* slices) {
  extern __shared__ float slice_memory[];
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  for (int i = thread; i < (degree + 1) * WIDTH; i += blockDim.x * blockDim.y)
    slice_memory[i] = polynomials[i];
  __syncthreads();
  const int kx = blockIdx.x * blockDim.x + threadIdx.x, line = blockIdx.y * blockDim.y + threadIdx.y;
  const int n_columns = side / 2 + 1, image = blockIdx.z;
  if (kx >= n_columns || line >= side) return;
  const int ky = frequency(line, side);
  float2 value = make_float2(0.0f, 0.0f);
  if (in_disc(kx, ky, side)) {
    const View view = {views + image * VIEW_FLOATS};
    value = find_point<WIDTH>(cells + middle, plane, row, slice_memory, degree, view, kx, ky);
    value = multiply(value, find_phase(kx, ky, side, shifts[2 * image], shifts[2 * image + 1]));
  }
  slices[(static_cast<long long>(image) * side + line) * n_columns + kx] = value;
}

// ---- Sums of slices -------------------------------------------------------------------------

constexpr int DEGREE = 10;
constexpr int TILE_X = 8, TILE_Y = 8, TILE_Z = 4;  // cells of a thread block; of a warp half of each
constexpr int THREADS = TILE_X * TILE_Y * TILE_Z;
// Bounds are this much wider than rounding can ask for, in cells or frequencies.
constexpr float SLACK = 0.01f;

// The kernel of one axis: a polynomial of 1 - (distance / half)^2.
struct Kernel {
  float half, scale, numbers[DEGREE + 1];

  __device__ __forceinline__ float at(float distance) const {
    const float scaled = distance * scale, inside = fmaf(-scaled, scaled, 1.0f);
    float value = numbers[DEGREE];
#pragma unroll
    for (int power = DEGREE - 1; power >= 0; power--) value = fmaf(value, inside, numbers[power]);
    return value;
  }

  // As half open as the cells that a point reaches.
  __device__ __forceinline__ bool reaches(float distance) const { return distance >= -half && distance < half; }
};

// How far along a direction a point reaches: the corner of its cube of cells.
__device__ __forceinline__ float corner_along(float x, float y, float z, float half) {
  return half * (fabsf(x) + fabsf(y) + fabsf(z));
}

// A box of cells: its middle, and how far it reaches from there along each axis.
struct Box {
  float centre[3], reach[3];

  // Whether part of it lies in a ball about frequency 0.
  __device__ __forceinline__ bool meets_ball(float radius) const {
    float square = 0.0f;
#pragma unroll
    for (int i = 0; i < 3; i++) {
      const float away = fmaxf(fabsf(centre[i]) - reach[i], 0.0f);
      square = fmaf(away, away, square);
    }
    return square <= radius * radius;
  }
};

// Whether a plane comes so near to a box that one of its points may reach a cell in it.
__device__ __forceinline__ bool may_reach(View view, float half, const Box& box) {
  float away = 0.0f, reach = SLACK;
#pragma unroll
  for (int i = 0; i < 3; i++) {
    away = fmaf(view.normal(i), box.centre[i], away);
    reach = fmaf(fabsf(view.normal(i)), box.reach[i] + half, reach);
  }
  return fabsf(away) <= reach;
}

// Points of one image, (side, side / 2 + 1): value and weight, without phase and outside of the disc 0.
struct Points {
  const float4* values;
  int side;

  // Value and weight at a frequency of either half, if it counts for the cells with x >= 0: `x` is its own.
  __device__ __forceinline__ bool find(int kx, int ky, float x, float4& point) const {
    if (!in_disc(kx, ky, side) || x < 0.0f || (x == 0.0f && kx < 0)) return false;
    const bool mate = kx < 0;
    const int row = mate ? -ky : ky, column = mate ? -kx : kx;
    point = values[(row < 0 ? row + side : row) * (side / 2 + 1) + column];
    if (mate) point.y = -point.y;
    // Both (0, ky) and (0, -ky) count, and each is the mate of the other.
    const float share = x == 0.0f && kx == 0 ? 0.5f : 1.0f;
    point.x *= share;
    point.y *= share;
    point.z *= share;
    return true;
  }
};

// Add up the points of one image that reach a cell: row by row of its plane those between the bounds
// that each axis sets.
__device__ __forceinline__ void collect(View view, const Points& points, const Kernel& kernel,
                                        float per_cell, const float (&cell)[3], float (&sums)[3]) {
  float along[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 3; i++) {
    along[0] = fmaf(view.whole(0, i), cell[i], along[0]);
    along[1] = fmaf(view.whole(1, i), cell[i], along[1]);
  }
  const float u = along[0] * per_cell, v = along[1] * per_cell, near_u = rintf(u), near_v = rintf(v);
  float rest[3], a[3], b[3], inverse[3];
#pragma unroll
  for (int i = 0; i < 3; i++) {
    a[i] = view.whole(0, i);
    b[i] = view.whole(1, i);
    inverse[i] = view.inverse(i);
    const float exact = fmaf(-near_u, view.coarse(0, i), fmaf(-near_v, view.coarse(1, i), cell[i]));
    rest[i] = exact - fmaf(near_u, view.fine(0, i), near_v * view.fine(1, i));
  }
  const float reach_u = corner_along(a[0], a[1], a[2], kernel.half) * per_cell;
  const float reach_v = corner_along(b[0], b[1], b[2], kernel.half) * per_cell;
  for (float dv = ceilf(v - near_v - reach_v - SLACK); dv <= v - near_v + reach_v + SLACK; dv += 1.0f) {
    float low = u - near_u - reach_u - SLACK, high = u - near_u + reach_u + SLACK, left[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
      left[i] = fmaf(-dv, b[i], rest[i]);
      const float middle = left[i] * inverse[i], reach = kernel.half * fabsf(inverse[i]);
      low = fmaxf(low, middle - reach - SLACK);
      high = fminf(high, middle + reach + SLACK);
    }
    for (float du = ceilf(low); du <= high; du += 1.0f) {
      const float kx = near_u + du, ky = near_v + dv;
      float distance[3];
#pragma unroll
      for (int i = 0; i < 3; i++) {
        distance[i] = fmaf(-du, a[i], left[i]);
        // Frequency 0 is a cell itself: whether it reaches those at the edge must not be left to rounding.
        if (kx == 0.0f && ky == 0.0f) distance[i] = cell[i];
      }
      if (!kernel.reaches(distance[0]) || !kernel.reaches(distance[1]) || !kernel.reaches(distance[2])) continue;
      const float x = fmaf(kx, view.coarse(0, 0), ky * view.coarse(1, 0)) +
                      fmaf(kx, view.fine(0, 0), ky * view.fine(1, 0));
      float4 point;
      if (!points.find(static_cast<int>(kx), static_cast<int>(ky), x, point)) continue;
      const float weight = kernel.at(distance[0]) * kernel.at(distance[1]) * kernel.at(distance[2]);
      sums[0] = fmaf(weight, point.x, sums[0]);
      sums[1] = fmaf(weight, point.y, sums[1]);
      sums[2] = fmaf(weight, point.z, sums[2]);
    }
  }
}

// Of `n` images, one a thread, list those that may reach the block, in their order; how many they are.
__device__ __forceinline__ int list_images(bool reaches, int image, int* list, int* counts) {
  const int lane = threadIdx.x, warp = threadIdx.y;
  const unsigned found = __ballot_sync(ALL, reaches);
  __syncthreads();  // the list before is done with
  if (lane == 0) counts[warp] = __popc(found);
  __syncthreads();
  int before = 0, total = 0;
  for (int other = 0; other < THREADS / LANES; other++) {
    if (other < warp) before += counts[other];
    total += counts[other];
  }
  if (reaches) list[before + __popc(found & ((1u << lane) - 1u))] = image;
  __syncthreads();
  return total;
}

}  // namespace

// Slices. Grid: (columns, rows, images), blocks of (8, any) threads; shared memory: the polynomials.
//   cells         (.., .., row): the oversampled transform, of which `middle` is frequency 0
//   polynomials   (degree + 1, WIDTH): see `find_weights`
//   views         (n, 18): see `View`
//   shifts        (n, 2): turns a step of frequency along x and y
//   slices        (n, side, side / 2 + 1): as `numpy.fft.rfft2` has them
#define SLICE(NAME, WIDTH)                                                                               \
  extern "C" __global__ void __launch_bounds__(256)                                                      \
  NAME(const float2* cells, long long middle, int plane, int row, const float* polynomials, int degree,  \
       const float* views, const float* shifts, int side, float2* slices) {                              \
    slice_all<WIDTH>(cells, middle, plane, row, polynomials, degree, views, shifts, side, slices);       \
  }

// ONLY, if defined, is the one width to compile, or 0 for all but these kernels.
#if !defined(ONLY) || ONLY == 3
SLICE(slice_points_3, 3)
#endif
#if !defined(ONLY) || ONLY == 4
SLICE(slice_points_4, 4)
#endif
#if !defined(ONLY) || ONLY == 5
SLICE(slice_points_5, 5)
#endif
#if !defined(ONLY) || ONLY == 6
SLICE(slice_points_6, 6)
#endif
#if !defined(ONLY) || ONLY == 7
SLICE(slice_points_7, 7)
#endif
#if !defined(ONLY) || ONLY == 8
SLICE(slice_points_8, 8)
#endif

#if !defined(ONLY) || ONLY == 0
// Points of slices that are to be added up: without their phases, 0 outside of the disc. Grid: as `SLICE`.
//   slices, weights  (n, side, side / 2 + 1)
//   points        likewise: real and imaginary part, weight, nothing
extern "C" __global__ void __launch_bounds__(256)
prepare_points(const float2* slices, const float* weights, const float* shifts, int side, float4* points) {
  const int kx = blockIdx.x * blockDim.x + threadIdx.x, line = blockIdx.y * blockDim.y + threadIdx.y;
  const int n_columns = side / 2 + 1, image = blockIdx.z;
  if (kx >= n_columns || line >= side) return;
  const int ky = frequency(line, side);
  const long long first = static_cast<long long>(image) * side * n_columns;
  const long long at = first + line * n_columns + kx;
  float4 point = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  if (in_disc(kx, ky, side)) {
    float2 value = slices[at];
    point.z = weights[at];
    if (kx == 0) {
      // Two points stand for one here.
      const long long mate = first + (line ? side - line : 0) * n_columns;
      value = make_float2(0.5f * (value.x + slices[mate].x), 0.5f * (value.y - slices[mate].y));
      point.z = 0.5f * (point.z + weights[mate]);
    }
    const float2 phase = find_phase(kx, ky, side, shifts[2 * image], shifts[2 * image + 1]);
    value = multiply(value, make_float2(phase.x, -phase.y));
    point.x = value.x;
    point.y = value.y;
  }
  points[at] = point;
}

// Add the points of all images to the cells that they reach. Grid: tiles of cells, blocks of (32, 8) threads.
//   points        of `prepare_points`
//   views         as for `SLICE`
//   per_cell      1 / squared length of an axis
//   half          of the width of the kernel; `numbers`: its polynomial, constant first
//   depth, height, width; z0, y0, x0  of the cells; place of frequency 0
//   sums          (depth, height, width, 3): real and imaginary parts, weights
extern "C" __global__ void __launch_bounds__(THREADS)
insert_points(const float4* points, int n_images, int side, const float* views, float per_cell, float half,
              const float* numbers, int depth, int height, int width, int z0, int y0, int x0, float* sums) {
  __shared__ int list[THREADS];
  __shared__ int counts[THREADS / LANES];
  const int lane = threadIdx.x, warp = threadIdx.y, thread = warp * LANES + lane;
  const int tile[3] = {TILE_X, TILE_Y, TILE_Z}, origin[3] = {x0, y0, z0};
  const int corner[3] = {static_cast<int>(blockIdx.x) * TILE_X, static_cast<int>(blockIdx.y) * TILE_Y,
                         static_cast<int>(blockIdx.z) * TILE_Z};
  const int part[3] = {warp % 2 * TILE_X / 2, warp / 2 % 2 * TILE_Y / 2, warp / 4 * TILE_Z / 2};
  const int place[3] = {corner[0] + part[0] + lane % 4, corner[1] + part[1] + lane / 4 % 4,
                        corner[2] + part[2] + lane / 16};
  Box block, own, cell;
#pragma unroll
  for (int i = 0; i < 3; i++) {
    block.reach[i] = 0.5f * static_cast<float>(tile[i] - 1);
    own.reach[i] = 0.5f * static_cast<float>(tile[i] / 2 - 1);
    cell.reach[i] = 0.0f;
    block.centre[i] = static_cast<float>(corner[i] - origin[i]) + block.reach[i];
    own.centre[i] = static_cast<float>(corner[i] + part[i] - origin[i]) + own.reach[i];
    cell.centre[i] = static_cast<float>(place[i] - origin[i]);
  }
  const float radius = 0.5f * static_cast<float>(side) * rsqrtf(per_cell) + 1.7321f * half + SLACK;
  if (!block.meets_ball(radius)) return;
  const bool alive = place[0] < width && place[1] < height && place[2] < depth && cell.meets_ball(radius);
  const long long at = 3 * ((static_cast<long long>(place[2]) * height + place[1]) * width + place[0]);
  Kernel kernel;
  kernel.half = half;
  kernel.scale = 1.0f / half;
#pragma unroll
  for (int power = 0; power <= DEGREE; power++) kernel.numbers[power] = numbers[power];
  float total[3] = {0.0f, 0.0f, 0.0f};
  if (alive)
    for (int i = 0; i < 3; i++) total[i] = sums[at + i];
  for (int start = 0; start < n_images; start += THREADS) {
    const int image = start + thread;
    const bool near = image < n_images && may_reach({views + image * VIEW_FLOATS}, half, block);
    const int n_near = list_images(near, image, list, counts);
    for (int i = 0; i < n_near; i++) {
      const View view = {views + list[i] * VIEW_FLOATS};
      if (!may_reach(view, half, own) || !alive || !may_reach(view, half, cell)) continue;
      const Points found = {points + static_cast<long long>(list[i]) * side * (side / 2 + 1), side};
      collect(view, found, kernel, per_cell, cell.centre, total);
    }
  }
  if (alive)
    for (int i = 0; i < 3; i++) sums[at + i] = total[i];
}
#endif
