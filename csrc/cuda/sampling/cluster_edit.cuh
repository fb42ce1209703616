// What comes before the draw, on a row that a cluster holds: log-probabilities of the raw scores;
// then penalties, bias and mask, in place.
#pragma once

#include "cuda/sampling/cluster_draw.cuh"

namespace lightvl::cuda {

__device__ inline bool has_edits(const SampleParams& p, int64_t row) {
  return (p.penalties != nullptr && p.count_rows[row] >= 0) || p.allowed_mask != nullptr ||
         (p.bias_offsets != nullptr && p.bias_offsets[row] < p.bias_offsets[row + 1]);
}

__device__ inline void penalise(const SampleParams& p, int64_t row, const RowSlice& slice) {
  const int64_t count_row = p.penalties != nullptr ? p.count_rows[row] : -1;
  if (count_row < 0) return;
  const int16_t* counts = p.counts + count_row * p.counts_stride + slice.begin;
  const float* penalty = p.penalties + row * 3;
  const float repetition = penalty[0], presence = penalty[1], frequency = penalty[2];
  for_slice(slice, [&](int i, float x) {
    const int count = counts[i];
    if (count <= 0) return;
    const float scaled = x > 0.0f ? x / repetition : x * repetition;
    slice.score[i] = scaled - presence - frequency * static_cast<float>(count);
  });
  __syncthreads();
}

__device__ inline void add_bias(const SampleParams& p, int64_t row, const RowSlice& slice) {
  if (p.bias_offsets == nullptr) return;
  const int end = p.bias_offsets[row + 1];
  for (int i = p.bias_offsets[row] + threadIdx.x; i < end; i += kRowThreads) {
    const int at = p.bias_ids[i] - slice.begin;
    if (at >= 0 && at < slice.size) atomicAdd(slice.score + at, p.bias_values[i]);
  }
  __syncthreads();
}

// Penalties, bias and mask; returns this thread's best.
__device__ inline Key edit_slice(const SampleParams& p, int64_t row, const RowSlice& slice) {
  penalise(p, row, slice);
  add_bias(p, row, slice);
  const int32_t* allowed =
      p.allowed_mask == nullptr ? nullptr : p.allowed_mask + row * ((p.vocab_size + 31) / 32);
  float best = -INFINITY;
  int best_id = INT32_MAX;
  for_slice(slice, [&](int i, float x) {
    const int id = slice.begin + i;
    if (allowed != nullptr && (allowed[id / 32] >> (id % 32) & 1) == 0) {
      slice.score[i] = x = -INFINITY;
    }
    if (x > best) {
      best = x;
      best_id = id;
    }
  });
  __syncthreads();
  return make_key(best, best_id);
}

__device__ inline void write_top(const SampleParams& p, int64_t row, int64_t n, Key key,
                                 float log_total) {
  const float score = score_of(key);
  const bool found = score > -INFINITY;
  p.top_ids[row * p.num_top + n] = found ? id_of(key) : -1;
  p.top_logprobs[row * p.num_top + n] = found ? score - log_total : -INFINITY;
}

// The most probable ids, one after the other.
__device__ inline void write_top_in_turn(const SampleParams& p, int64_t row, RowShared& shared,
                                         int& turn, const RowSlice& slice, Key most,
                                         float log_total) {
  Key last = most;
  for (int64_t n = 0; n < p.num_top; ++n) {
    if (cluster_rank() == 0 && threadIdx.x == 0) write_top(p, row, n, last, log_total);
    if (n + 1 == p.num_top || !(score_of(last) > -INFINITY)) continue;
    Key next = make_key(-INFINITY, INT32_MAX);
    for_slice(slice, [&](int i, float x) {
      const Key key = make_key(x, slice.begin + i);
      if (key < last && key > next) next = key;
    });
    last = cluster_reduce(shared.exchange, turn, next, Max{}, kNoKey);
  }
}

// The most probable ids: those above a bound that the warps' bests give are few, and block 0 ranks
// them.
__device__ inline void write_tops(const SampleParams& p, int64_t row, RowShared& shared, int& turn,
                                  const RowSlice& slice, const Key* groups, Key most, Key best,
                                  float log_total) {
  const int wanted = static_cast<int>(p.num_top);
  const float bound = bound_by_groups(shared, turn, groups, best, wanted);
  ListCounts counts = nullptr;
  if (bound > -INFINITY) {
    counts = list_few(shared, shared.top, turn, slice, score_of(best) >= bound,
                      [&](float x) { return x >= bound; });
  }
  if (counts == nullptr) return write_top_in_turn(p, row, shared, turn, slice, most, log_total);
  if (cluster_rank() != 0) return;
  int count, better = 0;
  const Key key = listed_key(shared.selection, counts, threadIdx.x, count);
  if (static_cast<int>(threadIdx.x) >= count) return;
  for (int r = 0; r < static_cast<int>(cluster_size()); ++r) {
    const Key* list = shared.selection.few + r * list_share();
    for (int i = 0; i < static_cast<int>(counts[r * kRowWarps]); ++i) better += list[i] > key;
  }
  if (better < wanted) write_top(p, row, better, key, log_total);
}

// Writes the most probable ids of the raw scores; returns the log of the sum of exp(score).
__device__ inline float write_logprobs(const SampleParams& p, int64_t row, RowShared& shared,
                                       int& turn, const RowSlice& slice, Key best) {
  const Key* groups = all_gather(shared.exchange, turn, warp_best(best));
  const Key most = best_of_groups(groups);
  const float max = score_of(most);
  double own = 0.0;
  for_slice(slice, [&](int, float x) { own += expf(x - max); });
  const double sum = cluster_reduce(shared.exchange, turn, own, Sum{}, 0.0);
  const float log_total = max + static_cast<float>(log(sum));
  if (p.num_top > 0) write_tops(p, row, shared, turn, slice, groups, most, best, log_total);
  return log_total;
}

}  // namespace lightvl::cuda
