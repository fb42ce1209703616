// How vision attention on sm_90a is cut into items of work, without the host knowing the lengths.
//
// A segment's queries are cut into tiles of 64 rows, one for a warpgroup. An item is a few tiles of
// one head of one segment. Blocks of the grid take items in turn: first all items of
// `tiles_an_item` tiles, the heads of a segment after each other so that its keys are read from L2,
// then the shorter remainders, which even out when the blocks end. If the whole ones' last round is
// of few, these are cut into tiles. At head dim 64 a single row beyond whole tiles (towers put a
// class token before a square of patches) is no tile but goes along with the first item that leaves
// a warpgroup free, or alone: it is attended for in another way (vision_odd_row.cuh).
#pragma once

#include <cstdint>

#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr int kTileRows = 64;

struct VisionItem {
  int32_t begin, len;  // of the segment, in tokens
  int32_t head;
  int32_t row, tiles;  // first query of the segment, tiles
  int32_t odd;         // whether the segment's last row goes along

  // No more items.
  __device__ bool is_end() const { return tiles + odd == 0; }
};

struct VisionCut {
  const int32_t* cu_lens;  // [num_seqs + 1]
  int32_t num_seqs, num_heads;
  int32_t tiles_an_item, most_tiles;
  bool odd_rows;  // a single row beyond whole tiles is no tile
  bool cut_last;  // the last round's whole items may be cut into tiles
};

// The items of a segment: `whole` ones, of which the last may take the remainder along, and a
// remainder of its own if that would be more than an item may have.
struct SegmentItems {
  int32_t tiles, whole, rest;  // rest: tiles of the remainder
  bool odd, odd_in_whole;      // the last row is in no tile

  __host__ __device__ SegmentItems(const VisionCut& cut, int32_t len) {
    tiles = (len + kTileRows - 1) / kTileRows;
    odd = cut.odd_rows && len % kTileRows == 1 && tiles > 1;
    tiles -= odd;
    whole = tiles / cut.tiles_an_item;
    rest = tiles % cut.tiles_an_item;
    odd_in_whole = odd && whole > 0 && cut.tiles_an_item < cut.most_tiles;
    const int32_t odd_room = odd && whole == 1;
    if (whole > 0 && cut.tiles_an_item + rest + odd_room <= cut.most_tiles) rest = 0;
  }
  // Remainders, of which there is one or none.
  __host__ __device__ int32_t remainders() const { return rest > 0 || (odd && !odd_in_whole); }
  // Whether the odd row goes along with item i of the whole or remaining ones.
  __device__ bool has_odd(bool of_whole, int32_t i) const {
    return odd && i == 0 && of_whole == odd_in_whole;
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
    const int32_t count = kWhole ? items.whole : items.remainders();
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
      const bool last = !kWhole || (i == count - 1 && items.rest == 0);
      item = {begin,
              len,
              head,
              tile * kTileRows,
              last ? items.tiles - tile : cut.tiles_an_item,
              items.has_odd(kWhole, i)};
    }
    item = {__shfl_sync(kAllLanes, item.begin, owner), __shfl_sync(kAllLanes, item.len, owner),
            __shfl_sync(kAllLanes, item.head, owner),  __shfl_sync(kAllLanes, item.row, owner),
            __shfl_sync(kAllLanes, item.tiles, owner), __shfl_sync(kAllLanes, item.odd, owner)};
    return true;
  }
  return false;
}

// Whether the whole items of a last round, `left` of them, can be cut into tiles so that there is a
// block for each of these and for the remainders.
__host__ __device__ inline bool fits_cut(const VisionCut& cut, int64_t left, int64_t remainders,
                                         int64_t blocks) {
  return left > 0 && left * cut.tiles_an_item + remainders <= blocks;
}

// The number of whole and of remaining items. Called by whole warps.
__device__ inline int2 count_items(const VisionCut& cut) {
  int2 count{};
  for (int s = threadIdx.x % 32; s < cut.num_seqs; s += 32) {
    const SegmentItems items(cut, cut.cu_lens[s + 1] - cut.cu_lens[s]);
    count.x += items.whole * cut.num_heads;
    count.y += items.remainders() * cut.num_heads;
  }
  return {warp_reduce(count.x, Sum{}), warp_reduce(count.y, Sum{})};
}

// All items in the order in which they are dealt out.
class VisionItems {
 public:
  __device__ explicit VisionItems(const VisionCut& cut) : cut_(cut) {
    if (!cut.cut_last) return;
    const int2 count = count_items(cut);
    const int blocks = gridDim.x, left = count.x % blocks;
    if (!fits_cut(cut, left, count.y, blocks)) return;
    uncut_ = count.x - left;
    cut_up_ = left * cut.tiles_an_item;
  }

  // Item `index`, or one without tiles. Called by whole warps.
  __device__ VisionItem find(int32_t index) const {
    VisionItem item{};
    if (index >= uncut_ && index - uncut_ < cut_up_) {
      const int32_t tile = (index - uncut_) % cut_.tiles_an_item;
      index = uncut_ + (index - uncut_) / cut_.tiles_an_item;
      find_item<true>(cut_, index, item);
      item.row += tile * kTileRows;
      item.tiles = tile == cut_.tiles_an_item - 1 ? item.tiles - tile : 1;
      item.odd = item.odd && tile == 0;
      return item;
    }
    if (index >= uncut_) index -= cut_up_ - cut_up_ / cut_.tiles_an_item;
    if (find_item<true>(cut_, index, item) || find_item<false>(cut_, index, item)) return item;
    return VisionItem{};
  }

 private:
  const VisionCut& cut_;
  int32_t uncut_ = INT32_MAX, cut_up_ = 0;  // whole items, and what the others are cut into
};

}  // namespace lightvl::cuda
