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

#include "cuda/common/launch.cuh"
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

// ---- registers: the whole warpgroup takes or gives; multiples of 8 from 24 to 240

template <int kRegisters>
__device__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- TMA: one thread copies a box of a tensor; coordinates from the innermost dimension

__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Makes what this thread wrote to shared memory visible to TMA and wgmma.
__device__ inline void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void tma_load(void* to, const CUtensorMap& map, Barrier& barrier, int32_t c0,
                                int32_t c1, int32_t c2, int32_t c3) {
  constexpr uint64_t kEvictNormal = 0x1000000000000000;  // as createpolicy encodes it
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(smem_address(to)),
      "l"(&map), "r"(smem_address(&barrier)), "l"(kEvictNormal), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// ---- tensor maps (host)

// Describes a tensor of 16-bit elements whose innermost dimension is contiguous. `sizes` and `box`
// count elements from the innermost dimension; `strides` (elements) begin with the second. Boxes
// arrive in shared memory with the 128-byte swizzle; what lies outside of the tensor arrives as 0.
template <int kDims>
cudaError_t encode_tensor_map(CUtensorMap& map, CUtensorMapDataType type, const void* base,
                              const int64_t (&sizes)[kDims], const int64_t (&strides)[kDims - 1],
                              const uint32_t (&box)[kDims]) {
  static const auto encode =
      driver_function<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
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
