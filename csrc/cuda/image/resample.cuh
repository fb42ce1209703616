// One pass of a resize: weighted sums along lines of 8-bit values, on the tensor cores.
//
// 16 outputs, 32 inputs and 8 lines make one product of integers; a weight has three digits, so
// three products make the exact sum of 22-bit weights. The three channels share the weights.
#pragma once

#include <cuda_runtime.h>

#include "cpu/image_plan.h"
#include "cuda/image/layout.h"

namespace lightvl::cuda {

// Sums of a channel of outputs lane / 4 and 8 further, each of lines 2 * (lane % 4) and one more.
struct Sums {
  int of[4];
};

// a * b + c; a: 16 outputs x 32 signed weights, b: 32 unsigned inputs x 8 lines.
__device__ inline Sums multiply(const uint4& a, const uint32_t (&b)[2], const Sums& c) {
  Sums d;
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%10,%11,%12,%13};"
      : "=r"(d.of[0]), "=r"(d.of[1]), "=r"(d.of[2]), "=r"(d.of[3])
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[0]), "r"(b[1]), "r"(c.of[0]), "r"(c.of[1]),
        "r"(c.of[2]), "r"(c.of[3]));
  return d;
}

// Bits 22 to 29 of both sums, clamped, in the two low bytes.
__device__ inline uint16_t rounded_pair(int first, int second) {
  uint32_t result;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;"
      : "=r"(result)
      : "r"(second >> cpu::kWeightBits), "r"(first >> cpu::kWeightBits));
  return static_cast<uint16_t>(result);
}

// Addresses in shared memory as numbers: what is added to a pointer costs an instruction more.
__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ inline void store_shared(uint32_t to, uint16_t bits) {
  asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(bits));
}

// 32 inputs of 8 lines: those of line lane / 4 at 4 * (lane % 4) and 16 further, for each channel.
using Inputs = uint32_t[3][2];

// a / b for small numbers.
__device__ inline int divide(int a, int b) {
  return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

// What a warp does of a pass: a tile of 16 outputs, of all groups of 8 lines every parts-th.
struct Share {
  int tile, part, parts;

  __device__ explicit Share(int num_tiles) {
    const int warp = threadIdx.x / 32;
    parts = divide(kImageWarps, num_tiles);
    part = divide(warp, num_tiles);
    tile = warp - part * num_tiles;
    if (part >= parts) part = 1 << 30;  // nothing
  }
};

// The sums of the three digits together.
__device__ inline Sums joined(const Sums (&digits)[kDigits]) {
  Sums sums;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    sums.of[i] = digits[0].of[i] + ((digits[1].of[i] + (digits[2].of[i] << 8)) << 8);
  }
  return sums;
}

// Calls emit(group, {sums of each channel, plus `start`}) for groups of 8 lines. load(group, step,
// inputs) fetches; `digits`, [steps, 3, 32], are the lane's. kSteps: 0 if more than 2.
template <int kSteps, class Load, class Emit>
__device__ void resample_steps(const uint4* digits, int steps, const Share& share, int num_groups,
                               int start, const Load& load, const Emit& emit) {
  constexpr int kKept = kSteps == 0 ? 1 : kSteps;
  const Sums starts[kDigits] = {{start, start, start, start}, {}, {}};
  uint4 kept[kKept][kDigits];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int d = 0; d < kDigits; ++d) kept[s][d] = digits[(s * kDigits + d) * 32];
  }
  for (int group = share.part; group < num_groups; group += share.parts) {
    Sums sums[3][kDigits];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#pragma unroll
      for (int d = 0; d < kDigits; ++d) sums[c][d] = starts[d];
    }
#pragma unroll
    for (int s = 0; s < (kSteps == 0 ? steps : kSteps); ++s) {
      Inputs inputs;
      load(group, s, inputs);
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        const uint4 weights = kSteps == 0 ? digits[(s * kDigits + d) * 32] : kept[s % kKept][d];
#pragma unroll
        for (int c = 0; c < 3; ++c) sums[c][d] = multiply(weights, inputs[c], sums[c][d]);
      }
    }
    const Sums joint[3] = {joined(sums[0]), joined(sums[1]), joined(sums[2])};
    emit(group, joint);
  }
}

template <class Load, class Emit>
__device__ void resample(const uint8_t* digits, int steps, const Share& share, int num_groups,
                         int start, const Load& load, const Emit& emit) {
  const uint4* own = reinterpret_cast<const uint4*>(digits) +
                     share.tile * steps * kDigits * (kDigitBytes / 16) + threadIdx.x % 32;
  if (steps == 1) return resample_steps<1>(own, steps, share, num_groups, start, load, emit);
  if (steps == 2) return resample_steps<2>(own, steps, share, num_groups, start, load, emit);
  return resample_steps<0>(own, steps, share, num_groups, start, load, emit);
}

}  // namespace lightvl::cuda
