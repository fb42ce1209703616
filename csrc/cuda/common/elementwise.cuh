// Kernel of the elementwise operators over rows: each thread loads kItems packs, then stores
// theirs.
//
// An Op has `Inputs load(int64_t row, int64_t c) const`, `void store(int64_t row, int64_t c, const
// Inputs&) const` for the pack that begins at element c of a row, and kPack; optionally `void
// prefetch(int64_t row) const`, called once per row before anything may be read. A row is cut into
// chunks of one block; where it is narrow, threadIdx.y runs over several rows.
#pragma once

#include <algorithm>

#include "cuda/common/dependent_launch.cuh"
#include "cuda/common/numeric.cuh"

namespace lightvl::cuda {

constexpr int kElementwiseThreads = 128;

struct RowChunks {
  int64_t rows, width;
  unsigned chunks;  // of a row
};

template <class Op, int kItems>
__global__ void __launch_bounds__(kElementwiseThreads)
    elementwise_kernel(const __grid_constant__ Op op, const __grid_constant__ RowChunks shape) {
  const int64_t row = int64_t{blockIdx.x / shape.chunks} * blockDim.y + threadIdx.y;
  const unsigned first = blockIdx.x % shape.chunks * (blockDim.x * kItems) + threadIdx.x;
  if constexpr (requires { op.prefetch(row); }) {
    if (row < shape.rows && threadIdx.x == 0) op.prefetch(row);
  }
  wait_for_previous();
  let_next_begin();
  if (row >= shape.rows) return;
  const auto column = [&](int i) { return int64_t{first + i * blockDim.x} * Op::kPack; };
  typename Op::Inputs inputs[kItems];
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (column(i) < shape.width) inputs[i] = op.load(row, column(i));
  }
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (column(i) < shape.width) op.store(row, column(i), inputs[i]);
  }
}

// One pack a thread is the fastest where a pack has arithmetic to it: more threads hide more.
template <int kItems = 1, class Op>
cudaError_t launch_elementwise(const Op& op, int64_t rows, int64_t width, cudaStream_t stream) {
  if (rows == 0 || width == 0) return cudaSuccess;
  const auto parts = [](int64_t whole, int64_t part) { return (whole + part - 1) / part; };
  const int64_t packs = parts(width, Op::kPack);
  const int64_t chunks = parts(packs, kElementwiseThreads * kItems);
  const int64_t threads = parts(parts(packs, chunks * kItems), 32) * 32;
  const int64_t rows_a_block = chunks == 1 ? kElementwiseThreads / threads : 1;
  const int64_t blocks = parts(rows, rows_a_block) * chunks;
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  const dim3 block(static_cast<unsigned>(threads), static_cast<unsigned>(rows_a_block));
  return launch_dependent<elementwise_kernel<Op, kItems>>(
      dim3(static_cast<unsigned>(blocks)), block, 0, stream, op,
      RowChunks{rows, width, static_cast<unsigned>(chunks)});
}

}  // namespace lightvl::cuda
