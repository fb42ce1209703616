// The consumer warpgroups of vision attention on sm_90a: products, softmax, output.
#pragma once

#include "cuda/attention/vision_shape.cuh"
#include "cuda/attention/vision_softmax.cuh"

namespace lightvl::cuda {

template <class Shape>
class VisionConsumer {
 public:
  using T = typename Shape::T;

  __device__ VisionConsumer(const VisionTask& task, VisionShared<Shape>& shared)
      : task_(task), s_(shared), softmax_(task.scale), base_(smem_address(&shared)) {
    group_ = threadIdx.x / 128;
    asm volatile("" : "+r"(base_), "+r"(group_));  // keep them instead of computing them again
  }

  // Called by the consumer warpgroups.
  __device__ void run() {
    if (group() == Shape::kGroups - 1) pass_turn();
    while (find_tile()) {
      if (Cut(s_.items[buffer_.slot].len).is_short())
        attend_short();
      else
        attend();
    }
  }

 private:
  using Stage = Ring<Shape::kStages>;
  using Cut = KeyCut<Shape>;
  using Shared = VisionShared<Shape>;
  static constexpr int kScores = Shape::kKeys / 2, kTailScores = Shape::kTailKeys / 2;
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

  __device__ int group() const { return group_ & 3; }

  __device__ bool blank() const { return (group_ & kBlank) != 0; }

  // ---- order among warps

  // One arrival for each warp.
  __device__ static void release(uint32_t empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
  }
  __device__ void take_turn() const { sync_named(1 + group(), 256); }
  __device__ void pass_turn() const {
    arrive_named(group() == Shape::kGroups - 1 ? 1 : 2 + group(), 256);
  }

  // Waits for the next item in which this warpgroup has a tile.
  __device__ bool find_tile() {
    for (;; buffer_.next()) {
      wait(query_full(buffer_.slot), buffer_.parity);
      const int tiles = s_.items[buffer_.slot].tiles;
      if (tiles == 0) return false;
      if (group() < tiles) return true;
      stand_by(s_.items[buffer_.slot].len);
      release(query_empty(buffer_.slot));
    }
  }

  // Goes through the motions of an item in which this warpgroup has no tile.
  __device__ void stand_by(int len) {
    for (int step = Cut(len).steps(); step > 0; --step, ring_.next()) {
      take_turn();
      pass_turn();
      wait(key_full(ring_.slot), ring_.parity);
      release(key_empty(ring_.slot));
      wait(value_full(ring_.slot), ring_.parity);
      release(value_empty(ring_.slot));
    }
  }

  // ---- products

  // score = Q K^T for as many keys as it has columns, which lie in panels of kRows rows.
  template <int kRows, int kSize>
  __device__ void multiply_keys(float (&score)[kSize], uint32_t keys) {
    const uint64_t a =
        describe_k_major(base_ + (buffer_.slot * Shape::kGroups + group()) * Shape::kTileBytes);
    const uint64_t b = describe_k_major(keys);
    pin(score);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < Shape::kHeadDim / 16; ++k) {
      const uint32_t step = k % 4 * 2, panel = k / 4 * (128 / 16);
      Wgmma<T, 2 * kSize>::ss(score, advance(a, step + panel * kTileRows),
                              advance(b, step + panel * kRows), k > 0);
    }
  }

  // out_ += P V.
  template <int kRows, int kSteps>
  __device__ void multiply_values(uint32_t (&probability)[kSteps][4], uint32_t values) {
    // The distance to the panel of columns beyond 64.
    const uint32_t panel = Shape::kOnes ? base_ + offsetof(Shared, ones) - values : kRows * 128;
    const uint64_t b = describe_mn_major(values, panel);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) pin(probability[k]);
    pin(out_);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Wgmma<T, Shape::kOutColumns>::template rs<1>(out_, probability[k], advance(b, k * 128), true);
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

  // ---- steps

