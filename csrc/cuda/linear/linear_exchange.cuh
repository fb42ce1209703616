// How the blocks of a pair get each other's sums.
#pragma once

#include "cuda/attention/mma.cuh"

namespace lightvl::cuda {

// A block alone has nothing to exchange.
template <int kCluster>
struct PairExchange {
  __device__ PairExchange(void*, uint32_t) {}
  __device__ static int rank() { return 0; }
  __device__ void arrive() const {}
  __device__ void wait() const {}
  __device__ void send(float2*, float2) const {}
  __device__ void receive() const {}
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// By stores that count at the receiver's barrier, for one pass. (A release at the cluster's barrier
// would wait until all of memory agrees.)
template <>
struct PairExchange<2> {
  uint32_t barrier;

  // For `bytes` of the other block.
  __device__ PairExchange(void* shared, uint32_t bytes) : barrier(shared_address(shared)) {
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
                   "r"(bytes)
                   : "memory");
    }
  }
  __device__ static int rank() { return blockIdx.x % 2; }

  // This block's threads are ready to be sent sums; the other's are.
  __device__ void arrive() const { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
  __device__ void wait() const { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

  // Stores where `to`, an address in this block's shared memory, is in that of the other.
  __device__ void send(float2* to, float2 sums) const {
    asm volatile(
        "{\n.reg .b32 address, barrier;\n"
        "mapa.shared::cluster.u32 address, %0, %2;\n"
        "mapa.shared::cluster.u32 barrier, %1, %2;\n"
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [address], {%3, %4}, "
        "[barrier];\n}" ::"r"(shared_address(to)),
        "r"(barrier), "r"(1 - rank()), "f"(sums.x), "f"(sums.y)
        : "memory");
  }

  __device__ void receive() const {
    uint32_t done = 0;
    while (done == 0) {
      asm volatile(
          "{\n.reg .pred p;\n"
          "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
          "selp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(barrier)
          : "memory");
    }
  }
};
#else
template <>
struct PairExchange<2> : PairExchange<1> {  // is never launched
  using PairExchange<1>::PairExchange;
};
#endif

}  // namespace lightvl::cuda
