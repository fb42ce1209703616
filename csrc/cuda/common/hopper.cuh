// Instructions of sm_90a: mbarriers, TMA, named barriers, register budgets. Warpgroup products are
// in wgmma.cuh, which this includes.
//
// A barrier's phase has a parity that flips when the phase completes: a consumer that waits for the
// n-th completion (n from 0) waits for parity n & 1; a producer that waits for a slot which was
// never used waits for parity 1 and passes at once. With LIGHTVL_WATCHDOG a wait that takes seconds
// ends in an error instead of a hang.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/common/wgmma.cuh"

namespace lightvl::cuda {

// ---- mbarriers in shared memory

using Barrier = uint64_t;

// One thread initialises; then fence_barrier_init and a __syncthreads (or cluster barrier).
__device__ inline void init_barrier(Barrier& barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(&barrier)),
               "r"(arrivals)
               : "memory");
}
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ inline void arrive(Barrier& barrier) { arrive(smem_address(&barrier)); }
// Arrives at the same barrier of another block of the cluster.
__device__ inline void arrive_remote(Barrier& barrier, uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n}" ::"r"(
          smem_address(&barrier)),
      "r"(block)
      : "memory");
}
// Arrives, and announces `bytes` that TMA will deliver within this phase.
__device__ inline void arrive_expect(Barrier& barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(&barrier)),
      "r"(bytes)
      : "memory");
}

__device__ inline bool try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}

// Whether the phase is complete, without waiting for it.
__device__ inline bool test_wait(Barrier& barrier, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred p;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(done)
      : "r"(smem_address(&barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ inline void wait(uint32_t barrier, uint32_t parity) {
#ifdef LIGHTVL_WATCHDOG
  const int64_t start = clock64();
  while (!try_wait(barrier, parity)) {
    if (clock64() - start > int64_t{4} << 30) __trap();
  }
#else
  while (!try_wait(barrier, parity)) {
  }
#endif
}
__device__ inline void wait(Barrier& barrier, uint32_t parity) {
  wait(smem_address(&barrier), parity);
}

// ---- named barriers (1 to 15; 0 is __syncthreads). `threads` counts those who sync and arrive.

__device__ inline void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void arrive_named(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ inline void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}

// ---- registers: the whole warpgroup takes or gives; multiples of 8 from 24 to 240

template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// One lane of a converged warp.
__device__ inline bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n.reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n}"
      : "=r"(elected));
  return elected != 0;
}

// ---- programmatic launch: a kernel's prologue overlaps the end of the one before it

__device__ inline void wait_for_previous_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ inline void allow_next_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- TMA: one thread copies a box of a tensor; coordinates from the innermost dimension

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Makes what this thread wrote to shared memory visible to TMA and wgmma.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Cache policies of TMA loads (the encodings that createpolicy gives for a whole access).
constexpr uint64_t kEvictNormal = 0x1000000000000000, kEvictFirst = 0x12F0000000000000,
                   kEvictLast = 0x14F0000000000000;

#define LIGHTVL_TMA_LOAD(dims, coordinates)                                                      \
  "cp.async.bulk.tensor." dims                                                                   \
  ".shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {" coordinates \
  "}], [%2], %3;"

__device__ inline void tma_load(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                int32_t c1, uint64_t policy = kEvictNormal) {
  asm volatile(LIGHTVL_TMA_LOAD("2d", "%4, %5")::"r"(smem_address(to)), "l"(&map),
               "r"(smem_address(&barrier)), "l"(policy), "r"(c0), "r"(c1)
               : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                int32_t c1, int32_t c2, uint64_t policy = kEvictNormal) {
  asm volatile(LIGHTVL_TMA_LOAD("3d", "%4, %5, %6")::"r"(smem_address(to)), "l"(&map),
               "r"(smem_address(&barrier)), "l"(policy), "r"(c0), "r"(c1), "r"(c2)
               : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                int32_t c1, int32_t c2, int32_t c3,
                                uint64_t policy = kEvictNormal) {
  asm volatile(LIGHTVL_TMA_LOAD("4d", "%4, %5, %6, %7")::"r"(smem_address(to)), "l"(&map),
               "r"(smem_address(&barrier)), "l"(policy), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
               : "memory");
}
__device__ inline void tma_load(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                int32_t c1, int32_t c2, int32_t c3, int32_t c4,
                                uint64_t policy = kEvictNormal) {
  asm volatile(LIGHTVL_TMA_LOAD("5d", "%4, %5, %6, %7, %8")::"r"(smem_address(to)), "l"(&map),
               "r"(smem_address(&barrier)), "l"(policy), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4)
               : "memory");
}
#undef LIGHTVL_TMA_LOAD

// Delivers to the same offsets, data and barrier, of every block of the cluster in `blocks`.
__device__ inline void tma_load_multicast(void* to, const CUtensorMap& map, Barrier& barrier,
                                          uint16_t blocks, int32_t c0, int32_t c1, int32_t c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(smem_address(to)),
      "l"(&map), "r"(smem_address(&barrier)), "h"(blocks), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}

// Stores a box; the written shared memory must have been fenced (fence_proxy_async).
__device__ inline void tma_store(const CUtensorMap& map, const void* from, int32_t c0, int32_t c1,
                                 int32_t c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(smem_address(from)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
// Stores contiguous bytes, a multiple of 16.
__device__ inline void bulk_store(void* to, const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to),
               "r"(smem_address(from)), "r"(bytes)
               : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups still read shared memory.
template <int kPending>
__device__ void wait_for_store_reads() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// ---- tensor maps (host)

// Describes a tensor of 16-bit elements whose innermost dimension is contiguous. `sizes` and `box`
// count elements from the innermost dimension; `strides` (elements) begin with the second. Boxes
// arrive in shared memory with the 128-byte swizzle; what lies outside of the tensor arrives as 0.
template <int kDims>
cudaError_t encode_tensor_map(CUtensorMap& map, CUtensorMapDataType type, const void* base,
                              const int64_t (&sizes)[kDims], const int64_t (&strides)[kDims - 1],
                              const uint32_t (&box)[kDims]) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                                12000, cudaEnableDefault, &found);
    return reinterpret_cast<Encode>(status == cudaSuccess ? entry : nullptr);
  }();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t dims[kDims], byte_strides[kDims - 1];
  cuuint32_t steps[kDims];
  for (int i = 0; i < kDims; ++i) {
    dims[i] = static_cast<cuuint64_t>(sizes[i]);
    steps[i] = 1;
    if (i > 0) byte_strides[i - 1] = static_cast<cuuint64_t>(strides[i - 1]) * 2;
  }
  const CUresult status =
      encode(&map, type, kDims, const_cast<void*>(base), dims, byte_strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace lightvl::cuda
