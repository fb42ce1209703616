// Rows that are reduced: each belongs to the blockDim.x threads (whole warps) of one threadIdx.y,
// which keep it in registers between the reduction and the result, so that it is read once.
//
// A block has one row, or several of one warp each. Blocks that live for one row were faster than
// blocks that stay and load the next row early, into registers or shared memory: see
// docs/kernels.md.
#pragma once

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kMaxRowThreads = 512;
constexpr int kMaxRowWarps = kMaxRowThreads / 32;

// The row of this thread.
__device__ inline int64_t row_index() { return int64_t{blockIdx.x} * blockDim.y + threadIdx.y; }

// Has a row that all blocks share fetched to L2 by the first of them.
__device__ inline void prefetch_shared(const void* row, int64_t bytes) {
  constexpr int kLine = 128;
  if (blockIdx.x > 0 || threadIdx.y > 0) return;
  for (int64_t i = threadIdx.x * kLine; i < bytes; i += blockDim.x * kLine) {
    prefetch_to_l2(static_cast<const char*>(row) + i);
  }
}

// Blocks of kMaxRowThreads that fit an SM: few registers keep many short rows in flight.
constexpr int row_blocks(int items) { return items <= 2 ? 3 : items <= 4 ? 2 : 1; }

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
    for (int c = static_cast<int>(threadIdx.x) * kPack; c < width; c += blockDim.x * kPack) f(c);
  }

  const T* row_;
};

// One value of each warp of a row that takes the whole block, seen by all of them. Called once.
template <class T>
__device__ const T* share_between_warps(T value) {
  __shared__ T values[kMaxRowWarps];
  if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
  __syncthreads();
  return values;
}

// Sum over the threads of a row. Called once.
__device__ inline float row_sum(float value) {
  value = warp_reduce(value, Sum{});
  const int num_warps = blockDim.x / 32;
  if (num_warps == 1) return value;
  const float* partial = share_between_warps(value);
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kMaxRowWarps; ++w) {
    if (w < num_warps) sum += partial[w];
  }
  return sum;
}

struct RowGrid {
  dim3 grid, block;
};

// For `items` packs a thread, 0: any number.
inline RowGrid row_grid(int64_t rows, int64_t packs, int64_t items) {
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  constexpr int64_t kSingleWarps = 4;
  const int64_t threads = items == 0 ? kMaxRowThreads : parts(parts(packs, items), 32) * 32;
  const int64_t rows_a_block = threads == 32 ? kSingleWarps : 1;
  return {dim3(static_cast<unsigned>(parts(rows, rows_a_block))),
          dim3(static_cast<unsigned>(threads), static_cast<unsigned>(rows_a_block))};
}

// Calls f(pack, items, RowGrid) with the elements of a pack and the packs of a thread as integral
// constants, at least kItems of them; strides and addresses are given as to dispatch_pack.
template <class T, int kItems, class F, class... Values>
cudaError_t dispatch_row(int64_t rows, int64_t width, F&& f, int64_t strides_or,
                         Values... addresses) {
  if (rows == 0 || width == 0) return cudaSuccess;
  if (rows > INT32_MAX || width > INT32_MAX) return cudaErrorInvalidValue;
  return dispatch_pack<T>(
      [&](auto pack) {
        const int64_t packs = (width + pack - 1) / pack;
        const auto with = [&](auto items) { return f(pack, items, row_grid(rows, packs, items)); };
        if (packs <= 32) return with(std::integral_constant<int, 1>{});
        if (packs <= kItems * kMaxRowThreads) return with(std::integral_constant<int, kItems>{});
        if constexpr (pack == 1) {
          if (packs <= 16 * kMaxRowThreads) return with(std::integral_constant<int, 16>{});
        } else {
          if (packs <= 8 * kMaxRowThreads) return with(std::integral_constant<int, 8>{});
        }
        return with(std::integral_constant<int, 0>{});
      },
      width, strides_or, addresses...);
}

}  // namespace lightvl::cuda
