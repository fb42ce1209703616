// Thread block clusters (sm_90): blocks that read each other's shared memory. Elsewhere, and where
// the launch asks for none, a block is a cluster of its own.
#pragma once

#include "cuda/attention/mma.cuh"

namespace lightvl::cuda {

struct Cluster {
  int rank, size;

  __device__ static Cluster mine() {
#if __CUDA_ARCH__ >= 900
    Cluster c;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(c.rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(c.size));
    return c;
#else
    return {0, 1};
#endif
  }

  // A barrier of all threads in two halves: what was written before any arrive is seen after wait.
  __device__ void arrive() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
  }
  __device__ void wait() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
  }

  // What `local`, an address in this block's shared memory, holds in another block's.
  __device__ static float4 read(const float4& local, int rank) {
#if __CUDA_ARCH__ >= 900
    float4 x;
    asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(map(&local, rank)));
    return x;
#else
    return local;
#endif
  }
  __device__ static float2 read(const float2& local, int rank) {
#if __CUDA_ARCH__ >= 900
    float2 x;
    asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "r"(map(&local, rank)));
    return x;
#else
    return local;
#endif
  }

 private:
#if __CUDA_ARCH__ >= 900
  __device__ static uint32_t map(const void* local, int rank) {
    uint32_t address;
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(address)
        : "r"(shared_address(local)), "r"(rank));
    return address;
  }
#endif
};

}  // namespace lightvl::cuda
