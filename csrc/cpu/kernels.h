// The CPU kernels, one table of function pointers per instruction set.
//
// Every kernel source of this folder is compiled once per instruction set with LIGHTVL_ISA defined
// to its name (generic, avx2, avx512), which becomes the namespace of all its code; `kernels()`
// picks the best set this processor runs. A kernel works on rows [begin, end) of what its comment
// calls a row, so that the caller may split the rows over threads.
#pragma once

#include <cstdint>
#include <string_view>

#include "cpu/attention_plan.h"
#include "cpu/image_plan.h"
#include "params.h"

namespace lightvl::cpu {

template <class Params>
using RowKernel = void(const Params& p, int64_t begin, int64_t end);

struct Kernels {
  RowKernel<RmsNormParams>* rms_norm;         // row = (token, head)
  RowKernel<AddRmsNormParams>* add_rms_norm;  // row = token
  RowKernel<LayerNormParams>* layer_norm;
  RowKernel<ScaleAddParams>* scale_add;
  RowKernel<SiluMulParams>* silu_mul;
  RowKernel<GeluParams>* gelu;
  RowKernel<RopeWriteKvParams>* rope_write_kv;
  RowKernel<GatherEmbeddingsParams>* gather_embeddings;
  RowKernel<SampleParams>* sample;                     // row = sequence
  RowKernel<PagedAttentionWork>* paged_attention;      // row = unit of its tasks' cost
  RowKernel<PagedAttentionWork>* merge_attention;      // row = (merge, KV head)
  RowKernel<VisionAttentionParams>* vision_attention;  // row = (segment, head, query tile)
  RowKernel<ImagePreprocessWork>* image_preprocess;    // row = unit of its strips' cost
};

// Name and table of the chosen set. LIGHTVL_CPU_ISA in the environment overrides the choice;
// throws std::invalid_argument if it names a set that the build or the processor lacks.
const char* isa();
const Kernels& kernels();

// Whether the build has the set of this name and the processor runs it.
bool is_supported(std::string_view name);

#ifdef LIGHTVL_ISA
namespace LIGHTVL_ISA {
RowKernel<RmsNormParams> rms_norm;
RowKernel<AddRmsNormParams> add_rms_norm;
RowKernel<LayerNormParams> layer_norm;
RowKernel<ScaleAddParams> scale_add;
RowKernel<SiluMulParams> silu_mul;
RowKernel<GeluParams> gelu;
RowKernel<RopeWriteKvParams> rope_write_kv;
RowKernel<GatherEmbeddingsParams> gather_embeddings;
RowKernel<SampleParams> sample;
RowKernel<PagedAttentionWork> paged_attention;
RowKernel<PagedAttentionWork> merge_attention;
RowKernel<VisionAttentionParams> vision_attention;
RowKernel<ImagePreprocessWork> image_preprocess;
}  // namespace LIGHTVL_ISA
#endif

}  // namespace lightvl::cpu
