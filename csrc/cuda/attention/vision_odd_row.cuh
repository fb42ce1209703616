// The last row of a segment of whole tiles and one row (towers put a class token before a square of
// patches). A tile of its own would cost as much as 64 rows, so the last warpgroup takes it in an
// item that has no tile for it, by products with the sides swapped: keys, then elements of the head
// dim, take the long side, and the row is one of eight on the short one; the others are nothing.
//   S' = K q    thread t of the warpgroup has, if t % 4 is 0, keys t / 32 * 16 + t % 32 / 4 and + 8
//   O' = V' p   likewise with elements of the head dim; p comes from shared memory
#pragma once

#include "cuda/attention/vision_products.cuh"

namespace lightvl::cuda {

// d += A^T B, both in shared memory: A is [16, 64], B [8, 16].
template <class T>
__device__ void multiply_swapped(float (&d)[4], uint64_t a, uint64_t b) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 1, 0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b));
  } else {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, 1, 1, 1, 1, "
        "0;"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "l"(a), "l"(b));
  }
}

template <class Shape>
class VisionOddRow : public VisionProducts<Shape> {
 public:
  using Base = VisionProducts<Shape>;
  using Base::Base;

 protected:
  // Takes items in turn: attend() those in which this warpgroup has a tile.
  template <class Attend>
  __device__ void run_items(const Attend& attend) {
    if (this->group() == Shape::kGroups - 1) this->pass_turn();
    for (;;) {
      wait(this->query_full(buffer_.slot), buffer_.parity);
      const int tiles = this->item().tiles;
      if (this->item().is_end()) return;
      if (this->group() < tiles) {
        attend();
      } else {
        attend_without_tile();
      }
    }
  }

  using Base::buffer_, Base::ring_, Base::s_, Base::task_;

 private:
  using T = typename Shape::T;
  static constexpr int kKeyTiles = Shape::kKeys / 64;

  // What threads have of the row; one of four has anything.
  struct State {
    float reference = -INFINITY, sum = 0.0f;
    float score[kKeyTiles][4], out[Shape::kPanels][4] = {};
  };

  // An item in which this warpgroup only goes along or, as the last, has the odd row.
  __device__ void attend_without_tile() {
    const VisionItem item = this->item();
    const KeyCut<Shape> cut(item.len);
    if (item.odd && this->group() == Shape::kGroups - 1) {
      attend_odd(item, cut);
    } else {
      this->skip_steps(item);
    }
    this->release_item();
  }

  __device__ void attend_odd(const VisionItem& item, const KeyCut<Shape>& cut) {
    State row;
    const int steps = cut.steps();
    for (int step = 0; step < steps + (cut.tail > 0); ++step) {
      const bool head = step == 0 && cut.head > 0, tail = step == steps;
      if (!tail) {
        wait(this->key_full(ring_.slot), ring_.parity);
        this->take_turn();
      }
      multiply_odd_keys(row, tail ? this->key_tail(buffer_.slot) : this->key(ring_.slot));
      if (!tail) this->pass_turn();
      wgmma_wait<0>();
      if (!tail) release(this->key_empty(ring_.slot));
      soften_odd(row, tail ? cut.tail : head ? cut.head : Shape::kKeys);
      if (!tail) wait(this->value_full(ring_.slot), ring_.parity);
      multiply_odd_values(row, tail ? this->value_tail(buffer_.slot) : this->value(ring_.slot),
                          tail   ? Shape::kTailKeys
                          : head ? cut.head_columns()
                                 : Shape::kKeys);
      if (tail) break;
      release(this->value_empty(ring_.slot));
      ring_.next();
    }
    store_odd(row, item);
  }

  // Asks for S'.
  __device__ void multiply_odd_keys(State& row, uint32_t keys) {
    const uint64_t a = describe_k_major(keys);
    const uint64_t b = describe_k_major(this->query(Shape::kGroups - 1));
#pragma unroll
    for (int m = 0; m < kKeyTiles; ++m) pin(row.score[m]);
    wgmma_fence();
#pragma unroll
    for (int m = 0; m < kKeyTiles; ++m) {
#pragma unroll
      for (int k = 0; k < Shape::kHeadDim / 16; ++k) {
        const uint32_t step = k % 4 * 2, panel = k / 4 * (128 / 16);
        Wgmma<T, 8>::ss(row.score[m], advance(a, m * 512 + step + panel * Shape::kKeys),
                        advance(b, step + panel * kTileRows), k > 0);
      }
    }
    wgmma_commit();
  }

