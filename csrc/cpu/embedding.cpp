// Rows of the model's input: a picture's row where a token has one, else its row of the table.
#include <cstring>

#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {

void gather_embeddings(const GatherEmbeddingsParams& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const bool is_image = p.image_arena != nullptr && p.image_rows[t] >= 0;
    const char* row =
        is_image
            ? static_cast<const char*>(p.image_arena) + p.image_rows[t] * p.image_arena_stride_bytes
            : static_cast<const char*>(p.table) + p.ids[t] * p.table_stride_bytes;
    std::memcpy(static_cast<char*>(p.out) + t * p.out_stride_bytes, row, p.row_bytes);
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
