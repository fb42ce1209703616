// exp, log and the normal distribution in float32 without branches, so that loops over them become
// vector code. Coefficients: least maximum error over the reduced range, fitted in float64. Errors
// are checked against float64 by tests/cpp/test_math.cpp.
#pragma once

#include <bit>
#include <cstdint>

namespace lightvl::cpu::LIGHTVL_ISA {

// e^x, relative error below 2e-7. Results below 2^-126 are 0, above 2^127.5 infinite.
inline float fast_exp(float x) {
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
  constexpr float kRounder = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const float bounded = x > 89.0f ? 89.0f : x;
  const float shifted = bounded * kLog2E + kRounder;
  const float n = shifted - kRounder;
  const float r = (bounded - n * kLn2High) - n * kLn2Low;
  float p = 0x1.6a2430p-10f;
  p = p * r + 0x1.1239e4p-7f;
  p = p * r + 0x1.5558f2p-5f;
  p = p * r + 0x1.555492p-3f;
  p = p * r + 0x1.fffffcp-2f;
  p = (p * r + 1.0f) * r + 1.0f;
  const uint32_t scale = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u;
  const float result = p * std::bit_cast<float>(scale);
  return x < -87.3365448f ? 0.0f : result;
}

// Natural logarithm of a positive normal float, relative error below 2e-7.
inline float fast_log(float x) {
  constexpr float kLn2High = 0.693145752f, kLn2Low = 1.42860677e-6f;
  constexpr uint32_t kSqrtHalf = 0x3f3504f3u;  // mantissas lie in [sqrt(1/2), sqrt(2))
  const uint32_t bits = std::bit_cast<uint32_t>(x) - kSqrtHalf;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = std::bit_cast<float>((bits & 0x007fffffu) + kSqrtHalf) - 1.0f;
  float p = 0x1.645e00p-4f;
  p = p * f - 0x1.2432c0p-3f;
  p = p * f + 0x1.317476p-3f;
  p = p * f - 0x1.538248p-3f;
  p = p * f + 0x1.98d7f0p-3f;
  p = p * f - 0x1.000382p-2f;
  p = p * f + 0x1.5556d8p-2f;
  const float square = f * f;
  return exponent * kLn2High + (f + (exponent * kLn2Low + square * (f * p - 0.5f)));
}

// The normal distribution's lower tail at -|x|: exp(-x^2/2) times a polynomial in 1/(1 + 0.3|x|).
// Relative error below 6e-7 + 3e-8 x^2.
inline float normal_tail(float x) {
  const float a = x < 0.0f ? -x : x;
  const float t = 1.0f / (1.0f + 0.3f * a);
  float p = 0x1.39d90ep-5f;
  p = p * t - 0x1.59c95ep-3f;
  p = p * t + 0x1.d2eb40p-3f;
  p = p * t - 0x1.363752p-4f;
  p = p * t + 0x1.22d248p-3f;
  p = p * t + 0x1.84c15ep-4f;
  p = p * t + 0x1.f32594p-4f;
  p = p * t + 0x1.e97486p-4f;
  p = p * t + 0x1.c0b25cp-18f;
  return p * fast_exp(-0.5f * x * x);
}

// x * Phi(x), the exact (erf) GELU; both tails keep their relative accuracy.
inline float gelu(float x) {
  const float tail = x * normal_tail(x);
  return x < 0.0f ? tail : x - tail;
}

// x / (1 + exp(-x)).
inline float silu(float x) { return x / (1.0f + fast_exp(-x)); }

}  // namespace lightvl::cpu::LIGHTVL_ISA
