// A warp's stream of the weight through shared memory and of x through registers, and the products.
//
// A lane copies the very 16 bytes of a row that it later multiplies (row lane / 4, columns
// 8 * (lane % 4) of each 32) to a place of its own in shared memory, kStages chunks ahead and
// across passes: a ring without any barrier. The products' fragments want other columns in a lane,
// but a sum over columns has no order: x is read by the same rule, so that both sides agree.
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

// Reads 16 bytes from L2, or zeros if not `there`.
__device__ inline void read_l2(uint4& x, const void* from, bool there) {
  asm volatile(
      "{\n.reg .pred there;\n"
      "setp.ne.u32 there, %5, 0;\n"
      "mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; mov.u32 %3, 0;\n"
      "@there ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
      : "=&r"(x.x), "=&r"(x.y), "=&r"(x.z), "=&r"(x.w)
      : "l"(from), "r"(static_cast<int>(there))
      : "memory");
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
  static constexpr int kTiles = Shape::kTiles, kHalves = Shape::kHalves;
  static constexpr int kStep = Shape::kSources * kChunk;  // columns to a warp's next chunk
  static constexpr int kAhead = 4;                        // chunks of x on their way
  using Sums = float[kTiles][4];

  const LinearSmallParams& p;
  const int row = threadIdx.x % 32 / 4;
  const int column, width;     // this lane's first
  const RowRange band;         // the cluster's rows
  int num_passes, num_chunks;  // of this warp in a pass
  uint32_t slots;              // this lane's part of this warp's
  int slot = 0;                // to be multiplied
  const T* x[kHalves];         // this lane's rows at its first column
  bool has_row[kHalves];
  uint4 x_values[kAhead][kHalves];  // of chunks i, i + kAhead, ...
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
    num_chunks = divide_up(divide_up(width, kChunk) - source, Shape::kSources);
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
    for (int s = 0; s < Shape::kStages; ++s) {
      if (more_to_load()) {
        load_weight(s);
        advance();
      }
      commit_copies();
    }
  }

  // Asks for x of a pass's first chunks.
  __device__ void begin_x() {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) load_x(i, i);
  }

  // Adds a pass's products, and refills the ring.
  __device__ void multiply_pass(Sums& sum) {
#pragma unroll 1
    for (int first = 0; first < num_chunks; first += kAhead) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        if (first + i >= num_chunks) break;
        wait_for_copies<Shape::kStages - 1>();
        multiply(sum, x_values[i]);
        load_x(i, first + i + kAhead);
        if (more_to_load()) {
          load_weight(slot);
          advance();
        }
        commit_copies();
        slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
      }
    }
  }

 private:
  __device__ uint32_t fragment(int s, int tile) const {
    return slots + s * Shape::kSlotBytes + tile * kFragmentBytes;
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

  __device__ void load_weight(int s) const {
    const bool in_row = column + next.chunk * kStep < width;
    const T* from = in_row ? next.weight : static_cast<const T*>(p.weight);
    const int64_t step = in_row ? 8 * p.weight_stride : 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      if (j % Shape::kOutTiles == 0 && j > 0 && in_row)
        from = next.weight + p.out_width * p.weight_stride;
      if (j % Shape::kOutTiles * 8 < next.num_rows) stream_async(fragment(s, j), from, in_row);
      from += step;
    }
  }

  // Rows that aren't there are zeros. (Loads that repeat another row cost as much as the rows.)
  __device__ void load_x(int i, int chunk) {
    const int c = chunk * kStep;
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      read_l2(x_values[i][half], x[half] + c, has_row[half] && column + c < width);
  }

  __device__ void multiply(Sums& sum, const uint4 (&x)[kHalves]) const {
    uint4 w[kTiles];  // all are asked for before the first product
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const bool beyond = 8 * j + row >= Shape::kRows;  // in half a tile: any row will do
      w[j] = read_shared(fragment(slot, j) - (beyond ? 4 * kRowBytes : 0));
    }
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
