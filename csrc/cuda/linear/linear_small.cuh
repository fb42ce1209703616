// out = x * weight^T for up to 16 rows of x, with bias, silu(gate) * up, or a residual added.
//
// The weight is read once and is all that counts: block b owns the rows [F b/B, F (b+1)/B) of it
// and walks over them in passes of up to 8 * kTiles rows. In a pass the columns are dealt to the
// warps in chunks; the warps' partial sums meet in shared memory and are added in the order of the
// warps, so that a result depends neither on timing nor on the other rows of x.
//
// A lane copies the very 16 bytes of a row that it later multiplies (row lane / 4, columns
// 8 * (lane % 4) of each 32) to a place of its own in shared memory, kStages - 1 chunks ahead and
// across passes: a ring without any barrier. The products' fragments want other columns in a lane,
// but a sum over columns has no order: x is copied by the same rule, so that both sides agree.
//
// With programmatic launch, the next kernel of the stream starts as soon as this one's blocks run,
// and this one asks for its first chunks of the weight before the kernel that makes x has ended. A
// chain of products thus streams weights all the time.
#pragma once

#include "cuda/attention/mma.cuh"

namespace lightvl::cuda {

constexpr int kUnit = 32;            // columns that a warp multiplies at once, 8 a lane
constexpr int kFragmentBytes = 512;  // 8 rows of a unit, 16 bytes a lane

// Copies 16 bytes, past L1, or zeros; memory is asked for the whole line.
__device__ inline void stream_async(void* to, const void* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

// Lets the stream's next kernel start, which waits itself before it touches what we write.
__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the stream's kernels before this one have ended.
__device__ inline void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <int kTiles_, int kWarps_, int kUnits_, int kStages_, bool kSilu_>
struct LinearShape {
  static constexpr int kTiles = kTiles_, kWarps = kWarps_, kUnits = kUnits_, kStages = kStages_;
  static constexpr bool kSilu = kSilu_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOutTiles = kSilu ? kTiles / 2 : kTiles;  // of 8 results
  static constexpr int kPassRows = 8 * kOutTiles;
  static constexpr int kChunk = kUnit * kUnits;

  // Of one warp's stage: the fragments of the weight, then those of x's rows 0..7 and 8..15.
  __host__ __device__ static constexpr int slot_bytes(int halves) {
    return kFragmentBytes * kUnits * (kTiles + halves);
  }
  static constexpr int shared_bytes(int halves) {
    return kWarps * (slot_bytes(halves) * kStages + kTiles * halves * 32 * 8);
  }
};

// Rows of the output: a block's, or those of one of its passes.
struct RowRange {
  int first, last;
  __device__ RowRange part(int i, int parts) const {
    const int64_t size = last - first;
    return {first + static_cast<int>(size * i / parts),
            first + static_cast<int>(size * (i + 1) / parts)};
  }
};

template <class T, class Shape>
struct LinearKernel {
  static constexpr int kTiles = Shape::kTiles, kUnits = Shape::kUnits, kOutTiles = Shape::kOutTiles;
  using Sums = float[kTiles][4];

  const LinearSmallParams& p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = lane / 4, column = lane % 4 * 8;
  const int halves = p.num_tokens > 8 ? 2 : 1;
  const int width = static_cast<int>(p.width);
  RowRange band;
  int num_passes, num_chunks;  // of this warp in a pass
  uint8_t* ring;               // this lane's part of this warp's slots
  float2* sums;
  struct {
    int pass = 0, chunk = 0, slot = 0;
    int num_rows;    // of the pass, from this lane's row on
    const T* first;  // this lane's row of the pass
  } next;            // chunk to be asked for

  __device__ LinearKernel(const LinearSmallParams& params, uint8_t* shared) : p(params) {
    band = RowRange{0, static_cast<int>(p.out_width)}.part(blockIdx.x, gridDim.x);
    num_passes = (band.last - band.first + Shape::kPassRows - 1) / Shape::kPassRows;
    const int chunks = (width + Shape::kChunk - 1) / Shape::kChunk;
    num_chunks = (chunks - warp + Shape::kWarps - 1) / Shape::kWarps;
    const int warp_bytes = Shape::kStages * Shape::slot_bytes(halves);
    ring = shared + warp * warp_bytes + 16 * lane;
    sums = reinterpret_cast<float2*>(shared + Shape::kWarps * warp_bytes);
    begin_pass();
  }

  __device__ uint8_t* fragment(int slot, int unit, int tile) const {
    return ring + slot * Shape::slot_bytes(halves) + (unit * kTiles + tile) * kFragmentBytes;
  }
  __device__ uint8_t* x_fragment(int slot, int unit, int half) const {
    return ring + slot * Shape::slot_bytes(halves) +
           (kUnits * kTiles + unit * halves + half) * kFragmentBytes;
  }
  __device__ int first_column(int chunk) const {
    return (chunk * Shape::kWarps + warp) * Shape::kChunk + column;
  }
  __device__ bool more_to_load() const { return next.pass < num_passes && num_chunks > 0; }

  __device__ void begin_pass() {
    const RowRange rows = band.part(next.pass, num_passes);
    next.num_rows = rows.last - rows.first - row;
    next.first = static_cast<const T*>(p.weight) + (rows.first + row) * p.weight_stride;
  }

  __device__ void load_weight() const {
    const int c = first_column(next.chunk);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int out_row = j % kOutTiles * 8;
      const int64_t weight_row = j < kOutTiles ? out_row : p.out_width + out_row;
      const T* from = next.first + weight_row * p.weight_stride + c;
      if (out_row >= next.num_rows) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const bool wanted = c + u * kUnit < width;
        stream_async(fragment(next.slot, u, j), wanted ? from + u * kUnit : from, wanted);
      }
    }
  }

