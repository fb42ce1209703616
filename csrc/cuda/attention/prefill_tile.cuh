// Shared memory of prefill attention and the barriers of its pipeline.
#pragma once

#include "cuda/attention/prefill_ptx.cuh"
#include "cuda/attention/prefill_schedule.cuh"

namespace lightvl::cuda {

// kWarpgroups: of 64 query rows each. kKeys: keys of a block. kBlocks: of a cluster, which share
// the keys that they load.
template <class T_, int kHeadDim_, int kWarpgroups_, int kKeys_, int kQueryStages_, bool kTurns_,
          int kBlocks_ = 1>
struct PrefillConfig {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kWarpgroups = kWarpgroups_, kKeys = kKeys_;
  static constexpr int kQueryStages = kQueryStages_, kStages = 2, kBlocks = kBlocks_;
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
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ void advance() {
    if (++slot == kSlots) slot = 0, parity ^= 1;
  }
};

// This block's rank in its cluster.
template <class Config>
__device__ int prefill_rank() {
  return Config::kBlocks == 1 ? 0 : static_cast<int>(blockIdx.x) % Config::kBlocks;
}

// Arrives at a barrier of all blocks of the cluster, for a warp.
template <class Config>
__device__ void arrive_everywhere(Barrier& barrier) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (Config::kBlocks == 1) {
    if (lane == 0) arrive(barrier);
  } else {
    if (lane < Config::kBlocks) arrive_remote(barrier, lane);
  }
}

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
    init_barrier(shared.key_empty[i], Config::kBlocks * kConsumerWarps);
    init_barrier(shared.value_full[i], 1);
    init_barrier(shared.value_empty[i], Config::kBlocks * kConsumerWarps);
  }
  fence_barrier_init();
}

}  // namespace lightvl::cuda
