// Activations over rows, computed in float32.
#include "cpu/kernels.h"
#include "cpu/math.h"
#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

template <class T>
void silu_mul_row(const T* gate, const T* up, int64_t width, T* out) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    out[c] = from_float<T>(silu(to_float(gate[c])) * to_float(up[c]));
  }
}

template <class T>
void gelu_row(const T* x, const T* bias, int64_t width, T* out) {
  if (bias == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) out[c] = from_float<T>(gelu(to_float(x[c])));
    return;
  }
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    out[c] = from_float<T>(gelu(to_float(x[c]) + to_float(bias[c])));
  }
}

}  // namespace

void silu_mul(const SiluMulParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      const T* gate = static_cast<const T*>(p.gate_up) + t * p.gate_up_stride;
      silu_mul_row(gate, gate + p.width, p.width, static_cast<T*>(p.out) + t * p.out_stride);
    }
  });
}

void gelu(const GeluParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      gelu_row(static_cast<const T*>(p.x) + t * p.x_stride, static_cast<const T*>(p.bias), p.width,
               static_cast<T*>(p.out) + t * p.out_stride);
    }
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
