#include <algorithm>

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_sample.cuh"

namespace lightvl::cuda {
namespace {

constexpr int64_t kPortableBlocks = 8;    // of a cluster, on every GPU that has clusters
constexpr int64_t kMaxSlice = 48 * 1024;  // scores that a block's shared memory holds
constexpr int64_t kWorthABlock = 2048;    // scores
constexpr int64_t kFewRows = 8;           // leave room for the largest clusters

}  // namespace

bool cluster_holds_row(int64_t vocab_size, int device) {
  int major = 0;
  return vocab_size <= kPortableBlocks * kMaxSlice &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
}

int sample_in_clusters(const SampleParams& p, Stream stream) {
  if (p.num_sequences == 0) return cudaSuccess;
  const int64_t chunks = (p.vocab_size + 63) / 64;
  const int64_t most = p.num_sequences <= kFewRows ? kMaxRowBlocks : kPortableBlocks;
  int64_t blocks = 1;
  while (blocks < most && p.vocab_size > blocks * kWorthABlock) blocks *= 2;
  const auto slice = static_cast<int>((chunks + blocks - 1) / blocks * 64);
  return dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    return launch_sample_cluster<T>(p, static_cast<int>(blocks), slice, stream);
  });
}

}  // namespace lightvl::cuda
