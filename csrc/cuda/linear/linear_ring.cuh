// A warp's stream of the weight and x through shared memory, and the products.
//
// A lane copies the very 16 bytes of a row that it later multiplies (row lane / 4, columns
// 8 * (lane % 4) of each 32) to a place of its own in shared memory, kStages chunks ahead and
// across passes: a ring without any barrier. The products' fragments want other columns in a lane,
// but a sum over columns has no order: x is copied by the same rule, so that both sides agree.
//
// An SM's requests are answered in about the order in which they were made: x that a kernel asks
// for queues behind what the next one, on the same SM, has asked for of its weight. So that is not
// much at a time, and the first chunk's products wait for no more of x than they need.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/dependent_launch.cuh"
#include "cuda/linear/linear_shape.cuh"

namespace lightvl::cuda {

// Copies 16 bytes, past L1, or zeros if not `in_row`; memory is asked for the whole line.
__device__ inline void stream_async(uint32_t to, const void* from, bool in_row) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(in_row ? 16 : 0)
               : "memory");
}

// The same for what others read too.
__device__ inline void share_async(uint32_t to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// The same to registers.
__device__ inline uint4 read_l2(const void* from, bool there) {
  uint4 x;
  asm volatile(
      "{\n.reg .pred there;\n"
      "setp.ne.u32 there, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@there ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(static_cast<int>(there))
      : "memory");
  return x;
}

__device__ inline uint4 read_shared(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from));
  return x;
}

template <class T, class Shape>
struct LinearRing {
  static constexpr int kTiles = Shape::kTiles, kHalves = Shape::kHalves, kStages = Shape::kStages;
  static constexpr int kStep = Shape::kSources * kChunk;  // columns to a warp's next chunk
  static constexpr int kKept = Shape::kShort ? kStages : 1;
  using Sums = float[kTiles][4];
  using Weight = uint4[kTiles];
  using X = uint4[kHalves];

  const LinearSmallParams& p;
  const int row = threadIdx.x % 32 / 4;
  const int column, width;     // this lane's first
  const RowRange band;         // the cluster's rows
  int num_passes, num_chunks;  // of this warp in a pass
  uint32_t slots;              // this lane's part of this warp's
  int slot = 0;                // to be multiplied
  const T* x[kHalves];         // this lane's rows at its first column
  bool has_row[kHalves];
  Weight kept_weight[kKept];  // of a short product: all chunks
  X kept_x[kKept];
  struct {
    int pass = 0, chunk = 0;
    int num_rows;     // of the pass, from this lane's row on
    const T* weight;  // this lane's row of the pass at the chunk's columns
  } next;             // chunk to be asked for

