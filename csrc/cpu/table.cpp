// The kernel table of one instruction set.
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {

extern const Kernels table;
const Kernels table = {
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .layer_norm = layer_norm,
    .scale_add = scale_add,
    .silu_mul = silu_mul,
    .gelu = gelu,
    .rope_write_kv = rope_write_kv,
    .gather_embeddings = gather_embeddings,
    .sample = sample,
    .paged_attention = paged_attention,
    .merge_attention = merge_attention,
    .vision_attention = vision_attention,
    .image_preprocess = image_preprocess,
};

}  // namespace lightvl::cpu::LIGHTVL_ISA
