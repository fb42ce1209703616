// Online softmax of a warpgroup's 64 rows over blocks of scores, in base 2, in registers.
//
// A thread holds two rows, row() and row() + 8, of each at columns column() and + 1 of every eight;
// the four threads of a quad share a row. Outputs are rescaled only when a row's maximum has grown
// by more than 2^kSlack since they were scaled last: what is skipped cancels in the normalisation.
#pragma once

#include "cuda/attention/prefill_merge.cuh"
#include "cuda/common/numeric.cuh"

namespace lightvl::cuda {

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

template <class T>
__device__ uint32_t pack_two(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

template <class Combine>
__device__ float reduce_quad(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(0xffffffff, value, 1));
  return combine(value, __shfl_xor_sync(0xffffffff, value, 2));
}

template <int kKeys>
class PrefillSoftmax {
 public:
  using Scores = float[kKeys / 2];

  __device__ static int row() {
    return static_cast<int>(threadIdx.x) % 128 / 32 * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
  }
  __device__ static int column() { return static_cast<int>(threadIdx.x) % 4 * 2; }

  // Scores are multiplied by `log2_scale`, positive, before they are powers of two.
  __device__ explicit PrefillSoftmax(float log2_scale) : scale_(log2_scale) {}

  __device__ static void mask(Scores& scores, int first_key, const int (&seen)[2]) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const int limit = seen[which] - first_key - column();
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
        if (8 * j >= limit) scores[4 * j + 2 * which] = -INFINITY;
        if (8 * j + 1 >= limit) scores[4 * j + 2 * which + 1] = -INFINITY;
      }
    }
  }

  // Raises the maxima that scores exceed by much, where lanes of a quad need to know of each
  // other's alone. True if any of the warp's has been raised: then grow and rescale must be called.
  __device__ bool raise(const Scores& scores) {
    float most[2], part[2][8];
#pragma unroll
    for (int i = 0; i < kKeys / 4; ++i) {  // 16 chains
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        const float score = scores[i / 2 * 4 + 2 * which + i % 2];
        part[which][i % 8] = i < 8 ? score : fmaxf(part[which][i % 8], score);
      }
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float (&x)[8] = part[which];
      most[which] = fmaxf(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])),
                          fmaxf(fmaxf(x[4], x[5]), fmaxf(x[6], x[7])));
    }
    const bool exceeds = exceeds_by_much(most[0], 0) || exceeds_by_much(most[1], 1);
    before_[0] = max_[0], before_[1] = max_[1];
    if (!__any_sync(0xffffffff, exceeds)) return false;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      most[which] = reduce_quad(most[which], [](float a, float b) { return fmaxf(a, b); });
      if (exceeds_by_much(most[which], which)) max_[which] = most[which];
    }
    return true;
  }

  // What the maxima have been raised by.
  __device__ void grow() {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const bool same = max_[which] == before_[which];
      rescale_[which] = same ? 1.0f : exp2_fast((before_[which] - max_[which]) * scale_);
      sum_[which] *= rescale_[which];
    }
  }

  // Turns scores of keys [kBegin, kEnd) into probabilities, not yet normalised; in order from 0.
  template <int kBegin, int kEnd>
  __device__ void exponentiate(Scores& scores) {
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const float shift = max_[which] == -INFINITY ? 0.0f : max_[which] * scale_;
#pragma unroll
      for (int j = kBegin / 8; j < kEnd / 8; ++j) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          float& score = scores[4 * j + 2 * which + k];
          score = exp2_fast(fmaf(score, scale_, -shift));
          added_[which][k] = j == 0 ? score : added_[which][k] + score;
        }
      }
    }
  }

  // What raise has returned, or true where a sum is no number: known after the exponentials only.
  __device__ bool known_late(bool grown) const {
    const float sum = (added_[0][0] + added_[0][1]) + (added_[1][0] + added_[1][1]);
    return __any_sync(0xffffffff, grown || !(sum < INFINITY));
  }

  // Adds the block's probabilities to the sums.
  __device__ void add() {
#pragma unroll
    for (int which = 0; which < 2; ++which) sum_[which] += added_[which][0] + added_[which][1];
  }

  template <int kSize>
  __device__ void rescale(float (&out)[kSize]) const {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] *= rescale_[i / 2 % 2];
  }

  // Of the rows so far: base-2 maxima, -inf if a row saw no key, and sums over quads.
  __device__ PrefillTotals totals() const {
    PrefillTotals totals;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      totals.most[which] = max_[which] * scale_;
      totals.sum[which] = reduce_quad(sum_[which], [](float a, float b) { return a + b; });
    }
    return totals;
  }

 private:
  static constexpr float kSlack = 8.0f;

  __device__ bool exceeds_by_much(float most, int which) const {
    return (most - max_[which]) * scale_ > kSlack;
  }

  float scale_;
  float max_[2] = {-INFINITY, -INFINITY}, sum_[2] = {};
  float before_[2], added_[2][2], rescale_[2];  // of the block at hand
};

// Packs probabilities as the A operand of a product with 16 keys a step.
template <class T, int kKeys>
__device__ void pack_probabilities(const float (&scores)[kKeys / 2],
                                   uint32_t (&packed)[kKeys / 16][4]) {
#pragma unroll
  for (int i = 0; i < kKeys / 16; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      packed[i][j] = pack_two<T>(scores[8 * i + 2 * j], scores[8 * i + 2 * j + 1]);
    }
  }
}

}  // namespace lightvl::cuda
