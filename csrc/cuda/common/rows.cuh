// Rows that are reduced: each belongs to the blockDim.x threads (whole warps) of one threadIdx.y,
// which keep it in registers between the reduction and the result, and a block goes over rows
// blockIdx.x * blockDim.y + threadIdx.y and on in steps of the grid.
#pragma once

#include <algorithm>

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kMaxRowThreads = 512;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;
constexpr int64_t kMaxRowBlocks = INT32_MAX;

// This thread's packs of a row: kItems of them, each adjoining those of the other threads.
template <class T, int kPack, int kItems>
class Row {
 public:
  __device__ void load(const T* row, int64_t width) {
    each_item(width, [&](int i, int64_t c) { packs_[i] = load_pack<kPack>(row + c); });
  }

  // Calls f(pack, c) for each pack, which begins at element c.
  template <class F>
  __device__ void each(int64_t width, F&& f) const {
    each_item(width, [&](int i, int64_t c) { f(packs_[i], c); });
  }

  // Calls f(pack, other's pack, c); the former may be changed.
  template <class F>
  __device__ void each_with(const Row& other, int64_t width, F&& f) {
    each_item(width, [&](int i, int64_t c) { f(packs_[i], other.packs_[i], c); });
  }

 private:
  template <class F>
  static __device__ void each_item(int64_t width, F&& f) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int64_t c = int64_t{i * blockDim.x + threadIdx.x} * kPack;
      if (c < width) f(i, c);
    }
  }

  Pack<T, kPack> packs_[kItems];
};

// A row too wide for registers: its packs are read again at each pass, from where they were loaded.
template <class T, int kPack>
class Row<T, kPack, 0> {
 public:
  __device__ void load(const T* row, int64_t) { row_ = row; }

  template <class F>
  __device__ void each(int64_t width, F&& f) const {
    each_pack(width, [&](int64_t c) { f(load_pack<kPack>(row_ + c), c); });
  }

  template <class F>
  __device__ void each_with(const Row& other, int64_t width, F&& f) {
    each_pack(width, [&](int64_t c) {
      Pack<T, kPack> pack = load_pack<kPack>(row_ + c);
      f(pack, load_pack<kPack>(other.row_ + c), c);
    });
  }

 private:
  template <class F>
  static __device__ void each_pack(int64_t width, F&& f) {
    for (int64_t c = int64_t{threadIdx.x} * kPack; c < width; c += int64_t{blockDim.x} * kPack) {
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
        if (packs <= kMaxRowThreads) return with(std::integral_constant<int, 1>{});
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
