// What a launcher must know of the current device, asked once per device.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace lightvl::cuda {

constexpr int kMaxDevices = 64;

// The current device, or -1; asking CUDA takes as long as all else that a launcher does.
inline int current_device() {
  static const bool only_one = [] {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess && count == 1;
  }();
  int device = 0;
  if (only_one) return 0;
  return cudaGetDevice(&device) == cudaSuccess && device < kMaxDevices ? device : -1;
}

// An attribute of a device; 0 if it cannot be had.
template <cudaDeviceAttr kAttribute>
int device_attribute(int device = current_device()) {
  static std::atomic<int> known[kMaxDevices];
  if (device < 0 || device >= kMaxDevices) return 0;
  int value = known[device].load(std::memory_order_relaxed);
  if (value == 0 && cudaDeviceGetAttribute(&value, kAttribute, device) == cudaSuccess) {
    known[device].store(value, std::memory_order_relaxed);
  }
  return value;
}

// Calls `prepare` unless it has succeeded on the current device; each place in the code by itself.
template <class Prepare>
cudaError_t once_per_device(const Prepare& prepare) {
  static std::atomic<uint64_t> prepared{0};
  const int device = current_device();
  if (device < 0) return cudaErrorInvalidDevice;
  const uint64_t bit = uint64_t{1} << device;
  if (prepared.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const cudaError_t status = prepare();
  if (status == cudaSuccess) prepared.fetch_or(bit, std::memory_order_relaxed);
  return status;
}

// Lets `kKernel` have that much dynamic shared memory; always the same `bytes` for a kernel.
template <auto kKernel>
cudaError_t allow_shared_memory(int bytes) {
  return once_per_device([=] {
    return cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  });
}

}  // namespace lightvl::cuda
