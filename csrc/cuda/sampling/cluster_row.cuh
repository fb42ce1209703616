// One row of scores, spread over the shared memory of a cluster of blocks.
//
// Block r of the cluster holds ids [r * slice, (r + 1) * slice), slices being multiples of 64 so
// that no group of four tokens that share a Philox block is cut. Blocks tell each other what they
// found by writing into each other's shared memory before a barrier of the cluster.
#pragma once

#include <cfloat>

#include "cuda/common/numeric.cuh"
#include "cuda/common/reduce.cuh"
#include "cuda/sampling/cluster.cuh"
#include "cuda/sampling/order.cuh"

namespace lightvl::cuda {

constexpr int kRowThreads = 512;
constexpr int kRowWarps = kRowThreads / 32;
constexpr int kMaxRowBlocks = 8;
constexpr int kMaxGroups = kMaxRowBlocks * kRowWarps;

// This block's part of the row.
struct RowSlice {
  float* score;  // [size]; score + head is 16-byte aligned like the logits there
  int begin, size;
  int head;  // elements before the first 16-byte boundary of the logits
};

template <class T>
__device__ RowSlice make_slice(const T* logits, int vocab_size, int slice, float* buffer) {
  constexpr int kPack = 16 / sizeof(T);
  const int begin = min(static_cast<int>(cluster_rank()) * slice, vocab_size);
  const int size = min(slice, vocab_size - begin);
  const auto address = reinterpret_cast<uintptr_t>(logits + begin) / sizeof(T);
  const int head = min(static_cast<int>((kPack - address % kPack) % kPack), size);
  return {buffer + (4 - head % 4) % 4, begin, size, head};
}

// Reads the logits, keeps them in shared memory if `keep`, and returns this thread's best; several
// packs are under way at once.
template <class T>
__device__ Key load_slice(const T* logits, const RowSlice& slice, bool keep) {
  constexpr int kPack = 16 / sizeof(T), kUnroll = sizeof(T) == 4 ? 10 : 5;
  const T* from = logits + slice.begin;
  float best = -INFINITY;
  int best_id = INT32_MAX;
  const auto take = [&](int i, float x) {
    if (x > best) {
      best = x;
      best_id = slice.begin + i;
    }
  };
  const auto take_one = [&](int i) {
    const float x = sanitised(to_float(from[i]));
    slice.score[i] = x;
    take(i, x);
  };
  const int num_packs = (slice.size - slice.head) / kPack;
  if (static_cast<int>(threadIdx.x) < slice.head) take_one(threadIdx.x);
  for (int first = threadIdx.x; first < num_packs; first += kUnroll * kRowThreads) {
    Pack<T, kPack> pack[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int n = first + u * kRowThreads;
      if (n < num_packs) pack[u] = load_pack<kPack>(from + slice.head + n * kPack);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int n = first + u * kRowThreads;
      if (n >= num_packs) break;
      const int at = slice.head + n * kPack;
#pragma unroll
      for (int i = 0; i < kPack; i += 4) {
        Pack<float, 4> scores;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          scores.value[j] = sanitised(to_float(pack[u].value[i + j]));
          take(at + i + j, scores.value[j]);
        }
        if (keep) store_pack(slice.score + at + i, scores);
      }
    }
  }
  const int last = slice.head + num_packs * kPack + static_cast<int>(threadIdx.x);
  if (last < slice.size) take_one(last);
  return make_key(best, best_id);
}

// Starts to bring the slice of a later row into the level-2 cache.
template <class T>
__device__ void prefetch_slice(const T* logits, const RowSlice& slice) {
  const auto begin = reinterpret_cast<uintptr_t>(logits + slice.begin + 8) / 16 * 16;
  const auto end = reinterpret_cast<uintptr_t>(logits + slice.begin + slice.size) / 16 * 16;
  if (threadIdx.x != 0 || begin >= end) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin),
               "r"(static_cast<uint32_t>(end - begin)));
}

// Calls f(i, score[i]) for each element of the slice, in ascending order within a thread.
template <class F>
__device__ void for_slice(const RowSlice& slice, F&& f) {
  const int num_packs = (slice.size - slice.head) / 4, t = threadIdx.x;
  if (t < slice.head) f(t, slice.score[t]);
#pragma unroll 2
  for (int n = t; n < num_packs; n += kRowThreads) {
    const int at = slice.head + 4 * n;
    const auto scores = load_pack<4>(static_cast<const float*>(slice.score) + at);
#pragma unroll
    for (int j = 0; j < 4; ++j) f(at + j, scores.value[j]);
  }
  const int last = slice.head + 4 * num_packs + t;
  if (last < slice.size) f(last, slice.score[last]);
}

// Room for what the warps of all blocks tell each other, in turn in two buffers: who sends the
// next value may be ahead of who reads this one, by one turn at most.
struct Exchange {
  uint64_t value[2][kMaxGroups];
  Barrier come[2];

  // By one thread, before a barrier of the cluster.
  __device__ void init() {
    init_barrier(come[0], 1);
    init_barrier(come[1], 1);
    fence_barrier_init();
  }
};

// The number of warps in the cluster; group g is warp g % kRowWarps of block g / kRowWarps.
__device__ inline int num_groups() { return static_cast<int>(cluster_size()) * kRowWarps; }

// Gives every block each warp's value; returns all of them. Called by all threads of the cluster;
// also a barrier of the block.
template <class Value>
__device__ const Value* all_gather(Exchange& exchange, int& turn, Value of_warp) {
  static_assert(sizeof(Value) == 8);
  uint64_t* values = exchange.value[turn % 2];
  Barrier& come = exchange.come[turn % 2];
  const unsigned lane = threadIdx.x % 32, group = cluster_rank() * kRowWarps + threadIdx.x / 32;
  const bool alone = cluster_size() == 1;
  if (alone) {
    if (lane == 0) reinterpret_cast<Value*>(values)[group] = of_warp;
  } else {
    if (threadIdx.x == 0) arrive_expect(come, num_groups() * 8);
    if (lane < cluster_size()) {
      send(values + group, reinterpret_cast<const uint64_t&>(of_warp), come, lane);
    }
  }
  __syncthreads();
  if (!alone) wait(come, turn / 2 % 2);
  ++turn;
  return reinterpret_cast<const Value*>(values);
}

// Combines a value of every group; every thread gets the result.
template <class Value, class Combine>
__device__ Value combine_groups(const Value* values, Combine combine, Value identity) {
  Value result = identity;
  for (int i = threadIdx.x % 32; i < num_groups(); i += 32) result = combine(result, values[i]);
  return warp_reduce(result, combine);
}

template <class Value, class Combine>
__device__ Value cluster_reduce(Exchange& exchange, int& turn, Value own, Combine combine,
                                Value identity) {
  const Value* values = all_gather(exchange, turn, warp_reduce(own, combine));
  return combine_groups(values, combine, identity);
}

}  // namespace lightvl::cuda
