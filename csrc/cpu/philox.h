// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", 2011), one counter a token, so that a token's noise depends on
// nothing but (seed, offset, token id).
#pragma once

#include <cstdint>

#include "cpu/math.h"

namespace lightvl::cpu::LIGHTVL_ISA {

struct NoiseKey {
  uint64_t seed;
  uint64_t offset;
};

// First word of the block of counter (token, offset, 0) under the key `seed`.
inline uint32_t philox(NoiseKey key, uint32_t token) {
  uint32_t c0 = token, c1 = static_cast<uint32_t>(key.offset);
  uint32_t c2 = static_cast<uint32_t>(key.offset >> 32), c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * c0, product1 = uint64_t{0xcd9e8d57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return c0;
}

// The largest value that gumbel() returns: -log of its smallest exponential, 2^-32.
constexpr float kMaxGumbel = 22.1807098f;

// Standard Gumbel noise, -log of an exponential variable. That one is -log(1 - v) of v in steps of
// 2^-31: finest where it is small, at the noise that wins, by Kahan's exact form of log1p.
inline float gumbel(NoiseKey key, uint32_t token) {
  const float steps = static_cast<float>(static_cast<int32_t>(philox(key, token) >> 1)) + 0.5f;
  const float uniform = steps * 0x1p-31f;
  const float v = uniform < 0x1.fffffep-1f ? uniform : 0x1.fffffep-1f;
  const float complement = 1.0f - v;
  const float kept = 1.0f - complement;  // v as far as the complement holds it
  const float correction = v / (kept == 0.0f ? 1.0f : kept);
  const float exponential = kept == 0.0f ? v : -fast_log(complement) * correction;
  return -fast_log(exponential);
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
