// Host side of vision attention on sm_90a: how many tiles an item gets, tensor maps.
#pragma once

#include <algorithm>

#include "cuda/attention/vision_items.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

// Time of an item of so many tiles in units of one: few warpgroups overlap less.
inline int64_t item_cost(int64_t tiles) { return 1 + tiles; }

struct VisionPlan {
  VisionCut cut;
  int64_t time;
};

// The number of tiles an item gets that makes the blocks end soonest, were all segments as long as
// the longest.
inline VisionPlan plan_vision(const VisionAttentionWork& work, int32_t most_tiles, int64_t blocks) {
  const VisionAttentionParams& p = work.params;
  const int64_t heads = p.num_seqs * p.num_heads;
  const int64_t tiles = (work.max_len + kTileRows - 1) / kTileRows;
  VisionPlan best{{}, INT64_MAX};
  for (int32_t each = most_tiles; each > 0; --each) {
    const VisionCut cut{p.cu_lens, static_cast<int32_t>(p.num_seqs),
                        static_cast<int32_t>(p.num_heads), each, most_tiles};
    const SegmentItems items(cut, static_cast<int32_t>(work.max_len));
    const int64_t last = items.rest > 0 ? 0 : tiles - (items.whole - 1) * int64_t{each};
    // Whole items in rounds, then the remainders in the gaps that the last round leaves.
    const int64_t whole = items.whole * heads, rounds = (whole + blocks - 1) / blocks;
    const int64_t gaps = rounds * blocks - whole;
    const int64_t left = items.rest > 0 ? std::max<int64_t>(heads - gaps, 0) : 0;
    int64_t time = rounds * item_cost(each) + (left + blocks - 1) / blocks * item_cost(items.rest);
    if (items.whole > 0 && last > each) time += item_cost(last) - item_cost(each);
    if (time < best.time) best = {cut, time};
  }
  return best;
}

template <class Shape>
CUtensorMap vision_map(const void* base, const int64_t (&stride)[2], int rows, int64_t num_tokens,
                       int64_t num_heads, cudaError_t& status) {
  CUtensorMap map;
  const auto type = std::is_same_v<typename Shape::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                              : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cudaError_t error = encode_tensor_map<4>(
      map, type, base, {64, num_tokens, Shape::kPanels, num_heads}, {stride[0], 64, stride[1]},
      {64, static_cast<uint32_t>(rows), Shape::kPanels, 1});
  if (error != cudaSuccess) status = error;
  return map;
}

}  // namespace lightvl::cuda
