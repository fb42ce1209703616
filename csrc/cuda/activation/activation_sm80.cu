#include "cuda/activation/activation.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

int silu_mul(const SiluMulParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_silu_mul<T>(p, stream); });
}

int gelu(const GeluParams& p, Stream stream) {
  return dispatch_dtype(p.dtype,
                        [&]<class T>(std::type_identity<T>) { return launch_gelu<T>(p, stream); });
}

}  // namespace lightvl::cuda
