#include "cuda/launchers.h"
#include "cuda/norm/layer_norm.cuh"
#include "cuda/norm/rms_norm.cuh"
#include "cuda/norm/scale_add.cuh"

namespace lightvl::cuda {

int rms_norm(const RmsNormParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_rms_norm<T>(p, stream); });
}

int add_rms_norm(const AddRmsNormParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_add_rms_norm<T>(p, stream); });
}

int layer_norm(const LayerNormParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_layer_norm<T>(p, stream); });
}

int scale_add(const ScaleAddParams& p, Stream stream) {
  return dispatch_dtype(
      p.dtype, [&]<class T>(std::type_identity<T>) { return launch_scale_add<T>(p, stream); });
}

}  // namespace lightvl::cuda