  __device__ LinearRing(const LinearSmallParams& params, RowRange rows, int source, uint8_t* shared)
      : p(params),
        column(source * kChunk + threadIdx.x % 4 * 8),
        width(static_cast<int>(p.width)),
        band(rows) {
    num_passes = Shape::kOnePass ? 1 : divide_up(band.size(), Shape::kPassRows);
    num_chunks =
        Shape::kShort ? kStages : divide_up(divide_up(width, kChunk) - source, Shape::kSources);
    slots = shared_address(shared) + threadIdx.x / 32 * Shape::kWarpBytes + threadIdx.x % 32 * 16;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      has_row[half] = row + 8 * half < p.num_tokens;
      x[half] = static_cast<const T*>(p.x);
      if (has_row[half]) x[half] += (row + 8 * half) * p.x_stride + column;
    }
    begin_pass();
  }

  // Asks memory for x, should it not be in L2: what is still written there will be seen.
  __device__ void prefetch_x() const {
    constexpr int kLine = 128 / sizeof(T);
    const int lines = divide_up(width, kLine);
    const int line = blockIdx.x + gridDim.x * threadIdx.x;
    if (line >= lines * p.num_tokens) return;
    prefetch_to_l2(static_cast<const T*>(p.x) + line / lines * p.x_stride + line % lines * kLine);
  }

  // Fills the ring with the weight.
  __device__ void fill_weight() {
#pragma unroll 1
    for (int s = 0; s < kStages && more_to_load(); ++s) {
#pragma unroll
      for (int tile = 0; tile < kTiles; tile += Shape::kFillTiles) {
        if (Shape::kPaced) wait_for_copies<0>();
        load_weight(s, tile, min(tile + Shape::kFillTiles, kTiles));
        commit_copies();
      }
      advance();
    }
  }

  // Asks for x of the chunks in the ring, or of all of a short product.
  __device__ void fill_x() {
    int chunk = 0;
#pragma unroll
    for (int s = 0; s < kStages; ++s) {
      if constexpr (Shape::kShort) {
        keep_x(s);
      } else {
        if (s < num_passes * num_chunks) load_x(s, chunk);
        commit_copies();
        if (++chunk == num_chunks) chunk = 0;
      }
    }
  }

  // Takes a short product's weight to registers, so that its products can follow x at once.
  __device__ void keep_weight() {
    wait_for_copies<0>();
#pragma unroll
    for (int s = 0; s < kStages; ++s) read_weight(kept_weight[s], s);
  }
  __device__ void multiply_kept(Sums& sum) const {
#pragma unroll
    for (int s = 0; s < kStages; ++s) multiply(sum, kept_weight[s], kept_x[s]);
  }

  // Adds a pass's products, and refills the ring.
  __device__ void multiply_pass(Sums& sum) {
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      wait_for_copies<kStages - 1>();
      X x;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) x[half] = read_shared(x_fragment(slot, half));
      Weight weight;
      read_weight(weight, slot);  // all of it before the first product
      multiply(sum, weight, x);
      if (more_to_load()) {
        load_weight(slot, 0, kTiles);
        load_x(slot, next.chunk);
        advance();
      }
      commit_copies();
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
  }

 private:
  __device__ uint32_t fragment(int s, int tile) const {
    return slots + s * Shape::kSlotBytes + tile * kFragmentBytes;
  }
  __device__ uint32_t x_fragment(int s, int half) const {
    return slots + s * Shape::kSlotBytes + Shape::kRows * kRowBytes + half * kFragmentBytes;
  }

  __device__ bool more_to_load() const { return next.pass < num_passes && num_chunks > 0; }

  __device__ void begin_pass() {
    const RowRange rows = band.part(next.pass, num_passes);
    next.num_rows = rows.size() - row;
    next.weight = static_cast<const T*>(p.weight) + (rows.first + row) * p.weight_stride + column;
  }

  __device__ void advance() {
    next.weight += kStep;
    if (++next.chunk < num_chunks) return;
    next.chunk = 0;
    ++next.pass;
    begin_pass();
  }

  __device__ void load_weight(int s, int first_tile, int last_tile) const {
    const bool in_row = column + next.chunk * kStep < width;
    const int64_t step = in_row ? 8 * p.weight_stride : 0;
    const T* from = (in_row ? next.weight : static_cast<const T*>(p.weight)) + first_tile * step;
#pragma unroll
    for (int j = first_tile; j < last_tile; ++j) {
      if (j % Shape::kOutTiles == 0 && j > 0 && in_row)
        from = next.weight + p.out_width * p.weight_stride;
      if (j % Shape::kOutTiles * 8 < next.num_rows) stream_async(fragment(s, j), from, in_row);
      from += step;
    }
  }

  // Rows that aren't there are zeros. (Copies that repeat another row cost as much as the rows.)
  __device__ void load_x(int s, int chunk) const {
    const int c = chunk * kStep;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const bool there = has_row[half] && column + c < width;
      share_async(x_fragment(s, half), there ? x[half] + c : p.x, there);
    }
  }

  __device__ void keep_x(int chunk) {
    const int c = chunk * kStep;
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      kept_x[chunk][half] = read_l2(x[half] + c, has_row[half] && column + c < width);
  }

  __device__ void read_weight(Weight& weight, int s) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const bool beyond = 8 * j + row >= Shape::kRows;  // in half a tile: any row will do
      weight[j] = read_shared(fragment(s, j) - (beyond ? 4 * kRowBytes : 0));
    }
  }

  __device__ void multiply(Sums& sum, const Weight& w, const X& x) const {
    const uint4 low = x[0];
    uint4 high = make_uint4(0, 0, 0, 0);
    if constexpr (kHalves == 2) high = x[1];
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma<T>(sum[j], {low.x, high.x, low.y, high.y}, w[j].x, w[j].y);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma<T>(sum[j], {low.z, high.z, low.w, high.w}, w[j].z, w[j].w);
  }
};

}  // namespace lightvl::cuda
