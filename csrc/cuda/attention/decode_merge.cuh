// The merges of decode attention: of a block's warps in shared memory, then of the pieces of a
// split (sequence, KV head) pair in global memory, by whichever block finishes last.
//
// A piece is written whole, then its flag becomes the call's tag. A block that has set its flag and
// then sees all flags of the pair set merges the pair and clears them: a graph's next replay finds
// none, and whatever else the memory held before is no call's tag. The last block to set its flag
// sees all of them, unless another did before and has merged; two that merge write the same bits.
#pragma once

#include "cuda/attention/decode_schedule.cuh"
#include "cuda/attention/mma.cuh"

namespace lightvl::cuda {

// The rows of a (sequence, KV head) pair: row n is head n % group of new token n / group.
template <class T, int kHeadDim>
struct DecodeRows {
  const PagedAttentionParams& p;
  int q_begin, head, group, count;

  __device__ const T* query(int row) const {
    if (row >= count) return nullptr;
    return static_cast<const T*>(p.q) + (q_begin + row / group) * p.q_stride[0] +
           (head * group + row % group) * p.q_stride[1];
  }

  // Writes 4 elements at d of a row.
  __device__ void write(int row, int d, float4 out, float most, float sum) const {
    const int64_t token = q_begin + row / group, h = head * group + row % group;
    const float inverse = 1.0f / sum;
    const uint2 bits{pack_pair<T>(out.x * inverse, out.y * inverse),
                     pack_pair<T>(out.z * inverse, out.w * inverse)};
    T* to = static_cast<T*>(p.out) + token * p.out_stride[0] + h * p.out_stride[1] + d;
    *reinterpret_cast<uint2*>(to) = bits;
    if (p.lse != nullptr && d == 0) {
      p.lse[token * p.num_heads + h] = (most + log2f(sum)) * 0.693147181f;
    }
  }
};

__device__ inline void add_scaled(float4& sum, float4 x, float scale) {
  sum.x += x.x * scale;
  sum.y += x.y * scale;
  sum.z += x.z * scale;
  sum.w += x.w * scale;
}

// What warps and blocks leave of a piece: outputs that are not normalised, maxima and sums.
template <int kHeadDim, int kRows>
struct DecodePartial {
  float4 out[kRows][kHeadDim / 4];
  float2 totals[kRows];  // {maximum, sum}
};

template <int kHeadDim, int kRows>
struct DecodeWorkspace {
  using Partial = DecodePartial<kHeadDim, kRows>;
  Partial* pieces;  // [blocks, 2]: of the pair that a block begins within, and that it ends within
  uint64_t* flags;  // [blocks, 2]
  uint64_t tag;

  __device__ DecodeWorkspace(const AttentionWorkspace& room, int blocks)
      : pieces(static_cast<Partial*>(room.data)),
        flags(reinterpret_cast<uint64_t*>(pieces + 2 * blocks)),
        tag(room.tag) {}

  // Where the piece lies that `block` has of a pair that begins in `first_block`.
  __device__ static int slot(int block, int first_block) {
    return 2 * block + (block == first_block);
  }

  // Announces piece `block` of the pair held by blocks [first, last]; whether to merge the pair.
  // Called by one warp, after the block has written the piece and synchronised.
  __device__ bool announce(int block, int first, int last) const {
    const int lane = threadIdx.x % 32;
    __threadfence();
    if (lane == 0) *static_cast<volatile uint64_t*>(&flags[slot(block, first)]) = tag;
    __syncwarp();
    __threadfence();
    bool all = true;
    for (int b = first + lane; b <= last; b += 32) {
      all &= *static_cast<volatile uint64_t*>(&flags[slot(b, first)]) == tag;
    }
    all = __all_sync(kAllLanes, all);
    if (all) __threadfence();
    return all;
  }
};

// Weighs `count` partials, of which partial(i) is the i-th; called with row and a quarter of d.
template <class Get>
__device__ float4 merge_partials(int count, int row, int d4, Get&& partial, float2& totals) {
  float most = -1e30f;
#pragma unroll 8
  for (int i = 0; i < count; ++i) most = fmaxf(most, partial(i).totals[row].x);
  float4 out{};
  float sum = 0.0f;
#pragma unroll 8
  for (int i = 0; i < count; ++i) {
    const float2 part = partial(i).totals[row];
    const float weight = exp2f(part.x - most);
    sum += part.y * weight;
    add_scaled(out, partial(i).out[row][d4], weight);
  }
  totals = {most, sum};
  return out;
}

}  // namespace lightvl::cuda
