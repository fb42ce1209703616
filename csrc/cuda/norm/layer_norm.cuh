// Layer norm of rows of width C: mean and then variance about it, from registers, one read of x.
#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/common/rows.cuh"

namespace lightvl::cuda {

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(1024)
    layer_norm_kernel(const __grid_constant__ LayerNormParams p) {
  const T* x = static_cast<const T*>(p.x) + blockIdx.x * p.x_stride;
  const T* weight = static_cast<const T*>(p.weight);
  const T* bias = static_cast<const T*>(p.bias);
  T* out = static_cast<T*>(p.out) + blockIdx.x * p.out_stride;
  const float width = static_cast<float>(p.width);
  float row[kItems][kPack], sum = 0.0f, squares = 0.0f;
  for_packs<kPack, kItems>(p.width, [&](int i, int64_t c) {
    const auto pack = load_pack<kPack>(x + c);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      row[i][j] = to_float(pack.value[j]);
      sum += row[i][j];
    }
  });
  const float mean = block_reduce(sum, Sum{}, 0.0f) / width;
  for_packs<kPack, kItems>(p.width, [&](int i, int64_t) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      row[i][j] -= mean;
      squares += row[i][j] * row[i][j];
    }
  });
  const float scale = rsqrtf(block_reduce(squares, Sum{}, 0.0f) / width + p.eps);
  for_packs<kPack, kItems>(p.width, [&](int i, int64_t c) {
    const auto factor = load_pack<kPack>(weight + c), offset = load_pack<kPack>(bias + c);
    Pack<T, kPack> result;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      result.value[j] =
          from_float<T>(row[i][j] * scale * to_float(factor.value[j]) + to_float(offset.value[j]));
    }
    store_pack(out + c, result);
  });
}

template <class T>
cudaError_t launch_layer_norm(const LayerNormParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        return dispatch_items<pack>(p.width, [&](auto items, unsigned threads) {
          layer_norm_kernel<T, pack, items>
              <<<static_cast<unsigned>(p.num_tokens), threads, 0, stream>>>(p);
          return cudaGetLastError();
        });
      },
      p.width, p.x_stride | p.out_stride, p.x, p.weight, p.bias, p.out);
}

}  // namespace lightvl::cuda
