// The merges of decode attention: of a block's warps in shared memory, of a cluster's blocks
// through each other's, then of the pieces of a split (sequence, KV head) pair in global memory.
// From the second on each block of a cluster has its part of the outputs, and what follows goes by
// parts.
//
// A part of a piece is written, then its flag becomes the call's tag. A block that has set its flag
// and then sees the flags of all pieces set merges them and clears the flags: a graph's next replay
// finds none, and whatever else the memory held before is no call's tag. The last block to set its
// flag sees all of them, unless another did before and has merged; two that merge write the same.
#pragma once

#include "cuda/attention/decode_cluster.cuh"
#include "cuda/attention/decode_rows.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

// Whose pieces make up a pair: workers [first, last].
struct DecodePieces {
  int first, last;

  __device__ bool whole() const { return first == last; }
  // A worker has two pieces at most: of the pair that it begins within, and that it ends within.
  __device__ int slot(int worker) const { return 2 * worker + (worker == first); }
};

template <class T, int kHeadDim, int kRows, int kWarps>
class DecodeMerger {
 public:
  using Partial = DecodePartial<kHeadDim, kRows>;
  struct Shared {
    Partial warps[kWarps], block;
    bool merges_pair;
  };

  __device__ DecodeMerger(Shared& shared, const AttentionWorkspace& room, Cluster cluster,
                          int worker, int num_workers)
      : shared_(shared),
        cluster_(cluster),
        worker_(worker),
        pieces_(static_cast<Partial*>(room.data)),
        flags_(reinterpret_cast<volatile uint64_t*>(pieces_ + 2 * num_workers)),
        tag_(room.tag) {}

  // Where this warp leaves its results before merge().
  __device__ Partial& warp() { return shared_.warps[threadIdx.x / 32]; }

  // Called by all threads of the worker.
  __device__ void merge(const DecodeRows<T>& rows, const DecodePieces& pieces) {
    __syncthreads();
    finish();
    merge_warps(rows);
    cluster_.arrive();
    cluster_.wait();
    const int quarters = rows.count * (kHeadDim / 4);
    const int part = (quarters + cluster_.size - 1) / cluster_.size;
    begin_ = cluster_.rank * part;
    end_ = min(begin_ + part, quarters);
    merge_blocks(rows, pieces);
    cluster_.arrive();
    reading_ = true;
    if (!pieces.whole() && announce(pieces)) merge_workers(rows, pieces);
  }

  // Waits until no other block reads this one's shared memory.
  __device__ void finish() {
    if (reading_) cluster_.wait();
    reading_ = false;
  }

 private:
  __device__ void merge_warps(const DecodeRows<T>& rows) {
    for (int i = threadIdx.x; i < rows.count * (kHeadDim / 4); i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      shared_.block.out[row][d4] = merge_partials(
          kWarps, [&](int w) { return shared_.warps[w].totals[row]; },
          [&](int w) { return shared_.warps[w].out[row][d4]; }, totals);
      if (d4 == 0) shared_.block.totals[row] = totals;
    }
  }

  __device__ void merge_blocks(const DecodeRows<T>& rows, const DecodePieces& pieces) {
    Partial& piece = pieces_[pieces.slot(worker_)];
    const Partial& block = shared_.block;
    for (int i = begin_ + static_cast<int>(threadIdx.x); i < end_; i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      const float4 out = merge_partials(
          cluster_.size, [&](int b) { return Cluster::read(block.totals[row], b); },
          [&](int b) { return Cluster::read(block.out[row][d4], b); }, totals);
      if (pieces.whole()) {
        rows.write(row, 4 * d4, out, totals);
      } else {
        piece.out[row][d4] = out;
        if (d4 == 0 || i == begin_) piece.totals[row] = totals;
      }
    }
  }

  __device__ void merge_workers(const DecodeRows<T>& rows, const DecodePieces& pieces) {
    const Partial* piece = pieces_ + 2 * pieces.first;
    const auto at = [&](int i) -> const Partial& { return piece[i == 0 ? 1 : 2 * i]; };
    for (int i = begin_ + static_cast<int>(threadIdx.x); i < end_; i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      const float4 out = merge_partials(
          pieces.last - pieces.first + 1, [&](int w) { return at(w).totals[row]; },
          [&](int w) { return at(w).out[row][d4]; }, totals);
      rows.write(row, 4 * d4, out, totals);
    }
    for (int w = pieces.first + static_cast<int>(threadIdx.x); w <= pieces.last; w += 32 * kWarps) {
      flag(pieces, w) = 0;
    }
  }

  // Of this block's part of the piece.
  __device__ volatile uint64_t& flag(const DecodePieces& pieces, int worker) const {
    return flags_[pieces.slot(worker) * cluster_.size + cluster_.rank];
  }

  // Announces this block's part of its piece; whether to merge that part of the pair.
  __device__ bool announce(const DecodePieces& pieces) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const int lane = static_cast<int>(threadIdx.x);
      __threadfence();
      if (lane == 0) flag(pieces, worker_) = tag_;
      __syncwarp();
      __threadfence();
      bool all = true;
      for (int w = pieces.first + lane; w <= pieces.last; w += 32) all &= flag(pieces, w) == tag_;
      all = __all_sync(kAllLanes, all);
      __threadfence();
      if (lane == 0) shared_.merges_pair = all;
    }
    __syncthreads();
    return shared_.merges_pair;
  }

  Shared& shared_;
  Cluster cluster_;
  int worker_;
  Partial* pieces_;           // [workers, 2]
  volatile uint64_t* flags_;  // [workers, 2, blocks of a cluster]
  uint64_t tag_;
  int begin_ = 0, end_ = 0;  // this block's part: quarters of d of all rows
  bool reading_ = false;     // other blocks may be reading this one's shared memory
};

}  // namespace lightvl::cuda
