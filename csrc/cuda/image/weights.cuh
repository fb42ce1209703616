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
// a = -1/2: (1.5 x - 2.5) x x + 1 below 1, -0.5 (((x - 5) x + 8) x - 4) below 2. Both go the same
// way here; adding zero and multiplying by one change nothing.
__device__ inline double bicubic(double x) {
  x = fabs(x);
  const int high = __double2hiint(x);  // orders positive numbers
  const bool near = high < 0x3ff00000;
  double y = __dsub_rn(__dmul_rn(near ? 1.5 : 1.0, x), near ? 2.5 : 5.0);
  y = __dmul_rn(__dadd_rn(__dmul_rn(y, x), near ? 0.0 : 8.0), x);
  y = __dmul_rn(__dadd_rn(y, near ? 1.0 : -4.0), near ? 1.0 : -0.5);
  return high < 0x40000000 ? y : 0.0;
}

// a / b, correctly rounded, from the correctly rounded 1 / b (Markstein, "Computation of Elementary
// Functions on the IBM RISC System/6000 Processor", 1990).
__device__ inline double quotient(double a, double b, double reciprocal) {
  const double near = __dmul_rn(a, reciprocal);
  return fma(fma(-b, near, a), reciprocal, near);
}

// Rounded half away from zero. What is added to 2^52 has whole numbers in the low word.
__device__ inline int to_fixed_point(double weight) {
  const double scaled = fabs(__dmul_rn(weight, static_cast<double>(1 << cpu::kWeightBits)));
  const int rounded = __double2loint(__dadd_rz(__dadd_rn(scaled, 0.5), 4503599627370496.0));
  return __double2hiint(weight) < 0 ? -rounded : rounded;
}

// Outputs of a block along an axis, and the inputs that they need, from a multiple of 4 on: 12
// bytes of pixels are whole words.
struct BlockSide {
  int begin, count;
  int origin, inputs;

  BlockSide() = default;
  __device__ BlockSide(const ImageAxis& axis, int begin, int count) : begin(begin), count(count) {
    origin = window_of(axis, begin).first & ~3;
    inputs = window_of(axis, begin + count - 1).end - origin;
  }
};

// Where the weights of a block's outputs along an axis go.
struct Digits {
  uint8_t* bytes;  // [tiles, steps, 3, 512], zeroed
  int* base;  // [tiles], first input of a tile's steps, from the side's origin; of 4 a multiple
  int steps;

  __device__ uint8_t* row_of(unsigned o) const {
    return bytes + o / 16 * steps * kDigits * kDigitBytes + o % 8 * 64 + o % 16 / 8 * 4;
  }
  // An input counted from the tile's base.
  __device__ static void put(uint8_t* row, unsigned input, int weight) {
    uint8_t* to = row + input / 32 * kDigits * kDigitBytes + input % 16 / 4 * 16 +
                  input % 32 / 16 * 8 + input % 4;
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      to[d * kDigitBytes] = static_cast<uint8_t>(weight);
      weight = (weight + 128) >> 8;
    }
  }
};

// The weights of output o of a side, by some lanes of a warp; `weights` holds those of the window
// between two steps. All lanes of the warp call it, those without an output too.
__device__ inline void fill_weights(const ImageAxis& axis, const BlockSide& side, int o, bool valid,
                                    int lane, int lanes, double* weights, const Digits& digits) {
  const bool unchanged = axis.in_size == axis.out_size;
  const ImageWindow window = window_of(axis, side.begin + o);
  // Steps that would end behind the block's inputs begin earlier: what is behind isn't there yet.
  const int last_first = (max(side.inputs - digits.steps * kStepInputs, 0) + 3) & ~3;
  const int window_first =
      window_of(axis, side.begin + o / kTileOutputs * kTileOutputs).first - side.origin;
  const int tile_first = min(window_first & ~3, last_first);
  const int taps = valid ? window.end - window.first : 0;
  if (valid && lane == 0 && o % kTileOutputs == 0) digits.base[o / kTileOutputs] = tile_first;
  double input = window.first + lane;
#pragma unroll 2
  for (int i = lane; i < taps; i += lanes, input += lanes) {
    const double x = __dmul_rn(__dadd_rn(__dsub_rn(input, window.center), 0.5), axis.inverse);
    weights[i] = unchanged ? 1.0 : bicubic(x);
  }
  __syncwarp();
  double sum = 0.0;
#pragma unroll 4
  for (int i = 0; i < taps; ++i) sum = __dadd_rn(sum, weights[i]);
  if (sum == 0.0) sum = 1.0;
  const double reciprocal = __drcp_rn(sum);
  uint8_t* row = digits.row_of(o);
  const int first = window.first - side.origin - tile_first;
#pragma unroll 2
  for (int i = lane; i < taps; i += lanes) {
    Digits::put(row, first + i, to_fixed_point(quotient(weights[i], sum, reciprocal)));
  }
}

}  // namespace lightvl::cuda
