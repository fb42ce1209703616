// The way to the CUDA kernels; in a build without them everything here is inert.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/launchers.h"
#include "ops/stable.h"

#ifdef LIGHTVL_CUDA
#include <cuda_runtime_api.h>
#endif

namespace lightvl {

#ifdef LIGHTVL_CUDA

constexpr bool kCudaBuild = true;

// Launches a kernel on the current stream of the device that holds `tensor`.
template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  const int status = launcher(p, static_cast<cuda::Stream>(stream));
  if (status != 0) {
    throw std::runtime_error(std::string(op) + ": " +
                             cudaGetErrorString(static_cast<cudaError_t>(status)));
  }
}

#else

constexpr bool kCudaBuild = false;

template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor);  // never called

#endif

}  // namespace lightvl
