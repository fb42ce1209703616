// Attention of each sequence's last tokens over its pages of keys and values, causal: prefill with
// mma.sync, for GPUs and head dims that have nothing better.
//
// The rows of a KV head are (new token, query head of its group), so that a group shares each key
// that is read. A block takes 64 rows of one KV head of one sequence. The grid is made of sizes
// that the host knows, so that a CUDA graph replays with other lengths; a block without work
// leaves.
#pragma once

#include "cuda/attention/flash.cuh"
#include "cuda/common/launch.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class T>
struct PagedKeys {
  const T* keys;  // of page 0's first slot and this KV head
  const T* values;
  const int32_t* pages;
  int page_bits;                                       // the page size is 1 << page_bits
  int64_t key_page, key_slot, value_page, value_slot;  // strides

  __device__ const T* key(int i) const { return keys + page(i) * key_page + slot(i) * key_slot; }
  __device__ const T* value(int i) const {
    return values + page(i) * value_page + slot(i) * value_slot;
  }

 private:
  __device__ int64_t page(int i) const { return pages[i >> page_bits]; }
  __device__ int64_t slot(int i) const { return i & ((1 << page_bits) - 1); }
};

template <class T>
__device__ PagedKeys<T> paged_keys(const PagedAttentionParams& p, int64_t s, int64_t kv_head) {
  return {static_cast<const T*>(p.k_cache) + kv_head * p.k_stride[1],
          static_cast<const T*>(p.v_cache) + kv_head * p.v_stride[1],
          p.page_table + s * p.page_table_stride,
          31 - __clz(static_cast<int>(p.page_size)),
          p.k_stride[0],
          p.k_stride[2],
          p.v_stride[0],
          p.v_stride[2]};
}

// Blocks: x = row tile, y = KV head, z = sequence.
template <class T, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    paged_attention_kernel(const __grid_constant__ PagedAttentionWork work) {
  using Loop = Flash<T, kHeadDim, kWarps>;
  extern __shared__ __align__(16) unsigned char shared[];
  const PagedAttentionParams& p = work.params;
  const int first_row = static_cast<int>(blockIdx.x) * Loop::kRows;
  const int64_t s = blockIdx.z, begin = p.cu_q_lens[s];
  const int q_len = static_cast<int>(p.cu_q_lens[s + 1] - begin), context = p.context_lens[s];
  const int group = static_cast<int>(p.num_heads / p.num_kv_heads), rows = q_len * group;
  if (first_row >= rows || rows <= work.decode_rows) return;

  const T* query[2] = {};
  int64_t token[2], head[2];
  int seen[2] = {};
  for (int which = 0; which < 2; ++which) {
    const int row = first_row + Loop::row() + 8 * which;
    token[which] = begin + row / group;
    head[which] = int64_t{blockIdx.y} * group + row % group;
    if (row >= rows) continue;
    query[which] =
        static_cast<const T*>(p.q) + token[which] * p.q_stride[0] + head[which] * p.q_stride[1];
    seen[which] = context - q_len + row / group + 1;
  }
  const int last_row = min(first_row + Loop::kRows, rows) - 1;

  Loop loop(shared, p.scale);
  loop.load_queries(query[0], query[1]);
  loop.run(paged_keys<T>(p, s, blockIdx.y), 0, context - q_len + last_row / group + 1, seen);

  for (int which = 0; which < 2; ++which) {
    if (query[which] == nullptr) continue;
    T* out = static_cast<T*>(p.out) + token[which] * p.out_stride[0] +
             head[which] * p.out_stride[1] + Loop::column();
#pragma unroll
    for (int d = 0; d < kHeadDim; d += 8) {
      const float2 pair = loop.output(d, which);
      *reinterpret_cast<uint32_t*>(out + d) = pack_pair<T>(pair.x, pair.y);
    }
    if (p.lse != nullptr && Loop::column() == 0) {
      p.lse[token[which] * p.num_heads + head[which]] = loop.log2_sum(which) * 0.693147181f;
    }
  }
}

template <class T, int kHeadDim>
cudaError_t launch_paged_attention(const PagedAttentionWork& work, cudaStream_t stream) {
  constexpr int kWarps = 4;
  using Loop = Flash<T, kHeadDim, kWarps>;
  const PagedAttentionParams& p = work.params;
  const int64_t rows = work.max_q_len * (p.num_heads / p.num_kv_heads);
  if (p.num_seqs * rows == 0) return cudaSuccess;
  constexpr auto kernel = paged_attention_kernel<T, kHeadDim, kWarps>;
  const cudaError_t status = allow_shared_memory<kernel>(Loop::kSharedBytes);
  if (status != cudaSuccess) return status;
  const dim3 grid(static_cast<unsigned>((rows + Loop::kRows - 1) / Loop::kRows),
                  static_cast<unsigned>(p.num_kv_heads), static_cast<unsigned>(p.num_seqs));
  return launch_kernel<kernel>(LaunchConfig(grid, 32 * kWarps, Loop::kSharedBytes, stream), work);
}

}  // namespace lightvl::cuda
