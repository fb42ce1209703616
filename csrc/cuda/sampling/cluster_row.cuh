// One row of scores, spread over the shared memory of a cluster of blocks.
//
// Block r of the cluster holds ids [r * slice, (r + 1) * slice), slices being multiples of 64 so
// that no group of four tokens that share a Philox block is cut. Blocks tell each other what they
// found by stores into each other's shared memory, which barriers there count.
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
constexpr int64_t kMaxSlice = 48 * 1024;  // scores that a block's shared memory holds
constexpr int kMargin = 16;               // more that is copied, at both ends of a slice
constexpr int kMaxGroups = kMaxRowBlocks * kRowWarps;

// This block's part of the row, and the warp's part of that.
struct RowSlice {
  float* score;  // [size], `offset` after the start of a buffer of packs of 4, aligned to 16 bytes
  int offset, begin, size;
  int first, last;  // packs of the buffer that this warp copies and scans

  __device__ bool whole(int pack) const {
    return pack >= (offset + 3) / 4 && pack < (offset + size) / 4;
  }
  __device__ const float* pack(int n) const { return score - offset + 4 * n; }
};

// The slice starts where its logits do in a unit of 16 bytes. Warps have equal shares of units,
// which are copied whole: a few bytes beside the row may come along.
template <class T>
__device__ RowSlice make_slice(const T* logits, int vocab_size, int slice, float* buffer) {
  constexpr int kUnit = 16 / sizeof(T);
  const int begin = min(static_cast<int>(cluster_rank()) * slice, vocab_size);
  const int size = min(slice, vocab_size - begin);
  const auto address = reinterpret_cast<uintptr_t>(logits + begin) / sizeof(T);
  const int offset = static_cast<int>(address % kUnit);
  const int units = size > 0 ? (offset + size + kUnit - 1) / kUnit : 0;
  const int share = (units + kRowWarps - 1) / kRowWarps, warp = threadIdx.x / 32;
  return {buffer + offset,
          offset,
          begin,
          size,
          min(warp * share, units) * (kUnit / 4),
          min((warp + 1) * share, units) * (kUnit / 4)};
}

// Where the copy of the warp's part begins, in the row and in the buffer. 16-bit logits lie at the
// end of the room that they take as scores.
template <class T>
__device__ const T* copied_from(const T* logits, const RowSlice& slice) {
  return logits + slice.begin - slice.offset + 4 * slice.first;
}
template <class T>
__device__ T* copied_to(const RowSlice& slice) {
  float* begin = slice.score - slice.offset + 4 * slice.first;
  return reinterpret_cast<T*>(begin) +
         4 * (slice.last - slice.first) * (sizeof(float) / sizeof(T) - 1);
}
template <class T>
__device__ uint32_t copied_bytes(const RowSlice& slice) {
  return (slice.last - slice.first) * 4 * sizeof(T);
}

// The warp begins to copy its part of the row, which `come` will count.
template <class T>
__device__ void start_copy(const T* logits, const RowSlice& slice, Barrier& come) {
  const uint32_t bytes = copied_bytes<T>(slice);
  if (threadIdx.x % 32 != 0) return;
  arrive_expect(come, bytes);
  if (bytes == 0) return;
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(smem_address(copied_to<T>(slice))),
      "l"(copied_from(logits, slice)), "r"(bytes), "r"(smem_address(&come))
      : "memory");
}

// Makes scores of 16-bit logits, in place: who writes is behind who reads.
template <class T>
__device__ void widen(const RowSlice& slice) {
  if constexpr (sizeof(T) == 2) {
    const T* from = copied_to<T>(slice);
    float* to = slice.score - slice.offset + 4 * slice.first;
    const int units = (slice.last - slice.first) / 2, lane = threadIdx.x % 32;
    for (int begin = 0; begin < units; begin += 32) {
      const int n = begin + lane;
      Pack<T, 8> raw;
      if (n < units) raw = load_pack<8>(from + 8 * n);
      __syncwarp();
      if (n < units) {
#pragma unroll
        for (int i = 0; i < 8; ++i) to[8 * n + i] = to_float(raw.value[i]);
      }
      __syncwarp();
    }
  }
}

template <class T>
__device__ void wait_for_copy(const RowSlice& slice, Barrier& come) {
  wait(come, 0);
  widen<T>(slice);
}

