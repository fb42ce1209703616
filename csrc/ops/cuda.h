// The way to the CUDA kernels; in a build without them everything here is inert.
#pragma once

#include <atomic>
#include <random>
#include <stdexcept>
#include <string>

#include "cuda/launchers.h"
#include "ops/stable.h"
#include "ops/tensor.h"

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

// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) : device_(device) {
    cudaGetDevice(&previous_);
    if (previous_ != device_) cudaSetDevice(device_);
  }
  ~OnDevice() {
    if (previous_ != device_) cudaSetDevice(previous_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int device_, previous_ = 0;
};

// Memory on the current device from torch's allocator, free for what comes later on the current
// stream when this ends.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_caching_allocator_raw_alloc(bytes, &data_));
  }
  ~Workspace() {
    if (data_ != nullptr) aoti_torch_cuda_caching_allocator_raw_delete(data_);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

// A number that no other call has and that other data hardly equals; replays of a graph share it.
inline uint64_t next_tag() {
  static std::atomic<uint64_t> last{std::random_device{}() * uint64_t{0x9E3779B97F4A7C15}};
  return ++last;
}

// Launches a kernel on the current stream of the device that holds `tensor`.
template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor) {
  const int32_t device = tensor.get_device_index();
  const OnDevice guard(device);
  check_status(op, launcher(p, current_stream(device)));
}

#else

constexpr bool kCudaBuild = false;

// Declared alone: never called.
struct OnDevice {
  explicit OnDevice(int32_t device);
};
struct Workspace {
  explicit Workspace(int64_t bytes);
  void* data() const;
};
uint64_t next_tag();
template <class Params>
void launch(const char* op, cuda::Launcher<Params>* launcher, const Params& p,
            const Tensor& tensor);

#endif

}  // namespace lightvl
