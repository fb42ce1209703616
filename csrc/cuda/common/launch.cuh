// Launching through the driver, by a kernel's handle: the runtime looks its kernel up at every
// launch, which takes the host a third longer.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>

namespace lightvl::cuda {

// A function of the driver's, or null; Function is the type of its declaration's address.
template <class Function>
Function driver_function(const char* name) {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &entry, 12000, cudaEnableDefault, &found);
  return reinterpret_cast<Function>(status == cudaSuccess ? entry : nullptr);
}

namespace detail {

static_assert(sizeof(CUlaunchAttribute) == sizeof(cudaLaunchAttribute));

// Whether the driver took the launch. It doesn't where the thread has no context yet.
inline bool launch_by_driver(const cudaLaunchConfig_t& config, cudaKernel_t kernel, void** params) {
  static const auto launch = driver_function<decltype(&cuLaunchKernelEx)>("cuLaunchKernelEx");
  if (launch == nullptr || kernel == nullptr) return false;
  const CUlaunchConfig same{
      config.gridDim.x,
      config.gridDim.y,
      config.gridDim.z,
      config.blockDim.x,
      config.blockDim.y,
      config.blockDim.z,
      static_cast<unsigned>(config.dynamicSmemBytes),
      config.stream,
      reinterpret_cast<CUlaunchAttribute*>(config.attrs),
      config.numAttrs,
  };
  return launch(&same, reinterpret_cast<CUfunction>(kernel), params, nullptr) == CUDA_SUCCESS;
}

template <auto kKernel>
struct KernelLaunch;

template <class... Params, void (*kKernel)(Params...)>
struct KernelLaunch<kKernel> {
  static cudaError_t run(const cudaLaunchConfig_t& config, const Params&... params) {
    static const cudaKernel_t handle = [] {
      cudaKernel_t found = nullptr;
      return cudaGetKernel(&found, reinterpret_cast<const void*>(kKernel)) == cudaSuccess ? found
                                                                                          : nullptr;
    }();
    void* addresses[] = {const_cast<Params*>(&params)...};
    if (launch_by_driver(config, handle, addresses)) return cudaSuccess;
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kKernel), addresses);
  }
};

}  // namespace detail

inline cudaLaunchConfig_t launch_config(dim3 grid, dim3 block, size_t shared_bytes,
                                        cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return config;
}

// Launches a kernel, as cudaLaunchKernelEx does.
template <auto kKernel, class... Params>
cudaError_t launch_kernel(const cudaLaunchConfig_t& config, const Params&... params) {
  return detail::KernelLaunch<kKernel>::run(config, params...);
}

}  // namespace lightvl::cuda
