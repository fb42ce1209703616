// The way in which every kernel is launched: through the driver, by its function on the device. The
// runtime looks its kernel up at every launch, which takes the host a tenth longer.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstddef>

#include "cuda/common/device.cuh"

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

template <int = 0>
__global__ void dependent_launch_probe() {}

// Whether the code that this device runs has the instructions of dependent_launch.cuh: not if it
// was compiled from PTX for an older architecture. Asked once per device.
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

// The shape of a launch and what else it asks for.
class LaunchConfig {
 public:
  LaunchConfig(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    config_.gridDim = grid;
    config_.blockDim = block;
    config_.dynamicSmemBytes = shared_bytes;
    config_.stream = stream;
  }

  // Begins before its predecessor on the stream has ended, by the rules of dependent_launch.cuh;
  // after it, where the device's code knows no other way.
  LaunchConfig& overlap() {
    if (detail::can_launch_dependent()) {
      add(cudaLaunchAttributeProgrammaticStreamSerialization)
          .programmaticStreamSerializationAllowed = 1;
    }
    return *this;
  }
  // In clusters of so many blocks.
  LaunchConfig& cluster(unsigned blocks) {
    add(cudaLaunchAttributeClusterDimension).clusterDim = {blocks, 1, 1};
    return *this;
  }
  // All blocks at once or, while others have the device, none.
  LaunchConfig& at_once() {
    add(cudaLaunchAttributeCooperative).cooperative = 1;
    return *this;
  }

  // Refers to what this holds.
  cudaLaunchConfig_t get() const {
    cudaLaunchConfig_t config = config_;
    config.attrs = const_cast<cudaLaunchAttribute*>(attributes_);
    return config;
  }

 private:
  cudaLaunchAttributeValue& add(cudaLaunchAttributeID id) {
    attributes_[config_.numAttrs].id = id;
    return attributes_[config_.numAttrs++].val;
  }

  cudaLaunchConfig_t config_{};
  cudaLaunchAttribute attributes_[3]{};
};

namespace detail {

static_assert(sizeof(CUlaunchAttribute) == sizeof(cudaLaunchAttribute));

// Whether the driver took the launch. It doesn't where the thread has no context yet.
inline bool launch_by_driver(const cudaLaunchConfig_t& config, cudaFunction_t function,
                             void** params) {
  static const auto launch = driver_function<decltype(&cuLaunchKernelEx)>("cuLaunchKernelEx");
  if (launch == nullptr || function == nullptr) return false;
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
  return launch(&same, function, params, nullptr) == CUDA_SUCCESS;
}

template <auto kKernel>
struct KernelLaunch;

template <class... Params, void (*kKernel)(Params...)>
struct KernelLaunch<kKernel> {
  static cudaError_t run(const cudaLaunchConfig_t& config, const Params&... params) {
    void* addresses[] = {const_cast<Params*>(&params)...};
    if (launch_by_driver(config, function(), addresses)) return cudaSuccess;
    return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kKernel), addresses);
  }

 private:
  // The kernel as it is on the current device, or null.
  static cudaFunction_t function() {
    static std::atomic<cudaFunction_t> known[kMaxDevices];
    const int device = current_device();
    if (device < 0) return nullptr;
    cudaFunction_t found = known[device].load(std::memory_order_relaxed);
    if (found == nullptr &&
        cudaGetFuncBySymbol(&found, reinterpret_cast<const void*>(kKernel)) == cudaSuccess) {
      known[device].store(found, std::memory_order_relaxed);
    }
    return found;
  }
};

}  // namespace detail

template <auto kKernel, class... Params>
cudaError_t launch_kernel(const LaunchConfig& config, const Params&... params) {
  return detail::KernelLaunch<kKernel>::run(config.get(), params...);
}

}  // namespace lightvl::cuda
