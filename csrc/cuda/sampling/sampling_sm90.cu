#include <atomic>
#include <cstdint>

#include "cuda/launchers.h"
#include "cuda/sampling/cluster_sample.cuh"

namespace lightvl::cuda {
namespace {

constexpr int64_t kMaxSlice = 48 * 1024;  // scores that a block's shared memory holds
constexpr int64_t kWorthABlock = 2048;    // scores

// How many clusters of so many blocks run at once in a launch. CUDA takes a microsecond over it, so
// the last answers are kept, by device and size of the clusters.
template <auto kKernel>
cudaError_t clusters_at_once(const LaunchConfig& launch, int blocks, int& clusters) {
  static std::atomic<uint64_t> known[kMaxDevices][kMaxRowBlocks + 1];  // shared bytes, clusters
  const int device = current_device();
  if (device < 0) return cudaErrorInvalidDevice;
  const cudaLaunchConfig_t config = launch.get();
  const uint64_t last = known[device][blocks].load(std::memory_order_relaxed);
  clusters = static_cast<int>(last & UINT32_MAX);
  if (last >> 32 == config.dynamicSmemBytes) return cudaSuccess;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, kKernel, &config);
  if (status == cudaSuccess) {
    known[device][blocks].store(config.dynamicSmemBytes << 32 | static_cast<uint64_t>(clusters),
                                std::memory_order_relaxed);
  }
  return status;
}

template <class T>
cudaError_t launch_clusters(const SampleParams& p, cudaStream_t stream) {
  constexpr auto kernel = sample_cluster_kernel<T>;
  constexpr auto shared_bytes = [](int64_t slice) { return static_cast<int>(slice + 8) * 4; };
  cudaError_t status = allow_shared_memory<kernel>(shared_bytes(kMaxSlice));
  if (status != cudaSuccess) return status;
  int blocks = 1;
  while (blocks < kMaxRowBlocks && p.vocab_size > blocks * kWorthABlock) blocks *= 2;
  const int64_t chunks = (p.vocab_size + 63) / 64;
  RowPlan plan{static_cast<int>((chunks + blocks - 1) / blocks * 64),
               static_cast<int>(p.num_sequences)};
  const int64_t num_blocks = p.num_sequences * blocks;
  LaunchConfig config(static_cast<unsigned>(num_blocks), kRowThreads, shared_bytes(plan.slice),
                      stream);
  config.cluster(static_cast<unsigned>(blocks)).overlap();
  if (num_blocks > device_attribute<cudaDevAttrMultiProcessorCount>()) {
    // Not all rows may fit at once.
    status = clusters_at_once<kernel>(config, blocks, plan.rows_ahead);
    if (status != cudaSuccess) return status;
  }
  return launch_kernel<kernel>(config, p, plan);
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
