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
  // What is there now: has been put if the tag is the call's.
  __device__ DecodeWord look() const {
    DecodeWord found;
    asm volatile(
        "{\n.reg .b128 word;\n.reg .b64 data;\nld.relaxed.gpu.global.b128 word, [%3];\n"
        "mov.b128 {data, %2}, word;\nmov.b64 {%0, %1}, data;\n}"
        : "=f"(found.data.x), "=f"(found.data.y), "=l"(found.tag)
        : "l"(this)
        : "memory");
    return found;
  }
};

// What one block merges of a piece: some elements of a row. Quarters of it are written and read
// side by side, so that they fill sectors of 32 bytes.
struct __align__(32) DecodeUnit {
  static constexpr int kDims = 16;
  static constexpr int kQuarters = kDims / 4;
  DecodeWord low[kQuarters], high[kQuarters], totals;

  __device__ void put(int quarter, const DecodeSum& sum, uint64_t call) {
    low[quarter].put(sum.out.x, sum.out.y, call);
    high[quarter].put(sum.out.z, sum.out.w, call);
    if (quarter == 0) totals.put(sum.totals.x, sum.totals.y, call);
  }
  __device__ void clear(int quarter) {
    low[quarter].clear();
    high[quarter].clear();
    if (quarter == 0) totals.clear();
  }
};

// A quarter of a unit as a lane finds it. Nothing waits for it before it is asked what it is.
struct DecodeQuarter {
  DecodeWord low{}, high{}, totals{{-1e30f, 0.0f}, 0};

  __device__ void look(const DecodeUnit& unit, int quarter) {
    low = unit.low[quarter].look();
    high = unit.high[quarter].look();
    totals = unit.totals.look();
  }
  __device__ bool come(uint64_t call) const {
    return low.tag == call && high.tag == call && totals.tag == call;
  }
  __device__ float4 out() const { return {low.data.x, low.data.y, high.data.x, high.data.y}; }
};

}  // namespace lightvl::cuda
