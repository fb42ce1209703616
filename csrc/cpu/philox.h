// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random
// Numbers: As Easy as 1, 2, 3", 2011), so that a token's noise depends on nothing but (seed,
// offset, token id). Key: seed; counter: (n, offset, 0). Of each 64 tokens in a row, token i has
// word i / 16 of the block with n = 16 * (id / 64) + i % 16: four tokens share a block's work, and
// neighbours lie in neighbouring vector lanes.
#pragma once

#include <cstdint>

#include "cpu/math.h"

namespace lightvl::cpu::LIGHTVL_ISA {

constexpr int kNoiseBlock = 64;

struct NoiseKey {
  uint64_t seed;
  uint64_t offset;
};

struct PhiloxWords {
  uint32_t w0, w1, w2, w3;
};

inline PhiloxWords philox(NoiseKey key, uint32_t n) {
  uint32_t c0 = n, c1 = static_cast<uint32_t>(key.offset);
  uint32_t c2 = static_cast<uint32_t>(key.offset >> 32), c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xd2511f53u} * c0, product1 = uint64_t{0xcd9e8d57u} * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {c0, c1, c2, c3};
}

// The largest value that gumbel() returns: -log of its smallest exponential, 2^-32.
constexpr float kMaxGumbel = 22.1807098f;

// Standard Gumbel noise, -log of an exponential variable. That one is -log(1 - v) of v in steps of
// 2^-31: finest where it is small, at the noise that wins, by Kahan's exact form of log1p.
inline float gumbel(uint32_t random) {
  const float steps = static_cast<float>(static_cast<int32_t>(random >> 1)) + 0.5f;
  const float uniform = steps * 0x1p-31f;
  const float v = uniform < 0x1.fffffep-1f ? uniform : 0x1.fffffep-1f;
  const float complement = 1.0f - v;
  const float kept = 1.0f - complement;  // v as far as the complement holds it
  const float correction = v / (kept == 0.0f ? 1.0f : kept);
  const float exponential = kept == 0.0f ? v : -fast_log(complement) * correction;
  return -fast_log(exponential);
}

// Noise of tokens [64 * block, 64 * block + 64).
inline void fill_noise(NoiseKey key, int64_t block, float* noise) {
  uint32_t random[kNoiseBlock];
  const uint32_t first = static_cast<uint32_t>(block) * 16;
#pragma omp simd
  for (uint32_t lane = 0; lane < 16; ++lane) {
    const PhiloxWords words = philox(key, first + lane);
    random[lane] = words.w0;
    random[lane + 16] = words.w1;
    random[lane + 32] = words.w2;
    random[lane + 48] = words.w3;
  }
#pragma omp simd
  for (int i = 0; i < kNoiseBlock; ++i) noise[i] = gumbel(random[i]);
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
