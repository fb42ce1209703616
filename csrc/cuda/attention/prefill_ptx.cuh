// Instructions of sm_90a that prefill attention alone needs.
#pragma once

#include "cuda/common/hopper.cuh"

namespace lightvl::cuda {

// Copies a box to the same place in both blocks of a cluster; it arrives at both's barriers.
__device__ inline void tma_load_both(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                     int32_t c1, int32_t c2, int32_t c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(smem_address(to)),
      "l"(&map), "r"(smem_address(&barrier)), "h"(static_cast<uint16_t>(3)), "r"(c0), "r"(c1),
      "r"(c2), "r"(c3)
      : "memory");
}

}  // namespace lightvl::cuda
