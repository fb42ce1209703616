// Which part of the work each block of prefill attention does.
//
// An item is a tile of query rows of one KV head of one sequence over the keys that they see. Rows
// are (new token, query head of the group). Every block finds its items alone, from the lengths,
// so that a captured graph replays with others.
//
// Items are numbered so that those with the same keys are near each other, since blocks that run
// together then find them in the L2 cache, and within such a section the longest come first. They
// are dealt out in rounds, to the last block first in every other one. Rounds end when a block
// would get more than its fair share; the rest is shared out so that all end together
// (prefill_share.cuh). Costs are blocks of keys, with kItemCost for an item's start and end.
#pragma once

#include <numeric>

#include "cuda/common/reduce.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

struct PrefillItem {
  int sequence, kv_head;
  int token_begin;                // of the sequence's new tokens among the step's
  int past, context;              // keys before the first new token; all keys
  int row_begin, num_rows;        // of the tile among the head's rows
  int block_begin, block_end;     // blocks of keys; block_end -1: there are no more items
  int piece;                      // this block's piece of a divided item, else -1
  int first_sharer, last_sharer;  // who have its pieces

  __device__ int piece_of(int sharer) const { return 2 * sharer + (sharer == first_sharer); }
};

struct PrefillShape {
  int rows;   // of a tile
  int group;  // query heads of a KV head
  int num_seqs, num_kv_heads;
  int box_keys;  // of a TMA box: they lie in one page and in one block

  static PrefillShape make(const PagedAttentionParams& p, int rows, int block_keys) {
    return {rows, static_cast<int>(p.num_heads / p.num_kv_heads), static_cast<int>(p.num_seqs),
            static_cast<int>(p.num_kv_heads), std::gcd(static_cast<int>(p.page_size), block_keys)};
  }
};

// What the schedule keeps in shared memory.
struct PrefillPlan {
  static constexpr int kMostSeqs = 1024, kMostBlocks = 256, kMostRest = 1024;
  int first_tile[kMostSeqs + 1];  // tiles of one head of the sequences before
  int load[kMostBlocks];          // cost of what each block was dealt
  int begin[kMostRest + 1];       // costs of the rest's items before each
  int cut[kMostBlocks + 1];       // costs before each sharer's part of the rest
};

// All blocks' items, numbered; used by a whole warp, as is what is built on it.
template <int kKeys>
class PrefillItems {
 public:
  static constexpr int kItemCost = 2;

  __device__ PrefillItems(const PagedAttentionWork& work, const PrefillShape& shape,
                          PrefillPlan& plan)
      : p_(work.params),
        decode_rows_(static_cast<int>(work.decode_rows)),
        shape_(shape),
        plan_(plan) {
    survey();
  }

  __device__ int count() const { return num_tiles_ * shape_.num_kv_heads; }
  __device__ int longest() const { return (longest_ + kKeys - 1) / kKeys; }
  // Of all items, about.
  __device__ float total_cost() const { return cost_; }

  // Describes the whole of an item.
  __device__ void describe(int number, PrefillItem& item) const {
    int rank, tiles;
    locate(number, item.sequence, item.kv_head, rank, tiles);
    int q_len = q_len_;
    item.token_begin = token_begin_ + item.sequence * q_len;
    item.context = longest_;
    if (tiles_ == 0) {
      item.token_begin = p_.cu_q_lens[item.sequence];
      q_len = p_.cu_q_lens[item.sequence + 1] - item.token_begin;
      item.context = p_.context_lens[item.sequence];
    }
    item.past = item.context - q_len;
    item.row_begin = (tiles - 1 - rank) * shape_.rows;
    item.num_rows = min(shape_.rows, q_len * shape_.group - item.row_begin);
    const int keys = item.past + (item.row_begin + item.num_rows - 1) / shape_.group + 1;
    item.block_begin = 0;
    item.block_end = (keys + kKeys - 1) / kKeys;
    item.piece = -1;
  }

