// Attention of each sequence's last tokens over its pages of keys and values, causal.
//
// The rows of a KV head are (new token, query head of its group), so that a group shares each key
// that is read. A block takes 16 rows (decode) or 64 (prefill) of one KV head of one sequence, and
// one split of the keys that its last row sees. The grid is made of sizes that the host knows, so
// that a CUDA graph replays with other lengths; a block without work leaves at once. With more than
// one split, outputs go to float32 partials and merge_splits_kernel weighs them.
#pragma once

#include <algorithm>

#include "cuda/attention/flash.cuh"
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

// Blocks: x = row tile * num_splits + split, y = KV head, z = sequence.
template <class T, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(32 * kWarps)
    paged_attention_kernel(const __grid_constant__ PagedAttentionWork work) {
  using Loop = Flash<T, kHeadDim, kWarps>;
  extern __shared__ __align__(16) unsigned char shared[];
  const PagedAttentionParams& p = work.params;
  const int num_splits = static_cast<int>(work.splits.num_splits);
  const int split = static_cast<int>(blockIdx.x) % num_splits;
  const int first_row = static_cast<int>(blockIdx.x) / num_splits * Loop::kRows;
  const int64_t s = blockIdx.z, begin = p.cu_q_lens[s];
  const int q_len = static_cast<int>(p.cu_q_lens[s + 1] - begin), context = p.context_lens[s];
  const int group = static_cast<int>(p.num_heads / p.num_kv_heads), rows = q_len * group;
  if (first_row >= rows) return;

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
  const int num_keys = context - q_len + last_row / group + 1;
  const int num_tiles = (num_keys + kTileKeys - 1) / kTileKeys;
  const int split_keys = (num_tiles + num_splits - 1) / num_splits * kTileKeys;

  Loop loop(shared, p.scale);
  loop.load_queries(query[0], query[1]);
  loop.run(paged_keys<T>(p, s, blockIdx.y), split * split_keys,
           min((split + 1) * split_keys, num_keys), seen);

  for (int which = 0; which < 2; ++which) {
    if (query[which] == nullptr) continue;
    const int64_t row = token[which] * p.num_heads + head[which];
    const float log2_sum = loop.log2_sum(which);
    if (num_splits == 1) {
      T* out = static_cast<T*>(p.out) + token[which] * p.out_stride[0] +
               head[which] * p.out_stride[1] + Loop::column();
#pragma unroll
      for (int d = 0; d < kHeadDim; d += 8) {
        const float2 pair = loop.output(d, which);
        *reinterpret_cast<uint32_t*>(out + d) = pack_pair<T>(pair.x, pair.y);
      }
      if (p.lse != nullptr && Loop::column() == 0) p.lse[row] = log2_sum * 0.693147181f;
    } else {
      const int64_t at = split * work.num_tokens * p.num_heads + row;
      float* out = work.splits.out + at * kHeadDim + Loop::column();
#pragma unroll
      for (int d = 0; d < kHeadDim; d += 8) {
        *reinterpret_cast<float2*>(out + d) = loop.output(d, which);
      }
      if (Loop::column() == 0) work.splits.lse[at] = log2_sum;
    }
  }
}

// A warp a (token, head).
template <class T, int kHeadDim>
__global__ void merge_splits_kernel(const __grid_constant__ PagedAttentionWork work) {
  const PagedAttentionParams& p = work.params;
  const int64_t rows = work.num_tokens * p.num_heads;
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, num_splits = static_cast<int>(work.splits.num_splits);
  if (row >= rows) return;
  const float* lse = work.splits.lse + row;
  float most = -INFINITY;
  for (int i = lane; i < num_splits; i += 32) most = fmaxf(most, lse[i * rows]);
  most = warp_reduce(most, Max{});
  float sum = 0.0f, out[kHeadDim / 32] = {};
  for (int i = 0; i < num_splits; ++i) {
    const float weight = exp2f(lse[i * rows] - most);
    if (!(weight > 0.0f)) continue;
    sum += weight;
    const float* partial = work.splits.out + (i * rows + row) * kHeadDim + lane;
#pragma unroll
    for (int j = 0; j < kHeadDim / 32; ++j) out[j] += weight * partial[j * 32];
  }
  T* to = static_cast<T*>(p.out) + row / p.num_heads * p.out_stride[0] +
          row % p.num_heads * p.out_stride[1] + lane;
#pragma unroll
  for (int j = 0; j < kHeadDim / 32; ++j) to[j * 32] = from_float<T>(out[j] / sum);
  if (p.lse != nullptr && lane == 0) p.lse[row] = (most + log2f(sum)) * 0.693147181f;
}

template <class T, int kHeadDim, int kWarps>
cudaError_t run_paged_attention(const PagedAttentionWork& work, cudaStream_t stream) {
  using Loop = Flash<T, kHeadDim, kWarps>;
  constexpr int kMergeWarps = 4;
  const PagedAttentionParams& p = work.params;
  const auto kernel = paged_attention_kernel<T, kHeadDim, kWarps>;
  const cudaError_t status =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Loop::kSharedBytes);
  if (status != cudaSuccess) return status;
  const int64_t rows = work.max_q_len * (p.num_heads / p.num_kv_heads);
  const int64_t blocks = (rows + Loop::kRows - 1) / Loop::kRows * work.splits.num_splits;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.num_kv_heads),
                  static_cast<unsigned>(p.num_seqs));
  kernel<<<grid, 32 * kWarps, Loop::kSharedBytes, stream>>>(work);
  if (work.splits.num_splits > 1) {
    const int64_t outputs = work.num_tokens * p.num_heads;
    merge_splits_kernel<T, kHeadDim>
        <<<static_cast<unsigned>((outputs + kMergeWarps - 1) / kMergeWarps), 32 * kMergeWarps, 0,
           stream>>>(work);
  }
  return cudaGetLastError();
}

template <class T, int kHeadDim>
cudaError_t launch_paged_attention(const PagedAttentionWork& work, cudaStream_t stream) {
  const PagedAttentionParams& p = work.params;
  if (p.num_seqs * p.num_heads * work.max_q_len == 0) return cudaSuccess;
  const bool few_rows = work.max_q_len * (p.num_heads / p.num_kv_heads) <= 16;
  return few_rows ? run_paged_attention<T, kHeadDim, 1>(work, stream)
                  : run_paged_attention<T, kHeadDim, 4>(work, stream);
}

}  // namespace lightvl::cuda
