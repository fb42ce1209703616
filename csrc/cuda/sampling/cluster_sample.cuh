// Sampling of the next token: one cluster of blocks a row, its scores read once into their shared
// memory.
//
// 1. cluster_row.cuh: every block loads its slice, every warp finds its best score, and the warps'
//    bests go to all blocks. Greedy rows end here and keep no scores.
// 2. cluster_edit.cuh: log-probabilities of the raw scores; then penalties, bias and mask.
// 3. cluster_draw.cuh: the k-th best of the warps bounds top-k from below, so that few scores are
//    left for block 0 to filter and draw from; cluster_select.cuh: histograms for all else.
#pragma once

#include "cuda/common/dependent_launch.cuh"
#include "cuda/sampling/cluster_edit.cuh"

namespace lightvl::cuda {

__device__ inline void write_id(const SampleParams& p, int64_t row, int id) {
  p.out_ids[row] = id;
  if (p.counts == nullptr || p.count_rows[row] < 0) return;
  int16_t& cell = p.counts[p.count_rows[row] * p.counts_stride + id];
  if (cell < INT16_MAX) ++cell;
}

struct RowPlan {
  int slice;       // scores of a block
  int rows_ahead;  // that run at once: the row that many rows on is next
};

template <class T>
__device__ void sample_row(const SampleParams& p, const RowPlan& plan, float* buffer,
                           RowShared& shared) {
  const int64_t row = blockIdx.x / cluster_size();
  const T* logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
  const bool greedy = !(p.temperature[row] >= kGreedyTemperature);
  const bool edits = has_edits(p, row), logprobs = p.logprobs != nullptr || p.num_top > 0;
  if (threadIdx.x == 0) {
    copy_settings(shared.settings, p, row);
    shared.few.own_count = shared.top.own_count = 0;
    shared.exchange.init();
  }
  cluster_arrive();  // nobody writes to a block that hasn't begun
  const RowSlice slice = make_slice(logits, static_cast<int>(p.vocab_size), plan.slice, buffer);
  Key best = load_slice(logits, slice, !greedy || edits || logprobs);
  if (row + plan.rows_ahead < p.num_sequences) {
    prefetch_slice(logits + plan.rows_ahead * p.logits_stride, slice);
  }
  cluster_wait();
  if (threadIdx.x == 0) wait_for_copies();
  int turn = 0;
  float log_total = 0.0f;
  if (logprobs) log_total = write_logprobs(p, row, shared, turn, slice, best);
  if (edits) {
    __syncthreads();
    best = edit_slice(p, row, slice);
  }
  const Key* groups = all_gather(shared.exchange, turn, warp_reduce(best, Max{}));
  const Key most = combine_groups(groups, Max{}, kNoKey);
  int id = score_of(most) > -INFINITY ? id_of(most) : 0;
  if (!greedy && score_of(most) > -INFINITY) {
    id = draw_row(p.vocab_size, shared, turn, slice, groups, score_of(most));
  }
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    write_id(p, row, id);
    if (p.logprobs != nullptr) p.logprobs[row] = to_float(logits[id]) - log_total;
  }
}

template <class T>
__global__ void __launch_bounds__(kRowThreads, 2)
    sample_cluster_kernel(const __grid_constant__ SampleParams p,
                          const __grid_constant__ RowPlan plan) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) float buffer[];
  __shared__ RowShared shared;
  wait_for_previous();
  let_next_begin();
  sample_row<T>(p, plan, buffer, shared);
#endif
}

}  // namespace lightvl::cuda
