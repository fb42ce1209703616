#include "cuda/launchers.h"
#include "cuda/linear/linear_small.cuh"

namespace lightvl::cuda {

int linear_small(const LinearSmallParams& p, Stream stream) {
  if (p.num_tokens * p.out_width == 0) return cudaSuccess;
  return dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
    if constexpr (std::is_same_v<T, float>)
      return cudaErrorInvalidValue;
    else
      return launch_linear_small<T>(p, stream);
  });
}

}  // namespace lightvl::cuda
