// Launches that overlap the end of the kernel before them on the stream (programmatic dependent
// launch, sm_90 and later), which hides the launch latency of small kernels, in CUDA graphs too.
//
// A kernel launched so may begin before its predecessor has ended: it touches nothing in memory but
// its own parameters until wait_for_previous(), after which all that earlier kernels wrote is
// visible. All its threads call that first and let_next_begin() after it: whoever comes next, if
// launched so too, then begins when everything before this kernel is done.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>

#include "cuda/common/device.cuh"
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

namespace detail {

template <int = 0>
__global__ void dependent_launch_probe() {}

// Whether the code that this device runs has the two instructions above: not if it was compiled
// from PTX for an older architecture. Asked once per device.
inline bool can_launch_dependent() {
  enum : signed char { kUnknown, kNo, kYes };
  static std::array<std::atomic<signed char>, kMaxDevices> answers{};
  const int device = current_device();
  if (device < 0) return false;
  signed char answer = answers[device].load(std::memory_order_relaxed);
  if (answer == kUnknown) {
    cudaFuncAttributes attributes{};
    const cudaError_t status = cudaFuncGetAttributes(&attributes, dependent_launch_probe<>);
    if (status != cudaSuccess) return false;
    answer = attributes.ptxVersion >= 90 ? kYes : kNo;
    answers[device].store(answer, std::memory_order_relaxed);
  }
  return answer == kYes;
}

}  // namespace detail

// Launches a kernel that keeps the rules above.
template <auto kKernel, class... Params>
cudaError_t launch_dependent(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                             const Params&... params) {
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = launch_config(grid, block, shared_bytes, stream);
  config.attrs = &overlap;
  config.numAttrs = detail::can_launch_dependent() ? 1 : 0;
  return launch_kernel<kKernel>(config, params...);
}

}  // namespace lightvl::cuda
