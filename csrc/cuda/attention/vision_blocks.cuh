// The consumer warpgroups of vision attention on sm_90a at head dim 128: an item at a time. Three
// of them wait for their products, others fill the tensor cores meanwhile; two have the softmax of
// a block during the P V of the one before.
#pragma once

#include "cuda/attention/vision_products.cuh"

namespace lightvl::cuda {

template <class Shape>
class VisionBlocks : VisionProducts<Shape> {
 public:
  using Base = VisionProducts<Shape>;
  using Base::Base;

  // Called by the consumer warpgroups.
  __device__ void run() {
    if (group() == Shape::kGroups - 1) pass_turn();
    for (;;) {
      wait(Base::query_full(buffer_.slot), buffer_.parity);
      const VisionItem now = item();
      if (now.is_end()) return;
      if (group() < now.tiles) {
        attend(now);
      } else {
        this->skip_steps(now);
        this->release_item();
      }
    }
  }

 private:
  using T = typename Shape::T;
  using Base::buffer_, Base::finish_keys, Base::finish_values, Base::group, Base::item, Base::key,
      Base::key_full, Base::multiply_keys, Base::multiply_values, Base::out_, Base::pass_turn,
      Base::ring_, Base::softmax_, Base::take_turn, Base::value, Base::value_full;
  using typename Base::Cut;
  using typename Base::Stage;
  static constexpr int kScores = Shape::kKeys / 2;

  __device__ void attend(const VisionItem& now) {
    const Cut cut(now.len);
    softmax_.reset();
#pragma unroll
    for (float& o : out_) o = 0.0f;
    if (cut.head > 0) attend_head(cut);
    if constexpr (Shape::kOverlapped) {
      if (cut.blocks > 0) attend_overlapped(cut);
    } else {
      for (int block = 0; block < cut.blocks; ++block) attend_block<Shape::kKeys>(Shape::kKeys);
    }
    this->release_item();
    Base::store(now, [] {});
  }

  // The block of the keys that don't fill one.
  __device__ void attend_head(const Cut& cut) {
    const int columns = cut.head_columns();
    if (columns == 16) return attend_block<16>(cut.head);
    if (columns == 32) return attend_block<32>(cut.head);
    if (columns == 64) return attend_block<64>(cut.head);
    attend_block<Shape::kKeys>(cut.head);
  }

  // The first kColumns keys of a block, of which `seen` exist.
  template <int kColumns>
  __device__ void attend_block(int seen) {
    float score[kColumns / 2];
    uint32_t probability[kColumns / 16][4];
    begin(score);
    if (seen < kColumns) mask(score, seen);
    soften(score, probability);
    finish(probability);
  }

  // Whole blocks and the tail, which shares the first one's softmax and whose P V is waited for
  // with that block's. After a head there is no tail: then it is zeros.
  __device__ void attend_overlapped(const Cut& cut) {
    float score[kScores], tail[Shape::kTailKeys / 2];
    uint32_t probability[kScores / 8][4], tail_probability[Shape::kTailKeys / 16][4];
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, key(ring_.slot));
    multiply_keys<Shape::kTailKeys>(tail, Base::key_tail(buffer_.slot));
    pass_turn();
    finish_keys<0>(score);
    pin(tail);
    mask(tail, cut.tail);
    if (softmax_.update(score, tail)) softmax_.rescale(out_);
    pack_operand<T>(score, probability);
    pack_operand<T>(tail, tail_probability);
    multiply_values<Shape::kTailKeys>(tail_probability, Base::value_tail(buffer_.slot));
    for (int block = 1; block < cut.blocks; ++block) step(score, probability);
    finish(probability);
  }

  // Asks for S of the next block and for P V of this one, and has the softmax of the one during the
  // other.
  __device__ void step(float (&score)[kScores], uint32_t (&probability)[kScores / 8][4]) {
    const Stage current = ring_;
    ring_.next();
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, key(ring_.slot));
    wait(value_full(current.slot), current.parity);
    multiply_values<Shape::kKeys>(probability, value(current.slot));
    pass_turn();
    finish_keys<1>(score);
    const bool grown = softmax_.update(score);
    finish_values(current.slot);
    if (grown) softmax_.rescale(out_);
    pack_operand<T>(score, probability);
  }

  // S of a block, with no product pending.
  template <int kSize>
  __device__ void begin(float (&score)[kSize]) {
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, key(ring_.slot));
    pass_turn();
    finish_keys<0>(score);
  }

  // Softmax of a block with no product pending.
  template <int kSize>
  __device__ void soften(float (&score)[kSize], uint32_t (&probability)[kSize / 8][4]) {
    if (softmax_.update(score)) softmax_.rescale(out_);
    pack_operand<T>(score, probability);
  }

  // P V of a block, after which none is pending.
  template <int kSteps>
  __device__ void finish(uint32_t (&probability)[kSteps][4]) {
    wait(value_full(ring_.slot), ring_.parity);
    multiply_values<Shape::kKeys>(probability, value(ring_.slot));
    finish_values(ring_.slot);
    ring_.next();
  }
};

}  // namespace lightvl::cuda
