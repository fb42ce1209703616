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

__device__ inline void store_shared(uint32_t to, uint8_t bits) {
  asm volatile("st.shared.b8 [%0], %1;" ::"r"(to), "r"(uint32_t{bits}));
}

// 32 inputs of 8 lines: those of line lane / 4 at 4 * (lane % 4) and 16 further, for each channel.
using Inputs = uint32_t[3][2];

// a / b for small numbers.
__device__ inline int divide(int a, int b) {
  return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
}

// sums * 2^8 + add.
__device__ inline Sums shifted(const Sums& sums, int add) {
  Sums result;
#pragma unroll
  for (int i = 0; i < 4; ++i) result.of[i] = (sums.of[i] << 8) + add;
  return result;
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

// The weights of a tile of 16 outputs for the products of a warp, in registers if kSteps, their
// steps, isn't 0. `digits`, [steps, 3, 32], are the lane's.
template <int kSteps>
struct TileWeights {
  // Groups of 8 lines at once that registers have room for, where kBlocks share a multiprocessor.
  template <int kBlocks>
  static constexpr int kGroups = kBlocks == 2 || kSteps == 1 ? 2 : 1;
  uint4 kept[kSteps][kDigits];

  __device__ TileWeights(const uint8_t* bytes, int steps, int tile) {
    const auto* digits = reinterpret_cast<const uint4*>(bytes) +
                         tile * steps * kDigits * (kDigitBytes / 16) + threadIdx.x % 32;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int d = 0; d < kDigits; ++d) kept[s][d] = digits[(s * kDigits + d) * 32];
    }
  }

  // The sums of each channel plus `start` for kGroups times 8 lines; load(group, step, inputs)
  // fetches. The products with the highest digit come first and are shifted by 8 bits before the
  // next are added: a third of the registers that the digits' sums side by side take.
  template <int kGroups, class Load>
  __device__ void sum(int start, const Load& load, Sums (&sums)[kGroups][3]) const {
    Inputs inputs[kGroups][kSteps];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) load(g, s, inputs[g][s]);
#pragma unroll
      for (int c = 0; c < 3; ++c) sums[g][c] = {};
    }
#pragma unroll
    for (int d = kDigits - 1; d >= 0; --d) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            sums[g][c] = multiply(kept[s][d], inputs[g][s][c], sums[g][c]);
          }
        }
      }
      if (d == 0) return;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int c = 0; c < 3; ++c) sums[g][c] = shifted(sums[g][c], d == 1 ? start : 0);
      }
    }
  }
};

// Weights of many steps stay in shared memory, and each is read once: the digits' sums are kept
// side by side.
template <>
struct TileWeights<0> {
  template <int kBlocks>
  static constexpr int kGroups = 1;
  const uint4* digits;
  int steps;

  __device__ TileWeights(const uint8_t* bytes, int steps, int tile) : steps(steps) {
    digits = reinterpret_cast<const uint4*>(bytes) + tile * steps * kDigits * (kDigitBytes / 16) +
             threadIdx.x % 32;
  }

  template <int kGroups, class Load>
  __device__ void sum(int start, const Load& load, Sums (&sums)[kGroups][3]) const {
    static_assert(kGroups == 1);
    Sums parts[3][kDigits];
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      parts[c][0] = {start, start, start, start};
      parts[c][1] = parts[c][2] = {};
    }
#pragma unroll 1
    for (int s = 0; s < steps; ++s) {
      Inputs inputs;
      load(0, s, inputs);
#pragma unroll
      for (int d = 0; d < kDigits; ++d) {
        const uint4 weights = digits[(s * kDigits + d) * 32];
#pragma unroll
        for (int c = 0; c < 3; ++c) parts[c][d] = multiply(weights, inputs[c], parts[c][d]);
      }
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int high = parts[c][1].of[i] + (parts[c][2].of[i] << 8);
        sums[0][c].of[i] = parts[c][0].of[i] + (high << 8);
      }
    }
  }
};

// Calls emit(group, {sums of each channel}) for groups of 8 lines; load(group, step, inputs).
template <int kBlocks, class Weights, class Load, class Emit>
__device__ void sum_groups(const Weights& weights, const Share& share, int num_groups, int start,
                           const Load& load, const Emit& emit) {
  int group = share.part;
  if constexpr (Weights::template kGroups<kBlocks> == 2) {
#pragma unroll 1
    for (; group + share.parts < num_groups; group += 2 * share.parts) {
      Sums sums[2][3];
      weights.template sum<2>(
          start,
          [&](int g, int step, Inputs& inputs) { load(group + g * share.parts, step, inputs); },
          sums);
      emit(group, sums[0]);
      emit(group + share.parts, sums[1]);
    }
  }
#pragma unroll 1
  for (; group < num_groups; group += share.parts) {
    Sums sums[1][3];
    weights.template sum<1>(
        start, [&](int, int step, Inputs& inputs) { load(group, step, inputs); }, sums);
    emit(group, sums[0]);
  }
}

// Calls f(a warp's weights).
template <class F>
__device__ void with_weights(const uint8_t* digits, int steps, int tile, const F& f) {
  if (steps == 1) return f(TileWeights<1>(digits, steps, tile));
  if (steps == 2) return f(TileWeights<2>(digits, steps, tile));
  if (steps == 3) return f(TileWeights<3>(digits, steps, tile));
  return f(TileWeights<0>(digits, steps, tile));
}

}  // namespace lightvl::cuda
