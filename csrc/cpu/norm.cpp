// Norms and the scaled residual over rows of width C, computed in float32.
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

// residual += x, rounded to T; the squares are those of the rounded sums.
template <class T>
float add_sum_of_squares(const T* x, T* residual, int64_t width) {
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < width; ++c) {
    residual[c] = from_float<T>(to_float(residual[c]) + to_float(x[c]));
    sum += to_float(residual[c]) * to_float(residual[c]);
  }
  return sum;
}

template <class T>
void scale_row(const T* x, float scale, const T* weight, int64_t width, T* out) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    out[c] = from_float<T>(to_float(x[c]) * scale * to_float(weight[c]));
  }
}

float inverse_root(float sum, int64_t width, float eps) {
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

// An estimate of the mean that is at most sqrt(width / 64) standard deviations off: squares about
// it are at most 1 + width / 64 times those about the mean, so one pass over the row loses little.
template <class T>
float mean_of_first(const T* x, int64_t width) {
  const int64_t count = width < 64 ? width : 64;
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < count; ++c) sum += to_float(x[c]);
  return sum / static_cast<float>(count);
}

// Sums of a row's distances from `centre` and of their squares.
struct Moments {
  float sum, squares;
};

template <class T>
Moments moments_about(const T* x, int64_t width, float centre) {
  float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum, squares)
  for (int64_t c = 0; c < width; ++c) {
    const float distance = to_float(x[c]) - centre;
    sum += distance;
    squares += distance * distance;
  }
  return {sum, squares};
}

template <class T>
void layer_norm_row(const T* x, const T* weight, const T* bias, float eps, int64_t width, T* out) {
  float centre = mean_of_first(x, width);
  Moments moments = moments_about(x, width, centre);
  float offset = moments.sum / static_cast<float>(width);  // of the mean from the centre
  if (moments.sum * offset > 0.75f * moments.squares) {    // the beginning misled: start again
    centre += offset;
    moments = moments_about(x, width, centre);
    offset = moments.sum / static_cast<float>(width);
  }
  const float centred_squares = std::fmax(moments.squares - moments.sum * offset, 0.0f);
  const float inverse = inverse_root(centred_squares, width, eps);
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const float normed = (to_float(x[c]) - centre - offset) * inverse;
    out[c] = from_float<T>(normed * to_float(weight[c]) + to_float(bias[c]));
  }
}

template <class T>
void scale_add_row(const T* x, const T* bias, const T* scale, const T* residual, int64_t width,
                   T* out) {
  if (bias == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < width; ++c) {
      out[c] = from_float<T>(to_float(residual[c]) + to_float(scale[c]) * to_float(x[c]));
    }
    return;
  }
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const float biased = to_float(x[c]) + to_float(bias[c]);
    out[c] = from_float<T>(to_float(residual[c]) + to_float(scale[c]) * biased);
  }
}

}  // namespace

void rms_norm(const RmsNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row / p.num_heads, h = row % p.num_heads;
      const T* x = static_cast<const T*>(p.x) + t * p.x_stride_t + h * p.x_stride_h;
      T* out = static_cast<T*>(p.out) + t * p.out_stride_t + h * p.out_stride_h;
      const float scale = inverse_root(sum_of_squares(x, p.width), p.width, p.eps);
      scale_row(x, scale, static_cast<const T*>(p.weight), p.width, out);
    }
  });
}

void add_rms_norm(const AddRmsNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      const T* x = static_cast<const T*>(p.x) + t * p.x_stride;
      T* residual = static_cast<T*>(p.residual) + t * p.residual_stride;
      T* out = static_cast<T*>(p.out) + t * p.out_stride;
      const float scale = inverse_root(add_sum_of_squares(x, residual, p.width), p.width, p.eps);
      scale_row(residual, scale, static_cast<const T*>(p.weight), p.width, out);
    }
  });
}

void layer_norm(const LayerNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      layer_norm_row(static_cast<const T*>(p.x) + t * p.x_stride, static_cast<const T*>(p.weight),
                     static_cast<const T*>(p.bias), p.eps, p.width,
                     static_cast<T*>(p.out) + t * p.out_stride);
    }
  });
}

void scale_add(const ScaleAddParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    for (int64_t t = begin; t < end; ++t) {
      scale_add_row(static_cast<const T*>(p.x) + t * p.x_stride, static_cast<const T*>(p.bias),
                    static_cast<const T*>(p.scale),
                    static_cast<const T*>(p.residual) + t * p.residual_stride, p.width,
                    static_cast<T*>(p.out) + t * p.out_stride);
    }
  });
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
