#include "cuda/attention/prefill.cuh"

namespace lightvl::cuda {
template cudaError_t launch_prefill_sm90<__nv_bfloat16, 64>(const PagedAttentionWork&,
                                                            cudaStream_t);
}  // namespace lightvl::cuda
