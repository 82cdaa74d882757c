// Sparse coding of patches on CUDA, and the average of overlapping patches. `pursuit_cuda.py` launches
// these kernels.
//
// Rubinstein, Zibulevsky and Elad, "Efficient implementation of the K-SVD algorithm using batch
// orthogonal matching pursuit", Technion CS-2008-08 (2008); Elad and Aharon, "Image denoising via sparse
// and redundant representations over learned dictionaries", IEEE Transactions on Image Processing 15
// (2006) 3736-3745.
//
// A warp codes one patch after another; the atoms are spread over its lanes, ATOMS to each, in their
// order. Nothing here depends on the order in which warps run, nor on which patches are coded together,
// so results repeat bit by bit.

namespace {

constexpr int LANES = 32;
constexpr unsigned ALL = 0xffffffffu;
// Most patches that wait for a warp: those of all lanes, and too few for a turn.
constexpr int QUEUE = LANES + 7;

// Atoms of unit length, followed by zeros up to LANES * ATOMS of them.
struct Dictionary {
  const float4* columns;  // (n_pixels, ATOMS / 4, LANES) quads of atoms: lane l holds ATOMS * l + 4 * q on
  const float4* gram;     // (LANES * ATOMS, ATOMS / 4, LANES) inner products of the atoms, likewise
  const float* atoms;     // (LANES * ATOMS, n_pixels)
  int n_pixels;           // of a patch
};

// Patches of rows of `n_across`; the corners of two rows are `below` apart, the rows of a patch `width`.
struct Patches {
  const float* pixels;
  int n_across, below, width, side_y, side_x;
  bool centred;  // whether the mean of each patch is taken away first

