// What resampling is made of: weighted sums over pairs of 8-bit inputs, and turning 16 rows into
// columns and back.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "cpu/image_plan.h"
#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {

#if defined(__AVX512BW__)
constexpr int kWords = 16;
#elif defined(__AVX2__)
constexpr int kWords = 8;
#else
constexpr int kWords = 4;
#endif

typedef uint32_t WordVec __attribute__((vector_size(kWords * 4)));
typedef uint32_t UnalignedWordVec __attribute__((vector_size(kWords * 4), aligned(2), may_alias));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t UnalignedBytes16 __attribute__((vector_size(16), aligned(1), may_alias));

// Per 32 bits: the sum of the products of the two signed 16-bit numbers in a and b.
inline WordVec multiply_pairs(WordVec a, WordVec b) {
#if defined(__AVX512BW__)
  return reinterpret_cast<WordVec>(
      _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<WordVec>(
      _mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
  return reinterpret_cast<WordVec>(
      _mm_madd_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
  typedef int32_t SignedVec __attribute__((vector_size(kWords * 4)));
  const auto x = reinterpret_cast<SignedVec>(a), y = reinterpret_cast<SignedVec>(b);
  return reinterpret_cast<WordVec>((x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16));
#endif
}

// kCount running sums, kWords wide each, over pairs of inputs.
template <int kCount>
struct Sums {
  WordVec high[kCount], low[kCount];

  // Starts from partial sums `step` words apart, or from one half if `partial` is null.
  void start(const uint32_t* partial, int64_t step) {
    for (int i = 0; i < kCount; ++i) {
      high[i] = WordVec{};
      low[i] = WordVec{} + (1u << (kWeightBits - 1));
      if (partial != nullptr) low[i] = load(partial + i * step);
    }
  }

  // Adds num_pairs pairs; pair n of sum i lies at pairs + n * pair_step + i * sum_step.
  void add(const int16_t* pairs, int64_t pair_step, int64_t sum_step, const uint32_t* weights,
           int num_pairs) {
    for (int n = 0; n < num_pairs; ++n, pairs += pair_step, weights += 2) {
      const WordVec high_weight = WordVec{} + weights[0], low_weight = WordVec{} + weights[1];
      for (int i = 0; i < kCount; ++i) {
        const WordVec values = load(pairs + i * sum_step);
        high[i] += multiply_pairs(values, high_weight);
        low[i] += multiply_pairs(values, low_weight);
      }
    }
  }

  void store(uint32_t* dst, int64_t step) const {
    for (int i = 0; i < kCount; ++i) {
      *reinterpret_cast<UnalignedWordVec*>(dst + i * step) = (high[i] << kLowWeightBits) + low[i];
    }
  }

 private:
  static WordVec load(const void* p) { return *static_cast<const UnalignedWordVec*>(p); }
};

// Sums to 8-bit values: the integer part, clamped.
inline void clamp_row(const uint32_t* sums, int64_t n, uint8_t* dst) {
  for (int64_t i = 0; i < n; ++i) {
    int32_t value = static_cast<int32_t>(sums[i]) >> kWeightBits;
    value = value < 0 ? 0 : value;
    dst[i] = static_cast<uint8_t>(value > 255 ? 255 : value);
  }
}

inline void interleave(const uint8_t* a, const uint8_t* b, int64_t n, int16_t* dst) {
  for (int64_t i = 0; i < n; ++i) {
    dst[2 * i] = a[i];
    dst[2 * i + 1] = b[i];
  }
}

// v[i][j] -> v[j][i]. Four times, each pair of registers half the set apart is interleaved.
inline void transpose(Bytes16 (&v)[16]) {
  constexpr Bytes16 kLow = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  for (int step = 0; step < 4; ++step) {
    Bytes16 t[16];
    for (int i = 0; i < 8; ++i) {
      t[2 * i] = __builtin_shuffle(v[i], v[i + 8], kLow);
      t[2 * i + 1] = __builtin_shuffle(v[i], v[i + 8], kLow + 8);
    }
    std::memcpy(v, t, sizeof(t));
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
