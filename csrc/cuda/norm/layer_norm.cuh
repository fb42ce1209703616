// Layer norm of rows of width C, kept in registers: every element is read once.
//
// Each warp finds the mean of its share of the row and the squares about that mean; the shares are
// then merged, which costs one exchange between the warps and loses no precision to a large mean.
#pragma once

#include "cuda/common/rows.cuh"

namespace lightvl::cuda {

// Of some elements: how many, their mean, and the sum of their squares about it.
struct alignas(16) Moments {
  float count, mean, squares;
};

// Of the elements that a row's threads hold; `count` is the number of elements of this warp.
template <class T, int kPack, int kItems>
__device__ Moments row_moments(const Row<T, kPack, kItems>& row, int width, float count,
                               WarpExchange<Moments>& exchange) {
  using Packs = Pack<T, kPack>;
  float sum = 0.0f, squares = 0.0f;
  row.each(width, [&](const Packs& pack, int) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) sum += to_float(pack.value[j]);
  });
  const float mean = warp_reduce(sum, Sum{}) / fmaxf(count, 1.0f);
  row.each(width, [&](const Packs& pack, int) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float centred = to_float(pack.value[j]) - mean;
      squares += centred * centred;
    }
  });
  const Moments own{count, mean, warp_reduce(squares, Sum{})};
  if (blockDim.x == 32) return own;
  const Moments* warps = exchange.share(own);
  const int num_warps = blockDim.x / 32;
  Moments whole{static_cast<float>(width), 0.0f, 0.0f};
  for (int w = 0; w < num_warps; ++w) whole.mean += warps[w].count * warps[w].mean;
  whole.mean /= whole.count;
  for (int w = 0; w < num_warps; ++w) {
    const float apart = warps[w].mean - whole.mean;
    whole.squares += warps[w].squares + warps[w].count * apart * apart;
  }
  return whole;
}

template <class T, int kPack, int kItems, bool kAhead = true>
__global__ void ROW_REGS
    layer_norm_kernel(const __grid_constant__ LayerNormParams p) {
  using Packs = Pack<T, kPack>;
  prefetch_row(p.weight, p.width * sizeof(T));
  prefetch_row(p.bias, p.width * sizeof(T));
  wait_for_previous();
  let_next_begin();
  const auto x = [&](int64_t row) { return static_cast<const T*>(p.x) + row * p.x_stride; };
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int width = static_cast<int>(p.width);
  WarpExchange<Moments> exchange;
  Row<T, kPack, kItems> weight, current, next;
  if (row < p.num_tokens) current.load(x(row), width);
  weight.load(static_cast<const T*>(p.weight), width);
  float count = 0.0f;
  weight.each(width, [&](const Packs&, int) { count += kPack; });
  count = warp_reduce(count, Sum{});
  for (; row < p.num_tokens; row += step) {
    if (kAhead && row + step < p.num_tokens) next.load(x(row + step), width);
    const Moments moments = row_moments(current, p.width, count, exchange);
    const float scale = rsqrtf(moments.squares / moments.count + p.eps);
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    current.each_with(weight, width, [&](const Packs& pack, const Packs& factor, int c) {
      const Packs bias = load_pack<kPack>(static_cast<const T*>(p.bias) + c);
      Packs result;
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const float normed = (to_float(pack.value[j]) - moments.mean) * scale;
        result.value[j] =
            from_float<T>(normed * to_float(factor.value[j]) + to_float(bias.value[j]));
      }
      store_pack(out + c, result);
    });
    if constexpr (kAhead) {
      current = next;
    } else if (row + step < p.num_tokens) {
      current.load(x(row + step), width);
    }
  }
}

template <class T>
cudaError_t launch_layer_norm(const LayerNormParams& p, cudaStream_t stream) {
  return dispatch_row<T>(
      p.num_tokens, p.width,
      [&](auto pack, auto items, RowGrid shape) {
        return launch_dependent(layer_norm_kernel<T, pack, items>, shape.grid, shape.block, stream,
                                p);
      },
      p.x_stride | p.out_stride, p.x, p.weight, p.bias, p.out);
}

}  // namespace lightvl::cuda
