// What (at head dim 128) the producer and the consumers of vision attention on sm_90a share: sizes,
// shared memory, the kernel's arguments, rings of slots.
#pragma once

#include "cuda/attention/vision_items.cuh"
#include "cuda/common/hopper.cuh"

namespace lightvl::cuda::wide {

template <class T_, int kHeadDim_, int kGroups_, int kKeys_, int kStages_, int kQueryBuffers_,
          bool kOverlap_>
struct VisionShape {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kPanels = kHeadDim / 64;
  static constexpr int kGroups = kGroups_;  // consumer warpgroups
  static constexpr int kKeys = kKeys_;      // of a block
  static constexpr int kStages = kStages_, kQueryBuffers = kQueryBuffers_;
  static constexpr bool kOverlap = kOverlap_;  // S of the next block before P V of this one
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kTileSize = kTileRows * kHeadDim, kBlockSize = kKeys * kHeadDim;
  static constexpr int kTileBytes = 2 * kTileSize, kBlockBytes = 2 * kBlockSize;
  // Registers of a consumer: the block's are handed out per warpgroup.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : kGroups == 3 ? 160 : 112;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;

  // Columns of the block for `rest` keys.
  __device__ static int rest_columns(int rest) {
    return rest <= 16 ? 16 : rest <= 32 ? 32 : rest <= 64 && kKeys > 64 ? 64 : kKeys;
  }
};

template <class Shape>
struct VisionShared {
  using T = typename Shape::T;
  alignas(1024) T query[Shape::kQueryBuffers][Shape::kGroups][Shape::kTileSize];
  alignas(1024) T key[Shape::kStages][Shape::kBlockSize];
  alignas(1024) T value[Shape::kStages][Shape::kBlockSize];
  Barrier query_full[Shape::kQueryBuffers], query_empty[Shape::kQueryBuffers];
  Barrier key_full[Shape::kStages], key_empty[Shape::kStages];
  Barrier value_full[Shape::kStages], value_empty[Shape::kStages];
  Barrier rest_landed;
  VisionItem items[Shape::kQueryBuffers];
};

struct VisionTask {
  CUtensorMap query, key, value;  // [H, D / 64, T, 64]
  VisionCut cut;
  void* out;
  int64_t out_stride[2];  // token, head
  float scale;
};

// A slot of a ring and the parity of its current use.
template <int kSize>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kSize) slot = 0, parity ^= 1;
  }
};

}  // namespace lightvl::cuda::wide
