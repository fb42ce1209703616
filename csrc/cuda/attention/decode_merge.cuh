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
        rows.write(rows.output(row) + 4 * d4, row, 4 * d4, sum.out, sum.totals);
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
    const int first = warp & (warps - 1);
    if (open.pieces.count() > 8) {
      merge_pieces<1, 4>(rows, open.pieces, first, warps);
    } else {
      merge_pieces<2, 1>(rows, open.pieces, first, warps);
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
      out[w] = shared_.warps[w].get(row, d4);
    }
    DecodeSum sum;
    sum.add(totals, out);
    sum.out = Partial::in_order(row, sum.out);
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
    const int side_by_side = 8 >> bits, part = group & ((1 << bits) - 1);
    const int step = warps * side_by_side * count;
    int first = static_cast<int>(blockIdx.x) - pieces.first + warp * side_by_side * count;
    for (; first < num_units; first += kUnits * step) {  // of the warp's lanes
      const int unit = first + (group >> bits) * count;
      const auto row = [&](int u) { return min(unit + u * step, num_units - 1) / kRowUnits; };
      const auto d = [&](int u) {
        return (unit + u * step) % kRowUnits * DecodeUnit::kDims + 4 * quarter;
      };
      T* to[kUnits];
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        to[u] = rows.output(row(u)) + d(u);
        asm volatile("" : "+l"(to[u]));  // found now, while pieces are coming, and not behind them
      }
      DecodeSum sum[kUnits];
      for (int i = 0; i < count; i += kParts << bits) {
        take<kUnits, kParts>(pieces, {unit, step, num_units}, {i + part, 1 << bits, count}, quarter,
                             sum);
      }
#pragma unroll
      for (int u = 0; u < kUnits; ++u) {
        if (first + u * step >= num_units) break;
        sum[u].add_lanes(4 << bits);
        if (part > 0 || unit + u * step >= num_units) continue;
        rows.write(to[u], row(u), d(u), sum[u].out, sum[u].totals);
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
    DecodeQuarter found[kUnits][kParts];
    bool wanted[kUnits][kParts];
    const auto each = [&](auto&& f) {
#pragma unroll
      for (int j = 0; j < kUnits * kParts; ++j) f(j / kParts, j % kParts);
    };
    const auto at = [&](int u, int i) -> DecodeUnit& {
      return pieces_[pieces.slot(pieces.first + parts[i])].units[units[u]];
    };
    const auto has = [&](int u, int i) { return units.has(u) && parts.has(i); };
    each([&](int u, int i) { wanted[u][i] = has(u, i); });
    bool any;
    do {  // all are asked for before any is waited for, and only what hasn't come again
      each([&](int u, int i) {
        if (wanted[u][i]) found[u][i].look(at(u, i), quarter);
      });
      any = false;
      each([&](int u, int i) { any |= wanted[u][i] &= !found[u][i].come(tag_); });
    } while (__any_sync(kAllLanes, any));
    each([&](int u, int i) {
      if (has(u, i)) at(u, i).clear(quarter);
    });
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      float2 totals[kParts];
      float4 out[kParts];
#pragma unroll
      for (int i = 0; i < kParts; ++i) {
        totals[i] = found[u][i].totals.data;
        out[i] = found[u][i].out();
      }
      sum[u].add(totals, out);
    }
  }

  Shared& shared_;
  Piece* pieces_;  // [blocks, 2]
  uint64_t tag_;
  bool reading_ = false;          // warps may be reading what others left
  Open begun_ = {}, ended_ = {};  // the pairs that this block holds the first piece of, a later one
};

}  // namespace lightvl::cuda
