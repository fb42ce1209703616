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

// How many elements of a row the warp of this thread holds.
template <int kPack>
__device__ float elements_of_warp(int width) {
  constexpr int kWarpElements = 32 * kPack;
  int count = 0;
  for (int c = static_cast<int>(threadIdx.x / 32) * kWarpElements; c < width;
       c += blockDim.x * kPack) {
    count += min(width - c, kWarpElements);
  }
  return static_cast<float>(count);
}

// Of the elements that a row's threads hold; `count` is the number of elements of this warp.
template <class T, int kPack, int kItems>
__device__ Moments row_moments(const Row<T, kPack, kItems>& row, int width, float count) {
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
  const int num_warps = blockDim.x / 32;
  if (num_warps == 1) return own;
  const Moments* warps = share_between_warps(own);
  Moments whole{static_cast<float>(width), 0.0f, 0.0f};
#pragma unroll 1
  for (int w = 0; w < num_warps; ++w) whole.mean += warps[w].count * warps[w].mean;
  whole.mean /= whole.count;
#pragma unroll 1
  for (int w = 0; w < num_warps; ++w) {
    const float apart = warps[w].mean - whole.mean;
    whole.squares += warps[w].squares + warps[w].count * apart * apart;
  }
  return whole;
}

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads, row_blocks(kItems))
    layer_norm_kernel(const __grid_constant__ LayerNormParams p) {
  using Packs = Pack<T, kPack>;
  const int64_t row = row_index();
  const int width = static_cast<int>(p.width);
  const float count = elements_of_warp<kPack>(width);
  prefetch_shared(p.weight, p.width * sizeof(T));
  prefetch_shared(p.bias, p.width * sizeof(T));
  wait_for_previous();
  let_next_begin();
  if (row >= p.num_tokens) return;
  Row<T, kPack, kItems> values;
  values.load(static_cast<const T*>(p.x) + row * p.x_stride, width);
  const Moments moments = row_moments(values, width, count);
  const float scale = rsqrtf(moments.squares / moments.count + p.eps);
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  values.each(width, [&](const Packs& pack, int c) {
    const Packs factor = load_pack<kPack>(static_cast<const T*>(p.weight) + c);
    const Packs offset = load_pack<kPack>(static_cast<const T*>(p.bias) + c);
    Packs result;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float normed = (to_float(pack.value[j]) - moments.mean) * scale;
      result.value[j] =
          from_float<T>(normed * to_float(factor.value[j]) + to_float(offset.value[j]));
    }
    store_pack(out + c, result);
  });
}

template <class T>
cudaError_t launch_layer_norm(const LayerNormParams& p, cudaStream_t stream) {
  const auto run = [&]<int kItems>(std::integral_constant<int, kItems>) {
    return dispatch_row<T, kItems>(
        p.num_tokens, p.width,
        [&](auto pack, auto items, RowGrid shape) {
          return launch_dependent<layer_norm_kernel<T, pack, items>>(shape.grid, shape.block, 0,
                                                                     stream, p);
        },
        p.x_stride | p.out_stride, p.x, p.weight, p.bias, p.out);
  };
  constexpr int64_t kNarrowBytes = 4096;
  if (p.width * int64_t{sizeof(T)} <= kNarrowBytes) return run(std::integral_constant<int, 2>{});
  return run(std::integral_constant<int, 4>{});
}

}  // namespace lightvl::cuda
