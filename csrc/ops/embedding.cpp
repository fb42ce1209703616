// Host side of the embedding gather.
#include "ops/call.h"
#include "ops/check.h"
#include "ops/stable.h"

namespace lightvl {
namespace {

// Rows that will be read lie within their tensors.
void check_rows(const Op& op, const GatherEmbeddingsParams& p, int64_t table_rows,
                int64_t arena_rows) {
  for (int64_t t = 0; t < p.num_tokens; ++t) {
    if (p.image_arena != nullptr && p.image_rows[t] >= 0) {
      op.require(p.image_rows[t] < arena_rows, "image_rows has a row that image_arena lacks");
    } else {
      op.require(p.ids[t] >= 0 && p.ids[t] < table_rows, "ids has an id that table lacks");
    }
  }
}

void gather_embeddings(const Tensor& ids, const Tensor& table, const Tensor& image_rows,
                       const std::optional<Tensor>& image_arena, const Tensor& out) {
  Op op{"gather_embeddings"};
  Dim T{"T"}, V{"V"}, C{"C"}, A{"A"};
  Type dtype;
  op.match("ids", ids).shape(T).type(ScalarType::Long).contiguous();
  op.match("table", table).shape(V, C).type(dtype).rows();
  op.match("image_rows", image_rows).shape(T).type(ScalarType::Int).contiguous();
  if (image_arena) op.match("image_arena", *image_arena).shape(A, C).type(dtype).rows();
  op.match("out", out).shape(T, C).type(dtype).rows();
  if (T == 0) return;
  const int64_t element_bytes = static_cast<int64_t>(table.element_size());
  const GatherEmbeddingsParams p{
      .ids = ids.const_data_ptr<int64_t>(),
      .table = table.const_data_ptr(),
      .image_rows = image_rows.const_data_ptr<int32_t>(),
      .image_arena = data_or_null(image_arena),
      .out = out.mutable_data_ptr(),
      .num_tokens = T,
      .row_bytes = C * element_bytes,
      .table_stride_bytes = table.stride(0) * element_bytes,
      .image_arena_stride_bytes = image_arena ? image_arena->stride(0) * element_bytes : 0,
      .out_stride_bytes = out.stride(0) * element_bytes,
  };
  if constexpr (kCudaBuild) {
    if (table.is_cuda()) return launch(op.name, cuda::gather_embeddings, p, table);
  }
  check_rows(op, p, V, image_arena ? int64_t{A} : 0);
  run_rows(cpu::kernels().gather_embeddings, p, T, C);
}

template <class Library>
void implement_all(Library& m) {
  implement<&gather_embeddings>(m, "gather_embeddings");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(lightvl, CPU, m) { implement_all(m); }
#ifdef LIGHTVL_CUDA
STABLE_TORCH_LIBRARY_IMPL(lightvl, CUDA, m) { implement_all(m); }
#endif

}  // namespace lightvl
