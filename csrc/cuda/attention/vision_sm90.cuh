// Vision attention for sm_90a: no mask, segments of a packed batch, warpgroup products and TMA.
//
// Blocks stay and take items (vision_items.cuh) in turn. A block is a producer warp and a few
// consumer warpgroups, each with a tile of 64 queries of the item's head; they share its keys.
//   producer   queries by TMA into one of a few buffers, blocks of keys and of values into a ring;
//              runs ahead into the next item. First the keys that don't fill a block, in a block of
//              16, 32, 64 or all columns, with zeros for the values of what isn't there.
//   consumer   S = Q K^T, both from shared memory; softmax in registers; O += P V, P in registers.
// Only the first block is masked. Softmax overlaps products in two ways: a warpgroup asks for S of
// the next block before it asks for P V of this one and takes the next softmax while that runs; and
// warpgroups ask for products in turns, so that one has its softmax while others multiply.
// A slot's `full` barrier flips when TMA has delivered, `empty` when all consumer warps have read.
#pragma once

#include "cuda/attention/vision_items.cuh"
#include "cuda/attention/vision_softmax.cuh"
#include "cuda/common/hopper.cuh"
#include "cuda/launchers.h"

namespace lightvl::cuda {

template <class T_, int kHeadDim_, int kGroups_, int kKeys_, int kStages_, int kQueryBuffers_,
          bool kOverlap_, bool kTurns_, int kPolynomials_>
struct VisionShape {
  using T = T_;
  static constexpr int kHeadDim = kHeadDim_, kPanels = kHeadDim / 64;
  static constexpr int kGroups = kGroups_;  // consumer warpgroups
  static constexpr int kKeys = kKeys_;      // of a block
  static constexpr int kStages = kStages_, kQueryBuffers = kQueryBuffers_;
  static constexpr bool kOverlap = kOverlap_;  // S of the next block before P V of this one
  static constexpr bool kTurns = kTurns_;
  static constexpr int kPolynomials = kPolynomials_;  // exponentials of every 8
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

template <class Shape>
class VisionConsumer {
 public:
  using T = typename Shape::T;

  __device__ VisionConsumer(const VisionTask& task, VisionShared<Shape>& shared)
      : task_(task), s_(shared) {}

  // Called by the consumer warpgroups.
  __device__ void run() {
    if (group() == Shape::kGroups - 1) pass_turn();
    Ring<Shape::kQueryBuffers> buffer;
    for (;; buffer.next()) {
      wait(s_.query_full[buffer.slot], buffer.parity);
      const VisionItem item = s_.items[buffer.slot];
      if (item.tiles == 0) return;
      if (group() < item.tiles) {
        attend(item, buffer.slot);
      } else {
        stand_by(item);
        release(s_.query_empty[buffer.slot]);
      }
    }
  }

 private:
  static constexpr int kScores = Shape::kKeys / 2;

  __device__ static int group() { return threadIdx.x / 128; }
  // One arrival for each warp.
  __device__ static void release(Barrier& empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
  }
  __device__ static void take_turn() {
    if constexpr (Shape::kTurns) sync_named(1 + group(), 256);
  }
  __device__ static void pass_turn() {
    if constexpr (Shape::kTurns) arrive_named(1 + (group() + 1) % Shape::kGroups, 256);
  }

  // Goes through the motions of an item in which this warpgroup has no tile.
  __device__ void stand_by(const VisionItem& item) {
    for (int block = 0; block * Shape::kKeys < item.len; ++block, ring_.next()) {
      take_turn();
      pass_turn();
      wait(s_.key_full[ring_.slot], ring_.parity);
      release(s_.key_empty[ring_.slot]);
      wait(s_.value_full[ring_.slot], ring_.parity);
      release(s_.value_empty[ring_.slot]);
    }
  }