  // The first block of an item, with no product pending.
  __device__ void begin() {
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score_, key(ring_.slot));
    wgmma_commit();
    pass_turn();
    finish_keys<0>(score_);
    soften_first();
  }

  // Runs over this item and those that can be joined to it. Between steps P of a block awaits its
  // V.
  __device__ void attend() {
    begin();
    int steps = Cut(s_.items[buffer_.slot].len).steps();
    for (;;) {
      int done = -1;  // buffer of the item whose last block is pending
      if (--steps == 0) {
        done = buffer_.slot;
        buffer_.next();
        wait(query_full(buffer_.slot), buffer_.parity);
        const VisionItem& next = s_.items[buffer_.slot];
        const Cut cut(next.len);
        if (group() >= next.tiles || cut.is_short()) return finish(done);
        steps = cut.steps();
      }
      step(done);
    }
  }

  // Asks for S of the next block and for P V of this one, and has the softmax of the one during the
  // other. If this was the last block of the item in buffer `done`, the next is the first of
  // another, and output is between them.
  __device__ void step(int done) {
    const Stage current = ring_;
    ring_.next();
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score_, key(ring_.slot));
    wgmma_commit();
    wait(value_full(current.slot), current.parity);
    multiply_values<Shape::kKeys>(probability_, value(current.slot));
    pass_turn();
    finish_keys<1>(score_);
    if (done >= 0) {
      finish_values(current.slot);
      store(done);
      soften_first();
      return;
    }
    const bool grown = !blank() && softmax_.template update<Shape::kPolynomials>(score_);
    finish_values(current.slot);
    if (grown) softmax_.rescale(out_);
    softmax_.template collect<!Shape::kOnes>(score_, probability_);
  }

  // P V of the last block, and output.
  __device__ void finish(int done) {
    wait(value_full(ring_.slot), ring_.parity);
    multiply_values<Shape::kKeys>(probability_, value(ring_.slot));
    finish_values(ring_.slot);
    ring_.next();
    store(done);
  }

  // First row of this warp.
  __device__ static int first_row(const VisionItem& item) {
    return item.row + threadIdx.x / 32 * 16;
  }

  // An item of few keys, without overlap.
  __device__ void attend_short() {
    const int keys = s_.items[buffer_.slot].len;
    float score[32];
    uint32_t probability[4][4];
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, key(ring_.slot));
    wgmma_commit();
    pass_turn();
    finish_keys<0>(score);
    Softmax<T>::mask(score, keys);
    float none[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    softmax_.template start<0>(score, none);
    softmax_.template collect<!Shape::kOnes>(score, probability);
    wait(value_full(ring_.slot), ring_.parity);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    multiply_values<Shape::kKeys>(probability, value(ring_.slot));
    finish_values(ring_.slot);
    ring_.next();
    store(buffer_.slot);
    buffer_.next();
  }

  // Softmax of an item's first block together with the tail, whose P V is taken at once.
  __device__ void soften_first() {
    const VisionItem& item = s_.items[buffer_.slot];
    const Cut cut(item.len);
    float score[kTailScores];
    uint32_t probability[Shape::kTailKeys / 16][4];
    multiply_keys<Shape::kTailKeys>(score, key_tail(buffer_.slot));
    wgmma_commit();
    group_ = group() | (first_row(item) >= item.len ? kBlank : 0);
    wgmma_wait<0>();
    pin(score);
    if (!blank()) {
      if (cut.head > 0) Softmax<T>::mask(score_, cut.head);
      Softmax<T>::mask(score, cut.tail);
      softmax_.template start<Shape::kPolynomials>(score_, score);
    }
    softmax_.template collect<!Shape::kOnes>(score_, probability_);
    softmax_.template collect<!Shape::kOnes>(score, probability);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    multiply_values<Shape::kTailKeys>(probability, value_tail(buffer_.slot));
    wgmma_wait<0>();
    pin(out_);
  }

  // ---- output

  // Normalises and writes the rows that exist, 64 bytes of each at once: the four threads of a row
  // exchange what they have of four neighbouring groups of eight columns.
  __device__ void store(int buffer) {
    const VisionItem& item = s_.items[buffer];
    const int row = first_row(item) + threadIdx.x % 32 / 4, rows = item.len - row;
    T* out = static_cast<T*>(task_.out) + (item.begin + row) * task_.out_stride[0] +
             item.head * task_.out_stride[1] + threadIdx.x % 4 * 8;
    __syncwarp();
    release(query_empty(buffer));
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
  Stage ring_;
  Ring<Shape::kQueryBuffers> buffer_;
  // Of the warpgroup, | kBlank if none of this warp's rows exist: then no softmax, and anything may
  // come out.
  int group_;
  uint32_t base_;  // of the shared memory
  Softmax<T> softmax_;
  float score_[kScores], out_[Shape::kOutColumns / 2];
  uint32_t probability_[kScores / 8][4];
};

}  // namespace lightvl::cuda
