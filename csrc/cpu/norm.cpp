// Norms over rows of width C, accumulated in float32.
#include <cmath>

#include "cpu/kernels.h"
#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

template <class T>
float sum_of_squares(const T* x, int64_t width) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) sum += to_float(x[c]) * to_float(x[c]);
  return sum;
}

template <class T>
void rms_norm_row(const T* x, const T* weight, float eps, int64_t width, T* out) {
  const float inverse = 1.0f / std::sqrt(sum_of_squares(x, width) / width + eps);
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    out[c] = from_float<T>(to_float(x[c]) * inverse * to_float(weight[c]));
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row / p.num_heads, h = row % p.num_heads;
      rms_norm_row(static_cast<const T*>(p.x) + t * p.x_stride_t + h * p.x_stride_h,
                   static_cast<const T*>(p.weight), p.eps, p.width,
                   static_cast<T*>(p.out) + t * p.out_stride_t + h * p.out_stride_h);
    }
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
