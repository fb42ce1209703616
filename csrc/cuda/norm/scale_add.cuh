// out = residual + scale * (x + bias) over rows of width C.
#pragma once

#include "cuda/common/elementwise.cuh"

namespace lightvl::cuda {

template <class T, int kPackSize>
struct ScaleAdd {
  static constexpr int kPack = kPackSize;
  struct Inputs {
    Pack<T, kPack> x, residual, scale, bias;
  };
  ScaleAddParams p;

  __device__ Inputs load(int64_t row, int64_t c) const {
    Inputs in{.x = load_pack<kPack>(static_cast<const T*>(p.x) + row * p.x_stride + c),
              .residual =
                  load_pack<kPack>(static_cast<const T*>(p.residual) + row * p.residual_stride + c),
              .scale = load_pack<kPack>(static_cast<const T*>(p.scale) + c)};
    if (p.bias != nullptr) in.bias = load_pack<kPack>(static_cast<const T*>(p.bias) + c);
    return in;
  }

  __device__ void store(int64_t row, int64_t c, const Inputs& in) const {
    Pack<T, kPack> out;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const float bias = p.bias == nullptr ? 0.0f : to_float(in.bias.value[j]);
      out.value[j] = from_float<T>(to_float(in.residual.value[j]) +
                                   to_float(in.scale.value[j]) * (to_float(in.x.value[j]) + bias));
    }
    store_pack(static_cast<T*>(p.out) + row * p.out_stride + c, out);
  }
};

template <class T>
cudaError_t launch_scale_add(const ScaleAddParams& p, cudaStream_t stream) {
  return dispatch_pack<T>(
      [&](auto pack) {
        return launch_elementwise(ScaleAdd<T, pack>{p}, p.num_tokens, p.width, stream);
      },
      p.width, p.x_stride | p.residual_stride | p.out_stride, p.x, p.bias, p.scale, p.residual,
      p.out);
}

}  // namespace lightvl::cuda
