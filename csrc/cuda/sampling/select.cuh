// Exact selection of a threshold in a row of scores, by one block and without sorting: three
// rounds of a histogram over 11, 11 and 10 bits of the score's ordered bits, each narrowing the
// range to one bin. Masses are 64-bit integers, so that sums do not depend on their order.
#pragma once

#include <cub/block/block_scan.cuh>

#include "cuda/common/reduce.cuh"
#include "cuda/sampling/mass.cuh"
#include "cuda/sampling/order.cuh"

namespace lightvl::cuda {

constexpr int kSampleThreads = 1024;
constexpr int kBins = 2048;

struct BlockSelection {
  Mass histogram[kBins];
  cub::BlockScan<Mass, kSampleThreads>::TempStorage scan;
  int bin;
  Mass above;  // mass of the bins above `bin`
};

// Finds the highest bin such that it and the bins above it weigh at least `target`.
__device__ inline void find_bin(BlockSelection& shared, Mass target) {
  static_assert(kBins == 2 * kSampleThreads);
  const int high = kBins - 1 - 2 * static_cast<int>(threadIdx.x);  // this thread's, then the next
  const Mass first = shared.histogram[high], second = shared.histogram[high - 1];
  Mass before;
  cub::BlockScan<Mass, kSampleThreads>(shared.scan).ExclusiveSum(first + second, before);
  if (before < target && before + first >= target) {
    shared.bin = high;
    shared.above = before;
  } else if (before + first < target && before + first + second >= target) {
    shared.bin = high - 1;
    shared.above = before + first;
  }
  __syncthreads();
}

// The largest score such that it and all larger ones weigh at least `target`, which is positive and
// at most the weight of all scores from `floor` on. weigh(score) is a Mass.
template <class Weigh>
__device__ float threshold_by_mass(BlockSelection& shared, const float* scores, int64_t size,
                                   float floor, Mass target, Weigh&& weigh) {
  constexpr int kShifts[3] = {21, 10, 0};
  uint32_t prefix = 0, known = 0;  // bits that the earlier rounds have fixed
  for (const int shift : kShifts) {
    for (int i = threadIdx.x; i < kBins; i += kSampleThreads) shared.histogram[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < size; i += kSampleThreads) {
      const uint32_t bits = ordered_bits(scores[i]);
      if (scores[i] < floor || (bits & known) != prefix) continue;
      atomicAdd(&shared.histogram[(bits & ~known) >> shift], weigh(scores[i]));
    }
    __syncthreads();
    find_bin(shared, target);
    target -= shared.above;
    prefix |= static_cast<uint32_t>(shared.bin) << shift;
    known = ~((1u << shift) - 1);
    __syncthreads();
  }
  return from_ordered_bits(prefix);
}

}  // namespace lightvl::cuda
