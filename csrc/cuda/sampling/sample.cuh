// Sampling of the next token where no cluster of blocks can hold a row: one block a row.
//
// A float32 copy of the row takes penalties, bias and mask. Every filter is then a threshold on it:
// top-k the k-th largest score, top-p a cut by mass, min-p a distance from the maximum. What lies
// above the highest threshold takes part in a Gumbel-max draw. The lowest id wins a tie.
#pragma once

#include <cfloat>

#include "cuda/common/launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"
#include "cuda/sampling/philox.cuh"
#include "cuda/sampling/select.cuh"

namespace lightvl::cuda {

// A score and whose it is.
struct Candidate {
  float score;
  int id;
};

struct Better {
  __device__ Candidate operator()(Candidate a, Candidate b) const {
    return b.score > a.score || (b.score == a.score && b.id < a.id) ? b : a;
  }
};

__device__ inline Candidate best_of_block(Candidate own) {
  __shared__ Candidate partial[32];
  const auto reduce = [](Candidate c) {
    for (int step = 16; step > 0; step /= 2) {
      const Candidate other{__shfl_xor_sync(kAllLanes, c.score, step),
                            __shfl_xor_sync(kAllLanes, c.id, step)};
      c = Better{}(c, other);
    }
    return c;
  };
  own = reduce(own);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = own;
  __syncthreads();
  return reduce(partial[threadIdx.x % 32]);
}

constexpr Candidate kNobody{-INFINITY, INT32_MAX};

// Best of the scores that come after `last` in the order of score and id.
template <class Score>
__device__ Candidate best_after(Candidate last, int64_t size, Score&& score) {
  Candidate best = kNobody;
  for (int i = threadIdx.x; i < size; i += kSampleThreads) {
    const Candidate own{score(i), i};
    const bool after = own.score < last.score || (own.score == last.score && own.id > last.id);
    if (after && own.score > -INFINITY) best = Better{}(best, own);
  }
  return best_of_block(best);
}

// Copies the row and applies penalties, bias and mask.
template <class T>
__device__ void edit_row(const SampleParams& p, int64_t row, const T* logits, float* scores) {
  const int64_t count_row = p.penalties != nullptr ? p.count_rows[row] : -1;
  const int16_t* counts = count_row >= 0 ? p.counts + count_row * p.counts_stride : nullptr;
  for (int64_t i = threadIdx.x; i < p.vocab_size; i += kSampleThreads) {
    float x = sanitised(to_float(logits[i]));
    if (counts != nullptr && counts[i] > 0) {
      const float* penalty = p.penalties + row * 3;
      x = x > 0.0f ? x / penalty[0] : x * penalty[0];
      x = x - penalty[1] - penalty[2] * static_cast<float>(counts[i]);
    }
    scores[i] = x;
  }
  __syncthreads();
  if (p.bias_offsets != nullptr) {
    const int end = p.bias_offsets[row + 1];
    for (int i = p.bias_offsets[row] + threadIdx.x; i < end; i += kSampleThreads) {
      atomicAdd(scores + p.bias_ids[i], p.bias_values[i]);
    }
    __syncthreads();
  }
  if (p.allowed_mask == nullptr) return;
  const int32_t* allowed = p.allowed_mask + row * ((p.vocab_size + 31) / 32);
  for (int64_t i = threadIdx.x; i < p.vocab_size; i += kSampleThreads) {
    if ((allowed[i / 32] >> (i % 32) & 1) == 0) scores[i] = -INFINITY;
  }
  __syncthreads();
}

// The score from which on a token takes part in the draw.
__device__ inline float filter(const SampleParams& p, int64_t row, const float* scores, float max,
                               BlockSelection& shared) {
  const float temperature = p.temperature[row], inverse = 1.0f / temperature;
  float cut = -FLT_MAX;
  if (p.top_k[row] > 0 && p.top_k[row] < p.vocab_size) {
    int possible = 0;
    for (int64_t i = threadIdx.x; i < p.vocab_size; i += kSampleThreads) {
      possible += scores[i] >= cut;
    }
    possible = block_reduce(possible, Sum{}, 0);
    if (p.top_k[row] < possible) {
      cut = threshold_by_mass(shared, scores, p.vocab_size, cut, static_cast<Mass>(p.top_k[row]),
                              [](float) { return Mass{1}; });
    }
  }
  if (p.top_p[row] < 1.0f) {
    const auto weigh = [&](float score) { return Mass{weight_of(score, max, inverse)}; };
    Mass total = 0;
    for (int64_t i = threadIdx.x; i < p.vocab_size; i += kSampleThreads) {
      if (scores[i] >= cut) total += weigh(scores[i]);
    }
    total = block_reduce(total, Sum{}, Mass{0});
    cut = threshold_by_mass(shared, scores, p.vocab_size, cut, top_p_target(p.top_p[row], total),
                            weigh);
  }
  if (p.min_p[row] > 0.0f) cut = fmaxf(cut, max + temperature * logf(p.min_p[row]));
  return fminf(cut, max);
}

__device__ inline int draw(const SampleParams& p, int64_t row, const float* scores, float max,
                           float cut) {
  const float inverse = 1.0f / p.temperature[row];
  const auto seed = static_cast<uint64_t>(p.seeds[row]);
  const auto offset = static_cast<uint64_t>(p.offsets[row]);
  Candidate best = kNobody;
  const int64_t num_blocks = (p.vocab_size + 63) / 64 * 16;
  for (int64_t n = threadIdx.x; n < num_blocks; n += kSampleThreads) {
    float score[4];
    bool any = false;
    const int first = static_cast<int>(n / 16 * 64 + n % 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int id = first + 16 * i;
      score[i] = id < p.vocab_size ? scores[id] : -INFINITY;
      any |= score[i] >= cut;
    }
    if (!any) continue;
    const uint4 words = philox(seed, offset, static_cast<uint32_t>(n));
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (!(score[i] >= cut)) continue;
      const float noisy = (score[i] - max) * inverse + gumbel(word[i]);
      best = Better{}(best, {noisy, first + 16 * i});
    }
  }
  return best_of_block(best).id;
}

