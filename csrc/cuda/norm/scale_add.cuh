// out = residual + scale * (x + bias) over rows of width C, one pack a thread.
#pragma once

#include "cuda/common/elementwise.cuh"

namespace lightvl::cuda {

template <class T, int kPack>
__global__ void scale_add_kernel(const __grid_constant__ ScaleAddParams p) {
  const int64_t c = pack_begin<kPack>(), t = blockIdx.x;
  if (c >= p.width) return;
  const auto x = load_pack<kPack>(static_cast<const T*>(p.x) + t * p.x_stride + c);
  const auto residual =
      load_pack<kPack>(static_cast<const T*>(p.residual) + t * p.residual_stride + c);
  const auto scale = load_pack<kPack>(static_cast<const T*>(p.scale) + c);
  Pack<T, kPack> bias{};
  if (p.bias != nullptr) bias = load_pack<kPack>(static_cast<const T*>(p.bias) + c);
  Pack<T, kPack> out;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    const float biased = to_float(x.value[j]) + to_float(bias.value[j]);
    out.value[j] = from_float<T>(to_float(residual.value[j]) + to_float(scale.value[j]) * biased);
  }
  store_pack(static_cast<T*>(p.out) + t * p.out_stride + c, out);
}

template <class T>
cudaError_t launch_scale_add(const ScaleAddParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.width == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        scale_add_kernel<T, pack>
            <<<elementwise_grid<pack>(p.num_tokens, p.width), kElementwiseThreads, 0, stream>>>(p);
        return cudaGetLastError();
      },
      p.width, p.x_stride | p.residual_stride | p.out_stride, p.x, p.bias, p.scale, p.residual,
      p.out);
}

}  // namespace lightvl::cuda
