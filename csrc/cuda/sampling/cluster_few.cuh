// Rows of which few scores can survive the filters: the warps' bests bound top-k from below, the
// scores above the bound are listed in block 0, and this compares them in pairs and draws.
#pragma once

#include "cuda/sampling/cluster_filter.cuh"

namespace lightvl::cuda {

// The part of a list of few scores that a block may fill.
__device__ inline int list_share() { return kMaxCandidates >> (32 - __clz(cluster_size() - 1)); }

// How many each block listed: one number for each of its warps.
using ListCounts = const uint64_t*;

// Lists scores which pass(x) lets in, of threads that may have `any`. Null if a block's don't fit.
template <class Pass>
__device__ ListCounts list_few(RowShared& shared, FewList& few, int& turn, const RowSlice& slice,
                               bool any, Pass&& pass) {
  const int size = static_cast<int>(cluster_size()), share = list_share();
  Key* list = shared.selection.few + cluster_rank() * share;
  for_some_of_slice(slice, any, [&](int i, float x) {
    if (!pass(x)) return;
    const int at = atomicAdd(&few.own, 1);
    if (at >= share) return;
    const Key key = make_key(x, slice.begin + i);
    if (size == 1) {
      list[at] = key;
    } else {
      send(reinterpret_cast<uint64_t*>(list + at), key, few.come, 0);
    }
  });
  __syncthreads();
  ListCounts counts = all_gather(shared.exchange, turn, static_cast<uint64_t>(few.own));
  bool fits = true;
  int listed = 0;
  for (int r = 0; r < size; ++r) {
    const int count = static_cast<int>(counts[r * kRowWarps]);
    fits = fits && count <= share;
    listed += min(count, share);
  }
  if (size > 1 && cluster_rank() == 0) {
    if (threadIdx.x == 0) arrive_expect(few.come, listed * 8);
    wait(few.come, 0);
  }
  return fits ? counts : nullptr;
}

// The n-th of the list; their number is added up in `total`. Block 0 alone.
__device__ inline Key listed_key(const Selection& shared, ListCounts counts, int n, int& total) {
  const int share = list_share();
  Key key = kNoKey;
  total = 0;
  for (int r = 0; r < static_cast<int>(cluster_size()); ++r) {
    const int count = static_cast<int>(counts[r * kRowWarps]), at = n - total;
    if (at >= 0 && at < count) key = shared.few[r * share + at];
    total += count;
  }
  return key;
}

// Filters the list exactly and draws; kLanes threads share the comparisons of a score. The first
// warp gets the id.
template <int kLanes>
__device__ int draw_from_list(Selection& shared, ListCounts counts, const Filters& f,
                              const Noise& noise, Mass target) {
  constexpr Mass kOneAbove = Mass{1} << 48;  // more than all weights
  const int t = threadIdx.x, own = t / kLanes;
  const int entry = kRowThreads - 1 - t;  // other warps than compare, as a rule
  int count;
  const Key listed = listed_key(shared, counts, entry, count);
  const bool by_mass = f.top_p < 1.0f, exists = entry < count;
  const float score = exists ? score_of(listed) : -INFINITY;
  shared.candidates[entry] = score;
  shared.weights[entry] = exists && by_mass ? f.weight(score) : 0;
  __syncthreads();
  if (exists) {
    const int id = id_of(listed);
    const bool possible = score >= f.min_score;
    shared.few[entry] =
        possible ? make_key(f.scaled(score) + gumbel(noise.word_of(id)), id) : kNoKey;
  }
  const float x = shared.candidates[own];
  const int compared = own < count ? count : 0;
  Mass above = 0;  // weight of larger scores and, above bit 48, their number
#pragma unroll 2
  for (int i = 4 * (t % kLanes); i < compared; i += 4 * kLanes) {
    const auto others = load_pack<4>(static_cast<const float*>(shared.candidates) + i);
    const auto weights = load_pack<4>(static_cast<const uint32_t*>(shared.weights) + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) above += others.value[j] > x ? kOneAbove + weights.value[j] : 0;
  }
  above = warp_reduce<kLanes>(above, Sum{});
  __syncthreads();  // ranks take the candidates' place
  if (t % kLanes == 0) shared.ranks[own] = above;
  __syncthreads();
  if (t >= 32) return 0;
  const auto in_top_k = [&](Mass rank) {
    return f.top_k == 0 || static_cast<int>(rank / kOneAbove) < f.top_k;
  };
  if (by_mass && f.top_k > 0) {
    Mass total = 0;
    for (int i = t; i < count; i += 32) {
      if (in_top_k(shared.ranks[i])) total += shared.weights[i];
    }
    target = top_p_target(f.top_p, warp_reduce(total, Sum{}));
  }
  Key best = kNoKey;
  for (int i = t; i < count; i += 32) {
    const Mass rank = shared.ranks[i];
    const bool kept = in_top_k(rank) && (!by_mass || rank % kOneAbove < target);
    if (kept) best = max(best, shared.few[i]);
  }
  return id_of(warp_best(best));
}

// The same for a list of any length. `target` is the mass that top-p keeps, where it comes without
// top-k. Block 0 alone.
__device__ inline int draw_from_list(Selection& shared, ListCounts counts, const Filters& f,
                                     const Noise& noise, Mass target) {
  int count;
  listed_key(shared, counts, 0, count);
  return count <= kRowThreads / 4 ? draw_from_list<4>(shared, counts, f, noise, target)
                                  : draw_from_list<1>(shared, counts, f, noise, target);
}

// The k-th largest of the groups' bits as a score; kLanes threads share the comparisons of one.
template <int kLanes>
__device__ float find_bound(RowShared& shared, int count, int k) {
  const int own = threadIdx.x / kLanes, compared = own < count ? count : 0;
  const uint32_t* all = shared.selection.group_bits;
  const uint32_t bits = compared > 0 ? all[own] : UINT32_MAX;
  int better = 0;
#pragma unroll 2
  for (int i = 4 * (threadIdx.x % kLanes); i < compared; i += 4 * kLanes) {
    const auto others = load_pack<4>(all + i);
#pragma unroll
    for (int j = 0; j < 4; ++j) better += others.value[j] > bits ? 1 : 0;
  }
  better = warp_reduce<kLanes>(better, Sum{});
  const uint32_t least = __reduce_min_sync(kAllLanes, better < k ? bits : UINT32_MAX);
  if (threadIdx.x % 32 == 0 && least < UINT32_MAX) atomicMin(&shared.bound_bits, least);
  __syncthreads();
  return from_ordered_bits(shared.bound_bits);
}

// The best scores of the warps, or of pairs of warps, tell where the k-th largest score of the row
// lies at least: not below the k-th of them. Where there are too few, the warps tell their next
// ones, of other threads; -inf if many would be needed. `best` is the thread's.
__device__ inline float bound_by_groups(RowShared& shared, int& turn, const Key* groups, Key best,
                                        int k) {
  const int all = num_groups(), wanted = k * 5 / 4, rounds = (wanted + all - 1) / all;
  const int merged = wanted <= all / 2 ? 2 : 1;
  const int count = rounds * all / merged, t = threadIdx.x;
  if (count > kMostBests) return -INFINITY;
  if (t == 0) shared.bound_bits = UINT32_MAX;
  if (t < kMostBests) {
    const Key group = t >= all / merged ? kNoKey
                      : merged == 1     ? groups[t]
                                        : max(groups[2 * t], groups[2 * t + 1]);
    shared.selection.group_bits[t] = static_cast<uint32_t>(group >> 32);
  }
  for (int told = all; told < count; told += all) {
    if (best == warp_best(best)) best = kNoKey;
    groups = all_gather(shared.exchange, turn, warp_best(best));
    if (t < all) shared.selection.group_bits[told + t] = static_cast<uint32_t>(groups[t] >> 32);
  }
  __syncthreads();
  return count <= kRowThreads / 4 ? find_bound<4>(shared, count, k)
                                  : find_bound<2>(shared, count, k);
}
static_assert(kMostBests <= kRowThreads / 2);

}  // namespace lightvl::cuda