// Logarithm of the sum of exp(logit) and, if wanted, the most probable ids.
template <class Score>
__device__ float write_top(const SampleParams& p, int64_t row, Score&& score) {
  const Candidate before{INFINITY, -1};
  Candidate last = best_after(before, p.vocab_size, score);
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < p.vocab_size; i += kSampleThreads) {
    sum += expf(score(i) - last.score);
  }
  const float log_total = last.score + logf(block_reduce(sum, Sum{}, 0.0f));
  for (int64_t n = 0; n < p.num_top; ++n) {
    if (threadIdx.x == 0) {
      const bool found = last.score > -INFINITY;
      p.top_ids[row * p.num_top + n] = found ? last.id : -1;
      p.top_logprobs[row * p.num_top + n] = found ? last.score - log_total : -INFINITY;
    }
    if (n + 1 < p.num_top) last = best_after(last, p.vocab_size, score);
  }
  return log_total;
}

template <class T>
__global__ void __launch_bounds__(kSampleThreads)
    sample_kernel(const __grid_constant__ SampleWork work) {
  __shared__ BlockSelection shared;
  const SampleParams& p = work.params;
  const int64_t row = blockIdx.x;
  const T* logits = static_cast<const T*>(p.logits) + row * p.logits_stride;
  float* scores = work.scores + row * p.vocab_size;
  float log_total = 0.0f;
  if (p.logprobs != nullptr || p.num_top > 0) {
    log_total = write_top(p, row, [&](int64_t i) { return sanitised(to_float(logits[i])); });
  }
  edit_row(p, row, logits, scores);
  const Candidate most =
      best_after({INFINITY, -1}, p.vocab_size, [&](int64_t i) { return scores[i]; });
  int id = most.score > -INFINITY ? most.id : 0;
  if (most.score > -INFINITY && p.temperature[row] >= kGreedyTemperature) {
    const float cut = filter(p, row, scores, most.score, shared);
    id = draw(p, row, scores, most.score, cut);
  }
  if (threadIdx.x != 0) return;
  p.out_ids[row] = id;
  if (p.logprobs != nullptr) p.logprobs[row] = to_float(logits[id]) - log_total;
  if (p.counts == nullptr || p.count_rows[row] < 0) return;
  int16_t& cell = p.counts[p.count_rows[row] * p.counts_stride + id];
  if (cell < INT16_MAX) ++cell;
}

template <class T>
cudaError_t launch_sample(const SampleWork& work, cudaStream_t stream) {
  if (work.params.num_sequences == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>(work.params.num_sequences);
  return launch_kernel<sample_kernel<T>>(LaunchConfig(grid, kSampleThreads, 0, stream), work);
}

}  // namespace lightvl::cuda
