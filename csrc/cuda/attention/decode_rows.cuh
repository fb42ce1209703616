// The query rows of a (sequence, KV head) pair, and partial results of them.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

// Row n is query head n % group of new token n / group.
template <class T>
struct DecodeRows {
  const PagedAttentionParams& p;
  int q_begin, head, group, count;

  __device__ const T* query(int row) const {
    row = min(row, count - 1);
    return static_cast<const T*>(p.q) + (q_begin + row / group) * p.q_stride[0] +
           (head * group + row % group) * p.q_stride[1];
  }

  // Writes 4 elements at d of a row, of outputs relative to `totals`, {maximum, sum}.
  __device__ void write(int row, int d, float4 out, float2 totals) const {
    const int64_t token = q_begin + row / group, h = head * group + row % group;
    const float inverse = 1.0f / totals.y;
    const uint2 bits{pack_pair<T>(out.x * inverse, out.y * inverse),
                     pack_pair<T>(out.z * inverse, out.w * inverse)};
    T* to = static_cast<T*>(p.out) + token * p.out_stride[0] + h * p.out_stride[1] + d;
    *reinterpret_cast<uint2*>(to) = bits;
    if (p.lse != nullptr && d == 0) {
      p.lse[token * p.num_heads + h] = (totals.x + log2f(totals.y)) * 0.693147181f;
    }
  }
};

// What a warp, a block or a worker leaves of its keys: outputs that are not normalised.
template <int kHeadDim, int kRows>
struct DecodePartial {
  float4 out[kRows][kHeadDim / 4];
  float2 totals[kRows];  // {maximum in base 2, sum}
};

// Weighs `count` partials at a row and a quarter of d, of which totals(i) and out(i) are the i-th.
template <class Totals, class Out>
__device__ float4 merge_partials(int count, Totals&& totals, Out&& out, float2& merged) {
  merged = {-1e30f, 0.0f};
#pragma unroll 8
  for (int i = 0; i < count; ++i) merged.x = fmaxf(merged.x, totals(i).x);
  float4 sum{};
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float2 part = totals(i);
    const float4 x = out(i);
    const float weight = exp2f(part.x - merged.x);
    merged.y += part.y * weight;
    sum.x += x.x * weight;
    sum.y += x.y * weight;
    sum.z += x.z * weight;
    sum.w += x.w * weight;
  }
  return sum;
}

}  // namespace lightvl::cuda
