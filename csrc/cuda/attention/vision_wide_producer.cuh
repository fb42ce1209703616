// The producer warp of vision attention on sm_90a: takes items, loads queries, keys and values.
#pragma once

#include "cuda/attention/vision_wide_shape.cuh"

namespace lightvl::cuda::wide {

template <class Shape>
class VisionProducer {
 public:
  __device__ VisionProducer(const VisionTask& task, VisionShared<Shape>& shared)
      : task_(task), s_(shared) {}

  // Called by one warp.
  __device__ void run() {
    Ring<Shape::kQueryBuffers> buffer;
    for (int32_t index = blockIdx.x;; index += gridDim.x, buffer.next()) {
      const VisionItem item = find_item(task_.cut, index);
      load_queries(item, buffer);
      if (item.tiles == 0) return;
      const int blocks = item.len / Shape::kKeys, rest = item.len % Shape::kKeys;
      const int columns = Shape::rest_columns(rest);
      Ring<Shape::kStages> rest_slot = ring_;
      if (rest > 0) {
        load_keys(item, blocks);
        load_rest_values(item, blocks, rest < columns);
        ring_.next();
      }
      for (int block = 0; block < blocks; ++block, ring_.next()) {
        load_keys(item, block);
        if (block == 0 && rest > 0) fill_rest(rest, columns, rest_slot.slot);
        load_values(item, block, s_.value_full[ring_.slot]);
      }
      if (blocks == 0) fill_rest(rest, columns, rest_slot.slot);
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ void load_queries(const VisionItem& item, Ring<Shape::kQueryBuffers> buffer) {
    Barrier& full = s_.query_full[buffer.slot];
    wait(s_.query_empty[buffer.slot], buffer.parity ^ 1);
    if (lane() != 0) return;
    s_.items[buffer.slot] = item;
    arrive_expect(full, item.tiles * Shape::kTileBytes);
#pragma unroll 1
    for (int i = 0; i < item.tiles; ++i) {
      tma_load(s_.query[buffer.slot][i], task_.query, full, 0,
               item.begin + item.row + i * kTileRows, 0, item.head);
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

  // Values of the rest, which are announced as full by fill_rest.
  __device__ void load_rest_values(const VisionItem& item, int block, bool filled) {
    load_values(item, block, filled ? s_.rest_landed : s_.value_full[ring_.slot]);
  }

  // Zeros for values beyond the segment: they may be anything, and 0 * NaN is no 0.
  __device__ void fill_rest(int rest, int columns, int slot) {
    if (rest == columns) return;
    wait(s_.rest_landed, rest_parity_);
    rest_parity_ ^= 1;
    constexpr int kRowPacks = 8;  // of 16 bytes; the swizzle stays within a row
    auto* packs = reinterpret_cast<uint4*>(s_.value[slot]);
    for (int panel = 0; panel < Shape::kPanels; ++panel) {
      for (int i = rest * kRowPacks + lane(); i < columns * kRowPacks; i += 32) {
        packs[panel * Shape::kKeys * kRowPacks + i] = uint4{};
      }
    }
    fence_proxy_async();
    __syncwarp();
    if (lane() == 0) arrive(s_.value_full[slot]);
  }

  const VisionTask& task_;
  VisionShared<Shape>& s_;
  Ring<Shape::kStages> ring_;
  uint32_t rest_parity_ = 0;
};

}  // namespace lightvl::cuda::wide
