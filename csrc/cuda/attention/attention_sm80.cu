// Picks the instantiation; they are compiled in files of their own.
#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

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

}  // namespace

int paged_attention(const PagedAttentionWork& work, Stream stream) {
  return dispatch(work.params.dtype, work.params.head_dim,
                  [&]<class T>(std::type_identity<T>, auto head_dim) {
                    return launch_paged_attention<T, head_dim>(work, stream);
                  });
}

int vision_attention(const VisionAttentionWork& work, Stream stream) {
  return dispatch(work.params.dtype, work.params.head_dim,
                  [&]<class T>(std::type_identity<T>, auto head_dim) {
                    return launch_vision_attention<T, head_dim>(work, stream);
                  });
}

}  // namespace lightvl::cuda
