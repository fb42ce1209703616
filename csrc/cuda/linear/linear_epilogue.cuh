// From the warps' sums to results: addition, bias, silu(gate) * up, residual.
#pragma once

#include "cuda/common/dependent_launch.cuh"
#include "cuda/linear/linear_exchange.cuh"
#include "cuda/linear/linear_shape.cuh"

namespace lightvl::cuda {

template <class T, class Shape>
struct LinearEpilogue {
  static constexpr int kOutTiles = Shape::kOutTiles, kParts = Shape::kParts;
  using Exchange = PairExchange<Shape::kCluster>;

  const LinearSmallParams& p;
  const int rank = Exchange::rank();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float2* const sums;        // this lane's, [warp, item, part]
  float2* const other_sums;  // this lane's, [item], of the other block
  const Exchange exchange;

  // Read ahead of the sums that they are added to; not set where there is nothing to add.
  T bias[Shape::kWarpItems][kParts][2];
  T residual[Shape::kWarpItems][2];
  const T* residual_at[Shape::kWarpItems];
  int num_residuals[Shape::kWarpItems];

  __device__ LinearEpilogue(const LinearSmallParams& params, uint8_t* shared)
      : p(params),
        sums(reinterpret_cast<float2*>(shared + Shape::kSumsAt) + lane),
        other_sums(reinterpret_cast<float2*>(shared + Shape::kPairSumsAt) + lane),
        exchange(shared + Shape::kBarrierAt, divide_up(Shape::kItems - rank, 2) * kTileBytes) {}

  // Finds the residual of a pass's results, and has it fetched to L2.
  __device__ void find_residual(RowRange rows) {
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
      residual_at[i] = static_cast<const T*>(p.residual) + at.token * p.residual_stride + at.n;
      num_residuals[i] = p.residual == nullptr ? 0 : at.exists[0] + at.exists[1];
      if (num_residuals[i] > 0) prefetch_to_l2(residual_at[i]);
      // Else the compiler does all this again after the wait.
      asm volatile("" : "+l"(residual_at[i]), "+r"(num_residuals[i]));
    }
  }

  __device__ void load_bias(RowRange rows) {
    if (p.bias == nullptr) return;
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
#pragma unroll
      for (int k = 0; k < 2 * kParts; ++k) {
        const T* from = static_cast<const T*>(p.bias) + k / 2 * p.out_width + at.n + k % 2;
        if (at.exists[k % 2]) bias[i][k / 2][k % 2] = *from;
      }
    }
  }

  __device__ void load_residual() {
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (k < num_residuals[i]) residual[i][k] = __ldcg(residual_at[i] + k);
      }
    }
  }

  // Adds the sums of all warps and writes the results.
  __device__ void finish(const float (&sum)[Shape::kTiles][4], RowRange rows, int pass) const {
    if (pass > 0) __syncthreads();
    leave(sum);
    __syncthreads();
    float2 totals[Shape::kWarpItems][kParts];
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      if (index(i) >= Shape::kItems) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) totals[i][part] = total(index(i), part);
    }
    if constexpr (Shape::kCluster == 2) add_other(totals);
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
      const float2 first = totals[i][0], second = totals[i][kParts - 1];
      if (at.exists[0]) write(at, i, 0, first.x, second.x);
      if (at.exists[1]) write(at, i, 1, first.y, second.y);
    }
  }

 private:
  // Two of this lane's results: a row of x, columns n and n + 1 of the output. Tiles of them are
  // dealt to the warps, and those of a pair to its blocks.
  struct Item {
    int token, n;
    bool exists[2];  // and is this block's
  };

  __device__ int index(int i) const { return i * Shape::kWarps + warp; }
  __device__ bool is_mine(int i) const { return index(i) % Shape::kCluster == rank; }

  __device__ Item item(int i, RowRange rows) const {
    const int tile = index(i) % kOutTiles, half = index(i) / kOutTiles;
    const int token = lane / 4 + 8 * half, n = rows.first + 8 * tile + lane % 4 * 2;
    const bool in_rows = half < Shape::kHalves && token < p.num_tokens && is_mine(i);
    return {token, n, {in_rows && n < rows.last, in_rows && n + 1 < rows.last}};
  }

  __device__ float2* partial(int index, int part, int warp) const {
    return sums + warp * (Shape::kSumsStep / 8) + (index * kParts + part) * 32;
  }

  __device__ void leave(const float (&sum)[Shape::kTiles][4]) const {
    __syncwarp();  // sums may lie where other lanes' weights did
#pragma unroll
    for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        *partial(half * kOutTiles + j % kOutTiles, j / kOutTiles, warp) =
            make_float2(sum[j][2 * half], sum[j][2 * half + 1]);
      }
    }
  }

  __device__ float2 total(int index, int part) const {
    float2 sum = *partial(index, part, 0);
#pragma unroll
    for (int w = 1; w < Shape::kWarps; ++w) {
      const float2 more = *partial(index, part, w);
      sum.x += more.x, sum.y += more.y;
    }
    return sum;
  }

  // Each block of a pair adds up half of the tiles.
  __device__ void add_other(float2 (&totals)[Shape::kWarpItems][kParts]) const {
    if (Shape::kLate) exchange.wait();
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      if (index(i) < Shape::kItems && !is_mine(i))
        exchange.send(other_sums + index(i) * 32, totals[i][0]);
    }
    exchange.receive();
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      if (index(i) >= Shape::kItems || !is_mine(i)) continue;
      const float2 more = other_sums[index(i) * 32];
      totals[i][0].x += more.x, totals[i][0].y += more.y;
    }
  }

  __device__ void write(const Item& at, int i, int k, float value, float up) const {
    if (p.bias != nullptr) {
      value += to_float(bias[i][0][k]);
      up += to_float(bias[i][kParts - 1][k]);
    }
    if constexpr (kParts == 2) value = value / (1.0f + __expf(-value)) * up;
    if (p.residual != nullptr) value += to_float(residual[i][k]);
    static_cast<T*>(p.out)[at.token * p.out_stride + at.n + k] = from_float<T>(value);
  }
};

}  // namespace lightvl::cuda
