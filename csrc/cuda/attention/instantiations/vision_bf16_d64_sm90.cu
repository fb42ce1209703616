#include "cuda/attention/vision_sm90.cuh"

namespace lightvl::cuda {
template cudaError_t launch_vision_sm90<__nv_bfloat16, 64>(const VisionAttentionWork&,
                                                           cudaStream_t);
}  // namespace lightvl::cuda
