// The merges of decode attention: of a block's warps in shared memory, then of the pieces of a
// split (sequence, KV head) pair in global memory.
//
// All blocks that hold a piece of a pair merge equal parts of its outputs, when all their other
// work is done. They wait for each other, so all blocks of a launch must run at once.
#pragma once

#include "cuda/attention/decode_piece.cuh"
#include "cuda/common/dependent_launch.cuh"

namespace lightvl::cuda {

template <class T, int kHeadDim, int kRows, int kWarps>
class DecodeMerger {
 public:
  using Partial = DecodePartial<kHeadDim, kRows>;
  static constexpr int kRowUnits = kHeadDim / DecodeUnit::kDims;
  struct Piece {
    DecodeUnit units[kRows * kRowUnits];
  };
  struct Shared {
    Partial warps[kWarps];
  };

  __device__ DecodeMerger(Shared& shared, const AttentionWorkspace& room)
      : shared_(shared), pieces_(static_cast<Piece*>(room.data)), tag_(room.tag) {}

  // Asks for the memory that merge() writes, which may be in no cache and its address translated
  // nowhere: that takes longer than the merge. Called by warps, while their last keys are coming.
  __device__ void prefetch(const DecodeRows<T>& rows, const DecodePieces& pieces) const {
    const int thread = threadIdx.x;
    if (thread < rows.count) prefetch_to_l2(rows.output(thread));
    if (pieces.whole()) return;
    const char* piece = reinterpret_cast<const char*>(&pieces_[pieces.slot(blockIdx.x)]);
    const int bytes = rows.count * kRowUnits * static_cast<int>(sizeof(DecodeUnit));
    if (128 * thread < bytes) prefetch_to_l2(piece + 128 * thread);
  }

  // Where this warp leaves its results before merge(); called by all threads.
  __device__ Partial& warp() {
    if (reading_) __syncthreads();
    return shared_.warps[threadIdx.x / 32];
  }

  // Called by all threads: writes the outputs of a whole pair or leaves a piece of a split one.
  __device__ void merge(const DecodeRows<T>& rows, const DecodePieces& pieces) {
    __syncthreads();
    Piece& piece = pieces_[pieces.slot(blockIdx.x)];
    for (int i = threadIdx.x; i < rows.count * (kHeadDim / 4); i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      const DecodeSum sum = sum_of_warps(row, d4);
      if (pieces.whole()) {
        rows.write(row, 4 * d4, sum.out, sum.totals);
      } else {
        piece.units[i / DecodeUnit::kQuarters].put(i % DecodeUnit::kQuarters, sum, tag_);
      }
    }
    reading_ = true;
    if (pieces.whole()) return;
    const Open open{rows.q_begin, rows.head, rows.count, pieces};
    if (static_cast<int>(blockIdx.x) == pieces.first) {
      begun_ = open;
    } else {
      ended_ = open;
    }
  }

  // Merges this block's parts of the pairs that it left pieces of; called at its end. Where there
  // are two pairs, half of the warps take each.
  __device__ void merge_open(const PagedAttentionParams& p, const DecodeGroup& group) const {
    const bool both = ended_.count > 0 && begun_.count > 0;
    const int warps = both ? kWarps / 2 : kWarps, warp = static_cast<int>(threadIdx.x) / 32;
    const bool later = both ? warp >= warps : begun_.count > 0;
    const Open open = later ? begun_ : ended_;
    if (open.count == 0) return;
    const DecodeRows<T> rows{p, group, open.q_begin, open.head, open.count};
    if (open.pieces.count() > 8) {
      merge_pieces<1, 4>(rows, open.pieces, warp & (warps - 1), warps);
    } else {
      merge_pieces<4, 1>(rows, open.pieces, warp & (warps - 1), warps);
    }
  }

 private:
  struct Open {
    int q_begin, head, count;  // no rows: there is none
    DecodePieces pieces;
  };

