// Who does what in decode attention: all (sequence, KV head) pairs end to end, cut into slices of
// 16 keys, are shared out evenly; block b takes slices [b * share, (b + 1) * share) of that line.
//
// Every block finds its place alone, from the lengths, so that a captured graph replays with
// others. That is a chain of dependent steps before the first key can be asked for, so there is no
// division in it: what the host knows is divided by there. A pair that a block does not hold whole
// is split.
#pragma once

#include "cuda/attention/decode_rows.cuh"

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

// A number that the host knows, to divide by.
struct DecodeDivisor {
  int number;
  uint32_t inverse;

  DecodeDivisor(int64_t by)
      : number(static_cast<int>(by)),
        inverse(static_cast<uint32_t>((uint64_t{1} << 32) / static_cast<uint64_t>(by) + 1)) {}
  // x / number, rounded up; of large x perhaps one more.
  __device__ int divide_up(int x) const {
    return number == 1 ? x : static_cast<int>(__umulhi(x + number - 1, inverse));
  }
};

// What the host knows of how a launch is shared out.
struct DecodePlan {
  DecodeGroup group;
  int least_share;  // slices of a block: fewer are not worth merging
  int num_pairs;    // if every sequence is this kernel's
  int pairs_each;   // of a block, if there are more pairs than blocks
  DecodeDivisor blocks;
  DecodeDivisor parts;  // of a pair, if there are more blocks than pairs
};

struct DecodeShare {
  int begin, end;  // slices of the line
  int share;       // of every block but the last ones
  DecodeCursor first;

  __device__ int block_of(int slice) const { return slice / share; }
};

// A block's slices: an even part of `total`; where all pairs have `most`, whole pairs or equal
// parts of one, if that leaves few blocks idle.
template <int kWarps>
__device__ int choose_share(int total, int most, const DecodePlan& plan) {
  const int share = max(plan.blocks.divide_up(total), plan.least_share);
  if (total == most * plan.num_pairs) {
    const int even = plan.pairs_each > 1 ? most * plan.pairs_each : plan.parts.divide_up(most);
    if (even <= share + share / 8) return max(even, plan.least_share);
  }
  const bool few = share > kWarps && share < 4 * kWarps;
  return few ? (share + kWarps - 1) / kWarps * kWarps : share;
}

// Reads the lengths into `seqs` and returns this block's share; called by all threads, whose
// asynchronous copies have come afterwards.
template <int kWarps>
__device__ DecodeShare share_out(const PagedAttentionParams& p, const DecodePlan& plan,
                                 int max_rows, DecodeSequence* seqs) {
  __shared__ int2 warp_sums[kWarps];  // slices, the most of a sequence
  __shared__ DecodeCursor first;
  constexpr int kThreads = 32 * kWarps;
  const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_kv_heads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int each = (num_seqs + kThreads - 1) / kThreads;
  const int seq_begin = min(static_cast<int>(threadIdx.x) * each, num_seqs);
  const int seq_end = min(seq_begin + each, num_seqs);
  int mine = 0, most = 0;
#pragma unroll 1
  for (int s = seq_begin; s < seq_end; ++s) {
    const int begin = p.cu_q_lens[s], q_len = p.cu_q_lens[s + 1] - begin, keys = p.context_lens[s];
    const bool ours = q_len > 0 && q_len * plan.group.size <= max_rows;
    const int slices = ours ? (keys + kSliceKeys - 1) / kSliceKeys : 0;
    seqs[s] = {begin, q_len, keys, slices};
    mine += slices;
    most = max(most, slices);
  }
  int before = mine;  // becomes the inclusive sum of the warp's lanes
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, before, step);
    if (lane >= step) before += other;
  }
  most = warp_reduce(most, Max{});
  if (lane == 31) warp_sums[warp] = {before, most};
  __syncthreads();
  before -= mine;
  int total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const int2 sums = warp_sums[w];
    if (w < warp) before += sums.x;
    total += sums.x;
    most = max(most, sums.y);
  }
  total *= num_heads;
  before *= num_heads;
  const int share = choose_share<kWarps>(total, most, plan);
  const int begin = min(static_cast<int>(blockIdx.x) * share, total);
#pragma unroll 1
  for (int s = seq_begin; s < seq_end; ++s) {
    const int slices = seqs[s].slices * num_heads;
    if (begin >= before && begin < before + slices) first = {s, 0, begin - before};
    before += slices;
  }
  wait_for_copies<0>();
  __syncthreads();
  DecodeCursor at = first;
  if (begin < total) at.settle(seqs, num_heads);
  return {begin, min(begin + share, total), share, at};
}

}  // namespace lightvl::cuda
