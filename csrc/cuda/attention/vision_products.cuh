// What a consumer warpgroup of vision attention on sm_90a does whatever the order of its steps:
// waits and turns, products, output.
#pragma once

#include "cuda/attention/vision_chain_softmax.cuh"
#include "cuda/attention/vision_shape.cuh"

namespace lightvl::cuda {

template <class Shape>
class VisionProducts {
 public:
  using T = typename Shape::T;

  __device__ VisionProducts(const VisionTask& task, VisionShared<Shape>& shared)
      : task_(task), s_(shared), softmax_(task.scale * 1.44269504f), base_(smem_address(&shared)) {
    group_ = threadIdx.x / 128;
    asm volatile("" : "+r"(base_), "+r"(group_));  // keep them instead of computing them again
  }

 protected:
  using Stage = Ring<Shape::kStages>;
  using Cut = KeyCut<Shape>;
  using Shared = VisionShared<Shape>;
  using Softmax = std::conditional_t<Shape::kChained, ChainSoftmax<T>, BlockSoftmax>;
  static constexpr int kBlank = 16;

  // Addresses in shared memory.
  __device__ uint32_t key_full(int slot) const {
    return base_ + offsetof(Shared, key_full) + 8 * slot;
  }
  __device__ uint32_t key_empty(int slot) const {
    return base_ + offsetof(Shared, key_empty) + 8 * slot;
  }
  __device__ uint32_t value_full(int slot) const {
    return base_ + offsetof(Shared, value_full) + 8 * slot;
  }
  __device__ uint32_t value_empty(int slot) const {
    return base_ + offsetof(Shared, value_empty) + 8 * slot;
  }
  __device__ uint32_t query_full(int slot) const {
    return base_ + offsetof(Shared, query_full) + 8 * slot;
  }
  __device__ uint32_t query_empty(int slot) const {
    return base_ + offsetof(Shared, query_empty) + 8 * slot;
  }
  __device__ uint32_t key(int slot) const {
    return base_ + offsetof(Shared, key) + slot * Shape::kBlockBytes;
  }
  __device__ uint32_t value(int slot) const {
    return base_ + offsetof(Shared, value) + slot * Shape::kBlockBytes;
  }
  __device__ uint32_t key_tail(int slot) const {
    return base_ + offsetof(Shared, key_tail) + slot * 2 * Shape::kTailSize;
  }
  __device__ uint32_t value_tail(int slot) const {
    return base_ + offsetof(Shared, value_tail) + slot * 2 * Shape::kTailSize;
  }
  // Of the current item.
  __device__ uint32_t query(int tile) const {
    return base_ + (buffer_.slot * Shape::kGroups + tile) * Shape::kTileBytes;
  }

  __device__ int group() const { return group_ & 3; }
  __device__ bool blank() const { return (group_ & kBlank) != 0; }
  __device__ void set_blank(const VisionItem& item) {
    group_ = group() | (first_row(item) >= item.len ? kBlank : 0);
  }
  __device__ const VisionItem& item() const { return s_.items[buffer_.slot]; }

  // First row of this warp.
  __device__ static int first_row(const VisionItem& item) {
    return item.row + threadIdx.x / 32 * 16;
  }

  // Tells the producer that the item has been read: each lane for itself.
  __device__ void release_item() {
    arrive(query_empty(buffer_.slot));
    buffer_.next();
  }

  // Goes through the motions of an item in which this warpgroup has no tile.
  __device__ void skip_steps(const VisionItem& item) {
    for (int step = Cut(item.len).steps(); step > 0; --step, ring_.next()) {
      take_turn();
      pass_turn();
      wait(key_full(ring_.slot), ring_.parity);
      release(key_empty(ring_.slot));
      wait(value_full(ring_.slot), ring_.parity);
      release(value_empty(ring_.slot));
    }
  }

  __device__ void take_turn() const {
    if constexpr (Shape::kOverlapped) sync_named(kTurnBarrier + group(), 256);
  }
  __device__ void pass_turn() const {
    if constexpr (Shape::kOverlapped) {
      arrive_named(group() == Shape::kGroups - 1 ? kTurnBarrier : kTurnBarrier + 1 + group(), 256);
    }
  }

  // ---- products

  // Asks for score = Q K^T for as many keys as it has columns, which lie in panels of kRows rows.
  template <int kRows, int kSize>
  __device__ void multiply_keys(float (&score)[kSize], uint32_t keys) {
    const Descriptor a(describe_k_major(query(group()))), b(describe_k_major(keys));
    pin(score);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Shape::kHeadDim / 16; ++k) {
      const uint32_t step = k % 4 * 2, panel = k / 4 * (128 / 16);
      Wgmma<T, 2 * kSize>::ss(score, a.at(step + panel * kTileRows), b.at(step + panel * kRows),
                              k > 0);
    }
    wgmma_commit();
  }

  // Asks for out_ += P V.
  template <int kRows, int kSteps>
  __device__ void multiply_values(uint32_t (&probability)[kSteps][4], uint32_t values) {
    // The distance to the panel of columns beyond 64.
    const uint32_t panel = Shape::kOnes ? base_ + offsetof(Shared, ones) - values : kRows * 128;
    const Descriptor b(describe_mn_major(values, panel));
#pragma unroll
    for (int k = 0; k < kSteps; ++k) pin(probability[k]);
    pin(out_);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Wgmma<T, Shape::kOutColumns>::template rs<1>(out_, probability[k], b.at(k * 128), true);
    }
    wgmma_commit();
  }

  template <int kPending, int kSize>
  __device__ void finish_keys(float (&score)[kSize]) {
    wgmma_wait<kPending>();
    pin(score);
    release(key_empty(ring_.slot));
  }
  __device__ void finish_values(int slot) {
    wgmma_wait<0>();
    pin(out_);
    release(value_empty(slot));
  }

  // ---- output

  // Normalises and writes the rows that exist, 64 bytes of each at once: the four threads of a row
  // exchange what they have of four neighbouring groups of eight columns. `read` is called when the
  // item has been read.
  template <class Read>
  __device__ void store(const VisionItem& item, const Read& read) {
    const int row = first_row(item) + threadIdx.x % 32 / 4, rows = item.len - row;
    T* out = static_cast<T*>(task_.out) + (item.begin + row) * task_.out_stride[0] +
             item.head * task_.out_stride[1] + threadIdx.x % 4 * 8;
    read();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float inverse;
      if constexpr (Shape::kOnes) {
        inverse = 1.0f / out_[Shape::kHeadDim / 2 + 2 * r];
      } else {
        inverse = softmax_.inverse_sum(r);
      }
      T* to = out + r * 8 * task_.out_stride[0];
#pragma unroll
      for (int first = 0; first < Shape::kHeadDim; first += 32) {
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float* o = &out_[first / 2 + 4 * j + 2 * r];
          pair[j] = pack_pair<T>(o[0] * inverse, o[1] * inverse);
        }
        const uint4 eight = exchange(pair);
        if (r * 8 < rows) *reinterpret_cast<uint4*>(to + first) = eight;
      }
    }
  }

  const VisionTask& task_;
  VisionShared<Shape>& s_;
  Stage ring_;
  Ring<Shape::kQueryBuffers> buffer_;
  Softmax softmax_;
  // Of the warpgroup, | kBlank if none of this warp's rows exist: then no softmax, and anything may
  // come out.
  int group_;
  uint32_t base_;  // of the shared memory
  float out_[Shape::kOutColumns / 2];

 private:
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
};

}  // namespace lightvl::cuda
