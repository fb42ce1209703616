// Launches that overlap the end of the kernel before them on the stream (programmatic dependent
// launch, sm_90 and later), which hides the launch latency of small kernels, in CUDA graphs too.
//
// A kernel launched so may begin before its predecessor has ended: it touches nothing in memory but
// its own parameters until wait_for_previous(), after which all that earlier kernels wrote is
// visible. All its threads call that first and let_next_begin() after it: whoever comes next, if
// launched so too, then begins when everything before this kernel is done.
#pragma once

#include <cuda_runtime.h>

#include "cuda/common/launch.cuh"

namespace lightvl::cuda {

__device__ inline void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Has the cache line at `from` fetched to L2: the one thing that may be asked for before the wait,
// since L2 sees what others write.
__device__ inline void prefetch_to_l2(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

__device__ inline void let_next_begin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches a kernel that keeps the rules above.
template <auto kKernel, class... Params>
cudaError_t launch_dependent(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                             const Params&... params) {
  return launch_kernel<kKernel>(LaunchConfig(grid, block, shared_bytes, stream).overlap(),
                                params...);
}

}  // namespace lightvl::cuda
