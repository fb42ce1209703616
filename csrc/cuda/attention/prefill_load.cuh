// The loading warps of prefill attention: one for keys and values, by TMA, two for queries.
//
// A block of keys is made of boxes, which lie in one page and one panel each. Each lane reads one
// page-table entry, one block ahead, and copies one box; beyond the sequence's last page it copies
// from a page that doesn't exist, which arrives as zeros. Query rows begin anywhere among a token's
// heads, so they come by cp.async.
#pragma once

#include "cuda/attention/mma.cuh"
#include "cuda/attention/prefill_tile.cuh"

namespace lightvl::cuda {

struct PrefillMaps {
  CUtensorMap key, value;  // [N, K, P, D], boxes of a page's slots of one KV head, 64
};

template <class Config>
class PrefillLoader {
 public:
  __device__ PrefillLoader(const PagedAttentionWork& work, const PrefillMaps& maps,
                           const PrefillShape& shape, PrefillShared<Config>& shared)
      : work_(work),
        maps_(maps),
        shape_(shape),
        shared_(shared),
        lane_(static_cast<int>(threadIdx.x) % 32),
        page_size_(static_cast<int>(work.params.page_size)),
        key_(lane_ % (Config::kKeys / shape.box_keys) * shape.box_keys),
        panel_(lane_ / (Config::kKeys / shape.box_keys)) {}

  // Loads for the items that the scheduler hands on. Values, which are needed a step later than the
  // keys of their block, are asked for after the next block's keys: their slot is free later, too.
  __device__ void run() {
    for (PrefillRing<Config::kQueryStages> ring;; ring.advance()) {
      const bool there = test_wait(shared_.item_full[ring.slot], ring.parity);
      if (!__all_sync(kAllLanes, there)) load_values();
      wait(shared_.item_full[ring.slot], ring.parity);
      const PrefillItem& item = shared_.item[ring.slot];
      if (item.block_end < 0) break;
      load_item(item);
    }
    load_values();
  }

 private:
  static constexpr uint32_t kBlockBytes = Config::kPanels * Config::kKeys * 128;
  using Panels = typename Config::T[Config::kPanels][Config::kKeys][64];

  __device__ void load_item(const PrefillItem& item) {
    const int32_t* pages = work_.params.page_table + item.sequence * work_.params.page_table_stride;
    const int context = item.context, kv_head = item.kv_head, block_begin = item.block_begin;
    int block = item.block_end - 1;
    int page = read_page(pages, context, block);
    for (; block >= block_begin; --block) {
      const int next = read_page(pages, context, block - 1);
      const int slot = (block * Config::kKeys + key_) & (page_size_ - 1);
      load_block(maps_.key, shared_.key, shared_.key_full, shared_.key_empty, key_ring_, slot,
                 kv_head, page);
      load_values();
      waiting_ = true;
      slot_ = slot, kv_head_ = kv_head, page_ = page;
      page = next;
    }
  }

  // Of the block whose keys have been asked for.
  __device__ void load_values() {
    if (!waiting_) return;
    waiting_ = false;
    load_block(maps_.value, shared_.value, shared_.value_full, shared_.value_empty, value_ring_,
               slot_, kv_head_, page_);
  }

  // The page of this lane's box of a block.
  __device__ int read_page(const int32_t* pages, int context, int block) const {
    const int key = block * Config::kKeys + key_;
    return key >= 0 && key < context ? pages[key >> shape_.page_bits] : -1;
  }

  __device__ void load_block(const CUtensorMap& map, Panels (&tiles)[Config::kStages],
                             Barrier (&full)[Config::kStages], Barrier (&empty)[Config::kStages],
                             PrefillRing<Config::kStages>& ring, int slot, int kv_head, int page) {
    const int stage = ring.slot;
    wait(empty[stage], ring.parity ^ 1);
    ring.advance();
    if (lane_ == 0) arrive_expect(full[stage], kBlockBytes);
    __syncwarp();
    if (panel_ < Config::kPanels) {
      tma_load(tiles[stage][panel_][key_], map, full[stage], panel_ * 64, slot, kv_head, page);
    }
  }

  const PagedAttentionWork& work_;
  const PrefillMaps& maps_;
  const PrefillShape& shape_;
  PrefillShared<Config>& shared_;
  int lane_, page_size_;  // pages are of 16, 32 or 64
  int key_, panel_;       // of this lane's box in a block
  PrefillRing<Config::kStages> key_ring_, value_ring_;
  bool waiting_ = false;       // for their slot, values
  int slot_, kv_head_, page_;  // of them
};

// The warps that copy queries, two of them; rows beyond the tile's are zero.
template <class Config>
__device__ void load_queries(const PagedAttentionParams& p, const PrefillShape& shape,
                             PrefillShared<Config>& shared) {
  using T = typename Config::T;
  constexpr int kPacks = Config::kHeadDim / 8, kStep = 64 / kPacks;
  const int pack = static_cast<int>(threadIdx.x) % kPacks;
  const int first_row = static_cast<int>(threadIdx.x) % 64 / kPacks;
  const auto token_stride = static_cast<uint32_t>(p.q_stride[0]);
  const auto head_stride = static_cast<uint32_t>(p.q_stride[1]);
  for (PrefillRing<Config::kQueryStages> ring;; ring.advance()) {
    wait(shared.item_full[ring.slot], ring.parity);
    const PrefillItem& item = shared.item[ring.slot];
    const bool more = item.block_end >= 0;
    if (more) {
      const T* from = static_cast<const T*>(p.q) + item.token_begin * p.q_stride[0] +
                      item.kv_head * shape.group.value * p.q_stride[1] + pack * 8;
      const int rows = item.num_rows, row_begin = item.row_begin;
      T(&panel)[Config::kRows][64] = shared.query[ring.slot][pack / 8];
#pragma unroll 8
      for (int i = 0; i < Config::kRows / kStep; ++i) {
        const int row = first_row + i * kStep, at = row < rows ? row_begin + row : 0;
        const uint32_t token = shape.group.divide(at), head = at - token * shape.group.value;
        copy_async(&panel[row][(pack ^ row) % 8 * 8],
                   from + uint64_t{token} * token_stride + uint64_t{head} * head_stride,
                   row < rows);
      }
      commit_copies();
      wait_for_copies<0>();
      fence_proxy_async();
      __syncwarp();
    }
    if (threadIdx.x % 32 == 0) arrive(shared.query_full[ring.slot]);
    if (!more) return;
  }
}

}  // namespace lightvl::cuda
