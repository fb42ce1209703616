// out = x * weight^T for up to 16 rows of x, with bias, silu(gate) * up, or a residual added.
//
// The weight is read once and is all that counts: block b owns the rows [F b/B, F (b+1)/B) of it
// and walks over them in passes of up to 8 * kTiles rows. In a pass the columns are dealt to the
// warps in chunks; the warps' partial sums meet in shared memory and are added in the order of the
// warps, so that a result depends neither on timing nor on the other rows of x.
//
// A lane copies the very 16 bytes of a weight row that it later multiplies (row lane / 4, columns
// 8 * (lane % 4) of each 32) to a slot of its own in shared memory, kStages - 1 chunks ahead and
// across passes: a ring without any barrier. The products' fragments want other columns in a lane,
// but a sum over columns has no order: x is read by the same rule, so that both sides agree.
//
// The first chunks are asked for before the kernel that makes x has ended (programmatic launch).
#pragma once

#include <algorithm>

#include "cuda/attention/mma.cuh"

namespace lightvl::cuda {

constexpr int kUnit = 32;  // columns that a warp multiplies at once, 8 a lane

__device__ inline uint64_t evict_first_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ inline void stream_async(void* to, const void* from, bool wanted, uint64_t policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(wanted ? 16 : 0), "l"(policy)
               : "memory");
}

__device__ inline void wait_for_prerequisites() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

template <int kTiles_, int kWarps_, int kUnits_, int kStages_, bool kSilu_>
struct LinearShape {
  static constexpr int kTiles = kTiles_, kWarps = kWarps_, kUnits = kUnits_, kStages = kStages_;
  static constexpr bool kSilu = kSilu_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kOutTiles = kSilu ? kTiles / 2 : kTiles;
  static constexpr int kPassRows = 8 * kOutTiles;
  static constexpr int kChunk = kUnit * kUnits;
  static constexpr int kSlotBytes = 512 * kUnits * kTiles;  // one warp's share of a stage
  static constexpr int kRingBytes = kSlotBytes * kStages * kWarps;
  static constexpr int kSumBytes = kWarps * kTiles * 2 * 32 * 8;
  static constexpr int kSharedBytes = kRingBytes + 2 * kSumBytes;
};

