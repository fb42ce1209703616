// Where decode attention finds a slice's keys and values.
#pragma once

#include "cuda/attention/decode_schedule.cuh"
#include "cuda/common/dependent_launch.cuh"

namespace lightvl::cuda {

// The page numbers of the sequences. A small table is copied to shared memory before the lengths
// say what of it is needed, a larger one asked for to L2 if that is not much.
class DecodeTable {
 public:
  static constexpr int kStaged = 1024;

  // Called by all threads; the copies have come after wait_for_copies<0>() and a barrier. The
  // first warp does nothing here and so comes to the lengths sooner.
  __device__ DecodeTable(const PagedAttentionParams& p, int64_t max_pages, int32_t (&room)[kStaged])
      : pages_(p.page_table), stride_(p.page_table_stride) {
    constexpr int kLine = 128 / sizeof(int32_t);
    const int64_t entries = (p.num_seqs - 1) * stride_ + max_pages;
    const int thread = static_cast<int>(threadIdx.x) - 32, threads = blockDim.x - 32;
    if (entries <= kStaged) pages_ = room;
    if (thread < 0 || entries > int64_t{threads} * kLine) return;
    if (entries > kStaged) {
      if (thread * kLine < entries) prefetch_to_l2(p.page_table + thread * kLine);
      return;
    }
    for (int i = thread; i < entries; i += threads) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(room + i)),
                   "l"(p.page_table + i)
                   : "memory");
    }
    commit_copies();
  }

  __device__ int page(int seq, int n) const { return pages_[seq * stride_ + n]; }

 private:
  const int32_t* pages_;
  int64_t stride_;
};

// A warp's place in the pages.
template <class T>
struct DecodePages {
  const PagedAttentionParams& p;
  const DecodeSequence* seqs;
  DecodeTable table;
  DecodeCursor at;    // the slice to be loaded next
  int page = 0;       // its page
  int page_bits = 0;  // the page size is 1 << page_bits

  // Moves on by `slices`, to one that exists, and asks for its page.
  __device__ void advance(int slices) {
    at.slice += slices;
    at.settle(seqs, static_cast<int>(p.num_kv_heads));
    page = table.page(at.seq, at.slice * kSliceKeys >> page_bits);
  }
  // The slice's last row that holds a token.
  __device__ int last() const {
    return min(seqs[at.seq].keys - at.slice * kSliceKeys, kSliceKeys) - 1;
  }
  __device__ const T* rows(const void* cache, const int64_t (&stride)[3]) const {
    const int64_t slot = at.slice * kSliceKeys & ((1 << page_bits) - 1);
    return static_cast<const T*>(cache) + page * stride[0] + at.head * stride[1] + slot * stride[2];
  }
};

}  // namespace lightvl::cuda
