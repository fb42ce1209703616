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

#include <bit>
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

// Divides by a number that the host knows: n / value where n >= 0 and n * value < 2^30.
struct Divisor {
  uint32_t factor;
  int value;

  static Divisor make(int value) {
    return {static_cast<uint32_t>(((int64_t{1} << 31) + value - 1) / value), value};
  }
  __device__ int divide(int n) const { return static_cast<int>(__umulhi(2 * n + 1, factor)); }
};

// n / d for 0 <= n < 2^22 and d > 0.
__device__ inline int divide(int n, int d) {
  const int quotient = static_cast<int>(__fdividef(static_cast<float>(n), static_cast<float>(d)));
  const int rest = n - quotient * d;
  return quotient + (rest >= d) - (rest < 0);
}

struct PrefillShape {
  Divisor rows;   // of a tile
  Divisor group;  // query heads of a KV head
  float tile_tokens;
  int num_seqs, num_kv_heads;
  int box_keys;   // of a TMA box: they lie in one page and in one block
  int page_bits;  // log2 of a page's keys

  static PrefillShape make(const PagedAttentionParams& p, int rows, int block_keys) {
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
    return {Divisor::make(rows),
            Divisor::make(group),
            static_cast<float>(rows) / group,
            static_cast<int>(p.num_seqs),
            static_cast<int>(p.num_kv_heads),
            std::gcd(static_cast<int>(p.page_size), block_keys),
            std::countr_zero(static_cast<uint32_t>(p.page_size))};
  }
};

// What the schedule keeps in shared memory.
struct PrefillPlan {
  static constexpr int kMostSeqs = 1024, kMostBlocks = 256, kMostRest = 2048;
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
  // Whether items come longest first within a section, all over.
  __device__ bool alike() const { return tiles_ > 0; }

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
    item.row_begin = (tiles - 1 - rank) * shape_.rows.value;
    item.num_rows = min(shape_.rows.value, q_len * shape_.group.value - item.row_begin);
    const int keys = item.past + shape_.group.divide(item.row_begin + item.num_rows - 1) + 1;
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

  struct Lengths {
    int begin, q_len, context;
  };

  __device__ Lengths lengths(int s) const {
    if (s >= shape_.num_seqs) return {};
    const int begin = p_.cu_q_lens[s];
    return {begin, p_.cu_q_lens[s + 1] - begin, p_.context_lens[s]};
  }

  // Tiles of one head.
  __device__ int tiles_of(int q_len) const {
    const int rows = q_len * shape_.group.value;
    return rows > decode_rows_ ? shape_.rows.divide(rows + shape_.rows.value - 1) : 0;
  }
  // Of one head's tiles, about: they see the keys of the middle one on average.
  __device__ float cost_of(int tiles, int q_len, int context) const {
    const float keys = context - 0.5f * (q_len - shape_.tile_tokens);
    return tiles * (keys * (1.0f / kKeys) + 0.5f + kItemCost);
  }

  // Adds up tiles and costs; it is quick where all sequences are of the same lengths.
  __device__ void survey() {
    const int lane = threadIdx.x % 32;
    Lengths here = lengths(lane);
    const Lengths first{__shfl_sync(kAllLanes, here.begin, 0),
                        __shfl_sync(kAllLanes, here.q_len, 0),
                        __shfl_sync(kAllLanes, here.context, 0)};
    bool unlike = false;
#pragma unroll 1
    for (int s = lane; s < shape_.num_seqs; s += 32) {
      if (s >= 32) here = lengths(s);
      unlike |= here.q_len != first.q_len || here.context != first.context;
    }
    int pairs = shape_.num_kv_heads;
    if (__any_sync(kAllLanes, unlike)) {
      tiles_ = 0;
      add_up();
    } else {
      tiles_ = tiles_of(first.q_len);
      num_tiles_ = tiles_ * shape_.num_seqs;
      longest_ = first.context;
      cost_ = cost_of(num_tiles_, first.q_len, first.context);
      pairs *= shape_.num_seqs;
    }
    cost_ *= shape_.num_kv_heads;
    q_len_ = first.q_len;
    token_begin_ = first.begin;
    const int pair_kb = max(longest_ / 256 * static_cast<int>(p_.head_dim), 1);
    section_ = max(min(divide(kSectionKb, pair_kb), pairs), 1);
  }

  __device__ void add_up() {
    const int lane = threadIdx.x % 32;
    int longest = 0, before = 0;
    float cost = 0.0f;
#pragma unroll 1
    for (int base = 0; base < shape_.num_seqs; base += 32) {
      const int s = base + lane;
      const Lengths here = lengths(s);
      const int tiles = tiles_of(here.q_len);
      if (tiles > 0) longest = max(longest, here.context);
      cost += cost_of(tiles, here.q_len, here.context);
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
    cost_ = warp_reduce(cost, Sum{});
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
    const int begin = section_ < pairs ? divide(number, section_ * tiles) * section_ : 0;
    number -= begin * tiles;
    const int here = min(section_, pairs - begin);
    rank = divide(number, here);
    const int pair = begin + number - rank * here;
    const int before = divide(pair, shape_.num_kv_heads);
    sequence = first + before;
    kv_head = pair - before * shape_.num_kv_heads;
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
