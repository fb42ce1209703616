// Parameter blocks of the kernels: plain data, shared by the CPU and CUDA kernels.
//
// Dims: S sequences, T tokens, H/K query/KV heads, D head dim, C hidden, V vocabulary, N pages,
// P page size. Pointers are typed where the dtype is fixed and `void*` where it is `dtype`.
// Strides count elements; the last dimension is always contiguous.
#pragma once

#include <cstdint>

namespace lightvl {

enum class DType : int32_t { kFloat32, kBFloat16, kFloat16, kUInt8 };

struct RmsNormParams {
  const void* x;       // [T, H, C]; H is 1 for a 2-D input
  const void* weight;  // [C]
  void* out;           // [T, H, C]
  int64_t num_tokens, num_heads, width;
  int64_t x_stride_t, x_stride_h;
  int64_t out_stride_t, out_stride_h;
  float eps;
  DType dtype;
};

struct AddRmsNormParams {
  const void* x;       // [T, C]
  void* residual;      // [T, C], becomes residual + x
  const void* weight;  // [C]
  void* out;           // [T, C]
  int64_t num_tokens, width;
  int64_t x_stride, residual_stride, out_stride;
  float eps;
  DType dtype;
};

struct LayerNormParams {
  const void* x;       // [T, C]
  const void* weight;  // [C]
  const void* bias;    // [C]
  void* out;           // [T, C]
  int64_t num_tokens, width;
  int64_t x_stride, out_stride;
  float eps;
  DType dtype;
};

struct ScaleAddParams {
  const void* x;         // [T, C]
  const void* bias;      // [C] or null
  const void* scale;     // [C]
  const void* residual;  // [T, C]
  void* out;             // [T, C], may be residual
  int64_t num_tokens, width;
  int64_t x_stride, residual_stride, out_stride;
  DType dtype;
};

struct SiluMulParams {
  const void* gate_up;  // [T, 2 * width]: gate, then up
  void* out;            // [T, width]
  int64_t num_tokens, width;
  int64_t gate_up_stride, out_stride;
  DType dtype;
};

struct GeluParams {
  const void* x;     // [T, C]
  const void* bias;  // [C] or null
  void* out;         // [T, C], may be x
  int64_t num_tokens, width;
  int64_t x_stride, out_stride;
  DType dtype;
};

struct LinearSmallParams {
  const void* x;         // [T, C], at most 16 rows
  const void* weight;    // [F, C]; with silu_mul [2F, C]: gate, then up
  const void* bias;      // [F] or [2F], or null
  const void* residual;  // [T, F] or null
  void* out;             // [T, F], may be residual
  int64_t num_tokens, width, out_width;
  int64_t x_stride, weight_stride, residual_stride, out_stride;
  bool silu_mul;
  DType dtype;
};

struct RopeWriteKvParams {
  void* q;               // [T, H, D], rotated in place
  const void* k;         // [T, K, D]
  const void* v;         // [T, K, D]
  const float* cos_sin;  // [R, D]: cos[D/2], then sin[D/2]
  const int32_t* rows;   // [T], rows of cos_sin
  const int64_t* slots;  // [T], page * P + offset, or -1: not written
  void* k_cache;         // [N, K, P, D]
  void* v_cache;         // [N, K, P, D]
  const void* q_norm;    // [D] or null
  const void* k_norm;    // [D] or null
  int64_t num_tokens, num_heads, num_kv_heads, head_dim, page_size;
  int64_t q_stride_t, q_stride_h;
  int64_t k_stride_t, k_stride_h;
  int64_t v_stride_t, v_stride_h;
  float eps;
  DType dtype;
};

struct GatherEmbeddingsParams {
  const int64_t* ids;         // [T], rows of table
  const void* table;          // [V, C]
  const int32_t* image_rows;  // [T], rows of image_arena; negative: take the id's row
  const void* image_arena;    // [A, C] or null: text only
  void* out;                  // [T, C]
  int64_t num_tokens;
  int64_t row_bytes;  // of C elements
  int64_t table_stride_bytes, image_arena_stride_bytes, out_stride_bytes;
};

struct PagedAttentionParams {
  const void* q;                // [T, H, D]
  const void* k_cache;          // [N, K, P, D]
  const void* v_cache;          // [N, K, P, D]
  const int32_t* page_table;    // [S, pages a sequence]
  const int32_t* cu_q_lens;     // [S + 1]
  const int32_t* context_lens;  // [S]
  void* out;                    // [T, H, D]
  float* lse;                   // [T, H] or null
  int64_t num_seqs, num_heads, num_kv_heads, head_dim, page_size;
  int64_t q_stride[2], out_stride[2];  // token, head
  int64_t k_stride[3], v_stride[3];    // page, KV head, slot
  int64_t page_table_stride;
  float scale;
  DType dtype;
};

struct VisionAttentionParams {
  const void* q;           // [T, H, D]
  const void* k;           // [T, H, D]
  const void* v;           // [T, H, D]
  const int32_t* cu_lens;  // [S + 1]
  void* out;               // [T, H, D]
  int64_t num_seqs, num_heads, head_dim;
  int64_t tile_rows;                                             // query tokens of one task
  int64_t q_stride[2], k_stride[2], v_stride[2], out_stride[2];  // token, head
  float scale;
  DType dtype;
};

struct SampleParams {
  const void* logits;           // [S, V]
  const float* temperature;     // [S], below 1e-5: greedy
  const int32_t* top_k;         // [S], 0 or less: off
  const float* top_p;           // [S], 1: off
  const float* min_p;           // [S], 0: off
  const int64_t* seeds;         // [S]
  const int64_t* offsets;       // [S], index of the token being drawn
  const float* penalties;       // [S, 3]: repetition, presence, frequency; or null
  int16_t* counts;              // [R, V], occurrences so far, updated; or null
  const int32_t* count_rows;    // [S], rows of counts, -1: none; null with counts
  const int32_t* bias_offsets;  // [S + 1], ranges of the two below; or null
  const int32_t* bias_ids;      // [M]
  const float* bias_values;     // [M]
  const int32_t* allowed_mask;  // [S, ceil(V / 32)], bit set: allowed; or null
  int64_t* out_ids;             // [S]
  float* logprobs;              // [S], of the drawn ids, or null
  int32_t* top_ids;             // [S, num_top], most probable first, or null
  float* top_logprobs;          // [S, num_top], or null
  int64_t num_sequences, vocab_size, num_top;
  int64_t logits_stride, counts_stride;
  DType dtype;
};

}  // namespace lightvl
