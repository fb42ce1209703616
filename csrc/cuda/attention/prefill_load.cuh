// The producer warp of prefill attention: queries, keys and values by TMA.
//
// A block of keys lies in several pages. Each lane reads one page-table entry, one block ahead, and
// copies that page's slots of one panel; beyond the sequence's last page it copies from a page that
// doesn't exist, which arrives as zeros.
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
        block_pages_(Config::kKeys / page_size_) {}

  __device__ void load(const PrefillItem& item) {
    load_queries(item);
    const int32_t* pages = work_.params.page_table + item.sequence * work_.params.page_table_stride;
    const int num_pages = (item.context + page_size_ - 1) / page_size_;
    int page = read_page(pages, num_pages, item.block_end - 1);
    for (int block = item.block_end - 1; block >= item.block_begin; --block) {
      const int next = read_page(pages, num_pages, block - 1);
      load_block(maps_.key, shared_.key, shared_.key_full, shared_.key_empty, page, item.kv_head);
      load_block(maps_.value, shared_.value, shared_.value_full, shared_.value_empty, page,
                 item.kv_head);
      ring_.advance();
      page = next;
    }
  }

  // Tells the consumers that there are no more items.
  __device__ void finish() {
    const int slot = query_ring_.slot;
    wait(shared_.query_empty[slot], query_ring_.parity ^ 1);
    if (lane_ == 0) {
      shared_.item[slot].num_tokens = 0;
      arrive(shared_.query_full[slot]);
    }
  }

 private:
  static constexpr uint32_t kBlockBytes = Config::kPanels * Config::kKeys * 128;
  using Panels = typename Config::T[Config::kPanels][Config::kKeys][64];

  __device__ void load_queries(const PrefillItem& item) {
    const int slot = query_ring_.slot;
    wait(shared_.query_empty[slot], query_ring_.parity ^ 1);
    if (lane_ == 0) {
      shared_.item[slot] = item;
      const uint32_t rows = shape_.tile_tokens * shape_.group;
      arrive_expect(shared_.query_full[slot], Config::kPanels * rows * 128);
      for (int panel = 0; panel < Config::kPanels; ++panel) {
        tma_load(shared_.query[slot][panel], maps_.query, shared_.query_full[slot], panel * 64,
                 item.kv_head * shape_.group, item.token_begin);
      }
    }
    __syncwarp();
    query_ring_.advance();
  }

  // Lanes go through the pages of a block, then through them again for the next panel.
  __device__ int read_page(const int32_t* pages, int num_pages, int block) const {
    const int i = block * block_pages_ + lane_ % block_pages_;
    return block >= 0 && i < num_pages ? pages[i] : -1;
  }

  __device__ void load_block(const CUtensorMap& map, Panels (&tiles)[Config::kStages],
                             Barrier (&full)[Config::kStages], Barrier (&empty)[Config::kStages],
                             int page, int kv_head) {
    const int slot = ring_.slot;
    wait(empty[slot], ring_.parity ^ 1);
    if (lane_ == 0) arrive_expect(full[slot], kBlockBytes);
    __syncwarp();
    const int panel = lane_ / block_pages_;
    if (panel < Config::kPanels) {
      tma_load(tiles[slot][panel][lane_ % block_pages_ * page_size_], map, full[slot], panel * 64,
               0, kv_head, page);
    }
  }

  const PagedAttentionWork& work_;
  const PrefillMaps& maps_;
  const PrefillShape& shape_;
  PrefillShared<Config>& shared_;
  int lane_, page_size_, block_pages_;
  Ring<Config::kStages> ring_;
  Ring<Config::kQueryStages> query_ring_;
};

}  // namespace lightvl::cuda
