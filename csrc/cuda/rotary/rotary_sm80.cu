#include "cuda/launchers.h"
#include "cuda/rotary/rope_write_kv.cuh"

namespace lightvl::cuda {

int rope_write_kv(const RopeWriteKvParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_rope_write_kv<T>(p, stream); });
}

}  // namespace lightvl::cuda