  __device__ DecodeSum sum_of_warps(int row, int d4) const {
    float2 totals[kWarps];
    float4 out[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      totals[w] = shared_.warps[w].totals[row];
      out[w] = shared_.warps[w].out[row][d4];
    }
    DecodeSum sum;
    sum.add(totals, out);
    return sum;
  }

  // Of a unit four lanes take a quarter each of a piece, up to eight such groups of lanes the
  // pieces in turn; where these are fewer, a warp takes several units side by side. A lane has
  // kUnits units and of each kParts pieces on their way at a time.
  template <int kUnits, int kParts>
  __device__ void merge_pieces(const DecodeRows<T>& rows, const DecodePieces& pieces, int warp,
                               int warps) const {
    const int quarter = threadIdx.x % 4, group = threadIdx.x % 32 / 4;
    const int count = pieces.count(), num_units = rows.count * kRowUnits;
    const int bits = count > 4 ? 3 : count > 2 ? 2 : 1;  // 1 << bits groups share a unit
    const int part = group & ((1 << bits) - 1), side_by_side = 8 >> bits;
    const int mine = static_cast<int>(blockIdx.x) - pieces.first, step = warps * side_by_side;
    for (int n = warp * side_by_side; mine + n * count < num_units; n += kUnits * step) {
      const int unit = mine + (n + (group >> bits)) * count;
      DecodeSum sum[kUnits];
      for (int i = 0; i < count; i += kParts << bits) {
        take<kUnits, kParts>(pieces, {unit, step * count, num_units}, {i + part, 1 << bits, count},
                             quarter, sum);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        for (int lanes = 4; lanes < 4 << bits; lanes *= 2) sum[u].add_lane(lanes);
        const int at = unit + u * step * count, d = at % kRowUnits * DecodeUnit::kDims;
        if (part > 0 || at >= num_units) continue;
        rows.write(at / kRowUnits, d + 4 * quarter, sum[u].out, sum[u].totals);
      }
    }
  }

  // begin, begin + step, ... up to end.
  struct Steps {
    int begin, step, end;

    __device__ int operator[](int i) const { return begin + i * step; }
    __device__ bool has(int i) const { return begin + i * step < end; }
  };

  // Adds a quarter of the first kUnits of `units` of the first kParts of `parts` and clears it
  // there; called by all lanes of a warp.
  template <int kUnits, int kParts>
  __device__ void take(const DecodePieces& pieces, const Steps& units, const Steps& parts,
                       int quarter, DecodeSum (&sum)[kUnits]) const {
    const auto at = [&](int u, int i) -> DecodeUnit& {
      return pieces_[pieces.slot(pieces.first + parts[i])].units[units[u]];
    };
    float2 totals[kUnits][kParts];
    float4 out[kUnits][kParts];
    bool all;
    do {
      all = true;
#pragma unroll
      for (int j = 0; j < kUnits * kParts; ++j) {
        const int u = j / kParts, i = j % kParts;
        totals[u][i] = {-1e30f, 0.0f};
        out[u][i] = {};
        if (!units.has(u) || !parts.has(i)) continue;
        all &= at(u, i).get(quarter, out[u][i], totals[u][i], tag_);
      }
    } while (!all);
    __syncwarp();  // four lanes have read the totals
#pragma unroll
    for (int j = 0; j < kUnits * kParts; ++j) {
      const int u = j / kParts, i = j % kParts;
      if (units.has(u) && parts.has(i)) at(u, i).clear(quarter);
    }
#pragma unroll
    for (int u = 0; u < kUnits; ++u) sum[u].add(totals[u], out[u]);
  }

  Shared& shared_;
  Piece* pieces_;  // [blocks, 2]
  uint64_t tag_;
  bool reading_ = false;          // warps may be reading what others left
  Open begun_ = {}, ended_ = {};  // the pairs that this block holds the first piece of, a later one
};

}  // namespace lightvl::cuda
