// A piece of a (sequence, KV head) pair on its way from the block that made it to the blocks that
// merge it, through memory that may hold anything before.
//
// It is made of words of two floats and the call's tag, which are written and read as one: whoever
// finds the tag has the floats, so there is no flag to be set behind them and to be waited for.
// What else the memory held is no call's tag. Each word has one reader, which clears it, so that a
// graph's next replay finds none.
#pragma once

#include "cuda/attention/decode_rows.cuh"

namespace lightvl::cuda {

// Which blocks hold the pieces of a pair: [first, last].
struct DecodePieces {
  int first, last;

  __device__ bool whole() const { return first == last; }
  __device__ int count() const { return last - first + 1; }
  // A block has two pieces at most: of the pair that it begins within, and that it ends within.
  __device__ int slot(int block) const { return 2 * block + (block == first); }
};

// 16 bytes that no one sees half written.
struct __align__(16) DecodeWord {
  float2 data;
  uint64_t tag;

  __device__ void put(float x, float y, uint64_t call) {
    asm volatile(
        "{\n.reg .b128 word;\n.reg .b64 data;\nmov.b64 data, {%1, %2};\n"
        "mov.b128 word, {data, %3};\nst.relaxed.gpu.global.b128 [%0], word;\n}" ::"l"(this),
        "f"(x), "f"(y), "l"(call)
        : "memory");
  }
  __device__ void clear() { put(0.0f, 0.0f, 0); }
  // Whether it has been put; x and y are only then what was.
  __device__ bool get(float& x, float& y, uint64_t call) const {
    uint64_t found;
    asm volatile(
        "{\n.reg .b128 word;\n.reg .b64 data;\nld.relaxed.gpu.global.b128 word, [%3];\n"
        "mov.b128 {data, %2}, word;\nmov.b64 {%0, %1}, data;\n}"
        : "=f"(x), "=f"(y), "=l"(found)
        : "l"(this)
        : "memory");
    return found == call;
  }
};

// What one block merges of a piece: some elements of a row.
struct DecodeUnit {
  static constexpr int kDims = 16;
  static constexpr int kQuarters = kDims / 4;
  DecodeWord out[2 * kQuarters], totals;

  __device__ void put(int quarter, const DecodeSum& sum, uint64_t call) {
    out[2 * quarter].put(sum.out.x, sum.out.y, call);
    out[2 * quarter + 1].put(sum.out.z, sum.out.w, call);
    if (quarter == 0) totals.put(sum.totals.x, sum.totals.y, call);
  }
  __device__ bool get(int quarter, float4& x, float2& sums, uint64_t call) const {
    const bool low = out[2 * quarter].get(x.x, x.y, call);
    const bool high = out[2 * quarter + 1].get(x.z, x.w, call);
    return totals.get(sums.x, sums.y, call) && low && high;
  }
  __device__ void clear(int quarter) {
    out[2 * quarter].clear();
    out[2 * quarter + 1].clear();
    if (quarter == 0) totals.clear();
  }
};

}  // namespace lightvl::cuda
