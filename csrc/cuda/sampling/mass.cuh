// Probabilities as integers, so that their sums depend neither on their order nor on how a row is
// spread over blocks: the same tokens survive top-p whatever the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvl::cuda {

using Mass = unsigned long long;

// exp((score - max) / temperature) in steps of 2^-31.
__device__ inline uint32_t weight_of(float score, float max, float inverse_temperature) {
  return __float2uint_rn(expf((score - max) * inverse_temperature) * 0x1p31f);
}

// Scores this far below the maximum, in units of the temperature, weigh nothing.
constexpr float kWeightless = 22.5f;

// The mass that top-p keeps of `total`.
__device__ inline Mass top_p_target(float top_p, Mass total) {
  const Mass wanted = static_cast<Mass>(ceil(static_cast<double>(top_p) * total));
  return wanted < 1 ? 1 : (wanted > total ? total : wanted);
}

}  // namespace lightvl::cuda
