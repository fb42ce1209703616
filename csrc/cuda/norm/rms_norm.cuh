// RMS norm of rows of width C, optionally of residual + x, which then replaces residual.
//
// A row is kept in registers between the sum of its squares and the result: every element is read
// once. While a row is reduced and written, the block's next one is on its way.
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

template <class T, int kPack, int kItems, bool kAhead = true>
__global__ void ROW_REGS
    rms_norm_kernel(const __grid_constant__ RmsNormParams p) {
  using Packs = Pack<T, kPack>;
  prefetch_row(p.weight, p.width * sizeof(T));
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  wait_for_previous();
  let_next_begin();
  const auto offset = [&](int64_t row, int64_t stride_t, int64_t stride_h) {
    if (p.num_heads == 1) return row * stride_t;
    const auto t = static_cast<unsigned>(row) / static_cast<unsigned>(p.num_heads);
    return t * stride_t + (row - t * p.num_heads) * stride_h;
  };
  const auto x = [&](int64_t row) {
    return static_cast<const T*>(p.x) + offset(row, p.x_stride_t, p.x_stride_h);
  };
  const int64_t rows = p.num_tokens * p.num_heads, step = int64_t{gridDim.x} * blockDim.y;
  int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int width = static_cast<int>(p.width);
  WarpExchange<float> exchange;
  Row<T, kPack, kItems> weight, current, next;
  if (row < rows) current.load(x(row), width);
  weight.load(static_cast<const T*>(p.weight), width);
  for (; row < rows; row += step) {
    if (kAhead && row + step < rows) next.load(x(row + step), width);
    float sum = 0.0f;
    current.each(width, [&](const Packs& pack, int) { sum += squares(pack); });
    const float scale = rsqrtf(row_sum(sum, exchange) * inverse_width + p.eps);
    T* out = static_cast<T*>(p.out) + offset(row, p.out_stride_t, p.out_stride_h);
    current.each_with(weight, width, [&](const Packs& pack, const Packs& factor, int c) {
      store_pack(out + c, scaled(pack, scale, factor));
    });
    if constexpr (kAhead) {
      current = next;
    } else if (row + step < rows) {
      current.load(x(row + step), width);
    }
  }
}

template <class T, int kPack, int kItems, bool kAhead = true>
__global__ void ROW_REGS
    add_rms_norm_kernel(const __grid_constant__ AddRmsNormParams p) {
  using Packs = Pack<T, kPack>;
  prefetch_row(p.weight, p.width * sizeof(T));
  const float inverse_width = 1.0f / static_cast<float>(p.width);
  wait_for_previous();
  let_next_begin();
  const auto x = [&](int64_t row) { return static_cast<const T*>(p.x) + row * p.x_stride; };
  const auto residual = [&](int64_t row) {
    return static_cast<T*>(p.residual) + row * p.residual_stride;
  };
  const int64_t step = int64_t{gridDim.x} * blockDim.y;
  int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  const int width = static_cast<int>(p.width);
  WarpExchange<float> exchange;
  Row<T, kPack, kItems> weight, current, addend, next, next_addend;
  if (row < p.num_tokens) {
    current.load(residual(row), width);
    addend.load(x(row), width);
  }
  weight.load(static_cast<const T*>(p.weight), width);
  for (; row < p.num_tokens; row += step) {
    if (kAhead && row + step < p.num_tokens) {
      next.load(residual(row + step), width);
      next_addend.load(x(row + step), width);
    }
    float sum = 0.0f;
    T* total_row = residual(row);
    current.each_with(addend, width, [&](Packs& total, const Packs& other, int c) {
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        total.value[j] = from_float<T>(to_float(total.value[j]) + to_float(other.value[j]));
      }
      store_pack(total_row + c, total);
      sum += squares(total);  // the norm is that of the rounded sum
    });
    const float scale = rsqrtf(row_sum(sum, exchange) * inverse_width + p.eps);
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    current.each_with(weight, width, [&](const Packs& pack, const Packs& factor, int c) {
      store_pack(out + c, scaled(pack, scale, factor));
    });
    if constexpr (kAhead) {
      current = next;
      addend = next_addend;
    } else if (row + step < p.num_tokens) {
      current.load(residual(row + step), width);
      addend.load(x(row + step), width);
    }
  }
}

template <class T>
cudaError_t launch_rms_norm(const RmsNormParams& p, cudaStream_t stream) {
  const int64_t rows = p.num_tokens * p.num_heads;
  return dispatch_row<T>(
      rows, p.width,
      [&](auto pack, auto items, RowGrid shape) {
        return launch_dependent(rms_norm_kernel<T, pack, items>, shape.grid, shape.block, stream,
                                p);
      },
      p.x_stride_t | p.x_stride_h | p.out_stride_t | p.out_stride_h, p.x, p.weight, p.out);
}

template <class T>
cudaError_t launch_add_rms_norm(const AddRmsNormParams& p, cudaStream_t stream) {
  return dispatch_row<T>(
      p.num_tokens, p.width,
      [&](auto pack, auto items, RowGrid shape) {
        return launch_dependent(add_rms_norm_kernel<T, pack, items>, shape.grid, shape.block,
                                stream, p);
      },
      p.x_stride | p.residual_stride | p.out_stride, p.x, p.residual, p.weight, p.out);
}

}  // namespace lightvl::cuda
