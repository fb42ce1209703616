// The merges of decode attention: of a block's warps in shared memory, of a cluster's blocks
// through each other's, then of the pieces of a split (sequence, KV head) pair in global memory.
// From the second on each block of a cluster has its part of the outputs, and what follows goes by
// parts.
//
// A part of a piece is written, then its flag becomes the call's tag: what else the memory held is
// no call's tag. The last worker of a pair merges it, when all its other work is done: it waits for
// the flags of the others, which come before it in the grid and so have begun before it, and clears
// them, so that a graph's next replay finds none.
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
    if (pieces.whole()) return;
    __syncthreads();
    if (worker_ == pieces.last) {
      open_ = {rows.q_begin, rows.head, rows.count, pieces, begin_, end_};
    } else if (threadIdx.x == 0) {
      __threadfence();
      flag(pieces, worker_) = tag_;
    }
  }

  // Merges the pair that other workers have parts of and this one the last, if there is one.
  __device__ void merge_open(const PagedAttentionParams& p) {
    if (open_.count == 0) return;
    for (int w = open_.pieces.first + static_cast<int>(threadIdx.x); w < open_.pieces.last;
         w += 32 * kWarps) {
      while (load_acquire(&flag(open_.pieces, w)) != tag_) {
      }
      flag(open_.pieces, w) = 0;
    }
    __syncthreads();
    const int group = static_cast<int>(p.num_heads / p.num_kv_heads);
    merge_workers({p, open_.q_begin, open_.head, group, open_.count});
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
      shared_.block.out[row][d4] = merge_partials<kWarps>(
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
      const float4 out = merge_partials<8>(
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

  __device__ void merge_workers(const DecodeRows<T>& rows) {
    const Partial* piece = pieces_ + 2 * open_.pieces.first;
    const auto at = [&](int i) -> const Partial& { return piece[i == 0 ? 1 : 2 * i]; };
    for (int i = open_.begin + static_cast<int>(threadIdx.x); i < open_.end; i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      const float4 out = merge_partials<16>(
          open_.pieces.last - open_.pieces.first + 1, [&](int w) { return at(w).totals[row]; },
          [&](int w) { return at(w).out[row][d4]; }, totals);
      rows.write(row, 4 * d4, out, totals);
    }
  }

  // Of this block's part of the piece.
  __device__ volatile uint64_t& flag(const DecodePieces& pieces, int worker) const {
    return flags_[pieces.slot(worker) * cluster_.size + cluster_.rank];
  }

  __device__ static uint64_t load_acquire(const volatile uint64_t* from) {
    uint64_t value;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
  }

  Shared& shared_;
  Cluster cluster_;
  int worker_;
  Partial* pieces_;           // [workers, 2]
  volatile uint64_t* flags_;  // [workers, 2, blocks of a cluster]
  uint64_t tag_;
  int begin_ = 0, end_ = 0;  // this block's part: quarters of d of all rows
  bool reading_ = false;     // other blocks may be reading this one's shared memory
  // The pair that merge_open() is about; no rows: none.
  struct {
    int q_begin, head, count;
    DecodePieces pieces;
    int begin, end;
  } open_ = {};
};

}  // namespace lightvl::cuda