  __device__ __forceinline__ const float* corner(int patch) const {
    const int row = patch / n_across;
    return pixels + static_cast<long long>(row) * below + (patch - row * n_across);
  }
};

// When a code is complete.
struct Stop {
  float tolerance;   // squared length of the residual
  int most;          // atoms, at most LANES
  float least_new;   // squared length of what an atom must bring that those in use have not
};

// A patch that waits to be coded.
struct Waiting {
  int patch;
  float mean, energy;
};

// Code of a patch: lane i holds its i-th atom, in the order of choice.
struct Code {
  int atom, n_atoms;
  float value;
};

template <int ATOMS>
struct Shape {
  // Patches whose correlations are computed together; in as many registers whatever ATOMS is.
  static constexpr int TOGETHER = ATOMS == 16 ? 4 : 8;
};

// Shared memory of one warp.
struct Room {
  float* pixels;   // (n_pixels, TOGETHER) of the patches that are coded together
  float* factors;  // (most, most | 1) lower triangle: atoms to orthonormal directions
  Waiting* queue;  // (QUEUE)
};

template <int ATOMS>
__device__ __forceinline__ Room find_room(float4* memory, int n_pixels, int most) {
  using Size = Shape<ATOMS>;
  const int pixels = n_pixels * Size::TOGETHER;
  const int factors = most * (most | 1), queue = 3 * QUEUE;
  const int floats = (pixels + factors + queue + 3) / 4 * 4;
  float* own = reinterpret_cast<float*>(memory) + threadIdx.y * floats;
  return {own, own + pixels, reinterpret_cast<Waiting*>(own + pixels + factors)};
}

// Mean and squared length of a patch, one a lane.
__device__ __forceinline__ Waiting measure(const Patches& patches, int patch) {
  const float* corner = patches.corner(patch);
  Waiting found = {patch, 0.0f, 0.0f};
  if (patches.centred) {
    float sum = 0.0f;
    for (int y = 0; y < patches.side_y; y++)
      for (int x = 0; x < patches.side_x; x++) sum += corner[y * patches.width + x];
    found.mean = sum / static_cast<float>(patches.side_y * patches.side_x);
  }
  for (int y = 0; y < patches.side_y; y++) {
    for (int x = 0; x < patches.side_x; x++) {
      const float value = corner[y * patches.width + x] - found.mean;
      found.energy = fmaf(value, value, found.energy);
    }
  }
  return found;
}

// Gather the pixels of patches that are coded together: (n_pixels, TOGETHER), of fewer the first again.
template <int TOGETHER>
__device__ __forceinline__ void gather(const Patches& patches, const Waiting* queue, int n_patches,
                                       float* pixels) {
  const int k = threadIdx.x % TOGETHER, first = threadIdx.x / TOGETHER;
  const Waiting own = queue[k < n_patches ? k : 0];
  const float* corner = patches.corner(own.patch);
  for (int y = 0; y < patches.side_y; y++, corner += patches.width, pixels += patches.side_x * TOGETHER)
#pragma unroll 2
    for (int x = first; x < patches.side_x; x += LANES / TOGETHER)
      pixels[x * TOGETHER + k] = corner[x] - own.mean;
}

__device__ __forceinline__ void add_product(float4 atoms, float factor, float* sums) {
  sums[0] = fmaf(atoms.x, factor, sums[0]);
  sums[1] = fmaf(atoms.y, factor, sums[1]);
  sums[2] = fmaf(atoms.z, factor, sums[2]);
  sums[3] = fmaf(atoms.w, factor, sums[3]);
}

// Inner products of patches with this lane's atoms.
template <int ATOMS, int TOGETHER>
__device__ __forceinline__ void correlate(const Dictionary& dictionary, const float* pixels,
                                          float (&sums)[TOGETHER][ATOMS]) {
  constexpr int QUADS = ATOMS / 4;
  const float4* quads = reinterpret_cast<const float4*>(pixels);
  const float4* columns = dictionary.columns + threadIdx.x;
#pragma unroll
  for (int k = 0; k < TOGETHER; k++)
#pragma unroll
    for (int a = 0; a < ATOMS; a++) sums[k][a] = 0.0f;
#pragma unroll 2
  for (int pixel = 0; pixel < dictionary.n_pixels; pixel++) {
    float4 atoms[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) atoms[q] = columns[(pixel * QUADS + q) * LANES];
#pragma unroll
    for (int k = 0; k < TOGETHER; k += 4) {
      const float4 values = quads[(pixel * TOGETHER + k) / 4];
#pragma unroll
      for (int q = 0; q < QUADS; q++) {
        add_product(atoms[q], values.x, sums[k] + 4 * q);
        add_product(atoms[q], values.y, sums[k + 1] + 4 * q);
        add_product(atoms[q], values.z, sums[k + 2] + 4 * q);
        add_product(atoms[q], values.w, sums[k + 3] + 4 * q);
      }
    }
  }
}

// Atom that correlates most, the first of equals, and its correlation; -1 if none does.
template <int ATOMS>
__device__ __forceinline__ int find_strongest(const float (&correlations)[ATOMS], float& correlation) {
  float best = correlations[0];
  int place = 0;
#pragma unroll
  for (int a = 1; a < ATOMS; a++) {
    if (fabsf(correlations[a]) > fabsf(best)) {
      best = correlations[a];
      place = a;
    }
  }
  float largest = fabsf(best);
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, step));
  const int winner = __ffs(static_cast<int>(__ballot_sync(ALL, fabsf(best) == largest))) - 1;
  correlation = __shfl_sync(ALL, best, winner & (LANES - 1));
  place = __shfl_sync(ALL, place, winner & (LANES - 1));
  return largest > 0.0f ? winner * ATOMS + place : -1;
}

