// Which part of the work each block of prefill attention does.
//
// An item is a tile of query rows of one KV head of one sequence over the keys that they see. Rows
// are (new token, query head of the group), whole tokens only. Every block finds its items alone,
// from the lengths, so that a captured graph replays with others. There are two ways:
//
//   whole items   numbered with the last tiles first, which see the most keys; blocks take them in
//                 a zigzag, so that a longer item in one round goes with a shorter one in the next
//   equal shares  all items end to end, cut into shares of equal cost; an item that a cut divides
//                 is merged by whoever finishes last (prefill_merge.cuh)
//
// The second wins where items are few or of unlike lengths, the first where many small ones fill
// the last round. Costs are keys; kItemCost of them stand for an item's start and end.
#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

struct PrefillItem {
  int token_begin, num_tokens;  // of the tile; tokens of the step; none: there are no more items
  int kv_head, sequence;
  int context, first_seen;      // keys of the sequence; keys that the first token sees
  int block_begin, block_end;   // blocks of keys
  int piece;                    // this block's piece of a divided item, else -1
  int first_owner, last_owner;  // blocks that hold its pieces

  // Where the piece lies that `owner` has of the item.
  __device__ int piece_of(int owner) const { return 2 * owner + (owner == first_owner); }
};

struct PrefillShape {
  int tile_tokens, group, num_seqs, num_kv_heads;

  static PrefillShape make(const PagedAttentionParams& p, int rows) {
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
    return {rows / group, group, static_cast<int>(p.num_seqs), static_cast<int>(p.num_kv_heads)};
  }
  int64_t max_items(const PagedAttentionWork& work) const {
    return (work.max_q_len + tile_tokens - 1) / tile_tokens * num_seqs * num_kv_heads;
  }
};

// The items of this block; called by a whole warp.
template <int kKeys>
class PrefillSchedule {
 public:
  __device__ PrefillSchedule(const PagedAttentionParams& p, const PrefillShape& shape)
      : p_(p), shape_(shape), num_blocks_(static_cast<int>(gridDim.x)) {
    survey();
    if (shares_) find_share();
  }

  // The next item; false if there is none.
  __device__ bool next(PrefillItem& item) {
    return shares_ ? next_of_share(item) : next_whole(item);
  }

 private:
  static constexpr int kItemCost = 256, kMergeCost = 256, kLeastShare = 1024;

  struct Sequence {
    int index, begin, q_len, context, tiles;

    // Keys that the last token of a full tile sees.
    __device__ int keys(int tile, int tile_tokens) const {
      return context - q_len + (tile + 1) * tile_tokens;
    }
    // Cost of a head's first tiles.
    __device__ int64_t cost(int tiles, int tile_tokens) const {
      return int64_t{tiles} * (context - q_len + kItemCost) +
             int64_t{tile_tokens} * tiles * (tiles + 1) / 2;
    }
  };

  __device__ Sequence read(int s) const {
    if (s >= shape_.num_seqs) return {s, 0, 0, 0, 0};
    const int begin = p_.cu_q_lens[s], q_len = p_.cu_q_lens[s + 1] - begin;
    return {s, begin, q_len, p_.context_lens[s],
            (q_len + shape_.tile_tokens - 1) / shape_.tile_tokens};
  }
  __device__ int64_t head_cost(const Sequence& sequence) const {
    return sequence.cost(sequence.tiles, shape_.tile_tokens);
  }

  // Adds up the work and decides how to divide it.
  __device__ void survey() {
    const int lane = threadIdx.x % 32;
    int64_t cost = 0;
    int longest = 0, shortest = INT32_MAX, tiles = 0;
    bool unlike = false;
    const Sequence first = read(0);
    for (int base = 0; base < shape_.num_seqs; base += 32) {
      const Sequence mine = read(base + lane);
      if (mine.tiles == 0) continue;
      cost += head_cost(mine) * shape_.num_kv_heads;
      longest = max(longest, mine.keys(mine.tiles - 1, shape_.tile_tokens));
      shortest = min(shortest, mine.keys(0, shape_.tile_tokens));
      tiles = max(tiles, mine.tiles);
      unlike |= mine.q_len != first.q_len || mine.context != first.context;
    }
    __syncwarp();
    cost_ = warp_reduce(cost, Sum{});
    longest = warp_reduce(longest, Max{});
    shortest = -warp_reduce(-shortest, Max{});
    ranks_ = warp_reduce(tiles, Max{});
    unlike = __any_sync(0xffffffff, unlike);
    const int items = ranks_ * shape_.num_seqs * shape_.num_kv_heads;
    const int last_round = (num_blocks_ - items % num_blocks_) % num_blocks_;
    const int64_t idle = last_round * (int64_t{shortest} + kItemCost) / num_blocks_;
    const int64_t whole =
        max(cost_ / num_blocks_ + (unlike ? longest : idle), int64_t{longest} + kItemCost);
    owners_ = static_cast<int>(max(min(cost_ / kLeastShare, int64_t{num_blocks_}), int64_t{1}));
    shares_ = cost_ / owners_ + kMergeCost < whole;
  }

  // ---- whole items

