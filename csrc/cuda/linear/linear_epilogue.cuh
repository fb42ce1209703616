// From the warps' sums to results: addition, bias, silu(gate) * up, residual.
#pragma once

#include "cuda/common/dependent_launch.cuh"
#include "cuda/linear/linear_exchange.cuh"
#include "cuda/linear/linear_shape.cuh"

namespace lightvl::cuda {

template <class T, class Shape>
struct LinearEpilogue {
  static constexpr int kOutTiles = Shape::kOutTiles, kParts = Shape::kParts;
  using Exchange = SumExchange<Shape::kCluster>;

  const LinearSmallParams& p;
  const int rank = Exchange::rank();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float2* const sums;  // this lane's, [source, item, part]
  const Exchange exchange;

  // Read ahead of the sums that they are added to; not set where there is nothing to add.
  T bias[Shape::kWarpItems][kParts][2];
  T residual[Shape::kWarpItems][2];

  __device__ LinearEpilogue(const LinearSmallParams& params, uint8_t* shared)
      : p(params),
        sums(reinterpret_cast<float2*>(shared + Shape::kSumsAt) + lane),
        exchange(shared + Shape::kRingBytes + Shape::kSumBytes, received_bytes()) {}

  __device__ void prefetch_residual(RowRange rows) const {
    if (p.residual == nullptr) return;
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
      if (at.exists[0]) prefetch_to_l2(residual_at(at));
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

  __device__ void load_residual(RowRange rows) {
    if (p.residual == nullptr) return;
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        if (at.exists[k]) residual[i][k] = __ldcg(residual_at(at) + k);
      }
    }
  }

  // Adds the sums of all warps and writes the results.
  __device__ void finish(const float (&sum)[Shape::kTiles][4], RowRange rows, int pass) const {
    exchange.before_send(pass);
    send(sum);
    exchange.receive();
#pragma unroll
    for (int i = 0; i < Shape::kWarpItems; ++i) {
      const Item at = item(i, rows);
      if (!at.exists[0]) continue;
      const float2 first = total(at.index, 0), second = total(at.index, kParts - 1);
      write(at, i, 0, first.x, second.x);
      if (at.exists[1]) write(at, i, 1, first.y, second.y);
    }
  }

 private:
  // Two of this lane's results: a row of x, columns n and n + 1 of the output. Tiles are dealt to
  // the blocks of the cluster, a block's to its warps.
  struct Item {
    int index;  // of the block's
    int token, n;
    bool exists[2];
  };

  __device__ Item item(int i, RowRange rows) const {
    const int index = i * Shape::kWarps + warp, of_cluster = index * Shape::kCluster + rank;
    const int tile = of_cluster % kOutTiles, half = of_cluster / kOutTiles;
    const int token = lane / 4 + 8 * half, n = rows.first + 8 * tile + lane % 4 * 2;
    const bool in_rows = half < Shape::kHalves && token < p.num_tokens;
    return {index, token, n, {in_rows && n < rows.last, in_rows && n + 1 < rows.last}};
  }

  __device__ const T* residual_at(const Item& at) const {
    return static_cast<const T*>(p.residual) + at.token * p.residual_stride + at.n;
  }

  __device__ uint32_t received_bytes() const {
    const int items = divide_up(kOutTiles * Shape::kHalves - rank, Shape::kCluster);
    return items * kParts * Shape::kSources * kTileBytes;
  }

  __device__ float2* partial(int index, int part, int source) const {
    return sums + source * (Shape::kSumsStep / 8) + (index * kParts + part) * 32;
  }

  __device__ void send(const float (&sum)[Shape::kTiles][4]) const {
#pragma unroll
    for (int j = 0; j < Shape::kTiles; ++j) {
#pragma unroll
      for (int half = 0; half < Shape::kHalves; ++half) {
        const int of_cluster = half * kOutTiles + j % kOutTiles;
        float2* to =
            partial(of_cluster / Shape::kCluster, j / kOutTiles, rank * Shape::kWarps + warp);
        exchange.send(to, of_cluster % Shape::kCluster,
                      make_float2(sum[j][2 * half], sum[j][2 * half + 1]));
      }
    }
  }

  __device__ float2 total(int index, int part) const {
    float2 sum = *partial(index, part, 0);
#pragma unroll
    for (int s = 1; s < Shape::kSources; ++s) {
      const float2 more = *partial(index, part, s);
      sum.x += more.x, sum.y += more.y;
    }
    return sum;
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