  // Rows that aren't there are zeros. (Copies that repeat another row cost as much as the rows.)
  __device__ bool in_x(int half, int c) const { return row + 8 * half < p.num_tokens && c < width; }
  __device__ const T* x_at(int half, int c) const {
    return static_cast<const T*>(p.x) + (in_x(half, c) ? (row + 8 * half) * p.x_stride + c : 0);
  }

  __device__ void load_x() const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == halves) break;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        const int c = first_column(next.chunk) + u * kUnit;
        copy_async(x_fragment(next.slot, u, half), x_at(half, c), in_x(half, c));
      }
    }
  }

  // x of the chunks that start() asked for, on another way than they: it must not wait for them.
  __device__ void fill_x() const {
    uint4 x[Shape::kStages - 1][kUnits][2];
    for_each_filled([&](int s, int u, int half, int c) {
      x[s][u][half] = make_uint4(0, 0, 0, 0);
      if (in_x(half, c)) x[s][u][half] = __ldcg(reinterpret_cast<const uint4*>(x_at(half, c)));
    });
    for_each_filled([&](int s, int u, int half, int) {
      *reinterpret_cast<uint4*>(x_fragment(s, u, half)) = x[s][u][half];
    });
  }

  template <class F>
  __device__ void for_each_filled(F&& f) const {
#pragma unroll
    for (int s = 0; s + 1 < Shape::kStages; ++s) {
      if (num_chunks == 0) break;
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (half < halves) f(s, u, half, first_column(s % num_chunks) + u * kUnit);
        }
      }
    }
  }

  __device__ void advance() {
    next.slot = next.slot + 1 == Shape::kStages ? 0 : next.slot + 1;
    if (++next.chunk < num_chunks) return;
    next.chunk = 0;
    ++next.pass;
    begin_pass();
  }

  // Fills the ring: the weight at once, x when it is there.
  __device__ void start() {
    for (int s = 0; s + 1 < Shape::kStages; ++s) {
      if (more_to_load()) {
        load_weight();
        advance();
      }
      commit_copies();
    }
    launch_dependents();
    wait_for_prerequisites();
    fill_x();
  }

  __device__ void load_next() {
    if (more_to_load()) {
      load_weight();
      load_x();
      advance();
    }
    commit_copies();
  }

  __device__ void multiply(Sums& sum, int slot) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const uint4 low = *reinterpret_cast<const uint4*>(x_fragment(slot, u, 0));
      uint4 high = make_uint4(0, 0, 0, 0);
      if (halves == 2) high = *reinterpret_cast<const uint4*>(x_fragment(slot, u, 1));
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4 w = *reinterpret_cast<const uint4*>(fragment(slot, u, j));
        mma<T>(sum[j], {low.x, high.x, low.y, high.y}, w.x, w.y);
        mma<T>(sum[j], {low.z, high.z, low.w, high.w}, w.z, w.w);
      }
    }
  }

  // Two results of a lane's accumulators: one row of x, columns n and n + 1 of the output.
  struct Item {
    int tile, half, token, n;
  };

  static constexpr int kItems = (kOutTiles * 2 + Shape::kWarps - 1) / Shape::kWarps;  // a thread's

  __device__ Item item(int i, RowRange rows) const {
    const int index = i * Shape::kWarps + warp;
    const int tile = index % kOutTiles, half = index / kOutTiles;
    return {tile, half, row + 8 * half, rows.first + 8 * tile + lane % 4 * 2};
  }
  __device__ bool exists(const Item& at, RowRange rows) const {
    return at.half < halves && at.token < p.num_tokens && at.n < rows.last;
  }

  // What is added to the two results of each of this thread's items; read ahead of them.
  using Added = T[kItems][2];

  __device__ void load_residual(Added& added, RowRange rows) const {
    const T* residual = static_cast<const T*>(p.residual);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const Item at = item(i, rows);
      added[i][0] = added[i][1] = from_float<T>(0.0f);
      if (residual == nullptr || !exists(at, rows)) continue;
      const T* from = residual + at.token * p.residual_stride + at.n;
      added[i][0] = __ldcg(from);
      if (at.n + 1 < rows.last) added[i][1] = __ldcg(from + 1);
    }
  }

  __device__ float2* partial(int of_warp, int tile, int half) const {
    return sums + ((of_warp * halves + half) * kTiles + tile) * 32 + lane;
  }

  __device__ float2 total(int tile, int half) const {
    float2 sum = *partial(0, tile, half);
#pragma unroll
    for (int w = 1; w < Shape::kWarps; ++w) {
      const float2 more = *partial(w, tile, half);
      sum.x += more.x, sum.y += more.y;
    }
    return sum;
  }

  __device__ void store(const Item& at, int k, float value, float up, T added) const {
    const T* bias = static_cast<const T*>(p.bias);
    const int n = at.n + k;
    if (bias != nullptr) value += to_float(bias[n]);
    if constexpr (Shape::kSilu) {
      if (bias != nullptr) up += to_float(bias[p.out_width + n]);
      value = value / (1.0f + __expf(-value)) * up;
    }
    static_cast<T*>(p.out)[at.token * p.out_stride + n] = from_float<T>(value + to_float(added));
  }

  __device__ void finish(const Sums& sum, const Added& added, RowRange rows) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      *partial(warp, j, 0) = make_float2(sum[j][0], sum[j][1]);
      if (halves == 2) *partial(warp, j, 1) = make_float2(sum[j][2], sum[j][3]);
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const Item at = item(i, rows);
      if (!exists(at, rows)) continue;
      const float2 value = total(at.tile, at.half);
      float2 up{};
      if constexpr (Shape::kSilu) up = total(at.tile + kOutTiles, at.half);
      store(at, 0, value.x, up.x, added[i][0]);
      if (at.n + 1 < rows.last) store(at, 1, value.y, up.y, added[i][1]);
    }
    __syncthreads();
  }

  __device__ void run() {
    start();
    int slot = 0;
    for (int pass = 0; pass < num_passes; ++pass) {
      const RowRange rows = band.part(pass, num_passes);
      Added added;
      load_residual(added, rows);
      Sums sum{};
      for (int chunk = 0; chunk < num_chunks; ++chunk) {
        wait_for_copies<Shape::kStages - 2>();
        load_next();
        multiply(sum, slot);
        slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
      }
      finish(sum, added, rows);
    }
  }
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads)
    linear_small_kernel(const __grid_constant__ LinearSmallParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  LinearKernel<T, Shape>(p, shared).run();
}

template <class T, class Shape>
cudaError_t launch_shape(const LinearSmallParams& p, int blocks, bool early, cudaStream_t stream) {
  const auto kernel = linear_small_kernel<T, Shape>;
  const int shared_bytes = Shape::shared_bytes(p.num_tokens > 8 ? 2 : 1);
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, p);
}

}  // namespace lightvl::cuda
