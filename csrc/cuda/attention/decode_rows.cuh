// The query rows of a (sequence, KV head) pair, and partial results of them.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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

  // Writes 4 elements to `to`, d of a row's output, relative to `totals`, {maximum, sum}.
  __device__ void write(T* to, int row, int d, float4 out, float2 totals) const {
    const float inverse = __fdividef(1.0f, totals.y);
    const uint2 bits{pack_pair<T>(out.x * inverse, out.y * inverse),
                     pack_pair<T>(out.z * inverse, out.w * inverse)};
    *reinterpret_cast<uint2*>(to) = bits;
    if (p.lse != nullptr && d == 0) {
      p.lse[token(row) * p.num_heads + query_head(row)] =
          (totals.x + log2f(totals.y)) * 0.693147181f;
    }
  }
};

// What a warp leaves of its keys: outputs that are not normalised.
template <int kHeadDim, int kRows>
struct DecodePartial {
  float4 out[kRows][kHeadDim / 4];  // by put() and get()
  float2 totals[kRows];             // {maximum in base 2, sum}

  // Elements d and d + 1, d even. Lanes have them of rows 0, 2, 4, 6 at the same d at a time, so
  // rows are permuted: each of these writes to banks of its own.
  __device__ void put(int row, int d, float2 x) {
    reinterpret_cast<float2*>(out[row])[d / 2 ^ (row / 2 & 3)] = x;
  }
  // Elements 4 * d4 to 4 * d4 + 3, in an order of the row's.
  __device__ float4 get(int row, int d4) const { return out[row][d4 ^ (row / 4 & 1)]; }
  __device__ static float4 in_order(int row, float4 x) {
    return row & 2 ? make_float4(x.z, x.w, x.x, x.y) : x;
  }
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
      const float weight = exp2_fast(part[i].x - most);
      totals.y += part[i].y * weight;
      out.x += x[i].x * weight;
      out.y += x[i].y * weight;
      out.z += x[i].z * weight;
      out.w += x[i].w * weight;
    }
  }

  // Adds what the lanes have whose numbers differ in bits below `end` but not in the lowest two;
  // all of them get the same.
  __device__ void add_lanes(int end) {
    float most = totals.x;
#pragma unroll
    for (int bit = 4; bit < 32; bit *= 2) {
      if (bit < end) most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, bit));
    }
    raise(most);
#pragma unroll
    for (int bit = 4; bit < 32; bit *= 2) {
      if (bit >= end) break;
      const auto add = [&](float& x) { x += __shfl_xor_sync(kAllLanes, x, bit); };
      add(totals.y);
      add(out.x);
      add(out.y);
      add(out.z);
      add(out.w);
    }
  }

 private:
  __device__ void raise(float most) {
    const float weight = exp2_fast(totals.x - most);
    totals = {most, totals.y * weight};
    out = {out.x * weight, out.y * weight, out.z * weight, out.w * weight};
  }
};

}  // namespace lightvl::cuda
