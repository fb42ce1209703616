// silu(gate) * up, and the exact GELU of x + bias, over rows, one pack a thread.
#pragma once

#include "cuda/common/elementwise.cuh"

namespace lightvl::cuda {

__device__ inline float silu(float x) { return x / (1.0f + __expf(-x)); }

// x * Phi(x); erfc keeps the lower tail's relative accuracy.
__device__ inline float gelu(float x) { return 0.5f * x * erfcf(-0.707106781f * x); }

template <class T, int kPack>
__global__ void silu_mul_kernel(const __grid_constant__ SiluMulParams p) {
  const int64_t c = pack_begin<kPack>(), t = blockIdx.x;
  if (c >= p.width) return;
  const T* gate_row = static_cast<const T*>(p.gate_up) + t * p.gate_up_stride + c;
  const auto gate = load_pack<kPack>(gate_row), up = load_pack<kPack>(gate_row + p.width);
  Pack<T, kPack> out;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    out.value[j] = from_float<T>(silu(to_float(gate.value[j])) * to_float(up.value[j]));
  }
  store_pack(static_cast<T*>(p.out) + t * p.out_stride + c, out);
}

template <class T, int kPack>
__global__ void gelu_kernel(const __grid_constant__ GeluParams p) {
  const int64_t c = pack_begin<kPack>(), t = blockIdx.x;
  if (c >= p.width) return;
  auto x = load_pack<kPack>(static_cast<const T*>(p.x) + t * p.x_stride + c);
  Pack<T, kPack> bias{};
  if (p.bias != nullptr) bias = load_pack<kPack>(static_cast<const T*>(p.bias) + c);
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    x.value[j] = from_float<T>(gelu(to_float(x.value[j]) + to_float(bias.value[j])));
  }
  store_pack(static_cast<T*>(p.out) + t * p.out_stride + c, x);
}

template <class T>
cudaError_t launch_silu_mul(const SiluMulParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.width == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        silu_mul_kernel<T, pack>
            <<<elementwise_grid<pack>(p.num_tokens, p.width), kElementwiseThreads, 0, stream>>>(p);
        return cudaGetLastError();
      },
      p.width, p.gate_up_stride | p.out_stride, p.gate_up, p.out);
}

template <class T>
cudaError_t launch_gelu(const GeluParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.width == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        gelu_kernel<T, pack>
            <<<elementwise_grid<pack>(p.num_tokens, p.width), kElementwiseThreads, 0, stream>>>(p);
        return cudaGetLastError();
      },
      p.width, p.x_stride | p.out_stride, p.x, p.bias, p.out);
}

}  // namespace lightvl::cuda
