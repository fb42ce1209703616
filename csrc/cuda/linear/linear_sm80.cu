// Which shape of the kernel a product gets.
#include <algorithm>

#include "cuda/launchers.h"
#include "cuda/linear/linear_small.cuh"

namespace lightvl::cuda {
namespace {

template <class T, int kTiles, int kCluster, bool kSilu, int kMostBytes>
cudaError_t launch_tiles(const LinearSmallParams& p, int clusters, cudaStream_t stream) {
  if (p.num_tokens > 8)
    return launch_shape<T, LinearShape<kTiles, 2, kCluster, kSilu, kMostBytes>>(p, clusters, stream);
  return launch_shape<T, LinearShape<kTiles, 1, kCluster, kSilu, kMostBytes>>(p, clusters, stream);
}

// One block an SM. The shape follows from the device and the weight alone, never from the rows of
// x: shapes add the products in different orders.
template <class T>
cudaError_t launch_linear_small(const LinearSmallParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.out_width == 0) return cudaSuccess;
  constexpr int kHalf = kHalfOfHopper, kWhole = 2 * kHalfOfHopper, kLeast = 99 * 1024;
  const int sms = device_attribute<cudaDevAttrMultiProcessorCount>();
  const int blocks = static_cast<int>(std::min<int64_t>(sms, p.out_width));
  const int pairs = static_cast<int>(std::min<int64_t>(sms / 2, p.out_width));
  const auto rows = [&](int bands) { return (p.out_width + bands - 1) / bands; };
  if (device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>() < kWhole ||
      !detail::can_launch_dependent()) {
    if (p.silu_mul) return launch_tiles<T, 4, 1, true, kLeast>(p, blocks, stream);
    return launch_tiles<T, 4, 1, false, kLeast>(p, blocks, stream);
  }
  if (p.silu_mul) return launch_tiles<T, 8, 1, true, kWhole>(p, blocks, stream);
  if (rows(pairs) <= 32) return launch_tiles<T, 4, 2, false, kHalf>(p, pairs, stream);
  if (rows(blocks) <= 40) return launch_tiles<T, 5, 1, false, kHalf>(p, blocks, stream);
  return launch_tiles<T, 8, 1, false, kWhole>(p, blocks, stream);
}

}  // namespace

int linear_small(const LinearSmallParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, float>)
      return cudaErrorInvalidValue;
    else
      return launch_linear_small<T>(p, stream);
  });
}

}  // namespace lightvl::cuda
