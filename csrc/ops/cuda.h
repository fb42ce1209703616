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

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_status(const char* op, int status) {
  if (status == cudaSuccess) return;
  const char* text = cudaGetErrorString(static_cast<cudaError_t>(status));
  throw std::runtime_error(std::string(op) + ": " + text);
}

// Launches a kernel on the current stream of the device that holds `tensor`.
template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_status(op, launcher(p, current_stream(device)));
}

#else

constexpr bool kCudaBuild = false;

template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor);  // never called

#endif

}  // namespace lightvl
