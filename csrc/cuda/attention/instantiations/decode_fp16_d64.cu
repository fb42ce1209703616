#include "cuda/attention/decode.cuh"

namespace lightvl::cuda {
template cudaError_t launch_decode_attention<__half, 64>(const PagedAttentionWork&, cudaStream_t);
}  // namespace lightvl::cuda
