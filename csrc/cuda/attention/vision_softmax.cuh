// Online softmax (Milakov and Gimelshein, 2018) on the accumulators of a warpgroup's product, in
// base 2.
//
// Probabilities are relative to a reference that follows a row's maximum only when that has grown
// by more than 2^8: rescaling what was summed is seldom needed, and nothing is lost in float32.
// At head dim 64 it is vision_chain_softmax.cuh's.
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

// Columns from `seen` on don't exist.
template <int kSize>
__device__ void mask(float (&score)[kSize], int seen) {
  const int column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (i / 4 * 8 + column + i % 2 >= seen) score[i] = -INFINITY;
  }
}

// Probabilities as the left operand of the next product.
template <class T, int kSize>
__device__ void pack_operand(const float (&score)[kSize], uint32_t (&operand)[kSize / 8][4]) {
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) {
    operand[i / 4][i % 4] = pack_pair<T>(score[2 * i], score[2 * i + 1]);
  }
}

// The state of this thread's two rows, r and r + 8.
class BlockSoftmax {
 public:
  __device__ explicit BlockSoftmax(float log2_scale) : scale_(log2_scale) {}

  __device__ void reset() {
#pragma unroll
    for (int r = 0; r < 2; ++r) reference_[r] = -INFINITY, sum_[r] = 0.0f;
  }

  // Turns scores, in one part or more, into probabilities. Returns whether what was summed must be
  // rescaled.
  template <int kSize, class... More>
  __device__ bool update(float (&score)[kSize], More&... more) {
    float most[2][2];
    find_most<true>(score, most);
    (find_most<false>(more, most), ...);
    const bool grown = grow(most);
    const float shift[2] = {-reference_[0] * scale_, -reference_[1] * scale_};
    float sum[2][2] = {};
    exponentiate(score, shift, sum);
    (exponentiate(more, shift, sum), ...);
    sum_[0] += sum[0][0] + sum[0][1];
    sum_[1] += sum[1][0] + sum[1][1];
    return grown;
  }

  template <int kSize>
  __device__ void rescale(float (&out)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] *= factor_[i / 2 % 2];
  }

  // 1 over the sum of row r of all columns. Called by all lanes.
  __device__ float inverse_sum(int r) const {
    float sum = sum_[r];
    sum += __shfl_xor_sync(kAllLanes, sum, 1);
    sum += __shfl_xor_sync(kAllLanes, sum, 2);
    return 1.0f / sum;
  }

 private:
  // The largest scores of each row in two chains; kFirst: none are known yet.
  template <bool kFirst, int kSize>
  __device__ static void find_most(const float (&score)[kSize], float (&most)[2][2]) {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      float& m = most[i / 2 % 2][i % 2];
      m = kFirst && i < 4 ? score[i] : fmaxf(m, score[i]);
    }
  }

  // Moves the references up to the maxima if one has grown by much.
  __device__ bool grow(float (&most)[2][2]) {
    bool grown = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r][0] = fmaxf(most[r][0], most[r][1]);
      most[r][0] = fmaxf(most[r][0], __shfl_xor_sync(kAllLanes, most[r][0], 1));
      most[r][0] = fmaxf(most[r][0], __shfl_xor_sync(kAllLanes, most[r][0], 2));
      grown = grown || (most[r][0] - reference_[r]) * scale_ > kMostGrowth;
    }
    grown = __any_sync(kAllLanes, grown);
    if (grown) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        most[r][0] = fmaxf(most[r][0], reference_[r]);
        factor_[r] = exp2_unit((reference_[r] - most[r][0]) * scale_);
        reference_[r] = most[r][0];
        sum_[r] *= factor_[r];
      }
    }
    return grown;
  }

  template <int kSize>
  __device__ void exponentiate(float (&score)[kSize], const float (&shift)[2],
                               float (&sum)[2][2]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      score[i] = exp2_unit(fmaf(score[i], scale_, shift[i / 2 % 2]));
      sum[i / 2 % 2][i % 2] += score[i];
    }
  }

  float scale_;
  float reference_[2] = {-INFINITY, -INFINITY}, factor_[2] = {}, sum_[2] = {};
};

}  // namespace lightvl::cuda
