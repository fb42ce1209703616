// Rows of the embedding table or of the pictures' arena -> rows of the output, copied as bytes:
// one block a token, words of the largest size that all rows can be cut into.
#pragma once

#include "cuda/common/numeric.cuh"

namespace lightvl::cuda {

template <class Word>
__global__ void gather_embeddings_kernel(const __grid_constant__ GatherEmbeddingsParams p) {
  const int64_t t = blockIdx.x;
  const bool is_image = p.image_arena != nullptr && p.image_rows[t] >= 0;
  const char* from = is_image ? static_cast<const char*>(p.image_arena) +
                                    p.image_rows[t] * p.image_arena_stride_bytes
                              : static_cast<const char*>(p.table) + p.ids[t] * p.table_stride_bytes;
  const Word* words = reinterpret_cast<const Word*>(from);
  Word* out = reinterpret_cast<Word*>(static_cast<char*>(p.out) + t * p.out_stride_bytes);
  const int64_t num_words = p.row_bytes / static_cast<int64_t>(sizeof(Word));
  for (int64_t i = threadIdx.x; i < num_words; i += blockDim.x) out[i] = words[i];
}

template <class Word>
cudaError_t run_gather_embeddings(const GatherEmbeddingsParams& p, cudaStream_t stream) {
  constexpr int kThreads = 256;
  gather_embeddings_kernel<Word><<<static_cast<unsigned>(p.num_tokens), kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

inline cudaError_t launch_gather_embeddings(const GatherEmbeddingsParams& p, cudaStream_t stream) {
  if (p.num_tokens == 0) return cudaSuccess;
  const auto cuts_into = [&](int64_t bytes) {
    return all_multiples(bytes, p.table, p.image_arena, p.out, p.row_bytes, p.table_stride_bytes,
                         p.image_arena_stride_bytes, p.out_stride_bytes);
  };
  if (cuts_into(16)) return run_gather_embeddings<uint4>(p, stream);
  return run_gather_embeddings<uint16_t>(p, stream);
}

}  // namespace lightvl::cuda
