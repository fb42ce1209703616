// A warp's stream of the weight and x through shared memory, and the products.
//
// A lane copies the very 16 bytes of a row that it later multiplies (row lane / 4, columns
// 8 * (lane % 4) of each 32) to a place of its own in shared memory, kStages chunks ahead and
// across passes: a ring without any barrier. The products' fragments want other columns in a lane,
// but a sum over columns has no order: x is copied by the same rule, so that both sides agree.
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

__device__ inline uint4 read_shared(uint32_t from) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(from));
  return x;
}
__device__ inline void write_shared(uint32_t to, const uint4& x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z),
               "r"(x.w)
               : "memory");
}

template <class T, class Shape>
struct LinearRing {
  static constexpr int kTiles = Shape::kTiles, kHalves = Shape::kHalves;
  static constexpr int kStep = Shape::kSources * kChunk;  // columns to a warp's next chunk
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
    num_passes = divide_up(band.size(), Shape::kPassRows);
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

  // x of the chunks in the ring, on another way than they: it must not wait for them.
  __device__ void fill_x() const {
    uint4 values[Shape::kStages][kHalves];
    for_each_filled([&](int s, int half, int c) {
      values[s][half] = make_uint4(0, 0, 0, 0);
      if (has_row[half] && column + c < width)
        values[s][half] = __ldcg(reinterpret_cast<const uint4*>(x[half] + c));
    });
    for_each_filled(
        [&](int s, int half, int) { write_shared(x_fragment(s, half), values[s][half]); });
  }

  // Adds a pass's products, and refills the ring.
  __device__ void multiply_pass(Sums& sum) {
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      wait_for_copies<Shape::kStages - 1>();
      multiply(sum);
      if (more_to_load()) {
        load_weight(slot);
        load_x(slot);
        advance();
      }
      commit_copies();
      slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
    }
  }

 private:
  __device__ uint32_t fragment(int s, int tile) const {
    return slots + s * Shape::kSlotBytes + tile * kFragmentBytes;
  }
  __device__ uint32_t x_fragment(int s, int half) const { return fragment(s, kTiles + half); }

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
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int out_row = j % Shape::kOutTiles * 8;
      const int64_t weight_row = j < Shape::kOutTiles ? out_row : p.out_width + out_row;
      if (out_row >= next.num_rows) continue;
      stream_async(fragment(s, j), in_row ? next.weight + weight_row * p.weight_stride : p.weight,
                   in_row);
    }
  }

  // Rows that aren't there are zeros. (Copies that repeat another row cost as much as the rows.)
  __device__ void load_x(int s) const {
    const int c = next.chunk * kStep;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const bool there = has_row[half] && column + c < width;
      share_async(x_fragment(s, half), there ? x[half] + c : p.x, there);
    }
  }

  template <class F>
  __device__ void for_each_filled(F&& f) const {
    int chunk = 0;
#pragma unroll
    for (int s = 0; s < Shape::kStages; ++s) {
      if (s >= num_passes * num_chunks) break;
#pragma unroll
      for (int half = 0; half < kHalves; ++half) f(s, half, chunk * kStep);
      if (++chunk == num_chunks) chunk = 0;
    }
  }

  __device__ void multiply(Sums& sum) const {
    const uint4 low = read_shared(x_fragment(slot, 0));
    uint4 high = make_uint4(0, 0, 0, 0);
    if constexpr (kHalves == 2) high = read_shared(x_fragment(slot, 1));
    uint4 w[kTiles];  // all are asked for before the first product
#pragma unroll
    for (int j = 0; j < kTiles; ++j) w[j] = read_shared(fragment(slot, j));
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma<T>(sum[j], {low.x, high.x, low.y, high.y}, w[j].x, w[j].y);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) mma<T>(sum[j], {low.z, high.z, low.w, high.w}, w[j].z, w[j].w);
  }
};

}  // namespace lightvl::cuda
