// Sizes of the few-row product's kernel, and how the weight's rows are shared out.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvl::cuda {

constexpr int kChunk = 32;                     // columns that a warp multiplies at once
constexpr int kRowBytes = 64;                  // of a chunk, 16 bytes for each of four lanes
constexpr int kFragmentBytes = 8 * kRowBytes;  // of 8 rows, for a warp
constexpr int kTileBytes = 256;                // sums of 8 rows of x by 8 of the weight, two a lane

__host__ __device__ constexpr int divide_up(int a, int b) { return (a + b - 1) / b; }

// Two kernels of a chain share an SM of Hopper's if none takes more.
constexpr int kHalfOfHopper = 113 * 1024;

template <int kRows_, int kHalves_, int kCluster_, bool kOnePass_, bool kSilu_, int kMostBytes,
          int kChunks_ = 0>
struct LinearShape {
  static constexpr int kRows = kRows_;           // of the weight in a pass, a multiple of 4
  static constexpr int kHalves = kHalves_;       // of 8 rows of x
  static constexpr int kCluster = kCluster_;     // blocks that share the columns of a band
  static constexpr int kParts = kSilu_ ? 2 : 1;  // products behind a result: gate and up
  static constexpr bool kOnePass = kOnePass_;    // no band has more rows
  // A short product's chunks of a warp: so few that the registers have room for their weight.
  static constexpr int kChunks = kChunks_;
  static constexpr bool kShort = kChunks > 0;
  static constexpr int kWarps = 8, kThreads = 32 * kWarps;
  static constexpr int kSources = kWarps * kCluster;  // warps that share the columns
  static constexpr int kTiles = divide_up(kRows, 8);  // of 8 rows of the weight
  static constexpr int kOutTiles = kTiles / kParts, kPassRows = kRows / kParts;
  // Tiles of 8 x 8 results, and those that a warp adds up.
  static constexpr int kItems = kOutTiles * kHalves;
  static constexpr int kWarpItems = divide_up(kItems, kWarps);

  // While the ring fills, a warp of a pair has no more tiles than this on their way.
  static constexpr bool kPaced = kCluster == 2;
  static constexpr int kFillTiles = kPaced ? 4 : kTiles;

  // A warp's slot of the ring holds a chunk of the weight, then of x. A short product has slots for
  // all of its chunks, and x in registers.
  static constexpr int kXBytes = kShort ? 0 : kHalves * kFragmentBytes;
  static constexpr int kSlotBytes = kRows * kRowBytes + kXBytes;
  // The sums of each warp. Those of one pass are left where the warp's ring was.
  static constexpr int kSourceBytes = kItems * kParts * kTileBytes;
  static constexpr int kWarpSumBytes = kOnePass ? 0 : kWarps * kSourceBytes;
  // And those of the other block of a pair: where bands are large in the ring too, so that the
  // blocks meet late, when both have done with it.
  static constexpr bool kLate = kCluster == 2 && kRows > 32;
  static constexpr int kPairSumBytes = kCluster == 1 || kLate ? 0 : kItems * kTileBytes;
  static constexpr int kSumBytes = kWarpSumBytes + kPairSumBytes;
  static constexpr int kBarrierBytes = 16;
  static constexpr int kFit = (kMostBytes - kSumBytes - kBarrierBytes) / (kWarps * kSlotBytes);
  static constexpr int kMost = kShort ? kChunks : 8, kStages = kFit < kMost ? kFit : kMost;
  static_assert(kShort ? kStages == kChunks : kStages >= 2);
  static constexpr int kWarpBytes = kStages * kSlotBytes, kRingBytes = kWarps * kWarpBytes;
  static constexpr int kSumsAt = kOnePass ? 0 : kRingBytes;
  static constexpr int kSumsStep = kOnePass ? kWarpBytes : kSourceBytes;  // to the next warp's
  static_assert(kSourceBytes <= kSumsStep);
  static constexpr int kPairSumsAt = kLate ? kSourceBytes : kRingBytes + kWarpSumBytes;
  static_assert(!kLate || kSourceBytes + kItems * kTileBytes <= kWarpBytes);
  static_assert(kCluster == 1 || (kCluster == 2 && kParts == 1 && kOnePass));
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
