#include "cuda/image/image_preprocess.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

int image_preprocess(const ImagePreprocessWork& work, Stream stream) {
  if (work.work.dtype == DType::kUInt8) return launch_image_preprocess<uint8_t>(work, stream);
  return dispatch_dtype(work.work.dtype, [&]<class T>(std::type_identity<T>) {
    return launch_image_preprocess<T>(work, stream);
  });
}

}  // namespace lightvl::cuda
