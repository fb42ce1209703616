// What a launcher must know of the current device, asked once per device.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>

namespace lightvl::cuda {

constexpr int kMaxDevices = 64;

// An attribute of the current device; 0 if it cannot be had.
template <cudaDeviceAttr kAttribute>
int device_attribute() {
  static std::atomic<int> known[kMaxDevices];
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kMaxDevices) return 0;
  value = known[device].load(std::memory_order_relaxed);
  if (value == 0 && cudaDeviceGetAttribute(&value, kAttribute, device) == cudaSuccess) {
    known[device].store(value, std::memory_order_relaxed);
  }
  return value;
}

// Lets `kKernel` have that much dynamic shared memory; always the same `bytes` for a kernel.
template <auto kKernel>
cudaError_t allow_shared_memory(int bytes) {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  const uint64_t bit = uint64_t{1} << device % kMaxDevices;
  if (allowed.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  status = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (status == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return status;
}

}  // namespace lightvl::cuda
