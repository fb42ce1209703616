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

// Room in device memory that a call of paged attention has to itself while it runs; its contents
// may be anything. What lies there tells of this call only if it bears the call's tag, a number
// that no other call has.
struct AttentionWorkspace {
  void* data;  // 16-byte aligned
  int64_t bytes;
  uint64_t tag;  // a graph's replays share it
};

struct PagedAttentionWork {
  PagedAttentionParams params;
  AttentionWorkspace workspace;
  int64_t num_tokens, max_q_len;
  int64_t max_pages;    // columns of page_table
  int64_t decode_rows;  // sequences of up to so many rows, new tokens times group, are left to the
                        // decode kernel by the prefill kernels and the only ones it takes
  bool only_sm80;       // leave the kernels for sm_90 alone
};

struct VisionAttentionWork {
  VisionAttentionParams params;
  int64_t max_len, num_tokens;
  bool only_sm80;  // leave the kernels for sm_90 alone
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
Launcher<LinearSmallParams> linear_small;
Launcher<GatherEmbeddingsParams> gather_embeddings;
Launcher<SampleWork> sample;
Launcher<SampleParams> sample_in_clusters;
// Sets `workspace.bytes` and `decode_rows` of a call whose sizes are filled in.
void plan_paged_attention(PagedAttentionWork& work);
Launcher<PagedAttentionWork> paged_attention;
Launcher<VisionAttentionWork> vision_attention;
Launcher<ImagePreprocessWork> image_preprocess;

}  // namespace lightvl::cuda
