// Which calls sm_90's prefill kernel takes and the room it needs, for those who launch it.
#pragma once

#include <algorithm>

#include "cuda/common/device.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class T, int kHeadDim>
cudaError_t launch_prefill_sm90(const PagedAttentionWork& work, cudaStream_t stream);

// One an SM.
inline int prefill_blocks() {
  return std::min(device_attribute<cudaDevAttrMultiProcessorCount>(), 256);
}

// TMA wants addresses and strides of 16 bytes.
inline bool takes_prefill_sm90(const PagedAttentionWork& work) {
  const PagedAttentionParams& p = work.params;
  const bool aligned = all_multiples(16, p.q, p.k_cache, p.v_cache, p.out) &&
                       all_multiples(8, p.q_stride[0], p.q_stride[1], p.out_stride[0],
                                     p.out_stride[1], p.k_stride[0], p.k_stride[1], p.k_stride[2],
                                     p.v_stride[0], p.v_stride[1], p.v_stride[2]);
  return device_attribute<cudaDevAttrComputeCapabilityMajor>() == 9 && aligned &&
         (p.head_dim == 64 || p.head_dim == 128) && p.scale > 0.0f &&
         p.num_heads / p.num_kv_heads <= 64;
}

// Of each block's two pieces: outputs, a maximum and a sum of 128 or 192 rows, a flag a warp.
inline int64_t prefill_sm90_workspace_bytes(const PagedAttentionWork& work) {
  const int64_t rows = work.params.head_dim == 64 ? 192 : 128;
  const int64_t warp_bytes = 32 * (work.params.head_dim * 2 + 16) + 8;
  return 2 * prefill_blocks() * (rows / 16) * warp_bytes;
}

}  // namespace lightvl::cuda