  __device__ bool next_whole(PrefillItem& item) {
    const int tile_items = shape_.num_kv_heads * shape_.num_seqs;
    for (; round_ * num_blocks_ < ranks_ * tile_items; ++round_) {
      const int block = static_cast<int>(blockIdx.x);
      const int number =
          round_ * num_blocks_ + (round_ % 2 == 0 ? block : num_blocks_ - 1 - block);
      const Sequence sequence = read(number / shape_.num_kv_heads % shape_.num_seqs);
      const int tile = sequence.tiles - 1 - number / tile_items;
      if (tile < 0) continue;
      describe(sequence, tile, number % shape_.num_kv_heads, item);
      ++round_;
      return true;
    }
    return false;
  }

  // All of a tile.
  __device__ void describe(const Sequence& sequence, int tile, int kv_head,
                           PrefillItem& item) const {
    const int first_token = tile * shape_.tile_tokens;
    item.token_begin = sequence.begin + first_token;
    item.num_tokens = min(shape_.tile_tokens, sequence.q_len - first_token);
    item.kv_head = kv_head;
    item.sequence = sequence.index;
    item.context = sequence.context;
    item.first_seen = sequence.context - sequence.q_len + first_token + 1;
    item.block_begin = 0;
    item.block_end = (item.first_seen + item.num_tokens - 1 + kKeys - 1) / kKeys;
    item.piece = -1;
  }

  // ---- equal shares

  __device__ int64_t cut(int owner) const { return cost_ * owner / owners_; }
  // The last owner whose share begins at or before `at`.
  __device__ int owner_of(int64_t at) const {
    return static_cast<int>(((at + 1) * owners_ + cost_ - 1) / cost_) - 1;
  }

  // Goes to the item in which this block's share begins.
  __device__ void find_share() {
    const int owner = static_cast<int>(blockIdx.x), lane = threadIdx.x % 32;
    begin_ = end_ = cost_;
    if (owner >= owners_) return;
    begin_ = cut(owner);
    end_ = cut(owner + 1);
    int64_t before = 0;
    for (int base = 0; base < shape_.num_seqs; base += 32) {
      const Sequence mine = read(base + lane);
      const int64_t cost = head_cost(mine) * shape_.num_kv_heads;
      int64_t after = before + cost;
      int64_t sum = cost;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffff, sum, step);
        if (lane >= step) sum += other;
      }
      after = before + sum;
      const unsigned found = __ballot_sync(0xffffffff, after > begin_);
      if (found != 0) {
        const int at = __ffs(found) - 1;
        item_begin_ = __shfl_sync(0xffffffff, after - cost, at);
        sequence_ = read(base + at);
        break;
      }
      before = __shfl_sync(0xffffffff, after, 31);
    }
    const int64_t each = head_cost(sequence_);
    head_ = static_cast<int>((begin_ - item_begin_) / each);
    item_begin_ += head_ * each;
    int tiles = sequence_.tiles;  // the first whose end lies beyond begin_
    for (tile_ = 0; tile_ < tiles - 1;) {
      const int middle = (tile_ + tiles) / 2;
      if (item_begin_ + sequence_.cost(middle, shape_.tile_tokens) <= begin_)
        tile_ = middle;
      else
        tiles = middle;
    }
    item_begin_ += sequence_.cost(tile_, shape_.tile_tokens);
  }

  __device__ bool next_of_share(PrefillItem& item) {
    while (item_begin_ < end_) {
      const int cost = sequence_.keys(tile_, shape_.tile_tokens) + kItemCost;
      const int64_t item_end = item_begin_ + cost;
      describe(sequence_, tile_, head_, item);
      const int blocks = item.block_end;
      const auto block_at = [&](int64_t at) {
        return static_cast<int>((at - item_begin_) * blocks / cost);
      };
      if (item_begin_ < begin_) item.block_begin = block_at(begin_);
      if (end_ < item_end) item.block_end = block_at(end_);
      if (item.block_begin > 0 || item.block_end < blocks) {
        item.first_owner = owner_of(item_begin_);
        if (const int64_t at = cut(item.first_owner + 1); at < item_end && block_at(at) == 0) {
          ++item.first_owner;
        }
        item.last_owner = owner_of(item_end - 1);
        item.piece = item.piece_of(static_cast<int>(blockIdx.x));
      }
      item_begin_ = item_end;
      step();
      if (item.block_begin < item.block_end) return true;
    }
    return false;
  }

  // Goes on to the next tile.
  __device__ void step() {
    if (++tile_ < sequence_.tiles) return;
    tile_ = 0;
    if (++head_ < shape_.num_kv_heads) return;
    head_ = 0;
    do {
      sequence_ = read(sequence_.index + 1);
    } while (sequence_.tiles == 0 && sequence_.index < shape_.num_seqs);
  }

  const PagedAttentionParams& p_;
  const PrefillShape& shape_;
  int num_blocks_;
  int64_t cost_ = 0;
  bool shares_ = false;
  int ranks_ = 0, round_ = 0;  // whole items: tiles of the sequence that has the most
  int owners_ = 0;             // equal shares: blocks that have one
  int64_t begin_ = 0, end_ = 0, item_begin_ = 0;
  Sequence sequence_;
  int head_ = 0, tile_ = 0;
};

}  // namespace lightvl::cuda
