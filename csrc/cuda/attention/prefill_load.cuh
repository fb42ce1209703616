// The loading warp of prefill attention: queries, keys and values by TMA.
//
// A block of keys is made of boxes, which lie in one page and one panel each. Each lane reads one
// page-table entry, one block ahead, and copies one box; beyond the sequence's last page it copies
// from a page that doesn't exist, which arrives as zeros.
#pragma once

#include "cuda/attention/prefill_tile.cuh"

namespace lightvl::cuda {

struct PrefillMaps {
  CUtensorMap query;       // [T, H, D], boxes of a tile's tokens, a group, 64
  CUtensorMap key, value;  // [N, K, P, D], boxes of a page of one KV head, 64
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

  // Loads for the items that the scheduler hands on.
  __device__ void run() {
    while (true) {
      const int slot = item_ring_.slot;
      wait(shared_.item_full[slot], item_ring_.parity);
      const PrefillItem& item = shared_.item[slot];
      if (item.num_tokens == 0) break;
      load_queries(item, slot);
      load_keys_and_values(item);
      item_ring_.advance();
    }
    if (lane_ == 0) arrive(shared_.query_full[item_ring_.slot]);  // passes the end on
  }

 private:
  static constexpr uint32_t kBlockBytes = Config::kPanels * Config::kKeys * 128;
  using Panels = typename Config::T[Config::kPanels][Config::kKeys][64];

  __device__ void load_queries(const PrefillItem& item, int slot) {
    if (lane_ != 0) return;
    const uint32_t rows = shape_.tile_tokens * shape_.group;
    arrive_expect(shared_.query_full[slot], Config::kPanels * rows * 128);
    for (int panel = 0; panel < Config::kPanels; ++panel) {
      tma_load(shared_.query[slot][panel], maps_.query, shared_.query_full[slot], panel * 64,
               item.kv_head * shape_.group, item.token_begin);
    }
  }

  __device__ void load_keys_and_values(const PrefillItem& item) {
    const int32_t* pages = work_.params.page_table + item.sequence * work_.params.page_table_stride;
    const int context = item.context, kv_head = item.kv_head, block_begin = item.block_begin;
    int block = item.block_end - 1;
    int page = read_page(pages, context, block);
    for (; block >= block_begin; --block) {
      const int next = read_page(pages, context, block - 1);
      const int slot = (block * Config::kKeys + key_) % page_size_;
      load_block(maps_.key, shared_.key, shared_.key_full, shared_.key_empty, slot, kv_head, page);
      load_block(maps_.value, shared_.value, shared_.value_full, shared_.value_empty, slot, kv_head,
                 page);
      ring_.advance();
      page = next;
    }
  }

  // The page of this lane's box of a block.
  __device__ int read_page(const int32_t* pages, int context, int block) const {
    const int key = block * Config::kKeys + key_;
    return key >= 0 && key < context ? pages[key / page_size_] : -1;
  }

  __device__ void load_block(const CUtensorMap& map, Panels (&tiles)[Config::kStages],
                             Barrier (&full)[Config::kStages], Barrier (&empty)[Config::kStages],
                             int slot, int kv_head, int page) {
    const int stage = ring_.slot;
    wait(empty[stage], ring_.parity ^ 1);
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
  int lane_, page_size_;
  int key_, panel_;  // of this lane's box in a block
  Ring<Config::kStages> ring_;
  Ring<Config::kQueryStages> item_ring_;
};

}  // namespace lightvl::cuda
