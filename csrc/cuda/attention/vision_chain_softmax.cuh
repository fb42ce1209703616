// Softmax of vision attention at head dim 64, where the special function units, 16 exponentials a
// clock, need as long as the products.
//
// So some of the exponentials are polynomials on the multiply-add units instead: 2^x = 2^i 2^f, i
// the nearest integer, 2^f by a minimax polynomial of degree 3 (7.5e-5 off, a sixth of what
// rounding to float16 costs). Scores are shifted by the references before maxima are looked for,
// which takes one instruction for three scores and leaves the exponentials alone. Sums come with O.
#pragma once

#include "cuda/attention/vision_softmax.cuh"

namespace lightvl::cuda {

__device__ inline float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = fmaxf(x, -126.0f);
  const float shifted = x + kRound;
  const float f = x - (shifted - kRound);
  float y = fmaf(0.05517167f, f, 0.24261114f);
  y = fmaf(y, f, 0.69326099f);
  y = fmaf(y, f, 0.99992807f);
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}

// The state of this thread's two rows, r and r + 8.
template <class T>
class ChainSoftmax {
 public:
  __device__ explicit ChainSoftmax(float log2_scale) : scale_(log2_scale) {}

  // A row's first scores, in two parts, become exponents, relative to the references.
  template <int kSize, int kMore>
  __device__ void start(float (&score)[kSize], float (&more)[kMore]) {
    const Rows most = maxima(score), other = maxima(more);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      reference_[r] = row_maximum(fmaxf(most.of[r], other.of[r])) * scale_;
    }
    subtract_reference(score);
    subtract_reference(more);
  }

  // Further scores become exponents. Returns whether what was summed must be rescaled.
  template <int kSize>
  __device__ bool update(float (&score)[kSize]) {
    subtract_reference(score);
    const bool grown = __any_sync(kAllLanes, exceeds(score, kMostGrowth));
    factor_[0] = factor_[1] = 1.0f;
    if (grown) grow(score);
    return grown;
  }

  // Exponents become probabilities, as the left operand of the next product. kPolynomials of every
  // 8 by polynomial, spread over both rows and the sequence so that both units are busy all the
  // time. Packing lags behind, so that a warp doesn't wait for each exponential in turn.
  template <int kPolynomials, int kSize>
  __device__ static void exponentiate(float (&score)[kSize], uint32_t (&operand)[kSize / 8][4]) {
    constexpr int kPairs = kSize / 2, kLag = kPairs < 8 ? kPairs : 8;
#pragma unroll
    for (int i = 0; i < kPairs + kLag; ++i) {
      if (i < kPairs) {
#pragma unroll
        for (int j = 2 * i; j < 2 * i + 2; ++j) {
          score[j] = 3 * j % 8 < kPolynomials ? exp2_polynomial(score[j]) : exp2_unit(score[j]);
        }
      }
      if (const int k = i - kLag; k >= 0) {
        operand[k / 4][k % 4] = pack_pair<T>(score[2 * k], score[2 * k + 1]);
      }
    }
  }

  template <int kSize>
  __device__ void rescale(float (&out)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] *= factor_[i / 2 % 2];
  }

 private:
  struct Rows {
    float of[2];
  };

  // Largest of this thread's scores in either row.
  template <int kSize>
  __device__ static Rows maxima(const float (&score)[kSize]) {
    float most[2][2];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      float& m = most[i / 2 % 2][i % 2];
      m = i < 4 ? score[i] : fmaxf(m, score[i]);
    }
    return {fmaxf(most[0][0], most[0][1]), fmaxf(most[1][0], most[1][1])};
  }
  __device__ static float row_maximum(float most) {
    most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
    return fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
  }

  // Whether one is more than `limit`, which is positive: as integers, positive numbers keep their
  // order and negative ones lie below, and of integers the largest of three is one instruction.
  template <int kSize>
  __device__ static bool exceeds(const float (&score)[kSize], float limit) {
    int most[4];
#pragma unroll
    for (int i = 0; i < kSize; i += 2) {
      const int a = __float_as_int(score[i]), b = __float_as_int(score[i + 1]);
      int& m = most[i / 2 % 4];
      m = i < 8 ? max(a, b) : __vimax3_s32(m, a, b);
    }
    return __vimax3_s32(most[0], most[1], max(most[2], most[3])) > __float_as_int(limit);
  }

  template <int kSize>
  __device__ void subtract_reference(float (&score)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      score[i] = fmaf(score[i], scale_, -reference_[i / 2 % 2]);
    }
  }

  // Moves the references up to the maxima.
  template <int kSize>
  __device__ void grow(float (&score)[kSize]) {
    const Rows most = maxima(score);
    float growth[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      growth[r] = fmaxf(row_maximum(most.of[r]), 0.0f);
      reference_[r] += growth[r];
      factor_[r] = exp2_unit(-growth[r]);
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) score[i] -= growth[i / 2 % 2];
  }

  float scale_;
  float reference_[2] = {}, factor_[2] = {};  // references are scaled
};

}  // namespace lightvl::cuda
