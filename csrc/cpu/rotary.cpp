// Rotary embedding of queries and keys, fused with the write of keys and values to their pages.
//
// Heads are rotated as two halves (x1, x2): x1 cos - x2 sin, x2 cos + x1 sin, in float32, after an
// optional RMS norm per head. A token's page slot is page * P + offset.
#include <cmath>
#include <cstring>

#include "cpu/kernels.h"
#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

constexpr int64_t kMaxHeadDim = 256;

// Writes the head to `out`, which may be `x`.
template <class T>
void rotate_head(const T* x, const T* norm, float eps, const float* cos_sin, int64_t head_dim,
                 T* out) {
  const int64_t half = head_dim / 2;
  const float* cos = cos_sin;
  const float* sin = cos_sin + half;
  float head[kMaxHeadDim];
#pragma omp simd
  for (int64_t d = 0; d < head_dim; ++d) head[d] = to_float(x[d]);
  if (norm != nullptr) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < head_dim; ++d) squares += head[d] * head[d];
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(head_dim) + eps);
#pragma omp simd
    for (int64_t d = 0; d < head_dim; ++d) head[d] *= scale * to_float(norm[d]);
  }
#pragma omp simd
  for (int64_t d = 0; d < half; ++d) {
    out[d] = from_float<T>(head[d] * cos[d] - head[d + half] * sin[d]);
    out[d + half] = from_float<T>(head[d + half] * cos[d] + head[d] * sin[d]);
  }
}

template <class T>
void write_kv(const RopeWriteKvParams& p, int64_t t, const float* cos_sin) {
  const int64_t page = p.slots[t] / p.page_size, offset = p.slots[t] % p.page_size;
  for (int64_t h = 0; h < p.num_kv_heads; ++h) {
    const int64_t cell = ((page * p.num_kv_heads + h) * p.page_size + offset) * p.head_dim;
    rotate_head(static_cast<const T*>(p.k) + t * p.k_stride_t + h * p.k_stride_h,
                static_cast<const T*>(p.k_norm), p.eps, cos_sin, p.head_dim,
                static_cast<T*>(p.k_cache) + cell);
    std::memcpy(static_cast<T*>(p.v_cache) + cell,
                static_cast<const T*>(p.v) + t * p.v_stride_t + h * p.v_stride_h,
                p.head_dim * sizeof(T));
  }
}

}  // namespace

void rope_write_kv(const RopeWriteKvParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      const float* cos_sin = p.cos_sin + p.rows[t] * p.head_dim;
      for (int64_t h = 0; h < p.num_heads; ++h) {
        T* q = static_cast<T*>(p.q) + t * p.q_stride_t + h * p.q_stride_h;
        rotate_head(q, static_cast<const T*>(p.q_norm), p.eps, cos_sin, p.head_dim, q);
      }
      if (p.slots[t] >= 0) write_kv<T>(p, t, cos_sin);
    }
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
