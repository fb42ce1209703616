// RMS norm of rows of width C, optionally of residual + x, which then replaces residual.
#pragma once

#include "cuda/common/rows.cuh"

namespace lightvl::cuda {

template <class T, int kPack>
__device__ float squares(const Pack<T, kPack>& pack) {
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kPack; ++j) sum += to_float(pack.value[j]) * to_float(pack.value[j]);
  return sum;
}

template <class T, int kPack>
__device__ Pack<T, kPack> scaled(const Pack<T, kPack>& pack, float scale,
                                 const Pack<T, kPack>& weight) {
  Pack<T, kPack> result;
#pragma unroll
  for (int j = 0; j < kPack; ++j) {
    result.value[j] = from_float<T>(to_float(pack.value[j]) * scale * to_float(weight.value[j]));
  }
  return result;
}

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads, row_blocks(kItems))
    rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  using Packs = Pack<T, kPack>;
  const auto row = static_cast<unsigned>(row_index()), heads = static_cast<unsigned>(p.num_heads);
  const int64_t t = heads == 1 ? row : row / heads, h = heads == 1 ? 0 : row % heads;
  const T* x = static_cast<const T*>(p.x) + t * p.x_stride_t + h * p.x_stride_h;
  T* out = static_cast<T*>(p.out) + t * p.out_stride_t + h * p.out_stride_h;
  const int width = static_cast<int>(p.width);
  const float inverse_width = 1.0f / static_cast<float>(width);
  prefetch_shared(p.weight, p.width * sizeof(T));
  wait_for_previous();
  let_next_begin();
  if (t >= p.num_tokens) return;
  Row<T, kPack, kItems> values, weight;
  values.load(x, width);
  weight.load(static_cast<const T*>(p.weight), width);
  float sum = 0.0f;
  values.each(width, [&](const Packs& pack, int) { sum += squares(pack); });
  const float scale = rsqrtf(row_sum(sum) * inverse_width + p.eps);
  values.each_with(weight, width, [&](const Packs& pack, const Packs& factor, int c) {
    store_pack(out + c, scaled(pack, scale, factor));
  });
}

template <class T, int kPack, int kItems>
__global__ void __launch_bounds__(kMaxRowThreads, kItems <= 4 ? 2 : 1)
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormParams p) {
  using Packs = Pack<T, kPack>;
  const int64_t row = row_index();
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
  T* out = static_cast<T*>(p.out) + row * p.out_stride;
  const int width = static_cast<int>(p.width);
  const float inverse_width = 1.0f / static_cast<float>(width);
  prefetch_shared(p.weight, p.width * sizeof(T));
  wait_for_previous();
  let_next_begin();
  if (row >= p.num_tokens) return;
  Row<T, kPack, kItems> total, addend, weight;
  total.load(residual, width);
  addend.load(x, width);
  weight.load(static_cast<const T*>(p.weight), width);
  float sum = 0.0f;
  total.each_with(addend, width, [&](Packs& pack, const Packs& other, int c) {
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      pack.value[j] = from_float<T>(to_float(pack.value[j]) + to_float(other.value[j]));
    }
    store_pack(residual + c, pack);
    sum += squares(pack);  // the norm is that of the rounded sum
  });
  const float scale = rsqrtf(row_sum(sum) * inverse_width + p.eps);
  total.each_with(weight, width, [&](const Packs& pack, const Packs& factor, int c) {
    store_pack(out + c, scaled(pack, scale, factor));
  });
}

template <class T>
cudaError_t launch_rms_norm(const RmsNormParams& p, cudaStream_t stream) {
  return dispatch_row<T, 2>(
      p.num_tokens * p.num_heads, p.width,
      [&](auto pack, auto items, RowGrid shape) {
        return launch_dependent<rms_norm_kernel<T, pack, items>>(shape.grid, shape.block, 0, stream,
                                                                 p);
      },
      p.x_stride_t | p.x_stride_h | p.out_stride_t | p.out_stride_h, p.x, p.weight, p.out);
}

template <class T>
cudaError_t launch_add_rms_norm(const AddRmsNormParams& p, cudaStream_t stream) {
  return dispatch_row<T, 2>(
      p.num_tokens, p.width,
      [&](auto pack, auto items, RowGrid shape) {
        return launch_dependent<add_rms_norm_kernel<T, pack, items>>(shape.grid, shape.block, 0,
                                                                     stream, p);
      },
      p.x_stride | p.residual_stride | p.out_stride, p.x, p.residual, p.weight, p.out);
}

}  // namespace lightvl::cuda
