// Picks the kernels of a call by its sizes and the device; they are compiled in files of their own.
#include "cuda/attention/decode_launch.cuh"
#include "cuda/attention/prefill_launch.cuh"
#include "cuda/common/device.cuh"
#include "cuda/common/numeric.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class T, int kHeadDim>
cudaError_t launch_decode_attention(const PagedAttentionWork& work, cudaStream_t stream);
template <class T, int kHeadDim>
cudaError_t launch_paged_attention(const PagedAttentionWork& work, cudaStream_t stream);
template <class T, int kHeadDim>
cudaError_t launch_vision_attention(const VisionAttentionWork& work, cudaStream_t stream);
template <class T, int kHeadDim>
cudaError_t launch_vision_sm90(const VisionAttentionWork& work, cudaStream_t stream);

namespace {

#ifdef LIGHTVL_SM90
constexpr bool kHopperBuild = true;
#else
constexpr bool kHopperBuild = false;
#endif

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

// Whether there may be kernels for sm_90 of that head dim on this device.
bool is_hopper(int64_t head_dim) {
  return kHopperBuild && head_dim != 96 &&
         device_attribute<cudaDevAttrComputeCapabilityMajor>() == 9;
}

// What a call of paged attention is made of.
struct PagedPlan {
  bool decode, prefill, hopper;
  int64_t decode_rows;

  static PagedPlan make(const PagedAttentionWork& work) {
    const int64_t group = work.params.num_heads / work.params.num_kv_heads;
    const int64_t most_rows = work.max_q_len * group;
    // Sequences of up to 8 rows cost the decode kernel less than those of up to 16.
    const bool wide = group > 8 || (most_rows > 8 && most_rows <= 16);
    const int64_t rows = group > 16 ? 0 : wide ? 16 : 8;
    const bool prefill = most_rows > rows;
    const bool all_long = prefill && work.params.num_seqs == 1 && work.num_tokens * group > rows;
    return {rows > 0 && !all_long, prefill,
            !work.only_sm80 && is_hopper(work.params.head_dim) && takes_prefill_sm90(work), rows};
  }
};

}  // namespace

void plan_paged_attention(PagedAttentionWork& work) {
  const PagedPlan plan = PagedPlan::make(work);
  work.decode_rows = plan.decode ? plan.decode_rows : 0;
  work.workspace.bytes = 0;
  if (plan.decode) {
    work.workspace.bytes =
        plan.decode_rows == 8 ? decode_workspace_bytes<1>(work) : decode_workspace_bytes<2>(work);
  }
  if (plan.prefill && plan.hopper) {
    work.workspace.bytes = std::max(work.workspace.bytes, prefill_sm90_workspace_bytes(work));
  }
}

int paged_attention(const PagedAttentionWork& work, Stream stream) {
  const PagedPlan plan = PagedPlan::make(work);
  if (work.params.num_seqs == 0 || work.max_q_len == 0) return cudaSuccess;
  return dispatch(work.params.dtype, work.params.head_dim,
                  [&]<class T>(std::type_identity<T>, auto head_dim) {
                    cudaError_t status = cudaSuccess;
                    if (plan.decode) status = launch_decode_attention<T, head_dim>(work, stream);
                    if (!plan.prefill || status != cudaSuccess) return status;
                    if constexpr (kHopperBuild && head_dim != 96) {
                      if (plan.hopper) return launch_prefill_sm90<T, head_dim>(work, stream);
                    }
                    return launch_paged_attention<T, head_dim>(work, stream);
                  });
}

int vision_attention(const VisionAttentionWork& work, Stream stream) {
  return dispatch(work.params.dtype, work.params.head_dim,
                  [&]<class T>(std::type_identity<T>, auto head_dim) {
                    if constexpr (kHopperBuild && head_dim != 96) {
                      if (!work.only_sm80 && is_hopper(head_dim)) {
                        return launch_vision_sm90<T, head_dim>(work, stream);
                      }
                    }
                    return launch_vision_attention<T, head_dim>(work, stream);
                  });
}

}  // namespace lightvl::cuda
