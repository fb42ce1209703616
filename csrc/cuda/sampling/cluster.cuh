// Clusters of thread blocks (sm_90): rank, barrier and the shared memory of the other blocks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lightvl::cuda {

__device__ inline unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline unsigned cluster_size() {
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// What a thread wrote before it arrived, every thread of the cluster sees after its wait.
__device__ inline void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
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

}  // namespace lightvl::cuda
