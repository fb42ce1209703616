// One pass of a resize: weighted sums along lines of 8-bit values, on the tensor cores.
//
// 16 lines, 32 inputs and 8 outputs make one product of integers; a weight has three digits, so
// three products make the exact sum of 22-bit weights.
#pragma once

#include <cuda_runtime.h>

#include "cpu/image_plan.h"
#include "cuda/image/layout.h"

namespace lightvl::cuda {

// d += a * b; a: 16 lines x 32 unsigned inputs, b: 32 inputs x 8 signed weights.
__device__ inline void multiply(int (&d)[4], const uint32_t (&a)[4], uint2 b) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
}

// Bits 22 to 29 of both sums, clamped, in the two low bytes.
__device__ inline uint32_t rounded_pair(int first, int second) {
  uint32_t result;
  asm("cvt.pack.sat.u8.s32.b32 %0, %1, %2, 0;"
      : "=r"(result)
      : "r"(second >> cpu::kWeightBits), "r"(first >> cpu::kWeightBits));
  return result;
}

// What a pass reads.
struct Lines {
  const uint8_t* data;  // line l begins at l * stride, a multiple of 16
  int stride;
  int num_groups;       // of 16 lines
  const uint2* digits;  // [tiles, steps, 3, 32]
  const int* base;      // [tiles]
  int num_tiles;        // of 8 outputs, at most the number of warps
  int steps;
};

// Calls emit(group, output, {line, output}, {line, output + 1}, {line + 8, …}, …) for lines of
// 16 * group + lane / 4 and outputs of 8 * tile + 2 * (lane % 4). kSteps: 0 if more than 4.
template <int kSteps, class Emit>
__device__ void resample_steps(const Lines& lines, Emit&& emit) {
  constexpr int kKept = kSteps == 0 ? 1 : kSteps;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int tile = warp % lines.num_tiles, parts = kImageWarps / lines.num_tiles;
  if (warp / lines.num_tiles >= parts) return;
  const int steps = kSteps == 0 ? lines.steps : kSteps;
  const uint2* digits = lines.digits + tile * steps * kDigits * 32 + lane;
  uint2 kept[kKept][kDigits];
#pragma unroll
  for (int s = 0; s < kKept; ++s) {
#pragma unroll
    for (int d = 0; d < kDigits; ++d) kept[s][d] = digits[(s * kDigits + d) * 32];
  }
  const uint8_t* from = lines.data + lane / 4 * lines.stride + lines.base[tile] + lane % 4 * 4;
  const int half = 8 * lines.stride;
  for (int group = warp / lines.num_tiles; group < lines.num_groups; group += parts) {
    const uint8_t* at = from + group * 16 * lines.stride;
    int sum[kDigits][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[0][i] = 1 << (cpu::kWeightBits - 1);
#pragma unroll
    for (int s = 0; s < (kSteps == 0 ? steps : kSteps); ++s, at += kStepInputs) {
      const uint32_t a[4] = {*reinterpret_cast<const uint32_t*>(at),
                             *reinterpret_cast<const uint32_t*>(at + half),
                             *reinterpret_cast<const uint32_t*>(at + 16),
                             *reinterpret_cast<const uint32_t*>(at + half + 16)};
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        multiply(sum[d], a, kSteps == 0 ? digits[(s * kDigits + d) * 32] : kept[s % kKept][d]);
      }
    }
    int total[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) total[i] = sum[0][i] + ((sum[1][i] + (sum[2][i] << 8)) << 8);
    emit(group, tile * kTileOutputs + lane % 4 * 2, rounded_pair(total[0], total[1]),
         rounded_pair(total[2], total[3]));
  }
}

template <class Emit>
__device__ void resample(const Lines& lines, Emit&& emit) {
  switch (lines.steps) {
    case 1:
      return resample_steps<1>(lines, emit);
    case 2:
      return resample_steps<2>(lines, emit);
    case 3:
      return resample_steps<3>(lines, emit);
    case 4:
      return resample_steps<4>(lines, emit);
    default:
      return resample_steps<0>(lines, emit);
  }
}

}  // namespace lightvl::cuda