  // S' of keys, of which `seen` exist, becomes p, in shared memory.
  __device__ void soften_odd(State& row, int seen) {
    float most = -INFINITY;
#pragma unroll
    for (int m = 0; m < kKeyTiles; ++m) {
      pin(row.score[m]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float& x = row.score[m][2 * i];
        x = m * 64 + place(i) < seen ? x * task_.scale * 1.44269504f : -INFINITY;
        most = fmaxf(most, x);
      }
    }
    if (threadIdx.x % 4 != 0) most = -INFINITY;
    const float reference = fmaxf(row.reference, over_warps<true>(most));
    const float factor = exp2_unit(row.reference - reference);
    row.reference = reference;
    row.sum *= factor;
#pragma unroll
    for (int m = 0; m < Shape::kPanels; ++m) {
#pragma unroll
      for (float& o : row.out[m]) o *= factor;
    }
    if (threadIdx.x % 4 == 0) {
#pragma unroll
      for (int i = 0; i < 2 * kKeyTiles; ++i) {
        const float p = exp2_unit(row.score[i / 2][i % 2 * 2] - reference);
        row.sum += p;
        s_.odd_operand.of[i / 2 * 512 + place(i % 2)] = from_float<T>(p);
      }
    }
    fence_proxy_async();
    sync_named(kOddBarrier, 128);
  }

  // O' += V' p of the first `columns` keys, of which V has numbers.
  __device__ void multiply_odd_values(State& row, uint32_t values, int columns) {
    if (columns == 16) return multiply_odd_values<16>(row, values);
    if (columns == 32) return multiply_odd_values<32>(row, values);
    if (columns == 64) return multiply_odd_values<64>(row, values);
    multiply_odd_values<Shape::kKeys>(row, values);
  }
  template <int kColumns>
  __device__ void multiply_odd_values(State& row, uint32_t values) {
    const uint64_t b = describe_k_major(s_.odd_operand.of);
#pragma unroll
    for (int m = 0; m < Shape::kPanels; ++m) pin(row.out[m]);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kColumns / 16; ++k) {
#pragma unroll
      for (int m = 0; m < Shape::kPanels; ++m) {
        const uint64_t a = describe_mn_major(values + m * Shape::kKeys * 128, 0);
        multiply_swapped<T>(row.out[m], advance(a, k * 128), advance(b, k / 4 * 64 + k % 4 * 2));
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int m = 0; m < Shape::kPanels; ++m) pin(row.out[m]);
  }

  __device__ void store_odd(State& row, const VisionItem& item) {
    const float inverse = 1.0f / over_warps<false>(threadIdx.x % 4 == 0 ? row.sum : 0.0f);
    if (threadIdx.x % 4 != 0) return;
    T* out = static_cast<T*>(task_.out) + (item.begin + item.len - 1) * task_.out_stride[0] +
             item.head * task_.out_stride[1];
#pragma unroll
    for (int m = 0; m < Shape::kPanels; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        out[m * 64 + place(i)] = from_float<T>(row.out[m][2 * i] * inverse);
      }
    }
  }

  // Which of 64 keys or elements this thread's i-th is.
  __device__ static int place(int i) {
    return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4 + 8 * i;
  }

  // The largest or the sum over the warpgroup. Twice in a row, or with a barrier between.
  template <bool kMaximum>
  __device__ float over_warps(float x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_xor_sync(kAllLanes, x, step);
      x = kMaximum ? fmaxf(x, other) : x + other;
    }
    float (&of)[4] = s_.odd_warps[kMaximum];
    if (threadIdx.x % 32 == 0) of[threadIdx.x % 128 / 32] = x;
    sync_named(kOddBarrier, 128);
    return kMaximum ? fmaxf(fmaxf(of[0], of[1]), fmaxf(of[2], of[3]))
                    : of[0] + of[1] + of[2] + of[3];
  }
};

}  // namespace lightvl::cuda
