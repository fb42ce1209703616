// Attention without a mask within each segment of a packed batch (a picture tile's tokens).
#include "cpu/attention_rows.h"
#include "cpu/kernels.h"

namespace lightvl::cpu::LIGHTVL_ISA {
namespace {

template <class T>
const T* at(const void* base, const int64_t (&stride)[2], int64_t token, int64_t head) {
  return static_cast<const T*>(base) + token * stride[0] + head * stride[1];
}

// Query tokens [begin, end) of one head against the segment [first, last).
template <class T>
void attend(const VisionAttentionParams& p, int64_t head, int64_t begin, int64_t end, int64_t first,
            int64_t last) {
  const int dim = static_cast<int>(p.head_dim), rows = static_cast<int>(end - begin);
  TileAttention tile;
  BlockCopy copy;
  tile.begin(rows, dim);
  for (int row = 0; row < rows; ++row) {
    tile.set_query(row, at<T>(p.q, p.q_stride, begin + row, head), p.scale * kLog2E);
  }
  tile.run(0, static_cast<int>(last - first), kKeyBlock, [&](int key, int n) {
    copy.load(0, n, dim, at<T>(p.k, p.k_stride, first + key, head), p.k_stride[0],
              at<T>(p.v, p.v_stride, first + key, head), p.v_stride[0]);
    return copy.block(dim);
  });
  for (int row = 0; row < rows; ++row) {
    T* out = static_cast<T*>(p.out) + (begin + row) * p.out_stride[0] + head * p.out_stride[1];
    store_row(tile.output(row), dim, 1.0f / tile.sum[row], out);
  }
}

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
        attend<T>(p, i / tiles, row, row_end, first, last);
      });
    }
    task += tiles * p.num_heads;
  }
}

}  // namespace lightvl::cpu::LIGHTVL_ISA
