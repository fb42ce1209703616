// Clusters of thread blocks (sm_90): size, barrier and the shared memory of the other blocks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common/hopper.cuh"

namespace lightvl::cuda {

__device__ inline unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// What a thread wrote before it arrived, every thread of the cluster sees after its wait.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}
// Tells only that the thread has come: no fence, which would wait for memory.
__device__ inline void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ inline void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The same variable in the shared memory of the block of that rank.
template <class T>
__device__ T* in_block(T* variable, unsigned rank) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(variable), "r"(rank));
  return reinterpret_cast<T*>(address);
}

// Writes a value into the shared memory of a block of the cluster, where a barrier counts the bytes
// that come. The cluster has more than one block.
__device__ inline void send(uint64_t* to, uint64_t value, Barrier& barrier, uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote, counter;\n"
      "mapa.shared::cluster.u32 remote, %0, %3;\n"
      "mapa.shared::cluster.u32 counter, %2, %3;\n"
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [remote], %1, [counter];\n"
      "}" ::"r"(smem_address(to)),
      "l"(value), "r"(smem_address(&barrier)), "r"(block)
      : "memory");
}

}  // namespace lightvl::cuda
