// One block a row: how a row's packs are spread over the threads and kept in registers.
#pragma once

#include <algorithm>

#include "cuda/common/numeric.cuh"

namespace lightvl::cuda {

// Calls f(i, c) for each pack of this thread, its i-th, which begins at element c.
template <int kPack, int kItems, class F>
__device__ void for_packs(int64_t width, F&& f) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t c = (int64_t{i} * blockDim.x + threadIdx.x) * kPack;
    if (c < width) f(i, c);
  }
}

// Calls f(std::integral_constant<int, kItems>, threads) with packs a thread and threads a block,
// such that one block covers a row of `width` elements in packs of kPack. Rows are limited to 16384
// elements, or 4096 packs.
template <int kPack, class F>
cudaError_t dispatch_items(int64_t width, F&& f) {
  const int64_t packs = (width + kPack - 1) / kPack;
  const auto threads = [&](int64_t items) {
    const int64_t needed = (packs + items - 1) / items;
    return static_cast<unsigned>(std::max<int64_t>((needed + 31) / 32 * 32, 32));
  };
  if (packs <= 256) return f(std::integral_constant<int, 1>{}, threads(1));
  if (packs <= 1024) return f(std::integral_constant<int, 2>{}, threads(2));
  if (packs <= 4096) return f(std::integral_constant<int, 4>{}, threads(4));
  if constexpr (kPack == 1) {
    if (packs <= 16384) return f(std::integral_constant<int, 16>{}, threads(16));
  }
  return cudaErrorInvalidValue;
}

}  // namespace lightvl::cuda
