#include "cuda/attention/decode.cuh"

namespace lightvl::cuda {
template cudaError_t launch_decode_attention<__nv_bfloat16, 96>(const PagedAttentionWork&,
                                                                cudaStream_t);
}  // namespace lightvl::cuda
