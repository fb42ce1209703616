// Rows that are reduced: each belongs to the blockDim.x threads (whole warps) of one threadIdx.y,
// which keep it in registers between the reduction and the result, and a block goes over rows
// blockIdx.x * blockDim.y + threadIdx.y and on in steps of the grid.
#pragma once

#include <algorithm>

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

#ifdef ROW_MAXREG
#define ROW_REGS __maxnreg__(ROW_MAXREG)
#else
#define ROW_REGS __launch_bounds__(kMaxRowThreads)
#endif
constexpr int kMaxRowThreads = 512;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;
constexpr int64_t kMaxRowBlocks = INT32_MAX;

// Has a row that all blocks share fetched to L2 by the first of them.
__device__ inline void prefetch_row(const void* row, int64_t bytes) {
  constexpr int kLine = 128;
  if (blockIdx.x > 0 || threadIdx.y > 0) return;
  for (int64_t i = threadIdx.x * kLine; i < bytes; i += blockDim.x * kLine) {
    prefetch_to_l2(static_cast<const char*>(row) + i);
  }
}

// A pack's bits in whole registers. Unpacking tells the compiler nothing of their origin: else it
// would keep the elements of one pass over a row for the next, in two to four times the registers.
template <class T, int kPack>
class PackBits {
 public:
  PackBits() = default;
  __device__ explicit PackBits(const Pack<T, kPack>& pack)
      : bits_(reinterpret_cast<const Bits&>(pack)) {}

  __device__ Pack<T, kPack> unpack() const {
    Bits bits = bits_;
    if constexpr (kIsWide) {
      asm volatile("" : "+r"(bits.x), "+r"(bits.y), "+r"(bits.z), "+r"(bits.w));
    }
    return reinterpret_cast<Pack<T, kPack>&>(bits);
  }

 private:
  static constexpr bool kIsWide = sizeof(Pack<T, kPack>) == sizeof(uint4);
  using Bits = std::conditional_t<kIsWide, uint4, Pack<T, kPack>>;
  Bits bits_;
};

// This thread's packs of a row: kItems of them, each adjoining those of the other threads.
template <class T, int kPack, int kItems>
class Row {
 public:
  __device__ void load(const T* row, int width) {
    each_item(width, [&](int i, int c) { packs_[i] = Bits(load_pack<kPack>(row + c)); });
  }

  // Calls f(pack, c) for each pack, which begins at element c.
  template <class F>
  __device__ void each(int width, F&& f) const {
    each_item(width, [&](int i, int c) { f(packs_[i].unpack(), c); });
  }

  // Calls f(pack, other's pack, c); the former may be changed.
  template <class F>
  __device__ void each_with(const Row& other, int width, F&& f) {
    each_item(width, [&](int i, int c) {
      Pack<T, kPack> pack = packs_[i].unpack();
      f(pack, other.packs_[i].unpack(), c);
      packs_[i] = Bits(pack);
    });
  }

 private:
  using Bits = PackBits<T, kPack>;

  template <class F>
  static __device__ void each_item(int width, F&& f) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int c = static_cast<int>(i * blockDim.x + threadIdx.x) * kPack;
      if (c < width) f(i, c);
    }
  }

  Bits packs_[kItems];
};

// A row too wide for registers: its packs are read again at each pass, from where they were loaded.
template <class T, int kPack>
class Row<T, kPack, 0> {
 public:
  __device__ void load(const T* row, int) { row_ = row; }

  template <class F>
  __device__ void each(int width, F&& f) const {
    each_pack(width, [&](int c) { f(load_pack<kPack>(row_ + c), c); });
  }

  template <class F>
  __device__ void each_with(const Row& other, int width, F&& f) {
    each_pack(width, [&](int c) {
      Pack<T, kPack> pack = load_pack<kPack>(row_ + c);
      f(pack, load_pack<kPack>(other.row_ + c), c);
    });
  }

 private:
  template <class F>
  static __device__ void each_pack(int width, F&& f) {
    for (int c = static_cast<int>(threadIdx.x) * kPack; c < width; c += blockDim.x * kPack) {
      f(c);
    }
  }

  const T* row_;
};

// One value of each warp of a row, seen by all of them. Consecutive exchanges of a block alternate
// between two buffers, so that one barrier each is enough.
template <class T>
class WarpExchange {
 public:
  __device__ const T* share(T value) {
    __shared__ T buffers[2][kMaxRowWarps];
    T* buffer = buffers[turn_];
    turn_ ^= 1;
    if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = value;
    __syncthreads();
    return buffer;
  }

 private:
  int turn_ = 0;
};

// Sum over the threads of a row.
__device__ inline float row_sum(float value, WarpExchange<float>& exchange) {
  value = warp_reduce(value, Sum{});
  if (blockDim.x == 32) return value;
  const float* partial = exchange.share(value);
  const int num_warps = blockDim.x / 32;
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kMaxRowWarps; ++w) {
    if (w < num_warps) sum += partial[w];
  }
  return sum;
}

// How rows are spread over threads and blocks.
struct RowGrid {
  dim3 grid, block;
};

// For `items` packs a thread, 0: any number. No more than `max_blocks` blocks.
inline RowGrid row_grid(int64_t rows, int64_t packs, int64_t items, int64_t max_blocks) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  const int64_t threads = items == 0 ? kMaxRowThreads : parts(parts(packs, items), 32) * 32;
  const int64_t rows_a_block = threads == 32 ? 4 : 1;
  const int64_t blocks = std::min(parts(rows, rows_a_block), max_blocks);
  return {dim3(static_cast<unsigned>(blocks)),
          dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows_a_block))};
}

// Calls f(pack, items, RowGrid) with the elements of a pack and the packs of a thread as integral
// constants, for rows whose strides and addresses are given as to dispatch_pack.
template <class T, class F, class... Values>
cudaError_t dispatch_row(int64_t rows, int64_t width, F&& f, int64_t strides_or,
                         Values... addresses) {
  if (rows == 0 || width == 0) return cudaSuccess;
  if (rows > INT32_MAX || width > INT32_MAX) return cudaErrorInvalidValue;
  return dispatch_pack<T>(
      [&](auto pack) {
        const int64_t packs = (width + pack - 1) / pack;
        const auto with = [&](auto items) {
          return f(pack, items, row_grid(rows, packs, items, kMaxRowBlocks));
        };
        if (packs <= 32) return with(std::integral_constant<int, 1>{});
        if (packs <= 2 * kMaxRowThreads) return with(std::integral_constant<int, 2>{});
        if (packs <= 4 * kMaxRowThreads) return with(std::integral_constant<int, 4>{});
        if constexpr (pack == 1) {
          if (packs <= 16 * kMaxRowThreads) return with(std::integral_constant<int, 16>{});
        }
        return with(std::integral_constant<int, 0>{});
      },
      width, strides_or, addresses...);
}

}  // namespace lightvl::cuda