// Orthogonal matching pursuit. Row j of `factors` tells direction j by the atoms 0 to j in use: the
// inverse of the Cholesky factor of their Gram matrix, which grows by a row with each atom. It turns
// triangular systems into products, and the coefficients grow by a multiple of the new row.
template <int ATOMS>
__device__ __forceinline__ Code pursue(const float4* gram, float (&correlations)[ATOMS], float energy,
                                       const Stop& stop, float* factors) {
  constexpr int QUADS = ATOMS / 4, ROW = QUADS * LANES;
  const int lane = threadIdx.x, pitch = stop.most | 1;
  Code code = {0, 0, 0.0f};
  int column = 0;  // of this lane's atom in a row of `gram`
  while (energy > stop.tolerance) {
    const int n = code.n_atoms;
    float correlation;
    const int chosen = find_strongest<ATOMS>(correlations, correlation);
    if (chosen < 0) break;
    const int within = chosen % ATOMS;
    const int chosen_column = (within / 4 * LANES + chosen / ATOMS) * 4 + within % 4;
    const float4* products = gram + chosen * ROW;
    // Asked for early: the answer is on its way while the atom is made orthogonal.
    float4 own[QUADS];
#pragma unroll
    for (int q = 0; q < QUADS; q++) own[q] = products[q * LANES + lane];
    const float* row = reinterpret_cast<const float*>(products);
    const float shared = lane < n ? row[column] : 0.0f;
    float along = 0.0f;  // of the chosen atom on direction `lane`
    for (int i = 0; i < n; i++) {
      const float product = __shfl_sync(ALL, shared, i);
      if (lane < n) along = fmaf(factors[lane * pitch + i], product, along);
    }
    float length = row[chosen_column], factor = lane == n ? 1.0f : 0.0f;
    for (int j = 0; j < n; j++) {
      const float part = __shfl_sync(ALL, along, j);
      length = fmaf(-part, part, length);
      if (lane < n) factor = fmaf(-part, factors[j * pitch + lane], factor);
    }
    if (length < stop.least_new) break;
    const float scale = rsqrtf(length), change = correlation * scale;
    factor *= scale;
    if (lane < stop.most) factors[n * pitch + lane] = factor;
    __syncwarp();
    if (lane == n) {
      code.atom = chosen;
      column = chosen_column;
    }
    code.value = fmaf(change, factor, code.value);
    code.n_atoms = n + 1;
    energy = fmaf(-change, change, energy);
    if (code.n_atoms == stop.most) break;
    if (energy > stop.tolerance) {
      for (int i = 0; i < n; i++) {
        const float step = __shfl_sync(ALL, -change * factor, i);
        const float4* earlier = gram + __shfl_sync(ALL, code.atom, i) * ROW + lane;
#pragma unroll
        for (int q = 0; q < QUADS; q++) add_product(earlier[q * LANES], step, correlations + 4 * q);
      }
#pragma unroll
      for (int q = 0; q < QUADS; q++) add_product(own[q], -change * scale, correlations + 4 * q);
    }
  }
  return code;
}

// Code the patches at the head of the queue, at most TOGETHER of them.
template <int ATOMS, class Sink>
__device__ __forceinline__ void code_together(const Dictionary& dictionary, const Patches& patches,
                                              const Room& room, const Waiting* queue, int n_patches,
                                              const Stop& stop, const Sink& sink) {
  constexpr int TOGETHER = Shape<ATOMS>::TOGETHER;
  gather<TOGETHER>(patches, queue, n_patches, room.pixels);
  __syncwarp();
  float sums[TOGETHER][ATOMS];
  correlate<ATOMS, TOGETHER>(dictionary, room.pixels, sums);
#pragma unroll 1
  for (int k = 0; k < n_patches; k++) {
    float correlations[ATOMS];
#pragma unroll
    for (int a = 0; a < ATOMS; a++) {
      correlations[a] = sums[0][a];
      // The next patch moves up: registers cannot be counted through.
#pragma unroll
      for (int other = 1; other < TOGETHER; other++) sums[other - 1][a] = sums[other][a];
    }
    const Waiting own = queue[k];
    sink(own, pursue<ATOMS>(dictionary.gram, correlations, own.energy, stop, room.factors));
    __syncwarp();
  }
}

