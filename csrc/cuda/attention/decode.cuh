// Decode attention: sequences with few new tokens attend to their pages of keys and values.
//
// One launch of a persistent grid. Each block finds its share of all (sequence, KV head) pairs from
// the lengths (decode_schedule.cuh); its warps take the share's slices of 16 keys in turn, each at
// its own pace with softmax statistics of its own (decode_slice.cuh). A warp's loop:
//
//   S = K Q^T of the slice in registers     | then its key registers are loaded with the next
//   slice's P = exp2(S - maximum)                   | O = O + P V                             |
//   then its value registers; then the page number after
//
// so that all but a few hundred cycles of the time 64 registers a thread (8 KB a warp, 64 KB or
// more an SM) are on their way, across the ends of pairs too. Where a pair or the share ends, the
// warps' results are merged in shared memory and, if other blocks hold parts of the pair, left in
// global memory, where the last block merges them (decode_merge.cuh). The query heads of a KV head
// share its keys: with up to 8 rows (new tokens times group) a row is a column of one product's N
// side, with up to 16 of two.
#pragma once

#include "cuda/attention/decode_launch.cuh"
#include "cuda/attention/decode_merge.cuh"
#include "cuda/attention/decode_slice.cuh"

namespace lightvl::cuda {

// The pages that one warp reads, and how far it has come.
template <class T>
struct DecodePages {
  const PagedAttentionParams& p;
  const DecodeSequence* seqs;
  DecodeCursor at;  // of the slice whose page number was asked for
  int page;
  int page_bits, num_heads;

  __device__ void settle() { at.settle(seqs, num_heads); }
  __device__ void ask() {
    const int64_t i = at.slice * kSliceKeys >> page_bits;
    page = p.page_table[at.seq * p.page_table_stride + i];
  }
  __device__ int last() const {
    return min(seqs[at.seq].keys - at.slice * kSliceKeys, kSliceKeys) - 1;
  }
  __device__ const T* rows(const void* cache, const int64_t (&stride)[3]) const {
    const int64_t slot = at.slice * kSliceKeys & ((1 << page_bits) - 1);
    return static_cast<const T*>(cache) + page * stride[0] + at.head * stride[1] + slot * stride[2];
  }
};

template <class T, int kHeadDim, int kTiles, int kWarps, int kBlocksPerSm>
__global__ void __launch_bounds__(32 * kWarps, kBlocksPerSm)
    decode_attention_kernel(const __grid_constant__ PagedAttentionWork work, int least_share) {
  constexpr int kRows = 8 * kTiles;
  using Slice = DecodeSlice<T, kHeadDim, kTiles>;
  using Rows = DecodeRows<T, kHeadDim>;
  using Partial = DecodePartial<kHeadDim, kRows>;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ bool merges_pair;
  auto* partials = reinterpret_cast<Partial*>(shared);  // [kWarps]
  auto* seqs = reinterpret_cast<DecodeSequence*>(partials + kWarps);
  const PagedAttentionParams& p = work.params;
  const int warp = threadIdx.x / 32, r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
  const int num_heads = static_cast<int>(p.num_kv_heads);
  const int group = static_cast<int>(p.num_heads) / num_heads;

  const DecodeShare share = share_out<kWarps>(p, kRows, least_share, seqs);
  if (share.begin >= share.end) return;
  const DecodeWorkspace<kHeadDim, kRows> workspace(work.workspace, static_cast<int>(gridDim.x));

  Slice slice;
  DecodePages<T> pages{p,        seqs, share.first, 0, 31 - __clz(static_cast<int>(p.page_size)),
                       num_heads};
  const auto load_queries = [&](const DecodeCursor& at) {
    const DecodeSequence& seq = seqs[at.seq];
    const Rows rows{p, seq.q_begin, at.head, group, seq.q_len * group};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      slice.load_queries(tile, rows.query(8 * tile + r));
    }
  };
  const auto advance = [&](int flat) {
    if (flat >= share.end) return;
    pages.settle();
    pages.ask();
  };

  int loaded = share.begin + warp;  // the slice in registers, as a number of the line
  pages.at.slice += warp;
  advance(loaded);
  if (loaded < share.end) {
    load_queries(pages.at);
    slice.load_keys(pages.rows(p.k_cache, p.k_stride), p.k_stride[2], pages.last());
    slice.load_values(pages.rows(p.v_cache, p.v_stride), p.v_stride[2], pages.last());
  }
  pages.at.slice += kWarps;
  advance(loaded + kWarps);

