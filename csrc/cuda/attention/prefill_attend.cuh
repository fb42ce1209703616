// The consumer warpgroups of prefill attention: products and softmax of 64 rows each.
//
// The products of a step are S = Q K^T of one block of keys and O += P V of the block before it;
// while the next step's run, softmax turns S into P. Only blocks beyond the first token's keys are
// masked; they come first, as blocks are taken from the last to the first.
#pragma once

#include "cuda/attention/prefill_softmax.cuh"

namespace lightvl::cuda {

template <class Config>
class PrefillConsumer {
 public:
  using T = typename Config::T;
  using Softmax = PrefillSoftmax<Config::kKeys>;
  static constexpr int kKeys = Config::kKeys, kHeadDim = Config::kHeadDim;

  __device__ PrefillConsumer(const PagedAttentionWork& work, const PrefillShape& shape,
                             PrefillShared<Config>& shared)
      : work_(work),
        shape_(shape),
        shared_(shared),
        pieces_(work.workspace),
        warpgroup_(uniform(static_cast<int>(threadIdx.x) / 128 - 1)) {
    if (Config::kTurns && warpgroup_ == Config::kWarpgroups - 1) pass_turn();
  }

  // Goes through the items that the producer hands on.
  __device__ void run() {
    while (true) {
      const int slot = query_ring_.slot;
      wait(shared_.query_full[slot], query_ring_.parity);
      const PrefillItem item = read_item(shared_.item[slot]);
      if (item.block_end < 0) return;
      Softmax softmax(work_.params.scale * 1.44269504f);
      float out[kHeadDim / 2];
      attend(item, slot, softmax, out);
      query_ring_.advance();
      PrefillTotals totals = softmax.totals();
      if (item.piece >= 0 && !pieces_.collect(item, totals, out)) continue;
      store(item, totals, out);
    }
  }

 private:
  static constexpr int kFirst = kKeys / 16 * 10;  // keys whose exponentials take as long as P V

  // What all lanes have alike. It tells the compiler so, which then keeps what depends on it, loops
  // and descriptors, in the registers that a warp shares.
  __device__ static int uniform(int value) { return __shfl_sync(kAllLanes, value, 0); }

  __device__ static PrefillItem read_item(const PrefillItem& item) {
    return {.sequence = 0,
            .kv_head = uniform(item.kv_head),
            .token_begin = uniform(item.token_begin),
            .past = uniform(item.past),
            .context = uniform(item.context),
            .row_begin = uniform(item.row_begin),
            .num_rows = uniform(item.num_rows),
            .block_begin = uniform(item.block_begin),
            .block_end = uniform(item.block_end),
            .piece = uniform(item.piece),
            .first_sharer = uniform(item.first_sharer),
            .last_sharer = uniform(item.last_sharer)};
  }

  __device__ int first_row() const { return warpgroup_ * 64 + Softmax::row(); }

  __device__ void attend(const PrefillItem& item, int query, Softmax& softmax,
                         float (&out)[kHeadDim / 2]) {
    int seen[2];
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      seen[which] = item.past + shape_.group.divide(item.row_begin + first_row() + 8 * which) + 1;
    }
    const int least_seen = item.past + shape_.group.divide(item.row_begin) + 1;
    float scores[kKeys / 2];
    uint32_t packed[kKeys / 16][4];
    int block = item.block_end - 1;
    const Descriptor a = queries(query);

    wait(shared_.key_full[key_ring_.slot], key_ring_.parity);
    wgmma_fence();
    multiply_keys(a, keys(key_ring_.slot), scores);
    wgmma_wait<0>();
    pin(scores);
    release(shared_.key_empty[key_ring_.slot]);
    key_ring_.advance();
    Softmax::mask(scores, block * kKeys, seen);
    if (softmax.raise(scores)) softmax.grow();
    softmax.template exponentiate<0, kKeys>(scores);
    softmax.add();
    pack_probabilities<T, kKeys>(scores, packed);
    if ((block + 1) * kKeys > item.context) clear_values(item.context - block * kKeys);

    bool accumulate = false;
    for (--block; block >= item.block_begin; --block) {
      wait(shared_.key_full[key_ring_.slot], key_ring_.parity);
      wait(shared_.value_full[value_ring_.slot], value_ring_.parity);
      const Descriptor k = keys(key_ring_.slot), v = values(value_ring_.slot);
      take_turn();
      pin_all(scores, out, packed);
      wgmma_fence();
      multiply_keys(a, k, scores);
      wgmma_fence();
      multiply_values(packed, v, out, accumulate, [this] { pass_turn(); });
      wgmma_wait<1>();
      pin(scores);
      release(shared_.key_empty[key_ring_.slot]);
      key_ring_.advance();
      if ((block + 1) * kKeys > least_seen) Softmax::mask(scores, block * kKeys, seen);
      const bool grown = softmax.raise(scores);
      softmax.template exponentiate<0, kFirst>(scores);
      pin(scores);
      // A branch that depends on them keeps ptxas from waiting before the exponentials.
      if (softmax.known_late(grown)) softmax.grow();
      wgmma_wait<0>();
      pin(out);
      release(shared_.value_empty[value_ring_.slot]);
      value_ring_.advance();
      softmax.template exponentiate<kFirst, kKeys>(scores);
      softmax.add();
      pack_probabilities<T, kKeys>(scores, packed);
      if (grown) softmax.rescale(out);
      accumulate = true;
    }
    release(shared_.query_empty[query]);

    wait(shared_.value_full[value_ring_.slot], value_ring_.parity);
    pin_all(scores, out, packed);
    wgmma_fence();
    multiply_values(packed, values(value_ring_.slot), out, accumulate, [] {});
    wgmma_wait<0>();
    pin(out);
    release(shared_.value_empty[value_ring_.slot]);
    value_ring_.advance();
  }

