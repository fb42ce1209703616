// The query rows of a (sequence, KV head) pair, and partial results of them.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

// The query heads that share a KV head; divides rows by their number without a division.
struct DecodeGroup {
  int size, inverse;

  explicit DecodeGroup(const PagedAttentionParams& p)
      : size(static_cast<int>(p.num_heads / p.num_kv_heads)), inverse((1 << 16) / size + 1) {}
  // For rows up to 16.
  __device__ int token(int row) const { return row * inverse >> 16; }
};

// Row n is query head n % group of new token n / group.
template <class T>
struct DecodeRows {
  const PagedAttentionParams& p;
  DecodeGroup group;
  int q_begin, head, count;

  __device__ const T* query(int row) const {
    row = min(row, count - 1);
    const int token = group.token(row), h = head * group.size + row - token * group.size;
    return static_cast<const T*>(p.q) + (q_begin + token) * p.q_stride[0] + h * p.q_stride[1];
  }

  __device__ T* output(int row) const {
    const int token = group.token(row), h = head * group.size + row - token * group.size;
    return static_cast<T*>(p.out) + (q_begin + token) * p.out_stride[0] + h * p.out_stride[1];
  }

  // Writes 4 elements at d of a row, of outputs relative to `totals`, {maximum, sum}.
  __device__ void write(int row, int d, float4 out, float2 totals) const {
    const float inverse = 1.0f / totals.y;
    const uint2 bits{pack_pair<T>(out.x * inverse, out.y * inverse),
                     pack_pair<T>(out.z * inverse, out.w * inverse)};
    *reinterpret_cast<uint2*>(output(row) + d) = bits;
    if (p.lse != nullptr && d == 0) {
      const int token = group.token(row), h = head * group.size + row - token * group.size;
      p.lse[(q_begin + token) * p.num_heads + h] = (totals.x + log2f(totals.y)) * 0.693147181f;
    }
  }
};

// What a warp, a block or a worker leaves of its keys: outputs that are not normalised.
template <int kHeadDim, int kRows>
struct DecodePartial {
  float4 out[kRows][kHeadDim / 4];
  float2 totals[kRows];  // {maximum in base 2, sum}
};

// Weighs `count` partials at a row and a quarter of d, of which totals(i) and out(i) are the i-th;
// kAtOnce of them are on their way at a time.
template <int kAtOnce, class Totals, class Out>
__device__ float4 merge_partials(int count, Totals&& totals, Out&& out, float2& merged) {
  merged = {-1e30f, 0.0f};
  float4 sum{};
  for (int begin = 0; begin < count; begin += kAtOnce) {
    float2 part[kAtOnce];
    float4 x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int at = min(begin + i, count - 1);
      part[i] = totals(at);
      x[i] = out(at);
    }
    const float before = merged.x;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) merged.x = fmaxf(merged.x, part[i].x);
    const float rescale = exp2f(before - merged.x);
    merged.y *= rescale;
    sum = {sum.x * rescale, sum.y * rescale, sum.z * rescale, sum.w * rescale};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = begin + i < count ? exp2f(part[i].x - merged.x) : 0.0f;
      merged.y += part[i].y * weight;
      sum.x += x[i].x * weight;
      sum.y += x[i].y * weight;
      sum.z += x[i].z * weight;
      sum.w += x[i].w * weight;
    }
  }
  return sum;
}

}  // namespace lightvl::cuda
