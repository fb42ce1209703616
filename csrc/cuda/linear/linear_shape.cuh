// Sizes of the few-row product's kernel, and how the weight's rows are shared out.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvl::cuda {

constexpr int kChunk = 32;  // columns that a warp multiplies at once, 8 a lane
constexpr int kRowBytes = 64, kFragmentBytes = 8 * kRowBytes;  // of a chunk; 16 bytes a lane
constexpr int kTileBytes = 256;  // sums of 8 rows of x by 8 of the weight, two a lane

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// Two kernels of a chain share an SM of Hopper's if none takes more.
constexpr int kHalfOfHopper = 113 * 1024;

template <int kRows_, int kHalves_, int kCluster_, bool kOnePass_, bool kSilu_, int kMostBytes>
struct LinearShape {
  static constexpr int kRows = kRows_;  // of the weight in a pass, a multiple of 4
  static constexpr int kTiles = divide_up(kRows, 8);
  static constexpr int kHalves = kHalves_;       // of 8 rows of x
  static constexpr int kCluster = kCluster_;     // blocks that share the columns of a band
  static constexpr bool kOnePass = kOnePass_;    // no band has more rows
  static constexpr int kParts = kSilu_ ? 2 : 1;  // products behind a result: gate and up
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kSources = kWarps * kCluster;  // warps that share the columns
  static constexpr int kOutTiles = kTiles / kParts, kPassRows = kRows / kParts;
  // Tiles of 8 x 8 results, and those that a warp adds up.
  static constexpr int kItems = kOutTiles * kHalves;
  static constexpr int kWarpItems = divide_up(kItems, kWarps);

  // A warp's slot of the ring holds a chunk of the weight.
  static constexpr int kSlotBytes = kRowBytes * kRows;
  // The sums of each warp. Those of one pass are left where the warp's ring was.
  static constexpr bool kInRing = kOnePass;
  static constexpr int kSourceBytes = kItems * kParts * kTileBytes;
  static constexpr int kWarpSumBytes = kInRing ? 0 : kWarps * kSourceBytes;
  // And those of the other block of a pair.
  static constexpr int kPairSumBytes = kCluster == 1 ? 0 : kItems * kTileBytes;
  static constexpr int kSumBytes = kWarpSumBytes + kPairSumBytes;
  static_assert(kCluster == 1 || (kCluster == 2 && kParts == 1 && kOnePass));
  static constexpr int kBarrierBytes = 16;
  static constexpr int kFit = (kMostBytes - kSumBytes - kBarrierBytes) / (kWarps * kSlotBytes);
  static constexpr int kStages = kFit < 8 ? kFit : 8;
  static_assert(kStages >= 2);
  static constexpr int kWarpBytes = kStages * kSlotBytes, kRingBytes = kWarps * kWarpBytes;
  static constexpr int kSumsAt = kInRing ? 0 : kRingBytes;
  static constexpr int kSumsStep = kInRing ? kWarpBytes : kSourceBytes;  // to the next source's
  static_assert(kSourceBytes <= kSumsStep);
  static constexpr int kPairSumsAt = kRingBytes + kWarpSumBytes;
  static constexpr int kBarrierAt = kRingBytes + kSumBytes;
  static constexpr int kSharedBytes = kBarrierAt + kBarrierBytes;
};

// Rows of the output: a cluster's, or those of one of its passes.
struct RowRange {
  int first, last;

  __device__ int size() const { return last - first; }
  __device__ RowRange part(int i, int parts) const {
    const int rows = size() / parts, longer = size() % parts;
    const int begin = first + i * rows + min(i, longer);
    return {begin, begin + rows + (i < longer ? 1 : 0)};
  }
};

}  // namespace lightvl::cuda
