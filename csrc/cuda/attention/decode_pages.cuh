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

  __device__ DecodeTable(const PagedAttentionParams& p, int64_t max_pages, int32_t (&room)[kStaged])
      : from_(p.page_table),
        pages_(from_),
        stride_(p.page_table_stride),
        entries_((p.num_seqs - 1) * stride_ + max_pages) {
    if (entries_ <= kStaged) pages_ = room;
  }

  // Called by all threads; the copies have come after wait_for_copies<0>() and a barrier.
  __device__ void fetch(int32_t (&room)[kStaged]) const {
    constexpr int kLine = 128 / sizeof(int32_t);
    const int thread = threadIdx.x, threads = blockDim.x;
    if (entries_ > kStaged) {
      const bool few = entries_ <= int64_t{threads} * kLine;
      if (few && thread * kLine < entries_) prefetch_to_l2(from_ + thread * kLine);
      return;
    }
    for (int i = thread; i < static_cast<int>(entries_); i += threads) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(room + i)),
                   "l"(from_ + i)
                   : "memory");
    }
    commit_copies();
  }

  __device__ int page(int seq, int n) const { return pages_[seq * stride_ + n]; }

 private:
  const int32_t *from_, *pages_;
  int64_t stride_, entries_;
};

// A warp's place in the pages.
template <class T>
struct DecodePages {
  const PagedAttentionParams& p;
  const DecodeSequence* seqs;
  DecodeTable table;
  int gap;            // slices without keys that each pair begins with
  DecodeCursor at;    // the slice to be loaded next
  int page = 0;       // its page
  int page_bits = 0;  // the page size is 1 << page_bits

  // Moves on by `slices`, to one that exists; whether it has keys.
  __device__ bool advance(int slices) {
    at.slice += slices;
    at.settle(seqs, static_cast<int>(p.num_kv_heads));
    return at.slice >= gap;
  }
  __device__ void find_page() { page = table.page(at.seq, first_key() >> page_bits); }
  // The slice's last row that holds a token.
  __device__ int last() const { return min(seqs[at.seq].keys - first_key(), kSliceKeys) - 1; }
  __device__ const T* rows(const void* cache, const int64_t (&stride)[3]) const {
    const int64_t slot = first_key() & ((1 << page_bits) - 1);
    return static_cast<const T*>(cache) + at.head * stride[1] + slot * stride[2];
  }

 private:
  __device__ int first_key() const { return (at.slice - gap) * kSliceKeys; }
};

}  // namespace lightvl::cuda
