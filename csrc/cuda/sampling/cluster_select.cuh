// Selection of a threshold among the scores of a cluster, exact and without sorting.
//
// A score weighs 1 (top-k) or its probability as a 32-bit fixed-point number (top-p); the threshold
// is the largest score such that it and all larger ones weigh at least a target. Sums are 64-bit
// integers, so that they depend neither on their order nor on the size of the cluster. Two rounds
// of 256 bins, linear in the score, leave few candidates, which every block compares in pairs; if
// too many are left (ties, outliers), the threshold's bits are found by bisection.
#pragma once

#include "cuda/sampling/cluster_row.cuh"
#include "cuda/sampling/mass.cuh"

namespace lightvl::cuda {

constexpr int kSelectBins = 256;
constexpr int kMaxCandidates = 512;
constexpr int kMostBests = 256;  // of warps, that bound top-k

// Weights of a bin in two halves, because shared memory adds 32 bits at once.
struct Bins {
  uint32_t low[kSelectBins], high[kSelectBins];
  uint32_t count[kSelectBins];

  __device__ Mass mass(int bin) const { return (Mass{high[bin]} << 16) + low[bin]; }
};

// The bin in which a mass is reached, from the largest scores down.
struct Crossing {
  int bin;
  Mass above, target;  // mass of the bins above; what was to be reached
  uint32_t count, count_above;
};

// What shares memory is never needed at once: no second round follows a list of few scores, the
// candidates come when all blocks have read the first round's bins, and weights after the rounds.
struct Selection {
  union {
    Bins coarse;
    alignas(16) float candidates[kMaxCandidates];  // of all blocks, known to all
    Mass ranks[kMaxCandidates];
  };
  union {
    Bins fine;
    Key few[kMaxCandidates];  // in block 0: scores of the row, an equal share for each block
  };
  union {
    Mass row_mass[kSelectBins];
    alignas(16) uint32_t weights[kMaxCandidates];
  };
  union {
    uint32_t row_count[kSelectBins];
    alignas(16) uint32_t group_bits[kMostBests];
  };
  Crossing crossing;
  int num_candidates;  // in block 0: cleared before a cluster barrier, counted after it
};

// Scores from `low` to `high` in bins, the largest in bin 0.
struct Range {
  float low, high, scale;

  __device__ Range(float low, float high)
      : low(low), high(high), scale((kSelectBins - 1) / (high - low)) {}

