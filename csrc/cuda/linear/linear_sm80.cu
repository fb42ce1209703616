// Which shape of the kernel a product gets.
#include <algorithm>

#include "cuda/launchers.h"
#include "cuda/linear/linear_small.cuh"

namespace lightvl::cuda {
namespace {

// How a device runs the kernel.
struct LinearDevice {
  int num_sms;
  int shared_bytes;  // that a block may have
  bool early;        // whether its code has the instructions of programmatic launch

  cudaError_t read() {
    int device, major;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
    if (status == cudaSuccess)
      status =
          cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
#ifdef LIGHTVL_SM90
    early = major == 9;
#else
    early = false;
#endif
    return status;
  }
};

// One block an SM. The shape follows from the device and the weight alone, never from the rows of
// x: shapes add the products in different orders.
template <class T>
cudaError_t launch_linear_small(const LinearSmallParams& p, cudaStream_t stream) {
  if (p.num_tokens * p.out_width == 0) return cudaSuccess;
  LinearDevice device;
  const cudaError_t status = device.read();
  if (status != cudaSuccess) return status;
  const int blocks = static_cast<int>(std::min<int64_t>(device.num_sms, p.out_width));
  const auto launch = [&]<class Shape>(Shape) {
    return launch_shape<T, Shape>(p, blocks, device.early, stream);
  };
  using Wide = LinearShape<8, 8, 1, 4, false>;
  if (device.shared_bytes < Wide::shared_bytes(2)) {
    if (p.silu_mul) return launch(LinearShape<4, 8, 1, 3, true>{});
    return launch(LinearShape<4, 8, 1, 3, false>{});
  }
  if (p.silu_mul) return launch(LinearShape<8, 8, 1, 4, true>{});
  if (p.out_width > 16 * blocks) return launch(Wide{});
  if (p.width > 1024) return launch(LinearShape<2, 8, 1, 6, false>{});
  return launch(LinearShape<2, 16, 1, 3, false>{});
}

}  // namespace

int linear_small(const LinearSmallParams& p, Stream stream) {
  return dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, float>)
      return cudaErrorInvalidValue;
    else
      return launch_linear_small<T>(p, stream);
  });
}

}  // namespace lightvl::cuda
