// The shape of a decode launch and the room it needs, from sizes that the host knows alone.
#pragma once

#include <algorithm>

#include "cuda/attention/decode_piece.cuh"
#include "cuda/attention/decode_schedule.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/launch.cuh"

namespace lightvl::cuda {

// Of the kernel for up to 8 * kTiles rows.
template <int kTiles>
struct DecodeLaunch {
  static constexpr int kRows = 8 * kTiles;
  static constexpr int kWarps = 8;
  static constexpr int kLeastShare = 4;  // slices of a block: fewer are not worth merging

  int64_t blocks;  // at most one an SM: 8 KB on their way for each warp are enough

  explicit DecodeLaunch(const PagedAttentionWork& work) {
    const PagedAttentionParams& p = work.params;
    const int64_t pairs = std::min<int64_t>(p.num_seqs, kMaxDecodeSeqs) * p.num_kv_heads;
    const int64_t slices = work.max_pages * p.page_size / kSliceKeys;  // of a pair, at most
    const int64_t most = device_attribute<cudaDevAttrMultiProcessorCount>();
    blocks = std::clamp<int64_t>(pairs * slices / kLeastShare, 1, most);
  }

  DecodePlan plan(const PagedAttentionParams& p) const {
    const int64_t pairs = p.num_seqs * p.num_kv_heads;
    return {
        .group = DecodeGroup(p),
        .least_share = kLeastShare,
        .num_pairs = static_cast<int>(pairs),
        .pairs_each = static_cast<int>((pairs + blocks - 1) / blocks),
        .blocks = blocks,
        .parts = std::max<int64_t>(blocks / pairs, 1),
    };
  }

  // Starts all blocks at once: they wait for each other.
  template <auto kKernel>
  cudaError_t start(size_t shared_bytes, const PagedAttentionWork& work,
                    cudaStream_t stream) const {
    LaunchConfig config(static_cast<unsigned>(blocks), 32 * kWarps, shared_bytes, stream);
    return launch_kernel<kKernel>(config.at_once(), work, plan(work.params));
  }
};

// Of each block's two pieces.
template <int kTiles>
int64_t decode_workspace_bytes(const PagedAttentionWork& work) {
  using Launch = DecodeLaunch<kTiles>;
  const int64_t units = Launch::kRows * work.params.head_dim / DecodeUnit::kDims;
  return 2 * Launch(work).blocks * units * static_cast<int64_t>(sizeof(DecodeUnit));
}

}  // namespace lightvl::cuda
