// The shape of a decode launch and the room it needs, from sizes that the host knows alone.
#pragma once

#include <algorithm>

#include "cuda/attention/decode_schedule.cuh"
#include "cuda/common/device.cuh"

namespace lightvl::cuda {

// Of the kernel for up to 8 * kTiles rows.
template <int kTiles>
struct DecodeLaunch {
  static constexpr int kRows = 8 * kTiles;

  static constexpr int kWarps = 8;

  int blocks;       // at most one an SM: 8 KB on their way for each warp are enough
  int cluster;      // blocks that work together: a worker
  int least_share;  // slices of a worker: fewer are not worth merging

  static DecodeLaunch choose(const PagedAttentionWork& work) {
    const PagedAttentionParams& p = work.params;
    const int64_t pairs = std::min<int64_t>(p.num_seqs, kMaxDecodeSeqs) * p.num_kv_heads;
    const int64_t slices = work.max_pages * p.page_size / kSliceKeys;  // of a pair, at most
    const int64_t most = device_attribute<cudaDevAttrMultiProcessorCount>();
    // Few short pairs: a cluster each, whose blocks merge without going through memory.
    constexpr int kCluster = 8;
    if (device_attribute<cudaDevAttrComputeCapabilityMajor>() >= 9 && !work.only_sm80 &&
        slices <= 2 * kCluster * kWarps && pairs * kCluster <= most / 2) {
      return {static_cast<int>(pairs * kCluster), kCluster, 1};
    }
    const int64_t blocks = std::clamp<int64_t>(pairs * slices / kWarps, 1, most);
    return {static_cast<int>(blocks), 1, kWarps};
  }

  template <class Kernel>
  cudaError_t start(Kernel* kernel, size_t shared_bytes, const PagedAttentionWork& work,
                    cudaStream_t stream) const {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = static_cast<unsigned>(blocks);
    config.blockDim = 32 * kWarps;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1 ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, work, least_share);
  }
};

// Of each block's two pieces: [rows, D] outputs, [rows, 2] maxima and sums, a flag.
template <int kTiles>
int64_t decode_workspace_bytes(const PagedAttentionWork& work) {
  using Launch = DecodeLaunch<kTiles>;
  const int64_t piece = Launch::kRows * (work.params.head_dim + 2) * sizeof(float);
  return 2 * Launch::choose(work).blocks * (piece + static_cast<int64_t>(sizeof(uint64_t)));
}

}  // namespace lightvl::cuda
