// Counter-based noise, word for word that of csrc/cpu/philox.h: token i of each 64 has word i / 16
// of the block with n = 16 * (id / 64) + i % 16.
#pragma once

#include <cstdint>

namespace lightvl::cuda {

__device__ inline uint4 philox(uint64_t seed, uint64_t offset, uint32_t n) {
  uint32_t c0 = n, c1 = static_cast<uint32_t>(offset);
  uint32_t c2 = static_cast<uint32_t>(offset >> 32), c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xd2511f53u, c0), low0 = 0xd2511f53u * c0;
    const uint32_t high1 = __umulhi(0xcd9e8d57u, c2), low1 = 0xcd9e8d57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9e3779b9u;
    k1 += 0xbb67ae85u;
  }
  return {c0, c1, c2, c3};
}

// Standard Gumbel noise: -log of the exponential -log(1 - v), v in steps of 2^-31.
__device__ inline float gumbel(uint32_t random) {
  const float v = (static_cast<float>(random >> 1) + 0.5f) * 0x1p-31f;
  return -logf(-log1pf(-fminf(v, 0x1.fffffep-1f)));
}

}  // namespace lightvl::cuda