  // Cost of an item; 0 if there is none of this number.
  __device__ int cost(int number) const {
    if (number >= count()) return 0;
    PrefillItem item;
    describe(number, item);
    return item.block_end + kItemCost;
  }

 private:
  static constexpr int kSectionKb = 24 << 10;  // of keys and values, to stay in the L2 cache

  // Adds up tiles and costs, and sees whether all sequences are of the same lengths.
  __device__ void survey() {
    const int lane = threadIdx.x % 32;
    const float tokens = static_cast<float>(shape_.rows) / shape_.group;  // of a tile
    const int first_q = p_.cu_q_lens[1] - p_.cu_q_lens[0], first_context = p_.context_lens[0];
    bool unlike = false;
    int longest = 0, before = 0;
    float cost = 0.0f;
#pragma unroll 1
    for (int base = 0; base < shape_.num_seqs; base += 32) {
      const int s = base + lane;
      int tiles = 0;
      if (s < shape_.num_seqs) {
        const int q_len = p_.cu_q_lens[s + 1] - p_.cu_q_lens[s], context = p_.context_lens[s];
        if (q_len * shape_.group > decode_rows_) {
          tiles = (q_len * shape_.group + shape_.rows - 1) / shape_.rows;
          longest = max(longest, context);
          const float middle = context - 0.5f * (q_len - tokens);  // keys of the middle tile
          cost += tiles * (middle / kKeys + 0.5f + kItemCost);
        }
        unlike |= q_len != first_q || context != first_context;
      }
      int sum = tiles;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += other;
      }
      if (s < shape_.num_seqs) plan_.first_tile[s] = before + sum - tiles;
      before += __shfl_sync(kAllLanes, sum, 31);
    }
    if (lane == 0) plan_.first_tile[shape_.num_seqs] = before;
    num_tiles_ = before;
    longest_ = warp_reduce(longest, Max{});
    cost_ = warp_reduce(cost, Sum{}) * shape_.num_kv_heads;
    const bool alike = !__any_sync(kAllLanes, unlike);
    const int pair_kb = max(longest_ / 256 * static_cast<int>(p_.head_dim), 1);
    const int most = alike ? shape_.num_seqs * shape_.num_kv_heads : shape_.num_kv_heads;
    section_ = max(min(kSectionKb / pair_kb, most), 1);
    tiles_ = alike ? num_tiles_ / max(shape_.num_seqs, 1) : 0;
    q_len_ = first_q;
    token_begin_ = p_.cu_q_lens[0];
    __syncwarp();
  }

  // Finds an item's sequence, head and rank among the head's tiles, of which rank 0 is the last.
  __device__ void locate(int number, int& sequence, int& kv_head, int& rank, int& tiles) const {
    int pairs = shape_.num_kv_heads, first = 0;  // (sequence, head) pairs of the same lengths
    if (tiles_ > 0) {
      pairs *= shape_.num_seqs;
      tiles = tiles_;
    } else {
      int end = shape_.num_seqs;  // the last sequence whose first item isn't beyond
      while (first + 1 < end) {
        const int middle = (first + end) / 2;
        if (plan_.first_tile[middle] * shape_.num_kv_heads <= number)
          first = middle;
        else
          end = middle;
      }
      number -= plan_.first_tile[first] * shape_.num_kv_heads;
      tiles = plan_.first_tile[first + 1] - plan_.first_tile[first];
    }
    const int begin = number / (section_ * tiles) * section_;
    number -= begin * tiles;
    const int here = min(section_, pairs - begin);
    rank = number / here;
    const int pair = begin + number % here;
    sequence = first + pair / shape_.num_kv_heads;
    kv_head = pair % shape_.num_kv_heads;
  }

  const PagedAttentionParams& p_;
  int decode_rows_;
  const PrefillShape& shape_;
  PrefillPlan& plan_;
  int num_tiles_, longest_, section_;
  int tiles_, q_len_, token_begin_;  // if all sequences are alike; else tiles_ is 0
  float cost_;
};

}  // namespace lightvl::cuda
