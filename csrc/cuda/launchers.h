// The CUDA kernels' launchers: one per operator, on a stream, without waiting for it.
//
// Free of torch's and CUDA's headers, so that csrc/ops and nvcc both read it. A launcher returns a
// cudaError_t, 0 for success.
#pragma once

#include <cstdint>

#include "cpu/image_plan.h"
#include "params.h"

struct CUstream_st;

namespace lightvl::cuda {

using Stream = CUstream_st*;

template <class Params>
using Launcher = int(const Params& p, Stream stream);

// Attention over keys that are split between blocks: every split leaves its normalised output and
// the base-2 logarithm of its denominator here, which a second kernel merges.
struct AttentionSplits {
  float* out;          // [num_splits, T, H, D]
  float* lse;          // [num_splits, T, H]
  int64_t num_splits;  // 1: no merge, both null
};

struct PagedAttentionWork {
  PagedAttentionParams params;
  AttentionSplits splits;
  int64_t num_tokens, max_q_len;
};

struct VisionAttentionWork {
  VisionAttentionParams params;
  int64_t max_len;
};

struct SampleWork {
  SampleParams params;
  float* scores;  // [S, V], room for the edited logits
};

// The strips, their axes and the table lie in device memory.
struct ImagePreprocessWork {
  cpu::ImagePreprocessWork work;
  int64_t max_rows;  // output rows of the tallest strip
};

Launcher<RmsNormParams> rms_norm;
Launcher<AddRmsNormParams> add_rms_norm;
Launcher<LayerNormParams> layer_norm;
Launcher<ScaleAddParams> scale_add;
Launcher<SiluMulParams> silu_mul;
Launcher<GeluParams> gelu;
Launcher<RopeWriteKvParams> rope_write_kv;
Launcher<LinearSmallParams> linear_small;
Launcher<GatherEmbeddingsParams> gather_embeddings;
Launcher<SampleWork> sample;
Launcher<PagedAttentionWork> paged_attention;
Launcher<VisionAttentionWork> vision_attention;
Launcher<ImagePreprocessWork> image_preprocess;

}  // namespace lightvl::cuda
