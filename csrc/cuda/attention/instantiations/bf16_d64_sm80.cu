#include "cuda/attention/paged.cuh"
#include "cuda/attention/vision.cuh"

namespace lightvl::cuda {
template cudaError_t launch_paged_attention<__nv_bfloat16, 64>(const PagedAttentionWork&,
                                                               cudaStream_t);
template cudaError_t launch_vision_attention<__nv_bfloat16, 64>(const VisionAttentionWork&,
                                                                cudaStream_t);
}  // namespace lightvl::cuda
