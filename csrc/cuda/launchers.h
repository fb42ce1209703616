// The CUDA kernels' launchers: one per operator, on a stream, without waiting for it.
//
// Free of torch's and CUDA's headers, so that csrc/ops and nvcc both read it. A launcher returns a
// cudaError_t, 0 for success.
#pragma once

#include <cstdint>

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
  float* scores;  // [S, V], room for the edited logits; null: clusters of blocks hold the rows
};

// Whether a cluster of the device's thread blocks can hold a row of the vocabulary.
bool cluster_holds_row(int64_t vocab_size, int device);

// A picture and the grid of tiles that it is resized to.
struct ImageSource {
  const uint8_t* pixels;  // [height, width, 3]
  int32_t width, height;
  int32_t cols, rows;
  int64_t first_tile;
};

struct ImagePreprocessWork {
  const ImageSource* sources;  // [num_sources], in host memory
  int64_t num_sources;
  int64_t tile_size, patch_size;
  float mean_std[6];  // of the channels scaled to 0..1: means, then deviations; unused by uint8
  void* out;          // [tiles, patches, 3, patch_size, patch_size]
  DType dtype;
};

Launcher<RmsNormParams> rms_norm;
Launcher<AddRmsNormParams> add_rms_norm;
Launcher<LayerNormParams> layer_norm;
Launcher<ScaleAddParams> scale_add;
Launcher<SiluMulParams> silu_mul;
Launcher<GeluParams> gelu;
Launcher<RopeWriteKvParams> rope_write_kv;
Launcher<GatherEmbeddingsParams> gather_embeddings;
Launcher<SampleWork> sample;
Launcher<SampleParams> sample_in_clusters;
Launcher<PagedAttentionWork> paged_attention;
Launcher<VisionAttentionWork> vision_attention;
Launcher<ImagePreprocessWork> image_preprocess;

}  // namespace lightvl::cuda
