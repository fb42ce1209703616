// Attention without a mask within each segment of a packed batch: a block takes 64 query rows of
// one head of one segment and runs over the segment's keys.
#pragma once

#include "cuda/attention/flash.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

constexpr int kVisionWarps = 4;

template <class T>
struct PackedKeys {
  const T* keys;  // of the segment's first token and this head
  const T* values;
  int64_t key_stride, value_stride;

  __device__ const T* key(int i) const { return keys + i * key_stride; }
  __device__ const T* value(int i) const { return values + i * value_stride; }
};

template <class T, int kHeadDim>
__global__ void __launch_bounds__(32 * kVisionWarps)
    vision_attention_kernel(const __grid_constant__ VisionAttentionParams p) {
  using Loop = Flash<T, kHeadDim, kVisionWarps>;
  extern __shared__ __align__(16) unsigned char shared[];
  const int64_t h = blockIdx.y, begin = p.cu_lens[blockIdx.z];
  const int len = static_cast<int>(p.cu_lens[blockIdx.z + 1] - begin);
  const int first_row = static_cast<int>(blockIdx.x) * Loop::kRows;
  if (first_row >= len) return;
  const int rows[2] = {first_row + Loop::row(), first_row + Loop::row() + 8};
  const T* q = static_cast<const T*>(p.q) + begin * p.q_stride[0] + h * p.q_stride[1];
  T* out = static_cast<T*>(p.out) + begin * p.out_stride[0] + h * p.out_stride[1];
  Loop loop(shared, p.scale);
  loop.load_queries(rows[0] < len ? q + rows[0] * p.q_stride[0] : nullptr,
                    rows[1] < len ? q + rows[1] * p.q_stride[0] : nullptr);
  const PackedKeys<T> source{static_cast<const T*>(p.k) + begin * p.k_stride[0] + h * p.k_stride[1],
                             static_cast<const T*>(p.v) + begin * p.v_stride[0] + h * p.v_stride[1],
                             p.k_stride[0], p.v_stride[0]};
  loop.run(source, 0, len, {len, len});
  for (int which = 0; which < 2; ++which) {
    if (rows[which] >= len) continue;
    T* row = out + rows[which] * p.out_stride[0] + Loop::column();
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 8) {
      const float2 pair = loop.output(d, which);
      *reinterpret_cast<uint32_t*>(row + d) = pack_pair<T>(pair.x, pair.y);
    }
  }
}

template <class T, int kHeadDim>
cudaError_t launch_vision_attention(const VisionAttentionWork& work, cudaStream_t stream) {
  using Loop = Flash<T, kHeadDim, kVisionWarps>;
  const VisionAttentionParams& p = work.params;
  if (p.num_seqs * p.num_heads * work.max_len == 0) return cudaSuccess;
  constexpr auto kernel = vision_attention_kernel<T, kHeadDim>;
  const cudaError_t status = allow_shared_memory<kernel>(Loop::kSharedBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>((work.max_len + Loop::kRows - 1) / Loop::kRows),
                  static_cast<unsigned>(p.num_heads), static_cast<unsigned>(p.num_seqs));
  return launch_kernel<kernel>(LaunchConfig(grid, 32 * kVisionWarps, Loop::kSharedBytes, stream),
                               p);
}

}  // namespace lightvl::cuda
