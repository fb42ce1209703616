// The merges of decode attention: of a block's warps in shared memory, then of the pieces of a
// split (sequence, KV head) pair in global memory, by all blocks that hold one.
//
// A piece is left as words of two floats and the call's tag, which are written and read as one:
// whoever finds the tag has the floats, and there is no flag to wait for behind them. What else the
// memory held is no call's tag. Each word has one reader, which clears it, so that a graph's next
// replay finds none. The blocks of a pair merge equal parts of its outputs, when all their other
// work is done; they wait for each other, so all blocks of a launch must run at once.
#pragma once

#include "cuda/attention/decode_schedule.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

// Whose pieces make up a pair: blocks [first, last].
struct DecodePieces {
  int first, last;

  __device__ bool whole() const { return first == last; }
  __device__ int count() const { return last - first + 1; }
  // A block has two pieces at most: of the pair that it begins within, and that it ends within.
  __device__ int slot(int block) const { return 2 * block + (block == first); }
};

// 16 bytes of memory that no one sees half written.
struct __align__(16) DecodeWord {
  float2 data;
  uint64_t tag;

  __device__ void put(float2 x, uint64_t call) {
    asm volatile(
        "{\n.reg .b128 word;\n.reg .b64 data;\nmov.b64 data, {%1, %2};\n"
        "mov.b128 word, {data, %3};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(this),
        "f"(x.x), "f"(x.y), "l"(call)
        : "memory");
  }
  // Whether it is there; x is then what was put.
  __device__ bool get(float2& x, uint64_t call) const {
    uint64_t found;
    asm volatile(
        "{\n.reg .b128 word;\n.reg .b64 data;\nld.relaxed.gpu.global.b128 word, [%3];\n"
        "mov.b128 {data, %2}, word;\nmov.b64 {%0, %1}, data;\n}"
        : "=f"(x.x), "=f"(x.y), "=l"(found)
        : "l"(this)
        : "memory");
    return found == call;
  }
};

