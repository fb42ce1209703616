// Rotary embedding of queries and keys, fused with the write of keys and values to their pages.
//
// A warp a head: query heads are rotated in place, key heads into the token's page slot, value
// heads copied there. A head's halves (x1, x2) become x1 cos - x2 sin and x2 cos + x1 sin, in
// float32, after an optional RMS norm; each lane holds kPack-wide pieces of both halves.
#pragma once

#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kRopeWarps = 8;
constexpr int kMaxHalf = 128;  // elements of half a head

template <class T, int kPack>
__device__ void rotate_head(const T* x, const T* norm, float eps, const float* cos_sin, int half,
                            T* out) {
  constexpr int kPieces = kMaxHalf / (32 * kPack);
  const int lane = threadIdx.x % 32;
  float first[kPieces][kPack], second[kPieces][kPack], squares = 0.0f;
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int d = (i * 32 + lane) * kPack;
    if (d >= half) break;
    const auto low = load_pack<kPack>(x + d), high = load_pack<kPack>(x + d + half);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      first[i][j] = to_float(low.value[j]);
      second[i][j] = to_float(high.value[j]);
      squares += first[i][j] * first[i][j] + second[i][j] * second[i][j];
    }
  }
  float scale = 1.0f;
  if (norm != nullptr) {
    scale = rsqrtf(warp_reduce(squares, Sum{}) / static_cast<float>(2 * half) + eps);
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int d = (i * 32 + lane) * kPack;
    if (d >= half) break;
    Pack<T, kPack> low, high;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      float a = first[i][j], b = second[i][j];
      if (norm != nullptr) {
        a *= scale * to_float(norm[d + j]);
        b *= scale * to_float(norm[d + j + half]);
      }
      const float cos = cos_sin[d + j], sin = cos_sin[d + j + half];
      low.value[j] = from_float<T>(a * cos - b * sin);
      high.value[j] = from_float<T>(b * cos + a * sin);
    }
    store_pack(out + d, low);
    store_pack(out + d + half, high);
  }
}

template <class T, int kPack>
__device__ void copy_head(const T* x, int head_dim, T* out) {
  for (int d = threadIdx.x % 32 * kPack; d < head_dim; d += 32 * kPack) {
    store_pack(out + d, load_pack<kPack>(x + d));
  }
}

template <class T, int kPack>
__global__ void rope_write_kv_kernel(const __grid_constant__ RopeWriteKvParams p) {
  const int64_t t = blockIdx.x, h = int64_t{blockIdx.y} * kRopeWarps + threadIdx.x / 32;
  const int half = static_cast<int>(p.head_dim / 2);
  const float* cos_sin = p.cos_sin + p.rows[t] * p.head_dim;
  if (h < p.num_heads) {
    T* q = static_cast<T*>(p.q) + t * p.q_stride_t + h * p.q_stride_h;
    rotate_head<T, kPack>(q, static_cast<const T*>(p.q_norm), p.eps, cos_sin, half, q);
    return;
  }
  const int64_t slot = p.slots[t], page = slot / p.page_size, offset = slot % p.page_size;
  if (slot < 0 || h >= p.num_heads + 2 * p.num_kv_heads) return;
  const bool is_value = h >= p.num_heads + p.num_kv_heads;
  const int64_t kv_head = h - p.num_heads - (is_value ? p.num_kv_heads : 0);
  const int64_t cell = ((page * p.num_kv_heads + kv_head) * p.page_size + offset) * p.head_dim;
  if (is_value) {
    const T* v = static_cast<const T*>(p.v) + t * p.v_stride_t + kv_head * p.v_stride_h;
    copy_head<T, kPack>(v, 2 * half, static_cast<T*>(p.v_cache) + cell);
  } else {
    const T* k = static_cast<const T*>(p.k) + t * p.k_stride_t + kv_head * p.k_stride_h;
    rotate_head<T, kPack>(k, static_cast<const T*>(p.k_norm), p.eps, cos_sin, half,
                          static_cast<T*>(p.k_cache) + cell);
  }
}

template <class T>
cudaError_t launch_rope_write_kv(const RopeWriteKvParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  const int64_t heads = p.num_heads + 2 * p.num_kv_heads;
  const dim3 grid(static_cast<unsigned>(p.num_tokens),
                  static_cast<unsigned>((heads + kRopeWarps - 1) / kRopeWarps));
  const int64_t strides = p.q_stride_t | p.q_stride_h | p.k_stride_t | p.k_stride_h | p.v_stride_t |
                          p.v_stride_h | p.head_dim / 2;
  const bool paired =
      strides % 2 == 0 && all_multiples(2 * sizeof(T), p.q, p.k, p.v, p.k_cache, p.v_cache);
  if (paired) {
    rope_write_kv_kernel<T, 2><<<grid, 32 * kRopeWarps, 0, stream>>>(p);
  } else {
    rope_write_kv_kernel<T, 1><<<grid, 32 * kRopeWarps, 0, stream>>>(p);
  }
  return cudaGetLastError();
}

}  // namespace lightvl::cuda
