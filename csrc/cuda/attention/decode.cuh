// Decode attention: sequences with few new tokens attend to their pages of keys and values.
//
// One launch, at most a block an SM. Each block finds its share of all (sequence, KV head) pairs
// from the lengths (decode_schedule.cuh); its warps take the share's slices of 16 keys in turn,
// each at its own pace with softmax statistics of its own (decode_slice.cuh). A warp's loop:
//
//   S = K Q^T of the slice in registers | then the next slice's keys are on their way to them,
//   P = exp2(S - maximum)
//   O = O + P V                         | then its values, and the page number of the one after
//
// so that all but a few hundred cycles of the time 64 registers a thread (8 KB a warp, 64 KB an SM)
// are being loaded, across the ends of pairs too. Where a pair or the share ends, the warps'
// results are merged in shared memory and, if other blocks hold parts of the pair, by all of these
// (decode_merge.cuh). The query heads of a KV head share its keys: with up to 8 rows (new
// tokens times group) a row is a column of one product's N side, with up to 16 of two.
#pragma once

#include "cuda/attention/decode_launch.cuh"
#include "cuda/attention/decode_merge.cuh"
#include "cuda/attention/decode_pages.cuh"
#include "cuda/attention/decode_slice.cuh"

namespace lightvl::cuda {

// A warp on its way through its block's share, of which it takes every kWarps-th slice.
template <class T, int kHeadDim, int kTiles, int kWarps>
class DecodeWarp {
 public:
  using Partial = DecodePartial<kHeadDim, 8 * kTiles>;
  using Slice = DecodeSlice<T, kHeadDim, kTiles>;

  __device__ DecodeWarp(const PagedAttentionParams& p, const DecodeGroup& group,
                        const DecodeTable& table, const DecodeSequence* seqs,
                        const DecodeShare& share, typename Slice::Queries& queries)
      : p_(p),
        group_(group),
        queries_(queries),
        pages_{p, seqs, table, share.first},
        share_end_(share.end),
        loaded_(share.begin + static_cast<int>(threadIdx.x) / 32) {
    if (loaded_ >= share_end_) return;
    pages_.page_bits = 31 - __clz(static_cast<int>(p.page_size));
    pages_.advance(loaded_ - share.begin);
    load_keys();
    load_queries();
    load_values();
    if (loaded_ + kWarps < share_end_) pages_.advance(kWarps);
  }

  __device__ DecodeRows<T> rows(const DecodeSequence& seq, int head) const {
    return {p_, group_, seq.q_begin, head, seq.q_len * group_.size};
  }

  // Attends to this warp's slices of a pair, which begins at `begin`, up to `end` of the line.
  // Calls prepare() when nothing but the last of them is on its way.
  template <class Prepare>
  __device__ void attend(const DecodeSequence& seq, int begin, int end, Prepare&& prepare) {
    const int r = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const float scale = p_.scale * 1.44269504f;
    int seen[kTiles][2];  // keys that queries 2c and 2c + 1 see
#pragma unroll
    for (int row = 0; row < 2 * kTiles; ++row) {
      const int token = group_.token(row / 2 * 8 + 2 * c + row % 2);
      seen[row / 2][row % 2] = min(seq.keys - seq.q_len + token + 1, seq.keys);
    }
    slice_.clear();
    wait_for_copies<0>();
    for (; loaded_ < end; loaded_ += kWarps) {
      if (loaded_ + kWarps >= end) prepare();
      float score[kTiles][4] = {};
      slice_.multiply_keys(queries_, score);
      const bool more = loaded_ + kWarps < share_end_;
      if (more) {
        load_keys();
        if (loaded_ + kWarps >= end) load_queries();
      }
      const int key = (loaded_ - begin) * kSliceKeys + r;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool visible = key + j / 2 * 8 < seen[tile][j % 2];
          score[tile][j] = visible ? score[tile][j] * scale : -INFINITY;
        }
      }
      slice_.soften(score);
      slice_.multiply_values(score);
      if (more) {
        load_values();
        if (loaded_ + 2 * kWarps < share_end_) pages_.advance(kWarps);
      }
    }
  }

  __device__ void leave(Partial& partial) const {
    slice_.each_output([&](int query, int d, float2 out) {
      reinterpret_cast<float2*>(partial.out[query])[d / 2] = out;
    });
#pragma unroll
    for (int row = 0; row < 2 * kTiles; ++row) {
      const float2 totals = slice_.totals(row / 2, row % 2);
      const int query = row / 2 * 8 + 2 * (threadIdx.x % 4) + row % 2;
      if (threadIdx.x % 32 < 4) partial.totals[query] = totals;
    }
  }

 private:
  __device__ void load_queries() {
    const DecodeRows<T> all = rows(pages_.seqs[pages_.at.seq], pages_.at.head);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int row = 8 * tile + static_cast<int>(threadIdx.x) % 32 / 4;
      Slice::copy_queries(queries_, tile, all.query(row), row < all.count);
    }
    commit_copies();
  }
  __device__ void load_keys() {
    slice_.load_keys(pages_.rows(p_.k_cache, p_.k_stride), p_.k_stride[2], pages_.last());
  }
  __device__ void load_values() {
    slice_.load_values(pages_.rows(p_.v_cache, p_.v_stride), p_.v_stride[2], pages_.last());
  }

  const PagedAttentionParams& p_;
  DecodeGroup group_;
  Slice slice_;
  typename Slice::Queries& queries_;
  DecodePages<T> pages_;
  int share_end_;
  int loaded_;  // the slice in registers, as a number of the line
};