  // Where a score lies, in bins; negative if it is below the range.
  __device__ float place(float x) const {
    return x >= low ? fminf((high - x) * scale, kSelectBins - 1.0f) : -1.0f;
  }
  __device__ int coarse(float x) const { return static_cast<int>(floorf(place(x))); }
  // Which part of the coarse bin; negative outside of it.
  __device__ int fine(float x, int bin) const {
    const float at = place(x);
    if (static_cast<int>(floorf(at)) != bin) return -1;
    return min(static_cast<int>((at - static_cast<float>(bin)) * kSelectBins), kSelectBins - 1);
  }
};

// One warp finds the bin in which the mass, with `above` before it, reaches target_of(all).
template <class TargetOf>
__device__ void find_crossing(Selection& shared, Mass above, TargetOf&& target_of) {
  constexpr int kPerLane = kSelectBins / 32;
  const int begin = threadIdx.x * kPerLane;
  Mass own = 0;
  uint32_t own_count = 0;
  for (int i = begin; i < begin + kPerLane; ++i) {
    own += shared.row_mass[i];
    own_count += shared.row_count[i];
  }
  Mass sum = own;
  uint32_t count = own_count;
  for (int step = 1; step < 32; step *= 2) {
    const Mass other = __shfl_up_sync(kAllLanes, sum, step);
    const uint32_t other_count = __shfl_up_sync(kAllLanes, count, step);
    if (threadIdx.x >= step) {
      sum += other;
      count += other_count;
    }
  }
  const Mass target = target_of(above + __shfl_sync(kAllLanes, sum, 31));
  Mass before = above + sum - own;
  if (before >= target || above + sum < target) return;
  uint32_t count_before = count - own_count;
  int bin = begin;
  for (; before + shared.row_mass[bin] < target; ++bin) {
    before += shared.row_mass[bin];
    count_before += shared.row_count[bin];
  }
  shared.crossing = {bin, before, target, shared.row_count[bin], count_before};
}

// Sums what this block's scores weigh per bin, adds up the cluster and finds the crossing. bin(x)
// is negative for scores that don't count.
template <class Bin, class Weigh, class TargetOf>
__device__ Crossing cross(Selection& shared, Bins& bins, const RowSlice& slice, Mass above,
                          Bin&& bin, Weigh&& weigh, TargetOf&& target_of) {
  const int t = threadIdx.x;
  if (t < kSelectBins) bins.low[t] = bins.high[t] = bins.count[t] = 0;
  __syncthreads();
  for_slice(slice, [&](int, float x) {
    const int b = bin(x);
    if (b < 0) return;
    const uint32_t weight = weigh(x);
    atomicAdd(&bins.low[b], weight & 0xffff);
    if (weight >> 16 != 0) atomicAdd(&bins.high[b], weight >> 16);
    atomicAdd(&bins.count[b], 1);
  });
  cluster_sync();
  if (t < kSelectBins) {
    Mass mass = 0;
    uint32_t count = 0;
#pragma unroll
    for (unsigned r = 0; r < kMaxRowBlocks; ++r) {
      if (r >= cluster_size()) continue;
      const Bins* remote = in_block(&bins, r);
      mass += remote->mass(t);
      count += remote->count[t];
    }
    shared.row_mass[t] = mass;
    shared.row_count[t] = count;
  }
  __syncthreads();
  if (t < 32) find_crossing(shared, above, target_of);
  __syncthreads();
  return shared.crossing;
}

// First round: 256 bins of the range. The target may depend on the mass of all.
template <class Weigh, class TargetOf>
__device__ Crossing cross_range(Selection& shared, const RowSlice& slice, const Range& range,
                                Weigh&& weigh, TargetOf&& target_of) {
  if (threadIdx.x == 0) shared.num_candidates = 0;
  const auto bin = [&](float x) { return range.coarse(x); };
  return cross(shared, shared.coarse, slice, 0, bin, weigh, target_of);
}

// Bits of the threshold, from the highest down.
template <class Weigh>
__device__ float bisect(Exchange& exchange, int& turn, const RowSlice& slice, const Range& range,
                        Mass target, Weigh&& weigh) {
  uint32_t least = ordered_bits(range.low), most = ordered_bits(range.high);
  while (least < most) {  // the mass from `least` on reaches the target, that above `most` doesn't
    const uint32_t middle = least + (most - least) / 2 + 1;
    const float cut = from_ordered_bits(middle);
    Mass own = 0;
    for_slice(slice, [&](int, float x) {
      if (x >= cut) own += weigh(x);
    });
    const Mass mass = cluster_reduce(exchange, turn, own, Sum{}, Mass{0});
    if (mass >= target) {
      least = middle;
    } else {
      most = middle - 1;
    }
  }
  return from_ordered_bits(least);
}

// Adds a score to the list of every block.
__device__ inline void add_everywhere(Selection& shared, float score) {
  const int at = atomicAdd(&in_block(&shared, 0)->num_candidates, 1);
  for (unsigned r = 0; r < cluster_size(); ++r) in_block(&shared, r)->candidates[at] = score;
}

// The threshold, which lies in the crossing's bin. Second round and the rest.
template <class Weigh>
__device__ float finish_select(Selection& shared, Exchange& exchange, int& turn,
                               const RowSlice& slice, const Range& range, const Crossing& coarse,
                               Weigh&& weigh) {
  const auto bin = [&](float x) { return range.fine(x, coarse.bin); };
  const Crossing fine = cross(shared, shared.fine, slice, coarse.above, bin, weigh,
                              [&](Mass) { return coarse.target; });
  if (fine.count > kMaxCandidates) {
    return bisect(exchange, turn, slice, range, coarse.target, weigh);
  }
  for_slice(slice, [&](int, float x) {
    if (bin(x) == fine.bin) add_everywhere(shared, x);
  });
  cluster_sync();
  float own = -INFINITY;
  if (threadIdx.x < fine.count) {
    const float x = shared.candidates[threadIdx.x];
    Mass mass = fine.above;
    for (uint32_t i = 0; i < fine.count; ++i) {
      const float other = shared.candidates[i];
      if (other >= x) mass += weigh(other);
    }
    if (mass >= coarse.target) own = x;
  }
  return block_reduce(own, Max{}, -INFINITY);
}

template <class Weigh>
__device__ float select(Selection& shared, Exchange& exchange, int& turn, const RowSlice& slice,
                        const Range& range, Mass target, Weigh&& weigh) {
  const auto fixed = [&](Mass) { return target; };
  const Crossing coarse = cross_range(shared, slice, range, weigh, fixed);
  return finish_select(shared, exchange, turn, slice, range, coarse, weigh);
}

}  // namespace lightvl::cuda