// The rows of one pass, or of all of a block's passes.
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
  static constexpr int kTiles = Shape::kTiles, kUnits = Shape::kUnits;

  const LinearSmallParams& p;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = lane / 4, column = lane % 4 * 8;
  RowRange band;
  int num_passes, num_chunks;  // of this warp in a pass
  uint8_t* slots;
  uint8_t* sums;
  uint64_t policy = evict_first_policy();
  int load_pass = 0, load_chunk = 0, load_slot = 0;

  __device__ LinearKernel(const LinearSmallParams& params, uint8_t* shared) : p(params) {
    band = RowRange{0, static_cast<int>(p.out_width)}.part(blockIdx.x, gridDim.x);
    num_passes = (band.last - band.first + Shape::kPassRows - 1) / Shape::kPassRows;
    const int chunks = (static_cast<int>(p.width) + Shape::kChunk - 1) / Shape::kChunk;
    num_chunks = (chunks - warp + Shape::kWarps - 1) / Shape::kWarps;
    slots = shared + warp * Shape::kStages * Shape::kSlotBytes + 16 * lane;
    sums = shared + Shape::kRingBytes;
  }

  __device__ int first_column(int chunk) const {
    return (chunk * Shape::kWarps + warp) * Shape::kChunk + column;
  }

  // Asks for the next chunk of the weight and moves on.
  __device__ void load_weight() {
    if (load_pass < num_passes && num_chunks > 0) {
      const RowRange rows = band.part(load_pass, num_passes);
      uint8_t* slot = slots + load_slot * Shape::kSlotBytes;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int out_row = rows.first + j % Shape::kOutTiles * 8 + row;
        const int64_t weight_row = j < Shape::kOutTiles ? out_row : p.out_width + out_row;
        const T* from = static_cast<const T*>(p.weight) + weight_row * p.weight_stride;
#pragma unroll
        for (int u = 0; u < kUnits; ++u) {
          const int c = first_column(load_chunk) + u * kUnit;
          if (out_row < rows.last) {
            stream_async(slot + (u * kTiles + j) * 512, c < p.width ? from + c : from, c < p.width,
                         policy);
          }
        }
      }
      load_slot = load_slot + 1 == Shape::kStages ? 0 : load_slot + 1;
      if (++load_chunk == num_chunks) {
        load_chunk = 0;
        ++load_pass;
      }
    }
    commit_copies();
  }

  using XChunk = uint32_t[kUnits][2][4];  // rows 0..7 and 8..15

  __device__ void load_x(XChunk& x, int chunk) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      const int c = first_column(chunk) + u * kUnit;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        // Rows that aren't there repeat the last: each result depends on its own row alone.
        const int r = min(row + 8 * h, static_cast<int>(p.num_tokens) - 1);
        uint4 values = make_uint4(0, 0, 0, 0);
        if (c < p.width && (h == 0 || p.num_tokens > 8)) {
          values = *reinterpret_cast<const uint4*>(static_cast<const T*>(p.x) + r * p.x_stride + c);
        }
        x[u][h][0] = values.x, x[u][h][1] = values.y, x[u][h][2] = values.z, x[u][h][3] = values.w;
      }
    }
  }

  using Sums = float[kTiles][4];

  __device__ void multiply(Sums& sum, const XChunk& x, const uint8_t* slot) const {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const uint4 w = *reinterpret_cast<const uint4*>(slot + (u * kTiles + j) * 512);
        mma<T>(sum[j], {x[u][0][0], x[u][1][0], x[u][0][1], x[u][1][1]}, w.x, w.y);
        mma<T>(sum[j], {x[u][0][2], x[u][1][2], x[u][0][3], x[u][1][3]}, w.z, w.w);
      }
    }
  }

  __device__ float2* partial(int buffer, int of_warp, int tile, int half) const {
    const int block = (of_warp * kTiles + tile) * 2 + half;
    return reinterpret_cast<float2*>(sums + buffer * Shape::kSumBytes) + block * 32;
  }

  __device__ float2 total(int buffer, int tile, int half, int of_lane) const {
    float2 sum = partial(buffer, 0, tile, half)[of_lane];
#pragma unroll
    for (int w = 1; w < Shape::kWarps; ++w) {
      const float2 next = partial(buffer, w, tile, half)[of_lane];
      sum.x += next.x, sum.y += next.y;
    }
    return sum;
  }

  __device__ void finish(const Sums& sum, RowRange rows, int buffer) const {
    const int halves = p.num_tokens > 8 ? 2 : 1;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      partial(buffer, warp, j, 0)[lane] = make_float2(sum[j][0], sum[j][1]);
      if (halves == 2) partial(buffer, warp, j, 1)[lane] = make_float2(sum[j][2], sum[j][3]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < Shape::kOutTiles * halves * 32; i += Shape::kThreads) {
      const int tile = i / 32 % Shape::kOutTiles, half = i / 32 / Shape::kOutTiles;
      const int token = lane / 4 + 8 * half, n = rows.first + 8 * tile + lane % 4 * 2;
      if (token >= p.num_tokens) continue;
      const float2 sums = total(buffer, tile, half, lane);
      float2 ups{};
      if constexpr (Shape::kSilu) ups = total(buffer, tile + Shape::kOutTiles, half, lane);
      if (n < rows.last) store(token, n, sums.x, ups.x);
      if (n + 1 < rows.last) store(token, n + 1, sums.y, ups.y);
    }
  }

  __device__ void store(int token, int n, float value, float up) const {
    const T* bias = static_cast<const T*>(p.bias);
    if (bias != nullptr) value += to_float(bias[n]);
    if constexpr (Shape::kSilu) {
      if (bias != nullptr) up += to_float(bias[p.out_width + n]);
      value = value / (1.0f + __expf(-value)) * up;
    }
    if (p.residual != nullptr) {
      value += to_float(static_cast<const T*>(p.residual)[token * p.residual_stride + n]);
    }
    static_cast<T*>(p.out)[token * p.out_stride + n] = from_float<T>(value);
  }

  __device__ void run() {
    for (int s = 0; s + 1 < Shape::kStages; ++s) load_weight();
    wait_for_prerequisites();
    launch_dependents();
    XChunk x, next_x;
    if (num_chunks > 0) load_x(next_x, 0);
    int slot = 0;
    for (int pass = 0; pass < num_passes; ++pass) {
      Sums sum{};
      for (int chunk = 0; chunk < num_chunks; ++chunk) {
        std::memcpy(&x, &next_x, sizeof(x));
        load_x(next_x, chunk + 1 < num_chunks ? chunk + 1 : 0);
        wait_for_copies<Shape::kStages - 2>();
        load_weight();
        multiply(sum, x, slots + slot * Shape::kSlotBytes);
        slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
      }
      finish(sum, band.part(pass, num_passes), pass % 2);
    }
  }
};

template <class T, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 2)
    linear_small_kernel(const __grid_constant__ LinearSmallParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  LinearKernel<T, Shape>(p, shared).run();
}

template <class T, class Shape>
cudaError_t launch_shape(const LinearSmallParams& p, int blocks, bool early, cudaStream_t stream) {
  const auto kernel = linear_small_kernel<T, Shape>;
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = early ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, p);
}

// One block an SM: the shape follows from how many rows each gets, never from the rows of x.
template <class T>
cudaError_t launch_linear_small(const LinearSmallParams& p, cudaStream_t stream) {
  int device, sms, major;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  const int blocks = static_cast<int>(std::min<int64_t>(sms, p.out_width));
  const int64_t rows = (p.out_width + blocks - 1) / blocks;
  const bool early = major >= 9;
  if (p.silu_mul) {
    return launch_shape<T, LinearShape<4, 4, 2, 6, true>>(p, blocks, early, stream);
  }
  if (rows <= 16) return launch_shape<T, LinearShape<2, 8, 2, 6, false>>(p, blocks, early, stream);
  return launch_shape<T, LinearShape<4, 4, 2, 6, false>>(p, blocks, early, stream);
}

}  // namespace lightvl::cuda
