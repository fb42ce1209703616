// Who does what in decode attention: all (sequence, KV head) pairs end to end, cut into slices of
// 16 keys, are shared out evenly; block b takes slices [b * share, (b + 1) * share) of that line.
//
// Every block finds its place alone, from the lengths, so that a captured graph replays with
// others. A pair that a block does not hold whole is split: `first_block` to `last_block` hold its
// pieces.
#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

constexpr int kSliceKeys = 16;
constexpr int kMaxDecodeSeqs = 1024;  // of one launch: their lengths lie in shared memory

struct DecodeSequence {
  int q_begin, q_len;
  int keys;    // context length, the new tokens included
  int slices;  // 0: not this kernel's
};

// A slice of a (sequence, KV head) pair.
struct DecodeCursor {
  int seq, head, slice;

  // Carries slices behind the pair's end over to the pairs that follow.
  __device__ void settle(const DecodeSequence* seqs, int num_heads) {
    int slices = seqs[seq].slices;
    while (slice >= slices) {
      slice -= slices;
      if (++head == num_heads || slices == 0) {
        head = 0;
        slices = seqs[++seq].slices;
      }
    }
  }
};

struct DecodeShare {
  int begin, end;  // slices of the line
  int share;       // of every worker but the last ones
  DecodeCursor first;

  __device__ int worker_of(int slice) const { return slice / share; }
};

// Has the page table, if it is small, on its way to L2 before the lengths say what of it is needed.
__device__ inline void prefetch_pages(const PagedAttentionParams& p, int64_t max_pages) {
  constexpr int kLine = 128 / sizeof(int32_t);
  const int64_t entries = (p.num_seqs - 1) * p.page_table_stride + max_pages;
  const int64_t entry = int64_t{threadIdx.x} * kLine;
  if (entries <= blockDim.x * kLine && entry < entries) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p.page_table + entry));
  }
}

// A worker's slices: an even part of `total`; where all pairs have `most`, whole pairs or equal
// parts of one, if that leaves few workers idle.
__device__ inline int choose_share(int total, int most, int num_pairs, int least_share,
                                   int num_workers, int worker_warps) {
  // A long pair in many pieces takes longer to merge than it gains.
  const int least = max(least_share, min(most / 16, 32));
  const int share = max((total + num_workers - 1) / num_workers, least);
  if (total == most * num_pairs) {
    const int parts = max(most / share, 1);
    const int even = share >= most ? (share + most - 1) / most * most : (most + parts - 1) / parts;
    if (even <= share + share / 8) return even;
  }
  return share < 4 * worker_warps ? (share + worker_warps - 1) / worker_warps * worker_warps
                                  : share;
}

// Reads the lengths into `seqs` and returns a worker's share, at least one slice for each of its
// warps if there are; called by all threads.
template <int kWarps>
__device__ DecodeShare share_out(const PagedAttentionParams& p, int max_rows, int least_share,
                                 int worker, int num_workers, int worker_warps,
                                 DecodeSequence* seqs) {
  __shared__ int warp_slices[kWarps], warp_pairs[kWarps], warp_most[kWarps];
  __shared__ DecodeCursor first;
  constexpr int kThreads = 32 * kWarps;
  const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_kv_heads);
  const int group = static_cast<int>(p.num_heads) / num_heads, lane = threadIdx.x % 32;
  const int each = (num_seqs + kThreads - 1) / kThreads;
  const int seq_begin = min(static_cast<int>(threadIdx.x) * each, num_seqs);
  const int seq_end = min(seq_begin + each, num_seqs);
  int mine = 0, pairs = 0, most = 0;
  for (int s = seq_begin; s < seq_end; ++s) {
    const int begin = p.cu_q_lens[s], q_len = p.cu_q_lens[s + 1] - begin, keys = p.context_lens[s];
    const bool ours = q_len > 0 && q_len * group <= max_rows;
    seqs[s] = {begin, q_len, keys, ours ? (keys + kSliceKeys - 1) / kSliceKeys : 0};
    mine += seqs[s].slices;
    pairs += seqs[s].slices > 0 ? num_heads : 0;
    most = max(most, seqs[s].slices);
  }
  int before = mine;  // becomes the inclusive sum of the warp's lanes
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  pairs = warp_reduce(pairs, Sum{});
  most = warp_reduce(most, Max{});
  if (lane == 31) {
    warp_slices[threadIdx.x / 32] = before;
    warp_pairs[threadIdx.x / 32] = pairs;
    warp_most[threadIdx.x / 32] = most;
  }
  __syncthreads();
  before -= mine;
  int total = 0;
  pairs = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if (w < static_cast<int>(threadIdx.x) / 32) before += warp_slices[w];
    total += warp_slices[w];
    pairs += warp_pairs[w];
    most = max(most, warp_most[w]);
  }
  total *= num_heads;
  before *= num_heads;
  const int share = choose_share(total, most, pairs, least_share, num_workers, worker_warps);
  const int begin = min(worker * share, total);
  for (int s = seq_begin; s < seq_end; ++s) {
    const int slices = seqs[s].slices * num_heads;
    if (begin >= before && begin < before + slices) {
      first = {s, (begin - before) / seqs[s].slices, (begin - before) % seqs[s].slices};
    }
    before += slices;
  }
  __syncthreads();
  return {begin, min(begin + share, total), share, first};
}

}  // namespace lightvl::cuda
