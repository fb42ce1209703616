// What the producer and the consumers of vision attention on sm_90a share: sizes, shared memory,
// the kernel's arguments, rings of slots.
#pragma once

#include "cuda/attention/vision_items.cuh"
#include "cuda/common/hopper.cuh"

namespace lightvl::cuda {

template <class T_, int kHeadDim_, int kGroups_, int kKeys_, int kStages_, int kQueryBuffers_,
          int kTailKeys_, int kPolynomials_, bool kOnes_>
struct VisionShape {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kPanels = kHeadDim / 64;
  static constexpr int kGroups = kGroups_;  // consumer warpgroups
  static constexpr int kKeys = kKeys_;      // of a block
  static constexpr int kTailKeys = kTailKeys_;
  static constexpr int kStages = kStages_, kQueryBuffers = kQueryBuffers_;
  static constexpr int kPolynomials = kPolynomials_;  // exponentials of every 8
  // V gets eight more columns, of ones, so that O holds the sums of P.
  static constexpr bool kOnes = kOnes_;
  static constexpr int kOutColumns = kHeadDim + (kOnes ? 8 : 0);
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kTileSize = kTileRows * kHeadDim, kBlockSize = kKeys * kHeadDim;
  static constexpr int kTileBytes = 2 * kTileSize, kBlockBytes = 2 * kBlockSize;
  static constexpr int kTailSize = kTailKeys * kHeadDim;
  // Registers of a thread: the block's are handed out per warpgroup.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 240 : 160;
  static constexpr int kProducerRegisters = kGroups == 2 ? 24 : 32;
  static_assert(!kOnes || kHeadDim == 64);  // else the panel of ones would have to follow each V
  static_assert(kKeys % 16 == 0 && kKeys > 64 && (kGroups == 2 || kGroups == 3));
};

// How a segment's keys are cut: `head` keys that don't fill a block, whole blocks, and a tail of
// few keys, which is taken together with the first block.
template <class Shape>
struct KeyCut {
  int head, blocks, tail;

  __device__ explicit KeyCut(int len) {
    blocks = len / Shape::kKeys;
    head = len % Shape::kKeys;
    tail = blocks > 0 && head <= Shape::kTailKeys ? head : 0;
    head -= tail;
  }
  // Everything is in the head, and that is small.
  __device__ bool is_short() const { return blocks == 0 && head <= 64; }
  // Columns of the head's block.
  __device__ int head_columns() const { return is_short() ? 64 : Shape::kKeys; }
  // Blocks that come through the ring: the head, then the whole ones.
  __device__ int steps() const { return blocks + (head > 0); }
};

template <class Shape>
struct VisionShared {
  using T = typename Shape::T;
  alignas(1024) T query[Shape::kQueryBuffers][Shape::kGroups][Shape::kTileSize];
  alignas(1024) T key[Shape::kStages][Shape::kBlockSize];
  alignas(1024) T value[Shape::kStages][Shape::kBlockSize];
  alignas(1024) T key_tail[Shape::kQueryBuffers][Shape::kTailSize];
  alignas(1024) T value_tail[Shape::kQueryBuffers][Shape::kTailSize];
  alignas(1024) T ones[Shape::kOnes ? Shape::kKeys * 64 : 8];
  Barrier query_full[Shape::kQueryBuffers], query_empty[Shape::kQueryBuffers];
  Barrier key_full[Shape::kStages], key_empty[Shape::kStages];
  Barrier value_full[Shape::kStages], value_empty[Shape::kStages];
  Barrier head_landed;
  VisionItem items[Shape::kQueryBuffers];
};

struct VisionTask {
  CUtensorMap query, key, value;  // [H, D / 64, T, 64]
  VisionCut cut;
  const void *k, *v;
  void* out;
  int64_t k_stride[2], v_stride[2], out_stride[2];  // token, head
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

}  // namespace lightvl::cuda