  // S of as many keys as `score` has columns.
  template <int kSize>
  __device__ void multiply_keys(float (&score)[kSize], const T* query) {
    const uint64_t a = describe_k_major(query), b = describe_k_major(s_.key[ring_.slot]);
    pin(score);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Shape::kHeadDim / 16; ++k) {
      const int step = k % 4 * 2;  // units of 16 bytes
      Wgmma<T, 2 * kSize>::ss(score, a + step + k / 4 * (kTileRows * 128 / 16),
                              b + step + k / 4 * (Shape::kKeys * 128 / 16), k > 0);
    }
    wgmma_commit();
  }

  template <int kSteps>
  __device__ void multiply_values(uint32_t (&probability)[kSteps][4], int slot) {
    const uint64_t b = describe_mn_major(s_.value[slot], Shape::kKeys * 128);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) pin(probability[k]);
    pin(out_);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Wgmma<T, Shape::kHeadDim>::template rs<1>(out_, probability[k], b + k * (16 * 128 / 16),
                                                true);
    }
    wgmma_commit();
  }

  template <int kPending, int kSize>
  __device__ void finish_keys(float (&score)[kSize]) {
    wgmma_wait<kPending>();
    pin(score);
    release(s_.key_empty[ring_.slot]);
  }
  __device__ void finish_values(int slot) {
    wgmma_wait<0>();
    pin(out_);
    release(s_.value_empty[slot]);
  }

  // The block of the keys that don't fill one.
  template <int kColumns>
  __device__ void attend_rest(Softmax<T>& softmax, const T* query, int rest) {
    float score[kColumns / 2];
    uint32_t probability[kColumns / 16][4];
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys(score, query);
    pass_turn();
    finish_keys<0>(score);
    Softmax<T>::mask(score, rest);
    softmax.template update<0>(score);
    Softmax<T>::pack(score, probability);
    wait(s_.value_full[ring_.slot], ring_.parity);
    multiply_values(probability, ring_.slot);
    finish_values(ring_.slot);
    ring_.next();
  }

  __device__ void attend_rest(Softmax<T>& softmax, const T* query, int rest) {
    const int columns = Shape::rest_columns(rest);
    if (columns == 16) return attend_rest<16>(softmax, query, rest);
    if (columns == 32) return attend_rest<32>(softmax, query, rest);
    if constexpr (Shape::kKeys > 64) {
      if (columns == 64) return attend_rest<64>(softmax, query, rest);
    }
    attend_rest<Shape::kKeys>(softmax, query, rest);
  }

  __device__ void attend(const VisionItem& item, int buffer) {
    const int blocks = item.len / Shape::kKeys, rest = item.len % Shape::kKeys;
    const T* query = s_.query[buffer][group()];
    Softmax<T> softmax(task_.scale);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    if (rest > 0) attend_rest(softmax, query, rest);
    if (Shape::kOverlap && blocks > 0) {
      attend_overlapped(softmax, query, blocks, buffer);
    } else {
      for (int block = 0; block < blocks; ++block) attend_block(softmax, query);
      release(s_.query_empty[buffer]);
    }
    store(item, softmax);
  }

  __device__ void attend_block(Softmax<T>& softmax, const T* query) {
    float score[kScores];
    uint32_t probability[kScores / 8][4];
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys(score, query);
    pass_turn();
    finish_keys<0>(score);
    if (softmax.template update<Shape::kPolynomials>(score)) softmax.rescale(out_);
    Softmax<T>::pack(score, probability);
    wait(s_.value_full[ring_.slot], ring_.parity);
    multiply_values(probability, ring_.slot);
    finish_values(ring_.slot);
    ring_.next();
  }

  __device__ void attend_overlapped(Softmax<T>& softmax, const T* query, int blocks, int buffer) {
    float score[kScores];
    uint32_t probability[kScores / 8][4];
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys(score, query);
    pass_turn();
    finish_keys<0>(score);
    if (softmax.template update<Shape::kPolynomials>(score)) softmax.rescale(out_);
    Softmax<T>::pack(score, probability);
    for (int block = 1; block < blocks; ++block) {
      const Ring<Shape::kStages> current = ring_;
      ring_.next();
      wait(s_.key_full[ring_.slot], ring_.parity);
      take_turn();
      multiply_keys(score, query);
      wait(s_.value_full[current.slot], current.parity);
      multiply_values(probability, current.slot);
      pass_turn();
      finish_keys<1>(score);
      const bool grown = softmax.template update<Shape::kPolynomials>(score);
      finish_values(current.slot);
      if (grown) softmax.rescale(out_);
      Softmax<T>::pack(score, probability);
    }
    release(s_.query_empty[buffer]);
    wait(s_.value_full[ring_.slot], ring_.parity);
    multiply_values(probability, ring_.slot);
    finish_values(ring_.slot);
    ring_.next();
  }

  // Normalises and writes the rows that exist, 64 bytes of each at once: the four threads of a row
  // exchange what they have of four neighbouring groups of eight columns.
  __device__ void store(const VisionItem& item, const Softmax<T>& softmax) {
    const int q = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = softmax.inverse_sum(r);
      const int row = item.row + group() * kTileRows + threadIdx.x % 128 / 32 * 16 +
                      threadIdx.x % 32 / 4 + r * 8;
      T* to = static_cast<T*>(task_.out) + (item.begin + row) * task_.out_stride[0] +
              item.head * task_.out_stride[1];
#pragma unroll
      for (int first = 0; first < Shape::kHeadDim; first += 32) {
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* o = &out_[first / 2 + 4 * j + 2 * r];
          pair[j] = pack_pair<T>(o[0] * inverse, o[1] * inverse);
        }
        const uint4 eight = exchange(pair);
        if (row < item.len) *reinterpret_cast<uint4*>(to + first + 8 * q) = eight;
      }
    }
  }

  // Thread q of four gives pair q of each of four packs and gets pack q.
  __device__ static uint4 exchange(const uint32_t (&pair)[4]) {
    const bool odd = threadIdx.x % 2 == 1, high = threadIdx.x % 4 >= 2;
    const uint32_t mine[2] = {odd ? pair[1] : pair[0], odd ? pair[3] : pair[2]};
    uint32_t other[2] = {odd ? pair[0] : pair[1], odd ? pair[2] : pair[3]};
#pragma unroll
    for (uint32_t& o : other) o = __shfl_xor_sync(kAllLanes, o, 1);
    const uint2 packs[2] = {odd ? uint2{other[0], mine[0]} : uint2{mine[0], other[0]},
                            odd ? uint2{other[1], mine[1]} : uint2{mine[1], other[1]}};
    const uint2 half = high ? packs[1] : packs[0];
    uint2 from = high ? packs[0] : packs[1];
    from.x = __shfl_xor_sync(kAllLanes, from.x, 2);
    from.y = __shfl_xor_sync(kAllLanes, from.y, 2);
    return high ? uint4{from.x, from.y, half.x, half.y} : uint4{half.x, half.y, from.x, from.y};
  }

  const VisionTask& task_;
  VisionShared<Shape>& s_;
  Ring<Shape::kStages> ring_;
  float out_[Shape::kHeadDim / 2];
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    vision_attention_sm90_kernel(const __grid_constant__ VisionTask task) {
  extern __shared__ __align__(1024) unsigned char bytes[];
  auto& shared = *reinterpret_cast<VisionShared<Shape>*>(bytes);
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQueryBuffers; ++i) {
      init_barrier(shared.query_full[i], 1);
      init_barrier(shared.query_empty[i], kConsumerWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      init_barrier(shared.key_full[i], 1);
      init_barrier(shared.value_full[i], 1);
      init_barrier(shared.key_empty[i], kConsumerWarps);
      init_barrier(shared.value_empty[i], kConsumerWarps);
    }
    init_barrier(shared.rest_landed, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x / 128 == Shape::kGroups) {
    give_registers<Shape::kProducerRegisters>();
    if (threadIdx.x / 32 == 4 * Shape::kGroups) VisionProducer<Shape>(task, shared).run();
  } else {
    take_registers<Shape::kConsumerRegisters>();
    VisionConsumer<Shape>(task, shared).run();
  }
}

}  // namespace lightvl::cuda
