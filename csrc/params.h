// Parameter blocks of the kernels: plain data, shared by the CPU and CUDA kernels.
//
// Dims: S sequences, T tokens, H/K query/KV heads, D head dim, C hidden, V vocabulary, N pages,
// P page size. Pointers are typed where the dtype is fixed and `void*` where it is `dtype`.
// Strides count elements; the last dimension is always contiguous.
#pragma once

#include <cstdint>

namespace lightvl {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kUInt8 };

struct RmsNormParams {
  const void* x;       // [T, H, C]; H is 1 for a 2-D input
  const void* weight;  // [C]
  void* out;           // [T, H, C]
  int64_t num_tokens, num_heads, width;
  int64_t x_stride_t, x_stride_h;
  int64_t out_stride_t, out_stride_h;
  float eps;
  DType dtype;
};

}  // namespace lightvl
