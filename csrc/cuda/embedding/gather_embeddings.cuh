// Rows of the embedding table or of the pictures' arena -> rows of the output, copied as words of
// the largest size that all rows can be cut into.
#pragma once

#include "cuda/common/elementwise.cuh"

namespace lightvl::cuda {

template <class Word>
struct GatherRow {
  static constexpr int kPack = 1;
  using Inputs = Word;
  GatherEmbeddingsParams p;

  __device__ void prefetch(int64_t t) const {
    prefetch_to_l2(p.ids + t);
    prefetch_to_l2(p.image_rows + t);
  }

  __device__ Word load(int64_t t, int64_t word) const {
    const bool is_image = p.image_arena != nullptr && p.image_rows[t] >= 0;
    const char* row =
        is_image
            ? static_cast<const char*>(p.image_arena) + p.image_rows[t] * p.image_arena_stride_bytes
            : static_cast<const char*>(p.table) + p.ids[t] * p.table_stride_bytes;
    return reinterpret_cast<const Word*>(row)[word];
  }

  __device__ void store(int64_t t, int64_t word, const Word& value) const {
    char* row = static_cast<char*>(p.out) + t * p.out_stride_bytes;
    reinterpret_cast<Word*>(row)[word] = value;
  }
};

inline cudaError_t launch_gather_embeddings(const GatherEmbeddingsParams& p, cudaStream_t stream) {
  const auto cuts_into = [&](int64_t bytes) {
    return all_multiples(bytes, p.table, p.image_arena, p.out, p.row_bytes, p.table_stride_bytes,
                         p.image_arena_stride_bytes, p.out_stride_bytes);
  };
  const auto copy_as = [&]<class Word>(Word) {
    const auto words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
    constexpr int64_t kManyWords = 1 << 16;
    if (p.num_tokens * words < kManyWords) {
      return launch_elementwise(GatherRow<Word>{p}, p.num_tokens, words, stream);
    }
    return launch_elementwise<2>(GatherRow<Word>{p}, p.num_tokens, words, stream);
  };
  if (cuts_into(16)) return copy_as(uint4{});
  if (cuts_into(4)) return copy_as(uint32_t{});
  return copy_as(uint16_t{});
}

}  // namespace lightvl::cuda
