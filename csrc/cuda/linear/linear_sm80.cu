// Which shape of the kernel a product gets.
#include <algorithm>

#include "cuda/launchers.h"
#include "cuda/linear/linear_small.cuh"

namespace lightvl::cuda {
namespace {

template <class T, template <int> class Shape>
cudaError_t launch_halves(const LinearSmallParams& p, int clusters, cudaStream_t stream) {
  if (p.num_tokens > 8) return launch_shape<T, Shape<2>>(p, clusters, stream);
  return launch_shape<T, Shape<1>>(p, clusters, stream);
}

constexpr int kHalf = kHalfOfHopper, kWhole = 2 * kHalfOfHopper, kLeast = 99 * 1024;

// Bands of any size; with less shared memory, for other GPUs.
template <int kHalves>
using Long = LinearShape<64, kHalves, 1, false, false, kWhole>;
template <int kHalves>
using LongSilu = LinearShape<64, kHalves, 1, false, true, kWhole>;
template <int kHalves>
using Small = LinearShape<32, kHalves, 1, false, false, kLeast>;
template <int kHalves>
using SmallSilu = LinearShape<32, kHalves, 1, false, true, kLeast>;

// Bands of one pass, of a block or a pair of blocks; if they are short, with their chunks.
template <int kRows, int kCluster, int kChunks = 0>
struct OnePass {
  template <int kHalves>
  using Shape = LinearShape<kRows, kHalves, kCluster, true, false, kHalf, kChunks>;
};

template <class T, int kRows>
cudaError_t launch_pairs(const LinearSmallParams& p, int pairs, cudaStream_t stream) {
  const int64_t chunks = (p.width + 16 * kChunk - 1) / (16 * kChunk);  // of a warp
  if (chunks <= 2) return launch_halves<T, OnePass<kRows, 2, 2>::template Shape>(p, pairs, stream);
  if (chunks == 3) return launch_halves<T, OnePass<kRows, 2, 3>::template Shape>(p, pairs, stream);
  if (chunks == 4) return launch_halves<T, OnePass<kRows, 2, 4>::template Shape>(p, pairs, stream);
  return launch_halves<T, OnePass<kRows, 2>::template Shape>(p, pairs, stream);
}

// All SMs have one block. The shape follows from the device and the weight alone, never from the
// rows of x: shapes add the products in different orders.
template <class T>
cudaError_t launch_linear_small(const LinearSmallParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.out_width == 0) return cudaSuccess;
  const int sms = device_attribute<cudaDevAttrMultiProcessorCount>();
  const int blocks = static_cast<int>(std::min<int64_t>(sms, p.out_width));
  const int pairs = static_cast<int>(std::min<int64_t>(sms / 2, p.out_width));
  const auto most_rows = [&](int bands) { return (p.out_width + bands - 1) / bands; };
  if (!detail::can_launch_dependent() ||
      device_attribute<cudaDevAttrMaxSharedMemoryPerBlockOptin>() < kWhole) {
    if (p.silu_mul) return launch_halves<T, SmallSilu>(p, blocks, stream);
    return launch_halves<T, Small>(p, blocks, stream);
  }
  if (p.silu_mul) return launch_halves<T, LongSilu>(p, blocks, stream);
  if (most_rows(pairs) <= 24) return launch_pairs<T, 24>(p, pairs, stream);
  if (most_rows(pairs) <= 32) return launch_pairs<T, 32>(p, pairs, stream);
  if (most_rows(pairs) <= 56)
    return launch_halves<T, OnePass<56, 2>::template Shape>(p, pairs, stream);
  if (most_rows(blocks) <= 36)
    return launch_halves<T, OnePass<36, 1>::template Shape>(p, blocks, stream);
  if (most_rows(blocks) <= 40)
    return launch_halves<T, OnePass<40, 1>::template Shape>(p, blocks, stream);
  return launch_halves<T, Long>(p, blocks, stream);
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
