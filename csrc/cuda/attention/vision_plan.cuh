// Host side of vision attention on sm_90a: how many tiles an item gets, tensor maps.
#pragma once

#include <algorithm>

#include "cuda/attention/vision_items.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

struct VisionPlan {
  VisionCut cut;
  int64_t time;
};

// The number of tiles an item gets that makes the blocks end soonest, were all segments as long as
// the longest. `times` has an item's relative time for each number of tiles, as measured: it is
// largely that of a chain of steps, whatever the number of warpgroups that have one.
template <size_t kMostTiles>
VisionPlan plan_vision(const VisionAttentionWork& work, int64_t blocks, bool odd_rows,
                       const int64_t (&times)[kMostTiles]) {
  constexpr int32_t kMost = kMostTiles;
  const VisionAttentionParams& p = work.params;
  const int64_t heads = p.num_seqs * p.num_heads;
  VisionPlan best{{}, INT64_MAX};
  for (int32_t each = kMost; each > 0; --each) {
    VisionCut cut{.cu_lens = p.cu_lens,
                  .num_seqs = static_cast<int32_t>(p.num_seqs),
                  .num_heads = static_cast<int32_t>(p.num_heads),
                  .tiles_an_item = each,
                  .most_tiles = kMost,
                  .odd_rows = odd_rows,
                  .cut_last = false};
    const SegmentItems items(cut, static_cast<int32_t>(work.max_len));
    const int64_t whole = items.whole * heads, remainders = items.remainders() * heads;
    const int64_t rest_time = times[std::max(items.rest, 1) - 1];
    // Whole items in rounds, then the remainders in the gaps that the last round leaves.
    const int64_t left = whole % blocks, rounds = whole / blocks + (left > 0);
    const int64_t beyond = std::max<int64_t>(remainders - (rounds * blocks - whole), 0);
    int64_t time = rounds * times[each - 1] + (beyond + blocks - 1) / blocks * rest_time;
    cut.cut_last = fits_cut(cut, left, remainders, blocks);
    if (cut.cut_last) {
      time += std::max(times[0], remainders > 0 ? rest_time : 0) - times[each - 1];
    } else if (items.whole > 0 && items.rest == 0) {
      const int32_t last = items.tiles - (items.whole - 1) * each;
      time += times[last - 1] - times[each - 1];
    }
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
