// Pillow's weights of one axis for the outputs of a block, computed where they are used, in double
// and operation by operation as Pillow does: no operation may be fused with another.
//
// A weight w of 22 fraction bits is stored as three signed bytes, w = d0 + 2^8 d1 + 2^16 d2, each
// in the place where the matrix product of 8 outputs and 32 inputs wants it.
#pragma once

#include <cuda_runtime.h>

#include "cpu/image_plan.h"
#include "cuda/image/layout.h"

namespace lightvl::cuda {

struct ImageWindow {
  int first, end;
  double center;
};

__device__ inline ImageWindow window_of(const ImageAxis& axis, int output) {
  if (axis.in_size == axis.out_size) return {output, output + 1, 0.0};
  const double center = __dmul_rn(output + 0.5, axis.scale);
  const int first = static_cast<int>(__dadd_rn(__dsub_rn(center, axis.support), 0.5));
  const int end = static_cast<int>(__dadd_rn(__dadd_rn(center, axis.support), 0.5));
  return {max(first, 0), min(end, axis.in_size), center};
}

// The cubic of Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981, with
// a = -1/2.
__device__ inline double bicubic(double x) {
  x = fabs(x);
  if (x < 1.0) {
    const double y = __dmul_rn(__dmul_rn(__dsub_rn(__dmul_rn(1.5, x), 2.5), x), x);
    return __dadd_rn(y, 1.0);
  }
  if (x < 2.0) {
    const double y = __dmul_rn(__dadd_rn(__dmul_rn(__dsub_rn(x, 5.0), x), 8.0), x);
    return __dmul_rn(__dsub_rn(y, 4.0), -0.5);
  }
  return 0.0;
}

// a / b, correctly rounded, from the correctly rounded 1 / b (Markstein, "Computation of Elementary
// Functions on the IBM RISC System/6000 Processor", 1990).
__device__ inline double quotient(double a, double b, double reciprocal) {
  const double near = __dmul_rn(a, reciprocal);
  return fma(fma(-b, near, a), reciprocal, near);
}

__device__ inline int to_fixed_point(double weight) {
  const double scaled = __dmul_rn(weight, static_cast<double>(1 << cpu::kWeightBits));
  return static_cast<int>(weight < 0 ? __dsub_rn(scaled, 0.5) : __dadd_rn(scaled, 0.5));
}

// Weights of outputs [begin, begin + count); inputs are counted from `origin`. Four lanes share an
// output; `scratch` holds max_taps doubles for each.
struct BlockWeights {
  uint8_t* digits;  // [tiles, steps, 3, 64 words], zeroed
  int* base;        // [tiles], first input of a tile's steps, a multiple of 4

  __device__ void fill(const ImageAxis& axis, int begin, int count, int origin, int steps,
                       int max_taps, double* scratch) const {
    const int lane = threadIdx.x % 4;
    const bool unchanged = axis.in_size == axis.out_size;
    for (int o = threadIdx.x / 4; o < (count + 7) / 8 * 8; o += kImageThreads / 4) {
      const ImageWindow window = window_of(axis, begin + min(o, count - 1));
      const int tile = o / kTileOutputs;
      // A warp's eight outputs are one tile.
      const int tile_first = (__shfl_sync(0xffffffffu, window.first, 0) - origin) & ~3;
      if (lane == 0 && o % kTileOutputs == 0) base[tile] = tile_first;
      const int taps = o < count ? window.end - window.first : 0;
      double* weights = scratch + min(o, count - 1) * max_taps;
      for (int i = lane; i < taps; i += 4) {
        const double x =
            __dmul_rn(__dadd_rn(__dsub_rn(i + window.first, window.center), 0.5), axis.inverse);
        weights[i] = unchanged ? 1.0 : bicubic(x);
      }
      __syncwarp();
      double sum = 0.0;
      for (int i = 0; i < taps; ++i) sum = __dadd_rn(sum, weights[i]);
      const double reciprocal = __drcp_rn(sum);
      for (int i = lane; i < taps; i += 4) {
        const double weight = sum != 0.0 ? quotient(weights[i], sum, reciprocal) : weights[i];
        put(o, window.first - origin - tile_first + i, steps, to_fixed_point(weight));
      }
    }
  }

 private:
  __device__ void put(int o, int input, int steps, int weight) const {
    const int word = o % 8 * 8 + input % 16 / 4 * 2 + input % 32 / 16;
    uint8_t* to =
        digits + ((o / 8 * steps + input / 32) * kDigits * kDigitWords + word) * 4 + input % 4;
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      const int digit = static_cast<int8_t>(weight);
      to[d * kDigitWords * 4] = static_cast<uint8_t>(digit);
      weight = (weight - digit) >> 8;
    }
  }
};

}  // namespace lightvl::cuda
