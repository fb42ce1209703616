// The consumer warpgroups of vision attention on sm_90a: products, softmax, output.
#pragma once

#include "cuda/attention/vision_wide_shape.cuh"
#include "cuda/attention/vision_wide_softmax.cuh"

namespace lightvl::cuda::wide {

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

  // First row of this warp.
  __device__ static int first_row(const VisionItem& item) {
    return item.row + threadIdx.x / 32 * 16;
  }

  __device__ static int group() { return threadIdx.x / 128; }
  // One arrival for each warp.
  __device__ static void release(Barrier& empty) {
    if (threadIdx.x % 32 == 0) arrive(empty);
  }
  __device__ static void take_turn() {
    if constexpr (Shape::kOverlap) sync_named(1 + group(), 256);
  }
  __device__ static void pass_turn() {
    if constexpr (Shape::kOverlap) arrive_named(1 + (group() + 1) % Shape::kGroups, 256);
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
      const uint32_t step = k % 4 * 2, panel = k / 4 * (128 / 16);
      Wgmma<T, 2 * kSize>::ss(score, advance(a, step + panel * kTileRows),
                              advance(b, step + panel * Shape::kKeys), k > 0);
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
    softmax.update(score);
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
    if (softmax.update(score)) softmax.rescale(out_);
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
    if (softmax.update(score)) softmax.rescale(out_);
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
      const bool grown = softmax.update(score);
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
      const int row = first_row(item) + threadIdx.x % 32 / 4 + r * 8;
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

}  // namespace lightvl::cuda::wide
