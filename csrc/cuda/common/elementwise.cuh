// Grid of the elementwise operators: x runs over rows, y over runs of packs, one pack a thread.
#pragma once

#include "cuda/common/numeric.cuh"

namespace lightvl::cuda {

constexpr int kElementwiseThreads = 256;

// First element of this thread's pack in its row, which is blockIdx.x.
template <int kPack>
__device__ int64_t pack_begin() {
  return (int64_t{blockIdx.y} * kElementwiseThreads + threadIdx.x) * kPack;
}

template <int kPack>
dim3 elementwise_grid(int64_t rows, int64_t width) {
  constexpr int64_t kPerBlock = kElementwiseThreads * kPack;
  return {static_cast<unsigned>(rows), static_cast<unsigned>((width + kPerBlock - 1) / kPerBlock)};
}

}  // namespace lightvl::cuda