// Code this warp's part of the patches; the sink takes each with its code.
template <int ATOMS, class Sink>
__device__ __forceinline__ void code_part(const Dictionary& dictionary, const Patches& patches,
                                           int n_patches, const Stop& stop, const Room& room,
                                           const Sink& sink) {
  constexpr int TOGETHER = Shape<ATOMS>::TOGETHER;
  const int lane = threadIdx.x;
  const long long part = blockIdx.x * blockDim.y + threadIdx.y, n_parts = gridDim.x * blockDim.y;
  const int last = static_cast<int>((part + 1) * n_patches / n_parts);
  int n_waiting = 0;
  for (int start = static_cast<int>(part * n_patches / n_parts); start < last; start += LANES) {
    const Waiting own = measure(patches, min(start + lane, last - 1));
    const bool alive = start + lane < last, waits = alive && own.energy > stop.tolerance;
    const unsigned waiting = __ballot_sync(ALL, waits);
    if (waits) room.queue[n_waiting + __popc(waiting & ((1u << lane) - 1u))] = own;
    n_waiting += __popc(waiting);
    // Patches that are all noise need no atoms.
    for (unsigned done = __ballot_sync(ALL, alive && !waits); done; done &= done - 1u) {
      const int from = __ffs(static_cast<int>(done)) - 1;
      const Waiting plain = {start + from, __shfl_sync(ALL, own.mean, from), 0.0f};
      sink(plain, Code{0, 0, 0.0f});
    }
    __syncwarp();
    int head = 0;
    const int least = start + LANES < last ? TOGETHER : 1;
    while (n_waiting - head >= least) {
      const int n = min(n_waiting - head, TOGETHER);
      code_together<ATOMS>(dictionary, patches, room, room.queue + head, n, stop, sink);
      head += n;
    }
    n_waiting -= head;
    Waiting moved = {};
    if (lane < n_waiting) moved = room.queue[head + lane];
    __syncwarp();
    if (lane < n_waiting) room.queue[lane] = moved;
    __syncwarp();
  }
}

// Write the estimate of a patch: its mean and its atoms.
__device__ __forceinline__ void write_estimate(const float* atoms, int n_pixels, float mean,
                                               const Code& code, float* estimate) {
  for (int start = threadIdx.x; start - static_cast<int>(threadIdx.x) < n_pixels; start += 2 * LANES) {
    const int next = start + LANES;
    float here = mean, there = mean;
    for (int i = 0; i < code.n_atoms; i++) {
      const float value = __shfl_sync(ALL, code.value, i);
      const float* atom = atoms + __shfl_sync(ALL, code.atom, i) * n_pixels;
      if (start < n_pixels) here = fmaf(value, atom[start], here);
      if (next < n_pixels) there = fmaf(value, atom[next], there);
    }
    if (start < n_pixels) estimate[start] = here;
    if (next < n_pixels) estimate[next] = there;
  }
}

template <int ATOMS>
__device__ __forceinline__ void code_all(const float* values, int n_patches, Dictionary dictionary,
                                         Stop stop, short* indices, float* coefficients, int* counts) {
  extern __shared__ float4 code_memory[];
  const int n_pixels = dictionary.n_pixels, lane = threadIdx.x;
  const Room room = find_room<ATOMS>(code_memory, n_pixels, stop.most);
  const Patches patches = {values, 1, n_pixels, n_pixels, 1, n_pixels, false};
  code_part<ATOMS>(dictionary, patches, n_patches, stop, room,
                   [&](const Waiting& own, const Code& code) {
                     const long long at = static_cast<long long>(own.patch) * stop.most + lane;
                     const bool used = lane < code.n_atoms;
                     if (lane < stop.most) indices[at] = static_cast<short>(used ? code.atom : 0);
                     if (lane < stop.most) coefficients[at] = used ? code.value : 0.0f;
                     if (lane == 0) counts[own.patch] = code.n_atoms;
                   });
}

template <int ATOMS>
__device__ __forceinline__ void estimate_all(const float* images, int height, int width, int first_row,
                                             int n_rows, int side, Dictionary dictionary, Stop stop,
                                             float* estimates) {
  extern __shared__ float4 estimate_memory[];
  const int n_pixels = dictionary.n_pixels, n_across = width - side + 1, n_patches = n_rows * n_across;
  const Room room = find_room<ATOMS>(estimate_memory, n_pixels, stop.most);
  const long long row = static_cast<long long>(blockIdx.z) * height + first_row;
  const long long before = static_cast<long long>(blockIdx.z) * n_patches;
  const Patches patches = {images + row * width, n_across, width, width, side, side, true};
  code_part<ATOMS>(dictionary, patches, n_patches, stop, room,
                   [&](const Waiting& own, const Code& code) {
                     write_estimate(dictionary.atoms, n_pixels, own.mean, code,
                                    estimates + (before + own.patch) * n_pixels);
                   });
}

}  // namespace

