// Online softmax (Milakov and Gimelshein, 2018) on the accumulators of a warpgroup's product, in
// base 2.
//
// Probabilities are relative to a reference that follows a row's maximum only when that has grown
// by more than 2^8: rescaling what was summed is seldom needed, and nothing is lost in float32.
// The special function units give 16 exponentials a clock, which is as long as the products take at
// head dim 64; so some of the exponentials are polynomials on the multiply-add units instead:
// 2^x = 2^i 2^f, i the nearest integer, 2^f by a minimax polynomial of degree 3 (7.5e-5
// off, a sixth of what rounding to float16 costs).
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/common/reduce.cuh"

namespace lightvl::cuda {

constexpr float kMostGrowth = 8.0f;

__device__ inline float exp2_unit(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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
class Softmax {
 public:
  __device__ explicit Softmax(float scale) : scale_(scale * 1.44269504f) {}

  // Columns from `seen` on don't exist.
  template <int kSize>
  __device__ static void mask(float (&score)[kSize], int seen) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i / 4 * 8 + column + i % 2 >= seen) score[i] = -INFINITY;
    }
  }

  // A row's first scores, in two parts, become probabilities.
  template <int kPolynomials, int kSize, int kMore>
  __device__ void start(float (&score)[kSize], float (&more)[kMore]) {
    const Rows most = maxima(score), other = maxima(more);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      reference_[r] = row_maximum(fmaxf(most.of[r], other.of[r])) * scale_;
      sum_[r][0] = sum_[r][1] = 0.0f;
    }
    subtract_reference(score);
    subtract_reference(more);
    exponentiate<kPolynomials>(score);
    exponentiate<0>(more);
  }

  // Further scores become probabilities. Returns whether what was summed must be rescaled.
  template <int kPolynomials, int kSize>
  __device__ bool update(float (&score)[kSize]) {
    subtract_reference(score);
    const bool grown = __any_sync(kAllLanes, exceeds(score, kMostGrowth));
    factor_[0] = factor_[1] = 1.0f;
    if (grown) grow(score);
    exponentiate<kPolynomials>(score);
    return grown;
  }

  template <int kSize>
  __device__ void rescale(float (&out)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] *= factor_[i / 2 % 2];
  }

  // Adds up probabilities and makes them the left operand of the next product. Not done along with
  // the exponentials: a warp would wait for each of them in turn.
  template <bool kSum, int kSize>
  __device__ void collect(const float (&score)[kSize], uint32_t (&operand)[kSize / 8][4]) {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      if constexpr (kSum) {
        sum_[i % 2][0] += score[2 * i];
        sum_[i % 2][1] += score[2 * i + 1];
      }
      operand[i / 4][i % 4] = pack_pair<T>(score[2 * i], score[2 * i + 1]);
    }
  }

  // 1 over the sum of row r of all columns. Called by all lanes.
  __device__ float inverse_sum(int r) const {
    float sum = sum_[r][0] + sum_[r][1];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return 1.0f / sum;
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
      sum_[r][0] *= factor_[r];
      sum_[r][1] *= factor_[r];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) score[i] -= growth[i / 2 % 2];
  }

  // kPolynomials of every 8 by polynomial, spread over both rows and the sequence so that both
  // units are busy all the time.
  template <int kPolynomials, int kSize>
  __device__ static void exponentiate(float (&score)[kSize]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      score[i] = 3 * i % 8 < kPolynomials ? exp2_polynomial(score[i]) : exp2_unit(score[i]);
    }
  }

  float scale_;
  float reference_[2] = {}, factor_[2] = {}, sum_[2][2] = {};  // references are scaled
};

}  // namespace lightvl::cuda
