// Sampling of the next token: one cluster of blocks a row, its scores read once into their shared
// memory.
//
// 1. cluster_row.cuh: every warp copies its part of the row and finds its best score, and the
//    warps' bests go to all blocks. Greedy rows end here.
// 2. cluster_edit.cuh: log-probabilities of the raw scores; then penalties, bias and mask.
// 3. cluster_few.cuh: the k-th best of the warps bounds top-k from below, so that few scores are
//    left for block 0 to filter and draw from; cluster_draw.cuh: histograms for all else.
//
// Rows that find no room wait for blocks that end: clusters of a multiprocessor are seldom in step,
// so that one's copies run under the other's draw. All rows cost about the same, but clusters don't
// run equally fast: dealt out so, they end together.
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

template <class T>
__device__ void sample_row(const SampleParams& p, int64_t row, const T* logits,
                           const RowSlice& slice, RowShared& shared) {
  const bool greedy = !(p.temperature[row] >= kGreedyTemperature);
  const bool edits = has_edits(p, row), logprobs = p.logprobs != nullptr || p.num_top > 0;
  cluster_wait();  // nobody sends to a block that hasn't begun
  wait_for_copy<T>(slice, shared.come[threadIdx.x / 32]);
  Key best = best_of_slice(slice);
  if (threadIdx.x == 0) wait_for_settings();
  int turn = 0;
  float log_total = 0.0f;
  if (logprobs) log_total = write_logprobs(p, row, shared, turn, slice, best);
  if (edits) {
    __syncthreads();
    best = edit_slice(p, row, slice);
  }
  const Key* groups = all_gather(shared.exchange, turn, warp_best(best));
  const Key most = best_of_groups(groups);
  int id = score_of(most) > -INFINITY ? id_of(most) : 0;
  if (!greedy && score_of(most) > -INFINITY) {
    id = draw_row(p.vocab_size, shared, turn, slice, groups, score_of(most), best);
  }
  if (cluster_rank() == 0 && threadIdx.x == 0) {
    write_id(p, row, id);
    if (p.logprobs != nullptr) p.logprobs[row] = to_float(logits[id]) - log_total;
  }
}

// A block of the cluster holds `slice_size` scores.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 2)
    sample_cluster_kernel(const __grid_constant__ SampleParams p, int slice_size) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) float buffer[];
  __shared__ RowShared shared;
  Barrier& come = shared.come[threadIdx.x / 32];
  if (threadIdx.x % 32 == 0) init_barrier(come, 1);
  if (threadIdx.x == 0) shared.init();
  fence_barrier_init();  // which all blocks see after the cluster's barrier
  cluster_arrive_relaxed();
  __syncwarp();
  const int64_t row = blockIdx.x / cluster_size();
  const T* logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
  const RowSlice slice = make_slice(logits, static_cast<int>(p.vocab_size), slice_size, buffer);
  wait_for_previous();
  let_next_begin();
  start_copy(logits, slice, come);
  if (threadIdx.x == 0) copy_settings(shared.settings, p, row);
  sample_row(p, row, logits, slice, shared);
#endif
}

}  // namespace lightvl::cuda
