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

  // Forgets the rows so far.
  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      reference_[r] = -INFINITY;
      sum_[r][0] = sum_[r][1] = 0.0f;
    }
  }

  // Turns scores into probabilities. Returns whether what was summed must be multiplied by
  // factor().
  template <int kPolynomials, int kSize>
  __device__ bool update(float (&score)[kSize]) {
    const bool grown = settle(maxima(score));
    exponentiate<kPolynomials>(score, 0, kSize);
    return grown;
  }

  // The same of two parts of a row.
  template <int kPolynomials, int kSize, int kMore>
  __device__ bool update(float (&score)[kSize], float (&more)[kMore]) {
    Maxima most = maxima(score);
    const Maxima other = maxima(more);
    for (int r = 0; r < 2; ++r) most.of[r] = fmaxf(most.of[r], other.of[r]);
    const bool grown = settle(most);
    exponentiate<kPolynomials>(score, 0, kSize);
    exponentiate<0>(more, 0, kMore);
    return grown;
  }

  struct Maxima {
    float of[2];
  };

  // Largest of this thread's scores in either row.
  template <int kSize>
  __device__ static Maxima maxima(const float (&score)[kSize]) {
    float most[2][2];
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      float& m = most[i / 2 % 2][i % 2];
      m = i < 4 ? score[i] : fmaxf(m, score[i]);
    }
    return {fmaxf(most[0][0], most[0][1]), fmaxf(most[1][0], most[1][1])};
  }

  // Moves the references if the rows' maxima have outgrown them.
  __device__ bool settle(Maxima most) {
    bool grown = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most.of[r] = fmaxf(most.of[r], __shfl_xor_sync(kAllLanes, most.of[r], 1));
      most.of[r] = fmaxf(most.of[r], __shfl_xor_sync(kAllLanes, most.of[r], 2));
      grown = grown || (most.of[r] - reference_[r]) * scale_ > kMostGrowth;
    }
    grown = __any_sync(kAllLanes, grown);
    factor_[0] = factor_[1] = 1.0f;
    if (grown) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float reference = fmaxf(most.of[r], reference_[r]);
        factor_[r] = exp2_unit((reference_[r] - reference) * scale_);
        reference_[r] = reference;
        sum_[r][0] *= factor_[r];
        sum_[r][1] *= factor_[r];
      }
    }
    return grown;
  }

  // Scores begin to end become probabilities, kPolynomials of every 8 by polynomial.
  template <int kPolynomials, int kSize>
  __device__ void exponentiate(float (&score)[kSize], int begin, int end) {
    const float shift[2] = {reference_[0] * scale_, reference_[1] * scale_};
#pragma unroll
    for (int i = begin; i < end; ++i) {
      const float x = fmaf(score[i], scale_, -shift[i / 2 % 2]);
      // Spread over both rows and the sequence, so that both units are busy all the time.
      const bool polynomial = 3 * i % 8 < kPolynomials;
      score[i] = polynomial ? exp2_polynomial(x) : exp2_unit(x);
    }
  }

  template <int kSize>
  __device__ void rescale(float (&out)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] *= factor_[i / 2 % 2];
  }

  // Adds up probabilities and makes them the left operand of the next product. Not done along with
  // the exponentials: a warp would wait for each of them in turn.
  template <int kSize>
  __device__ void collect(const float (&score)[kSize], uint32_t (&operand)[kSize / 8][4]) {
#pragma unroll
    for (int i = 0; i < kSize / 2; ++i) {
      sum_[i % 2][0] += score[2 * i];
      sum_[i % 2][1] += score[2 * i + 1];
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
  float scale_;
  float reference_[2] = {-INFINITY, -INFINITY}, factor_[2] = {}, sum_[2][2] = {};
};

}  // namespace lightvl::cuda
