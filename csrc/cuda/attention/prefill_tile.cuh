// Shared memory of prefill attention and the barriers of its pipeline.
#pragma once

#include "cuda/attention/prefill_schedule.cuh"
#include "cuda/common/hopper.cuh"

namespace lightvl::cuda {

// kWarpgroups: of 64 query rows each. kKeys: keys of a block.
template <class T_, int kHeadDim_, int kWarpgroups_, int kKeys_, int kQueryStages_, bool kTurns_>
struct PrefillConfig {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kWarpgroups = kWarpgroups_, kKeys = kKeys_;
  static constexpr int kQueryStages = kQueryStages_, kStages = 2;
  static constexpr bool kTurns = kTurns_;  // warpgroups issue their products by turns
  static constexpr int kRows = 64 * kWarpgroups, kPanels = kHeadDim / 64;
  static constexpr int kThreads = 128 * (kWarpgroups + 1);
  static constexpr int kProducerRegisters = kWarpgroups == 2 ? 56 : 32;
  static constexpr int kConsumerRegisters = kWarpgroups == 2 ? 224 : 160;
};

// What a head dim is best served with.
template <class T, int kHeadDim>
using PrefillChoice = std::conditional_t<kHeadDim == 64, PrefillConfig<T, 64, 3, 128, 2, true>,
                                         PrefillConfig<T, 128, 2, 128, 2, true>>;

template <class Config>
struct PrefillShared {
  using T = typename Config::T;
  T query[Config::kQueryStages][Config::kPanels][Config::kRows][64];
  T key[Config::kStages][Config::kPanels][Config::kKeys][64];
  T value[Config::kStages][Config::kPanels][Config::kKeys][64];
  PrefillPlan plan;
  PrefillItem item[Config::kQueryStages];
  Barrier item_full[Config::kQueryStages];
  Barrier query_full[Config::kQueryStages], query_empty[Config::kQueryStages];
  Barrier key_full[Config::kStages], key_empty[Config::kStages];
  Barrier value_full[Config::kStages], value_empty[Config::kStages];
};

// Slot of a ring and the parity of its phase.
template <int kSlots>
struct PrefillRing {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

template <class Config>
__device__ void init_prefill_barriers(PrefillShared<Config>& shared) {
  constexpr uint32_t kConsumerWarps = 4 * Config::kWarpgroups;
  for (int i = 0; i < Config::kQueryStages; ++i) {
    init_barrier(shared.item_full[i], 1);
    init_barrier(shared.query_full[i], 2);
    init_barrier(shared.query_empty[i], kConsumerWarps);
  }
  for (int i = 0; i < Config::kStages; ++i) {
    init_barrier(shared.key_full[i], 1);
    init_barrier(shared.key_empty[i], kConsumerWarps);
    init_barrier(shared.value_full[i], 1);
    init_barrier(shared.value_empty[i], kConsumerWarps);
  }
  fence_barrier_init();
}

}  // namespace lightvl::cuda