  const float scale = p.scale * 1.44269504f;
  DecodeCursor pair = share.first;
  for (int begin = share.begin; begin < share.end;) {
    const DecodeSequence seq = seqs[pair.seq];
    const int pair_begin = begin - pair.slice, pair_end = pair_begin + seq.slices;
    const int end = min(pair_end, share.end);
    const Rows rows{p, seq.q_begin, pair.head, group, seq.q_len * group};
    int seen[kTiles][2];  // keys that queries 2c and 2c + 1 see
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const int token = (8 * tile + 2 * c + q) / group;
        seen[tile][q] = min(seq.keys - seq.q_len + token + 1, seq.keys);
      }
    }
    slice.clear();
    for (; loaded < end; loaded += kWarps) {
      float score[kTiles][4] = {};
      slice.multiply_keys(score);
      const bool more = loaded + kWarps < share.end;
      if (more) {
        slice.load_keys(pages.rows(p.k_cache, p.k_stride), p.k_stride[2], pages.last());
        if (loaded + kWarps >= end) load_queries(pages.at);
      }
      const int key = (loaded - pair_begin) * kSliceKeys + r;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool visible = key + j / 2 * 8 < seen[tile][j % 2];
          score[tile][j] = visible ? score[tile][j] * scale : -INFINITY;
        }
      }
      slice.soften(score);
      slice.multiply_values(score);
      if (more) {
        slice.load_values(pages.rows(p.v_cache, p.v_stride), p.v_stride[2], pages.last());
        pages.at.slice += kWarps;
        advance(loaded + 2 * kWarps);
      }
    }

    // Merge the warps.
    slice.each_output([&](int query, int d, float2 out) {
      reinterpret_cast<float2*>(partials[warp].out[query])[d / 2] = out;
    });
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int q = 0; q < 2; ++q) {
        const float2 totals = slice.totals(tile, q);
        if (r == 0) partials[warp].totals[8 * tile + 2 * c + q] = totals;
      }
    }
    __syncthreads();
    const int first_block = share.block_of(pair_begin), last_block = share.block_of(pair_end - 1);
    const bool split = first_block != last_block;
    const int block = static_cast<int>(blockIdx.x);
    Partial& piece = workspace.pieces[workspace.slot(block, first_block)];
    for (int i = threadIdx.x; i < rows.count * (kHeadDim / 4); i += 32 * kWarps) {
      const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
      float2 totals;
      const float4 out =
          merge_partials(kWarps, row, d4, [&](int w) -> Partial& { return partials[w]; }, totals);
      if (split) {
        piece.out[row][d4] = out;
        if (d4 == 0) piece.totals[row] = totals;
      } else {
        rows.write(row, 4 * d4, out, totals.x, totals.y);
      }
    }
    __syncthreads();

    // Merge the blocks.
    if (split) {
      if (warp == 0) {
        const bool all = workspace.announce(block, first_block, last_block);
        if (threadIdx.x == 0) merges_pair = all;
      }
      __syncthreads();
      if (merges_pair) {
        const auto get = [&](int i) -> const Partial& {
          return workspace.pieces[workspace.slot(first_block + i, first_block)];
        };
        for (int i = threadIdx.x; i < rows.count * (kHeadDim / 4); i += 32 * kWarps) {
          const int row = i / (kHeadDim / 4), d4 = i % (kHeadDim / 4);
          float2 totals;
          const float4 out = merge_partials(last_block - first_block + 1, row, d4, get, totals);
          rows.write(row, 4 * d4, out, totals.x, totals.y);
        }
        for (int b = first_block + static_cast<int>(threadIdx.x); b <= last_block;
             b += 32 * kWarps) {
          workspace.flags[workspace.slot(b, first_block)] = 0;
        }
      }
    }

    begin = end;
    pair.slice = 0;
    if (++pair.head == num_heads) pair = {pair.seq + 1, 0, 0};
    if (begin < share.end) {
      while (seqs[pair.seq].slices == 0) ++pair.seq;
    }
  }
}

template <class T, int kHeadDim, int kTiles>
cudaError_t run_decode(const PagedAttentionWork& work, cudaStream_t stream) {
  using Launch = DecodeLaunch<kTiles>;
  using Partial = DecodePartial<kHeadDim, 8 * kTiles>;
  constexpr auto kKernel =
      decode_attention_kernel<T, kHeadDim, kTiles, Launch::kWarps, Launch::kBlocksPerSm>;
  constexpr int kPartials = Launch::kWarps * static_cast<int>(sizeof(Partial));
  constexpr int kSequence = static_cast<int>(sizeof(DecodeSequence));
  cudaError_t status = allow_shared_memory<kKernel>(kPartials + kMaxDecodeSeqs * kSequence);
  const int blocks = Launch::blocks(work);
  PagedAttentionWork part = work;
  PagedAttentionParams& p = part.params;
  for (int64_t done = 0; status == cudaSuccess && done < work.params.num_seqs;
       done += kMaxDecodeSeqs) {
    p.num_seqs = std::min<int64_t>(work.params.num_seqs - done, kMaxDecodeSeqs);
    const auto shared = static_cast<unsigned>(kPartials + p.num_seqs * kSequence);
    kKernel<<<static_cast<unsigned>(blocks), 32 * Launch::kWarps, shared, stream>>>(
        part, Launch::kLeastShare);
    status = cudaGetLastError();
    p.page_table += kMaxDecodeSeqs * p.page_table_stride;
    p.cu_q_lens += kMaxDecodeSeqs;
    p.context_lens += kMaxDecodeSeqs;
  }
  return status;
}

template <class T, int kHeadDim>
cudaError_t launch_decode_attention(const PagedAttentionWork& work, cudaStream_t stream) {
  return work.decode_rows <= 8 ? run_decode<T, kHeadDim, 1>(work, stream)
                               : run_decode<T, kHeadDim, 2>(work, stream);
}

}  // namespace lightvl::cuda
