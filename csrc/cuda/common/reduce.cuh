// Reductions over a warp and over a block of up to 1024 threads.
#pragma once

#include <cuda_runtime.h>

namespace lightvl::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Over aligned groups of kLanes lanes; every lane gets the result of its group.
template <int kLanes = 32, class T, class Combine>
__device__ T warp_reduce(T value, Combine combine) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  }
  return value;
}

// Every thread gets the result; `identity` changes nothing when combined. Called by all threads of
// the block, whose number is a multiple of 32.
template <class T, class Combine>
__device__ T block_reduce(T value, Combine combine, T identity) {
  __shared__ T partial[32];
  const int lane = threadIdx.x % 32, num_warps = blockDim.x / 32;
  value = warp_reduce(value, combine);
  __syncthreads();  // partial may still be read by an earlier call
  if (lane == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_reduce(lane < num_warps ? partial[lane] : identity, combine);
}

}  // namespace lightvl::cuda
