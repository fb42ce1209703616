#include "cuda/attention/prefill.cuh"

namespace lightvl::cuda {
template cudaError_t launch_prefill_sm90<__half, 64>(const PagedAttentionWork&, cudaStream_t);
}  // namespace lightvl::cuda
