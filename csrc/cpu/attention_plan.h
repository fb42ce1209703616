// How paged attention is cut into tasks for threads.
#pragma once

#include <cstdint>

#include "params.h"

namespace lightvl::cpu {

// A row is one (query token, head of a KV head's group) of one sequence, query-major. A task is a
// range of rows against a range of keys, for every KV head. It depends on its own sequence alone:
// a sequence gives the same bits whatever else is in the call and however many threads there are.
struct AttentionTask {
  int32_t sequence;
  bool few_rows;  // at most kFewRows in the sequence
  int32_t row_begin, row_end;
  int32_t key_begin, key_end;
  int64_t partial_row;  // first row of the workspace where this task's KV head 0 goes, or -1: final
  int64_t cost;         // for one KV head
  int64_t cost_begin;   // of all tasks before this one, all KV heads
};

// One sequence whose keys are split over several tasks with all its rows each.
struct AttentionMerge {
  int32_t sequence;
  int32_t num_rows;  // per KV head
  int32_t num_splits;
  int64_t partial_row;  // partials lie as [num_splits, K, num_rows]
};

struct PagedAttentionWork {
  PagedAttentionParams params;
  const AttentionTask* tasks;  // [num_tasks], ascending cost_begin
  int64_t num_tasks;
  const AttentionMerge* merges;  // [num_merges]
  float* partials;  // [rows, D + 2]: normalised output, then maximum and sum of weights
};

constexpr int kMaxHeadDim = 256;
constexpr int kKeyBlock = 64;   // keys that a row tile meets at once
constexpr int kKeySplit = 512;  // keys of one split
constexpr int kFewRows = 8;     // up to here rows are handled one by one
constexpr int kTileFloats = 320 * 128;

// Rows of one task: a multiple of 64 so that no vector of queries is left half empty.
constexpr int max_tile_rows(int64_t head_dim) {
  return head_dim <= 128 ? 320 : kTileFloats / static_cast<int>(head_dim) / 64 * 64;
}

}  // namespace lightvl::cpu
