// The consumer warpgroups of vision attention on sm_90a at head dim 64: the order of steps of items
// that run into each other.
#pragma once

#include "cuda/attention/vision_odd_row.cuh"

namespace lightvl::cuda {

template <class Shape>
class VisionChain : VisionOddRow<Shape> {
 public:
  using Base = VisionOddRow<Shape>;
  using Base::Base;

  // Called by the consumer warpgroups.
  __device__ void run() {
    this->run_items([&] {
      if (Cut(item().len).is_short()) {
        attend_short();
      } else {
        attend();
      }
    });
  }

 private:
  using T = typename Shape::T;
  using Base::buffer_, Base::blank, Base::finish_keys, Base::finish_values, Base::group, Base::item,
      Base::key, Base::key_full, Base::key_tail, Base::multiply_keys, Base::multiply_values,
      Base::out_, Base::pass_turn, Base::query_empty, Base::query_full, Base::ring_, Base::s_,
      Base::softmax_, Base::take_turn, Base::value, Base::value_full, Base::value_tail;
  using typename Base::Cut;
  using typename Base::Stage;
  static constexpr int kScores = Shape::kKeys / 2, kTailScores = Shape::kTailKeys / 2;

  // The first block of an item, with no product pending.
  __device__ void begin() {
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score_, key(ring_.slot));
    pass_turn();
    finish_keys<0>(score_);
    soften_first();
  }

  // Runs over this item and those that can be joined to it. Between steps P of a block awaits its
  // V.
  __device__ void attend() {
    begin();
    int steps = Cut(item().len).steps();
    for (;;) {
      int done = -1;  // buffer of the item whose last block is pending
      if (--steps == 0) {
        done = buffer_.slot;
        buffer_.next();
        wait(query_full(buffer_.slot), buffer_.parity);
        const VisionItem& next = item();
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
    const bool grown = !blank() && softmax_.update(score_);
    finish_values(current.slot);
    if (grown) softmax_.rescale(out_);
    if (!blank()) ChainSoftmax<T>::template exponentiate<Shape::kPolynomials>(score_, probability_);
  }

  // P V of the last block, and output.
  __device__ void finish(int done) {
    wait(value_full(ring_.slot), ring_.parity);
    multiply_values<Shape::kKeys>(probability_, value(ring_.slot));
    finish_values(ring_.slot);
    ring_.next();
    store(done);
  }

  // An item of few keys, without overlap.
  __device__ void attend_short() {
    const int keys = item().len;
    float score[32];
    uint32_t probability[4][4];
    wait(key_full(ring_.slot), ring_.parity);
    take_turn();
    multiply_keys<Shape::kKeys>(score, key(ring_.slot));
    pass_turn();
    finish_keys<0>(score);
    mask(score, keys);
    float none[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    softmax_.start(score, none);
    ChainSoftmax<T>::template exponentiate<0>(score, probability);
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
    const VisionItem& now = item();
    const Cut cut(now.len);
    float score[kTailScores];
    uint32_t probability[Shape::kTailKeys / 16][4];
    multiply_keys<Shape::kTailKeys>(score, key_tail(buffer_.slot));
    this->set_blank(now);
    wgmma_wait<0>();
    pin(score);
    if (!blank()) {
      if (cut.head > 0) mask(score_, cut.head);
      mask(score, cut.tail);
      softmax_.start(score_, score);
    }
    ChainSoftmax<T>::template exponentiate<0>(score, probability);
    ChainSoftmax<T>::template exponentiate<Shape::kPolynomials>(score_, probability_);
#pragma unroll
    for (float& o : out_) o = 0.0f;
    multiply_values<Shape::kTailKeys>(probability, value_tail(buffer_.slot));
    wgmma_wait<0>();
    pin(out_);
  }

  __device__ void store(int buffer) {
    Base::store(s_.items[buffer], [&] { arrive(query_empty(buffer)); });
  }

  float score_[kScores];
  uint32_t probability_[kScores / 8][4];
};

}  // namespace lightvl::cuda
