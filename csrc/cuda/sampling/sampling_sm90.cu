#include <cstdint>

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_sample.cuh"

namespace lightvl::cuda {
namespace {

constexpr int64_t kWorthABlock = 2048;  // scores

// Scores that a block may hold so that two blocks share a multiprocessor's 228 kB, of which each
// has what rows share, a kilobyte for sums and one for the system.
constexpr int64_t kPairSlice =
    (228 * 1024 / 2 - int64_t{sizeof(RowShared)} - 2 * 1024 - 4 * kMargin) / 4 / 64 * 64;

// How many blocks hold a row: as many as are worth it, or so few that all rows are held at once by
// pairs of blocks, or else the fewest that come in pairs. Clusters leave an eighth of the places
// free, as multiprocessors come in groups that they don't divide.
int blocks_of_row(int64_t vocab_size, int64_t rows) {
  int blocks = 1;
  while (blocks < kMaxRowBlocks && vocab_size > blocks * kWorthABlock) blocks *= 2;
  const int64_t places = 2 * device_attribute<cudaDevAttrMultiProcessorCount>() * 7 / 8;
  while (rows * blocks > places && vocab_size <= (blocks - 1) * kPairSlice) --blocks;
  return blocks;
}

template <class T>
cudaError_t launch_clusters(const SampleParams& p, cudaStream_t stream) {
  constexpr auto kernel = sample_cluster_kernel<T>;
  constexpr auto shared_bytes = [](int64_t slice) { return static_cast<int>(slice + kMargin) * 4; };
  const cudaError_t status = allow_shared_memory<kernel>(shared_bytes(kMaxSlice));
  if (status != cudaSuccess) return status;
  const int blocks = blocks_of_row(p.vocab_size, p.num_sequences);
  const int64_t chunks = (p.vocab_size + 63) / 64;
  const int slice = static_cast<int>((chunks + blocks - 1) / blocks * 64);
  LaunchConfig config(static_cast<unsigned>(p.num_sequences * blocks), kRowThreads,
                      shared_bytes(slice), stream);
  config.cluster(static_cast<unsigned>(blocks)).overlap();
  return launch_kernel<kernel>(config, p, slice);
}

}  // namespace

bool cluster_holds_row(int64_t vocab_size, int device) {
  return vocab_size <= kMaxRowBlocks * kMaxSlice &&
         device_attribute<cudaDevAttrComputeCapabilityMajor>(device) >= 9;
}

int sample_in_clusters(const SampleParams& p, Stream stream) {
  if (p.num_sequences == 0) return cudaSuccess;
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_clusters<T>(p, stream); });
}

}  // namespace lightvl::cuda