// Sanitises a pack; what of it lies outside of the slice becomes -inf.
__device__ inline void repair_pack(const RowSlice& slice, int n) {
  float* pack = slice.score - slice.offset + 4 * n;
  auto x = load_pack<4>(static_cast<const float*>(pack));
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int i = 4 * n - slice.offset + j;
    x.value[j] = i >= 0 && i < slice.size ? sanitised(x.value[j]) : -INFINITY;
  }
  store_pack(pack, x);
}

// The warp repairs the packs at its edges that aren't whole: a unit of 16-bit logits has two.
__device__ inline void repair_edges(const RowSlice& slice) {
  const int lane = threadIdx.x % 32;
  const int n = lane < 2 ? slice.first + lane : slice.last - 4 + lane;
  const bool another = lane < 2 || n >= slice.first + 2;
  if (lane < 4 && another && n < slice.last && !slice.whole(n)) repair_pack(slice, n);
  __syncwarp();
}

// Sanitises this thread's scores and returns the best of them.
__device__ inline Key best_of_slice(const RowSlice& slice) {
  constexpr int kUnroll = 4;
  float best = -INFINITY;
  int best_at = 0;
  const int lane = threadIdx.x % 32;
  repair_edges(slice);
  for (int n = slice.first + lane; n < slice.last; n += 32 * kUnroll) {
    const int last = min(n + 32 * (kUnroll - 1), slice.last - 1);
    float most[kUnroll];
    const auto look = [&] {
      bool odd = false;  // NaN or large
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const auto x = load_pack<4>(slice.pack(n + 32 * u <= last ? n + 32 * u : n));
        most[u] = fmaxf(fmaxf(x.value[0], x.value[1]), fmaxf(x.value[2], x.value[3]));
        odd |= !((x.value[0] + x.value[1]) + (x.value[2] + x.value[3]) < INFINITY);
      }
      return odd;
    };
    if (look()) {
#pragma unroll 1
      for (int i = n; i <= last; i += 32) repair_pack(slice, i);
      look();
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (most[u] > best) {
        best = most[u];
        best_at = n + 32 * u;
      }
    }
  }
  if (best == -INFINITY) return make_key(best, INT32_MAX);
  const auto x = load_pack<4>(slice.pack(best_at));
  const int at = x.value[0] == best ? 0 : x.value[1] == best ? 1 : x.value[2] == best ? 2 : 3;
  return make_key(best, slice.begin + 4 * best_at - slice.offset + at);
}

// Calls f(i, score[i]) for each element of the warp's part, in ascending order within a thread.
template <class F>
__device__ void for_slice(const RowSlice& slice, F&& f) {
#pragma unroll 2
  for (int n = slice.first + static_cast<int>(threadIdx.x % 32); n < slice.last; n += 32) {
    const int at = 4 * n - slice.offset;
    if (slice.whole(n)) {
      const auto scores = load_pack<4>(slice.pack(n));
#pragma unroll
      for (int j = 0; j < 4; ++j) f(at + j, scores.value[j]);
    } else {
#pragma unroll 1
      for (int i = max(at, 0); i < min(at + 4, slice.size); ++i) f(i, slice.score[i]);
    }
  }
}

// The same for elements of those threads that have `any`: the warp looks at a thread's at once. f
// ignores -inf, which it may get for elements beside the slice.
template <class F>
__device__ void for_some_of_slice(const RowSlice& slice, bool any, F&& f) {
  unsigned owners = __ballot_sync(kAllLanes, any);
  if (__popc(owners) > 8) {
    if (any) for_slice(slice, f);
    return;
  }
  for (; owners != 0; owners &= owners - 1) {
    int n = slice.first + __ffs(owners) - 1 + 32 * static_cast<int>(threadIdx.x % 32);
    if (n >= slice.last) continue;
    const auto scores = load_pack<4>(slice.pack(n));
#pragma unroll
    for (int j = 0; j < 4; ++j) f(4 * n - slice.offset + j, scores.value[j]);
  }
}
static_assert(kMaxSlice / 4 / kRowWarps + 1 <= 32 * 32);  // packs of a warp

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

// The best of the groups' keys; every thread gets it.
__device__ inline Key best_of_groups(const Key* keys) {
  Key best = kNoKey;
  for (int i = threadIdx.x % 32; i < num_groups(); i += 32) best = max(best, keys[i]);
  return warp_best(best);
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
