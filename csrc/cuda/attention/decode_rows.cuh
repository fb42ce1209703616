// The query rows of a (sequence, KV head) pair, and partial results of them.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

// The query heads that share a KV head; divides rows by their number without a division.
struct DecodeGroup {
  int size, inverse;

  explicit DecodeGroup(const PagedAttentionParams& p)
      : size(static_cast<int>(p.num_heads / p.num_kv_heads)), inverse((1 << 16) / size + 1) {}
  // Of rows below 16.
  __device__ int token(int row) const { return row * inverse >> 16; }
};

// Row n is query head n % group of new token n / group.
template <class T>
struct DecodeRows {
  const PagedAttentionParams& p;
  DecodeGroup group;
  int q_begin, head, count;

  __device__ int64_t token(int row) const { return q_begin + group.token(row); }
  __device__ int64_t query_head(int row) const {
    return head * group.size + row - group.token(row) * group.size;
  }
  __device__ const T* query(int row) const {
    row = min(row, count - 1);
    return static_cast<const T*>(p.q) + token(row) * p.q_stride[0] +
           query_head(row) * p.q_stride[1];
  }
  __device__ T* output(int row) const {
    return static_cast<T*>(p.out) + token(row) * p.out_stride[0] +
           query_head(row) * p.out_stride[1];
  }

  // Writes 4 elements at d of a row, of outputs relative to `totals`, {maximum, sum}.
  __device__ void write(int row, int d, float4 out, float2 totals) const {
    const float inverse = 1.0f / totals.y;
    const uint2 bits{pack_pair<T>(out.x * inverse, out.y * inverse),
                     pack_pair<T>(out.z * inverse, out.w * inverse)};
    *reinterpret_cast<uint2*>(output(row) + d) = bits;
    if (p.lse != nullptr && d == 0) {
      p.lse[token(row) * p.num_heads + query_head(row)] =
          (totals.x + log2f(totals.y)) * 0.693147181f;
    }
  }
};

// What a warp leaves of its keys: outputs that are not normalised.
template <int kHeadDim, int kRows>
struct DecodePartial {
  float4 out[kRows][kHeadDim / 4];
  float2 totals[kRows];  // {maximum in base 2, sum}
};

// The sum of partial results at four elements of a row, each with its weight.
struct DecodeSum {
  float2 totals{-1e30f, 0.0f};
  float4 out{};

  template <int kParts>
  __device__ void add(const float2 (&part)[kParts], const float4 (&x)[kParts]) {
    float most = totals.x;
#pragma unroll
    for (int i = 0; i < kParts; ++i) most = fmaxf(most, part[i].x);
    raise(most);
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const float weight = exp2f(part[i].x - most);
      totals.y += part[i].y * weight;
      out.x += x[i].x * weight;
      out.y += x[i].y * weight;
      out.z += x[i].z * weight;
      out.w += x[i].w * weight;
    }
  }

  // Adds what the lane has whose number differs by the bit `step`; both get the same.
  __device__ void add_lane(int step) {
    const auto other = [&](float x) { return __shfl_xor_sync(kAllLanes, x, step); };
    raise(fmaxf(totals.x, other(totals.x)));
    totals.y += other(totals.y);
    out = {out.x + other(out.x), out.y + other(out.y), out.z + other(out.z), out.w + other(out.w)};
  }

 private:
  __device__ void raise(float most) {
    const float weight = exp2f(totals.x - most);
    totals = {most, totals.y * weight};
    out = {out.x * weight, out.y * weight, out.z * weight, out.w * weight};
  }
};

}  // namespace lightvl::cuda