// A piece's part that one block merges: so many elements of a row.
struct DecodeUnit {
  static constexpr int kDims = 16;
  DecodeWord out[kDims / 2], totals;
};

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

  // Where this warp leaves its results before merge(); called by all threads.
  __device__ Partial& warp() {
    if (reading_) __syncthreads();
    return shared_.warps[threadIdx.x / 32];
  }

  // Asks for the memory that merge() writes, which may be in no cache and its address translated
  // nowhere; called by a warp.
  __device__ void prefetch(const DecodeRows<T>& rows, const DecodePieces& pieces) const {
    const int lane = threadIdx.x % 32;
    if (lane < rows.count) prefetch_line(rows.output(lane));
    if (pieces.whole()) return;
    const char* piece = reinterpret_cast<const char*>(&pieces_[pieces.slot(blockIdx.x)]);
    const int bytes = rows.count * kRowUnits * static_cast<int>(sizeof(DecodeUnit));
    for (int at = 128 * lane; at < bytes; at += 32 * 128) prefetch_line(piece + at);
  }

  // Called by all threads: writes the outputs of a whole pair or leaves a piece of a split one.
  __device__ void merge(const DecodeRows<T>& rows, const DecodePieces& pieces) {
    __syncthreads();
    Piece& piece = pieces_[pieces.slot(blockIdx.x)];
    for (int i = threadIdx.x; i < rows.count * (kHeadDim / 4); i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      const float4 out = merge_partials<kWarps>(
          kWarps, [&](int w) { return shared_.warps[w].totals[row]; },
          [&](int w) { return shared_.warps[w].out[row][d4]; }, totals);
      if (pieces.whole()) {
        rows.write(row, 4 * d4, out, totals);
      } else {
        DecodeUnit& unit = piece.units[i / (DecodeUnit::kDims / 4)];
        const int word = i % (DecodeUnit::kDims / 4) * 2;
        unit.out[word].put({out.x, out.y}, tag_);
        unit.out[word + 1].put({out.z, out.w}, tag_);
        if (word == 0) unit.totals.put(totals, tag_);
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

  // Merges this block's parts of the pairs that it left pieces of; called at its end.
  __device__ void merge_open(const PagedAttentionParams& p, const DecodeGroup& group) const {
    merge_pieces(p, group, ended_);
    merge_pieces(p, group, begun_);
  }

 private:
  struct Open {
    int q_begin, head, count;  // no rows: there is none
    DecodePieces pieces;
  };

  // Of a unit four lanes take four elements each of every piece, up to eight such groups the pieces
  // in turn; where these are fewer, a warp takes several units at once.
  __device__ void merge_pieces(const PagedAttentionParams& p, const DecodeGroup& heads,
                               const Open& open) const {
    if (open.count == 0) return;
    const DecodeRows<T> rows{p, heads, open.q_begin, open.head, open.count};
    const int count = open.pieces.count(), mine = static_cast<int>(blockIdx.x) - open.pieces.first;
    const int groups = count > 4 ? 8 : count > 2 ? 4 : 2;
    const int group = static_cast<int>(threadIdx.x) % 32 / 4, quarter = threadIdx.x % 4;
    const int num_units = open.count * kRowUnits;
    for (int first = static_cast<int>(threadIdx.x) / 32 * (8 / groups);
         mine + first * count < num_units; first += kWarps * (8 / groups)) {
      const int unit = mine + (first + group / groups) * count;
      float2 totals{-1e30f, 0.0f};
      float4 out{};
      for (int piece = 0; piece < count; piece += kAtOnce * groups) {
        take(open.pieces, unit, unit < num_units ? count : 0, piece + group % groups, groups,
             quarter, out, totals);
      }
      for (int step = 4; step < 4 * groups; step *= 2) add_lane(step, out, totals);
      if (group % groups == 0 && unit < num_units) {
        rows.write(unit / kRowUnits, unit % kRowUnits * DecodeUnit::kDims + 4 * quarter, out,
                   totals);
      }
    }
  }

  static constexpr int kAtOnce = 4;

  // Adds a unit's quarter of every `step`-th piece from `piece` on, kAtOnce or up to `count`, and
  // clears what it read.
  __device__ void take(const DecodePieces& pieces, int unit, int count, int piece, int step,
                       int quarter, float4& out, float2& totals) const {
    float2 low[kAtOnce], high[kAtOnce], part[kAtOnce];
    const auto at = [&](int i) -> DecodeUnit& {
      const int block = pieces.first + piece + i * step;
      return pieces_[pieces.slot(block)].units[unit];
    };
    bool all;
    do {
      all = true;
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        low[i] = high[i] = {};
        part[i] = {-1e30f, 0.0f};
        if (piece + i * step >= count) continue;
        const DecodeUnit& from = at(i);
        all &= from.out[2 * quarter].get(low[i], tag_);
        all &= from.out[2 * quarter + 1].get(high[i], tag_);
        all &= from.totals.get(part[i], tag_);
      }
    } while (!all);
    __syncwarp();
    const float before = totals.x;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) totals.x = fmaxf(totals.x, part[i].x);
    weigh(exp2f(before - totals.x), out, totals);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float weight = exp2f(part[i].x - totals.x);
      totals.y += part[i].y * weight;
      out.x += low[i].x * weight;
      out.y += low[i].y * weight;
      out.z += high[i].x * weight;
      out.w += high[i].y * weight;
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (piece + i * step >= count) continue;
      DecodeUnit& from = at(i);
      from.out[2 * quarter].put({}, 0);
      from.out[2 * quarter + 1].put({}, 0);
      if (quarter == 0) from.totals.put({}, 0);
    }
  }

  __device__ static void weigh(float weight, float4& out, float2& totals) {
    totals.y *= weight;
    out = {out.x * weight, out.y * weight, out.z * weight, out.w * weight};
  }

  __device__ static void add_lane(int step, float4& out, float2& totals) {
    const auto other = [&](float x) { return __shfl_xor_sync(kAllLanes, x, step); };
    const float most = fmaxf(totals.x, other(totals.x));
    weigh(exp2f(totals.x - most), out, totals);
    totals = {most, totals.y + other(totals.y)};
    out = {out.x + other(out.x), out.y + other(out.y), out.z + other(out.z), out.w + other(out.w)};
  }

  Shared& shared_;
  Piece* pieces_;  // [blocks, 2]
  uint64_t tag_;
  bool reading_ = false;          // warps may be reading what others left
  Open begun_ = {}, ended_ = {};  // the pairs that this block holds the first piece of, a later one
};

}  // namespace lightvl::cuda
