// Every operator's schema, one line each. Implementations register in their family's file.
#include "ops/stable.h"

// clang-format off
STABLE_TORCH_LIBRARY(lightvl, m) {
  m.def("cpu_isa() -> str");
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) out) -> ()");
  m.def("add_rms_norm(Tensor x, Tensor(a!) residual, Tensor weight, float eps, Tensor(b!) out) -> ()");
  m.def("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, Tensor(a!) out) -> ()");
  m.def("scale_add(Tensor x, Tensor? bias, Tensor scale, Tensor residual, Tensor(a!) out) -> ()");
  m.def("silu_mul(Tensor gate_up, Tensor(a!) out) -> ()");
  m.def("gelu(Tensor x, Tensor? bias, Tensor(a!) out) -> ()");
  m.def("rope_write_kv(Tensor(a!) q, Tensor k, Tensor v, Tensor cos_sin, Tensor rows, Tensor slots, Tensor(b!) k_cache, Tensor(c!) v_cache, Tensor? q_norm, Tensor? k_norm, float eps) -> ()");
  m.def("gather_embeddings(Tensor ids, Tensor table, Tensor image_rows, Tensor? image_arena, Tensor(a!) out) -> ()");
  m.def("sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor top_p, Tensor min_p, Tensor seeds, Tensor offsets, Tensor? penalties, Tensor(a!)? counts, Tensor? count_rows, Tensor? bias_offsets, Tensor? bias_ids, Tensor? bias_values, Tensor? allowed_mask, Tensor(b!) out_ids, Tensor(c!)? logprobs, Tensor(d!)? top_ids, Tensor(e!)? top_logprobs) -> ()");
  m.def("paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor page_table, Tensor cu_q_lens, Tensor context_lens, float scale, int max_q_len, Tensor(a!) out, Tensor(b!)? lse) -> ()");
  m.def("vision_attention(Tensor q, Tensor k, Tensor v, Tensor cu_lens, int max_len, float scale, Tensor(a!) out) -> ()");
  m.def("linear_small(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool silu_mul, Tensor(a!) out) -> ()");
  m.def("image_preprocess(Tensor[] images, Tensor grids, int tile_size, int patch_size, Tensor? mean_std, Tensor(a!) out) -> ()");
}
// clang-format on

namespace lightvl {
namespace {

std::string cpu_isa() { return cpu::isa(); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}

}  // namespace lightvl
