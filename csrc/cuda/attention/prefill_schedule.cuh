// Which part of the work a block of prefill attention does next.
//
// An item is a tile of query rows of one KV head of one sequence, over one split of the keys that
// its last row sees. Rows are (new token, query head of the group), whole tokens only. Items are
// numbered with the last tiles first, which see the most keys; blocks take them in a zigzag, so
// that a block with a longer item in one round has a shorter one in the next.
#pragma once

#include "cuda/launchers.h"

namespace lightvl::cuda {

struct PrefillItem {
  int sequence, kv_head, split;
  int first_token, num_tokens;    // of the tile, among the sequence's new ones
  int context, first_seen;        // keys of the sequence; keys that the first token sees
  int block_begin, block_end;     // blocks of keys
  int64_t token_begin;            // the tile's first token in the step
};

struct PrefillSchedule {
  int tile_tokens, group, num_ranks, num_items;

  static PrefillSchedule make(const PagedAttentionWork& work, int rows) {
    const PagedAttentionParams& p = work.params;
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads), tokens = rows / group;
    const int64_t ranks = (work.max_q_len + tokens - 1) / tokens;
    return {tokens, group, static_cast<int>(ranks),
            static_cast<int>(ranks * p.num_kv_heads * p.num_seqs * work.splits.num_splits)};
  }

  // Number of this block's item in a round.
  __device__ int number(int round) const {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x);
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  }

  // The item of a number; false if it has no keys.
  template <int kKeys>
  __device__ bool find(const PagedAttentionWork& work, int number, PrefillItem& item) const {
    const PagedAttentionParams& p = work.params;
    const int num_splits = static_cast<int>(work.splits.num_splits);
    item.split = number % num_splits;
    number /= num_splits;
    const int kv_heads = static_cast<int>(p.num_kv_heads), seqs = static_cast<int>(p.num_seqs);
    item.kv_head = number % kv_heads;
    number /= kv_heads;
    item.sequence = number % seqs;
    const int begin = p.cu_q_lens[item.sequence];
    const int q_len = p.cu_q_lens[item.sequence + 1] - begin;
    item.context = p.context_lens[item.sequence];
    const int tile = (q_len + tile_tokens - 1) / tile_tokens - 1 - number / seqs;
    if (tile < 0) return false;
    item.first_token = tile * tile_tokens;
    item.num_tokens = min(tile_tokens, q_len - item.first_token);
    item.token_begin = begin + item.first_token;
    item.first_seen = item.context - q_len + item.first_token + 1;
    const int keys = item.first_seen + item.num_tokens - 1;
    const int blocks = (keys + kKeys - 1) / kKeys;
    const int each = (blocks + num_splits - 1) / num_splits;
    item.block_begin = item.split * each;
    item.block_end = min(item.block_begin + each, blocks);
    return true;
  }
};

}  // namespace lightvl::cuda
