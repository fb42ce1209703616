// The arithmetic both attention kernels are made of, on blocks that fit the first cache level:
//   Vec               one SIMD register of fp32 of the instruction set this file is compiled for
//   exp2_nonpositive  2^x on a register
//   multiply          small matrix product, register-blocked (6 rows x kTileVecs registers)
//   OnlineSoftmax     scores -> probabilities of one block of keys, for 64 queries side by side
// Scores are kept transposed, S^T[key][query]: keys and values are then read as they lie in memory,
// and maximum, exponential and sum run down the lanes without any shuffle.
#pragma once

#include <cstdint>
#include <utility>

#include "cpu/numeric.h"

namespace lightvl::cpu::LIGHTVL_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileVecs = 4;  // 6 x 4 accumulators + 4 + 1 of 32 registers
#elif defined(__AVX__)
constexpr int kLanes = 8;
constexpr int kTileVecs = 2;  // 6 x 2 accumulators + 2 + 1 of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kTileVecs = 2;
#endif
constexpr int kTileRows = 6;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

#define LIGHTVL_INLINE inline __attribute__((always_inline))

LIGHTVL_INLINE Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
LIGHTVL_INLINE void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
LIGHTVL_INLINE Vec broadcast(float x) { return x - Vec{}; }
LIGHTVL_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

// 2^x for x <= 0 within 3 ulp; 0 below -126. x = n + f with |f| <= 1/2, then the polynomial in f
// of degree 5 with the least relative error, 9.2e-8.
LIGHTVL_INLINE Vec exp2_nonpositive(Vec x) {
  constexpr float kRounder = 0x1.8p23f;  // adding it leaves the nearest integer in the low bits
  const Vec shifted = x + kRounder;
  const Vec f = x - (shifted - kRounder);
  Vec p = f * 1.326472725e-3f + 9.671512688e-3f;
  p = p * f + 5.550733744e-2f;
  p = p * f + 2.402224208e-1f;
  p = p * f + 6.931469776e-1f;
  p = p * f + 1.0f;
  const IntVec scaled = reinterpret_cast<IntVec>(p) + (reinterpret_cast<IntVec>(shifted) << 23);
  return x < -126.0f ? Vec{} : reinterpret_cast<Vec>(scaled);
}

// Lane numbers {f(0), f(1), ..} for a shuffle.
template <class F, int... kLane>
constexpr IntVec lanes(F f, std::integer_sequence<int, kLane...>) {
  return IntVec{f(kLane)...};
}
template <class F>
constexpr IntVec lanes(F f) {
  return lanes(f, std::make_integer_sequence<int, kLanes>{});
}

// The sums of kLanes registers, one a lane: a tree whose steps add the neighbouring lanes of two
// registers, [a0+a1, a2+a3, .., b0+b1, b2+b3, ..].
LIGHTVL_INLINE Vec sum_each(Vec (&v)[kLanes]) {
  constexpr IntVec even = lanes([](int i) { return 2 * i; });
  constexpr IntVec odd = lanes([](int i) { return 2 * i + 1; });
  for (int n = kLanes / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) {
      const Vec a = v[2 * i], b = v[2 * i + 1];
      v[i] = __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
    }
  }
  return v[0];
}

// v[i][j] -> v[j][i]: in each step the first half's registers are interleaved with the second's.
LIGHTVL_INLINE void transpose(Vec (&v)[kLanes]) {
  constexpr IntVec low = lanes([](int i) { return i / 2 + i % 2 * kLanes; });
  constexpr IntVec high = low + kLanes / 2;
  for (int step = 1; step < kLanes; step *= 2) {
    Vec t[kLanes];
    for (int i = 0; i < kLanes / 2; ++i) {
      t[2 * i] = __builtin_shuffle(v[i], v[i + kLanes / 2], low);
      t[2 * i + 1] = __builtin_shuffle(v[i], v[i + kLanes / 2], high);
    }
    for (int i = 0; i < kLanes; ++i) v[i] = t[i];
  }
}

// Combines all lanes with `op`, halving the distance between what is combined.
template <int kDistance = kLanes / 2, class Op>
LIGHTVL_INLINE float reduce(Vec v, Op op) {
  if constexpr (kDistance == 0) {
    return v[0];
  } else {
    constexpr IntVec other = lanes([](int i) { return i ^ kDistance; });
    return reduce<kDistance / 2>(op(v, __builtin_shuffle(v, other)), op);
  }
}

LIGHTVL_INLINE float sum_of(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return a + b; });
}
LIGHTVL_INLINE float max_of(Vec v) {
  return reduce(v, [](Vec a, Vec b) { return max(a, b); });
}

// The small matrix products of attention. A is [rows, depth], B [depth, columns].
enum class Product {
  kScores,             // C = A B
  kAccumulate,         // C = C * scale[row] + A B
  kAccumulateColumns,  // the same, A stored as [depth, rows]
};

// One register block: C[R][kVecs * kLanes].
template <Product kProduct, int R, int kVecs>
LIGHTVL_INLINE void multiply_block(const float* a, int64_t a_stride, const float* b,
                                   int64_t b_stride, int depth, float* c, int64_t c_stride,
                                   const float* scale) {
  constexpr bool kByColumn = kProduct == Product::kAccumulateColumns;
  Vec acc[R][kVecs];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      acc[r][v] = Vec{};
      if constexpr (kProduct != Product::kScores) {
        acc[r][v] = load(c + r * c_stride + v * kLanes) * scale[r];
      }
    }
  }
  for (int i = 0; i < depth; ++i) {
    Vec row[kVecs];
    for (int v = 0; v < kVecs; ++v) row[v] = load(b + i * b_stride + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec x = broadcast(kByColumn ? a[i * a_stride + r] : a[r * a_stride + i]);
      for (int v = 0; v < kVecs; ++v) acc[r][v] += x * row[v];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < kVecs; ++v) store(c + r * c_stride + v * kLanes, acc[r][v]);
  }
}

// C[num_rows][num_vecs * kLanes]; `scale` is unused by kScores.
template <Product kProduct>
inline void multiply(int num_rows, int num_vecs, int depth, const float* a, int64_t a_stride,
                     const float* b, int64_t b_stride, float* c, int64_t c_stride,
                     const float* scale = nullptr) {
  const int64_t a_step = kProduct == Product::kAccumulateColumns ? 1 : a_stride;
  const auto strip = [&]<int R>(int r) __attribute__((always_inline)) {
    const float* a_row = a + r * a_step;
    float* c_row = c + r * c_stride;
    int v = 0;
    for (; v + kTileVecs <= num_vecs; v += kTileVecs) {
      multiply_block<kProduct, R, kTileVecs>(a_row, a_stride, b + v * kLanes, b_stride, depth,
                                             c_row + v * kLanes, c_stride, scale + r);
    }
    for (; v < num_vecs; ++v) {
      multiply_block<kProduct, R, 1>(a_row, a_stride, b + v * kLanes, b_stride, depth,
                                     c_row + v * kLanes, c_stride, scale + r);
    }
  };
  int r = 0;
  for (; r + kTileRows <= num_rows; r += kTileRows) strip.template operator()<kTileRows>(r);
  switch (num_rows - r) {
    case 5:
      return strip.template operator()<5>(r);
    case 4:
      return strip.template operator()<4>(r);
    case 3:
      return strip.template operator()<3>(r);
    case 2:
      return strip.template operator()<2>(r);
    case 1:
      return strip.template operator()<1>(r);
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
