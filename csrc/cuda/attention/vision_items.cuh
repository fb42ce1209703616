// How vision attention on sm_90a is cut into items of work, without the host knowing the lengths.
//
// A segment's queries are cut into tiles of 64 rows, one for a warpgroup. An item is a few tiles of
// one head of one segment. Blocks of the grid take items in turn: first all items of
// `tiles_an_item` tiles, the heads of a segment after each other so that its keys are read from L2,
// then the shorter remainders, which even out when the blocks end.
#pragma once

#include <cstdint>

#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kTileRows = 64;

struct VisionItem {
  int32_t begin, len;  // of the segment, in tokens
  int32_t head;
  int32_t row, tiles;  // first query of the segment, tiles; none: no more items
};

struct VisionCut {
  const int32_t* cu_lens;  // [num_seqs + 1]
  int32_t num_seqs, num_heads;
  int32_t tiles_an_item, most_tiles;
};

// The items of a segment: `whole` ones, of which the last may take the remainder along, and a
// remainder of its own if that would be more than an item may have.
struct SegmentItems {
  int32_t whole, rest;

  __host__ __device__ SegmentItems(const VisionCut& cut, int32_t len) {
    const int32_t tiles = (len + kTileRows - 1) / kTileRows;
    whole = tiles / cut.tiles_an_item;
    rest = tiles % cut.tiles_an_item;
    if (whole > 0 && cut.tiles_an_item + rest <= cut.most_tiles) rest = 0;
  }
};

// Item `index` of the whole or of the remaining items; subtracts their number from `index` if there
// are fewer. Called by whole warps.
template <bool kWhole>
__device__ bool find_item(const VisionCut& cut, int32_t& index, VisionItem& item) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < cut.num_seqs; first += 32) {
    const int s = first + lane;
    const int32_t begin = s < cut.num_seqs ? cut.cu_lens[s] : 0;
    const int32_t len = s < cut.num_seqs ? cut.cu_lens[s + 1] - begin : 0;
    const SegmentItems items(cut, len);
    const int32_t count = kWhole ? items.whole : min(items.rest, 1);
    int32_t end = count * cut.num_heads;  // becomes the sum over this and earlier segments
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int32_t before = __shfl_up_sync(kAllLanes, end, step);
      if (lane >= step) end += before;
    }
    const uint32_t after = __ballot_sync(kAllLanes, index < end);
    if (after == 0) {
      index -= __shfl_sync(kAllLanes, end, 31);
      continue;
    }
    const int owner = __ffs(after) - 1;
    const int32_t within = index - (end - count * cut.num_heads);
    if (lane == owner) {
      const int32_t head = within / count, i = within % count;
      const int32_t tile = (kWhole ? i : items.whole) * cut.tiles_an_item;
      const int32_t tiles = (len + kTileRows - 1) / kTileRows;
      const bool last = !kWhole || (i == count - 1 && items.rest == 0);
      item = {begin, len, head, tile * kTileRows, last ? tiles - tile : cut.tiles_an_item};
    }
    item = {__shfl_sync(kAllLanes, item.begin, owner), __shfl_sync(kAllLanes, item.len, owner),
            __shfl_sync(kAllLanes, item.head, owner), __shfl_sync(kAllLanes, item.row, owner),
            __shfl_sync(kAllLanes, item.tiles, owner)};
    return true;
  }
  return false;
}

// Item `index` of all, or one without tiles.
__device__ inline VisionItem find_item(const VisionCut& cut, int32_t index) {
  VisionItem item{};
  if (find_item<true>(cut, index, item) || find_item<false>(cut, index, item)) return item;
  return VisionItem{};
}

}  // namespace lightvl::cuda
