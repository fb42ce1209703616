// RMS norm of rows of width C, optionally of residual + x, which then replaces residual.
//
// One block a row: each thread keeps its packs of the row in registers as float32, the squares are
// summed over the block, and the row is written from registers: every element is read once.
#pragma once

#include "cuda/common/reduce.cuh"
#include "cuda/common/rows.cuh"

namespace lightvl::cuda {

__device__ inline float inverse_root(float sum, int64_t width, float eps) {
  return rsqrtf(sum / static_cast<float>(width) + eps);
}

// Writes this thread's elements times scale and weight.
template <class T, int kPack, int kItems>
__device__ void scale_row(const float (&row)[kItems][kPack], float scale, const T* weight,
                          int64_t width, T* out) {
  for_packs<kPack, kItems>(width, [&](int i, int64_t c) {
    const auto factor = load_pack<kPack>(weight + c);
    Pack<T, kPack> result;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      result.value[j] = from_float<T>(row[i][j] * scale * to_float(factor.value[j]));
    }
    store_pack(out + c, result);
  });
}

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(1024) rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  const int64_t t = blockIdx.x / p.num_heads, h = blockIdx.x % p.num_heads;
  const T* x = static_cast<const T*>(p.x) + t * p.x_stride_t + h * p.x_stride_h;
  T* out = static_cast<T*>(p.out) + t * p.out_stride_t + h * p.out_stride_h;
  float row[kItems][kPack], squares = 0.0f;
  for_packs<kPack, kItems>(p.width, [&](int i, int64_t c) {
    const auto pack = load_pack<kPack>(x + c);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      row[i][j] = to_float(pack.value[j]);
      squares += row[i][j] * row[i][j];
    }
  });
  const float scale = inverse_root(block_reduce(squares, Sum{}, 0.0f), p.width, p.eps);
  scale_row(row, scale, static_cast<const T*>(p.weight), p.width, out);
}

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(1024)
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormParams p) {
  const T* x = static_cast<const T*>(p.x) + blockIdx.x * p.x_stride;
  T* residual = static_cast<T*>(p.residual) + blockIdx.x * p.residual_stride;
  float row[kItems][kPack], squares = 0.0f;
  for_packs<kPack, kItems>(p.width, [&](int i, int64_t c) {
    const auto pack = load_pack<kPack>(x + c);
    auto sum = load_pack<kPack>(residual + c);
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      sum.value[j] = from_float<T>(to_float(sum.value[j]) + to_float(pack.value[j]));
      row[i][j] = to_float(sum.value[j]);  // the norm is that of the rounded sum
      squares += row[i][j] * row[i][j];
    }
    store_pack(residual + c, sum);
  });
  const float scale = inverse_root(block_reduce(squares, Sum{}, 0.0f), p.width, p.eps);
  scale_row(row, scale, static_cast<const T*>(p.weight), p.width,
            static_cast<T*>(p.out) + blockIdx.x * p.out_stride);
}

template <class T>
cudaError_t launch_rms_norm(const RmsNormParams& p, cudaStream_t stream) {
  const int64_t rows = p.num_tokens * p.num_heads;
  if (rows == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        return dispatch_items<pack>(p.width, [&](auto items, unsigned threads) {
          rms_norm_kernel<T, pack, items><<<static_cast<unsigned>(rows), threads, 0, stream>>>(p);
          return cudaGetLastError();
        });
      },
      p.width, p.x_stride_t | p.x_stride_h | p.out_stride_t | p.out_stride_h, p.x, p.weight, p.out);
}

template <class T>
cudaError_t launch_add_rms_norm(const AddRmsNormParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  return dispatch_pack<T>(
      [&](auto pack) {
        return dispatch_items<pack>(p.width, [&](auto items, unsigned threads) {
          add_rms_norm_kernel<T, pack, items>
              <<<static_cast<unsigned>(p.num_tokens), threads, 0, stream>>>(p);
          return cudaGetLastError();
        });
      },
      p.width, p.x_stride | p.residual_stride | p.out_stride, p.x, p.residual, p.weight, p.out);
}

}  // namespace lightvl::cuda
