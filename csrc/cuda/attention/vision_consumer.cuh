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
      : task_(task), s_(shared), softmax_(task.scale) {}

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
  static constexpr int kScores = Shape::kKeys / 2, kTailScores = kTailKeys / 2;

  __device__ static int group() { return threadIdx.x / 128; }

  // ---- order among warps

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

  // Waits for the next item in which this warpgroup has a tile.
  __device__ bool find_tile() {
    for (;; buffer_.next()) {
      wait(s_.query_full[buffer_.slot], buffer_.parity);
      const int tiles = s_.items[buffer_.slot].tiles;
      if (tiles == 0) return false;
      if (group() < tiles) return true;
      stand_by(s_.items[buffer_.slot].len);
      release(s_.query_empty[buffer_.slot]);
    }
  }

  // Goes through the motions of an item in which this warpgroup has no tile.
  __device__ void stand_by(int len) {
    for (int step = Cut(len).steps(); step > 0; --step, ring_.next()) {
      take_turn();
      pass_turn();
      wait(s_.key_full[ring_.slot], ring_.parity);
      release(s_.key_empty[ring_.slot]);
      wait(s_.value_full[ring_.slot], ring_.parity);
      release(s_.value_empty[ring_.slot]);
    }
  }

  // ---- products

  // score = Q K^T for as many keys as it has columns, which lie in panels of kRows rows.
  template <int kRows, int kSize>
  __device__ void multiply_keys(float (&score)[kSize], const T* keys) {
    const uint64_t a = describe_k_major(s_.query[buffer_.slot][group()]);
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
  __device__ void multiply_values(uint32_t (&probability)[kSteps][4], const T* values) {
    const uint64_t b = describe_mn_major(values, kRows * 128);
#pragma unroll
    for (int k = 0; k < kSteps; ++k) pin(probability[k]);
    pin(out_);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      Wgmma<T, Shape::kHeadDim>::template rs<1>(out_, probability[k], advance(b, k * 128), true);
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

  // ---- steps

  // The first block of an item, with no product pending.
  __device__ void begin() {
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score_, s_.key[ring_.slot]);
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
        wait(s_.query_full[buffer_.slot], buffer_.parity);
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
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score_, s_.key[ring_.slot]);
    wgmma_commit();
    wait(s_.value_full[current.slot], current.parity);
    multiply_values<Shape::kKeys>(probability_, s_.value[current.slot]);
    pass_turn();
    finish_keys<1>(score_);
    if (done >= 0) {
      finish_values(current.slot);
      store(done);
      soften_first();
      return;
    }
    const bool grown = !blank_ && softmax_.template update<Shape::kPolynomials>(score_);
    finish_values(current.slot);
    if (grown) softmax_.rescale(out_);
    softmax_.collect(score_, probability_);
  }

  // P V of the last block, and output.
  __device__ void finish(int done) {
    wait(s_.value_full[ring_.slot], ring_.parity);
    multiply_values<Shape::kKeys>(probability_, s_.value[ring_.slot]);
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
    softmax_.reset();
    wait(s_.key_full[ring_.slot], ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, s_.key[ring_.slot]);
    wgmma_commit();
    pass_turn();
    finish_keys<0>(score);
    Softmax<T>::mask(score, keys);
    softmax_.template update<0>(score);
    softmax_.collect(score, probability);
    wait(s_.value_full[ring_.slot], ring_.parity);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    multiply_values<Shape::kKeys>(probability, s_.value[ring_.slot]);
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
    uint32_t probability[kTailKeys / 16][4];
    multiply_keys<kTailKeys>(score, s_.key_tail[buffer_.slot]);
    wgmma_commit();
    softmax_.reset();
    blank_ = first_row(item) >= item.len;
    wgmma_wait<0>();
    pin(score);
    if (!blank_) {
      if (cut.head > 0) Softmax<T>::mask(score_, cut.head);
      Softmax<T>::mask(score, cut.tail);
      softmax_.template update<Shape::kPolynomials>(score_, score);
    }
    softmax_.collect(score_, probability_);
    softmax_.collect(score, probability);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    multiply_values<kTailKeys>(probability, s_.value_tail[buffer_.slot]);
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
    release(s_.query_empty[buffer]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float inverse = softmax_.inverse_sum(r);
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
  bool blank_;  // none of this warp's rows exist: no softmax, and anything may come out
  Softmax<T> softmax_;
  float score_[kScores], out_[Shape::kHeadDim / 2];
  uint32_t probability_[kScores / 8][4];
};

}  // namespace lightvl::cuda
