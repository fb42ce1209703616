// Picks the kernels of a call; they are compiled in files of their own.
#include "cuda/attention/decode_launch.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class T, int kHeadDim>
cudaError_t launch_decode_attention(const PagedAttentionWork& work, cudaStream_t stream);
template <class T, int kHeadDim>
cudaError_t launch_paged_attention(const PagedAttentionWork& work, cudaStream_t stream);
template <class T, int kHeadDim>
cudaError_t launch_vision_attention(const VisionAttentionWork& work, cudaStream_t stream);

namespace {

// Calls f(std::type_identity<T>, std::integral_constant<int, kHeadDim>).
template <class F>
cudaError_t dispatch(DType dtype, int64_t head_dim, F&& f) {
  return dispatch_dtype(dtype, [&]<class T>(std::type_identity<T> type) {
    if constexpr (!std::is_same_v<T, float>) {
      if (head_dim == 64) return f(type, std::integral_constant<int, 64>{});
      if (head_dim == 96) return f(type, std::integral_constant<int, 96>{});
      if (head_dim == 128) return f(type, std::integral_constant<int, 128>{});
    }
    return cudaErrorInvalidValue;
  });
}

template <class T, int kHeadDim>
cudaError_t prefill(const PagedAttentionWork& work, cudaStream_t stream) {
  return launch_paged_attention<T, kHeadDim>(work, stream);
}

}  // namespace

void plan_paged_attention(PagedAttentionWork& work) {
  const int64_t group = work.params.num_heads / work.params.num_kv_heads;
  const int64_t rows = work.max_q_len * group;
  // Sequences of up to 8 rows cost the decode kernel half of what those of up to 16 do.
  work.decode_rows = group > 16 ? 0 : group > 8 || (rows > 8 && rows <= 16) ? 16 : 8;
  work.workspace.bytes = work.decode_rows == 8    ? decode_workspace_bytes<1>(work)
                         : work.decode_rows == 16 ? decode_workspace_bytes<2>(work)
                                                  : 0;
}

int paged_attention(const PagedAttentionWork& work, Stream stream) {
  const PagedAttentionParams& p = work.params;
  if (p.num_seqs == 0 || work.max_q_len == 0) return cudaSuccess;
  const int64_t rows = work.max_q_len * (p.num_heads / p.num_kv_heads);
  const bool few = rows <= work.decode_rows;  // of every sequence
  const bool one_long =
      p.num_seqs == 1 && work.num_tokens * rows > work.decode_rows * work.max_q_len;
  return dispatch(p.dtype, p.head_dim, [&]<class T>(std::type_identity<T>, auto head_dim) {
    if (work.decode_rows > 0 && !one_long) {
      const cudaError_t status = launch_decode_attention<T, head_dim>(work, stream);
      if (few || status != cudaSuccess) return status;
    }
    return prefill<T, head_dim>(work, stream);
  });
}

int vision_attention(const VisionAttentionWork& work, Stream stream) {
  return dispatch(work.params.dtype, work.params.head_dim,
                  [&]<class T>(std::type_identity<T>, auto head_dim) {
                    return launch_vision_attention<T, head_dim>(work, stream);
                  });
}

}  // namespace lightvl::cuda
