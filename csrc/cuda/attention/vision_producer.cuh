// The producer warps of vision attention on sm_90a. One takes items and loads queries, keys and
// values by TMA, the other, where there are tails, copies those.
#pragma once

#include "cuda/attention/vision_shape.cuh"

namespace lightvl::cuda {

template <class Shape>
class VisionProducer {
 public:
  __device__ VisionProducer(const VisionTask& task, VisionShared<Shape>& shared)
      : task_(task), s_(shared), items_(task.cut) {}

  // Called by one warp, which runs ahead into the next item as far as there is room.
  __device__ void run() {
    Ring<Shape::kQueryBuffers> buffer;
    for (int32_t index = blockIdx.x;; index += gridDim.x, buffer.next()) {
      const VisionItem item = items_.find(index);
      load_queries(item, buffer);
      if (item.is_end()) return;
      const KeyCut<Shape> cut(item.len);
      const int columns = cut.head_columns(), head_slot = ring_.slot;
      const bool filled = cut.head > 0 && cut.head < columns;
      if (cut.head > 0) {
        load_keys(item, cut.blocks);
        load_values(item, cut.blocks, filled ? s_.head_landed : s_.value_full[ring_.slot]);
        ring_.next();
      }
      for (int block = 0; block < cut.blocks; ++block, ring_.next()) {
        load_keys(item, block);
        if (block == 0 && filled) fill_head(cut.head, columns, head_slot);
        load_values(item, block, s_.value_full[ring_.slot]);
      }
      if (cut.blocks == 0 && filled) fill_head(cut.head, columns, head_slot);
    }
  }

  // Called by another warp: the tails lie beside the queries and share their barriers.
  __device__ void run_tails() {
    Ring<Shape::kQueryBuffers> buffer;
    for (int32_t index = blockIdx.x;; index += gridDim.x, buffer.next()) {
      const VisionItem item = items_.find(index);
      wait(s_.query_empty[buffer.slot], buffer.parity ^ 1);
      const KeyCut<Shape> cut(item.len);
      if (!item.is_end()) {
        const int64_t token = item.begin + cut.blocks * Shape::kKeys;
        copy_tail(s_.key_tail[buffer.slot].of, task_.k, task_.k_stride, token, item.head, cut.tail);
        copy_tail(s_.value_tail[buffer.slot].of, task_.v, task_.v_stride, token, item.head,
                  cut.tail);
        fence_proxy_async();
        __syncwarp();
      }
      release(s_.query_full[buffer.slot]);
      if (item.is_end()) return;
    }
  }

 private:
  using T = typename Shape::T;
  static constexpr int kRowPacks = 8;  // of 16 bytes in a panel's row

  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void load_queries(const VisionItem& item, Ring<Shape::kQueryBuffers> buffer) {
    Barrier& full = s_.query_full[buffer.slot];
    wait(s_.query_empty[buffer.slot], buffer.parity ^ 1);
    if (lane() != 0) return;
    s_.items[buffer.slot] = item;
    const int tiles = item.tiles + item.odd;
    arrive_expect(full, tiles * Shape::kTileBytes);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
      // The odd row's warpgroup is the last.
      const bool odd = i == item.tiles;
      const int row = odd ? item.len - 1 : item.row + i * kTileRows;
      tma_load(s_.query[buffer.slot][odd ? Shape::kGroups - 1 : i], task_.query, full, 0,
               item.begin + row, 0, item.head);
    }
  }

  __device__ void load_keys(const VisionItem& item, int block) {
    Barrier& full = s_.key_full[ring_.slot];
    wait(s_.key_empty[ring_.slot], ring_.parity ^ 1);
    if (lane() != 0) return;
    arrive_expect(full, Shape::kBlockBytes);
    tma_load(s_.key[ring_.slot], task_.key, full, 0, item.begin + block * Shape::kKeys, 0,
             item.head);
  }

  __device__ void load_values(const VisionItem& item, int block, Barrier& full) {
    wait(s_.value_empty[ring_.slot], ring_.parity ^ 1);
    if (lane() != 0) return;
    arrive_expect(full, Shape::kBlockBytes);
    tma_load(s_.value[ring_.slot], task_.value, full, 0, item.begin + block * Shape::kKeys, 0,
             item.head);
  }

  // Zeros for the head's values beyond the segment: they may be anything, and 0 * NaN is no 0.
  __device__ void fill_head(int head, int columns, int slot) {
    wait(s_.head_landed, head_parity_);
    head_parity_ ^= 1;
    auto* packs = reinterpret_cast<uint4*>(s_.value[slot]);
    for (int panel = 0; panel < Shape::kPanels; ++panel) {
      for (int i = head * kRowPacks + lane(); i < columns * kRowPacks; i += 32) {
        packs[panel * Shape::kKeys * kRowPacks + i] = uint4{};
      }
    }
    fence_proxy_async();
    __syncwarp();
    release(s_.value_full[slot]);
  }

  // `rows` tokens from `token` on as TMA would lay them out, and zeros.
  __device__ static void copy_tail(T* to, const void* base, const int64_t (&stride)[2],
                                   int64_t token, int head, int rows) {
    const T* from = static_cast<const T*>(base) + token * stride[0] + head * stride[1];
    auto* packs = reinterpret_cast<uint4*>(to);
#pragma unroll 1
    for (int i = lane(); i < Shape::kTailKeys * kRowPacks * Shape::kPanels; i += 32) {
      const int column = i % (kRowPacks * Shape::kPanels), row = i / (kRowPacks * Shape::kPanels);
      const int panel = column / kRowPacks, swizzled = column % kRowPacks ^ row % 8;
      packs[(panel * Shape::kTailKeys + row) * kRowPacks + swizzled] =
          row < rows ? *reinterpret_cast<const uint4*>(from + row * stride[0] + column * 8)
                     : uint4{};
    }
  }

  const VisionTask& task_;
  VisionShared<Shape>& s_;
  VisionItems items_;
  Ring<Shape::kStages> ring_;
  uint32_t head_parity_ = 0;
};

}  // namespace lightvl::cuda
