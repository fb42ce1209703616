#include "cuda/attention/paged.cuh"
#include "cuda/attention/vision.cuh"

namespace lightvl::cuda {
template cudaError_t launch_paged_attention<__half, 96>(const PagedAttentionWork&, cudaStream_t);
template cudaError_t launch_vision_attention<__half, 96>(const VisionAttentionWork&, cudaStream_t);
}  // namespace lightvl::cuda
