// Who does what in decode attention: all (sequence, KV head) pairs end to end, cut into slices of
// 16 keys, are shared out evenly; block b takes slices [b * share, (b + 1) * share) of that line.
// Each pair begins with a gap that stands for its cost, unless all are cut alike.
//
// Every block finds its place alone, from the lengths, so that a captured graph replays with
// others. That is a chain of dependent steps before the first key can be asked for, so there is no
// division in it: what the host knows is divided by there. A pair that a block does not hold whole
// is split.
#pragma once

#include "cuda/attention/decode_rows.cuh"

namespace lightvl::cuda {

constexpr int kSliceKeys = 16;
// Slices without keys at a pair's begin. Where a block goes on with another pair its warps wait for
// each other, so that it gets to fewer slices than a block within a pair.
constexpr int kGap = 8;
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

// Of some sequences that are this kernel's.
struct DecodeLengths {
  int slices, count, most;  // most: slices of one
};

struct DecodeShare {
  int begin, end;      // slices of the line
  int share;           // of every block but the last ones
  int gap;             // slices without keys that each pair begins with
  DecodeCursor first;  // at `begin`, still to be settled

  __device__ int block_of(int slice) const { return slice / share; }

  // A block's slices: an even part of the line; where all pairs have as many, whole pairs or equal
  // parts of one, if that leaves few blocks idle. Without branches: other work runs under it.
  template <int kWarps>
  __device__ static DecodeShare of(const DecodeLengths& all, int num_heads,
                                   const DecodePlan& plan) {
    const int keys = all.slices * num_heads;
    const auto at_least = [&](int share) { return max(share, plan.least_share); };
    const int least = at_least(plan.blocks.divide_up(keys));
    const int even =
        at_least(plan.pairs_each > 1 ? all.most * plan.pairs_each : plan.parts.divide_up(all.most));
    const bool equal = keys == all.most * plan.num_pairs && even <= least + least / 8;
    const int gap = equal ? 0 : kGap, total = keys + gap * all.count * num_heads;
    const int cut = at_least(plan.blocks.divide_up(total));
    const int turns = (cut + kWarps - 1) / kWarps;  // of the warps
    const int share = equal ? even : cut > kWarps && turns <= 4 ? turns * kWarps : cut;
    const int begin = min(static_cast<int>(blockIdx.x) * share, total);
    return {begin, min(begin + share, total), share, gap, {}};
  }
};

// What memory holds of a sequence.
struct DecodeInput {
  int q_begin, q_end, keys;

  __device__ DecodeInput(const PagedAttentionParams& p, int s)
      : q_begin(p.cu_q_lens[s]), q_end(p.cu_q_lens[s + 1]), keys(p.context_lens[s]) {}
  __device__ DecodeSequence sequence(const DecodePlan& plan, int max_rows) const {
    const int q_len = q_end - q_begin;
    const bool ours = q_len > 0 && q_len * plan.group.size <= max_rows;
    return {q_begin, q_len, keys, ours ? (keys + kSliceKeys - 1) / kSliceKeys : 0};
  }
};

// The sum of the lanes before this one.
__device__ inline int sum_before(int mine) {
  int sum = mine;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, step);
    if (static_cast<int>(threadIdx.x) % 32 >= step) sum += other;
  }
  return sum - mine;
}