template <class T, int kHeadDim, int kTiles, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, 1)
    decode_attention_kernel(const __grid_constant__ PagedAttentionWork work,
                            const __grid_constant__ DecodePlan plan) {
  using Merger = DecodeMerger<T, kHeadDim, 8 * kTiles, kWarps>;
  using Queries = typename DecodeSlice<T, kHeadDim, kTiles>::Queries;
  extern __shared__ __align__(16) unsigned char bytes[];
  auto& shared = *reinterpret_cast<typename Merger::Shared*>(bytes);
  auto* queries = reinterpret_cast<Queries*>(&shared + 1);
  auto* seqs = reinterpret_cast<DecodeSequence*>(queries + kWarps);
  const PagedAttentionParams& p = work.params;
#if __CUDA_ARCH__ >= 900
  // Whoever comes next may begin once all blocks have, and waits for their end by itself; what came
  // before has ended, even if this kernel was launched without waiting for that.
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
  __shared__ int32_t staged[DecodeTable::kStaged];
  const DecodeTable table(p, work.max_pages, staged);
  const DecodeShare share = share_out<kWarps>(p, plan, 8 * kTiles, seqs);
  if (share.begin >= share.end) return;
  Merger merger(shared, work.workspace);
  DecodeWarp<T, kHeadDim, kTiles, kWarps> warp(p, plan.group, table, seqs, share,
                                               queries[threadIdx.x / 32]);

  DecodeCursor pair = share.first;
  for (int begin = share.begin; begin < share.end;) {
    const DecodeSequence seq = seqs[pair.seq];
    const int pair_begin = begin - pair.slice, pair_end = pair_begin + seq.slices;
    const DecodePieces pieces{share.block_of(pair_begin), share.block_of(pair_end - 1)};
    const DecodeRows<T> rows = warp.rows(seq, pair.head);
    warp.attend(seq, pair_begin, min(pair_end, share.end), [&] { merger.prefetch(rows, pieces); });
    warp.leave(merger.warp());
    merger.merge(rows, pieces);
    begin = pair_end;
    pair.slice = seq.slices;
    if (begin < share.end) pair.settle(seqs, static_cast<int>(p.num_kv_heads));
  }
  merger.merge_open(p, plan.group);
}

template <class T, int kHeadDim, int kTiles>
cudaError_t run_decode(const PagedAttentionWork& work, cudaStream_t stream) {
  using Launch = DecodeLaunch<kTiles>;
  using Shared = typename DecodeMerger<T, kHeadDim, Launch::kRows, Launch::kWarps>::Shared;
  using Queries = typename DecodeSlice<T, kHeadDim, kTiles>::Queries;
  constexpr auto kKernel = decode_attention_kernel<T, kHeadDim, kTiles, Launch::kWarps>;
  constexpr int kShared = sizeof(Shared) + Launch::kWarps * sizeof(Queries);
  constexpr int kSequence = sizeof(DecodeSequence);
  cudaError_t status = allow_shared_memory<kKernel>(kShared + kMaxDecodeSeqs * kSequence);
  const Launch launch(work);
  PagedAttentionWork part = work;
  PagedAttentionParams& p = part.params;
  for (int64_t done = 0; status == cudaSuccess && done < work.params.num_seqs;
       done += kMaxDecodeSeqs) {
    p.num_seqs = std::min<int64_t>(work.params.num_seqs - done, kMaxDecodeSeqs);
    status = launch.template start<kKernel>(kShared + p.num_seqs * kSequence, part, stream);
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