// Code patches. Grid: (any, 1, 1), blocks of (32, any) threads; shared memory: `find_room` for each warp.
//   values        (n_patches, n_pixels)
//   columns, gram, atoms  of a `Dictionary`
//   tolerance, most, least_new  of a `Stop`
//   indices, coefficients  (n_patches, most), zeros where there are fewer
//   counts        (n_patches) atoms in use
#define CODE(NAME, ATOMS)                                                                                \
  extern "C" __global__ void __launch_bounds__(128, 4)                                                   \
  NAME(const float* values, int n_patches, int n_pixels, const float4* columns, const float4* gram,      \
       const float* atoms, float tolerance, int most, float least_new, short* indices,                   \
       float* coefficients, int* counts) {                                                               \
    code_all<ATOMS>(values, n_patches, {columns, gram, atoms, n_pixels}, {tolerance, most, least_new},   \
                    indices, coefficients, counts);                                                      \
  }

// Estimate patches of images, less and plus their means. Grid: (any, 1, images); else as `CODE`.
//   images        (n, height, width)
//   first_row, n_rows  rows of patches
//   estimates     (n, n_rows, width - side + 1, side * side)
#define ESTIMATE(NAME, ATOMS)                                                                            \
  extern "C" __global__ void __launch_bounds__(128, 4)                                                   \
  NAME(const float* images, int height, int width, int first_row, int n_rows, int side,                  \
       const float4* columns, const float4* gram, const float* atoms, float tolerance, int most,         \
       float least_new, float* estimates) {                                                              \
    estimate_all<ATOMS>(images, height, width, first_row, n_rows, side,                                  \
                        {columns, gram, atoms, side * side}, {tolerance, most, least_new}, estimates);   \
  }

// ONLY, if defined, is the one number of atoms a lane to compile, or 0 for all but these kernels.
#if !defined(ONLY) || ONLY == 4
CODE(code_patches_4, 4)
ESTIMATE(estimate_patches_4, 4)
#endif
#if !defined(ONLY) || ONLY == 8
CODE(code_patches_8, 8)
ESTIMATE(estimate_patches_8, 8)
#endif
#if !defined(ONLY) || ONLY == 16
CODE(code_patches_16, 16)
ESTIMATE(estimate_patches_16, 16)
#endif

#if !defined(ONLY) || ONLY == 0
// Average the estimates of all patches that hold a pixel with the noisy pixel; one thread a pixel of the
// rows that these patches hold. What patches above have added is in `result` already, and is carried
// on in the order of the rows, so that bands do not show.
//   estimates     of `ESTIMATE`
//   blend         weight of the noisy pixel; that of an estimate is 1
//   result        (n, height, width): averages, or sums where rows of patches below are missing
extern "C" __global__ void average_patches(const float* estimates, const float* images, int height,
                                           int width, int first_row, int n_rows, int side, float blend,
                                           float* result) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y + first_row;
  if (x >= width || y >= first_row + n_rows + side - 1) return;
  const int n_across = width - side + 1, n_down = height - side + 1, n_pixels = side * side;
  const int top = max(y - side + 1, 0), bottom = min(y, n_down - 1);
  const int left = max(x - side + 1, 0), right = min(x, n_across - 1);
  const long long at = (static_cast<long long>(blockIdx.z) * height + y) * width + x;
  float sum = top < first_row ? result[at] : 0.0f;
  for (int row = max(top, first_row); row <= min(bottom, first_row + n_rows - 1); row++) {
    const long long before = (static_cast<long long>(blockIdx.z) * n_rows + row - first_row) * n_across;
    const float* line = estimates + (before + left) * n_pixels + (y - row) * side + x - left;
    float part = 0.0f;
    for (int column = left; column <= right; column++, line += n_pixels - 1) part += *line;
    sum += part;
  }
  if (bottom < first_row + n_rows) {
    const int n = (bottom - top + 1) * (right - left + 1);
    sum = fmaf(blend, images[at], sum) / (blend + static_cast<float>(n));
  }
  result[at] = sum;
}
#endif
