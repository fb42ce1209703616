// What the warps of vision attention on sm_90a share: sizes, shared memory, the kernel's arguments,
// rings of slots.
#pragma once

#include "cuda/attention/vision_items.cuh"
#include "cuda/common/hopper.cuh"

namespace lightvl::cuda {

template <class T_, int kHeadDim_, int kGroups_, int kKeys_, int kStages_, int kQueryBuffers_>
struct VisionShape {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kPanels = kHeadDim / 64;
  static constexpr int kGroups = kGroups_;  // consumer warpgroups
  static constexpr int kKeys = kKeys_;      // of a block
  static constexpr int kStages = kStages_, kQueryBuffers = kQueryBuffers_;
  // Items run into each other, and a single last row is attended for in another way.
  static constexpr bool kChained = kHeadDim == 64;
  // S of the next block is asked for before P V of this one; else P needs no registers beside S.
  static constexpr bool kOverlapped = kChained || kGroups == 2;
  // Keys that may follow the last block instead of being a masked block, the first.
  static constexpr int kTailKeys = kOverlapped ? 16 : 0;
  // At head dim 64 exponentials take as long as products: of every 8 one is a polynomial, and V
  // gets eight more columns, of ones, so that O holds the sums of P.
  static constexpr int kPolynomials = kHeadDim == 64 ? 1 : 0;
  static constexpr bool kOnes = kHeadDim == 64;
  static constexpr int kOutColumns = kHeadDim + (kOnes ? 8 : 0);
  static constexpr int kThreads = 128 * (kGroups + 1);
  static constexpr int kTileSize = kTileRows * kHeadDim, kBlockSize = kKeys * kHeadDim;
  static constexpr int kTileBytes = 2 * kTileSize, kBlockBytes = 2 * kBlockSize;
  static constexpr int kTailSize = kTailKeys * kHeadDim, kOddSize = kChained ? kKeys * 8 : 0;
  // Registers of a thread: the block's are handed out per warpgroup.
  static constexpr int kConsumerRegisters = kGroups == 2 ? 232 : 160;
  static constexpr int kProducerRegisters = kGroups == 2 ? 40 : 32;
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
  __device__ int head_columns() const {
    if (Shape::kChained) return is_short() ? 64 : Shape::kKeys;
    return head <= 16 ? 16 : head <= 32 ? 32 : head <= 64 ? 64 : Shape::kKeys;
  }
  // Blocks that come through the ring: the head, then the whole ones.
  __device__ int steps() const { return blocks + (head > 0); }
};

// An operand of products, or nothing.
template <class T, int kSize>
struct VisionPanel {
  alignas(1024) T of[kSize];
};
template <class T>
struct VisionPanel<T, 0> {
  T* of = nullptr;
};

template <class Shape>
struct VisionShared {
  using T = typename Shape::T;
  alignas(1024) T query[Shape::kQueryBuffers][Shape::kGroups][Shape::kTileSize];
  alignas(1024) T key[Shape::kStages][Shape::kBlockSize];
  alignas(1024) T value[Shape::kStages][Shape::kBlockSize];
  VisionPanel<T, Shape::kOddSize> odd_operand;  // one of eight rows, in panels of 64 keys
  VisionPanel<T, Shape::kTailSize> key_tail[Shape::kQueryBuffers];
  VisionPanel<T, Shape::kTailSize> value_tail[Shape::kQueryBuffers];
  VisionPanel<T, Shape::kOnes ? Shape::kKeys * 64 : 0> ones;
  float odd_warps[2][4];  // what the warps of the odd row's warpgroup tell each other
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

// Named barriers: from kTurnBarrier on one for each warpgroup.
constexpr int kTurnBarrier = 1, kOddBarrier = 5;

// A slot of a ring and the parity of its current use.
template <int kSize>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;

  __device__ void next() {
    if (++slot == kSize) slot = 0, parity ^= 1;
  }
};

// One arrival for each warp, when all its lanes have read.
__device__ inline void release(uint32_t empty) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) arrive(empty);
}
__device__ inline void release(Barrier& empty) { release(smem_address(&empty)); }

}  // namespace lightvl::cuda