  __device__ Descriptor queries(int slot) const {
    return Descriptor(describe_k_major(&shared_.query[slot][0][warpgroup_ * 64][0]));
  }
  __device__ Descriptor keys(int slot) const {
    return Descriptor(describe_k_major(&shared_.key[slot][0][0][0]));
  }
  __device__ Descriptor values(int slot) const {
    return Descriptor(describe_mn_major(&shared_.value[slot][0][0][0], kKeys * 128));
  }

  // scores = Q K^T.
  __device__ static void multiply_keys(const Descriptor& a, const Descriptor& b,
                                       float (&scores)[kKeys / 2]) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 16; ++i) {
      const int panel = i / 4, step = i % 4 * 2;
      Wgmma<T, kKeys>::template ss<0>(scores, a.at(panel * (Config::kRows * 8) + step),
                                      b.at(panel * (kKeys * 8) + step), i > 0);
    }
    wgmma_commit();
  }

  // out += P V, or = without `accumulate`; near_end() is called when the last steps are to be asked
  // for, so that the next products follow these closely.
  template <class NearEnd>
  __device__ static void multiply_values(const uint32_t (&packed)[kKeys / 16][4],
                                         const Descriptor& b, float (&out)[kHeadDim / 2],
                                         bool accumulate, NearEnd&& near_end) {
#pragma unroll
    for (int i = 0; i < kKeys / 16; ++i) {
      if (i == kKeys / 16 - kEarly) near_end();
      Wgmma<T, kHeadDim>::template rs<1>(out, packed[i], b.at(i * 128), i > 0 || accumulate);
    }
    wgmma_commit();
  }

  // Zeros the next values from a row on: a probability of 0 times what lies there may be NaN. Every
  // warpgroup does it for itself, so that they need not wait for each other.
  __device__ void clear_values(int begin) {
    const int slot = value_ring_.slot, thread = static_cast<int>(threadIdx.x) % 128;
    wait(shared_.value_full[slot], value_ring_.parity);
    for (int i = thread; i < (kKeys - begin) * Config::kPanels * 8; i += 128) {
      const int row = begin + i / 8 % (kKeys - begin), panel = i / 8 / (kKeys - begin);
      *reinterpret_cast<uint4*>(&shared_.value[slot][panel][row][i % 8 * 8]) = uint4{};
    }
    fence_proxy_async();
    sync_named(kClearBarrier + warpgroup_, 128);
  }

  __device__ void store(const PrefillItem& item, const PrefillTotals& totals,
                        const float (&out)[kHeadDim / 2]) const {
    const PagedAttentionParams& p = work_.params;
#pragma unroll
    for (int which = 0; which < 2; ++which) {
      const bool wanted = first_row() + 8 * which < item.num_rows;
      const int row = item.row_begin + first_row() + 8 * which;
      const int token = shape_.group.divide(row);
      const int64_t t = item.token_begin + token;
      const int64_t head = item.kv_head * shape_.group.value + row - token * shape_.group.value;
      const float factor = totals.sum[which] > 0.0f ? __frcp_rn(totals.sum[which]) : 0.0f;
      T* to = static_cast<T*>(p.out) + t * p.out_stride[0] + head * p.out_stride[1];
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; j += 4) {
        uint32_t words[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          words[k] = pack_two<T>(out[4 * (j + k) + 2 * which] * factor,
                                 out[4 * (j + k) + 2 * which + 1] * factor);
        }
        transpose_quad(words);
        if (wanted) {
          *reinterpret_cast<uint4*>(to + 8 * j + 4 * Softmax::column()) =
              uint4{words[0], words[1], words[2], words[3]};
        }
      }
      if (wanted && p.lse != nullptr && Softmax::column() == 0) {
        p.lse[t * p.num_heads + head] =
            (totals.most[which] + log2f(totals.sum[which])) * 0.693147181f;
      }
    }
  }

  // Thread i's word j becomes thread j's word i, within four threads.
  __device__ static void transpose_quad(uint32_t (&words)[4]) {
    const bool odd = threadIdx.x % 2 != 0, upper = threadIdx.x % 4 >= 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? words[i] : words[i + 1], 1);
      (odd ? words[i] : words[i + 1]) = other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t other = __shfl_xor_sync(0xffffffff, upper ? words[i] : words[i + 2], 2);
      (upper ? words[i] : words[i + 2]) = other;
    }
  }

  __device__ static void release(Barrier& empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty);
  }
  __device__ static void pin_all(float (&scores)[kKeys / 2], float (&out)[kHeadDim / 2],
                                 uint32_t (&packed)[kKeys / 16][4]) {
    pin(scores);
    pin(out);
#pragma unroll
    for (auto& four : packed) pin(four);
  }

  // Two warpgroups alternate: one's softmax runs under the other's products.
  static constexpr int kTurnBarrier = 1, kClearBarrier = 4, kEarly = 2;
  __device__ void take_turn() const {
    if (Config::kTurns) sync_named(kTurnBarrier + warpgroup_, 256);
  }
  __device__ void pass_turn() const {
    if (Config::kTurns) arrive_named(kTurnBarrier + (warpgroup_ + 1) % Config::kWarpgroups, 256);
  }

  const PagedAttentionWork& work_;
  const PrefillShape& shape_;
  PrefillShared<Config>& shared_;
  PrefillPieces<Config> pieces_;
  int warpgroup_;
  PrefillRing<Config::kStages> key_ring_, value_ring_;
  PrefillRing<Config::kQueryStages> query_ring_;
};

}  // namespace lightvl::cuda
