// How scores compare: bits that sort like floats, and keys that also say whose a score is.
#pragma once

#include <cuda_runtime.h>

#include <cfloat>
#include <cstdint>

namespace lightvl::cuda {

constexpr float kGreedyTemperature = 1e-5f;

// NaN becomes -inf, +inf the largest float.
__device__ inline float sanitised(float x) { return x == x ? fminf(x, FLT_MAX) : -INFINITY; }

// Bits that compare like the floats that they stand for, both zeros being one, and back.
__device__ inline uint32_t ordered_bits(float x) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// A score and its id in one number: the larger the better, the lowest id wins a tie.
using Key = unsigned long long;

__device__ inline Key make_key(float score, int id) {
  return (Key{ordered_bits(score)} << 32) | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ inline float score_of(Key key) {
  return from_ordered_bits(static_cast<uint32_t>(key >> 32));
}
__device__ inline int id_of(Key key) {
  return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key));
}

constexpr Key kNoKey = 0;

// The best key of the warp; every lane gets it.
__device__ inline Key warp_best(Key own) {
  const auto high = static_cast<uint32_t>(own >> 32);
  const uint32_t best = __reduce_max_sync(0xffffffffu, high);
  const uint32_t low = high == best ? static_cast<uint32_t>(own) : 0;
  return (Key{best} << 32) | __reduce_max_sync(0xffffffffu, low);
}

}  // namespace lightvl::cuda