// Of sequences that the lanes of a warp hold; every warp finds the share alone.
template <int kWarps>
__device__ DecodeShare share_out_few(DecodeSequence seq, int num_seqs, int num_heads,
                                     const DecodePlan& plan, DecodeSequence* seqs) {
  const int lane = threadIdx.x % 32;
  const unsigned ours = __ballot_sync(kAllLanes, seq.slices > 0);
  const DecodeLengths all{__reduce_add_sync(kAllLanes, seq.slices), __popc(ours),
                          __reduce_max_sync(kAllLanes, seq.slices)};
  const int before = sum_before(seq.slices), count = __popc(ours & ((1u << lane) - 1));
  DecodeShare to = DecodeShare::of<kWarps>(all, num_heads, plan);
  if (seq.slices > 0) seq.slices += to.gap;
  if (static_cast<int>(threadIdx.x) < num_seqs) seqs[lane] = seq;
  const int place = to.begin - (before + to.gap * count) * num_heads;
  const bool here = place >= 0 && place < seq.slices * num_heads;
  const int s = __ffs(__ballot_sync(kAllLanes, here)) - 1;
  to.first = {s, 0, __shfl_sync(kAllLanes, place, s)};
  wait_for_copies<0>();
  __syncthreads();
  return to;
}

// Of any number of sequences, which lie in `seqs`, without gaps so far.
template <int kWarps>
__device__ DecodeShare share_out_many(const PagedAttentionParams& p, const DecodePlan& plan,
                                      int max_rows, DecodeSequence* seqs) {
  __shared__ DecodeLengths warp_sums[kWarps];
  __shared__ DecodeCursor first;
  constexpr int kThreads = 32 * kWarps;
  const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_kv_heads);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int each = (num_seqs + kThreads - 1) / kThreads;
  const int seq_begin = min(thread * each, num_seqs), seq_end = min(seq_begin + each, num_seqs);
  DecodeLengths mine{};
#pragma unroll 1
  for (int s = seq_begin; s < seq_end; ++s) {
    const DecodeSequence seq = seqs[s] = DecodeInput(p, s).sequence(plan, max_rows);
    mine.slices += seq.slices;
    mine.count += seq.slices > 0;
    mine.most = max(mine.most, seq.slices);
  }
  DecodeLengths before{sum_before(mine.slices), sum_before(mine.count), 0};
  if (lane == 31) warp_sums[warp] = {before.slices + mine.slices, before.count + mine.count, 0};
  const int most = __reduce_max_sync(kAllLanes, mine.most);
  if (lane == 31) warp_sums[warp].most = most;
  __syncthreads();
  DecodeLengths all{};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const DecodeLengths sums = warp_sums[w];
    if (w < warp) before = {before.slices + sums.slices, before.count + sums.count, 0};
    all = {all.slices + sums.slices, all.count + sums.count, max(all.most, sums.most)};
  }
  DecodeShare to = DecodeShare::of<kWarps>(all, num_heads, plan);
  int place = to.begin - (before.slices + to.gap * before.count) * num_heads;
#pragma unroll 1
  for (int s = seq_begin; s < seq_end; ++s) {
    int slices = seqs[s].slices;
    if (slices > 0) seqs[s].slices = slices += to.gap;
    if (place >= 0 && place < slices * num_heads) first = {s, 0, place};
    place -= slices * num_heads;
  }
  wait_for_copies<0>();
  __syncthreads();
  to.first = first;
  return to;
}

// Reads the lengths into `seqs` and returns this block's share. Called by all threads, whose
// asynchronous copies, which copy() begins while the lengths are coming, have come afterwards.
template <int kWarps, class Copy>
__device__ DecodeShare share_out(const PagedAttentionParams& p, const DecodePlan& plan,
                                 int max_rows, DecodeSequence* seqs, Copy&& copy) {
  const int num_seqs = static_cast<int>(p.num_seqs), num_heads = static_cast<int>(p.num_kv_heads);
  const int lane = threadIdx.x % 32;
  // Nothing may wait for these before the copies begin, so there is no branch around them.
  const DecodeInput input(p, min(lane, num_seqs - 1));
  copy();
  if (num_seqs > 32) return share_out_many<kWarps>(p, plan, max_rows, seqs);
  DecodeSequence seq{};
  if (lane < num_seqs) seq = input.sequence(plan, max_rows);
  return share_out_few<kWarps>(seq, num_seqs, num_heads, plan, seqs);
}

}  // namespace lightvl::cuda
