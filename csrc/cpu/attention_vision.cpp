// Attention without a mask within each segment of a packed batch (a picture tile's tokens).
#include "cpu/attention_rows.h"
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

// One head of one segment, whose first token is `first`.
template <class T>
struct Segment {
  const VisionAttentionParams& p;
  int64_t head, first, last;

  const T* at(const void* base, const int64_t (&stride)[2], int64_t token) const {
    return static_cast<const T*>(base) + token * stride[0] + head * stride[1];
  }

  // Keys [key, key + n) of the segment, copied: rows of a packed projection lie so far apart that
  // a block of them doesn't stay in the first cache level.
  KeyValueBlock block(BlockCopy& copy, int key, int n) const {
    const int dim = static_cast<int>(p.head_dim);
    copy.load(0, n, dim, at(p.k, p.k_stride, first + key), p.k_stride[0],
              at(p.v, p.v_stride, first + key), p.v_stride[0]);
    return copy.block(dim);
  }

  template <class Attention>
  void attend_with(int64_t begin, int64_t end) const {
    const int dim = static_cast<int>(p.head_dim), rows = static_cast<int>(end - begin);
    Attention attention;
    BlockCopy copy;
    attention.begin(rows, dim);
    for (int row = 0; row < rows; ++row) {
      attention.set_query(row, at(p.q, p.q_stride, begin + row), p.scale * kLog2E);
    }
    attention.run(0, static_cast<int>(last - first), kKeyBlock,
                  [&](int key, int n) { return block(copy, key, n); });
    for (int row = 0; row < rows; ++row) {
      T* out = static_cast<T*>(p.out) + (begin + row) * p.out_stride[0] + head * p.out_stride[1];
      store_row(attention.output(row), dim, 1.0f / attention.sum[row], out);
    }
  }

  // Query tokens [begin, end). The few behind a multiple of 64, such as the class token that comes
  // with a square of patches, don't fill vectors.
  void attend(int64_t begin, int64_t end) const {
    int64_t rest = (end - begin) % TileAttention::kGroupRows;
    if (rest > kFewRows) rest = 0;
    if (end - begin > rest) attend_with<TileAttention>(begin, end - rest);
    if (rest > 0) attend_with<FewAttention>(end - rest, end);
  }
};

}  // namespace

void vision_attention(const VisionAttentionParams& p, int64_t begin, int64_t end) {
  int64_t task = 0;  // number of the segment's first task
  for (int64_t s = 0; s < p.num_seqs && task < end; ++s) {
    const int64_t first = p.cu_lens[s], last = p.cu_lens[s + 1];
    const int64_t tiles = (last - first + p.tile_rows - 1) / p.tile_rows;
    for (int64_t i = begin > task ? begin - task : 0; i < tiles * p.num_heads && task + i < end;
         ++i) {
      const int64_t row = first + i % tiles * p.tile_rows;
      const int64_t row_end = row + p.tile_rows < last ? row + p.tile_rows : last;
      dispatch_dtype(p.dtype, [&]<class T>(std::type_identity<T>) {
        Segment<T>{p, i / tiles, first, last}.attend(row, row_end);
      });
    }
    task += tiles * p.num_heads;
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
